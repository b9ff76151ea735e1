//! `--sandbox`: the confinement of the machine's process.

use super::Args;
use crate::Failure;

/// Whether the process is confined.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub enum Choice {
    /// By all that this host has.
    #[default]
    On,
    /// Not at all: for debugging favo.
    Off,
}

/// Confines the process and the threads it starts from here on. Comes before
/// the first of them.
pub fn prepare(args: &Args) -> Result<(), Failure> {
    if args.sandbox == Choice::Off {
        eprintln!(
            "favo: warning: without the sandbox a guest that breaks out of its machine can do \
             what you can"
        );
        return Ok(());
    }
    favo_sandbox::prepare(&args.network.policy()?)?;
    // A backtrace reads files, which a confined thread can't.
    std::panic::set_hook(Box::new(|panic| eprintln!("favo: {panic}")));
    Ok(())
}
