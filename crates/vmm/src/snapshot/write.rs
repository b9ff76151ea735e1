//! Taking a snapshot of a machine.
//!
//! Memory is copied to the file while the machine runs. Then it stands still:
//! its state is read, the pages written meanwhile are copied again, and its
//! overlays are set aside. Everything else (the overlays' data, checksums,
//! making durable) is done while it runs on.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use favo_accel::{GuestMemory, PAGE_SIZE};
use favo_block::OverlayLayer;
use sha2::{Digest, Sha256};

use super::manifest::{
    self, DiskIdentity, DiskRecord, Manifest, MemoryRecord, OverlayRecord, Parent, SnapshotId, Sum,
};
use super::partial::Partial;
use super::{SnapshotError, seal};
use crate::machine::config::DiskSource;
use crate::machine::{MachineHandle, MachineState, realtime_ns};

/// How to take one.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct SnapshotOptions {
    /// Only what changed since the machine's last snapshot, which must stay
    /// where it is.
    pub incremental: bool,
    /// What the machine's owner wants back with it.
    pub owner: serde_json::Value,
}

/// How it went.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SnapshotReport {
    /// The snapshot.
    pub id: SnapshotId,
    /// How long the machine stood still.
    pub paused: Duration,
    /// How long it took in all.
    pub took: Duration,
    /// Bytes of memory that were written.
    pub memory_bytes: u64,
}

/// A machine's last snapshot, since which its writes are recorded.
#[derive(Clone, Debug)]
pub struct Last {
    id: SnapshotId,
    directory: PathBuf,
}

/// What is taken while the machine stands still.
struct Moment {
    state: MachineState,
    ranges: Option<Vec<Range<u64>>>,
    memory_bytes: u64,
    disks: Vec<DiskMoment>,
    paused: Duration,
}

enum DiskMoment {
    /// The layers that were written, the newest first.
    Overlay(Vec<OverlayLayer>),
    Outside(DiskIdentity),
}

/// Writes a snapshot of the machine into the new directory `directory`. A
/// machine that runs goes on as soon as it can, whatever else fails.
///
/// # Errors
///
/// [`SnapshotError`]; then there is no directory.
pub fn write(
    machine: &MachineHandle,
    directory: &Path,
    options: SnapshotOptions,
) -> Result<SnapshotReport, SnapshotError> {
    let begin = Instant::now();
    let body = machine.body()?;
    let mut last = body.last_snapshot();
    let disks = sources(&body.disks)?;
    let parent = match (options.incremental, last.clone()) {
        (false, _) => None,
        (true, None) => return Err(SnapshotError::NoParent),
        (true, Some(last)) => Some(Parent {
            path: last.directory,
            id: last.id,
        }),
    };
    let partial = Partial::begin(directory)?;
    let id = SnapshotId::random().map_err(SnapshotError::io("naming", directory))?;
    let memory_path = partial.path().join("memory");
    let memory = seal::create(&memory_path).map_err(SnapshotError::io("making", &memory_path))?;

    // Until this one is whole nothing can be added to: the record of what was
    // written since the last one is taken below.
    *last = None;
    let moment = take(&body, &memory, &memory_path, parent.is_some(), &disks)?;

    let bytes = body.memory().size().bytes();
    let file = seal::finish(partial.path(), "memory", &memory, bytes, id)?;
    let mut records = Vec::new();
    for (number, (disk, source)) in moment.disks.into_iter().zip(&disks).enumerate() {
        records.push(disk_record(partial.path(), number, disk, source, id)?);
    }
    let pages = |ranges: Vec<Range<u64>>| {
        let page = |range: Range<u64>| (range.start / PAGE_SIZE, range.end / PAGE_SIZE);
        ranges.into_iter().map(page).collect()
    };
    let manifest = Manifest {
        id,
        created_ns: realtime_ns(),
        favo: env!("CARGO_PKG_VERSION").to_owned(),
        engine: body.partition.kind(),
        parent,
        memory: MemoryRecord {
            file,
            pages: moment.ranges.map(pages),
        },
        disks: records,
        config: body.config.clone(),
        owner: options.owner,
        state: moment.state,
    };
    let encoded = manifest
        .encode()
        .map_err(|error| SnapshotError::NotSaveable(error.to_string()))?;
    seal::write_new(&partial.path().join(manifest::NAME), &encoded)?;
    partial.finish()?;
    *last = std::path::absolute(directory)
        .ok()
        .filter(|_| body.partition.dirty_log().is_some())
        .map(|directory| Last { id, directory });
    Ok(SnapshotReport {
        id,
        paused: moment.paused,
        took: begin.elapsed(),
        memory_bytes: moment.memory_bytes,
    })
}

