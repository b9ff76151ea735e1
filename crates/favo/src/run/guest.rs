//! A machine from an image, with favo's agent in it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use favo_agent::client::{Control, ExecIo, ExecOutcome, Input, OutputStream, ProcessIo};
use favo_agent::protocol::DEFAULT_VSOCK_PORT;
use favo_agent::{AgentClient, ClientError, Exec};
use favo_block::{BlockImage, Format, OpenOptions};
use favo_image::export::{ExportFormat, ExportOptions, export};
use favo_image::initramfs::{self, AgentMode, AgentOptions};
use favo_image::{ImageError, ImageName, OpenImage, Store};
use favo_vmm::kernel::Kernel;
use favo_vmm::machine::config::{DiskConfig, DiskFormat, DiskSource};
use favo_vmm::machine::{BootSource, DirectBoot, DiskSpec, Machine, MachineSpec};
use favo_vmm::outcome::Outcome;
use favo_vmm::serial_io::{ConsoleTail, SerialIo, SerialOutput};
use signal_hook::consts::{SIGINT, SIGWINCH};

use super::{Args, direct, disks, killed_by, network, open_engine, start};
use crate::image::image_failure;
use crate::mailbox::{Event, Mailbox};
use crate::progress::TerminalProgress;
use crate::terminal::{self, RawMode};
use crate::{Failure, exit};

/// The guest's context id; every machine has its own socket device, so all may
/// have the same.
pub const CID: u32 = 3;
/// How long a guest may take until its agent connects. The software engine
/// needs most of a minute on a slow host.
const BOOT_PATIENCE: Duration = Duration::from_secs(180);
/// How long the agent may take to say that the machine goes down, and then the
/// machine to do it.
const POWER_OFF_PATIENCE: Duration = Duration::from_secs(30);
/// How much of the console an error shows.
const TAIL_LINES: usize = 30;
/// A guest that panics resets at once, which ends the machine.
const PANIC: &str = "panic=-1";

/// `favo run IMAGE`.
pub fn run_image(args: &Args) -> Result<ExitCode, Failure> {
    let Some(name) = &args.image else {
        return Err(Failure::new("no image was named"));
    };
    let store = Store::open_default().map_err(image_failure)?;
    let image = store.open_image(name).map_err(image_failure)?;
    let mode = if args.boot {
        AgentMode::Boot
    } else {
        AgentMode::Run
    };
    let (attachment, cards) = network::attach(&args.network, name.name(), args.cpus)?;
    let spec = MachineSpec {
        cpus: args.cpus,
        features: None,
        memory: args.memory,
        boot: BootSource::Kernel(boot(&image, mode, None, args.cmdline.as_deref())?),
        backing: args.backing(),
        disks: std::iter::once(root_disk(args, &store, name, &image))
            .chain([disks::open(&args.disk)].into_iter().flat_map(split))
            .collect::<Result<_, _>>()?,
        cards,
        vsock_cid: Some(CID),
        rng: true,
        balloon: true,
        console: None,
    };
    if args.boot {
        return direct::run_serial(args, spec, name.name(), &attachment);
    }
    run_command(args, spec, name.name(), &attachment)
}

/// A result of many as many results.
fn split<T, E>(result: Result<Vec<T>, E>) -> Vec<Result<T, E>> {
    match result {
        Ok(items) => items.into_iter().map(Ok).collect(),
        Err(error) => vec![Err(error)],
    }
}

