//! `favo run`: one virtual machine in the foreground.
//!
//! Three ways, one machine: an image with a command or a shell, spoken to
//! through its agent ([`session`]); an image booted into its own init; a
//! kernel alone. The last two have the serial console on standard input and
//! output, byte for byte.
//!
//! One thread, this one, waits for whatever happens first: the machine's end,
//! the agent, a signal. Everything else belongs to the machine and goes with
//! it.

mod disks;
mod session;

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use favo_agent::protocol::DEFAULT_VSOCK_PORT;
use favo_image::initramfs::{self, AgentMode, AgentOptions};
use favo_image::{ImageName, Manifest, OpenImage, Store};
use favo_types::ByteCount;
use favo_vmm::engine::{self, EngineChoice};
use favo_vmm::kernel::Kernel;
use favo_vmm::machine::{DirectBoot, DiskSpec, EndReport, Machine, MachineSpec};
use favo_vmm::outcome::Outcome;
use favo_vmm::serial_io::{ConsoleTail, SerialInput, SerialIo, SerialOutput};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGWINCH};

use crate::terminal::{self, RawMode};
use crate::{Failure, exit};
use disks::DiskArgument;
use session::{Session, SessionEnd};

/// The guest's context id on its socket device.
const GUEST_CID: u32 = 3;
/// How long a guest has from its start to its agent's call: a slow engine on
/// a busy host needs a minute.
const AGENT_PATIENCE: Duration = Duration::from_secs(240);
/// How long a guest may take to power off after its command is done.
const POWER_OFF_PATIENCE: Duration = Duration::from_secs(20);
/// Lines of the guest's console shown when something went wrong.
const TAIL_LINES: usize = 15;

/// Arguments of `favo run`.
#[derive(clap::Args)]
#[command(
    override_usage = "favo run [OPTIONS] IMAGE [-- COMMAND…]\n       favo run [OPTIONS] --kernel FILE [--initrd FILE] [--cmdline TEXT]",
    after_help = "\
Examples:
  favo run debian:12                         a shell in a throw-away Debian
  favo run debian:12 -- apt-get --version    one command; its exit status is favo's
  favo run --keep mail debian:12             the same disk again next time
  favo run --kernel vmlinuz --initrd initrd.img --cmdline console=ttyS0

Ctrl-] stops the machine and gives the terminal back.

Exit status: the command's own (128 + n if signal n killed it), or 0 if the guest powered off,
90 if its kernel panicked, 91 after a triple fault, 92 if it reset the machine, 93 if Ctrl-]
stopped it, 125 if favo failed before the command could run, 1 to 7 for other errors of favo's."
)]
pub struct Args {
    /// The image to run.
    #[arg(required_unless_present = "kernel")]
    image: Option<ImageName>,
    /// Boot this kernel, a bzImage or an ELF vmlinux, instead of an image.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["image", "keep", "boot", "command"])]
    kernel: Option<PathBuf>,
    /// The initial RAM disk for --kernel.
    #[arg(long, value_name = "FILE", requires = "kernel")]
    initrd: Option<PathBuf>,
    /// The kernel's command line; for an image, what is added to its own.
    #[arg(long, value_name = "TEXT")]
    cmdline: Option<String>,
    /// How many processors.
    #[arg(long, value_name = "N", default_value_t = 1)]
    cpus: u32,
    /// How much memory, like 512M or 2G.
    #[arg(long, value_name = "SIZE", default_value = "1G")]
    memory: ByteCount,
    /// Another disk: FILE[,ro][,format=raw|qcow2]. May be repeated.
    #[arg(long = "disk", value_name = "FILE[,ro]")]
    disks: Vec<DiskArgument>,
    /// Keep the disk under this name; the next run with it goes on where this one ended.
    #[arg(long, value_name = "NAME")]
    keep: Option<String>,
    /// Boot into the image's own init, with its serial console here.
    #[arg(long, conflicts_with = "command")]
    boot: bool,
    /// Which engine runs the processors.
    #[arg(long, value_enum, default_value_t)]
    accel: Accel,
    /// The command to run in the guest, and its arguments.
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<std::ffi::OsString>,
}

