//! The guest's RAM.
//!
//! One object, shared by the engine that runs the processors and by the
//! devices that read and write it. It knows every page that was written by
//! anything other than hardware-run processors, for two readers:
//!
//! * the software CPU caches decoded code and must hear of every write to a
//!   page it cached, a device's DMA included ([`pages`]);
//! * snapshots and migration want to know which pages changed.
//!
//! Devices reach it through [`GuestMemory::backend`], which marks what it
//! writes; whoever writes through a raw host pointer calls
//! [`GuestMemory::mark_written`] afterwards.

mod host;
mod layers;
pub mod pages;

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use favo_types::{ByteCount, GuestAddress};
use vm_memory::{
    Bytes, FileOffset, GuestMemoryBackend as _, GuestMemoryMmap, GuestRegionMmap, MmapRegion,
};

pub use host::keep_pagemap;
pub use layers::Layer;
pub use pages::{PageTracker, RegionPages};

/// Bytes in the smallest page.
pub const PAGE_SIZE: u64 = 4096;

/// The view of RAM that the rust-vmm crates work on.
pub type MemoryBackend = GuestMemoryMmap<PageTracker>;

/// What RAM is made of on the host.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum MemoryBacking {
    /// Private anonymous memory with transparent huge pages: the fastest, for
    /// a machine that shares its memory with nobody.
    #[default]
    Anonymous,
    /// A memfd: can be handed to other processes (vhost-user) and mapped
    /// copy-on-write by clones.
    Memfd,
}

/// Why guest memory can't be made or reached.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// A region is empty, not page-aligned, or overlaps another.
    #[error("guest memory region of {size} at {start} is not valid: {reason}")]
    InvalidRegion {
        /// Where it starts.
        start: GuestAddress,
        /// How large it is.
        size: ByteCount,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The host has no memory for it.
    #[error(
        "the host can't map {size} of guest memory: {reason}; give the machine less with --memory"
    )]
    Map {
        /// How much was asked for.
        size: ByteCount,
        /// The host's answer.
        reason: String,
    },
    /// A file that memory is to begin as does not describe all of it.
    #[error("guest memory can't begin as a file: {0}")]
    InvalidLayer(String),
    /// An access outside RAM.
    #[error("{length} bytes at guest address {address} are not all RAM")]
    OutOfRange {
        /// Where.
        address: GuestAddress,
        /// How many.
        length: u64,
    },
}

/// The guest's RAM; cheap to clone, all clones are the same memory.
#[derive(Clone)]
pub struct GuestMemory {
    shared: Arc<Shared>,
}

struct Shared {
    backend: MemoryBackend,
    regions: Vec<RamRegion>,
    store: Mutex<Store>,
}

/// What is behind the mappings. Regions follow each other in a file without
/// gaps.
enum Store {
    Anonymous,
    Memfd(Arc<File>),
    /// The files' bytes, until a page is written.
    Layers(Vec<Layer>),
}

/// One contiguous range of RAM.
#[derive(Clone)]
pub struct RamRegion {
    /// Its first guest-physical address; page-aligned.
    pub start: GuestAddress,
    /// Its size; whole pages.
    pub size: ByteCount,
    /// Where it lies in this process.
    pub host_address: HostPointer,
    /// What is known of its pages.
    pub pages: Arc<RegionPages>,
}

/// The host address of a [`RamRegion`]. Valid for as long as any clone of the
/// [`GuestMemory`] it came from lives. The guest and devices write behind it
/// at any time, so it is never turned into a Rust reference.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HostPointer(pub *mut u8);

// SAFETY: the pointer is only an address; every access through it is unsafe on
// its own and concerns memory that is shared with the guest by design.
unsafe impl Send for HostPointer {}
// SAFETY: as above.
unsafe impl Sync for HostPointer {}

impl GuestMemory {
    /// Maps RAM at the given ranges, all of it zero. Nothing is touched: the
    /// host supplies pages as they are used.
    pub fn new(
        ranges: &[(GuestAddress, ByteCount)],
        backing: MemoryBacking,
    ) -> Result<Self, MemoryError> {
        check_ranges(ranges)?;
        let total = total(ranges);
        let store = match backing {
            MemoryBacking::Anonymous => Store::Anonymous,
            MemoryBacking::Memfd => {
                Store::Memfd(Arc::new(make_memfd(total).map_err(map_error(total))?))
            }
        };
        Self::map(ranges, store)
    }

