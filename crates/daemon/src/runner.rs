//! What carries the steps of a plan out, on this host.
//!
//! The trait is what the reconciler needs; [`crate::host_runner`] does it with
//! processes and files, tests with neither. Every action may be repeated, and
//! may find done what it is asked for.

use std::fmt;

use async_trait::async_trait;
use jiff::Timestamp;

use crate::app::instance::Shape;
use crate::place::{Ending, MachineFile};

/// Why something could not be done. For people, and for whoever waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunnerError(pub String);

impl fmt::Display for RunnerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<E: std::error::Error> From<E> for RunnerError {
    fn from(error: E) -> Self {
        Self(error.to_string())
    }
}

/// What there is of an instance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observation {
    /// Whether its disk is complete.
    pub disk: bool,
    /// Its machine's process.
    pub process: Option<ObservedProcess>,
    /// How the last process ended, if there is none.
    pub exit: Option<ObservedExit>,
}

/// A machine's process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedProcess {
    /// What it was started as.
    pub shape: Shape,
    /// The demand it was started for.
    pub demand: u64,
    /// Whether its processors stand still.
    pub paused: bool,
    /// The process; unknown until its socket is there.
    pub pid: Option<u32>,
    /// What runs it.
    pub engine: Option<String>,
}

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedExit {
    /// What it had been started as.
    pub machine: MachineFile,
    /// How.
    pub ending: Ending,
    /// For people.
    pub message: String,
    /// When.
    pub at: Timestamp,
}

/// See the module. Instances are named by their uid.
#[async_trait]
pub trait Runner: Send + Sync + 'static {
    /// What there is of an instance.
    async fn observe(&self, uid: &str) -> Result<Observation, RunnerError>;
    /// Makes its disk from an image.
    async fn prepare_disk(&self, uid: &str, image: &str) -> Result<(), RunnerError>;
    /// Starts its process, and waits until that can be steered.
    async fn start(&self, uid: &str, machine: &MachineFile) -> Result<(), RunnerError>;
    /// Lets its processors stand still.
    async fn pause(&self, uid: &str) -> Result<(), RunnerError>;
    /// Lets them go on.
    async fn resume(&self, uid: &str) -> Result<(), RunnerError>;
    /// Asks its guest to shut down.
    async fn ask_to_stop(&self, uid: &str) -> Result<(), RunnerError>;
    /// Ends its process.
    async fn kill(&self, uid: &str) -> Result<(), RunnerError>;
    /// Removes all there is of it.
    async fn remove(&self, uid: &str) -> Result<(), RunnerError>;
    /// Waits until its process has ended.
    async fn ended(&self, uid: &str) -> Result<(), RunnerError>;
}
