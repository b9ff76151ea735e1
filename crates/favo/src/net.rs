//! `favo net`: what networks do.

mod endpoint;
mod trace;

use std::process::ExitCode;

use clap::Subcommand;

use crate::Failure;

/// Explains what a network does with a packet.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Say what would happen to a packet, and which rule decides.
    Trace(Box<trace::Trace>),
}

/// Runs the subcommand.
pub fn run(args: Args) -> Result<ExitCode, Failure> {
    match args.command {
        Command::Trace(args) => trace::run(&args),
    }
}
