//! Locks on image files, so that two machines don't write one disk.
//!
//! They are QEMU's own (its file-posix driver): open-file-description locks
//! on single bytes, at 100 + n for a permission n in use and at 200 + n for one
//! that others may not use. So favo and QEMU's programs respect each other.
//! They end with the process, however it ends. A file system without locks
//! (some network ones) is used without.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use crate::BlockError;

/// Bytes for what is in use.
const USED: i64 = 100;
/// Bytes for what others may not use.
const FORBIDDEN: i64 = 200;
/// Permissions, by QEMU's numbers.
const CONSISTENT_READ: i64 = 0;
const WRITE: i64 = 1;
const RESIZE: i64 = 3;

/// What is done with the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Access {
    /// Many may, while nobody writes.
    Read,
    /// One.
    Write,
}

/// Locks `file`, which is readable, until the last descriptor of its open file
/// description is closed.
pub(crate) fn lock(file: &File, path: &Path, access: Access) -> Result<(), BlockError> {
    let used: &[i64] = match access {
        Access::Read => &[CONSISTENT_READ],
        Access::Write => &[CONSISTENT_READ, WRITE, RESIZE],
    };
    // A writer forbids reading, too: what a reader saw would change under it.
    let forbidden: &[i64] = match access {
        Access::Read => &[WRITE, RESIZE],
        Access::Write => &[CONSISTENT_READ, WRITE, RESIZE],
    };
    let held = used.iter().map(|n| USED + n);
    for byte in held.chain(forbidden.iter().map(|n| FORBIDDEN + n)) {
        match set_shared(file, byte) {
            Ok(()) => {}
            Err(error) if no_locks(&error) => {
                tracing::warn!(disk = %path.display(), "its file system has no locks: nothing keeps others from using it");
                return Ok(());
            }
            Err(error) => return Err(BlockError::io("lock", path, error)),
        }
    }
    // First taken, then looked at: of two that come together at least one sees
    // the other.
    let against = used.iter().map(|n| FORBIDDEN + n);
    for byte in against.chain(forbidden.iter().map(|n| USED + n)) {
        if is_taken(file, byte).map_err(|error| BlockError::io("lock", path, error))? {
            return Err(BlockError::InUse { path: path.into() });
        }
    }
    Ok(())
}

fn no_locks(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOLCK | libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL)
    )
}

fn request(kind: i32, byte: i64) -> libc::flock {
    libc::flock {
        l_type: kind as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: byte,
        l_len: 1,
        l_pid: 0,
    }
}

fn set_shared(file: &File, byte: i64) -> io::Result<()> {
    let lock = request(libc::F_RDLCK, byte);
    // SAFETY: the descriptor is open, the argument is a valid flock.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &lock) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether another open file description has a lock on `byte`.
fn is_taken(file: &File, byte: i64) -> io::Result<bool> {
    let mut lock = request(libc::F_WRLCK, byte);
    // SAFETY: the descriptor is open, the argument is a valid flock.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &mut lock) } {
        0 => Ok(i32::from(lock.l_type) != libc::F_UNLCK),
        _ => Err(io::Error::last_os_error()),
    }
}
