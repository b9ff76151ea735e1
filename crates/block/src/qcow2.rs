//! qcow2 images, by the `imago` crate.
//!
//! The crate reads and writes the format; here are the rules around it: which
//! files an image may name, locks on all of them, limits on the chain, and no
//! panic that a hostile file could cause gets out. The backing chain is opened
//! here, file by file, never by the crate.
//!
//! Reads and writes of all queues run at once, on the crate's own locks.
//! Discards move clusters under a mapping's feet, so they run alone.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use imago::file::File as ImagoFile;
use imago::qcow2::Qcow2 as ImagoQcow2;
use imago::raw::Raw as ImagoRaw;
use imago::{FormatAccess, FormatCreateBuilder, StorageOpenOptions};

use crate::image::{Backing, Format, open_locked};
use crate::qcow2_header::Header;
use crate::scatter::{Scatter, Source};
use crate::storage::{Action, FailureLog, Storage};
use crate::{BlockError, BlockInfo};

type Access = FormatAccess<ImagoFile>;

/// Images of a backing chain, at most.
const LONGEST_CHAIN: usize = 64;
/// Guest memory is never a slice, so bytes go through a buffer of this size.
const BUFFER: u64 = 1 << 20;

/// See the module.
pub(crate) struct Qcow2 {
    image: RwLock<Access>,
    path: PathBuf,
    info: BlockInfo,
    failures: FailureLog,
}

impl Qcow2 {
    /// Takes over `file`, which is locked, and opens what it names.
    pub fn open(
        file: File,
        path: &Path,
        read_only: bool,
        backing: &Backing,
    ) -> Result<Self, BlockError> {
        let mut chain = Chain {
            backing,
            seen: Vec::new(),
        };
        let image = chain.qcow2(file, path, read_only)?;
        let capacity = image.size();
        if !capacity.is_multiple_of(512) || i64::try_from(capacity).is_err() {
            let reason = format!("a disk can't have {capacity} bytes");
            return Err(damaged(path, reason));
        }
        Ok(Self {
            image: RwLock::new(image),
            path: path.into(),
            info: BlockInfo {
                capacity,
                logical_block_size: 512,
                physical_block_size: 4096,
                read_only,
                discard: !read_only,
                write_zeroes: !read_only,
            },
            failures: FailureLog::default(),
        })
    }

    /// Makes an empty image in `file`, which is empty, too.
    pub fn create(
        file: File,
        path: &Path,
        size: u64,
        backing: Option<(&str, Format)>,
    ) -> Result<(), BlockError> {
        let storage = imago_file(file, path, true)?;
        let mut builder = ImagoQcow2::<ImagoFile>::create_builder(storage).size(size);
        if let Some((name, format)) = backing {
            builder = builder.backing(name.into(), format.name().into());
        }
        contain(|| builder.create()).map_err(|error| BlockError::io("create", path, error))
    }

    fn shared(&self) -> io::Result<RwLockReadGuard<'_, Access>> {
        self.image.read().map_err(|_| broken())
    }

    fn alone(&self) -> io::Result<RwLockWriteGuard<'_, Access>> {
        self.image.write().map_err(|_| broken())
    }

    fn look<T>(&self, action: Action, run: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        self.failures.look(&self.path, action, contain(run))
    }

    fn zero(&self, offset: u64, length: u64, may_unmap: bool) -> io::Result<()> {
        let result = if may_unmap {
            self.alone()?.discard_to_zero(offset, length)
        } else {
            self.shared()?.write_zeroes(offset, length)
        };
        match result {
            // Version 2 has no clusters that are zero.
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {}
            result => return result,
        }
        let image = self.shared()?;
        let zeroes = vec![0; length.min(BUFFER) as usize];
        let end = offset + length;
        let mut at = offset;
        while at < end {
            let count = (end - at).min(BUFFER);
            image.write(&zeroes[..count as usize], at)?;
            at += count;
        }
        Ok(())
    }
}

/// What opening a chain knows on the way down.
struct Chain<'a> {
    backing: &'a Backing,
    /// Device and inode of each file.
    seen: Vec<(u64, u64)>,
}

