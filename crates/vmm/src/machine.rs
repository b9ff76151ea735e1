//! A machine: described by a [`MachineSpec`], started, watched and stopped.
//!
//! Starting puts everything together in one order: memory, partition, buses
//! and devices, kernel, processors. The guest does not run an instruction
//! before all of it succeeded. What it runs is booted, or goes on from a
//! [saved state](SavedMachine). Dropping a machine ends every thread and
//! descriptor it had: processors first, so that nobody calls a device any more.

pub mod config;
mod lifecycle;
mod platform;
pub mod state;

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use favo_accel::cpuid::CpuidTable;
use favo_accel::{
    AccelError, Accelerator, GuestMemory, MemoryBacking, MemoryError, PartitionConfig, VcpuId,
};
use favo_block::BlockDevice;
use favo_devices::acpi::AcpiError;
use favo_devices::bus::BusError;
use favo_devices::pci::PciError;
use favo_devices::platform::{MemoryMap, PlatformError};
use favo_devices::power::{EventSink, MachineEvent, Power};
use favo_devices::state::StateError;
use favo_devices::virtio::DeviceError;
use favo_devices::virtio::event::EventFd;
use favo_devices::virtio::net::{NetHandle, NetSpec};
use favo_devices::virtio::vsock::VsockHandle;
use favo_net::link::Link;
use favo_types::ByteCount;

use crate::control::MachineStatus;
use crate::cpu;
use crate::kernel::Kernel;
use crate::linux_boot::BootError;
use crate::outcome::Outcome;
use crate::processors::{ProcessorEvent, Processors};
use crate::serial_io::{SerialIo, SerialThreads};
use config::DiskSource;
pub(crate) use lifecycle::Body;
pub use lifecycle::{LifecycleError, RunState};
use platform::Platform;
pub use state::{ClockStep, MachineState, SavedMachine};

/// What a machine is made of.
pub struct MachineSpec {
    /// Processors, at least 1.
    pub cpus: u32,
    /// Processors have no features but these, if it says; for a machine that
    /// shall move to another engine or host. One that was saved keeps its own.
    pub features: Option<CpuidTable>,
    /// RAM; whole pages.
    pub memory: ByteCount,
    /// What it runs.
    pub boot: BootSource,
    /// What the RAM of a machine that boots is made of.
    pub backing: MemoryBacking,
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

/// How a machine begins.
pub enum BootSource {
    /// A kernel is booted.
    Kernel(DirectBoot),
    /// A machine that was saved goes on.
    Saved(Box<SavedMachine>),
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
    /// How to have it again. A machine with a disk that doesn't say can't be
    /// in a snapshot.
    pub source: Option<DiskSource>,
}

impl From<DiskSource> for DiskSpec {
    fn from(source: DiskSource) -> Self {
        Self {
            disk: Arc::new(source.image.clone()),
            serial: source.config.serial.clone(),
            source: Some(source),
        }
    }
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
    /// The engine lacks what the saved machine's processors have.
    #[error(
        "the {engine} engine here lacks what the saved machine's processors have: {}; restore it \
         on a host or an engine that has it", .missing.join(", ")
    )]
    ProcessorFeatures {
        /// The engine.
        engine: favo_accel::EngineKind,
        /// What is lacking.
        missing: Vec<String>,
    },
    /// The guest's time stamp counter can't have its frequency here.
    #[error(
        "the saved machine's time stamp counter runs at {saved} kHz, here it would run at {here} \
         kHz; restore it on a host of the same frequency"
    )]
    TscFrequency {
        /// Where it was saved.
        saved: u32,
        /// Here.
        here: u32,
    },
    /// A saved state does not fit the machine.
    #[error(transparent)]
    State(#[from] StateError),
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
    body: Arc<Body>,
    serial: Option<SerialThreads>,
    ending: Arc<Ending>,
    stop: Arc<EventFd>,
}

/// Steers a machine from elsewhere. Doesn't keep it alive.
#[derive(Clone)]
pub struct MachineHandle {
    ending: Arc<Ending>,
    stop: Arc<EventFd>,
    power: Arc<Power>,
    body: Weak<Body>,
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

    /// The machine's inside, while there is one and its guest has not ended.
    pub(crate) fn body(&self) -> Result<Arc<Body>, LifecycleError> {
        match self.body.upgrade() {
            Some(body) if !self.ending.told.load(Ordering::SeqCst) => Ok(body),
            _ => Err(LifecycleError::Ended),
        }
    }

    /// Makes the guest stand still, and everything that acts for it. Its
    /// clocks run on. Nothing happens if it stands already.
    pub fn pause(&self) -> Result<(), LifecycleError> {
        self.body()?.pause()
    }

    /// Lets the guest go on. Nothing happens if it runs already.
    pub fn resume(&self) -> Result<(), LifecycleError> {
        self.body()?.resume()
    }

    /// How it is, for [`crate::control`].
    pub fn status(&self) -> Result<MachineStatus, LifecycleError> {
        let body = self.body()?;
        Ok(MachineStatus {
            state: body.run_state(),
            engine: body.partition.kind(),
            cpus: body.config.cpus,
            memory_bytes: body.config.memory,
        })
    }

