//! A throw-away disk: what is written goes to a nameless file and is gone
//! with it; the base stays as it is.
//!
//! The file has no name at any moment (`O_TMPFILE`), so nothing is left behind
//! however the process ends. It is as long as the disk and sparse; a bitmap in
//! memory tells which clusters (4 KiB, a guest page) are in it. A bit is set
//! after the whole cluster has been written, and never cleared, so a reader
//! that sees it needs no lock. The first write to a cluster holds its lock.
//!
//! At any moment what was written so far can be made a [layer](OverlayLayer)
//! that does not change any more, for a snapshot or a clone; the disk goes on
//! in a new file above it.

mod bitmap;
mod layer;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::raw::{ZERO_BYTES, read_all, try_fallocate, write_all, zero_modes};
use crate::scatter::{Scatter, Source};
use crate::storage::{Action, FailureLog, Storage};
use crate::{BlockError, BlockInfo};
use bitmap::Bitmap;
pub use layer::OverlayLayer;

const CLUSTER: u64 = 4096;
/// The largest disk: its bitmap has 8 MiB of leaves that are not there.
const LARGEST: u64 = 1 << 46;
/// Locks that clusters share.
const LOCKS: usize = 64;

/// More layers than this are made one: each is another place to look.
const MOST_LAYERS: usize = 16;

/// See the module.
pub(crate) struct Overlay {
    base: Arc<dyn Storage>,
    directory: PathBuf,
    info: BlockInfo,
    /// Held for reading by every request, for writing while a layer is made.
    stack: RwLock<Stack>,
    failures: FailureLog,
}

/// What was written: the part that still changes, and the layers below it,
/// the newest first.
struct Stack {
    top: Top,
    layers: Vec<OverlayLayer>,
}

/// The clusters written since the last layer was made.
struct Top {
    file: Arc<File>,
    written: Arc<Bitmap>,
    locks: Vec<Mutex<()>>,
}

/// Where a cluster is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Top,
    Layer(usize),
    Base,
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
    /// Over `layers`, the newest first, and `base`, with the written clusters
    /// in a file in `directory`.
    pub fn new(
        base: Arc<dyn Storage>,
        layers: Vec<OverlayLayer>,
        directory: &Path,
    ) -> Result<Self, BlockError> {
        let mut info = base.info();
        if info.capacity > LARGEST {
            return Err(BlockError::Format {
                path: base.path().into(),
                format: "overlay base",
                reason: format!("{} bytes are too many", info.capacity),
            });
        }
        info.read_only = false;
        info.discard = true;
        info.write_zeroes = true;
        if let Some(layer) = layers.iter().find(|l| l.capacity() != info.capacity) {
            return Err(BlockError::Format {
                path: base.path().into(),
                format: "overlay base",
                reason: format!(
                    "it has {} bytes, what was written to it is of a disk of {}",
                    info.capacity,
                    layer.capacity()
                ),
            });
        }
        let written = Bitmap::new(info.capacity.div_ceil(CLUSTER));
        let top = Top::new(directory, written, info.capacity)
            .map_err(|error| BlockError::io("make a temporary file in", directory, error))?;
        Ok(Self {
            base,
            directory: directory.into(),
            info,
            stack: RwLock::new(Stack { top, layers }),
            failures: FailureLog::default(),
        })
    }

    /// Everything written so far, as layers, the newest first; later writes go
    /// elsewhere. Waits for requests under way.
    pub fn freeze(&self) -> io::Result<Vec<OverlayLayer>> {
        let capacity = self.info.capacity;
        let mut stack = self.stack.write().unwrap_or_else(PoisonError::into_inner);
        if !stack.top.written.is_empty() {
            let empty = stack.top.written.empty_like();
            let top = Top::new(&self.directory, empty, capacity)?;
            let old = std::mem::replace(&mut stack.top, top);
            let layer = OverlayLayer::new(old.file, old.written, capacity);
            stack.layers.insert(0, layer);
        }
        if stack.layers.len() > MOST_LAYERS {
            let file = nameless_file(&self.directory)?;
            let written = layer::merge(&stack.layers, &file)?;
            let merged = OverlayLayer::new(Arc::new(file), Arc::new(written), capacity);
            stack.layers = vec![merged];
        }
        Ok(stack.layers.clone())
    }

    fn stack(&self) -> RwLockReadGuard<'_, Stack> {
        self.stack.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn bounds(&self, cluster: u64) -> Span {
        let start = cluster * CLUSTER;
        let end = (start + CLUSTER).min(self.info.capacity);
        Span { start, end }
    }

    fn look<T>(&self, action: Action, result: io::Result<T>) -> io::Result<T> {
        self.failures.look(&self.directory, action, result)
    }

    fn writer<'a>(&'a self, stack: &'a Stack) -> Writer<'a> {
        Writer {
            overlay: self,
            stack,
        }
    }
}

impl Top {
    fn new(directory: &Path, written: Bitmap, capacity: u64) -> io::Result<Self> {
        let file = nameless_file(directory)?;
        file.set_len(capacity)?;
        Ok(Self {
            file: Arc::new(file),
            written: Arc::new(written),
            locks: (0..LOCKS).map(|_| Mutex::new(())).collect(),
        })
    }
}

impl Stack {
    fn place(&self, cluster: u64) -> Place {
        if self.top.written.get(cluster) {
            return Place::Top;
        }
        let layer = self.layers.iter().position(|l| l.written.get(cluster));
        layer.map_or(Place::Base, Place::Layer)
    }

