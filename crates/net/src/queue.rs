//! Bounded queues of frames between the threads of network cards and the
//! plane.
//!
//! Frames move in batches: a batch is one piece of memory with the frames one
//! behind the other, handed over by exchanging it for an empty one. So nothing
//! is allocated for a frame, and the lock is taken once for many.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::{EventfdFlags, eventfd};

use crate::link::{Link, Offload};

/// How many bytes of frames may wait in one queue.
pub const MAXIMUM_BYTES: usize = 4 << 20;

/// How many frames may wait in one queue.
pub const MAXIMUM_FRAMES: usize = 4096;

/// How many bytes a sender gathers before it hands them over by itself.
const BATCH_BYTES: usize = 512 << 10;

/// How many frames a sender gathers before it hands them over by itself.
const BATCH_FRAMES: usize = 256;

/// How much memory an emptied batch keeps.
const KEPT_BYTES: usize = 1 << 20;

/// Frames, one behind the other.
#[derive(Debug, Default)]
pub struct Batch {
    bytes: Vec<u8>,
    frames: Vec<(usize, Offload)>,
}

impl Batch {
    /// Adds a frame in parts.
    pub fn push(&mut self, parts: [&[u8]; 2], offload: Offload) {
        let before = self.bytes.len();
        self.bytes.extend_from_slice(parts[0]);
        self.bytes.extend_from_slice(parts[1]);
        self.frames.push((self.bytes.len() - before, offload));
    }

    /// Whether there is no frame in it.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Whether it is worth being handed over.
    pub fn is_large(&self) -> bool {
        self.bytes.len() >= BATCH_BYTES || self.frames.len() >= BATCH_FRAMES
    }

    /// Its frames, in order.
    pub fn frames_mut(&mut self) -> impl Iterator<Item = (&mut [u8], Offload)> {
        let mut rest = self.bytes.as_mut_slice();
        self.frames.iter().map(move |(length, offload)| {
            let (frame, tail) = std::mem::take(&mut rest).split_at_mut(*length);
            rest = tail;
            (frame, *offload)
        })
    }

    /// Empties it, and gives back memory that only a burst needed.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(KEPT_BYTES);
        self.frames.clear();
        self.frames.shrink_to(MAXIMUM_FRAMES);
    }
}

/// A queue with one sender and one receiver at a time.
///
/// Its event descriptor is readable exactly while the queue holds frames or
/// the receiver hasn't asked in vain since it took the last ones.
#[derive(Debug)]
pub struct Queue {
    batch: Mutex<Batch>,
    event: OwnedFd,
    dropped: AtomicU64,
    /// Whether the receiver takes anything; see [`Queue::set_active`].
    active: AtomicBool,
    refused: AtomicU64,
}

impl Queue {
    /// An empty queue.
    ///
    /// # Errors
    /// The host has no descriptors left.
    pub fn new() -> std::io::Result<Self> {
        let event = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        Ok(Self {
            batch: Mutex::default(),
            event,
            dropped: AtomicU64::new(0),
            active: AtomicBool::new(true),
            refused: AtomicU64::new(0),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Batch> {
        // A batch is whole between any two statements.
        self.batch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves all of `batch` in, as far as there is room; the rest is dropped
    /// and counted, and so is all of it while the queue is inactive. `batch` is
    /// empty after.
    pub fn put(&self, batch: &mut Batch) {
        if batch.is_empty() {
            return;
        }
        let mut waiting = self.lock();
        // Asked under the lock: nothing comes in behind `set_active(false)`.
        if !self.is_active() {
            let refused = batch.frames.len() as u64;
            self.refused.fetch_add(refused, Ordering::Relaxed);
            drop(waiting);
            batch.clear();
            return;
        }
        let was_empty = waiting.is_empty();
        if was_empty {
            std::mem::swap(&mut *waiting, batch);
        } else {
            let mut dropped = 0;
            for (frame, offload) in batch.frames_mut() {
                let room = waiting.bytes.len() + frame.len() <= MAXIMUM_BYTES
                    && waiting.frames.len() < MAXIMUM_FRAMES;
                if room {
                    waiting.push([frame, &[]], offload);
                } else {
                    dropped += 1;
                }
            }
            self.dropped.fetch_add(dropped, Ordering::Relaxed);
        }
        if was_empty {
            // Fails only if the counter is full, and then it is readable.
            let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
        }
        drop(waiting);
        batch.clear();
    }

    /// Exchanges the waiting frames for `batch`, which must be empty. Whether
    /// there were any.
    pub fn take(&self, batch: &mut Batch) -> bool {
        let mut waiting = self.lock();
        if waiting.is_empty() {
            // Under the lock: nobody puts a frame in between.
            let _ = rustix::io::read(&self.event, &mut [0; 8]);
            return false;
        }
        std::mem::swap(&mut *waiting, batch);
        true
    }

    /// Frames dropped because the receiver was too slow.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Says whether the receiver takes frames. What waits when it stops is
    /// dropped, and counted like all that comes until it starts again.
    pub fn set_active(&self, active: bool) {
        let mut waiting = self.lock();
        self.active.store(active, Ordering::Relaxed);
        if !active {
            let refused = waiting.frames.len() as u64;
            self.refused.fetch_add(refused, Ordering::Relaxed);
            waiting.clear();
        }
    }

    /// Whether the receiver takes frames; a new queue's does.
    pub fn is_active(&self) -> bool {
        self.active.load(Ordering::Relaxed)
    }

    /// Frames dropped because the receiver takes none.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Readable while frames may wait.
    pub fn ready(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

/// A card's end of a port of the plane, one per queue pair.
#[derive(Debug)]
pub struct PortLink {
    to_plane: Arc<Queue>,
    to_guest: Arc<Queue>,
    gathered: Batch,
    received: Batch,
    /// The next frame of `received`: its place and its first byte.
    next: (usize, usize),
}

impl PortLink {
    /// A card's end of two queues.
    pub fn new(to_plane: Arc<Queue>, to_guest: Arc<Queue>) -> Self {
        Self {
            to_plane,
            to_guest,
            gathered: Batch::default(),
            received: Batch::default(),
            next: (0, 0),
        }
    }
}

impl Link for PortLink {
    fn send(&mut self, frame: &[u8], offload: Offload) {
        self.gathered.push([frame, &[]], offload);
        if self.gathered.is_large() {
            self.flush();
        }
    }

    fn flush(&mut self) {
        self.to_plane.put(&mut self.gathered);
    }

    fn receive(&mut self, frame: &mut Vec<u8>) -> Option<Offload> {
        if self.next.0 == self.received.frames.len() {
            self.received.clear();
            self.next = (0, 0);
            if !self.to_guest.take(&mut self.received) {
                return None;
            }
        }
        let (index, start) = self.next;
        let (length, offload) = self.received.frames[index];
        frame.extend_from_slice(&self.received.bytes[start..start + length]);
        self.next = (index + 1, start + length);
        Some(offload)
    }

    fn ready(&self) -> BorrowedFd<'_> {
        self.to_guest.ready()
    }

    fn set_active(&mut self, active: bool) {
        self.to_guest.set_active(active);
    }
}

#[cfg(test)]
#[path = "queue_test.rs"]
mod test;
