//! A machine: described by a [`MachineSpec`], started, watched and stopped.
//!
//! Starting puts everything together in one order: memory, partition, buses
//! and devices, kernel, processors. The guest does not run an instruction
//! before all of it succeeded. Dropping a machine ends every thread and
//! descriptor it had: processors first, so that nobody calls a device any more.

mod platform;

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use favo_accel::{
    AccelError, Accelerator, GuestMemory, MemoryBacking, MemoryError, Partition, PartitionConfig,
    VcpuId,
};
use favo_block::BlockDevice;
use favo_devices::acpi::AcpiError;
use favo_devices::bus::BusError;
use favo_devices::pci::PciError;
use favo_devices::platform::{MemoryMap, PlatformError};
use favo_devices::power::{EventSink, MachineEvent, Power};
use favo_devices::virtio::DeviceError;
use favo_devices::virtio::event::EventFd;
use favo_devices::virtio::net::{NetHandle, NetSpec};
use favo_devices::virtio::vsock::VsockHandle;
use favo_net::link::Link;
use favo_types::ByteCount;

use crate::cpu;
use crate::kernel::Kernel;
use crate::linux_boot::BootError;
use crate::outcome::Outcome;
use crate::processors::{ProcessorEvent, Processors};
use crate::serial_io::{SerialIo, SerialThreads};
use platform::Platform;

/// What a machine is made of.
pub struct MachineSpec {
    /// Processors, at least 1.
    pub cpus: u32,
    /// RAM; whole pages.
    pub memory: ByteCount,
    /// What it boots.
    pub boot: DirectBoot,
    /// Its disks: `/dev/vda` and on.
    pub disks: Vec<DiskSpec>,
    /// Its network cards.
    pub cards: Vec<CardSpec>,
    /// The guest's context id of a socket device, if it has one.
    pub vsock_cid: Option<u32>,
    /// An entropy source.
    pub rng: bool,
    /// A balloon, which also gives free memory back to the host.
    pub balloon: bool,
    /// A console beside the serial port (`/dev/hvc0`), on these descriptors.
    pub console: Option<ConsoleEnds>,
}

/// A kernel, started without firmware.
pub struct DirectBoot {
    /// The kernel.
    pub kernel: Kernel,
    /// The initial RAM disk; empty for none.
    pub initrd: Vec<u8>,
    /// The kernel's command line.
    pub command_line: String,
}

/// A disk.
pub struct DiskSpec {
    /// What is behind it.
    pub disk: Arc<dyn BlockDevice>,
    /// Its serial number in the guest, at most 20 bytes.
    pub serial: String,
}

/// A network card.
pub struct CardSpec {
    /// What the guest sees.
    pub card: NetSpec,
    /// Its cables into the network: one per queue pair.
    pub links: Vec<Box<dyn Link>>,
}

/// Descriptors of a console.
pub struct ConsoleEnds {
    /// Bytes for the guest.
    pub input: Option<OwnedFd>,
    /// Where the guest's bytes go.
    pub output: Option<OwnedFd>,
}

