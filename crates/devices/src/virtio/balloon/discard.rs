//! Gives the host's memory behind guest pages back.
//!
//! The pages stay RAM: the guest may touch them at any time and finds zeroes.

use std::io;

use favo_accel::{GuestMemory, PAGE_SIZE};
use favo_types::GuestAddress;
use rustix::fs::{FallocateFlags, fallocate};

/// Discards the whole pages in `length` bytes at `address`, which must lie in
/// one region of RAM; `false` if they don't. Bytes of pages that are only
/// partly covered are kept. Code caches and dirty logs hear of it.
pub fn discard(memory: &GuestMemory, address: GuestAddress, length: u64) -> io::Result<bool> {
    let Some((region, offset)) = memory.find(address, length) else {
        return Ok(false);
    };
    let start = offset.next_multiple_of(PAGE_SIZE);
    let end = (offset + length) / PAGE_SIZE * PAGE_SIZE;
    if start >= end {
        return Ok(true);
    }
    match memory.memfd() {
        Some(memfd) => {
            // Regions follow each other in the file.
            let before: u64 = memory
                .regions()
                .iter()
                .take_while(|other| other.start < region.start)
                .map(|other| other.size.bytes())
                .sum();
            fallocate(
                memfd,
                FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
                before + start,
                end - start,
            )?;
        }
        None => {
            let pointer = region.host_address.0.wrapping_add(start as usize);
            // SAFETY: the range lies in the mapping of `region`, which
            // `memory` keeps alive, and nothing but the guest's bytes, which
            // no Rust reference ever points at, is in it.
            let result = unsafe {
                libc::madvise(pointer.cast(), (end - start) as usize, libc::MADV_DONTNEED)
            };
            if result != 0 {
                return Err(io::Error::last_os_error());
            }
        }
    }
    memory.mark_written(GuestAddress(region.start.0 + start), end - start);
    Ok(true)
}