    /// Maps RAM that begins as `layers` say, the lowest first. Pages are read
    /// when they are used and copied when they are written: how long this
    /// takes does not depend on how much memory there is. The files must not
    /// change or shrink while the memory lives.
    pub fn copy_on_write(
        ranges: &[(GuestAddress, ByteCount)],
        layers: Vec<Layer>,
    ) -> Result<Self, MemoryError> {
        check_ranges(ranges)?;
        layers::check(total(ranges), &layers)?;
        let memory = Self::map(ranges, Store::Layers(layers.clone()))?;
        memory
            .lay_upper(&layers)
            .map_err(|error| map_error(memory.size())(error))?;
        Ok(memory)
    }

    fn map(ranges: &[(GuestAddress, ByteCount)], store: Store) -> Result<Self, MemoryError> {
        let total = total(ranges);
        let map_error = |reason: String| MemoryError::Map {
            size: total,
            reason,
        };
        let mut mapped = Vec::with_capacity(ranges.len());
        let mut regions = Vec::with_capacity(ranges.len());
        let mut file_offset = 0;
        for &(start, size) in ranges {
            let region = map_region(size, &store, file_offset)
                .map_err(|error| map_error(error.to_string()))?;
            file_offset += size.bytes();
            regions.push(RamRegion {
                start,
                size,
                host_address: HostPointer(region.as_ptr()),
                pages: region.bitmap().pages().clone(),
            });
            let region = GuestRegionMmap::new(region, vm_memory::GuestAddress(start.0))
                .ok_or_else(|| map_error(format!("{start} is too high")))?;
            mapped.push(region);
        }
        let backend =
            GuestMemoryMmap::from_regions(mapped).map_err(|error| map_error(error.to_string()))?;
        Ok(Self {
            shared: Arc::new(Shared {
                backend,
                regions,
                store: Mutex::new(store),
            }),
        })
    }

    /// The parts of a range of the file that are in a region: the region, the
    /// part from the region's start, and its offset in the file.
    fn in_regions(&self, range: &Range<u64>) -> Vec<(&RamRegion, Range<u64>, u64)> {
        let mut before = 0;
        let mut parts = Vec::new();
        for region in self.regions() {
            let end = before + region.size.bytes();
            let (from, to) = (range.start.max(before), range.end.min(end));
            if from < to {
                parts.push((region, from - before..to - before, from));
            }
            before = end;
        }
        parts
    }

    /// Where in a file of all regions, one after the other, an address of RAM
    /// lies.
    pub fn file_offset(&self, address: GuestAddress) -> Option<u64> {
        let mut before = 0;
        for region in self.regions() {
            if let Some(offset) = address.checked_offset_from(region.start)
                && offset < region.size.bytes()
            {
                return Some(before + offset);
            }
            before += region.size.bytes();
        }
        None
    }

    /// Which of RAM may be something else than zeroes, in bytes from the start
    /// of a file of all regions: whole pages, ascending, not touching. What is
    /// written meanwhile may be missing.
    pub fn populated(&self) -> io::Result<Vec<Range<u64>>> {
        self.populated_in(&(0..self.size().bytes()))
    }

    /// [`GuestMemory::populated`] of a part of RAM, whole pages. Reading what is
    /// not in it would make the host supply pages for nothing.
    pub fn populated_in(&self, within: &Range<u64>) -> io::Result<Vec<Range<u64>>> {
        let store = self.store();
        let mut found = Vec::new();
        for (region, part, offset) in self.in_regions(within) {
            let length = part.end - part.start;
            if let Store::Memfd(memfd) = &*store {
                found.extend(host::file_data(memfd, offset..offset + length)?);
            } else {
                let at = HostPointer(region.host_address.0.wrapping_add(part.start as usize));
                let own = host::own_pages(at, length)?.into_iter();
                found.extend(own.map(|range| offset + range.start..offset + range.end));
            }
        }
        if let Store::Layers(layers) = &*store {
            for layer in layers {
                let whole = std::iter::once(within.clone()).filter(|_| layer.ranges.is_none());
                for range in layer.ranges.iter().flatten().cloned().chain(whole) {
                    let range = range.start.max(within.start)..range.end.min(within.end);
                    if range.start < range.end {
                        found.extend(host::file_data(&*layer.file, range)?);
                    }
                }
            }
        }
        Ok(host::union(found))
    }

