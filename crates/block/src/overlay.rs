//! A throw-away disk: what is written goes to a nameless file and is gone
//! with it; the base stays as it is.
//!
//! The file has no name at any moment (`O_TMPFILE`), so nothing is left behind
//! however the process ends. It is as long as the disk and sparse; a bitmap in
//! memory tells which clusters (4 KiB, a guest page) are in it. A bit is set
//! after the whole cluster has been written, and never cleared, so a reader
//! that sees it needs no lock. The first write to a cluster holds its lock.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::raw::{ZERO_BYTES, read_all, try_fallocate, write_all, zero_modes};
use crate::scatter::{Scatter, Source};
use crate::storage::{Action, FailureLog, Storage};
use crate::{BlockError, BlockInfo};

const CLUSTER: u64 = 4096;
/// Words of a leaf of the bitmap: 128 MiB of disk.
const LEAF_WORDS: usize = 512;
const LEAF_CLUSTERS: u64 = LEAF_WORDS as u64 * 64;
/// Locks that clusters share.
const LOCKS: usize = 64;

/// One bit for each cluster, in leaves that are made when one is needed.
struct Bitmap(Vec<OnceLock<Box<[AtomicU64; LEAF_WORDS]>>>);

impl Bitmap {
    fn new(clusters: u64) -> Self {
        let leaves = clusters.div_ceil(LEAF_CLUSTERS);
        Self((0..leaves).map(|_| OnceLock::new()).collect())
    }

    fn place(cluster: u64) -> (usize, usize, u64) {
        let within = cluster % LEAF_CLUSTERS;
        let leaf = (cluster / LEAF_CLUSTERS) as usize;
        (leaf, (within / 64) as usize, 1 << (within % 64))
    }

    fn get(&self, cluster: u64) -> bool {
        let (leaf, word, bit) = Self::place(cluster);
        self.0[leaf]
            .get()
            .is_some_and(|leaf| leaf[word].load(Ordering::Acquire) & bit != 0)
    }

    fn set(&self, cluster: u64) {
        let (leaf, word, bit) = Self::place(cluster);
        let leaf = self.0[leaf].get_or_init(|| Box::new([const { AtomicU64::new(0) }; LEAF_WORDS]));
        leaf[word].fetch_or(bit, Ordering::Release);
    }
}

/// See the module.
pub(crate) struct Overlay {
    base: Arc<dyn Storage>,
    file: File,
    directory: PathBuf,
    info: BlockInfo,
    written: Bitmap,
    locks: Vec<Mutex<()>>,
    failures: FailureLog,
}

/// Bytes from `start` to `end` of the disk.
#[derive(Clone, Copy)]
struct Span {
    start: u64,
    end: u64,
}

impl Span {
    fn length(self) -> u64 {
        self.end - self.start
    }
}

impl Overlay {
    /// Over `base`, with the written clusters in a file in `directory`.
    pub fn new(base: Arc<dyn Storage>, directory: &Path) -> Result<Self, BlockError> {
        let file = nameless_file(directory)
            .map_err(|error| BlockError::io("make a temporary file in", directory, error))?;
        let mut info = base.info();
        info.read_only = false;
        info.discard = true;
        info.write_zeroes = true;
        file.set_len(info.capacity)
            .map_err(|error| BlockError::io("make a temporary file in", directory, error))?;
        Ok(Self {
            written: Bitmap::new(info.capacity.div_ceil(CLUSTER)),
            base,
            file,
            directory: directory.into(),
            info,
            locks: (0..LOCKS).map(|_| Mutex::new(())).collect(),
            failures: FailureLog::default(),
        })
    }

    /// The longest run from `start` of clusters that are all in the file, or
    /// all not.
    fn run(&self, start: u64, end: u64) -> (bool, Span) {
        let first = start / CLUSTER;
        let written = self.written.get(first);
        let mut next = first + 1;
        while next * CLUSTER < end && self.written.get(next) == written {
            next += 1;
        }
        let end = end.min(next * CLUSTER);
        (written, Span { start, end })
    }

    fn lock(&self, cluster: u64) -> MutexGuard<'_, ()> {
        // They guard the order of steps, no data: poison means nothing.
        self.locks[cluster as usize % LOCKS]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn read_file(&self, offset: u64, into: Scatter<'_>) -> io::Result<()> {
        read_all(&self.file, offset, into, |_| {
            Err(io::ErrorKind::UnexpectedEof.into())
        })
    }

    /// Writes a part of one cluster, or all of it.
    fn write_cluster(&self, span: Span, from: &Source<'_>) -> io::Result<()> {
        let cluster = span.start / CLUSTER;
        let guard = self.lock(cluster);
        let bounds = self.bounds(cluster);
        if self.written.get(cluster) {
            drop(guard);
            return write_all(&self.file, span.start, from);
        }
        if span.length() == bounds.length() {
            write_all(&self.file, span.start, from)?;
        } else {
            let mut bytes = [0; CLUSTER as usize];
            let bytes = &mut bytes[..bounds.length() as usize];
            self.base.read(bounds.start, Scatter::of(bytes))?;
            let start = (span.start - bounds.start) as usize;
            from.copy_to(&mut bytes[start..start + span.length() as usize]);
            write_all(&self.file, bounds.start, &Scatter::of_const(bytes))?;
        }
        self.written.set(cluster);
        Ok(())
    }

    fn bounds(&self, cluster: u64) -> Span {
        let start = cluster * CLUSTER;
        let end = (start + CLUSTER).min(self.info.capacity);
        Span { start, end }
    }

