//! A small virtio driver, to test devices without a guest.
//!
//! It lays rings out in guest memory and drives a device through its real
//! worker threads, keeping to the driver's side of the specification: it
//! notifies only when the device asked for it and waits only for interrupts it
//! asked for, so that a lost notification hangs a test (which then fails by
//! its time-out) instead of going unseen.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use favo_accel::{GuestMemory, MemoryBacking};
use favo_types::{ByteCount, GuestAddress};
use vm_memory::Bytes;

use super::device::{F_EVENT_IDX, QueueResources, VirtioDevice, VirtioInterrupt};
use super::event::EventFd;
use super::queue::QueueState;

/// How long a test waits for a device before it fails.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// RAM for a test: `size` from address 0.
pub fn test_memory(size: ByteCount) -> GuestMemory {
    GuestMemory::new(&[(GuestAddress(0), size)], MemoryBacking::Anonymous)
        .expect("mapping test memory")
}

/// Records what a device tells its driver.
#[derive(Default)]
pub struct TestInterrupt {
    queues: Mutex<HashMap<u16, u64>>,
    changed: Condvar,
    config: AtomicU32,
    reset_needed: AtomicBool,
}

impl TestInterrupt {
    /// Interrupts of a queue so far.
    pub fn queue_count(&self, queue: u16) -> u64 {
        *self.queues.lock().unwrap().get(&queue).unwrap_or(&0)
    }

    /// Waits until there were more than `seen` interrupts of a queue.
    pub fn wait_queue(&self, queue: u16, seen: u64, until: Instant) -> bool {
        let mut queues = self.queues.lock().unwrap();
        while *queues.get(&queue).unwrap_or(&0) <= seen {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            queues = self.changed.wait_timeout(queues, left).unwrap().0;
        }
        true
    }

    /// Configuration changes so far.
    pub fn config_count(&self) -> u32 {
        self.config.load(Ordering::SeqCst)
    }

    /// Whether the device gave up.
    pub fn reset_needed(&self) -> bool {
        self.reset_needed.load(Ordering::SeqCst)
    }
}

impl VirtioInterrupt for TestInterrupt {
    fn signal_queue(&self, queue: u16) {
        *self.queues.lock().unwrap().entry(queue).or_default() += 1;
        self.changed.notify_all();
    }

    fn signal_config(&self) {
        self.config.fetch_add(1, Ordering::SeqCst);
    }

    fn needs_reset(&self) {
        self.reset_needed.store(true, Ordering::SeqCst);
    }
}

/// A driver: memory, and an allocator in it.
pub struct TestDriver {
    /// The guest's RAM.
    pub memory: GuestMemory,
    /// What the device signalled.
    pub interrupt: Arc<TestInterrupt>,
    /// What was negotiated.
    pub features: u64,
    next: u64,
}

impl TestDriver {
    /// A driver with this much RAM that negotiates everything `device` offers
    /// and the given transport features.
    pub fn new(device: &mut dyn VirtioDevice, size: ByteCount, transport_features: u64) -> Self {
        let features = device.features() | transport_features;
        device.set_features(features);
        Self {
            memory: test_memory(size),
            interrupt: Arc::default(),
            features,
            next: 0x1000,
        }
    }

    /// Page-aligned memory nothing else uses.
    pub fn allocate(&mut self, bytes: u64) -> GuestAddress {
        let address = self.next;
        self.next = (address + bytes).next_multiple_of(4096);
        assert!(
            self.next <= self.memory.size().bytes(),
            "test memory is full"
        );
        GuestAddress(address)
    }

    /// Lays a queue out; `buffers` bytes are reserved for what is sent on it.
    pub fn queue(&mut self, index: u16, size: u16, indirect: bool, buffers: u64) -> DriverQueue {
        let n = u64::from(size);
        let table = self.allocate(16 * n);
        let available = self.allocate(6 + 2 * n);
        let used = self.allocate(6 + 8 * n);
        let tables = self.allocate(16 * DriverQueue::INDIRECT_LENGTH * n);
        let arena = self.allocate(buffers);
        let mut queue = DriverQueue {
            index,
            size,
            event_index: self.features & F_EVENT_IDX != 0,
            indirect,
            memory: self.memory.clone(),
            interrupt: self.interrupt.clone(),
            kick: Arc::new(EventFd::new().unwrap()),
            table,
            available,
            used,
            tables,
            arena,
            arena_size: buffers,
            arena_used: 0,
            next_available: 0,
            last_used: 0,
            free: (0..size).rev().collect(),
            in_flight: HashMap::new(),
            kicks: 0,
            pending_from: 0,
        };
        queue.ask_for_interrupt();
        queue
    }
}

