//! The control socket of a VM process.
//!
//! A Unix stream socket; each request is one line of JSON, and so is each
//! answer. Requests of one connection are answered in order.
//!
//! ```text
//! → {"version":1,"verb":"snapshot","directory":"/srv/snapshots/a","incremental":false}
//! ← {"version":1,"ok":{"kind":"snapshot","id":"…","paused_us":2100,"took_us":48000,"memory_bytes":61800448}}
//! → {"version":1,"verb":"resume"}
//! ← {"version":1,"error":{"code":"no-machine","message":"no machine is here","hint":"restore one first"}}
//! ```
//!
//! [`Request`] lists the verbs, [`Answer`] what they return, [`ControlError`]
//! is the one shape of an error. A peer with another [`VERSION`] is refused by
//! name. Fields are only added; the version counts what can't be said so.
//!
//! Whoever can connect owns the machine: the socket is its owner's alone (mode
//! 0600). *Rejected:* HTTP over the socket, as Firecracker has it: a daemon in
//! the same binary needs no second protocol with headers, and people have the
//! `favo vmm` commands.

mod client;
mod server;
mod wire;

use std::fmt;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use favo_accel::EngineKind;
use serde::{Deserialize, Serialize};

pub use client::{Client, ClientError};
pub use server::Server;

use crate::clone::{Cloned, MachineClone};
use crate::machine::{LifecycleError, RunState};
use crate::snapshot::{SnapshotError, SnapshotId, SnapshotReport};

/// The version of the protocol described here.
pub const VERSION: u32 = 1;

/// The longest line. A clone's has the state of 64 processors.
const MOST_BYTES: usize = 8 << 20;

/// What a VM process can be asked for.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Request {
    /// How it is: [`Answer::Status`].
    Status,
    /// Let the guest stand still.
    Pause,
    /// Let it go on.
    Resume,
    /// End the machine, and the process.
    Stop,
    /// Press the power button: the guest may shut down.
    PowerButton,
    /// A connection to the console: [`Answer::Console`], and with its line
    /// comes a descriptor.
    Console,
    /// Write a snapshot of the machine: [`Answer::Snapshot`].
    Snapshot {
        /// The directory to make; absolute.
        directory: PathBuf,
        /// Only what changed since the last one.
        #[serde(default)]
        incremental: bool,
    },
    /// Become the machine of a snapshot, in a process that has none yet.
    Restore {
        /// The snapshot; absolute.
        directory: PathBuf,
    },
    /// The connection of the guest's agent: [`Answer::Agent`], and with its
    /// line comes a descriptor (`SCM_RIGHTS`).
    Agent,
    /// The machine as another one: [`Answer::Forked`], and with its line come
    /// the clone's descriptors.
    Fork,
    /// Become a clone, in a process that has no machine yet; its descriptors
    /// come with the line. It may be adopted by several processes.
    Adopt {
        /// What [`Answer::Forked`] had.
        machine: Box<MachineClone>,
    },
}

/// What a verb returns.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Answer {
    /// It is done.
    Done,
    /// How a VM process is.
    Status(Status),
    /// A snapshot was written.
    Snapshot {
        /// Which.
        id: SnapshotId,
        /// How long the guest stood still, in microseconds.
        paused_us: u64,
        /// How long it took in all.
        took_us: u64,
        /// Bytes of memory written.
        memory_bytes: u64,
    },
    /// The agent's connection comes along.
    Agent,
    /// A connection to the console comes along.
    Console,
    /// A clone.
    Forked {
        /// How long the guest stood still, in microseconds.
        paused_us: u64,
        /// It.
        machine: Box<MachineClone>,
    },
}

/// How a VM process is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Status {
    /// The process.
    pub pid: u32,
    /// The version of its favo.
    pub favo: String,
    /// Its machine; absent before one is restored.
    pub machine: Option<MachineStatus>,
}

/// How a machine is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MachineStatus {
    /// Whether it runs.
    pub state: RunState,
    /// What runs it.
    pub engine: EngineKind,
    /// Processors.
    pub cpus: u32,
    /// Bytes of RAM.
    pub memory_bytes: u64,
}

impl From<SnapshotReport> for Answer {
    fn from(report: SnapshotReport) -> Self {
        Self::Snapshot {
            id: report.id,
            paused_us: report.paused.as_micros() as u64,
            took_us: report.took.as_micros() as u64,
            memory_bytes: report.memory_bytes,
        }
    }
}

impl From<Cloned> for Reply {
    fn from(cloned: Cloned) -> Self {
        Self {
            answer: Answer::Forked {
                paused_us: cloned.paused.as_micros() as u64,
                machine: Box::new(cloned.machine),
            },
            descriptors: cloned.descriptors,
        }
    }
}

/// Why a request was not done.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ControlError {
    /// A word for programs, in kebab-case.
    pub code: String,
    /// What failed, on what, and why.
    pub message: String,
    /// What to do about it.
    pub hint: String,
}

impl ControlError {
    /// An error.
    pub fn new(code: &str, message: impl fmt::Display, hint: &str) -> Self {
        Self {
            code: code.to_owned(),
            message: message.to_string(),
            hint: hint.to_owned(),
        }
    }
}

impl fmt::Display for ControlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.message)?;
        if !self.hint.is_empty() {
            write!(f, " ({})", self.hint)?;
        }
        Ok(())
    }
}

impl std::error::Error for ControlError {}

impl From<SnapshotError> for ControlError {
    fn from(error: SnapshotError) -> Self {
        Self::new(error.code(), &error, error.hint())
    }
}

impl From<LifecycleError> for ControlError {
    fn from(error: LifecycleError) -> Self {
        let (code, hint) = match error {
            LifecycleError::Ended => ("ended", "the process ends by itself"),
            LifecycleError::Stuck => ("stuck", "stop the machine"),
            LifecycleError::Engine(_) | LifecycleError::Device(_) => {
                ("machine", "see the machine's log")
            }
        };
        Self::new(code, error, hint)
    }
}

/// An answer, and the descriptors that go with it.
#[derive(Debug)]
pub struct Reply {
    /// What is said.
    pub answer: Answer,
    /// What is handed over.
    pub descriptors: Vec<OwnedFd>,
}

impl From<Answer> for Reply {
    fn from(answer: Answer) -> Self {
        Self {
            answer,
            descriptors: Vec::new(),
        }
    }
}

/// Does what is asked for. Called on a thread of each connection.
pub trait Handler: Send + Sync + 'static {
    /// Does it, and returns when it is done. `descriptors` came with the
    /// request.
    fn handle(&self, request: Request, descriptors: Vec<OwnedFd>) -> Result<Reply, ControlError>;
}

/// A line from the client.
#[derive(Serialize, Deserialize)]
struct RequestLine {
    version: u32,
    #[serde(flatten)]
    request: Request,
}

/// A line from the server.
#[derive(Serialize, Deserialize)]
struct AnswerLine {
    version: u32,
    #[serde(flatten)]
    answer: AnswerBody,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum AnswerBody {
    Ok(Answer),
    Error(ControlError),
}

#[cfg(test)]
#[path = "control/control_test.rs"]
mod test;
