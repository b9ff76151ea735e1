//! Raw images: a file or host block device whose bytes are the disk's.
//!
//! The page cache of the host stands behind it; a flush is `fdatasync`. A file
//! that is no multiple of 512 bytes long reads as zeroes up to the next one.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use favo_thread::on_launcher;
use rustix::fs::{FallocateFlags, SeekFrom, fallocate, fdatasync, seek};
use rustix::io::Errno;

use crate::image::IoEngine;
use crate::scatter::{Scatter, Source};
use crate::storage::{Action, FailureLog, Storage};
use crate::uring_queue::UringQueue;
use crate::{BlockError, BlockInfo, BlockQueue};

const SECTOR: u64 = 512;
const PAGE: u32 = 4096;
/// The most that one write of zeroes takes.
const ZEROES: usize = 64 * 1024;
/// A page-cache file of zeroes, so to speak.
pub(crate) static ZERO_BYTES: [u8; ZEROES] = [0; ZEROES];

/// The open file; shared by its queues.
#[derive(Debug)]
pub(crate) struct RawFile {
    file: File,
    path: PathBuf,
    info: BlockInfo,
    /// Bytes between the end of the file when it was opened and the capacity.
    tail: u64,
    pub(crate) failures: FailureLog,
}

impl RawFile {
    /// Takes over `file`, which is open for writing unless `read_only`.
    pub fn new(file: File, path: PathBuf, read_only: bool) -> Result<Self, BlockError> {
        let failed = |error| BlockError::io("look at", &path, error);
        let kind = file.metadata().map_err(failed)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(BlockError::NotADisk { path });
        }
        // The end of a block device is its size, too.
        let size = seek(&file, SeekFrom::End(0)).map_err(|error| failed(error.into()))?;
        let capacity = size
            .checked_next_multiple_of(SECTOR)
            .filter(|capacity| i64::try_from(*capacity).is_ok())
            .ok_or_else(|| BlockError::Format {
                path: path.clone(),
                format: "raw",
                reason: format!("{size} bytes are too many"),
            })?;
        let info = BlockInfo {
            capacity,
            logical_block_size: SECTOR as u32,
            physical_block_size: PAGE,
            read_only,
            discard: !read_only,
            write_zeroes: !read_only,
        };
        Ok(Self {
            file,
            info,
            tail: capacity - size,
            path,
            failures: FailureLog::default(),
        })
    }

    /// The descriptor.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// What to do about a read that met the end of the file with `left` bytes
    /// to go: `into` is what remains of its buffers.
    pub fn end_of_file(&self, into: &Scatter<'_>) -> io::Result<()> {
        if into.length() > self.tail {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the file became shorter while it was open",
            ));
        }
        into.zero();
        Ok(())
    }

    fn write_zero_bytes(&self, mut offset: u64, mut length: u64) -> io::Result<()> {
        while length > 0 {
            let count = length.min(ZEROES as u64);
            write_all(
                &self.file,
                offset,
                &Scatter::of_const(&ZERO_BYTES[..count as usize]),
            )?;
            offset += count;
            length -= count;
        }
        Ok(())
    }
}

/// The ways to make a range zero without writing, best first.
pub(crate) fn zero_modes(may_unmap: bool) -> &'static [FallocateFlags] {
    const PUNCH: FallocateFlags = FallocateFlags::PUNCH_HOLE.union(FallocateFlags::KEEP_SIZE);
    const ZERO: FallocateFlags = FallocateFlags::ZERO_RANGE.union(FallocateFlags::KEEP_SIZE);
    if may_unmap { &[PUNCH, ZERO] } else { &[ZERO] }
}

/// Whether the file system merely doesn't know how.
pub(crate) fn is_unsupported(error: &io::Error) -> bool {
    // A block device answers EINVAL to a range that isn't whole blocks.
    matches!(
        error.raw_os_error(),
        Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL | libc::ENODEV)
    )
}