    /// The longest run from `start` of clusters that are all in the same
    /// place, as `place` tells.
    fn run<P: PartialEq>(start: u64, end: u64, place: impl Fn(u64) -> P) -> (P, Span) {
        let first = start / CLUSTER;
        let where_first = place(first);
        let mut next = first + 1;
        while next * CLUSTER < end && place(next) == where_first {
            next += 1;
        }
        let end = end.min(next * CLUSTER);
        (where_first, Span { start, end })
    }
}

/// An overlay whose stack does not change meanwhile.
struct Writer<'a> {
    overlay: &'a Overlay,
    stack: &'a Stack,
}

impl Writer<'_> {
    fn lock(&self, cluster: u64) -> MutexGuard<'_, ()> {
        // They guard the order of steps, no data: poison means nothing.
        self.top().locks[cluster as usize % LOCKS]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn top(&self) -> &Top {
        &self.stack.top
    }

    fn bounds(&self, cluster: u64) -> Span {
        self.overlay.bounds(cluster)
    }

    fn read(&self, offset: u64, into: Scatter<'_>) -> io::Result<()> {
        let end = offset + into.length();
        let mut at = offset;
        while at < end {
            let (place, span) = Stack::run(at, end, |cluster| self.stack.place(cluster));
            let part = into.part(at - offset, span.length());
            match place {
                Place::Top => {
                    let result = read_file(&self.top().file, at, part);
                    self.overlay.look(Action::Read, result)?;
                }
                Place::Layer(layer) => {
                    let result = read_file(&self.stack.layers[layer].file, at, part);
                    self.overlay.look(Action::Read, result)?;
                }
                Place::Base => self.overlay.base.read(at, part)?,
            }
            at = span.end;
        }
        Ok(())
    }

    /// Writes a part of one cluster, or all of it.
    fn write_cluster(&self, span: Span, from: &Source<'_>) -> io::Result<()> {
        let cluster = span.start / CLUSTER;
        let guard = self.lock(cluster);
        let bounds = self.bounds(cluster);
        if self.top().written.get(cluster) {
            drop(guard);
            return write_all(&self.top().file, span.start, from);
        }
        if span.length() == bounds.length() {
            write_all(&self.top().file, span.start, from)?;
        } else {
            let mut bytes = [0; CLUSTER as usize];
            let bytes = &mut bytes[..bounds.length() as usize];
            self.read(bounds.start, Scatter::of(bytes))?;
            let start = (span.start - bounds.start) as usize;
            from.copy_to(&mut bytes[start..start + span.length() as usize]);
            write_all(&self.top().file, bounds.start, &Scatter::of_const(bytes))?;
        }
        self.top().written.set(cluster);
        Ok(())
    }

    /// Writes whole clusters that are not in the file, with one call.
    fn write_new(&self, span: Span, from: &Source<'_>) -> io::Result<()> {
        let clusters = span.start / CLUSTER..span.end.div_ceil(CLUSTER);
        let _guards = self.lock_range(clusters.clone());
        write_all(&self.top().file, span.start, from)?;
        clusters.for_each(|cluster| self.top().written.set(cluster));
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
            let written = |cluster| self.top().written.get(cluster);
            let (written, mut span) = Stack::run(at, end, written);
            if !written {
                // The ends may be parts of clusters; the middle is whole.
                let bounds = self.bounds(at / CLUSTER);
                if at > bounds.start || end < bounds.end {
                    span.end = bounds.end.min(end);
                } else if span.end < self.overlay.info.capacity {
                    span.end -= span.end % CLUSTER;
                }
            }
            let part = from.part(at - offset, span.length());
            let first = self.bounds(at / CLUSTER);
            if written {
                write_all(&self.top().file, at, &part)?;
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
            } else if end == self.overlay.info.capacity {
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
        if !try_fallocate(
            &self.top().file,
            zero_modes(true)[0],
            span.start,
            span.length(),
        )? {
            let mut at = span.start;
            while at < span.end {
                let count = (span.end - at).min(ZERO_BYTES.len() as u64);
                let zeroes = &ZERO_BYTES[..count as usize];
                write_all(&self.top().file, at, &Scatter::of_const(zeroes))?;
                at += count;
            }
        }
        clusters.for_each(|cluster| self.top().written.set(cluster));
        Ok(())
    }
}

fn read_file(file: &File, offset: u64, into: Scatter<'_>) -> io::Result<()> {
    read_all(file, offset, into, |_| {
        Err(io::ErrorKind::UnexpectedEof.into())
    })
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
        self.writer(&self.stack()).read(offset, into)
    }

    fn freeze(&self) -> Option<io::Result<Vec<OverlayLayer>>> {
        Some(Overlay::freeze(self))
    }

    fn write(&self, offset: u64, from: Source<'_>) -> io::Result<()> {
        let stack = self.stack();
        self.look(Action::Write, self.writer(&stack).write_span(offset, &from))
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
        let stack = self.stack();
        let result = self.writer(&stack).zero_clusters(Span { start, end });
        self.look(Action::Discard, result)
    }

    fn write_zeroes(&self, offset: u64, length: u64, _may_unmap: bool) -> io::Result<()> {
        let stack = self.stack();
        let result = self.writer(&stack).zero_span(offset, length);
        self.look(Action::WriteZeroes, result)
    }
}

#[cfg(test)]
#[path = "overlay_test.rs"]
mod test;