fn sources(disks: &[Option<DiskSource>]) -> Result<Vec<DiskSource>, SnapshotError> {
    let source = |(number, disk): (usize, &Option<DiskSource>)| {
        disk.clone().ok_or_else(|| {
            SnapshotError::NotSaveable(format!("nobody knows where disk {number} comes from"))
        })
    };
    disks.iter().enumerate().map(source).collect()
}

/// Copies memory while the machine runs, and then, while it stands still, what
/// was written meanwhile and everything else that changes.
fn take(
    body: &crate::machine::Body,
    memory: &File,
    memory_path: &Path,
    incremental: bool,
    disks: &[DiskSource],
) -> Result<Moment, SnapshotError> {
    let ram = body.memory();
    let log = body.partition.dirty_log();
    let io = |action| SnapshotError::io(action, memory_path);
    memory.set_len(ram.size().bytes()).map_err(io("writing"))?;
    // From here on every write is in the log: what is copied too early is
    // copied again.
    let early = match (incremental, log) {
        (true, Some(log)) => pages_as_ranges(ram, &log.take()?),
        (true, None) => return Err(SnapshotError::NoParent),
        (false, Some(log)) => {
            log.start()?;
            ram.populated().map_err(io("finding what to write to"))?
        }
        (false, None) => Vec::new(),
    };
    let mut memory_bytes = copy(ram, &early, memory, Zeroes::AreThere).map_err(io("writing"))?;

    let begin = Instant::now();
    let standing = body.stand()?;
    let phase = |name: &str| tracing::debug!(phase = name, elapsed = ?begin.elapsed(), "snapshot");
    phase("stands still");
    let moment = || {
        let state = standing.save()?;
        phase("state read");
        let late = match log {
            Some(log) => pages_as_ranges(ram, &log.take()?),
            None => ram.populated().map_err(io("finding what to write to"))?,
        };
        phase("written pages known");
        memory_bytes += copy(ram, &late, memory, Zeroes::MustBeMade).map_err(io("writing"))?;
        phase("memory copied");
        let disks = disks.iter().map(disk_moment).collect::<Result<_, _>>()?;
        phase("disks set aside");
        Ok(Moment {
            state,
            ranges: incremental.then(|| joined(early, late)),
            memory_bytes,
            disks,
            paused: Duration::ZERO,
        })
    };
    let moment = moment();
    standing.resume();
    moment.map(|moment| Moment {
        paused: begin.elapsed(),
        ..moment
    })
}

/// Two lists of ranges as one: ascending, not touching.
fn joined(mut ranges: Vec<Range<u64>>, more: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.extend(more);
    ranges.sort_by_key(|range| range.start);
    let mut joined: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}

fn pages_as_ranges(memory: &GuestMemory, pages: &[favo_types::GuestAddress]) -> Vec<Range<u64>> {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for at in pages.iter().filter_map(|page| memory.file_offset(*page)) {
        match ranges.last_mut() {
            Some(last) if last.end == at => last.end += PAGE_SIZE,
            _ => ranges.push(at..at + PAGE_SIZE),
        }
    }
    ranges
}

/// What is in the file where a page of zeroes belongs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Zeroes {
    /// A hole: nothing is to be done.
    AreThere,
    /// Maybe something else.
    MustBeMade,
}

/// Copies ranges of RAM to their places in a file; pages of zeroes are holes.
/// How many bytes were written.
fn copy(
    memory: &GuestMemory,
    ranges: &[Range<u64>],
    file: &File,
    zeroes: Zeroes,
) -> io::Result<u64> {
    const PIECE: u64 = 1 << 20;
    let mut buffer = vec![0; PIECE as usize];
    let mut written = 0;
    for range in ranges {
        let mut done = range.start;
        // What a guest gave back is in the log, too, and much of it at times.
        for data in memory.populated_in(range)? {
            if zeroes == Zeroes::MustBeMade && done < data.start {
                make_hole(file, done..data.start)?;
            }
            let mut at = data.start;
            while at < data.end {
                let length = PIECE.min(data.end - at);
                let bytes = &mut buffer[..length as usize];
                memory
                    .read_file_range(at, bytes)
                    .map_err(io::Error::other)?;
                written += write_pages(file, at, bytes, zeroes)?;
                at += length;
            }
            done = data.end;
        }
        if zeroes == Zeroes::MustBeMade && done < range.end {
            make_hole(file, done..range.end)?;
        }
    }
    Ok(written)
}