/// Fills `into` from `offset`; what is left at the end of the file goes to
/// `end`.
pub(crate) fn read_all(
    file: &File,
    mut offset: u64,
    mut into: Scatter<'_>,
    end: impl FnOnce(&Scatter<'_>) -> io::Result<()>,
) -> io::Result<()> {
    while into.length() > 0 {
        match into.read_some(file.as_fd(), offset) {
            Ok(0) => return end(&into),
            Ok(count) => {
                into.advance(count);
                offset += count;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Writes all of `from` at `offset`.
pub(crate) fn write_all(file: &File, offset: u64, from: &Source<'_>) -> io::Result<()> {
    let mut done = 0;
    while done < from.length() {
        let rest = from.part(done, from.length() - done);
        match rest.write_some(file.as_fd(), offset + done) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// `fallocate` that answers whether the file system can do it.
pub(crate) fn try_fallocate(
    file: &File,
    mode: FallocateFlags,
    offset: u64,
    length: u64,
) -> io::Result<bool> {
    loop {
        match fallocate(file, mode, offset, length) {
            Ok(()) => return Ok(true),
            Err(Errno::INTR) => {}
            Err(error) => {
                let error = io::Error::from(error);
                return if is_unsupported(&error) {
                    Ok(false)
                } else {
                    Err(error)
                };
            }
        }
    }
}

/// A raw image; see the module.
pub(crate) struct Raw {
    file: Arc<RawFile>,
    engine: IoEngine,
}

impl Raw {
    pub fn new(file: RawFile, engine: IoEngine) -> Self {
        let file = Arc::new(file);
        Self { file, engine }
    }

    fn look<T>(&self, action: Action, result: io::Result<T>) -> io::Result<T> {
        self.file.failures.look(&self.file.path, action, result)
    }
}

impl Storage for Raw {
    fn info(&self) -> BlockInfo {
        self.file.info
    }

    fn path(&self) -> &Path {
        &self.file.path
    }

    fn read(&self, offset: u64, into: Scatter<'_>) -> io::Result<()> {
        let file = &self.file;
        let result = read_all(&file.file, offset, into, |rest| file.end_of_file(rest));
        self.look(Action::Read, result)
    }

    fn write(&self, offset: u64, from: Source<'_>) -> io::Result<()> {
        self.look(Action::Write, write_all(&self.file.file, offset, &from))
    }

    fn flush(&self) -> io::Result<()> {
        if self.file.info.read_only {
            return Ok(());
        }
        let result = fdatasync(&self.file.file).map_err(io::Error::from);
        self.look(Action::Flush, result)
    }

    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        // A wish: a file system that can't has fulfilled it.
        let result = try_fallocate(&self.file.file, zero_modes(true)[0], offset, length);
        self.look(Action::Discard, result).map(drop)
    }

    fn write_zeroes(&self, offset: u64, length: u64, may_unmap: bool) -> io::Result<()> {
        let attempt = || {
            for &mode in zero_modes(may_unmap) {
                if try_fallocate(&self.file.file, mode, offset, length)? {
                    return Ok(());
                }
            }
            self.file.write_zero_bytes(offset, length)
        };
        self.look(Action::WriteZeroes, attempt())
    }

    fn native_queue(&self, depth: u16) -> Option<io::Result<Box<dyn BlockQueue>>> {
        if self.engine == IoEngine::Threads {
            return None;
        }
        let file = self.file.clone();
        let made = on_launcher(move || {
            let info = file.info;
            UringQueue::new(file, info, depth)
        });
        match made.and_then(|made| made) {
            Ok(queue) => Some(Ok(Box::new(queue))),
            Err(error) if self.engine == IoEngine::Uring => Some(Err(error)),
            Err(error) => {
                tracing::info!(%error, "io_uring is not to be had here; threads do disk I/O");
                None
            }
        }
    }
}

impl RawFile {
    /// The name it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }
}