    /// Reads bytes of a file of all regions, one after the other.
    pub fn read_file_range(&self, offset: u64, buffer: &mut [u8]) -> Result<(), MemoryError> {
        let mut done = 0;
        let range = offset..offset.saturating_add(buffer.len() as u64);
        for (region, part, _) in self.in_regions(&range) {
            let length = (part.end - part.start) as usize;
            let address = GuestAddress(region.start.0 + part.start);
            self.read(address, &mut buffer[done..done + length])?;
            done += length;
        }
        if done < buffer.len() {
            return Err(out_of_range(GuestAddress(offset), buffer.len()));
        }
        Ok(())
    }

    /// Gives the host's memory behind whole pages of a region back: `length`
    /// bytes from `offset`, which may then read as zeroes. It counts as a write.
    pub fn discard(&self, region: &RamRegion, offset: u64, length: u64) -> io::Result<()> {
        let whole = offset.is_multiple_of(PAGE_SIZE) && length.is_multiple_of(PAGE_SIZE);
        let inside = offset
            .checked_add(length)
            .is_some_and(|end| end <= region.size.bytes());
        let ours = self
            .regions()
            .iter()
            .any(|own| own.host_address == region.host_address && own.size == region.size);
        if !(whole && inside && ours) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let at = HostPointer(region.host_address.0.wrapping_add(offset as usize));
        match &*self.store() {
            Store::Anonymous => host::discard_anonymous(at, length)?,
            Store::Memfd(memfd) => {
                let before = self.file_offset(region.start).unwrap_or(0);
                let mode =
                    rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
                rustix::fs::fallocate(memfd, mode, before + offset, length)?;
            }
            // To discard the copy would bring the file's page back.
            Store::Layers(_) => host::map_zeroes(at, length)?,
        }
        self.mark_written(GuestAddress(region.start.0 + offset), length);
        Ok(())
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        self.shared
            .store
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The view devices use. Every write through it is recorded.
    pub fn backend(&self) -> &MemoryBackend {
        &self.shared.backend
    }

    /// The contiguous ranges, ascending.
    pub fn regions(&self) -> &[RamRegion] {
        &self.shared.regions
    }

    /// The file behind it, if [`MemoryBacking::Memfd`] was asked for. Regions
    /// follow each other in it without gaps.
    pub fn memfd(&self) -> Option<Arc<File>> {
        match &*self.store() {
            Store::Memfd(memfd) => Some(memfd.clone()),
            Store::Anonymous | Store::Layers(_) => None,
        }
    }

    /// How much RAM there is.
    pub fn size(&self) -> ByteCount {
        ByteCount(
            self.regions()
                .iter()
                .map(|region| region.size.bytes())
                .sum(),
        )
    }

    /// The region that holds all of `length` bytes at `address`, and the
    /// offset of `address` in it.
    pub fn find(&self, address: GuestAddress, length: u64) -> Option<(&RamRegion, u64)> {
        self.regions().iter().find_map(|region| {
            let offset = address.checked_offset_from(region.start)?;
            let fits = offset.checked_add(length)? <= region.size.bytes();
            fits.then_some((region, offset))
        })
    }

    /// Copies guest memory out. Fails unless all of it is RAM.
    pub fn read(&self, address: GuestAddress, buffer: &mut [u8]) -> Result<(), MemoryError> {
        self.backend()
            .read_slice(buffer, vm_memory::GuestAddress(address.0))
            .map_err(|_| out_of_range(address, buffer.len()))
    }

    /// Copies into guest memory. Fails, having written nothing, unless all of
    /// it is RAM.
    pub fn write(&self, address: GuestAddress, bytes: &[u8]) -> Result<(), MemoryError> {
        if !self
            .backend()
            .check_range(vm_memory::GuestAddress(address.0), bytes.len())
        {
            return Err(out_of_range(address, bytes.len()));
        }
        self.backend()
            .write_slice(bytes, vm_memory::GuestAddress(address.0))
            .map_err(|_| out_of_range(address, bytes.len()))
    }

    /// Records a write that did not go through [`GuestMemory::backend`]. Call
    /// it after the bytes are there.
    pub fn mark_written(&self, address: GuestAddress, length: u64) {
        for region in self.regions() {
            let start = region.start.0.max(address.0);
            let end = (region.start.0 + region.size.bytes()).min(address.0.saturating_add(length));
            if start < end {
                region
                    .pages
                    .mark_written(start - region.start.0, end - start);
            }
        }
    }
}

impl fmt::Debug for GuestMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(
                self.regions()
                    .iter()
                    .map(|region| (region.start, region.size)),
            )
            .finish()
    }
}

