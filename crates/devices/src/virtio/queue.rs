//! A virtqueue, from the device's side.
//!
//! Built on rust-vmm's `virtio-queue`, which walks the rings; this module adds
//! what a device needs so that it can't do wrong: a chain is read once, copied
//! and checked as a whole before the device sees it, so the guest can't change
//! it underneath; a broken ring ends the queue and flags the device instead of
//! returning an error that somebody must remember to handle.
//!
//! Split rings, virtio 1.2, 2.7; indirect descriptors, 2.7.5.3; notification
//! suppression by event index, 2.7.7 and 2.7.10.

use std::num::Wrapping;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use favo_accel::GuestMemory;
use favo_types::GuestAddress;
use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::Bytes;

use super::device::{DeviceError, QueueResources, VirtioInterrupt};
use super::event::EventFd;

/// The most buffers one chain may have, whatever the queue's size. Linux'
/// limit for one scatter list (`IOV_MAX`) is the same.
pub const MAX_SEGMENTS: usize = 1024;

/// Everything that describes a virtqueue, at rest.
///
/// For a queue that never ran, `next_avail` and `next_used` are 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct QueueState {
    /// Number of descriptors; a power of two.
    pub size: u16,
    /// The descriptor table; 16-byte aligned.
    pub descriptor_table: GuestAddress,
    /// The available ring (driver area); 2-byte aligned.
    pub available_ring: GuestAddress,
    /// The used ring (device area); 4-byte aligned.
    pub used_ring: GuestAddress,
    /// The next entry of the available ring to be taken.
    pub next_avail: u16,
    /// The next entry of the used ring to be filled.
    pub next_used: u16,
    /// `VIRTIO_F_EVENT_IDX` was negotiated.
    pub event_index: bool,
}

/// What makes a queue unusable from the start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum QueueError {
    /// Not a power of two, or larger than the device offers.
    #[error("a size of {0} descriptors is not possible")]
    InvalidSize(u16),
    /// A ring is misaligned.
    #[error("a ring is not aligned as virtio asks")]
    Misaligned,
    /// A ring is not all RAM.
    #[error("a ring does not lie in RAM")]
    OutsideRam,
}

/// One buffer of a chain: all of it is RAM, in one region.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    /// Where it starts.
    pub address: GuestAddress,
    /// Its length in bytes; never 0.
    pub length: u32,
}

/// A checked descriptor chain, the device's own copy.
#[derive(Debug, Default)]
pub struct Chain {
    head: u16,
    readable: Vec<Segment>,
    writable: Vec<Segment>,
}

impl Chain {
    /// The index of its first descriptor.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// What the driver wrote for the device.
    pub fn readable(&self) -> &[Segment] {
        &self.readable
    }

    /// Where the device may write.
    pub fn writable(&self) -> &[Segment] {
        &self.writable
    }

    /// Bytes the device may read.
    pub fn readable_bytes(&self) -> u64 {
        total(&self.readable)
    }

    /// Bytes the device may write.
    pub fn writable_bytes(&self) -> u64 {
        total(&self.writable)
    }
}

fn total(segments: &[Segment]) -> u64 {
    segments.iter().map(|s| u64::from(s.length)).sum()
}

/// The part of `segments` that covers `length` bytes from `offset`, as
/// segments. Shorter if `segments` ends before.
pub fn slice_segments(
    segments: &[Segment],
    offset: u64,
    length: u64,
) -> impl Iterator<Item = Segment> {
    let (mut skip, mut left) = (offset, length);
    segments.iter().filter_map(move |segment| {
        let skipped = skip.min(u64::from(segment.length));
        skip -= skipped;
        let taken = (u64::from(segment.length) - skipped).min(left);
        left -= taken;
        (taken > 0).then(|| Segment {
            address: GuestAddress(segment.address.0 + skipped),
            // Not more than the segment's own length.
            length: taken as u32,
        })
    })
}

/// Copies from `segments`, starting `offset` bytes in; how many bytes there
/// were.
pub fn read_segments(
    memory: &GuestMemory,
    segments: &[Segment],
    offset: u64,
    buffer: &mut [u8],
) -> usize {
    let mut done = 0;
    for segment in slice_segments(segments, offset, buffer.len() as u64) {
        let part = &mut buffer[done..done + segment.length as usize];
        if memory.read(segment.address, part).is_err() {
            break;
        }
        done += part.len();
    }
    done
}

