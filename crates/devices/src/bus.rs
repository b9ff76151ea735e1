//! An address space of devices: the I/O ports, or the memory that is not RAM.
//!
//! A processor's thread that exits for an access calls [`Bus::read`] or
//! [`Bus::write`]; the bus finds the device and calls it with no lock held, so
//! a device may insert, remove and move ranges, its own included, while it
//! handles an access (PCI does, when a guest moves a BAR).
//!
//! Nothing here ever fails for a guest: reads of nothing return all ones and
//! are counted, as are writes to nothing.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use favo_accel::AccessSize;

/// A device as its driver sees it. Called from any processor's thread, also
/// from several at once.
pub trait BusDevice: Send + Sync {
    /// Reads `size` bytes at `offset` from the start of the device's range.
    /// Only the low `size` bytes of the result count. The access lies wholly
    /// in the range; it need not be aligned.
    fn read(&self, offset: u64, size: AccessSize) -> u64;

    /// Writes the low `size` bytes of `value` (the rest is zero).
    fn write(&self, offset: u64, size: AccessSize, value: u64);
}

/// Why a range can't be put on a bus, or taken off it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BusError {
    /// Part of the range belongs to another device.
    #[error(
        "{name} can't have {start:#x}..={end:#x} on the {bus} bus: \
         {other} has {other_start:#x}..={other_end:#x}"
    )]
    Overlap {
        /// The bus.
        bus: &'static str,
        /// The newcomer.
        name: String,
        /// Its first address.
        start: u64,
        /// Its last address.
        end: u64,
        /// Who is there already.
        other: String,
        /// Its first address.
        other_start: u64,
        /// Its last address.
        other_end: u64,
    },
    /// The range is empty or leaves the address space.
    #[error(
        "{name} can't have {length:#x} addresses at {start:#x} on the {bus} bus: \
         it has {start:#x}..={limit:#x} at most, and at least one"
    )]
    OutOfRange {
        /// The bus.
        bus: &'static str,
        /// The newcomer.
        name: String,
        /// Its first address.
        start: u64,
        /// How many addresses it asked for.
        length: u64,
        /// The last address of the bus.
        limit: u64,
    },
    /// No range starts there.
    #[error("no device starts at {start:#x} on the {bus} bus")]
    NotFound {
        /// The bus.
        bus: &'static str,
        /// Where one was expected.
        start: u64,
    },
}

#[derive(Clone)]
struct Range {
    start: u64,
    /// Inclusive.
    end: u64,
    name: Arc<str>,
    device: Arc<dyn BusDevice>,
}

/// A set of address ranges, each with a device.
pub struct Bus {
    name: &'static str,
    limit: u64,
    /// Ascending, disjoint. Locked only to look a range up or to change the
    /// set, never while a device runs.
    ranges: RwLock<Vec<Range>>,
    missed_reads: AtomicU64,
    missed_writes: AtomicU64,
}

/// What an access meets.
enum Target {
    Device(Arc<dyn BusDevice>, u64),
    Nothing,
    /// Begins or ends in the middle of a range.
    Straddles,
}

impl Bus {
    /// The I/O port space: addresses 0 to 0xffff.
    pub fn ports() -> Self {
        Self::new("port", 0xffff)
    }

    /// The guest-physical address space outside RAM.
    pub fn mmio() -> Self {
        Self::new("memory", u64::MAX)
    }

    fn new(name: &'static str, limit: u64) -> Self {
        Self {
            name,
            limit,
            ranges: RwLock::default(),
            missed_reads: AtomicU64::new(0),
            missed_writes: AtomicU64::new(0),
        }
    }

    /// Puts `device` at `start`, for `length` addresses. `name` is what errors
    /// and the listing call it.
    pub fn insert(
        &self,
        name: &str,
        start: u64,
        length: u64,
        device: Arc<dyn BusDevice>,
    ) -> Result<(), BusError> {
        let mut ranges = self.ranges.write().unwrap_or_else(PoisonError::into_inner);
        let range = Range {
            start,
            end: self.last_address(name, start, length)?,
            name: name.into(),
            device,
        };
        self.insert_range(&mut ranges, range)
    }

    /// Takes the range that starts at `start` off the bus. An access that has
    /// already found the device may still be running when this returns.
    pub fn remove(&self, start: u64) -> Result<Arc<dyn BusDevice>, BusError> {
        let mut ranges = self.ranges.write().unwrap_or_else(PoisonError::into_inner);
        let index = self.index_of(&ranges, start)?;
        Ok(ranges.remove(index).device)
    }