fn out_of_range(address: GuestAddress, length: usize) -> MemoryError {
    MemoryError::OutOfRange {
        address,
        length: length as u64,
    }
}

fn check_ranges(ranges: &[(GuestAddress, ByteCount)]) -> Result<(), MemoryError> {
    let mut end = Some(0u64);
    for &(start, size) in ranges {
        let reason = if size.bytes() == 0 {
            Some("it is empty")
        } else if !start.0.is_multiple_of(PAGE_SIZE) || !size.bytes().is_multiple_of(PAGE_SIZE) {
            Some("it does not begin and end on a page boundary")
        } else if end.is_none_or(|end| start.0 < end) {
            Some("it overlaps or precedes the region before it")
        } else if start
            .checked_add(size.bytes())
            .is_none_or(|end| end.0 > 1 << 52)
        {
            Some("it ends above the highest physical address")
        } else {
            None
        };
        if let Some(reason) = reason {
            return Err(MemoryError::InvalidRegion {
                start,
                size,
                reason,
            });
        }
        end = start.0.checked_add(size.bytes());
    }
    Ok(())
}

fn make_memfd(size: ByteCount) -> io::Result<File> {
    let flags = rustix::fs::MemfdFlags::CLOEXEC | rustix::fs::MemfdFlags::ALLOW_SEALING;
    let file = File::from(rustix::fs::memfd_create("favo-guest-memory", flags)?);
    file.set_len(size.bytes())?;
    Ok(file)
}

fn total(ranges: &[(GuestAddress, ByteCount)]) -> ByteCount {
    ByteCount(ranges.iter().map(|(_, size)| size.bytes()).sum())
}

fn map_error(size: ByteCount) -> impl Fn(io::Error) -> MemoryError {
    move |error| MemoryError::Map {
        size,
        reason: error.to_string(),
    }
}

fn map_region(
    size: ByteCount,
    store: &Store,
    file_offset: u64,
) -> std::io::Result<MmapRegion<PageTracker>> {
    let length = usize::try_from(size.bytes()).map_err(std::io::Error::other)?;
    let (file, flags) = match store {
        Store::Memfd(fd) => (Some(fd.try_clone()?), libc::MAP_SHARED),
        Store::Layers(layers) => {
            let lowest = layers.first().map(|layer| layer.file.try_clone());
            (lowest.transpose()?, libc::MAP_PRIVATE)
        }
        Store::Anonymous => (None, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS),
    };
    let file = file.map(|file| FileOffset::new(file, file_offset));
    let region = MmapRegion::build(
        file,
        length,
        libc::PROT_READ | libc::PROT_WRITE,
        flags | libc::MAP_NORESERVE,
    )
    .map_err(std::io::Error::other)?;
    // Best effort: without huge pages everything still works.
    // SAFETY: the range is the mapping made above, which nobody else knows yet.
    unsafe { libc::madvise(region.as_ptr().cast(), length, libc::MADV_HUGEPAGE) };
    Ok(region)
}

#[cfg(test)]
#[path = "memory_test.rs"]
mod test;
