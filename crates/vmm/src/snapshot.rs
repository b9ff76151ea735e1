//! A whole machine in a directory: written while it runs, restored as often
//! as one likes.
//!
//! | file | what |
//! |---|---|
//! | `manifest` | a line `favo-snapshot VERSION sha256:…` over the rest; the rest is JSON: configuration, state of processors and devices, and what the other files are |
//! | `memory` | RAM, region after region; zero pages are holes. Of an incremental snapshot, only the pages written since its parent |
//! | `diskN.overlay`, `diskN.bitmap` | what was written to throw-away disk N, at its places, and which clusters of 4 KiB that is |
//! | `*.sums` | SHA-256 of every 2 MiB of the file before it; holes are zeroes |
//!
//! A data file is as long as what it holds and one page more, its seal: the
//! snapshot's id and the file's name. So a truncated file, or one of another
//! snapshot, is noticed without reading it; flipped bits in memory or overlays
//! are found by [`verify`], which reads everything. The manifest and the
//! bitmaps are checked whole whenever they are read.
//!
//! **Crash safety.** A snapshot is written as `.NAME.partial` beside its place,
//! made durable, and renamed: it is there whole or not at all. What a killed
//! process leaves under that name is removed by the next one.
//!
//! **Restoring** maps the files copy-on-write: nothing is read that the guest
//! does not use, and machines share what they don't write. So the files of a
//! snapshot must not change while a machine made of it runs; they may be
//! deleted.
//!
//! Files are hostile until checked; nothing is applied before all is.

pub mod manifest;
mod partial;
mod read;
mod seal;
mod write;

use std::path::{Path, PathBuf};

pub use manifest::{Manifest, SnapshotId};
pub(crate) use read::spec_of;
pub use read::{RestoreParts, Snapshot, Verified, verify};
pub use write::{Last, SnapshotOptions, SnapshotReport, write};

use crate::machine::LifecycleError;

/// Why a snapshot can't be written or restored.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The host refused something.
    #[error("{action} {}: {source}", .path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The host's answer.
        source: std::io::Error,
    },
    /// There is something under the name already.
    #[error("{} exists already", .0.display())]
    Exists(PathBuf),
    /// Somebody else writes a snapshot of that name.
    #[error("another process is writing {}", .0.display())]
    Busy(PathBuf),
    /// Not one of favo's snapshots.
    #[error("{} is no snapshot: {reason}", .path.display())]
    Foreign {
        /// Which file or directory.
        path: PathBuf,
        /// How that shows.
        reason: String,
    },
    /// One of favo's that is not as it was written.
    #[error("{} is damaged: {reason}", .path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// How that shows.
        reason: String,
    },
    /// A newer favo wrote it.
    #[error(
        "{} is a snapshot of version {found}; this favo reads up to {}",
        .path.display(), Manifest::VERSION
    )]
    Version {
        /// The manifest.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// A disk is not as it was.
    #[error("the disk {} is not as it was when the snapshot was taken: {reason}", .path.display())]
    DiskChanged {
        /// The disk's file.
        path: PathBuf,
        /// How that shows.
        reason: String,
    },
    /// Incremental, since what?
    #[error("there is no snapshot of this machine to add to")]
    NoParent,
    /// A part of the machine can't be in a snapshot.
    #[error("this machine can't be in a snapshot: {0}")]
    NotSaveable(String),
    /// The parts given for a restore don't fit.
    #[error("the machine can't be restored: {0}")]
    Misfit(String),
    /// The machine can't be paused or saved.
    #[error(transparent)]
    Lifecycle(#[from] LifecycleError),
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] favo_accel::AccelError),
    /// A disk failed.
    #[error(transparent)]
    Disk(#[from] favo_block::BlockError),
}

impl SnapshotError {
    pub(crate) fn io(
        action: &'static str,
        path: &Path,
    ) -> impl FnOnce(std::io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }

    pub(crate) fn damaged(path: &Path, reason: impl Into<String>) -> Self {
        Self::Damaged {
            path: path.to_owned(),
            reason: reason.into(),
        }
    }

    pub(crate) fn foreign(path: &Path, reason: impl Into<String>) -> Self {
        Self::Foreign {
            path: path.to_owned(),
            reason: reason.into(),
        }
    }

    /// A word for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Io { .. } => "io",
            Self::Exists(_) => "exists",
            Self::Busy(_) => "busy",
            Self::Foreign { .. } => "not-a-snapshot",
            Self::Damaged { .. } => "damaged",
            Self::Version { .. } => "unsupported-version",
            Self::DiskChanged { .. } => "disk-changed",
            Self::NoParent => "no-parent",
            Self::NotSaveable(_) => "not-saveable",
            Self::Misfit(_) => "misfit",
            Self::Lifecycle(_) => "machine",
            Self::Engine(_) => "engine",
            Self::Disk(_) => "disk",
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Io { .. } => "look at the path, its permissions and the space on its disk",
            Self::Exists(_) => "give another directory, or remove this one first",
            Self::Busy(_) => "wait until it is done, or give another directory",
            Self::Foreign { .. } => "give the directory that 'favo vmm snapshot' was given",
            Self::Damaged { .. } => {
                "restore another snapshot; 'favo vmm verify' tells which files are damaged"
            }
            Self::Version { .. } => "restore it with the favo that wrote it, or a newer one",
            Self::DiskChanged { .. } => "put the disk back as it was then, or restore another",
            Self::NoParent => "take a whole snapshot first, without --incremental",
            Self::NotSaveable(_) => "start the machine without that part",
            Self::Misfit(_) => "restore it with the configuration it was saved with",
            Self::Lifecycle(_) | Self::Engine(_) => "see the machine's log",
            Self::Disk(_) => "look at the disk's file and who else uses it",
        }
    }
}

#[cfg(test)]
#[path = "snapshot/snapshot_test.rs"]
pub(crate) mod test;
