//! Exit statuses, the same for every command.

use std::process::ExitCode;

use favo_vmm::outcome::Outcome;

/// Something failed; standard error says what.
pub const FAILED: u8 = 1;
/// What was named does not exist.
pub const NOT_FOUND: u8 = 3;
/// Something else is in the way: in use, already there.
pub const CONFLICT: u8 = 4;
/// `favo run -- COMMAND`: favo failed before the command could run, as with
/// env(1) and container tools.
pub const RUN_FAILED: u8 = 125;
/// The guest's kernel panicked.
pub const PANICKED: u8 = 90;
/// A processor of the guest shut down by a triple fault.
pub const TRIPLE_FAULT: u8 = 91;
/// The guest reset its machine.
pub const RESET: u8 = 92;
/// The machine was stopped from outside: the escape key.
pub const STOPPED: u8 = 93;

/// The sandbox refused what a thread of favo tried.
pub const SANDBOX: u8 = favo_sandbox::violation::STATUS;

/// What `favo run` returns for a machine that came to its end by itself.
pub fn of_outcome(outcome: &Outcome) -> ExitCode {
    ExitCode::from(match outcome {
        Outcome::PoweredOff => 0,
        Outcome::Reset => RESET,
        Outcome::Panicked => PANICKED,
        Outcome::TripleFault(_) => TRIPLE_FAULT,
        Outcome::Stopped => STOPPED,
        Outcome::Failed(_) => FAILED,
    })
}
