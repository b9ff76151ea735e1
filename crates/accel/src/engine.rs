//! The traits a CPU engine implements, in the order one meets them.
//!
//! Threads: an [`Accelerator`] and a [`Partition`] are shared freely. A
//! [`Vcpu`] belongs to one thread at a time, the one that calls
//! [`Vcpu::run`]; everything else reaches it through its [`VcpuKicker`] or
//! through the partition.

use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use favo_types::GuestAddress;
use serde::{Deserialize, Serialize};

use crate::cpuid::CpuidTable;
use crate::memory::GuestMemory;
use crate::state::{ClockState, VcpuState};

/// Which engine runs a machine's processors.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineKind {
    /// The x86-64 processor in software.
    Soft,
    /// Linux KVM.
    Kvm,
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Soft => "soft",
            Self::Kvm => "kvm",
        })
    }
}

/// A virtual processor's number within its machine, from 0; also its
/// (x2)APIC id. Processor 0 is the one that boots.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct VcpuId(pub u32);

impl fmt::Display for VcpuId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What went wrong in an engine.
#[derive(Debug, thiserror::Error)]
pub enum AccelError {
    /// The engine can't be had on this host.
    #[error("the {engine} engine can't run here: {reason}")]
    Unavailable {
        /// Which engine.
        engine: EngineKind,
        /// Why, and what would help.
        reason: String,
    },
    /// The machine asks for something outside the engine's limits.
    #[error("{0}")]
    Unsupported(String),
    /// State handed to `import_state` that no processor can be in.
    #[error("the machine state can't be loaded: {0}")]
    InvalidState(String),
    /// The host refused an operation.
    #[error("{operation}: {source}")]
    Host {
        /// What was being done, for instance "creating the virtual machine (KVM_CREATE_VM)".
        operation: &'static str,
        /// The host's answer.
        source: std::io::Error,
    },
    /// The guest's memory could not be used.
    #[error(transparent)]
    Memory(#[from] crate::memory::MemoryError),
}

/// A host's ability to run processors one way.
pub trait Accelerator: Send + Sync {
    /// Which engine this is.
    fn kind(&self) -> EngineKind;

    /// The most processors one machine may have.
    fn max_vcpus(&self) -> u32;

    /// Every CPUID leaf and feature bit this engine can offer a guest here.
    /// A machine shows its guest a subset.
    fn supported_cpuid(&self) -> &CpuidTable;

    /// Makes a machine without processors.
    fn create_partition(&self, config: PartitionConfig) -> Result<Arc<dyn Partition>, AccelError>;
}

/// What a partition is made from.
#[derive(Clone, Debug)]
pub struct PartitionConfig {
    /// How many processors the machine will get; their ids are `0..vcpus`.
    pub vcpus: u32,
    /// The machine's RAM. Every guest-physical address outside it and outside
    /// the local APIC's page exits to the caller.
    pub memory: GuestMemory,
}

/// One machine: its memory map, its interrupt routing, its clock.
///
/// The local APICs live in the engine. The I/O APIC is a device of favo's own;
/// it and every MSI-capable device deliver through [`Partition::signal_msi`].
pub trait Partition: Send + Sync {
    /// Which engine runs it.
    fn kind(&self) -> EngineKind;

    /// The machine's RAM.
    fn memory(&self) -> &GuestMemory;

    /// Makes processor `id` in its power-on state: processor 0 at the reset
    /// vector, the others waiting for INIT. `cpuid` is what this processor
    /// says of itself, ids included.
    fn create_vcpu(&self, id: VcpuId, cpuid: CpuidTable) -> Result<Box<dyn Vcpu>, AccelError>;

    /// Delivers a message-signalled interrupt. Callable from any thread. An
    /// address no local APIC answers to is dropped, as on a bus.
    fn signal_msi(&self, msi: Msi) -> Result<(), AccelError>;