/// Copies into `segments`, starting `offset` bytes in; how many bytes found
/// room.
pub fn write_segments(
    memory: &GuestMemory,
    segments: &[Segment],
    offset: u64,
    bytes: &[u8],
) -> usize {
    let mut done = 0;
    for segment in slice_segments(segments, offset, bytes.len() as u64) {
        let part = &bytes[done..done + segment.length as usize];
        if memory.write(segment.address, part).is_err() {
            break;
        }
        done += part.len();
    }
    done
}

/// What went wrong on a device's queues since it was built.
#[derive(Debug, Default)]
pub struct QueueCounters {
    /// Chains that broke the rules and were returned unserved.
    pub malformed_chains: AtomicU64,
    /// Queues that had to be given up.
    pub broken_queues: AtomicU64,
}

impl QueueCounters {
    /// Counts a chain that is well-formed for the ring and not for the device.
    pub fn count_malformed(&self) {
        self.malformed_chains.fetch_add(1, Ordering::Relaxed);
    }

    /// As named counts.
    pub fn event_counters(&self) -> Vec<favo_accel::EventCounter> {
        [
            ("malformed-chains", &self.malformed_chains),
            ("broken-queues", &self.broken_queues),
        ]
        .map(|(name, count)| favo_accel::EventCounter {
            name,
            detail: None,
            count: count.load(Ordering::Relaxed),
        })
        .into()
    }
}

/// A running queue.
pub struct Virtqueue {
    index: u16,
    queue: Queue,
    memory: GuestMemory,
    kick: Arc<EventFd>,
    interrupt: Arc<dyn VirtioInterrupt>,
    counters: Arc<QueueCounters>,
    /// The ring can't be trusted any more; nothing is taken from it.
    broken: bool,
    /// The driver has been asked not to notify.
    quiet: bool,
    /// Chains used since the last [`Virtqueue::signal`].
    used_unsignalled: u16,
    /// The driver may have missed an interrupt before this queue was started.
    signal_anyway: bool,
    spare: Vec<Chain>,
}

impl Virtqueue {
    /// Checks the rings and takes them over.
    pub fn new(
        index: u16,
        max_size: u16,
        resources: QueueResources,
        counters: Arc<QueueCounters>,
    ) -> Result<Self, QueueError> {
        let state = resources.state;
        let queue = ring_from(&state, max_size)?;
        if state.available_ring.0 == 0 || !queue.is_valid(resources.memory.backend()) {
            return Err(QueueError::OutsideRam);
        }
        Ok(Self {
            index,
            queue,
            memory: resources.memory,
            kick: resources.kick,
            interrupt: resources.interrupt,
            counters,
            broken: false,
            quiet: false,
            used_unsignalled: 0,
            signal_anyway: state.next_used != 0,
            spare: Vec::new(),
        })
    }

    /// [`Virtqueue::new`] for queue `index` of a device with these
    /// `queue_sizes`, with errors that name the device.
    pub fn for_device(
        device: &'static str,
        queue_sizes: &[u16],
        index: u16,
        resources: QueueResources,
        counters: &Arc<QueueCounters>,
    ) -> Result<Self, DeviceError> {
        let &max_size = queue_sizes
            .get(usize::from(index))
            .ok_or(DeviceError::NoSuchQueue {
                device,
                queue: index,
            })?;
        Self::new(index, max_size, resources, counters.clone()).map_err(|source| {
            DeviceError::Queue {
                device,
                queue: index,
                source,
            }
        })
    }

    /// Its number in the device.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Number of descriptors.
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// The guest's RAM.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// Signalled when the driver notifies.
    pub fn kick(&self) -> &Arc<EventFd> {
        &self.kick
    }

    /// The way to the driver.
    pub fn interrupt(&self) -> &Arc<dyn VirtioInterrupt> {
        &self.interrupt
    }

