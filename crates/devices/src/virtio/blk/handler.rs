//! One queue of a block device, on its own thread.
//!
//! A step takes all there is from the ring, submits it as one batch, and
//! returns what has completed with one look at whether the driver wants an
//! interrupt.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use favo_accel::GuestMemory;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::super::queue::{
    Chain, QueueCounters, Segment, Virtqueue, slice_segments, write_segments,
};
use super::super::worker::{Context, Handler, Interest, Readiness};
use super::backend::{BlockCompletion, BlockOperation, BlockQueue, RawBuffer};
use super::request::{HEADER_SIZE, ID_SIZE, Limits, Range, Refusal, Request, Status};

const DISK: u64 = 0;
/// Requests taken before completions are looked at again.
const REQUESTS_PER_STEP: usize = 256;

/// What the queues of one device count together.
#[derive(Debug, Default)]
pub struct BlkCounters {
    /// Bytes read by the guest.
    pub read_bytes: AtomicU64,
    /// Bytes written by the guest.
    pub written_bytes: AtomicU64,
    /// Flushes.
    pub flushes: AtomicU64,
    /// Requests that were answered with an error.
    pub errors: AtomicU64,
    /// What went wrong on the rings.
    pub queues: Arc<QueueCounters>,
}

/// What is the same for all queues of a device once features are negotiated.
#[derive(Clone, Copy, Debug)]
pub struct Agreed {
    /// What requests may do.
    pub limits: Limits,
    /// The answer to [`Request::GetId`].
    pub id: [u8; ID_SIZE],
    /// The driver can't flush, so every write is flushed for it (5.2.6.2: a
    /// device without `VIRTIO_BLK_F_FLUSH` writes through).
    pub write_through: bool,
}

/// A request on its way.
struct InFlight {
    chain: Chain,
    /// Bytes put into the chain's writable part, besides the status.
    filled: u64,
    /// Operations of the disk that are not done.
    pending: u32,
    failed: bool,
    /// To be flushed before it counts as done.
    then_flush: bool,
}

/// See the module.
pub struct BlkHandler {
    index: u16,
    memory: GuestMemory,
    disk: Box<dyn BlockQueue>,
    limits: Limits,
    id: [u8; ID_SIZE],
    write_through: bool,
    counters: Arc<BlkCounters>,
    slots: Vec<Option<InFlight>>,
    free: Vec<usize>,
    completions: Vec<BlockCompletion>,
    buffers: Vec<RawBuffer>,
    uncommitted: bool,
}

impl BlkHandler {
    /// For `queue`, with at most as many requests in flight as it has
    /// descriptors.
    pub fn new(
        queue: &Virtqueue,
        disk: Box<dyn BlockQueue>,
        agreed: Agreed,
        counters: Arc<BlkCounters>,
    ) -> Self {
        let Agreed {
            limits,
            id,
            write_through,
        } = agreed;
        let (index, memory) = (queue.index(), queue.memory().clone());
        let depth = usize::from(queue.size());
        Self {
            index,
            memory,
            disk,
            limits,
            id,
            write_through,
            counters,
            slots: (0..depth).map(|_| None).collect(),
            free: (0..depth).rev().collect(),
            completions: Vec::with_capacity(depth),
            buffers: Vec::new(),
            uncommitted: false,
        }
    }

    /// Starts to watch the disk.
    pub fn watch(&mut self, context: &mut Context) -> std::io::Result<()> {
        context.watch(self.disk.event(), DISK, Interest::READ)
    }

    fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    fn step(&mut self, context: &mut Context) {
        let index = self.index;
        let Some(queue) = context.queue(index) else {
            return;
        };
        let mut more = true;
        for _ in 0..REQUESTS_PER_STEP {
            // A driver has no more requests than descriptors. One that has
            // waits here until a slot is free.
            let Some(slot) = self.free.pop() else {
                more = false;
                break;
            };
            let Some(chain) = queue.pop() else {
                self.free.push(slot);
                more = false;
                break;
            };
            self.begin(slot, chain, queue);
        }
        self.commit();
        self.finish(queue);
        queue.signal();
        if more || self.uncommitted {
            context.request(index);
        }
    }

