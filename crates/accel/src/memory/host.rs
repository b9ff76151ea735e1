//! What guest memory asks of the host's memory management, the unsafe of it
//! in one place.
//!
//! Called by [`super`] only, with ranges that lie in a mapping of guest memory
//! it owns. Nothing here is ever turned into a Rust reference.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use super::{HostPointer, PAGE_SIZE};

/// Bits of an entry of `/proc/self/pagemap` (Linux,
/// Documentation/admin-guide/mm/pagemap.rst).
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const OF_A_FILE: u64 = 1 << 61;

/// Puts `length` bytes of `file` from `offset` in place of what is mapped at
/// `at`, copied page by page as they are written.
pub(super) fn map_private(
    at: HostPointer,
    length: u64,
    file: impl AsFd,
    offset: u64,
) -> io::Result<()> {
    let offset = i64::try_from(offset).map_err(io::Error::other)?;
    let fd = file.as_fd().as_raw_fd();
    map_fixed(at, length, libc::MAP_PRIVATE, fd, offset)
}

/// Puts fresh memory in place of what is mapped at `at`.
pub(super) fn map_zeroes(at: HostPointer, length: u64) -> io::Result<()> {
    map_fixed(at, length, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
}

fn map_fixed(at: HostPointer, length: u64, flags: i32, fd: i32, offset: i64) -> io::Result<()> {
    let length = usize::try_from(length).map_err(io::Error::other)?;
    // SAFETY: the caller's range lies in its own mapping of guest memory,
    // which this replaces at the same addresses; nobody holds a reference.
    let mapped = unsafe {
        libc::mmap(
            at.0.cast(),
            length,
            libc::PROT_READ | libc::PROT_WRITE,
            flags | libc::MAP_FIXED | libc::MAP_NORESERVE,
            fd,
            offset,
        )
    };
    if mapped == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Gives anonymous pages back; they read as zeroes from here on.
pub(super) fn discard_anonymous(at: HostPointer, length: u64) -> io::Result<()> {
    let length = usize::try_from(length).map_err(io::Error::other)?;
    // SAFETY: the range lies in the caller's mapping of guest memory, in which
    // there is nothing but the guest's bytes.
    if unsafe { libc::madvise(at.0.cast(), length, libc::MADV_DONTNEED) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// A boxed slice of zeroes that takes no memory until it is used.
pub(super) fn zeroed<T: ZeroIsValid>(count: usize) -> Box<[T]> {
    // SAFETY: zero bytes are a value of `T`, as its trait promises.
    unsafe { Box::<[T]>::new_zeroed_slice(count).assume_init() }
}

/// A type of which all-zero bytes are a value.
///
/// # Safety
///
/// They are.
pub(super) unsafe trait ZeroIsValid {}
// SAFETY: an integer.
unsafe impl ZeroIsValid for std::sync::atomic::AtomicU8 {}
// SAFETY: an integer.
unsafe impl ZeroIsValid for std::sync::atomic::AtomicU32 {}

/// `/proc/self/pagemap`, if it was opened early.
static PAGEMAP: OnceLock<File> = OnceLock::new();

/// Opens what tells written pages from others, for the snapshots and clones of
/// a process that will hide its memory from debuggers: after that the kernel
/// lets only root open it.
///
/// # Errors
/// There is no `/proc`.
pub fn keep_pagemap() -> io::Result<()> {
    let pagemap = open_pagemap()?;
    // Who was first has the same file.
    let _ = PAGEMAP.set(pagemap);
    Ok(())
}

fn open_pagemap() -> io::Result<File> {
    File::open("/proc/self/pagemap")
}

/// The pages of a private mapping that are memory of this process alone: not
/// untouched, and not the mapped file's. As offsets from `at`.
pub(super) fn own_pages(at: HostPointer, length: u64) -> io::Result<Vec<Range<u64>>> {
    const BATCH: usize = 64 << 10;
    let opened;
    let pagemap = match PAGEMAP.get() {
        Some(kept) => kept,
        None => {
            opened = open_pagemap()?;
            &opened
        }
    };
    let first = at.0 as u64 / PAGE_SIZE;
    let pages = length / PAGE_SIZE;
    let mut found: Vec<Range<u64>> = Vec::new();
    let mut bytes = vec![0; BATCH * 8];
    let mut page = 0;
    while page < pages {
        let count = (pages - page).min(BATCH as u64);
        let batch = &mut bytes[..count as usize * 8];
        pagemap.read_exact_at(batch, (first + page) * 8)?;
        for (index, entry) in (page..).zip(batch.as_chunks::<8>().0) {
            let entry = u64::from_le_bytes(*entry);
            if entry & (PRESENT | SWAPPED) != 0 && entry & OF_A_FILE == 0 {
                push(&mut found, index * PAGE_SIZE..(index + 1) * PAGE_SIZE);
            }
        }
        page += count;
    }
    Ok(found)
}

/// The parts of `range` of a file that are not holes, in whole pages.
pub(super) fn file_data(file: impl AsFd, range: Range<u64>) -> io::Result<Vec<Range<u64>>> {
    let mut found = Vec::new();
    let mut at = range.start;
    while at < range.end {
        let start = match seek(&file, SeekFrom::Data(at)) {
            Ok(start) => start,
            // Nothing but a hole follows.
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        if start >= range.end {
            break;
        }
        let end = seek(&file, SeekFrom::Hole(start))?.min(range.end);
        let start = start.max(range.start);
        push(
            &mut found,
            start / PAGE_SIZE * PAGE_SIZE..end.next_multiple_of(PAGE_SIZE).min(range.end),
        );
        at = end.max(at + 1);
    }
    Ok(found)
}

/// Adds a range behind the others, joined to the last if they touch.
fn push(ranges: &mut Vec<Range<u64>>, next: Range<u64>) {
    match ranges.last_mut() {
        Some(last) if next.start <= last.end => last.end = last.end.max(next.end),
        _ => ranges.push(next),
    }
}

/// Any ranges as ascending ones that don't touch.
pub(super) fn union(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.sort_by_key(|range| range.start);
    let mut result = Vec::with_capacity(ranges.len());
    for range in ranges {
        push(&mut result, range);
    }
    result
}
