//! One process at a time: a file that is locked, and says by whom.
//!
//! redb locks its file too, but can't say who holds it. The kernel frees the
//! lock when its holder dies, however it dies; the text may then be stale, but
//! is only read while the lock is held by someone.

use std::fs::{self, File, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::Path;

use super::OpenError;

/// Held until dropped.
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock of the store in `directory`, or says who has it.
    pub fn take(directory: &Path) -> Result<Self, OpenError> {
        let path = directory.join("lock");
        let io = |what| {
            let path = path.clone();
            move |source| OpenError::Directory { what, path, source }
        };
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(io("open"))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                // Whatever can't be read of it is not worth another error.
                let _ = file.read_to_string(&mut holder);
                let holder = match holder.trim() {
                    "" => "another process".to_owned(),
                    text => text.chars().filter(|c| !c.is_control()).collect(),
                };
                return Err(OpenError::InUse {
                    directory: directory.to_owned(),
                    holder,
                });
            }
            Err(TryLockError::Error(source)) => return Err(io("lock")(source)),
        }
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "process {} ({})", std::process::id(), command()))
            .map_err(io("write"))?;
        Ok(Self { _file: file })
    }
}

/// The command line of this process, as people know it.
fn command() -> String {
    let bytes = fs::read("/proc/self/cmdline").unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes).replace('\0', " ");
    match text.trim() {
        "" => "unknown command".to_owned(),
        text => text.chars().take(200).collect(),
    }
}
