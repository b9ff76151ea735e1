//! `favo vmm serve`: a process that waits for a machine to restore.

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use favo_vmm::control::ControlError;
use favo_vmm::engine::{self, Engine};
use favo_vmm::machine::{EndReport, Machine, MachineError};
use favo_vmm::outcome::Outcome;
use favo_vmm::serial_io::{SerialInput, SerialIo, SerialOutput};
use favo_vmm::snapshot::{RestoreParts, Snapshot, SnapshotError};

use super::Accel;
use super::host::{self, AgentDoor, Current, Host};
use super::owner::Owner;
use crate::mailbox::{Event, Mailbox};
use crate::run::network::{self, Attachment};
use crate::run::{End, killed_by, wait_for_end};
use crate::terminal::{self, RawMode};
use crate::{Failure, exit};

/// `favo vmm serve`.
#[derive(clap::Args)]
pub struct Args {
    /// The control socket to serve.
    socket: PathBuf,
    /// Restore this snapshot at once.
    #[arg(long, value_name = "DIR")]
    restore: Option<PathBuf>,
    /// Which engine runs the machine.
    #[arg(long, value_enum, default_value_t, value_name = "ENGINE")]
    accel: Accel,
}

/// A machine and what it is plugged into, which outlives it.
struct Restored {
    machine: Machine,
    _network: Attachment,
}

/// Runs the process until its machine ends.
pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    let engine = engine::open(args.accel.into())?;
    let mailbox = Mailbox::with_signals()?;
    let restored: Arc<Mutex<Option<Restored>>> = Arc::default();
    let raw = RawMode::enter()?;
    let escape = raw.is_some().then_some(terminal::ESCAPE);
    let restore = {
        let (restored, mailbox) = (restored.clone(), mailbox.clone());
        move |directory: &Path| {
            let (machine, current) = restore(directory, &engine, &mailbox, escape)?;
            *restored.lock().unwrap_or_else(PoisonError::into_inner) = Some(machine);
            Ok(current)
        }
    };
    let end = {
        let host = Arc::new(Host::waiting(Box::new(restore)));
        let _server = host::start(&args.socket, host.clone())?;
        if let Some(directory) = &args.restore {
            use favo_vmm::control::{Handler, Request};
            let directory = directory.clone();
            host.handle(Request::Restore { directory })?;
        }
        wait_for_end(&mailbox)
    };
    let restored = restored
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    if let Some(restored) = restored {
        if let End::Signal(_) = end {
            restored.machine.handle().stop();
        }
        restored.machine.stop();
    }
    drop(raw);
    Ok(match end {
        End::Signal(signal) => killed_by(signal),
        End::Outcome(outcome) => {
            if !matches!(outcome, Outcome::PoweredOff | Outcome::Stopped) {
                eprintln!("favo: {outcome}");
            }
            exit::of_outcome(&outcome)
        }
    })
}

fn restore(
    directory: &Path,
    engine: &Engine,
    mailbox: &Arc<Mailbox>,
    escape: Option<u8>,
) -> Result<(Restored, Current), ControlError> {
    let failed =
        |code: &'static str| move |failure: Failure| ControlError::new(code, failure.message, "");
    let snapshot = Snapshot::open(directory)?;
    let manifest = snapshot.manifest();
    let owner: Owner = serde_json::from_value(manifest.owner.clone()).map_err(|error| {
        let error = SnapshotError::Misfit(format!("what favo kept with it: {error}"));
        ControlError::from(error)
    })?;
    let cpus = manifest.config.cpus;
    let (network, cards) =
        network::attach(&owner.network, &owner.name, cpus).map_err(failed("network"))?;
    let scratch = favo_image::state_directory()
        .map_err(|error| ControlError::new("io", error, "set FAVO_STATE_DIR"))?;
    let spec = snapshot.into_spec(RestoreParts {
        cards,
        console: None,
        scratch,
    })?;
    let serial = serial(escape)
        .map_err(|error| ControlError::new("io", format!("connecting the console: {error}"), ""))?;
    let receiver = mailbox.clone();
    let report: EndReport = Arc::new(move |outcome| receiver.push(Event::Ended(outcome)));
    let accelerator = engine.accelerator.as_ref();
    let machine = Machine::start(spec, accelerator, serial, report).map_err(machine_error)?;
    let current = Current {
        handle: machine.handle(),
        owner,
        agent: AgentDoor::open(&machine),
    };
    let restored = Restored {
        machine,
        _network: network,
    };
    Ok((restored, current))
}

fn machine_error(error: MachineError) -> ControlError {
    let (code, hint) = match &error {
        MachineError::ProcessorFeatures { .. } => ("processor-features", ""),
        MachineError::State(_) | MachineError::Device(_) => (
            "state",
            "the snapshot's state does not fit the machine its configuration describes",
        ),
        MachineError::Memory { .. } | MachineError::GuestMemory(_) => ("memory", ""),
        _ => ("machine", ""),
    };
    ControlError::new(code, error, hint)
}

/// The guest's serial port is this process's standard input and output.
fn serial(escape: Option<u8>) -> io::Result<SerialIo> {
    Ok(SerialIo {
        input: Some(SerialInput {
            fd: io::stdin().as_fd().try_clone_to_owned()?,
            escape,
        }),
        output: SerialOutput::Fd(io::stdout().as_fd().try_clone_to_owned()?),
    })
}