#[derive(Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
enum Accel {
    /// The faster one.
    #[default]
    Auto,
    /// The software CPU.
    Soft,
    /// Linux KVM.
    Kvm,
}

impl From<Accel> for EngineChoice {
    fn from(accel: Accel) -> Self {
        match accel {
            Accel::Auto => Self::Auto,
            Accel::Soft => Self::Only(favo_accel::EngineKind::Soft),
            Accel::Kvm => Self::Only(favo_accel::EngineKind::Kvm),
        }
    }
}

/// What this thread waits for.
enum Event {
    Ended(Outcome),
    Agent(UnixStream),
    Session(SessionEnd),
    Signal(i32),
}

/// Runs `favo run`.
pub fn run(args: Args) -> Result<ExitCode, Failure> {
    let with_command = !args.command.is_empty();
    start(args).map_err(|failure| match failure.status {
        exit::FAILED if with_command => {
            Failure::with_status(failure.message, exit::RUN_FAILED)
        }
        _ => failure,
    })
}

fn start(args: Args) -> Result<ExitCode, Failure> {
    match &args.kernel {
        Some(kernel) => {
            let kernel = Kernel::open(kernel)?;
            let initrd = match &args.initrd {
                Some(path) => std::fs::read(path).map_err(|error| {
                    Failure::new(format!("can't read the initrd {}: {error}", path.display()))
                })?,
                None => Vec::new(),
            };
            let command_line = args.cmdline.clone().unwrap_or_else(|| "console=ttyS0".to_owned());
            let boot = DirectBoot { kernel, initrd, command_line };
            let disks = disks::open_all(&args.disks)?;
            console(&args, boot, disks)
        }
        None => image(args),
    }
}

/// Runs an image.
fn image(args: Args) -> Result<ExitCode, Failure> {
    let store = Store::open_default().map_err(crate::image::failure)?;
    let name = args.image.as_ref().ok_or_else(|| Failure::new("name an image"))?;
    // Its locks keep the blobs there for as long as the machine runs.
    let image = store.open_image(name).map_err(crate::image::failure)?;
    let manifest = &image.image.manifest;
    let kernel = image.kernel_path().ok_or_else(|| {
        Failure::new(format!(
            "the image {name} has no kernel and favo has no firmware yet: import it with --kernel and --initrd"
        ))
    })?;
    let kernel = Kernel::open(kernel)?;
    let mut disks = vec![disks::of_image(&store, &image, args.keep.as_deref())?];
    disks.extend(disks::open_all(&args.disks)?);
    let own_init = args.boot || manifest.initrd.is_some();
    let initrd = match manifest.initrd {
        Some(initrd) => image.read(initrd).map_err(crate::image::failure)?,
        None => initramfs::compose(&image).map_err(crate::image::failure)?,
    };
    let command_line = command_line(&args, manifest, &image, own_init);
    let boot = DirectBoot { kernel, initrd, command_line };
    if own_init { console(&args, boot, disks) } else { command(&args, boot, disks) }
}

fn command_line(args: &Args, manifest: &Manifest, _image: &OpenImage, own_init: bool) -> String {
    let mut line = if manifest.initrd.is_some() {
        manifest.command_line.clone()
    } else {
        let mode = if own_init { AgentMode::Boot } else { AgentMode::Run };
        let host = manifest.name.name().rsplit('/').next().unwrap_or("favo");
        let options =
            AgentOptions { mode, hostname: Some(host.to_owned()), ..AgentOptions::default() };
        initramfs::command_line(manifest, &options)
    };
    if !own_init {
        line.push_str(" quiet panic=-1");
    }
    if let Some(more) = &args.cmdline {
        line.push(' ');
        line.push_str(more);
    }
    line
}

