//! A running machine's inside: pausing it, and reading its state while it
//! stands still.
//!
//! ```text
//!            pause                     processors stand, then the devices'
//!  Running ────────▸ Paused            queues are stopped: requests under way
//!          ◂────────    │              finish, their interrupts are delivered
//!            resume     └─ save        only then anything is read
//! ```
//!
//! One lock is held over each transition and over whatever is done while the
//! machine stands still, so that transitions never overlap.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use favo_accel::cpuid::CpuidTable;
use favo_accel::state::VcpuState;
use favo_accel::{AccelError, GuestMemory, Partition};
use favo_devices::state::{StateError, check_version};
use favo_devices::virtio::DeviceError;
use serde::{Deserialize, Serialize};

use super::config::{DiskSource, MachineConfig};
use super::platform::Platform;
use super::state::{MachineState, ProcessorState};
use super::{CardSpec, MachineError, MachineSpec};
use crate::processors::Processors;
use crate::snapshot::Last;

/// Why a machine can't be paused, resumed or saved.
#[derive(Debug, thiserror::Error)]
pub enum LifecycleError {
    /// It has come to its end.
    #[error("the machine has ended")]
    Ended,
    /// A processor is lost.
    #[error("the machine's processors don't stand still; stop it")]
    Stuck,
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] AccelError),
    /// A device can't be saved.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// Whether a machine runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunState {
    /// The guest executes.
    Running,
    /// It stands still.
    Paused,
    /// It has come to its end.
    Ended,
}

/// See the module.
pub(crate) struct Body {
    pub processors: Processors,
    pub platform: Platform,
    pub partition: Arc<dyn Partition>,
    pub config: MachineConfig,
    /// As in the configuration; `None` for one that can't be had again.
    pub disks: Vec<Option<DiskSource>>,
    cpuid: Vec<CpuidTable>,
    paused: Mutex<bool>,
    /// Held while a snapshot is taken: one at a time.
    last_snapshot: Mutex<Option<Last>>,
}

/// The right to look at a machine that stands still; it can't be resumed
/// meanwhile.
pub(crate) struct Standing<'a> {
    body: &'a Body,
    paused: MutexGuard<'a, bool>,
    ran: bool,
}

impl Body {
    pub fn new(
        processors: Processors,
        platform: Platform,
        partition: Arc<dyn Partition>,
        cpuid: Vec<CpuidTable>,
        config: MachineConfig,
        disks: Vec<Option<DiskSource>>,
    ) -> Self {
        Self {
            processors,
            platform,
            partition,
            config,
            disks,
            cpuid,
            paused: Mutex::new(false),
            last_snapshot: Mutex::new(None),
        }
    }

    pub fn memory(&self) -> &GuestMemory {
        self.partition.memory()
    }

    /// The snapshot that an incremental one adds to. Whoever holds this takes
    /// one.
    pub fn last_snapshot(&self) -> MutexGuard<'_, Option<Last>> {
        self.last_snapshot
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub fn run_state(&self) -> RunState {
        match *self.lock() {
            true => RunState::Paused,
            false => RunState::Running,
        }
    }

    pub fn pause(&self) -> Result<(), LifecycleError> {
        self.stand().map(|_| ())
    }

    pub fn resume(&self) -> Result<(), LifecycleError> {
        self.go_on(&mut self.lock());
        Ok(())
    }

    /// Pauses the machine, if it is not, and keeps it so.
    pub fn stand(&self) -> Result<Standing<'_>, LifecycleError> {
        let mut paused = self.lock();
        let ran = !*paused;
        if ran {
            if !self.processors.pause() {
                self.processors.resume();
                return Err(LifecycleError::Stuck);
            }
            self.platform.pause();
            *paused = true;
        }
        Ok(Standing {
            body: self,
            paused,
            ran,
        })
    }

    fn go_on(&self, paused: &mut bool) {
        if std::mem::take(paused) {
            self.platform.resume();
            self.processors.resume();
        }
    }

    fn lock(&self) -> MutexGuard<'_, bool> {
        self.paused.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Standing<'_> {
    /// Lets the machine go on, if it did before.
    pub fn resume(mut self) {
        if self.ran {
            self.body.go_on(&mut self.paused);
        }
    }

    /// The state of processors and devices.
    pub fn save(&self) -> Result<MachineState, LifecycleError> {
        let body = self.body;
        let platform = body.platform.save()?;
        // Last: what devices told while they were stopped is in here.
        let processors = body
            .processors
            .visit(|vcpu| vcpu.export_state())
            .ok_or(LifecycleError::Stuck)?;
        let processors = body.cpuid.iter().cloned().zip(processors);
        let processors = processors.map(|(cpuid, state)| {
            let state = state?;
            Ok(ProcessorState { cpuid, state })
        });
        Ok(MachineState {
            version: MachineState::VERSION,
            tsc_khz: body.partition.tsc_khz(),
            clock: body.partition.export_clock()?,
            processors: processors.collect::<Result<_, LifecycleError>>()?,
            ioapic: platform.ioapic,
            serial: platform.serial,
            rtc: platform.rtc,
            power: platform.power,
            pci: platform.pci,
            virtio: platform.virtio,
        })
    }
}

/// The configuration of a machine about to be built.
pub(super) fn config_of(spec: &MachineSpec) -> MachineConfig {
    let disks = spec.disks.iter().filter_map(|disk| disk.source.as_ref());
    let card = |card: &CardSpec| card.card.mac;
    MachineConfig {
        cpus: spec.cpus,
        memory: spec.memory.bytes(),
        disks: disks.map(|source| source.config.clone()).collect(),
        cards: spec.cards.iter().map(card).collect(),
        vsock_cid: spec.vsock_cid,
        rng: spec.rng,
        balloon: spec.balloon,
        console: spec.console.is_some(),
    }
}

/// Refuses a frequency that the guest would notice. An engine may have had to
/// measure it, so that the same host's differs a little each time.
pub(super) fn check_tsc(saved: u32, here: u32) -> Result<(), MachineError> {
    if saved.abs_diff(here) > saved / 100 {
        return Err(MachineError::TscFrequency { saved, here });
    }
    Ok(())
}

/// Refuses a state that is not one of a machine with `cpus` processors, as far
/// as that can be said before anything is built.
pub(super) fn check_saved(state: &MachineState, cpus: u32) -> Result<(), StateError> {
    const MACHINE: &str = "the machine";
    check_version(MACHINE, state.version, MachineState::VERSION)?;
    if state.processors.len() != cpus as usize {
        let reason = format!(
            "it has {} processors, the configuration {cpus}",
            state.processors.len()
        );
        return Err(StateError::invalid(MACHINE, reason));
    }
    for processor in &state.processors {
        check_version("a processor", processor.state.version, VcpuState::VERSION)?;
    }
    Ok(())
}
