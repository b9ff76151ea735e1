//! A machine whose serial console is standard input and output: `--kernel`
//! and `--boot`.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;

use favo_vmm::kernel::Kernel;
use favo_vmm::machine::{BootSource, DirectBoot, MachineSpec};
use favo_vmm::outcome::Outcome;
use favo_vmm::serial_io::{SerialInput, SerialIo, SerialOutput};

use super::network::Attachment;
use super::{Args, End, disks, killed_by, network, open_engine, start, wait_for_end};
use crate::mailbox::Mailbox;
use crate::terminal::{self, RawMode};
use crate::{Failure, exit};

/// What a kernel is told without `--cmdline`.
const COMMAND_LINE: &str = "console=ttyS0";

/// What a guest that boots from a bare kernel is called on its network.
const NAME: &str = "guest";

/// `favo run --kernel`.
pub fn run_kernel(args: &Args, kernel: &Path) -> Result<ExitCode, Failure> {
    let kernel = Kernel::open(kernel)?;
    let initrd = match &args.initrd {
        Some(path) => std::fs::read(path)
            .map_err(|error| Failure::new(format!("reading {}: {error}", path.display())))?,
        None => Vec::new(),
    };
    let command_line = args.cmdline.clone().unwrap_or(COMMAND_LINE.into());
    let (attachment, cards) = network::attach(&args.network, NAME, args.cpus)?;
    let spec = MachineSpec {
        cpus: args.cpus,
        features: None,
        memory: args.memory,
        boot: BootSource::Kernel(DirectBoot {
            kernel,
            initrd,
            command_line,
        }),
        backing: args.backing(),
        disks: disks::open(&args.disk)?,
        cards,
        vsock_cid: None,
        rng: true,
        balloon: true,
        console: None,
    };
    run_serial(args, spec, NAME, &attachment)
}

/// Runs a machine on this process's standard input and output.
pub fn run_serial(
    args: &Args,
    spec: MachineSpec,
    name: &str,
    attachment: &Attachment,
) -> Result<ExitCode, Failure> {
    let engine = open_engine(args)?;
    let mailbox = Mailbox::with_signals()?;
    let end = {
        // Dropped last: the guest's last bytes are still raw.
        let raw = RawMode::enter()?;
        let serial = SerialIo {
            input: Some(SerialInput {
                fd: duplicate(io::stdin())?,
                escape: raw.is_some().then_some(terminal::ESCAPE),
            }),
            output: SerialOutput::Fd(duplicate(io::stdout())?),
        };
        let (machine, control) = start(args, spec, &engine, serial, &mailbox, name)?;
        let end = wait_for_end(&mailbox);
        drop(control);
        if let End::Signal(_) = end {
            machine.handle().stop();
        }
        let counters = machine.stop();
        if args.stats {
            super::stats::print(counters, attachment);
        }
        end
    };
    Ok(match end {
        End::Signal(signal) => killed_by(signal),
        End::Outcome(outcome) => {
            if outcome != Outcome::PoweredOff {
                eprintln!("favo: {outcome}");
            }
            exit::of_outcome(&outcome)
        }
    })
}

fn duplicate(fd: impl AsFd) -> io::Result<OwnedFd> {
    fd.as_fd().try_clone_to_owned()
}