    /// Takes the next chain. `None` means that there is none and that the
    /// driver has been asked to notify when there is one; or that the queue is
    /// broken. Malformed chains are counted and returned to the driver unused.
    pub fn pop(&mut self) -> Option<Chain> {
        // A guest can't keep this loop busy: it hands over at most a ring's
        // worth of malformed chains before the caller gets its turn.
        for _ in 0..=self.queue.size() {
            if self.broken {
                return None;
            }
            match self.next_chain() {
                Ok(Some(chain)) => {
                    self.disable_notification();
                    return Some(chain);
                }
                Ok(None) => {
                    if !self.enable_notification() {
                        return None;
                    }
                }
                Err(Malformed::Chain(chain)) => {
                    self.counters.count_malformed();
                    tracing::debug!(queue = self.index, "malformed descriptor chain");
                    self.add_used(chain, 0);
                }
                Err(Malformed::Ring) => self.fail(),
            }
        }
        // Come back for the rest.
        self.kick.signal();
        None
    }

    /// Puts the chain that was taken last back. Nothing may have been taken
    /// since.
    pub fn unpop(&mut self, chain: Chain) {
        self.queue.go_to_previous_position();
        self.recycle(chain);
    }

    /// Returns a chain to the driver; `written` bytes of its writable part,
    /// from the start, are filled.
    pub fn add_used(&mut self, chain: Chain, written: u32) {
        self.add_used_together(std::iter::once((chain, written)));
    }

    /// Returns chains to the driver, which sees all of them or none: what one
    /// packet in several buffers needs (virtio 1.2, 5.1.6.4).
    pub fn add_used_together(&mut self, chains: impl IntoIterator<Item = (Chain, u32)>) {
        let mut next = self.queue.next_used();
        for (chain, written) in chains {
            let slot = u64::from(next % self.queue.size());
            let element = GuestAddress(self.queue.used_ring() + 4 + 8 * slot);
            let mut bytes = [0; 8];
            bytes[..2].copy_from_slice(&chain.head.to_le_bytes());
            bytes[4..].copy_from_slice(&written.to_le_bytes());
            if !self.broken && self.memory.write(element, &bytes).is_err() {
                self.fail();
            }
            next = next.wrapping_add(1);
            self.recycle(chain);
        }
        if self.broken {
            return;
        }
        let added = next.wrapping_sub(self.queue.next_used());
        self.used_unsignalled = self.used_unsignalled.saturating_add(added);
        self.queue.set_next_used(next);
        let index = vm_memory::GuestAddress(self.queue.used_ring() + 2);
        // Released after the elements, so that the driver sees them whole.
        let stored = self
            .memory
            .backend()
            .store(next.to_le(), index, Ordering::Release);
        if stored.is_err() {
            self.fail();
        }
    }

    /// Tells the driver of used chains, if there are any since the last call
    /// and it wants to know. Call it once per batch.
    pub fn signal(&mut self) {
        let used = std::mem::take(&mut self.used_unsignalled);
        if used == 0 || self.broken {
            return;
        }
        let wanted = self.driver_wants_interrupt(used);
        if wanted || std::mem::take(&mut self.signal_anyway) {
            self.interrupt.signal_queue(self.index);
        }
    }

    /// Gives the queue up: the driver broke the rules.
    pub fn fail(&mut self) {
        if std::mem::replace(&mut self.broken, true) {
            return;
        }
        self.counters.broken_queues.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(
            queue = self.index,
            "the driver broke its virtqueue; device needs reset"
        );
        self.interrupt.needs_reset();
    }

    /// Whether the queue was given up.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// Where it stands. Chains that were taken and not used are lost to it.
    pub fn state(&self) -> QueueState {
        QueueState {
            size: self.queue.size(),
            descriptor_table: GuestAddress(self.queue.desc_table()),
            available_ring: GuestAddress(self.queue.avail_ring()),
            used_ring: GuestAddress(self.queue.used_ring()),
            next_avail: self.queue.next_avail(),
            next_used: self.queue.next_used(),
            event_index: self.queue.event_idx_enabled(),
        }
    }

