//! What can go wrong with a disk image before it serves requests.

use std::io;
use std::path::PathBuf;

/// Why an image can't be opened, made or used.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// A call of the host failed.
    #[error("can't {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The lock is held by somebody else.
    #[error(
        "{} is in use by another machine; stop that one, or open the disk read-only in both",
        path.display()
    )]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// It is neither a regular file nor a block device.
    #[error("{} is neither a file nor a block device", path.display())]
    NotADisk {
        /// What was to be opened.
        path: PathBuf,
    },
    /// The file is not what it is said to be, or is damaged.
    #[error("{} is not a usable {format} image: {reason}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// The format it was opened as.
        format: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// The image names a file that it may not use.
    #[error("{} wants the file {}, which it may not use: {reason}", path.display(), named.display())]
    Refused {
        /// The image.
        path: PathBuf,
        /// What it names.
        named: PathBuf,
        /// Which rule forbids it.
        reason: String,
    },
}

impl BlockError {
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::Io {
            action,
            path: path.into(),
            source,
        }
    }
}
