//! `--sandbox`: the confinement of the machine's process.

use favo_sandbox::Policy;

use super::Args;
use super::network::{NETWORKS, NetworkArgs};
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

/// Confines the process of `favo run`, and the threads it starts from here on.
/// Comes before the first of them.
pub fn prepare(args: &Args) -> Result<(), Failure> {
    confine(args.sandbox, args.control.is_some(), || {
        args.network.policy()
    })
}

/// The same for an instance's.
pub fn prepare_instance(network: &NetworkArgs) -> Result<(), Failure> {
    confine(Choice::On, true, || network.policy())
}

/// The same for a process whose machine, and its network, come later.
pub fn prepare_to_restore(choice: Choice) -> Result<(), Failure> {
    confine(choice, true, || {
        let mut policy = Policy::default().with_network();
        // Whichever network it is: leaving one removes a socket.
        let networks = favo_image::state_directory()?.join(NETWORKS);
        if networks.exists() {
            policy.remove.push(networks);
        }
        Ok(policy)
    })
}

fn confine(
    choice: Choice,
    has_control: bool,
    policy: impl FnOnce() -> Result<Policy, Failure>,
) -> Result<(), Failure> {
    if choice == Choice::Off {
        eprintln!(
            "favo: warning: without the sandbox a guest that breaks out of its machine can do \
             what you can"
        );
        return Ok(());
    }
    if has_control {
        // Snapshots read it, and after this only root could open it.
        favo_accel::memory::keep_pagemap()
            .map_err(|error| Failure::new(format!("opening /proc/self/pagemap: {error}")))?;
    }
    favo_sandbox::prepare(&policy()?)?;
    // A backtrace reads files, which a confined thread can't.
    std::panic::set_hook(Box::new(|panic| eprintln!("favo: {panic}")));
    Ok(())
}
