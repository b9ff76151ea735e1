//! An instance's directory: what the daemon and the machine's process leave
//! there for each other.
//!
//! | file | who writes it | what |
//! |---|---|---|
//! | `machine.json` | the daemon, before a start | [`MachineFile`] |
//! | `image.json` | the daemon, once | its image, as it was then |
//! | `disk` | the daemon, once; then the guest | its disk |
//! | `lock` | the process | locked as long as it lives |
//! | `control` | the process | its control socket |
//! | `exit.json` | the process, at its end | [`ExitFile`] |
//! | `console.N.log` | the process | what the guest said |
//! | `process.log` | the process | its standard error |
//!
//! So a daemon that was killed finds every machine again, and no start can
//! come twice: who has the lock is the process, and whoever doesn't get it
//! ends.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// What a machine's process is to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineFile {
    /// What the guest is called.
    pub name: String,
    /// The image its kernel comes from.
    pub image: String,
    /// Virtual processors.
    pub cpus: u32,
    /// Memory in bytes.
    pub memory: u64,
    /// `user`, `none`, or the name of a shared network.
    pub network: String,
    /// Published ports.
    pub publish: Vec<String>,
    /// Limits of the network.
    pub rate: Vec<String>,
    /// The demand it is started for ([`crate::app::instance::Desired`]).
    pub demand: u64,
    /// How many times in a row the machine failed before.
    pub failures: u32,
    /// When it was started.
    pub started: Timestamp,
}

/// How a machine's process came to its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitFile {
    /// How.
    pub ending: Ending,
    /// For people.
    pub message: String,
    /// When.
    pub at: Timestamp,
}

/// How a machine ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// The guest shut down.
    PoweredOff,
    /// The guest reset its machine: it wants to start again.
    Reset,
    /// It was stopped from outside.
    Stopped,
    /// The guest, the machine or its process failed.
    Failed,
}

/// An instance's directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place(PathBuf);

impl Place {
    /// That of this path.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self(directory.into())
    }

    /// The directory itself.
    pub fn directory(&self) -> &Path {
        &self.0
    }

    /// The instance's disk.
    pub fn disk(&self) -> PathBuf {
        self.0.join("disk")
    }

    /// The image it was made from, as it was then: its kernel is read at every
    /// start.
    pub fn image(&self) -> PathBuf {
        self.0.join("image.json")
    }

    /// The control socket.
    pub fn control(&self) -> PathBuf {
        self.0.join("control")
    }

    /// What the guest said on its console: two files that take turns, of which
    /// the younger one is written.
    pub fn console_logs(&self) -> [PathBuf; 2] {
        ["console.0.log", "console.1.log"].map(|name| self.0.join(name))
    }

    /// Standard error of the process.
    pub fn process_log(&self) -> PathBuf {
        self.0.join("process.log")
    }

    fn lock_file(&self) -> PathBuf {
        self.0.join("lock")
    }

    /// Where [`ExitFile`] goes. The process opens it before it is confined.
    pub fn exit_file(&self) -> PathBuf {
        self.0.join("exit.json")
    }

    /// Takes the lock, as the machine's process; None if another one has it.
    ///
    /// # Errors
    /// The lock file can't be opened or locked.
    pub fn lock(&self) -> io::Result<Option<File>> {
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(self.lock_file())?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(file)),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether the machine's process lives.
    ///
    /// # Errors
    /// The lock can't be looked at.
    pub fn is_alive(&self) -> io::Result<bool> {
        let file = match File::open(self.lock_file()) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        match flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(false),
            Err(Errno::WOULDBLOCK) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }

    /// What the machine's process is, or was the last time.
    ///
    /// # Errors
    /// The file can't be read, or is none.
    pub fn machine(&self) -> io::Result<Option<MachineFile>> {
        read(&self.0.join("machine.json"))
    }

    /// Writes what the next process is to be, whole or not at all.
    ///
    /// # Errors
    /// It can't be written.
    pub fn set_machine(&self, machine: &MachineFile) -> io::Result<()> {
        let (new, path) = (self.0.join("machine.new"), self.0.join("machine.json"));
        let mut file = File::create(&new)?;
        file.write_all(&serde_json::to_vec_pretty(machine)?)?;
        file.sync_all()?;
        std::fs::rename(new, path)
    }

    /// How the last process ended; None if it left no word.
    pub fn exit(&self) -> Option<ExitFile> {
        // One that was killed while it wrote left half a word.
        read(&self.exit_file()).ok().flatten()
    }

    /// Forgets how the last process ended, before another is started.
    ///
    /// # Errors
    /// The file can't be removed.
    pub fn forget_exit(&self) -> io::Result<()> {
        match std::fs::remove_file(self.exit_file()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
#[path = "place_test.rs"]
mod test;
