//! `favo vmm boot`: the process of an instance's machine. The daemon starts
//! it, and it outlives the daemon.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use favo_accel::MemoryBacking;
use favo_block::{BlockImage, Format, OpenOptions};
use favo_daemon::place::{Ending, ExitFile, MachineFile, Place};
use favo_image::Store;
use favo_image::initramfs::AgentMode;
use favo_thread::ThreadKind;
use favo_types::ByteCount;
use favo_vmm::engine::{self, Engine};
use favo_vmm::machine::config::{DiskConfig, DiskFormat, DiskSource};
use favo_vmm::machine::{BootSource, CardSpec, EndReport, Machine, MachineSpec};
use favo_vmm::outcome::Outcome;
use jiff::Timestamp;

use super::console::Console;
use super::host::{self, AgentDoor, Current, Host};
use super::owner::Owner;
use crate::image::image_failure;
use crate::mailbox::{Event, Mailbox};
use crate::run::network::{self, NetworkArgs};
use crate::run::{Accel, End, guest, killed_by, sandbox, wait_for_end};
use crate::{Failure, exit};

/// `favo vmm boot`.
#[derive(clap::Args)]
pub struct Args {
    /// The instance's directory.
    directory: PathBuf,
    /// Which engine runs the machine.
    #[arg(long, value_enum, default_value_t, value_name = "ENGINE")]
    accel: Accel,
}

/// Runs the process until its machine ends.
pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    let place = Place::new(&args.directory);
    let Some(_lock) = place.lock()? else {
        return Err(Failure::with_status(
            format!("{} has a process already", args.directory.display()),
            exit::CONFLICT,
        ));
    };
    let machine = place
        .machine()?
        .ok_or_else(|| Failure::new(format!("no machine.json in {}", args.directory.display())))?;
    // Both are written when nothing can be opened any more.
    let word = File::create(place.exit_file())?;
    let end = run_machine(args, &place, &machine);
    let (ending, message) = match &end {
        Ok(End::Outcome(outcome)) => (ending(outcome), outcome.to_string()),
        Ok(End::Signal(signal)) => (Ending::Stopped, format!("signal {signal} stopped it")),
        Err(failure) => (Ending::Failed, failure.message.clone()),
    };
    leave_word(
        &word,
        &ExitFile {
            ending,
            message,
            at: Timestamp::now(),
        },
    )?;
    Ok(match end? {
        End::Signal(signal) => killed_by(signal),
        End::Outcome(outcome) => exit::of_outcome(&outcome),
    })
}

fn leave_word(mut word: &File, exit: &ExitFile) -> Result<(), Failure> {
    let mut bytes = serde_json::to_vec(exit)?;
    bytes.push(b'\n');
    Ok(word.write_all(&bytes)?)
}

const fn ending(outcome: &Outcome) -> Ending {
    match outcome {
        Outcome::PoweredOff => Ending::PoweredOff,
        Outcome::Reset => Ending::Reset,
        Outcome::Stopped => Ending::Stopped,
        Outcome::Panicked | Outcome::TripleFault(_) | Outcome::Failed(_) => Ending::Failed,
    }
}

fn run_machine(args: &Args, place: &Place, machine: &MachineFile) -> Result<End, Failure> {
    let network = NetworkArgs::of(
        &machine.name,
        &machine.network,
        &machine.publish,
        &machine.rate,
    )
    .map_err(Failure::new)?;
    sandbox::prepare_instance(&network)?;
    let engine = engine::open(args.accel.into())?;
    let mailbox = Mailbox::with_signals()?;
    let (attachment, cards) = network::attach(&network, &machine.name, machine.cpus)?;
    let spec = spec(place, machine, cards)?;
    let (console, serial) = Console::start(place)?;
    let receiver = mailbox.clone();
    let report: EndReport = Arc::new(move |outcome| receiver.push(Event::Ended(outcome)));
    let running = start(spec, &engine, serial, report)?;
    let host = Arc::new(Host::of(Current {
        handle: running.handle(),
        owner: Owner {
            name: machine.name.clone(),
            network,
        },
        agent: AgentDoor::open(&running),
        console: Some(console),
    }));
    let server = host::start(&place.control(), host)?;
    // All that is needed from here on is open.
    favo_thread::confine(ThreadKind::Main);
    let end = wait_for_end(&mailbox);
    drop(server);
    if let End::Signal(_) = end {
        running.handle().stop();
    }
    running.stop();
    drop(attachment);
    Ok(end)
}

fn start(
    spec: MachineSpec,
    engine: &Engine,
    serial: favo_vmm::serial_io::SerialIo,
    report: EndReport,
) -> Result<Machine, Failure> {
    Ok(Machine::start(
        spec,
        engine.accelerator.as_ref(),
        serial,
        report,
    )?)
}

fn spec(
    place: &Place,
    machine: &MachineFile,
    cards: Vec<CardSpec>,
) -> Result<MachineSpec, Failure> {
    let store = Store::open_default().map_err(image_failure)?;
    let remembered = serde_json::from_slice(&std::fs::read(place.image())?)?;
    let image = store.open_pinned(remembered).map_err(image_failure)?;
    let boot = guest::boot(&image, AgentMode::Boot, Some(&machine.name), None)?;
    let path = place.disk();
    let disk = DiskSource {
        image: BlockImage::open(&path, &OpenOptions::new(Format::Raw))?,
        config: DiskConfig {
            path,
            format: DiskFormat::Raw,
            backing: Vec::new(),
            read_only: false,
            throw_away: false,
            serial: "favo-root".to_owned(),
        },
    };
    Ok(MachineSpec {
        cpus: machine.cpus,
        features: None,
        memory: ByteCount(machine.memory),
        boot: BootSource::Kernel(boot),
        backing: MemoryBacking::Memfd,
        disks: vec![disk.into()],
        cards,
        vsock_cid: Some(guest::CID),
        rng: true,
        balloon: true,
        console: None,
    })
}