    fn begin(&mut self, slot: usize, chain: Chain, queue: &mut Virtqueue) {
        let request = match Request::parse(&self.memory, &chain, &self.limits) {
            Ok(request) => request,
            Err(refusal) => {
                self.free.push(slot);
                match refusal {
                    Refusal::Malformed => {
                        self.counters.queues.count_malformed();
                        queue.add_used(chain, 0);
                    }
                    Refusal::Status(status) => self.answer(queue, chain, status, 0),
                }
                return;
            }
        };
        let mut entry = InFlight {
            filled: 0,
            pending: 1,
            failed: false,
            then_flush: false,
            chain,
        };
        match request {
            Request::Read(range) => {
                entry.filled = range.length;
                self.transfer(slot, &entry.chain, range, false);
            }
            Request::Write(range) => {
                entry.then_flush = self.write_through;
                self.transfer(slot, &entry.chain, range, true);
            }
            Request::Flush => {
                self.counters.flushes.fetch_add(1, Ordering::Relaxed);
                self.submit(slot, BlockOperation::Flush);
            }
            Request::GetId => {
                let room = entry.chain.writable_bytes() - 1;
                let id = &self.id[..room.min(ID_SIZE as u64) as usize];
                let written = write_segments(&self.memory, entry.chain.writable(), 0, id);
                self.free.push(slot);
                self.answer(queue, entry.chain, Status::Ok, written as u64);
                return;
            }
            Request::Discard(ranges) => {
                entry.pending = ranges.len() as u32;
                entry.then_flush = self.write_through;
                for range in ranges {
                    let Range { offset, length, .. } = range;
                    self.submit(slot, BlockOperation::Discard { offset, length });
                }
            }
            Request::WriteZeroes(ranges) => {
                entry.pending = ranges.len() as u32;
                entry.then_flush = self.write_through;
                for range in ranges {
                    let operation = BlockOperation::WriteZeroes {
                        offset: range.offset,
                        length: range.length,
                        may_unmap: range.may_unmap,
                    };
                    self.submit(slot, operation);
                }
            }
        }
        self.slots[slot] = Some(entry);
    }

    fn transfer(&mut self, slot: usize, chain: &Chain, range: Range, write: bool) {
        let mut buffers = std::mem::take(&mut self.buffers);
        buffers.clear();
        let (segments, skip) = if write {
            (chain.readable(), HEADER_SIZE)
        } else {
            (chain.writable(), 0)
        };
        buffers.extend(
            slice_segments(segments, skip, range.length)
                .filter_map(|segment| raw_buffer(&self.memory, segment)),
        );
        let (offset, buffers_ref) = (range.offset, &buffers[..]);
        let (operation, count) = if write {
            let operation = BlockOperation::Write {
                offset,
                buffers: buffers_ref,
            };
            (operation, &self.counters.written_bytes)
        } else {
            let operation = BlockOperation::Read {
                offset,
                buffers: buffers_ref,
            };
            (operation, &self.counters.read_bytes)
        };
        count.fetch_add(range.length, Ordering::Relaxed);
        self.submit(slot, operation);
        self.buffers = buffers;
    }

    fn submit(&mut self, slot: usize, operation: BlockOperation<'_>) {
        self.uncommitted = true;
        // SAFETY: the buffers lie in guest RAM, which `self.memory` keeps
        // mapped, and `drop` waits for every request before that goes.
        unsafe { self.disk.submit(slot as u64, operation) };
    }

    fn commit(&mut self) {
        if std::mem::take(&mut self.uncommitted)
            && let Err(error) = self.disk.commit()
        {
            tracing::debug!(%error, "submitting to the disk; trying again");
            self.uncommitted = true;
        }
    }