fn machine(
    args: &Args,
    boot: DirectBoot,
    disks: Vec<DiskSpec>,
    serial: SerialIo,
    events: &Sender<Event>,
    agent: bool,
) -> Result<Machine, Failure> {
    let engine = engine::open(args.accel.into())?;
    tracing::info!(engine = %engine.accelerator.kind(), reason = engine.reason, "starting");
    let spec = MachineSpec {
        cpus: args.cpus,
        memory: args.memory,
        boot,
        disks,
        vsock_cid: agent.then_some(GUEST_CID),
        rng: true,
        balloon: true,
        console: None,
    };
    let ended = events.clone();
    // Nobody listens any more once this program is on its way out.
    let report: EndReport = Arc::new(move |outcome| drop(ended.send(Event::Ended(outcome))));
    let machine = Machine::start(spec, &*engine.accelerator, serial, report)?;
    if agent && let Some(vsock) = machine.vsock() {
        let agents = events.clone();
        vsock.listen(
            DEFAULT_VSOCK_PORT,
            Arc::new(move |stream| drop(agents.send(Event::Agent(stream)))),
        );
    }
    Ok(machine)
}

/// Turns signals into events, from a thread of its own.
fn watch_signals(events: &Sender<Event>) -> io::Result<()> {
    let watched = [SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGWINCH];
    let mut signals = signal_hook::iterator::Signals::new(watched)?;
    let events = events.clone();
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        for signal in signals.forever() {
            if events.send(Event::Signal(signal)).is_err() {
                return;
            }
        }
    })?;
    Ok(())
}

/// The serial console on standard input and output.
fn console(args: &Args, boot: DirectBoot, disks: Vec<DiskSpec>) -> Result<ExitCode, Failure> {
    let (sender, events) = channel();
    watch_signals(&sender)?;
    let raw = RawMode::enter()?;
    let escape = raw.is_some().then_some(terminal::ESCAPE);
    let serial = SerialIo {
        input: Some(SerialInput { fd: io::stdin().as_fd().try_clone_to_owned()?, escape }),
        output: SerialOutput::Fd(io::stdout().as_fd().try_clone_to_owned()?),
    };
    let machine = machine(args, boot, disks, serial, &sender, false)?;
    let status = loop {
        match events.recv() {
            Ok(Event::Ended(outcome)) => {
                if let Outcome::Failed(reason) = &outcome {
                    tracing::error!("{reason}");
                }
                break exit::of_outcome(&outcome);
            }
            Ok(Event::Signal(SIGWINCH)) => {}
            Ok(Event::Signal(signal)) => {
                machine.handle().stop();
                break ExitCode::from(128 + signal as u8);
            }
            Ok(Event::Agent(_) | Event::Session(_)) => {}
            Err(_) => break ExitCode::from(exit::FAILED),
        }
    };
    finish(machine);
    drop(raw);
    Ok(status)
}

/// A command, or a shell, through the guest's agent.
fn command(args: &Args, boot: DirectBoot, disks: Vec<DiskSpec>) -> Result<ExitCode, Failure> {
    let (sender, events) = channel();
    watch_signals(&sender)?;
    let tail = ConsoleTail::default();
    let serial = SerialIo { input: None, output: SerialOutput::Tail(tail.clone()) };
    let machine = machine(args, boot, disks, serial, &sender, true)?;
    let stream = match wait_for_agent(&events) {
        Ok(stream) => stream,
        Err(Interrupted::Signal(signal)) => {
            machine.handle().stop();
            finish(machine);
            return Ok(ExitCode::from(128 + signal as u8));
        }
        Err(Interrupted::Ended(outcome)) => {
            finish(machine);
            return Err(not_reached(&outcome.to_string(), &tail, Some(&outcome)));
        }
        Err(Interrupted::TimedOut) => {
            finish(machine);
            let waited = format!("its agent did not call within {} s", AGENT_PATIENCE.as_secs());
            return Err(not_reached(&waited, &tail, None));
        }
    };
    let (session, raw) = Session::start(stream, &args.command, sender)?;
    let status = drive(&machine, &session, &events, &tail);
    drop(raw);
    finish(machine);
    status
}

