//! Files that guest memory begins as.
//!
//! Snapshots are restored from them, and clones made: [`GuestMemory::freeze`]
//! turns what memory holds into files that never change again, and lets the
//! machine go on copy-on-write above them.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use favo_types::{ByteCount, GuestAddress};
use rustix::fs::{SealFlags, fcntl_add_seals};

use super::{GuestMemory, HostPointer, MemoryError, PAGE_SIZE, RamRegion, Store, host, make_memfd};

/// A file that guest memory begins as. Nobody writes it any more.
#[derive(Clone, Debug)]
pub struct Layer {
    /// The file: RAM's regions one after the other.
    pub file: Arc<File>,
    /// Which of it counts, in bytes from the file's start, whole pages,
    /// ascending: the rest is as in the layers below. `None` for all of it,
    /// as in the lowest.
    pub ranges: Option<Vec<Range<u64>>>,
}

/// More pieces of files than this are read instead of mapped: the host limits
/// how many mappings a process has (65,530 by default).
const MOST_MAPPINGS: usize = 8192;

/// More layers than this are made one.
pub const MOST_LAYERS: usize = 32;

/// Ranges that are closer than this, in bytes, are frozen as one: a mapping
/// costs more than a few pages.
const NEAR: u64 = 16 * PAGE_SIZE;

impl GuestMemory {
    /// Makes what memory holds now files that nobody changes any more, the
    /// lowest first, and goes on copy-on-write above them. Nothing may use the
    /// memory meanwhile. Takes the time of what was written since the last
    /// freeze; for memory in a memfd the first is nothing but a remapping.
    pub fn freeze(&self) -> io::Result<Vec<Layer>> {
        let mut store = self.store();
        let (mut layers, top) = match &*store {
            Store::Memfd(memfd) => (Vec::new(), whole(memfd.clone())),
            Store::Anonymous => {
                let file = self.copy_out(&self.own_ranges()?)?;
                (Vec::new(), whole(file))
            }
            Store::Layers(layers) => {
                let own = nearby(self.own_ranges()?);
                if own.is_empty() {
                    return Ok(layers.clone());
                }
                let pieces = |layer: &Layer| layer.ranges.as_ref().map_or(1, Vec::len);
                let mappings = layers.iter().map(pieces).sum::<usize>() + own.len();
                if mappings > MOST_MAPPINGS || layers.len() >= MOST_LAYERS {
                    let all = 0..self.size().bytes();
                    let file = self.copy_out(std::slice::from_ref(&all))?;
                    (Vec::new(), whole(file))
                } else {
                    let file = self.copy_out(&own)?;
                    let ranges = Some(own);
                    (layers.clone(), Layer { file, ranges })
                }
            }
        };
        let all = 0..self.size().bytes();
        let ranges = top.ranges.as_deref();
        for range in ranges.unwrap_or(std::slice::from_ref(&all)) {
            for (region, part, offset) in self.in_regions(range) {
                let at = HostPointer(region.host_address.0.wrapping_add(part.start as usize));
                host::map_private(at, part.end - part.start, &*top.file, offset)?;
            }
        }
        // Nobody maps it for writing any more, and nobody may again: clones
        // trust it, and this process need not be trusted.
        let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
        fcntl_add_seals(&*top.file, seals)?;
        layers.push(top);
        *store = Store::Layers(layers.clone());
        Ok(layers)
    }

    /// What is memory of this process alone, in bytes of the file.
    fn own_ranges(&self) -> io::Result<Vec<Range<u64>>> {
        let mut found = Vec::new();
        let mut before = 0;
        for region in self.regions() {
            let own = host::own_pages(region.host_address, region.size.bytes())?;
            let own = own.into_iter();
            found.extend(own.map(|range| before + range.start..before + range.end));
            before += region.size.bytes();
        }
        Ok(host::union(found))
    }

    /// A file with what these ranges hold; pages of zeroes are holes.
    fn copy_out(&self, ranges: &[Range<u64>]) -> io::Result<Arc<File>> {
        const PIECE: u64 = 1 << 20;
        let file = make_memfd(self.size())?;
        let mut buffer = vec![0; PIECE as usize];
        for range in ranges {
            let mut at = range.start;
            while at < range.end {
                let length = PIECE.min(range.end - at);
                let bytes = &mut buffer[..length as usize];
                self.read_file_range(at, bytes).map_err(io::Error::other)?;
                for (place, page) in (at..).step_by(PAGE_SIZE as usize).zip(bytes.chunks(4096)) {
                    if page.iter().any(|byte| *byte != 0) {
                        file.write_all_at(page, place)?;
                    }
                }
                at += length;
            }
        }
        Ok(Arc::new(file))
    }

    /// Puts the layers above the lowest in their places.
    pub(super) fn lay_upper(&self, layers: &[Layer]) -> io::Result<()> {
        let mut mappings = 0;
        for layer in layers {
            for range in layer.ranges.iter().flatten() {
                for (region, part, offset) in self.in_regions(range) {
                    let at = HostPointer(region.host_address.0.wrapping_add(part.start as usize));
                    let length = part.end - part.start;
                    mappings += 1;
                    if mappings <= MOST_MAPPINGS {
                        host::map_private(at, length, &*layer.file, offset)?;
                    } else {
                        self.read_layer(layer, region, part, offset)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn read_layer(
        &self,
        layer: &Layer,
        region: &RamRegion,
        part: Range<u64>,
        offset: u64,
    ) -> io::Result<()> {
        use std::os::unix::fs::FileExt;
        let mut page = [0; PAGE_SIZE as usize];
        for at in part.clone().step_by(PAGE_SIZE as usize) {
            let place = offset + (at - part.start);
            layer.file.read_exact_at(&mut page, place)?;
            let address = GuestAddress(region.start.0 + at);
            self.write(address, &page).map_err(io::Error::other)?;
        }
        Ok(())
    }
}

fn whole(file: Arc<File>) -> Layer {
    Layer { file, ranges: None }
}

/// Ascending ranges, those that are near each other as one.
fn nearby(ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    let mut joined: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start - last.end <= NEAR => last.end = range.end,
            _ => joined.push(range),
        }
    }
    joined
}

/// The lowest layer is all there, the others have whole pages of it.
pub(super) fn check(total: ByteCount, layers: &[Layer]) -> Result<(), MemoryError> {
    let invalid = |reason: String| Err(MemoryError::InvalidLayer(reason));
    if layers.first().is_none_or(|layer| layer.ranges.is_some()) {
        return invalid("the lowest layer is not whole".to_owned());
    }
    for (number, layer) in layers.iter().enumerate() {
        let bytes = match layer.file.metadata() {
            Ok(metadata) => metadata.len(),
            Err(error) => return invalid(error.to_string()),
        };
        if bytes < total.bytes() {
            return invalid(format!(
                "layer {number} has {bytes} bytes, the memory {}",
                total.bytes()
            ));
        }
        let mut end = 0;
        for range in layer.ranges.iter().flatten() {
            let whole =
                range.start.is_multiple_of(PAGE_SIZE) && range.end.is_multiple_of(PAGE_SIZE);
            if !whole || range.start < end || range.end <= range.start || range.end > total.bytes()
            {
                return invalid(format!(
                    "layer {number} has a range {:#x}..{:#x} that can't be",
                    range.start, range.end
                ));
            }
            end = range.end;
        }
    }
    Ok(())
}