/// How an image is booted. An instance has a hostname of its own, and an agent
/// that stays beside its init.
pub fn boot(
    image: &OpenImage,
    mode: AgentMode,
    instance: Option<&str>,
    more: Option<&str>,
) -> Result<DirectBoot, Failure> {
    let manifest = &image.image.manifest;
    let name = &manifest.name;
    let Some(kernel) = image.kernel_path() else {
        return Err(Failure::new(format!(
            "image {name} has no kernel, and favo has no firmware yet to start its boot loader; \
             import it again with --kernel and --initrd"
        )));
    };
    let kernel = Kernel::open(kernel)?;
    let (initrd, mut command_line) = match manifest.initrd {
        Some(initrd) if mode == AgentMode::Boot => (
            image.read(initrd).map_err(image_failure)?,
            manifest.command_line.clone(),
        ),
        Some(_) => {
            return Err(Failure::new(format!(
                "image {name} has an initrd of its own, so favo can't run commands in it; start \
                 its own init with --boot"
            )));
        }
        None => {
            let options = AgentOptions {
                mode,
                stay: instance.is_some(),
                hostname: instance.map(str::to_owned),
                ..AgentOptions::default()
            };
            (
                initramfs::compose(image).map_err(image_failure)?,
                initramfs::command_line(manifest, &options),
            )
        }
    };
    let quiet = (mode == AgentMode::Run).then_some("quiet");
    for more in [Some(PANIC), quiet, more].into_iter().flatten() {
        command_line.push(' ');
        command_line.push_str(more);
    }
    Ok(DirectBoot {
        kernel,
        initrd,
        command_line,
    })
}

/// The disk the guest's root is on: thrown away, or kept.
fn root_disk(
    args: &Args,
    store: &Store,
    name: &ImageName,
    image: &OpenImage,
) -> Result<DiskSpec, Failure> {
    let (disk, path) = match &args.keep {
        Some(keep) => {
            let path = kept_disk(store, name, keep)?;
            (
                BlockImage::open(&path, &OpenOptions::new(Format::Raw))?,
                path,
            )
        }
        None => {
            let path = image
                .disk_path()
                .ok_or_else(|| Failure::new(format!("the disk of image {name} is not there")))?;
            let base = BlockImage::open(path, &OpenOptions::new(Format::Raw).read_only(true))?;
            (base.overlay(store.state_directory())?, path.to_owned())
        }
    };
    let config = DiskConfig {
        path: disks::absolute(&path)?,
        format: DiskFormat::Raw,
        backing: Vec::new(),
        read_only: false,
        throw_away: args.keep.is_none(),
        serial: "favo-root".to_owned(),
    };
    Ok(DiskSource {
        image: disk,
        config,
    }
    .into())
}

/// A kept disk begins as a copy of the image's; it is there whole or not at all.
fn kept_disk(store: &Store, image: &ImageName, keep: &ImageName) -> Result<PathBuf, Failure> {
    let directory = store.state_directory().join("disks");
    std::fs::create_dir_all(&directory)
        .map_err(|error| Failure::new(format!("creating {}: {error}", directory.display())))?;
    let file = directory.join(format!("{}.raw", keep.to_string().replace('/', "%")));
    if !file.exists() {
        let options = ExportOptions {
            file: file.clone(),
            format: ExportFormat::Raw,
            replace: false,
        };
        let progress = TerminalProgress::new()?;
        let made = export(store, image, &options, &progress);
        progress.finish();
        match made {
            // Another favo made it meanwhile; the lock tells who gets it.
            Err(ImageError::FileExists { .. }) | Ok(()) => {}
            Err(error) => return Err(image_failure(error)),
        }
    }
    Ok(file)
}