impl Chain<'_> {
    fn qcow2(&mut self, file: File, path: &Path, read_only: bool) -> Result<Access, BlockError> {
        self.count(&file, path)?;
        let header = Header::read(&file, path)?;
        header.check(path, read_only)?;
        if !read_only {
            header.check_refcounts(&file, path)?;
        }
        let storage = imago_file(file, path, !read_only)?;
        let mut image = contain(|| ImagoQcow2::<ImagoFile>::open_image(storage, !read_only))
            .map_err(|error| damaged(path, error.to_string()))?;
        // Without these two the crate would ask for files by itself.
        image.set_data_file(None);
        let backing = match &header.backing {
            Some(name) => Some(self.backing_file(path, name, header.backing_format.as_deref())?),
            None => None,
        };
        image.set_backing(backing);
        Ok(FormatAccess::new(image))
    }

    fn count(&mut self, file: &File, path: &Path) -> Result<(), BlockError> {
        let status = file
            .metadata()
            .map_err(|error| BlockError::io("look at", path, error))?;
        let identity = (status.dev(), status.ino());
        if self.seen.contains(&identity) {
            return Err(damaged(path, "its backing chain is a loop".into()));
        }
        if self.seen.len() == LONGEST_CHAIN {
            let reason = format!("its backing chain has more than {LONGEST_CHAIN} images");
            return Err(damaged(path, reason));
        }
        self.seen.push(identity);
        Ok(())
    }

    fn backing_file(
        &mut self,
        image: &Path,
        name: &str,
        format: Option<&str>,
    ) -> Result<Access, BlockError> {
        let path = self.allow(image, name)?;
        let file = open_locked(&path, true)?;
        let format = match format {
            Some("raw" | "file") => Format::Raw,
            Some("qcow2") => Format::Qcow2,
            Some(other) => {
                let reason = format!("its backing file has the unknown format {other}");
                return Err(damaged(image, reason));
            }
            // Nothing says it, and nobody writes it any more.
            None => Format::probe(&path)?,
        };
        match format {
            Format::Qcow2 => self.qcow2(file, &path, true),
            Format::Raw => {
                self.count(&file, &path)?;
                let storage = imago_file(file, &path, false)?;
                let raw = ImagoRaw::open_image(storage, false)
                    .map_err(|error| BlockError::io("open", &path, error))?;
                Ok(FormatAccess::new(raw))
            }
        }
    }

    /// The real path of the file `name` that `image` wants, if it may.
    fn allow(&self, image: &Path, name: &str) -> Result<PathBuf, BlockError> {
        let directory = image.parent().unwrap_or(Path::new(""));
        let wanted = directory.join(name);
        let refuse = |reason: &str| BlockError::Refused {
            path: image.into(),
            named: wanted.clone(),
            reason: reason.into(),
        };
        let Backing::Within(directories) = self.backing else {
            return Err(refuse("no backing file is allowed here"));
        };
        let real = wanted
            .canonicalize()
            .map_err(|error| refuse(&error.to_string()))?;
        let within = directories
            .iter()
            .filter_map(|directory| directory.canonicalize().ok())
            .any(|directory| real.starts_with(directory));
        if within {
            Ok(real)
        } else {
            Err(refuse("it is outside the directories that are allowed"))
        }
    }
}

fn imago_file(file: File, path: &Path, write: bool) -> Result<ImagoFile, BlockError> {
    let options = StorageOpenOptions::new().write(write).filename(path);
    ImagoFile::from_open_file(file, options).map_err(|error| BlockError::io("open", path, error))
}

fn damaged(path: &Path, reason: String) -> BlockError {
    BlockError::Format {
        path: path.into(),
        format: "qcow2",
        reason,
    }
}

fn broken() -> io::Error {
    io::Error::other("the image is out of use after a failure of its driver")
}

/// Runs the crate's code; a panic of it is an error.
fn contain<T>(run: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    catch_unwind(AssertUnwindSafe(run))
        .unwrap_or_else(|_| Err(io::Error::other("the qcow2 driver failed on this image")))
}

impl Storage for Qcow2 {
    fn info(&self) -> BlockInfo {
        self.info
    }

    fn path(&self) -> &Path {
        &self.path
    }

    fn read(&self, offset: u64, into: Scatter<'_>) -> io::Result<()> {
        self.look(Action::Read, || {
            let image = self.shared()?;
            let mut bytes = vec![0; into.length().min(BUFFER) as usize];
            let mut done = 0;
            while done < into.length() {
                let count = (into.length() - done).min(BUFFER);
                let bytes = &mut bytes[..count as usize];
                image.read(&mut *bytes, offset + done)?;
                into.part(done, count).fill(bytes);
                done += count;
            }
            Ok(())
        })
    }

    fn write(&self, offset: u64, from: Source<'_>) -> io::Result<()> {
        self.look(Action::Write, || {
            let image = self.shared()?;
            let mut bytes = vec![0; from.length().min(BUFFER) as usize];
            let mut done = 0;
            while done < from.length() {
                let count = (from.length() - done).min(BUFFER);
                let bytes = &mut bytes[..count as usize];
                from.part(done, count).copy_to(bytes);
                image.write(&*bytes, offset + done)?;
                done += count;
            }
            Ok(())
        })
    }

    fn flush(&self) -> io::Result<()> {
        if self.info.read_only {
            return Ok(());
        }
        self.look(Action::Flush, || {
            let image = self.shared()?;
            image.flush()?;
            image.sync()
        })
    }

    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        self.look(Action::Discard, || {
            match self.alone()?.discard_to_any(offset, length) {
                // Version 2: a wish that is not granted.
                Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(()),
                result => result,
            }
        })
    }

    fn write_zeroes(&self, offset: u64, length: u64, may_unmap: bool) -> io::Result<()> {
        self.look(Action::WriteZeroes, || self.zero(offset, length, may_unmap))
    }
}

impl Drop for Qcow2 {
    fn drop(&mut self) {
        // The crate keeps metadata in memory; a failure is in the log.
        let _ = self.flush();
    }
}

#[cfg(test)]
#[path = "qcow2_test.rs"]
mod test;
