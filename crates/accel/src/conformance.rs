//! Tiny guests that say whether an engine keeps the contract.
//!
//! Every engine runs all of [`cases`] in its tests; a case is a machine with a
//! few dozen instructions, an expected sequence of values, and a deadline: an
//! engine that hangs fails, it does not hang the test.
//!
//! How a guest talks ([`guest`]): it writes 32-bit values to the port
//! `REPORT`, asks the case for something at the port `SYNC`, and ends at the
//! port `DONE`. Exceptions and interrupts report themselves. The case compares
//! the values with the list it expects.
//!
//! What an engine does not offer in its CPUID, and what a host is known to get
//! wrong (found out at run time), is skipped with the reason.

mod events;
mod exceptions;
mod guest;
mod harness;
mod interrupts;
mod io;
mod kicks;
mod memory;
mod paging;
mod processors;
mod state;
mod timers;

use std::fmt;
use std::time::Duration;

use crate::cpuid;
use crate::engine::{AccelError, Accelerator, EngineKind};
use crate::memory::MemoryError;

pub use state::move_between;

/// How long one run of a guest may take before the engine counts as hung.
/// Generous: an engine may be emulated, on a busy machine.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// One small guest and what is expected of it.
#[derive(Clone, Copy)]
pub struct Case {
    /// Its name, `topic/what-it-shows`.
    pub name: &'static str,
    body: fn(&dyn Accelerator) -> Result<(), Failure>,
    /// What hosts of a known kind get wrong here.
    excuses: [Option<(KnownHost, &'static str)>; 2],
}

/// A kind of host whose KVM deviates from a processor in known ways.
#[derive(Clone, Copy, PartialEq, Eq)]
enum KnownHost {
    /// KVM has no hardware virtualization under it and interprets unmodified
    /// guests: it is there although the processor offers neither VMX nor SVM.
    Interpreting,
    /// KVM uses virtualization that QEMU's TCG emulates.
    Tcg,
}

impl KnownHost {
    /// Found out at run time, from what the host's processor says of itself.
    fn is_here(self, accelerator: &dyn Accelerator) -> bool {
        const VMX: u32 = 1 << 5;
        const SVM: u32 = 1 << 2;
        let here = match self {
            Self::Interpreting => {
                cpuid::host(1, 0).ecx & VMX == 0 && cpuid::host(0x8000_0001, 0).ecx & SVM == 0
            }
            Self::Tcg => cpuid::host(0x4000_0000, 0).ebx.to_le_bytes() == *b"TCGT",
        };
        here && accelerator.kind() == EngineKind::Kvm
    }

    const fn description(self) -> &'static str {
        match self {
            Self::Interpreting => {
                "this host's KVM interprets its guests, having no hardware virtualization"
            }
            Self::Tcg => "this host's processor is emulated by QEMU's TCG",
        }
    }
}

impl Case {
    const fn new(name: &'static str, body: fn(&dyn Accelerator) -> Result<(), Failure>) -> Self {
        Self {
            name,
            body,
            excuses: [None; 2],
        }
    }

    /// Where KVM interprets its guests, a failure of this case is the host's
    /// known deviation `why` and counts as skipped.
    const fn excused(mut self, why: &'static str) -> Self {
        self.excuses[0] = Some((KnownHost::Interpreting, why));
        self
    }

    /// The same where TCG emulates the host's processor.
    const fn excused_on_tcg(mut self, why: &'static str) -> Self {
        self.excuses[1] = Some((KnownHost::Tcg, why));
        self
    }

    /// Runs it. A failure that is a known deviation of this host is
    /// [`Failure::Skipped`], with what was seen.
    pub fn run(&self, accelerator: &dyn Accelerator) -> Result<(), Failure> {
        let failure = match (self.body)(accelerator) {
            Ok(()) => return Ok(()),
            Err(skipped @ Failure::Skipped(_)) => return Err(skipped),
            Err(failure) => failure,
        };
        let excuse = self
            .excuses
            .iter()
            .flatten()
            .find(|(host, _)| host.is_here(accelerator));
        Err(match excuse {
            Some((host, why)) => {
                Failure::Skipped(format!("{}: {why} ({failure})", host.description()))
            }
            None => failure,
        })
    }
}

/// Why a case did not pass.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The case can't be shown here; not a failure of the engine.
    #[error("skipped: {0}")]
    Skipped(String),
    /// The guest saw something else than expected.
    #[error("{what}: expected {expected}, saw {seen}")]
    Mismatch {
        /// What was looked at.
        what: String,
        /// What a processor does.
        expected: String,
        /// What this one did.
        seen: String,
    },
    /// The guest did not come to its end.
    #[error("{0}")]
    Hang(String),
    /// The engine returned an error.
    #[error("the engine failed: {0}")]
    Engine(#[from] AccelError),
    /// Guest memory could not be made or reached.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The guest's program could not be assembled: a mistake in the case.
    #[error("the case's program can't be assembled: {0}")]
    Assembler(#[from] iced_x86::IcedError),
}

impl Failure {
    fn mismatch(what: impl Into<String>, expected: impl fmt::Debug, seen: impl fmt::Debug) -> Self {
        Self::Mismatch {
            what: what.into(),
            expected: format!("{expected:x?}"),
            seen: format!("{seen:x?}"),
        }
    }
}

/// `Ok` if the two are equal.
fn expect<T: PartialEq + fmt::Debug>(what: &str, expected: T, seen: T) -> Result<(), Failure> {
    if expected == seen {
        Ok(())
    } else {
        Err(Failure::mismatch(what, expected, seen))
    }
}

/// `Ok` if `seen` lies in the range.
fn expect_within(what: &str, range: std::ops::Range<u64>, seen: u64) -> Result<(), Failure> {
    if range.contains(&seen) {
        Ok(())
    } else {
        Err(Failure::mismatch(what, range, seen))
    }
}

/// All cases.
pub fn cases() -> Vec<Case> {
    [
        io::CASES,
        exceptions::CASES,
        interrupts::CASES,
        timers::CASES,
        paging::CASES,
        state::CASES,
        kicks::CASES,
        processors::CASES,
        memory::CASES,
        events::CASES,
    ]
    .concat()
}

/// Runs every case whose name contains `filter`, printing one line for each,
/// and returns the names of those that failed.
pub fn run_all(accelerator: &dyn Accelerator, filter: &str) -> Vec<&'static str> {
    let mut failed = Vec::new();
    let (mut passed, mut skipped) = (0, 0);
    for case in cases().iter().filter(|case| case.name.contains(filter)) {
        match case.run(accelerator) {
            Ok(()) => {
                passed += 1;
                println!("ok    {}", case.name);
            }
            Err(Failure::Skipped(reason)) => {
                skipped += 1;
                println!("skip  {}: {reason}", case.name);
            }
            Err(failure) => {
                println!("FAIL  {}: {failure}", case.name);
                failed.push(case.name);
            }
        }
    }
    println!(
        "{} engine: {passed} passed, {skipped} skipped, {} failed",
        accelerator.kind(),
        failed.len()
    );
    failed
}
