//! What confines the process of a machine: on by default, with nothing to
//! configure.
//!
//! A guest that finds a defect in the engine or a device and takes over the
//! process should find itself in one that can do little. `favo run` calls
//! [`prepare`] before it starts the first thread; every thread that runs while
//! a guest does is started with [`favo_thread::spawn`], which confines it to its
//! [`ThreadKind`]; the main thread calls [`favo_thread::confine`] when the machine
//! runs. Nothing here may be called by what a guest sends.
//!
//! The layers, in the order they go up, and why in that order:
//!
//! | layer | scope | when |
//! |---|---|---|
//! | no core dump, not dumpable: no other process of the user reads the guest's memory | process | [`prepare`] |
//! | handler for refused calls | process | [`prepare`], before there are filters |
//! | no new privileges: needed by the next two for callers without rights | thread, inherited | [`prepare`], before there are threads |
//! | Landlock: no file but those of the [`Policy`]; no abstract Unix socket and no process outside | thread | first act of a thread: all it needs is open |
//! | no capability: after Landlock, which needs none | thread | next |
//! | system call filter: last, for it refuses the calls that put up the others | thread | last |
//!
//! **Descriptors.** Disks, `/dev/kvm`, sockets to listen on, the terminal: all
//! are opened with the caller's rights before the threads that use them are
//! confined. What is still reached by name afterwards is the [`Policy`].
//!
//! **Filters** are lists of what a kind of thread calls, in [`table`]; anything
//! else ends the process with a message ([`violation`]). Threads that a
//! confined thread needs are started by another one ([`favo_thread`]), so that the
//! threads nearest to the guest can't make threads. No thread can make memory
//! executable: the software CPU's is mapped before.
//!
//! Threads share their memory. Who can write all of it from one thread can
//! have the others act, too: the process' border is the union of the lists and
//! the other layers. So no list has what opens a file to write, runs a
//! program, or reaches another process. A machine with a control socket has
//! threads that write files where its owner says: then files are inside the
//! border, and programs, processes, networks and new code still outside
//! ([`table::FORBIDDEN`]).
//!
//! **Not taken.** A user, mount or PID namespace: the first must be entered
//! while there is one thread, before disks and published ports are opened with
//! the caller's rights; the last needs a second process, which would stand
//! between the terminal, the caller's signals and the machine. What they would
//! hide is out of reach: no list has a call that mounts or signals
//! another process, and Landlock hides the files. A network namespace: the way
//! out is the host's own sockets. Limits of file size and threads: disks and
//! captures have any size, and the kernel counts threads per user.

mod files;
mod privileges;
pub mod survey;
pub mod table;
pub mod violation;

mod filter;
mod handler;

use std::path::PathBuf;

use favo_thread::ThreadKind;

/// What a machine's process still reaches by name once it is confined.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Files that are read again while the machine runs.
    pub read: Vec<PathBuf>,
    /// Directories in which files are removed when it ends.
    pub remove: Vec<PathBuf>,
}

impl Policy {
    /// What every machine with a network needs: the host's resolvers may
    /// change while it runs.
    pub fn with_network(mut self) -> Self {
        self.read.push("/etc/resolv.conf".into());
        self
    }
}

/// Why a process or thread can't be confined.
#[derive(Debug, thiserror::Error)]
#[error("the sandbox can't be put up: {action}: {reason}; --sandbox off runs without it")]
pub struct SandboxError {
    /// What was tried.
    pub action: &'static str,
    /// The host's answer.
    pub reason: String,
}

impl SandboxError {
    fn new(action: &'static str, reason: impl ToString) -> Self {
        Self {
            action,
            reason: reason.to_string(),
        }
    }
}

/// The sandbox of this process.
struct Plan {
    /// Guests ping through raw sockets, which are a capability.
    raw_echo: bool,
    files: files::Files,
    filters: filter::Filters,
}

/// Confines the process, and has every thread confined that
/// [`favo_thread::spawn`] starts from now on. Call it once, before the first.
///
/// A layer the host doesn't have is left out; [`survey::survey`] tells.
///
/// # Errors
/// The host refuses what it has.
pub fn prepare(policy: &Policy) -> Result<(), SandboxError> {
    privileges::limit_process()?;
    violation::handle()?;
    rustix::thread::set_no_new_privs(true)
        .map_err(|error| SandboxError::new("giving up new privileges", error))?;
    let plan = Plan {
        raw_echo: !privileges::has_ping_sockets(),
        files: files::Files::new(policy)?,
        filters: filter::Filters::compile()?,
    };
    // A thread that can't be confined must not go on.
    let confine = move |kind| {
        if let Err(error) = plan.apply(kind) {
            eprintln!("favo: {error}");
            std::process::exit(violation::STATUS.into());
        }
    };
    match favo_thread::set_confiner(confine) {
        Ok(true) => Ok(()),
        Ok(false) => Err(SandboxError::new("preparing", "it was done already")),
        Err(error) => Err(SandboxError::new("starting a thread", error)),
    }
}

impl Plan {
    /// Confines the calling thread.
    fn apply(&self, kind: ThreadKind) -> Result<(), SandboxError> {
        // The owner says where snapshots go.
        if kind != ThreadKind::Control {
            self.files.restrict_thread()?;
        }
        match kind {
            ThreadKind::Network if self.raw_echo => privileges::keep_raw_sockets()?,
            _ => privileges::drop_capabilities()?,
        }
        self.filters.apply(kind)
    }
}