    /// Moves the range that starts at `from` to `to`. If that is refused it
    /// stays where it was.
    pub fn move_range(&self, from: u64, to: u64) -> Result<(), BusError> {
        let mut ranges = self.ranges.write().unwrap_or_else(PoisonError::into_inner);
        let index = self.index_of(&ranges, from)?;
        let old = ranges.remove(index);
        let moved = to
            .checked_add(old.end - old.start)
            .filter(|&end| end <= self.limit)
            .ok_or_else(|| BusError::OutOfRange {
                bus: self.name,
                name: old.name.to_string(),
                start: to,
                length: old.end - old.start + 1,
                limit: self.limit,
            })
            .and_then(|end| {
                let new = Range {
                    start: to,
                    end,
                    ..old.clone()
                };
                self.insert_range(&mut ranges, new)
            });
        if moved.is_err() {
            ranges.insert(index, old);
        }
        moved
    }

    /// Reads for a processor. Bytes that no device has are 0xff.
    pub fn read(&self, address: u64, size: AccessSize) -> u64 {
        match self.find(address, size) {
            Target::Device(device, offset) => size.truncate(device.read(offset, size)),
            Target::Nothing => {
                self.missed_reads.fetch_add(1, Ordering::Relaxed);
                size.truncate(u64::MAX)
            }
            Target::Straddles => (0..size.bytes() as u64).rev().fold(0, |value, byte| {
                let byte = address
                    .checked_add(byte)
                    .map_or(0xff, |address| self.read(address, AccessSize::Byte));
                value << 8 | byte
            }),
        }
    }

    /// Writes for a processor. Bytes that no device has are lost.
    pub fn write(&self, address: u64, size: AccessSize, value: u64) {
        match self.find(address, size) {
            Target::Device(device, offset) => device.write(offset, size, size.truncate(value)),
            Target::Nothing => {
                self.missed_writes.fetch_add(1, Ordering::Relaxed);
            }
            Target::Straddles => {
                for (byte, value) in value.to_le_bytes()[..size.bytes()].iter().enumerate() {
                    if let Some(address) = address.checked_add(byte as u64) {
                        self.write(address, AccessSize::Byte, u64::from(*value));
                    }
                }
            }
        }
    }

    /// How many reads and writes met no device.
    pub fn missed(&self) -> (u64, u64) {
        (
            self.missed_reads.load(Ordering::Relaxed),
            self.missed_writes.load(Ordering::Relaxed),
        )
    }

    /// Every range: name, first and last address, ascending.
    pub fn list(&self) -> Vec<(String, u64, u64)> {
        let ranges = self.ranges.read().unwrap_or_else(PoisonError::into_inner);
        ranges
            .iter()
            .map(|range| (range.name.to_string(), range.start, range.end))
            .collect()
    }

    fn find(&self, address: u64, size: AccessSize) -> Target {
        let ranges = self.ranges.read().unwrap_or_else(PoisonError::into_inner);
        let last = address.checked_add(size.bytes() as u64 - 1);
        // The first range that ends at or after the access's first byte is the
        // only one that can hold all of it.
        let index = ranges.partition_point(|range| range.end < address);
        match (ranges.get(index), last) {
            (None, _) => Target::Nothing,
            (Some(range), Some(last)) if range.start <= address && last <= range.end => {
                Target::Device(range.device.clone(), address - range.start)
            }
            (Some(range), Some(last)) if last < range.start => Target::Nothing,
            // A byte has no other bytes, so this ends after one step.
            _ => Target::Straddles,
        }
    }

    fn last_address(&self, name: &str, start: u64, length: u64) -> Result<u64, BusError> {
        length
            .checked_sub(1)
            .and_then(|rest| start.checked_add(rest))
            .filter(|&end| end <= self.limit)
            .ok_or_else(|| BusError::OutOfRange {
                bus: self.name,
                name: name.to_owned(),
                start,
                length,
                limit: self.limit,
            })
    }

    fn insert_range(&self, ranges: &mut Vec<Range>, new: Range) -> Result<(), BusError> {
        let index = ranges.partition_point(|range| range.end < new.start);
        if let Some(other) = ranges.get(index).filter(|other| other.start <= new.end) {
            return Err(BusError::Overlap {
                bus: self.name,
                name: new.name.to_string(),
                start: new.start,
                end: new.end,
                other: other.name.to_string(),
                other_start: other.start,
                other_end: other.end,
            });
        }
        ranges.insert(index, new);
        Ok(())
    }

    fn index_of(&self, ranges: &[Range], start: u64) -> Result<usize, BusError> {
        ranges
            .binary_search_by_key(&start, |range| range.start)
            .map_err(|_| BusError::NotFound {
                bus: self.name,
                start,
            })
    }
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bus")
            .field("name", &self.name)
            .field("ranges", &self.list())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "bus_test.rs"]
mod test;