fn run_command(
    args: &Args,
    spec: MachineSpec,
    name: &str,
    attachment: &network::Attachment,
) -> Result<ExitCode, Failure> {
    let durable = args.keep.is_some() || args.disk.iter().any(disks::DiskArgument::is_writable);
    let engine = open_engine(args)?;
    let mailbox = Mailbox::with_signals()?;
    let tail = ConsoleTail::default();
    let verbose = tracing::enabled!(tracing::Level::INFO);
    let serial = SerialIo {
        input: None,
        output: match verbose {
            true => SerialOutput::Fd(io::stderr().as_fd().try_clone_to_owned()?),
            false => SerialOutput::Tail(tail.clone()),
        },
    };
    let begin = Instant::now();
    let (machine, control) = start(args, spec, &engine, serial, &mailbox, name)?;
    let stream = match wait_for_agent(&machine, &mailbox)? {
        Waited::Agent(stream) => stream,
        Waited::Signal(signal) => return Ok(killed_by(signal)),
        Waited::Ended(outcome) => {
            return Err(lost(&format!("{outcome} before its agent was up"), &tail));
        }
        Waited::TimedOut => {
            let seconds = BOOT_PATIENCE.as_secs();
            let why = format!("the guest's agent did not connect within {seconds} seconds");
            return Err(lost(&why, &tail));
        }
    };
    stream.set_read_timeout(Some(BOOT_PATIENCE))?;
    let mut client =
        AgentClient::connect(stream).map_err(|error| lost(&error.to_string(), &tail))?;
    client.stream().set_read_timeout(None)?;
    tracing::info!("the agent is up after {:.1?}", begin.elapsed());
    let status = execute(args, &machine, &mut client, &mailbox, &tail, durable);
    drop(control);
    let counters = machine.stop();
    if args.stats {
        super::stats::print(counters, attachment);
    }
    status
}

enum Waited {
    Agent(UnixStream),
    Ended(Outcome),
    Signal(i32),
    TimedOut,
}

fn wait_for_agent(machine: &Machine, mailbox: &Arc<Mailbox>) -> Result<Waited, Failure> {
    let vsock = machine
        .vsock()
        .ok_or_else(|| Failure::new("the machine has no socket device"))?;
    let receiver = mailbox.clone();
    let accept = Arc::new(move |stream| receiver.push(Event::Agent(stream)));
    vsock.listen(DEFAULT_VSOCK_PORT, accept);
    let deadline = Instant::now() + BOOT_PATIENCE;
    loop {
        return Ok(match mailbox.wait(Some(deadline)) {
            Some(Event::Agent(stream)) => Waited::Agent(stream),
            Some(Event::Ended(outcome)) => Waited::Ended(outcome),
            Some(Event::Signal(SIGWINCH)) => continue,
            Some(Event::Signal(signal)) => Waited::Signal(signal),
            None => Waited::TimedOut,
        });
    }
}

fn execute(
    args: &Args,
    machine: &Machine,
    client: &mut AgentClient<UnixStream>,
    mailbox: &Mailbox,
    tail: &ConsoleTail,
    durable: bool,
) -> Result<ExitCode, Failure> {
    let wants_tty = args.tty || (args.command.is_empty() && terminal::is_interactive());
    let (result, left) = converse(client, &args.command, wants_tty, mailbox)?;
    let status = match (result, left) {
        (Ok(ExecOutcome::Exited(exit)), _) => ExitCode::from(exit.shell_status()),
        (Err(ClientError::ExecFailed { status, message }), _) => {
            eprintln!("favo: {message}");
            ExitCode::from(status)
        }
        // A shell whose machine was powered off from inside.
        (_, Some(Left::Ended(Outcome::PoweredOff))) if args.command.is_empty() => {
            return Ok(ExitCode::SUCCESS);
        }
        (_, Some(Left::Ended(outcome))) => {
            return Err(lost(&format!("{outcome} before the command ended"), tail));
        }
        (Ok(ExecOutcome::Left), Some(Left::Signal(signal))) => killed_by(signal),
        (Ok(ExecOutcome::Left), _) => ExitCode::from(exit::STOPPED),
        (Err(error), _) => return Err(lost(&error.to_string(), tail)),
    };
    if durable {
        power_off(client, mailbox);
    }
    machine.handle().stop();
    Ok(status)
}