/// A request the device returned.
#[derive(Debug, PartialEq, Eq)]
pub struct Completion {
    /// What [`DriverQueue::submit`] returned.
    pub head: u16,
    /// The length the device reported.
    pub written: u32,
    /// All device-writable buffers, joined, as they are now.
    pub data: Vec<u8>,
}

struct InFlight {
    descriptors: Vec<u16>,
    writable: Vec<(GuestAddress, u32)>,
}

/// The driver's side of one queue.
pub struct DriverQueue {
    index: u16,
    size: u16,
    event_index: bool,
    indirect: bool,
    memory: GuestMemory,
    interrupt: Arc<TestInterrupt>,
    kick: Arc<EventFd>,
    table: GuestAddress,
    available: GuestAddress,
    used: GuestAddress,
    tables: GuestAddress,
    arena: GuestAddress,
    arena_size: u64,
    arena_used: u64,
    next_available: u16,
    last_used: u16,
    free: Vec<u16>,
    in_flight: HashMap<u16, InFlight>,
    pending_from: u16,
    /// Notifications sent.
    pub kicks: u64,
}

impl DriverQueue {
    /// Descriptors in each indirect table.
    pub const INDIRECT_LENGTH: u64 = 160;

    /// Where the rings lie; as for a queue that never ran.
    pub fn state(&self) -> QueueState {
        QueueState {
            size: self.size,
            descriptor_table: self.table,
            available_ring: self.available,
            used_ring: self.used,
            next_avail: 0,
            next_used: 0,
            event_index: self.event_index,
        }
    }

    /// What the device needs to run the queue from `state`.
    pub fn resources(&self, state: QueueState) -> QueueResources {
        QueueResources {
            memory: self.memory.clone(),
            state,
            kick: self.kick.clone(),
            interrupt: self.interrupt.clone(),
        }
    }

    /// Starts the queue from its beginning.
    pub fn start(&self, device: &mut dyn VirtioDevice) {
        device
            .start_queue(self.index, self.resources(self.state()))
            .expect("starting a queue");
    }

    /// Descriptors not in use.
    pub fn free_descriptors(&self) -> usize {
        self.free.len()
    }

    /// Copies `readable` buffers into guest memory, adds a chain of them and
    /// of `writable` buffers of the given lengths, and makes it available
    /// without notifying.
    pub fn add(&mut self, readable: &[&[u8]], writable: &[u32]) -> u16 {
        let mut buffers = Vec::new();
        for bytes in readable {
            let address = self.buffer(bytes.len() as u64);
            self.memory.write(address, bytes).unwrap();
            buffers.push((address, bytes.len() as u32, false));
        }
        let mut expected = Vec::new();
        for &length in writable {
            let address = self.buffer(length.into());
            expected.push((address, length));
            buffers.push((address, length, true));
        }
        self.add_raw(&buffers, expected)
    }

    /// Makes a chain of exactly these buffers available: address, length,
    /// device-writable.
    pub fn add_raw(
        &mut self,
        buffers: &[(GuestAddress, u32, bool)],
        writable: Vec<(GuestAddress, u32)>,
    ) -> u16 {
        let descriptors: Vec<u16> = if self.indirect {
            assert!(buffers.len() as u64 <= Self::INDIRECT_LENGTH);
            let head = self.free.pop().expect("a free descriptor");
            let table = self.tables.0 + u64::from(head) * 16 * Self::INDIRECT_LENGTH;
            self.write_table(
                GuestAddress(table),
                buffers,
                &(0..buffers.len() as u16).collect::<Vec<_>>(),
            );
            self.write_descriptor(self.table, head, table, 16 * buffers.len() as u32, 4, 0);
            vec![head]
        } else {
            let at = self.free.len() - buffers.len();
            let taken = self.free.split_off(at);
            self.write_table(self.table, buffers, &taken);
            taken
        };
        let head = descriptors[0];
        self.in_flight.insert(
            head,
            InFlight {
                descriptors,
                writable,
            },
        );
        self.publish(head);
        head
    }

    /// Puts any number on the available ring.
    pub fn publish(&mut self, head: u16) {
        let slot = u64::from(self.next_available % self.size);
        let entry = GuestAddress(self.available.0 + 4 + 2 * slot);
        self.memory.write(entry, &head.to_le_bytes()).unwrap();
        self.next_available = self.next_available.wrapping_add(1);
        self.store_u16(self.available.0 + 2, self.next_available);
    }

    /// Notifies the device of everything added, if it wants to know.
    pub fn notify(&mut self) {
        fence(Ordering::SeqCst);
        let old = std::mem::replace(&mut self.pending_from, self.next_available);
        let wanted = if self.event_index {
            let event = self.load_u16(self.used.0 + 4 + 8 * u64::from(self.size));
            let new = self.next_available;
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            self.load_u16(self.used.0) & 1 == 0
        };
        if wanted {
            self.kick_now();
        }
    }

