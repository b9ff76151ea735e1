//! Gives the host's memory behind guest pages back.
//!
//! The pages stay RAM: the guest may touch them at any time and finds zeroes.

use std::io;

use favo_accel::{GuestMemory, PAGE_SIZE};
use favo_types::GuestAddress;

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
    memory.discard(region, start, end - start)?;
    Ok(true)
}