/// Why there is no agent.
enum Interrupted {
    Signal(i32),
    Ended(Outcome),
    TimedOut,
}

fn wait_for_agent(events: &Receiver<Event>) -> Result<UnixStream, Interrupted> {
    let deadline = Instant::now() + AGENT_PATIENCE;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match events.recv_timeout(left) {
            Ok(Event::Agent(stream)) => return Ok(stream),
            Ok(Event::Ended(outcome)) => return Err(Interrupted::Ended(outcome)),
            Ok(Event::Signal(SIGWINCH) | Event::Session(_)) => {}
            Ok(Event::Signal(signal)) => return Err(Interrupted::Signal(signal)),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                return Err(Interrupted::TimedOut);
            }
        }
    }
}

fn not_reached(what: &str, tail: &ConsoleTail, outcome: Option<&Outcome>) -> Failure {
    let status = match outcome {
        Some(Outcome::Panicked) => exit::PANICKED,
        Some(Outcome::TripleFault(_)) => exit::TRIPLE_FAULT,
        _ => exit::RUN_FAILED,
    };
    let console = tail.lines(TAIL_LINES);
    let message = format!("the guest could not be reached: {what}\n{console}");
    Failure::with_status(message.trim_end(), status)
}

/// Passes signals on until the command is done, then sees the guest off.
fn drive(
    machine: &Machine,
    session: &Session,
    events: &Receiver<Event>,
    tail: &ConsoleTail,
) -> Result<ExitCode, Failure> {
    let mut interrupted = false;
    loop {
        match events.recv() {
            Ok(Event::Session(SessionEnd::Exited(status))) => {
                wait_for_power_off(events);
                return Ok(ExitCode::from(status));
            }
            Ok(Event::Session(SessionEnd::Left)) => {
                machine.handle().stop();
                return Ok(ExitCode::from(exit::STOPPED));
            }
            Ok(Event::Session(SessionEnd::Failed { status, message })) => {
                return Err(Failure::with_status(message, status));
            }
            Ok(Event::Ended(Outcome::PoweredOff)) => return Ok(ExitCode::SUCCESS),
            Ok(Event::Ended(outcome)) => {
                let console = tail.lines(TAIL_LINES);
                eprintln!("favo: {outcome}\n{}", console.trim_end());
                return Ok(exit::of_outcome(&outcome));
            }
            Ok(Event::Signal(SIGWINCH)) => session.resize(),
            // The command hears the first; a second one is for favo.
            Ok(Event::Signal(signal @ (SIGINT | SIGQUIT))) if !interrupted => {
                interrupted = true;
                session.signal(signal);
            }
            Ok(Event::Signal(signal)) => {
                machine.handle().stop();
                return Ok(ExitCode::from(128 + signal as u8));
            }
            Ok(Event::Agent(_)) => {}
            Err(_) => return Err(Failure::new("the machine ended without a word")),
        }
    }
}

fn wait_for_power_off(events: &Receiver<Event>) {
    let deadline = Instant::now() + POWER_OFF_PATIENCE;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match events.recv_timeout(left) {
            Ok(Event::Ended(_)) => return,
            Ok(Event::Signal(signal)) if signal != SIGWINCH => return,
            Ok(_) => {}
            Err(_) => {
                tracing::warn!("the guest did not power off in time and was stopped");
                return;
            }
        }
    }
}

/// Stops the machine and tells, for `-v`, what was counted.
fn finish(machine: Machine) {
    for (whose, counter) in machine.stop() {
        let detail = counter.detail.unwrap_or_default();
        tracing::info!(whose, name = counter.name, detail, count = counter.count, "counted");
    }
}