    /// Returns to the driver what the disk has completed.
    fn finish(&mut self, queue: &mut Virtqueue) {
        let mut completions = std::mem::take(&mut self.completions);
        self.disk.complete(&mut completions);
        for completion in completions.drain(..) {
            self.complete(completion, queue);
        }
        self.completions = completions;
        self.commit();
    }

    fn complete(&mut self, completion: BlockCompletion, queue: &mut Virtqueue) {
        let slot = completion.token as usize;
        let Some(entry) = self.slots.get_mut(slot).and_then(Option::as_mut) else {
            tracing::error!(slot, "the disk completed a request it was not given");
            return;
        };
        if let Err(error) = completion.result {
            tracing::debug!(%error, "a disk operation failed");
            entry.failed = true;
        }
        entry.pending = entry.pending.saturating_sub(1);
        if entry.pending > 0 {
            return;
        }
        if !entry.failed && std::mem::take(&mut entry.then_flush) {
            entry.pending = 1;
            self.submit(slot, BlockOperation::Flush);
            return;
        }
        let Some(entry) = self.slots[slot].take() else {
            return;
        };
        self.free.push(slot);
        // Also after an error: part of it may have been read.
        for segment in slice_segments(entry.chain.writable(), 0, entry.filled) {
            self.memory
                .mark_written(segment.address, segment.length.into());
        }
        let status = if entry.failed {
            Status::IoError
        } else {
            Status::Ok
        };
        self.answer(queue, entry.chain, status, entry.filled);
    }

    /// Puts the status where it belongs, behind all else, and returns the
    /// chain.
    fn answer(&self, queue: &mut Virtqueue, chain: Chain, status: Status, filled: u64) {
        if status != Status::Ok {
            self.counters.errors.fetch_add(1, Ordering::Relaxed);
        }
        let at = chain.writable_bytes() - 1;
        write_segments(queue.memory(), chain.writable(), at, &[status as u8]);
        // The length covers what is written from the start without a gap. It
        // ends with the status only if all before it was filled.
        let written = if filled == at { at + 1 } else { filled };
        queue.add_used(chain, u32::try_from(written).unwrap_or(u32::MAX));
    }
}

fn raw_buffer(memory: &GuestMemory, segment: Segment) -> Option<RawBuffer> {
    let (region, offset) = memory.find(segment.address, segment.length.into())?;
    Some(RawBuffer {
        pointer: region.host_address.0.wrapping_add(offset as usize),
        length: segment.length as usize,
    })
}

impl Handler for BlkHandler {
    fn serve(&mut self, _index: u16, context: &mut Context) {
        self.step(context);
    }

    fn ready(&mut self, _token: u64, _readiness: Readiness, context: &mut Context) {
        self.step(context);
    }

    /// Waits until the disk has completed everything: only then nothing writes
    /// guest memory any more.
    fn stopping(&mut self, index: u16, context: &mut Context) {
        while self.in_flight() > 0 {
            self.wait();
            let Some(queue) = context.queue(index) else {
                return;
            };
            self.finish(queue);
        }
    }
}

impl BlkHandler {
    /// Sleeps until there are completions, or for a moment.
    fn wait(&mut self) {
        const MOMENT: Timespec = Timespec {
            tv_sec: 0,
            tv_nsec: 100_000_000,
        };
        self.commit();
        let mut fds = [PollFd::from_borrowed_fd(self.disk.event(), PollFlags::IN)];
        let _ = poll(&mut fds, Some(&MOMENT));
    }
}

impl Drop for BlkHandler {
    /// Nothing is left in flight unless the thread panicked. Even then the disk
    /// must not write into memory that is gone.
    fn drop(&mut self) {
        while self.in_flight() > 0 {
            self.wait();
            self.disk.complete(&mut self.completions);
            for completion in self.completions.drain(..) {
                let slot = completion.token as usize;
                if let Some(entry) = self.slots.get_mut(slot)
                    && let Some(request) = entry
                {
                    request.pending = request.pending.saturating_sub(1);
                    if request.pending == 0 {
                        *entry = None;
                        self.free.push(slot);
                    }
                }
            }
        }
    }
}
