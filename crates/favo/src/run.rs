//! `favo run`: one machine in the foreground.

mod direct;
mod disks;
pub(crate) mod firewall;
pub(crate) mod guest;
pub(crate) mod network;
pub(crate) mod publish;
mod rate;
pub(crate) mod sandbox;
mod stats;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use favo_accel::{EngineKind, MemoryBacking};
use favo_image::ImageName;
use favo_thread::ThreadKind;
use favo_types::ByteCount;
use favo_vmm::control::Server;
use favo_vmm::engine::{self, Engine, EngineChoice};
use favo_vmm::machine::{EndReport, Machine, MachineSpec};
use favo_vmm::outcome::Outcome;
use favo_vmm::serial_io::SerialIo;

use crate::mailbox::{Event, Mailbox};
use crate::vmm::host::Host;
use crate::vmm::owner::Owner;
use crate::{Failure, exit};

/// Runs one virtual machine in the foreground, from an image or from a kernel.
///
/// An image boots on a throw-away copy of its disk. Without a command you get
/// a shell; Ctrl-] gets out of it and stops the machine. With a command you get
/// its output and its exit status.
///
/// With --kernel the serial console is standard input and output, byte for
/// byte, and the exit status tells how the machine ended: 0 powered off, 90
/// kernel panic, 91 triple fault, 92 reset, 93 stopped with Ctrl-].
///
/// The process of the machine is confined: 94 says that it tried what its
/// sandbox refuses.
///
/// 125 is favo's own failure before a command could run; 128 + n, that signal
/// n stopped it.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  favo run debian:12                         a shell in a throw-away Debian; Ctrl-] stops it
  favo run debian:12 -- apt-get --version    one command
  favo run --keep mail debian:12             the same disk again next time
  favo run --publish 8080:80 debian:12       port 8080 of this host is port 80 of the guest
  favo run --network lab --name web debian:12          others on \"lab\" reach it as web
  favo run --deny out --allow out:tcp:443 debian:12    no way out but HTTPS
  favo run --rate out:1M --rate in:10M debian:12       slow to send, faster to receive
  favo run --kernel vmlinuz --initrd initrd.img --disk data.qcow2

Exit status: the command's own (128 + n if signal n killed it), or 0 if the guest powered off,
90 if its kernel panicked, 91 after a triple fault, 92 if it reset the machine, 93 after Ctrl-],
94 if the sandbox stopped it, 125 if favo failed before the command could run.")]
pub struct Args {
    /// The image, like debian:12; see favo image list.
    #[arg(required_unless_present = "kernel", conflicts_with = "kernel")]
    image: Option<ImageName>,
    /// What to run in the guest instead of a shell.
    #[arg(last = true, conflicts_with = "kernel")]
    command: Vec<String>,
    /// Boot this kernel (bzImage or ELF vmlinux) instead of an image.
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// The initial RAM disk for --kernel.
    #[arg(long, value_name = "FILE", requires = "kernel")]
    initrd: Option<PathBuf>,
    /// The kernel's command line; with an image, what is added to it.
    #[arg(long, value_name = "TEXT")]
    cmdline: Option<String>,
    /// Processors.
    #[arg(long, value_name = "N", default_value_t = 1)]
    cpus: u32,
    /// Memory, like 512M or 2G.
    #[arg(long, value_name = "SIZE", default_value = "1G")]
    memory: ByteCount,
    /// Another disk: FILE[,ro][,format=raw|qcow2]; a backing file must lie beside it. May be repeated.
    #[arg(long, value_name = "FILE[,ro]")]
    disk: Vec<disks::DiskArgument>,
    #[command(flatten)]
    network: network::NetworkArgs,
    /// When the machine has ended, say what processors and devices counted.
    #[arg(long)]
    stats: bool,
    /// Which engine runs it.
    #[arg(long, value_enum, default_value_t, value_name = "ENGINE")]
    accel: Accel,
    /// Keep the disk under this name, and go on with it the next time.
    #[arg(long, value_name = "NAME", conflicts_with = "kernel")]
    keep: Option<ImageName>,
    /// Whether the process of the machine is confined; see favo doctor.
    #[arg(long, value_enum, default_value_t, value_name = "on|off")]
    sandbox: sandbox::Choice,
    /// Start the image's own init (systemd), with the serial console as terminal.
    #[arg(long, conflicts_with_all = ["kernel", "command"])]
    boot: bool,
    /// Serve a control socket there: pause, resume, snapshot, fork; see favo vmm.
    #[arg(long, value_name = "SOCKET")]
    control: Option<PathBuf>,
    /// Give the command a terminal.
    #[arg(short, long, requires = "command")]
    tty: bool,
}