    /// Tells the engine which vectors the I/O APIC has programmed as level
    /// triggered, so that their EOI exits as [`VcpuExit::IoapicEoi`]. `pins`
    /// holds one entry per I/O APIC pin: the message the pin would send, if
    /// it is unmasked and level triggered.
    fn set_level_triggered_pins(&self, pins: &[Option<Msi>]) -> Result<(), AccelError>;

    /// The frequency of the guest's time stamp counter, in kHz.
    fn tsc_khz(&self) -> u32;

    /// Reads the machine's paravirtual clock.
    fn export_clock(&self) -> Result<ClockState, AccelError>;

    /// Sets the machine's paravirtual clock. No processor may be running.
    fn import_clock(&self, clock: &ClockState) -> Result<(), AccelError>;

    /// Writes by processors, page by page, if the engine can record them.
    fn dirty_log(&self) -> Option<&dyn DirtyLog> {
        None
    }

    /// Guest writes that signal an event descriptor without an exit, if the
    /// engine has them.
    fn io_event_fd(&self) -> Option<&dyn IoEventFd> {
        None
    }

    /// Interrupts raised by an event descriptor, if the engine has them.
    fn irq_fd(&self) -> Option<&dyn IrqFd> {
        None
    }
}

/// A message-signalled interrupt: a write of `data` to `address`
/// (Intel SDM vol. 3, 11.11).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Msi {
    /// Message address: destination, redirection hint, destination mode. The
    /// upper half carries destination id bits 8 and up for x2APIC machines
    /// (bits 63:40), as in KVM's extended destination format.
    pub address: u64,
    /// Message data: vector, delivery mode, trigger mode and level.
    pub data: u32,
}

/// One virtual processor.
pub trait Vcpu: Send {
    /// Its id.
    fn id(&self) -> VcpuId;

    /// Runs until something needs the caller. `entry` answers the last exit:
    /// a read must be answered by [`VcpuEntry::Data`]; anything else by
    /// [`VcpuEntry::Resume`]. Blocks while the processor is halted or waits
    /// for INIT/SIPI; interrupts and kicks end that.
    fn run(&mut self, entry: VcpuEntry) -> Result<VcpuExit, AccelError>;

    /// A handle that makes a running, halted or next `run` return
    /// [`VcpuExit::Interrupted`] soon. Works from any thread; kicks never get
    /// lost, and several may be seen as one.
    fn kicker(&self) -> Arc<dyn VcpuKicker>;

    /// The processor's whole state. Only between runs, and only after an exit
    /// that needs no answer: an exit that was left unanswered is an
    /// [`AccelError::InvalidState`].
    fn export_state(&mut self) -> Result<VcpuState, AccelError>;

    /// Replaces the processor's whole state. All of it is checked before any
    /// of it is loaded.
    fn import_state(&mut self, state: &VcpuState) -> Result<(), AccelError>;

    /// What the engine counted for this processor since it was made.
    fn counters(&self) -> Vec<EventCounter> {
        Vec::new()
    }
}

/// A named count for people who tune or debug, like `undefined-instruction`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct EventCounter {
    /// What is counted, in kebab-case.
    pub name: &'static str,
    /// Which one of them, if the name covers several (an opcode, an MSR).
    pub detail: Option<String>,
    /// How often it happened.
    pub count: u64,
}

/// Interrupts a [`Vcpu::run`] from outside.
pub trait VcpuKicker: Send + Sync {
    /// See [`Vcpu::kicker`].
    fn kick(&self);
}

/// How wide a port or memory access is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum AccessSize {
    /// 1 byte.
    Byte,
    /// 2 bytes.
    Word,
    /// 4 bytes.
    Dword,
    /// 8 bytes; memory only.
    Qword,
}

impl AccessSize {
    /// The width in bytes.
    pub const fn bytes(self) -> usize {
        match self {
            Self::Byte => 1,
            Self::Word => 2,
            Self::Dword => 4,
            Self::Qword => 8,
        }
    }