/// Writes pages in runs that are all zeroes or all not.
fn write_pages(file: &File, offset: u64, bytes: &[u8], zeroes: Zeroes) -> io::Result<u64> {
    const PAGE: usize = PAGE_SIZE as usize;
    let is_zero = |page: &[u8]| page.iter().all(|byte| *byte == 0);
    let (mut at, mut written) = (0, 0);
    while at < bytes.len() {
        let empty = is_zero(&bytes[at..bytes.len().min(at + PAGE)]);
        let run = bytes[at..].chunks(PAGE);
        let pages = run.take_while(|page| is_zero(page) == empty).count();
        let end = bytes.len().min(at + pages * PAGE);
        if !empty {
            file.write_all_at(&bytes[at..end], offset + at as u64)?;
            written += (end - at) as u64;
        } else if zeroes == Zeroes::MustBeMade {
            make_hole(file, offset + at as u64..offset + end as u64)?;
        }
        at = end;
    }
    Ok(written)
}

fn make_hole(file: &File, range: Range<u64>) -> io::Result<()> {
    use rustix::fs::FallocateFlags;
    let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match rustix::fs::fallocate(file, mode, range.start, range.end - range.start) {
        Ok(()) => Ok(()),
        // A file system without holes.
        Err(rustix::io::Errno::OPNOTSUPP) => {
            let mut pages = range.step_by(PAGE_SIZE as usize);
            pages.try_for_each(|at| file.write_all_at(&[0; PAGE_SIZE as usize], at))
        }
        Err(error) => Err(error.into()),
    }
}

fn disk_moment(source: &DiskSource) -> Result<DiskMoment, SnapshotError> {
    match source.image.freeze() {
        Some(layers) => Ok(DiskMoment::Overlay(layers?)),
        None => {
            // What the guest was told is written is in the file.
            source.image.flush()?;
            Ok(DiskMoment::Outside(identify(&source.config.path)?))
        }
    }
}

fn disk_record(
    directory: &Path,
    number: usize,
    disk: DiskMoment,
    source: &DiskSource,
    id: SnapshotId,
) -> Result<DiskRecord, SnapshotError> {
    let layers = match disk {
        DiskMoment::Overlay(layers) => layers,
        DiskMoment::Outside(identity) => {
            return Ok(DiskRecord {
                identity,
                overlay: None,
            });
        }
    };
    let name = format!("disk{number}.overlay");
    let bitmap_name = format!("disk{number}.bitmap");
    let path = directory.join(&name);
    let file = seal::create(&path).map_err(SnapshotError::io("making", &path))?;
    let capacity = favo_block::BlockDevice::info(&source.image).capacity;
    let bitmap =
        OverlayLayer::merge(&layers, &file).map_err(SnapshotError::io("writing", &path))?;
    file.set_len(capacity)
        .map_err(SnapshotError::io("writing", &path))?;
    seal::write_new(&directory.join(&bitmap_name), &bitmap)?;
    Ok(DiskRecord {
        identity: identify(&source.config.path)?,
        overlay: Some(OverlayRecord {
            file: seal::finish(directory, &name, &file, capacity, id)?,
            bitmap: bitmap_name,
            bitmap_sum: Sum::of(&bitmap),
        }),
    })
}

/// What tells a disk's file from another, or from itself after a write.
pub(super) fn identify(path: &Path) -> Result<DiskIdentity, SnapshotError> {
    use std::os::unix::fs::MetadataExt;
    const PIECE: u64 = 64 << 10;
    const PIECES: u64 = 16;
    let file = File::open(path).map_err(SnapshotError::io("opening", path))?;
    let metadata = file
        .metadata()
        .map_err(SnapshotError::io("opening", path))?;
    // A block device's length is not in its metadata.
    let bytes = match metadata.len() {
        0 => rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0)).unwrap_or(0),
        bytes => bytes,
    };
    let mut sum = Sha256::new();
    let mut piece = vec![0; PIECE as usize];
    for number in 0..PIECES {
        let at = bytes.saturating_sub(PIECE) / (PIECES - 1) * number;
        let length = PIECE.min(bytes.saturating_sub(at)) as usize;
        file.read_exact_at(&mut piece[..length], at)
            .map_err(SnapshotError::io("reading", path))?;
        sum.update(&piece[..length]);
    }
    Ok(DiskIdentity {
        bytes,
        modified_ns: i128::from(metadata.mtime()) * 1_000_000_000
            + i128::from(metadata.mtime_nsec()),
        sample: Sum::from_digest(sum.finalize().into()),
    })
}