impl Args {
    /// Memory that clones can share costs huge pages: only who may be cloned
    /// has it.
    fn backing(&self) -> MemoryBacking {
        match self.control {
            Some(_) => MemoryBacking::Memfd,
            None => MemoryBacking::Anonymous,
        }
    }
}

/// The engines by name.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub enum Accel {
    /// The faster of those there are.
    #[default]
    Auto,
    /// The x86-64 processor in software.
    Soft,
    /// Linux KVM.
    Kvm,
}

impl From<Accel> for EngineChoice {
    fn from(accel: Accel) -> Self {
        match accel {
            Accel::Auto => Self::Auto,
            Accel::Soft => Self::Only(EngineKind::Soft),
            Accel::Kvm => Self::Only(EngineKind::Kvm),
        }
    }
}

/// Runs the subcommand.
pub fn run(args: Args) -> Result<ExitCode, Failure> {
    sandbox::prepare(&args)?;
    match &args.kernel {
        Some(kernel) => direct::run_kernel(&args, kernel),
        None => guest::run_image(&args).map_err(|failure| Failure {
            status: exit::RUN_FAILED,
            ..failure
        }),
    }
}

fn open_engine(args: &Args) -> Result<Engine, Failure> {
    let engine = engine::open(args.accel.into())?;
    let (kind, reason) = (engine.accelerator.kind(), &engine.reason);
    tracing::info!("the {kind} engine: {reason}");
    Ok(engine)
}

/// Starts a machine whose end arrives in `mailbox`, called `name` on its
/// network, and serves the control socket of `--control`, if there is one.
fn start(
    args: &Args,
    spec: MachineSpec,
    engine: &Engine,
    serial: SerialIo,
    mailbox: &Arc<Mailbox>,
    name: &str,
) -> Result<(Machine, Option<Server>), Failure> {
    let receiver = mailbox.clone();
    let report: EndReport = Arc::new(move |outcome| receiver.push(Event::Ended(outcome)));
    let machine = Machine::start(spec, engine.accelerator.as_ref(), serial, report)?;
    let server = match &args.control {
        Some(path) => {
            let owner = Owner {
                name: name.to_owned(),
                network: args.network.clone(),
            };
            Some(Host::serve_run(path, &machine, owner)?)
        }
        None => None,
    };
    // All that is needed from here on is open.
    favo_thread::confine(ThreadKind::Main);
    Ok((machine, server))
}

/// How a machine left to itself came to its end.
pub enum End {
    Outcome(Outcome),
    Signal(i32),
}

/// Waits for the end of a machine, or for a signal that wants it.
pub fn wait_for_end(mailbox: &Mailbox) -> End {
    loop {
        match mailbox.wait(None) {
            Some(Event::Ended(outcome)) => return End::Outcome(outcome),
            Some(Event::Signal(signal)) if signal != signal_hook::consts::SIGWINCH => {
                return End::Signal(signal);
            }
            Some(_) => {}
            None => return End::Outcome(Outcome::Failed("favo can't wait for events".into())),
        }
    }
}

pub fn killed_by(signal: i32) -> ExitCode {
    ExitCode::from(128u8.saturating_add(signal as u8))
}