    fn next_chain(&mut self) -> Result<Option<Chain>, Malformed> {
        let backend = self.memory.backend();
        let mut chains = self.queue.iter(backend).map_err(|_| Malformed::Ring)?;
        let Some(mut descriptors) = chains.next() else {
            return Ok(None);
        };
        let head = descriptors.head_index();
        if head >= self.queue.size() {
            return Err(Malformed::Ring);
        }
        let mut chain = self.spare.pop().unwrap_or_default();
        chain.head = head;

        // The walker ends silently where a chain is broken. It ended well only
        // if the last descriptor says so.
        let mut complete = false;
        let mut count = 0;
        for descriptor in &mut descriptors {
            complete = !descriptor.has_next();
            count += 1;
            let segment = Segment {
                address: GuestAddress(descriptor.addr().0),
                length: descriptor.len(),
            };
            let in_ram = self
                .memory
                .find(segment.address, u64::from(segment.length))
                .is_some();
            let in_order = descriptor.is_write_only() || chain.writable.is_empty();
            if count > MAX_SEGMENTS || !in_order || !(in_ram || segment.length == 0) {
                complete = false;
                break;
            }
            if segment.length == 0 {
                continue;
            }
            if descriptor.is_write_only() {
                chain.writable.push(segment);
            } else {
                chain.readable.push(segment);
            }
        }
        if complete {
            Ok(Some(chain))
        } else {
            Err(Malformed::Chain(chain))
        }
    }

    fn recycle(&mut self, mut chain: Chain) {
        if self.spare.len() < usize::from(self.queue.size()) {
            chain.readable.clear();
            chain.writable.clear();
            self.spare.push(chain);
        }
    }

    fn disable_notification(&mut self) {
        if !std::mem::replace(&mut self.quiet, true) {
            // Fails only if the ring is not RAM, which was checked.
            let _ = self.queue.disable_notification(self.memory.backend());
        }
    }

    /// Asks for notifications; whether chains arrived meanwhile.
    fn enable_notification(&mut self) -> bool {
        self.quiet = false;
        match self.queue.enable_notification(self.memory.backend()) {
            Ok(more) => more,
            Err(_) => {
                self.fail();
                false
            }
        }
    }

    /// Whether the driver wants to know of the last `used` chains (2.7.7).
    fn driver_wants_interrupt(&mut self, used: u16) -> bool {
        // What is used must be seen before the driver's wish is looked at.
        fence(Ordering::SeqCst);
        let available = self.queue.avail_ring();
        let by_event = self.queue.event_idx_enabled();
        let at = if by_event {
            // used_event, behind the ring.
            available + 4 + 2 * u64::from(self.queue.size())
        } else {
            available
        };
        let loaded: Result<u16, _> = self
            .memory
            .backend()
            .load(vm_memory::GuestAddress(at), Ordering::Relaxed);
        match loaded.map(u16::from_le) {
            Ok(event) if by_event => {
                let next = self.queue.next_used();
                next.wrapping_sub(event).wrapping_sub(1) < used
            }
            Ok(flags) => {
                const NO_INTERRUPT: u16 = 1;
                flags & NO_INTERRUPT == 0
            }
            Err(_) => {
                self.fail();
                false
            }
        }
    }
}

enum Malformed {
    /// This chain, which can be returned to the driver.
    Chain(Chain),
    /// The ring itself.
    Ring,
}

fn ring_from(state: &QueueState, max_size: u16) -> Result<Queue, QueueError> {
    let invalid_size = |_| QueueError::InvalidSize(state.size);
    let misaligned = |_| QueueError::Misaligned;
    let mut queue = Queue::new(max_size).map_err(invalid_size)?;
    queue.try_set_size(state.size).map_err(invalid_size)?;
    let address = |address: GuestAddress| vm_memory::GuestAddress(address.0);
    queue
        .try_set_desc_table_address(address(state.descriptor_table))
        .map_err(misaligned)?;
    queue
        .try_set_avail_ring_address(address(state.available_ring))
        .map_err(misaligned)?;
    queue
        .try_set_used_ring_address(address(state.used_ring))
        .map_err(misaligned)?;
    queue.set_next_avail(state.next_avail);
    queue.set_next_used(state.next_used);
    queue.set_event_idx(state.event_index);
    queue.set_ready(true);
    Ok(queue)
}

/// How many buffers the driver has made available since `state`, for tests
/// and diagnosis.
pub fn pending(memory: &GuestMemory, state: &QueueState) -> Option<u16> {
    let mut index = [0; 2];
    let address = state.available_ring.checked_add(2)?;
    memory.read(address, &mut index).ok()?;
    Some((Wrapping(u16::from_le_bytes(index)) - Wrapping(state.next_avail)).0)
}

#[cfg(test)]
#[path = "queue_test.rs"]
mod test;