    /// Whether it runs.
    pub fn run_state(&self) -> RunState {
        match self.body() {
            Ok(body) => body.run_state(),
            Err(_) => RunState::Ended,
        }
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
        let tables = cpuid_tables(&spec, accelerator)?;
        let bits = tables.first().map_or(0, cpu::physical_address_bits);
        let map = MemoryMap::new(spec.memory, bits)?;
        let memory = match &mut spec.boot {
            BootSource::Kernel(_) => GuestMemory::new(&map.ram, spec.backing)?,
            BootSource::Saved(saved) => {
                GuestMemory::copy_on_write(&map.ram, std::mem::take(&mut saved.memory))?
            }
        };
        let partition = accelerator.create_partition(PartitionConfig {
            vcpus: spec.cpus,
            memory: memory.clone(),
        })?;
        let ending = Arc::new(Ending {
            told: AtomicBool::new(false),
            report,
        });
        let config = lifecycle::config_of(&spec);
        let platform = Platform::build(&mut spec, &map, &memory, &partition, ending.clone())?;
        let mut vcpus = (0..)
            .zip(&tables)
            .map(|(id, table)| partition.create_vcpu(VcpuId(id), table.clone()))
            .collect::<Result<Vec<_>, _>>()?;
        match &mut spec.boot {
            BootSource::Kernel(boot) => {
                if let Some(boot_processor) = vcpus.first_mut() {
                    let mut state = boot_processor.export_state()?;
                    platform::place(boot, &map, &memory, spec.cpus, &mut state)?;
                    boot_processor.import_state(&state)?;
                }
                platform::renew_generation(&memory)?;
            }
            BootSource::Saved(saved) => {
                lifecycle::check_tsc(saved.state.tsc_khz, partition.tsc_khz())?;
                platform.restore(&saved.state)?;
                saved.step(realtime_ns());
                partition.import_clock(&saved.state.clock)?;
                for (vcpu, saved) in vcpus.iter_mut().zip(&saved.state.processors) {
                    vcpu.import_state(&saved.state)?;
                }
                platform::renew_generation(&memory)?;
                platform.power.generation_changed();
                platform.resume();
            }
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
        let disks = spec.disks.into_iter().map(|disk| disk.source).collect();
        let body = Body::new(processors, platform, partition, tables, config, disks);
        Ok(Self {
            body: Arc::new(body),
            serial: Some(serial),
            ending,
            stop,
        })
    }

    /// Which engine runs it.
    pub fn engine(&self) -> favo_accel::EngineKind {
        self.body.partition.kind()
    }

    /// A handle to stop it by.
    pub fn handle(&self) -> MachineHandle {
        MachineHandle {
            ending: self.ending.clone(),
            stop: self.stop.clone(),
            power: self.body.platform.power.clone(),
            body: Arc::downgrade(&self.body),
        }
    }

    /// The way to the guest's sockets, if it has a socket device.
    pub fn vsock(&self) -> Option<&VsockHandle> {
        self.body.platform.vsock.as_ref()
    }

    /// The ways to steer its network cards, in their order.
    pub fn cards(&self) -> &[NetHandle] {
        &self.body.platform.cards
    }

    #[cfg(test)]
    pub(crate) fn body_for_tests(&self) -> &Body {
        &self.body
    }

    /// What engine and devices counted, as `(whose, counter)`.
    pub fn stop(self) -> Vec<(String, favo_accel::EventCounter)> {
        let vcpus = self.body.processors.stop();
        let mut counters: Vec<_> = vcpus
            .iter()
            .flat_map(|vcpu| {
                let whose = format!("cpu {}", vcpu.id());
                vcpu.counters()
                    .into_iter()
                    .map(move |counter| (whose.clone(), counter))
            })
            .collect();
        counters.extend(self.body.platform.counters());
        counters
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.body.processors.stop();
        self.serial = None;
    }
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine")
            .field("engine", &self.engine())
            .field("memory", self.body.partition.memory())
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
    if let BootSource::Saved(saved) = &spec.boot {
        lifecycle::check_saved(&saved.state, spec.cpus)?;
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

/// What each processor says of itself: as the engine offers, or as it did
/// before it was saved.
fn cpuid_tables(
    spec: &MachineSpec,
    accelerator: &dyn Accelerator,
) -> Result<Vec<CpuidTable>, MachineError> {
    let offered = accelerator.supported_cpuid();
    let BootSource::Saved(saved) = &spec.boot else {
        let common = spec.features.as_ref();
        let common = common.map(|features| cpu::common(offered, features));
        let offered = common.as_ref().unwrap_or(offered);
        let table = |id| cpu::table(offered, VcpuId(id), spec.cpus);
        return Ok((0..spec.cpus).map(table).collect());
    };
    let processors = &saved.state.processors;
    let shown = processors.iter().map(|processor| &processor.cpuid);
    let mut missing: Vec<_> = shown.flat_map(|own| cpu::missing(own, offered)).collect();
    missing.sort();
    missing.dedup();
    if !missing.is_empty() {
        return Err(MachineError::ProcessorFeatures {
            engine: accelerator.kind(),
            missing,
        });
    }
    Ok(processors.iter().map(|own| own.cpuid.clone()).collect())
}

/// The host's real-time clock, nanoseconds since 1970.
pub(crate) fn realtime_ns() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_nanos() as u64)
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
pub(crate) mod test;
