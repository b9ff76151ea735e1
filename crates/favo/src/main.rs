//! The favo command: arguments in, text out; no logic.
//!
//! Data goes to standard output, everything else to standard error. Each
//! subcommand is a module with its arguments and a `run` that returns the exit
//! status; [`exit`] lists the statuses.
#![forbid(unsafe_code)]

mod completion;
mod daemon;
mod doctor;
mod exit;
mod image;
mod instance;
mod mailbox;
mod net;
mod output;
mod progress;
mod run;
mod terminal;
mod vmm;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Virtual machines on any x86-64 Linux machine, with hardware virtualization
/// or without.
#[derive(Parser)]
#[command(
    name = "favo",
    version,
    max_term_width = 100,
    arg_required_else_help = true
)]
struct Cli {
    /// Say more on standard error; twice for debugging.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    #[command(flatten)]
    Instance(instance::Verb),
    /// Start the daemon in the background, if it does not run yet.
    Up(daemon::UpArgs),
    Daemon(daemon::Args),
    /// Run one virtual machine in the foreground.
    Run(Box<run::Args>),
    /// Make, import, list and remove images.
    Image(image::Args),
    /// Steer a machine by its control socket: pause, snapshot, restore.
    Vmm(vmm::Args),
    /// Explain what a network does with a packet.
    Net(net::Args),
    /// Print what a shell needs to complete favo's commands, and names.
    Completion(completion::Args),
    /// Write manual pages.
    Man(completion::ManArgs),
    /// Say what this host can do, and which engine favo would use.
    Doctor(doctor::Args),
}

fn main() -> ExitCode {
    completion::answer();
    let cli = Cli::parse();
    start_log(cli.verbose);
    raise_descriptor_limit();
    let outcome = match cli.command {
        Command::Instance(verb) => instance::run(verb),
        Command::Up(args) => daemon::up(&args),
        Command::Daemon(args) => daemon::run(&args),
        Command::Run(args) => run::run(*args),
        Command::Image(args) => image::run(args),
        Command::Vmm(args) => vmm::run(args),
        Command::Net(args) => net::run(args),
        Command::Completion(args) => completion::run(&args),
        Command::Man(args) => completion::man(&args),
        Command::Doctor(args) => doctor::run(args),
    };
    outcome.unwrap_or_else(|failure| {
        eprintln!("favo: {}", failure.message);
        ExitCode::from(failure.status)
    })
}

/// Every connection of a guest is a descriptor; the soft limit is often 1024
/// for the sake of programs that use select.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
}

/// Why a command failed, and the status it exits with.
struct Failure {
    message: String,
    status: u8,
}

impl Failure {
    fn new(message: impl ToString) -> Self {
        Self {
            message: message.to_string(),
            status: exit::FAILED,
        }
    }

    fn with_status(message: impl ToString, status: u8) -> Self {
        Self {
            message: message.to_string(),
            status,
        }
    }
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            let cause_text = cause.to_string();
            // An error that quotes its source has said it already.
            if !message.contains(&cause_text) {
                message = format!("{message}: {cause_text}");
            }
            source = cause.source();
        }
        Self::new(message)
    }
}

fn start_log(verbose: u8) {
    let level = match verbose {
        0 => "warn",
        1 => "info",
        _ => "debug",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_env("FAVO_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal())
        .without_time()
        .init();
}
