//! `favo vmm serve`: a process that waits for a machine to restore.

use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use favo_thread::ThreadKind;
use favo_vmm::control::ControlError;
use favo_vmm::engine::{self, Engine};
use favo_vmm::machine::{EndReport, Machine, MachineError};
use favo_vmm::outcome::Outcome;
use favo_vmm::serial_io::{SerialInput, SerialIo, SerialOutput};
use favo_vmm::snapshot::{RestoreParts, Snapshot, SnapshotError};

use super::Accel;
use super::host::{self, AgentDoor, Current, Host, Origin};
use super::owner::Owner;
use crate::mailbox::{Event, Mailbox};
use crate::run::network::{self, Attachment};
use crate::run::sandbox;
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
    /// Whether the process of the machine is confined; see favo doctor.
    #[arg(long, value_enum, default_value_t, value_name = "on|off")]
    sandbox: sandbox::Choice,
}

/// A machine and what it is plugged into, which outlives it.
struct Restored {
    machine: Machine,
    _network: Attachment,
}

/// Runs the process until its machine ends.
pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    sandbox::prepare_to_restore(args.sandbox)?;
    let engine = engine::open(args.accel.into())?;
    let mailbox = Mailbox::with_signals()?;
    let restored: Arc<Mutex<Option<Restored>>> = Arc::default();
    let raw = RawMode::enter()?;
    let escape = raw.is_some().then_some(terminal::ESCAPE);
    let restore = {
        let (restored, mailbox) = (restored.clone(), mailbox.clone());
        Arc::new(move |origin: Origin| {
            let (machine, current) = restore(origin, &engine, &mailbox, escape)?;
            *restored.lock().unwrap_or_else(PoisonError::into_inner) = Some(machine);
            // All that is needed from here on is open.
            favo_thread::confine(ThreadKind::Main);
            Ok(current)
        })
    };
    // The main thread makes the machine: it isn't confined before.
    let (main, patient) = (std::thread::current().id(), mailbox.clone());
    let restore = move |origin| {
        if std::thread::current().id() == main {
            return restore(origin);
        }
        let restore = restore.clone();
        let gone = || ControlError::new("machine", "the process is ending", "");
        patient
            .on_main(move || restore(origin))
            .unwrap_or_else(|| Err(gone()))
    };
    let end = {
        let host = Arc::new(Host::waiting(Box::new(restore)));
        let _server = host::start(&args.socket, host.clone())?;
        if let Some(directory) = &args.restore {
            use favo_vmm::control::{Handler, Request};
            let directory = directory.clone();
            host.handle(Request::Restore { directory }, Vec::new())?;
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
    origin: Origin,
    engine: &Engine,
    mailbox: &Arc<Mailbox>,
    escape: Option<u8>,
) -> Result<(Restored, Current), ControlError> {
    let scratch = favo_image::state_directory()
        .map_err(|error| ControlError::new("io", error, "set FAVO_STATE_DIR"))?;
    let plug = |owner: &serde_json::Value, cpus: u32| plug(owner, cpus, scratch.clone());
    let (owner, network, parts, spec);
    match origin {
        Origin::Snapshot(directory) => {
            let snapshot = Snapshot::open(&directory)?;
            let manifest = snapshot.manifest();
            (owner, network, parts) = plug(&manifest.owner, manifest.config.cpus)?;
            spec = snapshot.into_spec(parts)?;
        }
        Origin::Clone(machine, descriptors) => {
            (owner, network, parts) = plug(&machine.owner, machine.config.cpus)?;
            spec = machine.into_spec(descriptors, parts)?;
        }
    }
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
        console: None,
    };
    let restored = Restored {
        machine,
        _network: network,
    };
    Ok((restored, current))
}

/// What of a machine is this host's, made as its owner had it.
fn plug(
    owner: &serde_json::Value,
    cpus: u32,
    scratch: PathBuf,
) -> Result<(Owner, Attachment, RestoreParts), ControlError> {
    let owner: Owner = serde_json::from_value(owner.clone()).map_err(|error| {
        let error = SnapshotError::Misfit(format!("what favo kept with it: {error}"));
        ControlError::from(error)
    })?;
    let (network, cards) = network::attach(&owner.network, &owner.name, cpus)
        .map_err(|failure| ControlError::new("network", failure.message, ""))?;
    let parts = RestoreParts {
        cards,
        console: None,
        scratch,
    };
    Ok((owner, network, parts))
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
