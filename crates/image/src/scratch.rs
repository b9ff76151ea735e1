//! Directories for work in progress.
//!
//! Each belongs to one running operation, which holds a lock (flock) on it. It is removed when
//! the operation ends, well or badly. After a kill -9 it stays, without a lock: whoever changes
//! the store next finds it so and removes it ([`sweep`]). Both happen under the catalogue's
//! lock, see [`crate::Store`]: without that, a sweep could come between the making of a
//! directory and its lock.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::ImageError;
use crate::error::IoContext;

const TRIES: u32 = 20;

/// A locked directory, removed with all it holds on drop.
#[derive(Debug)]
pub(crate) struct Scratch {
    path: PathBuf,
    _lock: File,
}

impl Scratch {
    /// A new one in `parent`. The caller holds the catalogue's lock, at least shared.
    pub fn new_in(parent: &Path) -> Result<Self, ImageError> {
        let directory = tempfile::Builder::new()
            .prefix("work-")
            .tempdir_in(parent)
            .during("make a directory in", parent)?;
        let lock = File::open(directory.path()).during("open", directory.path())?;
        lock.lock().during("lock", directory.path())?;
        Ok(Self {
            path: directory.keep(),
            _lock: lock,
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(e) = remove_tree(&self.path) {
            tracing::warn!("remove {}: {e}", self.path.display());
        }
    }
}

/// Removes what dead processes have left in `parent`. The caller holds the catalogue's lock
/// exclusively.
pub(crate) fn sweep(parent: &Path) -> Result<(), ImageError> {
    for entry in fs::read_dir(parent).during("read", parent)? {
        let path = entry.during("read", parent)?.path();
        let Ok(file) = File::open(&path) else {
            continue;
        };
        if file.try_lock().is_ok()
            && let Err(e) = remove_tree(&path)
        {
            tracing::warn!("leftover {}: {e}", path.display());
        }
    }
    Ok(())
}

/// Removes a directory, unless something is still mounted in it: a tool that was killed may
/// have left the host's /dev there.
fn remove_tree(path: &Path) -> io::Result<()> {
    let path = path.canonicalize()?;
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let mounted = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .any(|target| Path::new(&unescape(target)).starts_with(&path));
    if mounted {
        return Err(io::Error::other("something is mounted in it; left alone"));
    }
    if !path.is_dir() {
        return fs::remove_file(path);
    }
    // A tool that was just killed may write its last file while its directory goes.
    for _ in 0..TRIES {
        match fs::remove_dir_all(&path) {
            Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty => {
                std::thread::sleep(Duration::from_millis(50));
            }
            result => return result,
        }
    }
    fs::remove_dir_all(path)
}

/// Undoes proc(5)'s octal escapes of blanks and backslashes.
fn unescape(target: &str) -> String {
    [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ]
    .iter()
    .fold(target.to_string(), |text, (from, to)| {
        text.replace(from, to)
    })
}