    /// The size of `bytes` bytes, if there is such a size.
    pub const fn from_bytes(bytes: usize) -> Option<Self> {
        match bytes {
            1 => Some(Self::Byte),
            2 => Some(Self::Word),
            4 => Some(Self::Dword),
            8 => Some(Self::Qword),
            _ => None,
        }
    }

    /// The low `self` bytes of `value`.
    pub const fn truncate(self, value: u64) -> u64 {
        match self {
            Self::Qword => value,
            _ => value & ((1 << (8 * self.bytes())) - 1),
        }
    }
}

/// How a run begins: the answer to the exit before it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum VcpuEntry {
    /// Nothing to say.
    Resume,
    /// What the read of the last exit returned; only its low bytes count.
    Data(u64),
}

/// Why a run ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum VcpuExit {
    /// The guest reads an I/O port; answer with [`VcpuEntry::Data`].
    PortRead {
        /// The port.
        port: u16,
        /// Byte, word or dword.
        size: AccessSize,
    },
    /// The guest writes an I/O port.
    PortWrite {
        /// The port.
        port: u16,
        /// Byte, word or dword.
        size: AccessSize,
        /// The value, zero-extended.
        value: u32,
    },
    /// The guest reads memory that is not RAM; answer with [`VcpuEntry::Data`].
    /// An access wider than 8 bytes, or one that is not a power of two wide,
    /// arrives in pieces, lowest address first.
    MmioRead {
        /// Where.
        address: GuestAddress,
        /// How wide.
        size: AccessSize,
    },
    /// The guest writes memory that is not RAM.
    MmioWrite {
        /// Where.
        address: GuestAddress,
        /// How wide.
        size: AccessSize,
        /// The value, zero-extended.
        value: u64,
    },
    /// The guest signalled the end of a level-triggered interrupt; the I/O
    /// APIC re-delivers if the line is still up.
    IoapicEoi {
        /// The interrupt's vector.
        vector: u8,
    },
    /// The processor shut down: a triple fault.
    Shutdown,
    /// A kick arrived.
    Interrupted,
}

/// Which RAM pages processors wrote. Devices' writes are recorded by
/// [`GuestMemory`] itself; [`DirtyLog::take`] returns both.
pub trait DirtyLog: Send + Sync {
    /// Starts recording; every page counts as clean from here on.
    fn start(&self) -> Result<(), AccelError>;

    /// The pages written since [`DirtyLog::start`] or the last `take`, as
    /// guest-physical page addresses in ascending order, and marks them clean.
    /// A page written while this runs is in this result or in the next one.
    fn take(&self) -> Result<Vec<GuestAddress>, AccelError>;

    /// Stops recording.
    fn stop(&self) -> Result<(), AccelError>;
}

/// Where a guest's write signals an event.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum IoEventAddress {
    /// An I/O port.
    Port(u16),
    /// A memory address outside RAM.
    Mmio(GuestAddress),
}

/// Guest writes as events.
pub trait IoEventFd: Send + Sync {
    /// From now on a write to `address`, of `size` and value `datamatch` if
    /// given and of any width and value otherwise, adds 1 to `event` instead
    /// of exiting.
    fn register(
        &self,
        address: IoEventAddress,
        datamatch: Option<(AccessSize, u64)>,
        event: BorrowedFd<'_>,
    ) -> Result<(), AccelError>;

    /// Undoes a [`IoEventFd::register`] with the same arguments.
    fn unregister(
        &self,
        address: IoEventAddress,
        datamatch: Option<(AccessSize, u64)>,
        event: BorrowedFd<'_>,
    ) -> Result<(), AccelError>;
}

/// Events as interrupts.
pub trait IrqFd: Send + Sync {
    /// From now on a signal on `event` delivers `msi`. The result names the
    /// route, for [`IrqFd::unregister`].
    fn register(&self, event: BorrowedFd<'_>, msi: Msi) -> Result<u32, AccelError>;

    /// Undoes a [`IrqFd::register`].
    fn unregister(&self, event: BorrowedFd<'_>, route: u32) -> Result<(), AccelError>;
}