/// Runs a command, whose input and output are this process's, until it ends
/// or is left.
pub fn converse(
    client: &mut AgentClient<UnixStream>,
    command: &[String],
    wants_tty: bool,
    mailbox: &Mailbox,
) -> Result<(Result<ExecOutcome, ClientError>, Option<Left>), Failure> {
    let size = terminal::window_size().filter(|_| wants_tty);
    let exec = Exec {
        argv: command.iter().cloned().map(Into::into).collect(),
        env: std::env::var("TERM")
            .ok()
            .filter(|_| size.is_some())
            .map(|term| format!("TERM={term}").into())
            .into_iter()
            .collect(),
        cwd: None,
        tty: size,
    };
    let mut io = GuestIo {
        mailbox,
        tty: size.is_some(),
        interrupts: 0,
        left: None,
    };
    let raw = match size {
        Some(_) => RawMode::enter()?,
        None => None,
    };
    let result = client.exec(&exec, &mut io);
    drop(raw);
    Ok((result, io.left.take()))
}

/// Lets the guest write what it has to its disks. A guest that doesn't in time
/// is stopped all the same.
fn power_off(client: &mut AgentClient<UnixStream>, mailbox: &Mailbox) {
    let deadline = Instant::now() + POWER_OFF_PATIENCE;
    let asked = client
        .stream()
        .set_read_timeout(Some(POWER_OFF_PATIENCE))
        .map_err(|error| error.to_string())
        .and_then(|()| client.power_off().map_err(|error| error.to_string()));
    if let Err(reason) = asked {
        eprintln!("favo: the guest was not powered off, writes to its disks may be lost: {reason}");
        return;
    }
    loop {
        match mailbox.wait(Some(deadline)) {
            Some(Event::Ended(_)) => return,
            Some(Event::Signal(SIGWINCH) | Event::Agent(_)) => {}
            Some(Event::Signal(_)) | None => {
                eprintln!("favo: the guest did not power off in time and was stopped");
                return;
            }
        }
    }
}

/// A failure of the guest, with the end of what it said.
fn lost(why: &str, tail: &ConsoleTail) -> Failure {
    let said = tail.lines(TAIL_LINES);
    Failure::new(if said.is_empty() {
        format!("{why}; its console is empty (-v shows it as it comes)")
    } else {
        format!("{why}; the end of its console:\n{said}")
    })
}

/// Why a command was left before its end.
pub enum Left {
    /// The user wants this process to end.
    Signal(i32),
    /// The machine ended.
    Ended(Outcome),
}

/// The command's input and output are this process's.
struct GuestIo<'a> {
    mailbox: &'a Mailbox,
    tty: bool,
    interrupts: u32,
    left: Option<Left>,
}

impl ExecIo for GuestIo<'_> {
    fn input_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(rustix::stdio::stdin())
    }

    fn read_input(&mut self, buffer: &mut [u8]) -> io::Result<Input> {
        let input = ProcessIo.read_input(buffer)?;
        Ok(match input {
            Input::Bytes(count) if self.tty && buffer[..count].contains(&terminal::ESCAPE) => {
                Input::Leave
            }
            other => other,
        })
    }

    fn control_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.mailbox.fd())
    }

    fn take_control(&mut self) -> io::Result<Option<Control>> {
        while let Some(event) = self.mailbox.take() {
            let left = match event {
                Event::Signal(SIGWINCH) => match terminal::window_size().filter(|_| self.tty) {
                    Some(size) => return Ok(Some(Control::Resize(size))),
                    None => continue,
                },
                // The command may handle the first.
                Event::Signal(SIGINT) if self.interrupts == 0 => {
                    self.interrupts += 1;
                    return Ok(Some(Control::Signal(SIGINT)));
                }
                Event::Signal(signal) => Left::Signal(signal),
                Event::Ended(outcome) => Left::Ended(outcome),
                Event::Agent(_) => continue,
            };
            self.left = Some(left);
            return Ok(Some(Control::Leave));
        }
        Ok(None)
    }

    fn write_output(&mut self, stream: OutputStream, bytes: &[u8]) -> io::Result<()> {
        ProcessIo.write_output(stream, bytes)
    }
}
