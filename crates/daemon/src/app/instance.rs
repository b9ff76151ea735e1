//! Instances: what they should be, what they are, and the next step.
//!
//! [`plan`] is asked again after every step, after every change of what is
//! desired, and when the time it named has come. It remembers nothing: after a
//! crash of the daemon it goes on from what is observed. It never does two
//! things at once, so that the executor never has to undo half of a step.
//!
//! ```text
//!                 Prepare            Start
//!     no disk ───────────▶ stopped ─────────▶ running ◀──▶ paused
//!        ▲                  ▲   │                │  Pause, Resume
//!        │ RemoveDisk       │   └─── back-off ───┤ the guest ends
//!        └──────────────────┤                    │
//!                           │  Kill              ▼ AskToStop
//!                           └────────────── asked to stop
//! ```

use std::time::Duration;

use favo_types::ByteCount;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// How long a guest may take to shut down before it is killed.
pub const GRACE: Duration = Duration::from_secs(60);
/// The pause before the first restart; it doubles with each failure in a row.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause before a restart.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// What its owner wants of an instance.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Desired {
    /// Whether it exists.
    pub life: Life,
    /// Whether it runs.
    pub power: Power,
    /// Counts the demands to start it. A guest that ended is started again
    /// for a new demand whatever its restart policy says.
    pub demand: u64,
    /// A process that was started for an earlier demand is to end, for a new
    /// one: the owner wants it restarted.
    pub fresh: u64,
    /// Ends are without asking the guest.
    pub hard: bool,
    /// What to do when the guest ends on its own.
    pub restart: RestartPolicy,
    /// How large its machine is.
    pub shape: Shape,
}

/// Whether an instance exists.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Life {
    /// It does.
    Kept,
    /// It is in the trash: stopped, its disk untouched, so it can come back.
    Trashed,
    /// It is to go for good, disk and all.
    Purged,
}

/// Whether an instance runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Power {
    /// It runs.
    Running,
    /// Its processors stand still, its memory is kept.
    Paused,
    /// It is off.
    Stopped,
}

/// What to do when the guest ends on its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RestartPolicy {
    /// Leave it off.
    Never,
    /// Start it again if it failed, leave it off if it shut down.
    #[default]
    OnFailure,
    /// Start it again.
    Always,
}

/// How large a machine is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Shape {
    /// Virtual processors.
    pub cpus: u32,
    /// Memory.
    pub memory: ByteCount,
}

/// What there is of an instance on this host.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Observed {
    /// Whether its disk is complete.
    pub disk: bool,
    /// The process of its machine, if there is one.
    pub process: Option<Process>,
    /// How its last process ended.
    pub exit: Option<Exit>,
}

/// A machine's process.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Process {
    /// What it was started as.
    pub shape: Shape,
    /// The demand it was started for.
    pub demand: u64,
    /// Whether its processors stand still.
    pub paused: bool,
    /// When its guest was asked to shut down, if it was.
    pub asked_to_stop: Option<Timestamp>,
}

/// The end of a machine's process.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Exit {
    /// The demand the process was started for.
    pub demand: u64,
    /// When it ended.
    pub at: Timestamp,
    /// How many times in a row it failed, this one included; zero if the guest
    /// shut down. The observer forgets failures once a process ran for long.
    pub failures: u32,
    /// The guest reset its machine: it wants to start again, whatever the
    /// policy.
    pub reset: bool,
}

/// What to do next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// This, then ask again.
    Do(Action),
    /// Nothing before this time, unless something changes.
    WaitUntil(Timestamp),
    /// Nothing, until something changes.
    Settled(Phase),
}

/// Something the executor does. Each may be repeated, and may fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Make the disk from the image.
    PrepareDisk,
    /// Start a process of the desired shape, for the present demand.
    Start,
    /// Stop the processors.
    Pause,
    /// Let them go on.
    Resume,
    /// Ask the guest to shut down (ACPI).
    AskToStop,
    /// End the process.
    Kill,
    /// Remove the disk and all else there is.
    RemoveDisk,
}

/// What an instance is when there is nothing to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// It runs, or is paused, as desired.
    Up {
        /// It was started with another shape than is desired by now; the next
        /// start takes that.
        restart_for_shape: bool,
    },
    /// It is off, as desired.
    Off,
    /// It should run, but its guest ended and the policy leaves it so.
    Ended {
        /// It did not shut down, it failed.
        failed: bool,
    },
    /// There is nothing left of it.
    Gone,
}

/// The next step from what is observed to what is desired.
pub fn plan(desired: &Desired, observed: &Observed, now: Timestamp) -> Step {
    let wanted = desired.life == Life::Kept && desired.power != Power::Stopped;
    match &observed.process {
        // A guest that was asked to stop can't be asked to stay: it goes, and
        // a new one comes if one is wanted by then.
        Some(process)
            if !wanted || process.asked_to_stop.is_some() || process.demand < desired.fresh =>
        {
            stop(desired, process, now)
        }
        Some(process) => match (desired.power, process.paused) {
            (Power::Paused, false) => Step::Do(Action::Pause),
            (Power::Running, true) => Step::Do(Action::Resume),
            _ => Step::Settled(Phase::Up {
                restart_for_shape: process.shape != desired.shape,
            }),
        },
        None if wanted => start(desired, observed, now),
        None if desired.life != Life::Purged => Step::Settled(Phase::Off),
        None if observed.disk => Step::Do(Action::RemoveDisk),
        None => Step::Settled(Phase::Gone),
    }
}

/// Towards no process.
fn stop(desired: &Desired, process: &Process, now: Timestamp) -> Step {
    match process.asked_to_stop {
        // What is purged has nothing to save.
        _ if desired.life == Life::Purged || desired.hard => Step::Do(Action::Kill),
        // A guest that stands still hears nothing.
        _ if process.paused => Step::Do(Action::Resume),
        None => Step::Do(Action::AskToStop),
        Some(asked) => match after(asked, GRACE) {
            end if now < end => Step::WaitUntil(end),
            _ => Step::Do(Action::Kill),
        },
    }
}

/// Towards a process, from none.
fn start(desired: &Desired, observed: &Observed, now: Timestamp) -> Step {
    if !observed.disk {
        return Step::Do(Action::PrepareDisk);
    }
    // Only an end of what is demanded now is the policy's business.
    let ended = observed
        .exit
        .as_ref()
        .filter(|exit| exit.demand == desired.demand);
    let Some(exit) = ended else {
        return Step::Do(Action::Start);
    };
    if exit.reset {
        return Step::Do(Action::Start);
    }
    let failed = exit.failures > 0;
    let again = match desired.restart {
        RestartPolicy::Never => false,
        RestartPolicy::OnFailure => failed,
        RestartPolicy::Always => true,
    };
    if !again {
        return Step::Settled(Phase::Ended { failed });
    }
    match after(exit.at, pause(exit.failures)) {
        due if now < due => Step::WaitUntil(due),
        _ => Step::Do(Action::Start),
    }
}

/// How long to wait after so many failures in a row.
fn pause(failures: u32) -> Duration {
    let doubled = 2_u32.saturating_pow(failures.saturating_sub(1));
    FIRST_PAUSE.saturating_mul(doubled).min(LONGEST_PAUSE)
}

/// A time after another; the end of time, if it is later.
fn after(time: Timestamp, duration: Duration) -> Timestamp {
    time.checked_add(duration).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
#[path = "instance_test.rs"]
mod test;
