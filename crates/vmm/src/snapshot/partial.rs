//! A directory in the making: it appears under its name whole, or never.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, RenameFlags, flock, renameat_with};
use rustix::io::Errno;

use super::SnapshotError;

/// `.NAME.partial` beside where the directory will be, locked while it is
/// written. Dropping removes it.
pub struct Partial {
    path: PathBuf,
    target: PathBuf,
    parent: PathBuf,
    /// Holds the lock.
    _lock: File,
    done: bool,
}

impl Partial {
    /// Begins. What a process that was killed left is removed first.
    pub fn begin(target: &Path) -> Result<Self, SnapshotError> {
        let parent = match target.parent() {
            Some(parent) if parent != Path::new("") => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        let invalid = || SnapshotError::Io {
            action: "making the snapshot",
            path: target.to_owned(),
            source: io::Error::new(io::ErrorKind::InvalidInput, "it has no name"),
        };
        let name = target.file_name().ok_or_else(invalid)?;
        if target.symlink_metadata().is_ok() {
            return Err(SnapshotError::Exists(target.to_owned()));
        }
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(".partial");
        let path = parent.join(hidden);
        // Whoever holds the lock and finds its directory still there has it.
        for _ in 0..8 {
            let fresh = match make(&path) {
                Ok(()) => true,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
                Err(error) => return Err(SnapshotError::io("making", &path)(error)),
            };
            let Ok(lock) = File::open(&path) else {
                continue;
            };
            if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
                return Err(SnapshotError::Busy(target.to_owned()));
            }
            if !same(&lock, &path) {
                continue;
            }
            if !fresh {
                fs::remove_dir_all(&path).map_err(SnapshotError::io("removing", &path))?;
                continue;
            }
            return Ok(Self {
                path,
                target: target.to_owned(),
                parent,
                _lock: lock,
                done: false,
            });
        }
        Err(SnapshotError::Busy(target.to_owned()))
    }

    /// Where to write.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes it durable and gives it its name. Its files are durable already.
    pub fn finish(mut self) -> Result<(), SnapshotError> {
        sync(&self.path)?;
        let renamed = renameat_with(
            rustix::fs::CWD,
            &self.path,
            rustix::fs::CWD,
            &self.target,
            RenameFlags::NOREPLACE,
        );
        match renamed {
            Ok(()) => {}
            Err(Errno::EXIST) => return Err(SnapshotError::Exists(self.target.clone())),
            // A file system that can't promise not to replace: an empty
            // directory is all it could replace.
            Err(Errno::INVAL | Errno::NOSYS) => fs::rename(&self.path, &self.target)
                .map_err(SnapshotError::io("naming", &self.target))?,
            Err(error) => return Err(SnapshotError::io("naming", &self.target)(error.into())),
        }
        self.done = true;
        sync(&self.parent)
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.done
            && let Err(error) = fs::remove_dir_all(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "removing an unfinished snapshot");
        }
    }
}

fn make(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().mode(0o700).create(path)
}

fn same(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (file.metadata(), fs::symlink_metadata(path)) {
        (Ok(file), Ok(named)) => (file.dev(), file.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}

fn sync(directory: &Path) -> Result<(), SnapshotError> {
    File::open(directory)
        .and_then(|file| file.sync_all())
        .map_err(SnapshotError::io("making durable", directory))
}