    /// Writes whole clusters that are not in the file, with one call.
    fn write_new(&self, span: Span, from: &Source<'_>) -> io::Result<()> {
        let clusters = span.start / CLUSTER..span.end.div_ceil(CLUSTER);
        let _guards = self.lock_range(clusters.clone());
        write_all(&self.file, span.start, from)?;
        clusters.for_each(|cluster| self.written.set(cluster));
        Ok(())
    }

    /// All locks of a range, in the order of their numbers, so that no two
    /// wait for each other.
    fn lock_range(&self, clusters: std::ops::Range<u64>) -> Vec<MutexGuard<'_, ()>> {
        let mut numbers: Vec<u64> = clusters
            .take(LOCKS)
            .map(|cluster| cluster % LOCKS as u64)
            .collect();
        numbers.sort_unstable();
        numbers
            .into_iter()
            .map(|number| self.lock(number))
            .collect()
    }

    fn write_span(&self, offset: u64, from: &Source<'_>) -> io::Result<()> {
        let end = offset + from.length();
        let mut at = offset;
        while at < end {
            let (written, mut span) = self.run(at, end);
            if !written {
                // The ends may be parts of clusters; the middle is whole.
                let bounds = self.bounds(at / CLUSTER);
                if at > bounds.start || end < bounds.end {
                    span.end = bounds.end.min(end);
                } else if span.end < self.info.capacity {
                    span.end -= span.end % CLUSTER;
                }
            }
            let part = from.part(at - offset, span.length());
            let first = self.bounds(at / CLUSTER);
            if written {
                write_all(&self.file, at, &part)?;
            } else if span.start == first.start && span.end >= first.end {
                self.write_new(span, &part)?;
            } else {
                self.write_cluster(span, &part)?;
            }
            at = span.end;
        }
        Ok(())
    }

    fn zero_span(&self, offset: u64, length: u64) -> io::Result<()> {
        let end = offset + length;
        let mut at = offset;
        while at < end {
            let bounds = self.bounds(at / CLUSTER);
            let span = if at > bounds.start || end < bounds.end {
                let end = bounds.end.min(end);
                Span { start: at, end }
            } else if end == self.info.capacity {
                Span { start: at, end }
            } else {
                let end = end - end % CLUSTER;
                Span { start: at, end }
            };
            if span.start == bounds.start && span.end >= bounds.end {
                self.zero_clusters(span)?;
            } else {
                let zeroes = &ZERO_BYTES[..span.length() as usize];
                self.write_cluster(span, &Scatter::of_const(zeroes))?;
            }
            at = span.end;
        }
        Ok(())
    }

    /// Whole clusters: a hole in the file.
    fn zero_clusters(&self, span: Span) -> io::Result<()> {
        let clusters = span.start / CLUSTER..span.end.div_ceil(CLUSTER);
        let _guards = self.lock_range(clusters.clone());
        if !try_fallocate(&self.file, zero_modes(true)[0], span.start, span.length())? {
            let mut at = span.start;
            while at < span.end {
                let count = (span.end - at).min(ZERO_BYTES.len() as u64);
                let zeroes = &ZERO_BYTES[..count as usize];
                write_all(&self.file, at, &Scatter::of_const(zeroes))?;
                at += count;
            }
        }
        clusters.for_each(|cluster| self.written.set(cluster));
        Ok(())
    }

    fn look<T>(&self, action: Action, result: io::Result<T>) -> io::Result<T> {
        self.failures.look(&self.directory, action, result)
    }
}

/// A file in `directory` without a name.
fn nameless_file(directory: &Path) -> io::Result<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC | OFlags::EXCL;
    match rustix::fs::open(directory, flags, Mode::RUSR | Mode::WUSR) {
        Ok(file) => Ok(file.into()),
        // The file system can't: a name for the moment between two calls.
        Err(Errno::OPNOTSUPP | Errno::ISDIR) => named_for_a_moment(directory),
        Err(error) => Err(error.into()),
    }
}

fn named_for_a_moment(directory: &Path) -> io::Result<File> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let path = directory.join(format!(".favo-overlay-{}-{count}", std::process::id()));
    let mut options = File::options();
    let file = options
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)?;
    fs::remove_file(&path)?;
    Ok(file)
}

impl Storage for Overlay {
    fn info(&self) -> BlockInfo {
        self.info
    }

    fn path(&self) -> &Path {
        self.base.path()
    }

    fn read(&self, offset: u64, into: Scatter<'_>) -> io::Result<()> {
        let end = offset + into.length();
        let mut at = offset;
        while at < end {
            let (written, span) = self.run(at, end);
            let part = into.part(at - offset, span.length());
            if written {
                let result = self.read_file(at, part);
                self.look(Action::Read, result)?;
            } else {
                self.base.read(at, part)?;
            }
            at = span.end;
        }
        Ok(())
    }

    fn write(&self, offset: u64, from: Source<'_>) -> io::Result<()> {
        self.look(Action::Write, self.write_span(offset, &from))
    }

    /// Nothing of a throw-away disk outlives the host, so nothing is made
    /// durable.
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        // Only whole clusters give space back.
        let start = offset.next_multiple_of(CLUSTER);
        let mut end = offset + length;
        if end < self.info.capacity {
            end -= end % CLUSTER;
        }
        if start >= end {
            return Ok(());
        }
        self.look(Action::Discard, self.zero_clusters(Span { start, end }))
    }

    fn write_zeroes(&self, offset: u64, length: u64, _may_unmap: bool) -> io::Result<()> {
        self.look(Action::WriteZeroes, self.zero_span(offset, length))
    }
}