/// Why a machine can't be started.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// No processors, or more than the engine runs.
    #[error("a machine on the {engine} engine has 1 to {most} processors, not {asked}; see --cpus")]
    Processors {
        /// The engine.
        engine: favo_accel::EngineKind,
        /// How many were asked for.
        asked: u32,
        /// The most it runs.
        most: u32,
    },
    /// More memory than the host has.
    #[error(
        "{asked} of memory are more than the host's {host}; give the machine less with --memory"
    )]
    Memory {
        /// How much was asked for.
        asked: ByteCount,
        /// What the host has.
        host: ByteCount,
    },
    /// There is no such platform.
    #[error(transparent)]
    Platform(#[from] PlatformError),
    /// Guest memory can't be had.
    #[error(transparent)]
    GuestMemory(#[from] MemoryError),
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] AccelError),
    /// A device can't be made.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A device finds no place on PCI.
    #[error(transparent)]
    Pci(#[from] PciError),
    /// A device finds no place on a bus.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// The machine can't be described to the guest.
    #[error(transparent)]
    Acpi(#[from] AcpiError),
    /// The kernel can't be placed.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The host refused something.
    #[error("{operation}: {source}")]
    Host {
        /// What was being done.
        operation: &'static str,
        /// The host's answer.
        source: std::io::Error,
    },
}

/// Hears once how the machine ended. Called on a thread of the machine: it
/// must not block and not drop the machine.
pub type EndReport = Arc<dyn Fn(Outcome) + Send + Sync>;

/// Tells the first end of a machine, and nobody of the others.
pub(crate) struct Ending {
    told: AtomicBool,
    report: EndReport,
}

impl Ending {
    fn tell(&self, outcome: Outcome) {
        if !self.told.swap(true, Ordering::SeqCst) {
            (self.report)(outcome);
        }
    }
}

impl EventSink for Ending {
    fn signal(&self, event: MachineEvent) {
        match event {
            MachineEvent::PowerOff => self.tell(Outcome::PoweredOff),
            MachineEvent::Reset => self.tell(Outcome::Reset),
            MachineEvent::GuestPanicked => self.tell(Outcome::Panicked),
            // It goes on, in its crash kernel.
            MachineEvent::GuestCrashLoaded => {
                tracing::warn!("the guest's kernel panicked; its crash kernel takes over");
            }
        }
    }
}

/// A running machine.
pub struct Machine {
    // Dropped in this order: nobody runs, then nobody writes, then devices go.
    processors: Option<Processors>,
    serial: Option<SerialThreads>,
    platform: Platform,
    ending: Arc<Ending>,
    stop: Arc<EventFd>,
    partition: Arc<dyn Partition>,
}

/// Stops a machine from elsewhere. Doesn't keep it alive.
#[derive(Clone)]
pub struct MachineHandle {
    ending: Arc<Ending>,
    stop: Arc<EventFd>,
    power: Arc<Power>,
}

impl MachineHandle {
    /// Has the machine's end reported as [`Outcome::Stopped`], if it has not
    /// ended. It runs until it is dropped; its output is no longer waited for.
    pub fn stop(&self) {
        self.stop.signal();
        self.ending.tell(Outcome::Stopped);
    }

    /// Asks the guest to shut down, by the power button. It may not.
    pub fn press_power_button(&self) {
        self.power.press_power_button();
    }
}

impl Machine {
    /// Builds the machine and starts it; `report` hears how it ends.
    pub fn start(
        mut spec: MachineSpec,
        accelerator: &dyn Accelerator,
        serial: SerialIo,
        report: EndReport,
    ) -> Result<Self, MachineError> {
        check(&spec, accelerator)?;
        let offered = accelerator.supported_cpuid();
        let map = MemoryMap::new(spec.memory, cpu::physical_address_bits(offered))?;
        let memory = GuestMemory::new(&map.ram, MemoryBacking::Anonymous)?;
        let partition = accelerator.create_partition(PartitionConfig {
            vcpus: spec.cpus,
            memory: memory.clone(),
        })?;
        let ending = Arc::new(Ending {
            told: AtomicBool::new(false),
            report,
        });
        let platform = Platform::build(&mut spec, &map, &memory, &partition, ending.clone())?;

        let mut vcpus = (0..spec.cpus)
            .map(|id| {
                let id = VcpuId(id);
                partition.create_vcpu(id, cpu::table(offered, id, spec.cpus))
            })
            .collect::<Result<Vec<_>, _>>()?;
        if let Some(boot_processor) = vcpus.first_mut() {
            let mut state = boot_processor.export_state()?;
            platform::place(&spec.boot, &map, &memory, spec.cpus, &mut state)?;
            boot_processor.import_state(&state)?;
        }

        let stop = Arc::new(EventFd::new().map_err(host("making an event descriptor"))?);
        let serial = {
            let (ending, raised) = (ending.clone(), stop.clone());
            SerialThreads::start(platform.serial.clone(), serial, stop.clone(), move || {
                raised.signal();
                ending.tell(Outcome::Stopped);
            })
            .map_err(host("starting the serial port's threads"))?
        };
        let processors = {
            let ending = ending.clone();
            Processors::start(vcpus, &platform.buses, move |event| {
                ending.tell(match event {
                    ProcessorEvent::Shutdown(id) => Outcome::TripleFault(id),
                    ProcessorEvent::Failed(id, error) => {
                        Outcome::Failed(format!("processor {id} failed: {error}"))
                    }
                });
            })
            .map_err(host("starting the processors' threads"))?
        };
        Ok(Self {
            processors: Some(processors),
            serial: Some(serial),
            platform,
            ending,
            stop,
            partition,
        })
    }

    /// Which engine runs it.
    pub fn engine(&self) -> favo_accel::EngineKind {
        self.partition.kind()
    }

    /// A handle to stop it by.
    pub fn handle(&self) -> MachineHandle {
        MachineHandle {
            ending: self.ending.clone(),
            stop: self.stop.clone(),
            power: self.platform.power.clone(),
        }
    }

    /// The way to the guest's sockets, if it has a socket device.
    pub fn vsock(&self) -> Option<&VsockHandle> {
        self.platform.vsock.as_ref()
    }

    /// The ways to steer its network cards, in their order.
    pub fn cards(&self) -> &[NetHandle] {
        &self.platform.cards
    }

    /// What engine and devices counted, as `(whose, counter)`.
    pub fn stop(mut self) -> Vec<(String, favo_accel::EventCounter)> {
        let vcpus = self.processors.take().map(Processors::stop);
        let mut counters: Vec<_> = vcpus
            .iter()
            .flatten()
            .flat_map(|vcpu| {
                let whose = format!("cpu {}", vcpu.id());
                vcpu.counters()
                    .into_iter()
                    .map(move |counter| (whose.clone(), counter))
            })
            .collect();
        counters.extend(self.platform.counters());
        counters
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.processors = None;
        self.serial = None;
    }
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine")
            .field("engine", &self.engine())
            .field("memory", self.partition.memory())
            .finish_non_exhaustive()
    }
}

fn check(spec: &MachineSpec, accelerator: &dyn Accelerator) -> Result<(), MachineError> {
    let most = accelerator.max_vcpus();
    if spec.cpus == 0 || spec.cpus > most {
        return Err(MachineError::Processors {
            engine: accelerator.kind(),
            asked: spec.cpus,
            most,
        });
    }
    let host = host_memory();
    if spec.memory > host {
        return Err(MachineError::Memory {
            asked: spec.memory,
            host,
        });
    }
    Ok(())
}

/// How much memory the host has.
pub fn host_memory() -> ByteCount {
    let info = rustix::system::sysinfo();
    ByteCount((info.totalram as u64).saturating_mul(info.mem_unit.into()))
}

pub(crate) fn host(operation: &'static str) -> impl FnOnce(std::io::Error) -> MachineError {
    move |source| MachineError::Host { operation, source }
}

#[cfg(test)]
#[path = "machine_test.rs"]
mod test;
