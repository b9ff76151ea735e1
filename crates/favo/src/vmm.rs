//! `favo vmm`: one VM process with a control socket, and the commands that
//! steer it. `favo run --control` serves the same socket.

mod boot;
mod client;
mod console;
mod fork;
pub mod host;
pub mod owner;
mod serve;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;

use crate::Failure;
use crate::output::FormatArgs;
use crate::run::Accel;

/// Steers a machine that was started with a control socket, or waits for one
/// to restore.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  favo run --control /run/web.sock debian:12     a machine with a control socket
  favo vmm snapshot /run/web.sock /srv/web-1     write all of it to a new directory
  favo vmm serve /run/web2.sock &                a VM process without a machine
  favo vmm restore /run/web2.sock /srv/web-1     it goes on there
  favo vmm exec /run/web2.sock -- uptime         by the guest's agent
  favo vmm fork /run/web2.sock 20                twenty more, in milliseconds")]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Be the VM process of an instance; the daemon starts it.
    #[command(hide = true)]
    Boot(boot::Args),
    /// Be a VM process: serve a control socket and wait for a machine to restore.
    ///
    /// The guest's serial console is standard input and output. The exit status tells how the
    /// machine ended, as with favo run --kernel.
    Serve(serve::Args),
    /// Say how the process and its machine are.
    Status {
        /// The control socket.
        socket: PathBuf,
        #[command(flatten)]
        format: FormatArgs,
    },
    /// Let the guest stand still. Its clocks run on.
    Pause {
        /// The control socket.
        socket: PathBuf,
    },
    /// Let the guest go on.
    Resume {
        /// The control socket.
        socket: PathBuf,
    },
    /// End the machine at once, and its process.
    Stop {
        /// The control socket.
        socket: PathBuf,
    },
    /// Write a snapshot of the whole machine to a new directory.
    ///
    /// A running guest stands still while its memory is copied. Throw-away disks are in the
    /// snapshot; others are only referenced, and must not be written until it is restored.
    Snapshot {
        /// The control socket.
        socket: PathBuf,
        /// The directory to make.
        directory: PathBuf,
        /// Only what changed since the machine's last snapshot, which must stay where it is.
        #[arg(long)]
        incremental: bool,
        #[command(flatten)]
        format: FormatArgs,
    },
    /// Let a process that has no machine yet go on with that of a snapshot.
    ///
    /// Connections of the guest to outside its machine are gone: they are reset.
    Restore {
        /// The control socket.
        socket: PathBuf,
        /// The snapshot.
        directory: PathBuf,
    },
    /// Make clones of a running machine, each in a process of its own.
    ///
    /// They share its memory and its throw-away disks until one of them writes; the guest hears
    /// that its generation changed. Their control sockets are SOCKET.1, SOCKET.2 and so on.
    Fork {
        /// The control socket.
        socket: PathBuf,
        /// How many.
        #[arg(default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
        count: u32,
        #[command(flatten)]
        format: FormatArgs,
    },
    /// Run a command in the guest, by its agent.
    Exec {
        /// The control socket.
        socket: PathBuf,
        /// What to run.
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Read all of a snapshot and compare it with its checksums.
    Verify {
        /// The snapshot.
        directory: PathBuf,
        #[command(flatten)]
        format: FormatArgs,
    },
}

/// Runs the subcommand.
pub fn run(args: Args) -> Result<ExitCode, Failure> {
    match args.verb {
        Verb::Boot(args) => boot::run(&args),
        Verb::Serve(args) => serve::run(&args),
        Verb::Status { socket, format } => client::status(&socket, format.output),
        Verb::Pause { socket } => client::pause(&socket),
        Verb::Resume { socket } => client::resume(&socket),
        Verb::Stop { socket } => client::stop(&socket),
        Verb::Snapshot {
            socket,
            directory,
            incremental,
            format,
        } => client::snapshot(&socket, &directory, incremental, format.output),
        Verb::Restore { socket, directory } => client::restore(&socket, &directory),
        Verb::Fork {
            socket,
            count,
            format,
        } => fork::run(&socket, count, format.output),
        Verb::Exec { socket, command } => client::exec(&socket, &command),
        Verb::Verify { directory, format } => client::verify(&directory, format.output),
    }
}