    /// Notifies the device in any case.
    pub fn kick_now(&mut self) {
        self.kicks += 1;
        self.kick.signal();
    }

    /// [`DriverQueue::add`], then [`DriverQueue::notify`].
    pub fn submit(&mut self, readable: &[&[u8]], writable: &[u32]) -> u16 {
        let head = self.add(readable, writable);
        self.notify();
        head
    }

    /// The next chain the device returned, if there is one.
    pub fn poll(&mut self) -> Option<Completion> {
        if self.load_u16(self.used.0 + 2) == self.last_used {
            return None;
        }
        let slot = u64::from(self.last_used % self.size);
        let mut element = [0; 8];
        self.memory
            .read(GuestAddress(self.used.0 + 4 + 8 * slot), &mut element)
            .unwrap();
        self.last_used = self.last_used.wrapping_add(1);
        self.ask_for_interrupt();
        let head = u32::from_le_bytes(element[..4].try_into().unwrap()) as u16;
        let written = u32::from_le_bytes(element[4..].try_into().unwrap());
        let request = self
            .in_flight
            .remove(&head)
            .expect("the device returned a chain that it was not given");
        self.free.extend(&request.descriptors);
        let mut data = Vec::new();
        for (address, length) in request.writable {
            let start = data.len();
            data.resize(start + length as usize, 0);
            self.memory.read(address, &mut data[start..]).unwrap();
        }
        Some(Completion {
            head,
            written,
            data,
        })
    }

    /// The next chain the device returns; waits for its interrupt.
    pub fn wait(&mut self) -> Completion {
        self.wait_for(PATIENCE).unwrap_or_else(|| {
            panic!(
                "queue {}: no used buffer and no interrupt within {PATIENCE:?}",
                self.index
            )
        })
    }

    /// The next chain the device returns within `patience`.
    pub fn wait_for(&mut self, patience: Duration) -> Option<Completion> {
        let until = Instant::now() + patience;
        loop {
            let seen = self.interrupt.queue_count(self.index);
            fence(Ordering::SeqCst);
            if let Some(completion) = self.poll() {
                return Some(completion);
            }
            if !self.interrupt.wait_queue(self.index, seen, until) {
                return self.poll();
            }
        }
    }

    /// Submits one request and waits for its completion.
    pub fn request(&mut self, readable: &[&[u8]], writable: &[u32]) -> Completion {
        let head = self.submit(readable, writable);
        let completion = self.wait();
        assert_eq!(completion.head, head);
        completion
    }

    fn buffer(&mut self, length: u64) -> GuestAddress {
        assert!(
            length <= self.arena_size,
            "the queue's buffers are too small"
        );
        if self.arena_used + length > self.arena_size {
            self.arena_used = 0;
        }
        let address = GuestAddress(self.arena.0 + self.arena_used);
        self.arena_used += length.next_multiple_of(64);
        address
    }

    fn write_table(
        &self,
        table: GuestAddress,
        buffers: &[(GuestAddress, u32, bool)],
        slots: &[u16],
    ) {
        for (i, &(address, length, writable)) in buffers.iter().enumerate() {
            let next = slots.get(i + 1);
            let flags = u16::from(next.is_some()) | if writable { 2 } else { 0 };
            let next = next.copied().unwrap_or(0);
            self.write_descriptor(table, slots[i], address.0, length, flags, next);
        }
    }

    fn write_descriptor(
        &self,
        table: GuestAddress,
        slot: u16,
        address: u64,
        length: u32,
        flags: u16,
        next: u16,
    ) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        bytes[8..12].copy_from_slice(&length.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        let at = GuestAddress(table.0 + 16 * u64::from(slot));
        self.memory.write(at, &bytes).unwrap();
    }

    /// Wants an interrupt for the very next used buffer.
    fn ask_for_interrupt(&mut self) {
        if self.event_index {
            self.store_u16(
                self.available.0 + 4 + 2 * u64::from(self.size),
                self.last_used,
            );
            fence(Ordering::SeqCst);
        }
    }

    fn load_u16(&self, address: u64) -> u16 {
        let value: u16 = self
            .memory
            .backend()
            .load(vm_memory::GuestAddress(address), Ordering::Acquire)
            .unwrap();
        u16::from_le(value)
    }

    fn store_u16(&self, address: u64, value: u16) {
        self.memory
            .backend()
            .store(
                value.to_le(),
                vm_memory::GuestAddress(address),
                Ordering::Release,
            )
            .unwrap();
    }
}
