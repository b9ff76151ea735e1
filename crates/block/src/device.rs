//! What a block device needs of a disk.
//!
//! Submissions are collected and handed over together; completions are
//! collected when an event descriptor says that there are some. Requests of
//! one queue complete in any order.

use std::io;
use std::os::fd::BorrowedFd;

use crate::RawBuffer;

/// What a disk is like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockInfo {
    /// Bytes; a multiple of 512.
    pub capacity: u64,
    /// Bytes the disk reads and writes at least: a power of two from 512.
    pub logical_block_size: u32,
    /// Bytes it likes to read and write: a power of two, at least the logical
    /// block size.
    pub physical_block_size: u32,
    /// Nothing may change it.
    pub read_only: bool,
    /// Space can be given back.
    pub discard: bool,
    /// Ranges can be made zero without writing zeroes.
    pub write_zeroes: bool,
}

impl BlockInfo {
    /// Whether `length` bytes at `offset` lie in the disk, and may be changed
    /// if they are to be.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for a range that leaves the disk or overflows,
    /// `PermissionDenied` for a change of a read-only disk.
    pub fn check(&self, offset: u64, length: u64, change: bool) -> io::Result<()> {
        if change && self.read_only {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                "the disk is read-only",
            ));
        }
        match offset.checked_add(length) {
            Some(end) if end <= self.capacity => Ok(()),
            _ => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "{length} bytes at {offset} are not within the disk's {} bytes",
                    self.capacity
                ),
            )),
        }
    }
}

/// What a disk does. Offsets and lengths are in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BlockOperation<'a> {
    /// Fills the buffers from the disk.
    Read {
        /// Where on the disk.
        offset: u64,
        /// Into where; together the length of the request.
        buffers: &'a [RawBuffer],
    },
    /// Writes the buffers to the disk.
    Write {
        /// Where on the disk.
        offset: u64,
        /// From where.
        buffers: &'a [RawBuffer],
    },
    /// Makes durable every write that was completed before this was submitted,
    /// on any queue.
    Flush,
    /// The bytes don't matter any more.
    Discard {
        /// The first.
        offset: u64,
        /// How many.
        length: u64,
    },
    /// The bytes become zero.
    WriteZeroes {
        /// The first.
        offset: u64,
        /// How many.
        length: u64,
        /// Their space may be given back.
        may_unmap: bool,
    },
}

impl BlockOperation<'_> {
    /// Whether a disk like `info` can be asked for this; see
    /// [`BlockInfo::check`].
    pub(crate) fn check(&self, info: &BlockInfo) -> io::Result<()> {
        match *self {
            Self::Read { offset, buffers } => info.check(offset, total(buffers)?, false),
            Self::Write { offset, buffers } => info.check(offset, total(buffers)?, true),
            Self::Flush => Ok(()),
            Self::Discard { offset, length } | Self::WriteZeroes { offset, length, .. } => {
                info.check(offset, length, true)
            }
        }
    }
}

fn total(buffers: &[RawBuffer]) -> io::Result<u64> {
    buffers
        .iter()
        .try_fold(0u64, |sum, buffer| sum.checked_add(buffer.length as u64))
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the buffers are too long"))
}

/// A request that is done.
#[derive(Debug)]
pub struct BlockCompletion {
    /// What was submitted with it.
    pub token: u64,
    /// How it went.
    pub result: io::Result<()>,
}

/// A disk, shared by the queues of a device.
pub trait BlockDevice: Send + Sync {
    /// What it is like. Constant.
    fn info(&self) -> BlockInfo;

    /// A way to it for one thread, with room for `depth` requests at a time.
    fn queue(&self, depth: u16) -> io::Result<Box<dyn BlockQueue>>;
}

/// One thread's way to a disk. Dropping it waits for what is in flight.
pub trait BlockQueue: Send {
    /// Adds a request to the batch. `token` comes back with its completion;
    /// whatever goes wrong is told there, too.
    ///
    /// # Safety
    ///
    /// The buffers must be valid memory until the request has completed.
    unsafe fn submit(&mut self, token: u64, operation: BlockOperation<'_>);

    /// Starts all that was submitted since the last call. After an error, which
    /// means that some of it was not started, it is called again soon.
    fn commit(&mut self) -> io::Result<()>;

    /// Takes the completions there are.
    fn complete(&mut self, completions: &mut Vec<BlockCompletion>);

    /// Becomes readable when there are completions; [`BlockQueue::complete`]
    /// makes it unreadable again, and a completion after that readable once
    /// more.
    fn event(&self) -> BorrowedFd<'_>;
}
