//! What a CPU engine is.
//!
//! favo runs a virtual machine's processors on one of several engines: Linux
//! KVM (`favo-kvm`) or an x86-64 processor in software (`favo-soft`). This
//! crate holds everything the two share and everything the rest of favo may
//! know of them:
//!
//! * [`engine`]: the traits, in stages. An [`Accelerator`] says what this host
//!   can do; a [`Partition`] is one machine's memory map and interrupts; a
//!   [`Vcpu`] runs, trading two plain enums: an [`VcpuEntry`] in, a
//!   [`VcpuExit`] out. Optional abilities are views one asks for, never
//!   methods that panic.
//! * [`state`]: the canonical machine state. Every engine exports and imports
//!   it exactly; snapshots, migration and moving between engines build on it.
//! * [`memory`]: the guest's RAM, shared by engines and devices, with one
//!   record of which pages were written and which hold cached code.
//! * [`cpuid`]: what a processor says of itself.
//! * [`mod@probe`]: how fast an engine really runs, measured.
//! * `conformance` (feature of the same name): tiny guests that say whether an
//!   engine keeps the contract.
//!
//! No type of a hypervisor or a library leaks through the traits.

#[cfg(feature = "conformance")]
pub mod conformance;
pub mod cpuid;
pub mod engine;
pub mod memory;
pub mod probe;
pub mod state;

pub use engine::{
    AccelError, Accelerator, AccessSize, DirtyLog, EngineKind, EventCounter, IoEventAddress,
    IoEventFd, IrqFd, Msi, Partition, PartitionConfig, Vcpu, VcpuEntry, VcpuExit, VcpuId,
    VcpuKicker,
};
pub use memory::{GuestMemory, MemoryBacking, MemoryError, PAGE_SIZE};
pub use probe::{Speed, probe};
