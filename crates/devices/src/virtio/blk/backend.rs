//! What a block device needs of a disk.
//!
//! Submissions are collected and handed over together; completions are
//! collected when an event descriptor says that there are some. Requests of
//! one queue complete in any order.

use std::io;
use std::os::fd::BorrowedFd;

/// What a disk is like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DiskInfo {
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

/// Host memory that a request reads or writes: a piece of guest RAM. The guest
/// may change it at any moment, so it is never made a slice.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RawBuffer {
    /// Where it starts.
    pub pointer: *mut u8,
    /// Its length in bytes.
    pub length: usize,
}

// SAFETY: it is an address; whoever accesses it needs `unsafe` on its own.
unsafe impl Send for RawBuffer {}
// SAFETY: as above.
unsafe impl Sync for RawBuffer {}

/// What a disk does. Offsets and lengths are in bytes, and lie in the disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DiskOperation<'a> {
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

/// A request that is done.
#[derive(Debug)]
pub struct DiskCompletion {
    /// What was submitted with it.
    pub token: u64,
    /// How it went.
    pub result: io::Result<()>,
}

/// A disk, shared by the queues of a device.
pub trait Disk: Send + Sync {
    /// What it is like. Constant.
    fn info(&self) -> DiskInfo;

    /// A way to it for one thread, with room for `depth` requests at a time.
    fn queue(&self, depth: u16) -> io::Result<Box<dyn DiskQueue>>;
}

/// One thread's way to a disk. Dropped only when nothing is in flight.
pub trait DiskQueue: Send {
    /// Adds a request to the batch. `token` comes back with its completion;
    /// whatever goes wrong is told there, too.
    ///
    /// # Safety
    ///
    /// The buffers must be valid memory until the request has completed.
    unsafe fn submit(&mut self, token: u64, operation: DiskOperation<'_>);

    /// Starts all that was submitted since the last call. After an error, which
    /// means that some of it was not started, it is called again soon.
    fn commit(&mut self) -> io::Result<()>;

    /// Takes the completions there are.
    fn complete(&mut self, completions: &mut Vec<DiskCompletion>);

    /// Becomes readable when there are completions; [`DiskQueue::complete`]
    /// makes it unreadable again, and a completion after that readable once
    /// more.
    fn event(&self) -> BorrowedFd<'_>;
}
