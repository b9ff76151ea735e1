//! From a virtio device to its driver: the ISR byte, the configuration
//! generation, the "needs reset" flag, and MSI-X vectors.
//!
//! Shared by the transport, whose registers these are, and by the device's
//! threads. Lock-free, so that a thread may signal while a processor's thread
//! holds the transport and waits for that very thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, Ordering};

use super::device::VirtioInterrupt;
use crate::pci::Msix;

/// `VIRTIO_MSI_NO_VECTOR`.
pub const NO_VECTOR: u16 = 0xffff;

const ISR_QUEUE: u8 = 1;
const ISR_CONFIG: u8 = 2;

/// See the module.
pub struct TransportInterrupt {
    msix: Arc<Msix>,
    isr: AtomicU8,
    generation: AtomicU8,
    needs_reset: AtomicBool,
    /// The driver has finished its set-up and wants to hear of things.
    live: AtomicBool,
    config_vector: AtomicU16,
    queue_vectors: Vec<AtomicU16>,
}

impl TransportInterrupt {
    /// For a device with this many queues.
    pub fn new(queues: usize, msix: Arc<Msix>) -> Self {
        Self {
            msix,
            isr: AtomicU8::new(0),
            generation: AtomicU8::new(0),
            needs_reset: AtomicBool::new(false),
            live: AtomicBool::new(false),
            config_vector: AtomicU16::new(NO_VECTOR),
            queue_vectors: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
        }
    }

    /// Reads the ISR byte, which clears it.
    pub fn take_isr(&self) -> u8 {
        self.isr.swap(0, Ordering::AcqRel)
    }

    /// The ISR byte, left as it is.
    pub fn isr(&self) -> u8 {
        self.isr.load(Ordering::Acquire)
    }

    /// Changes with every change of the configuration space.
    pub fn generation(&self) -> u8 {
        self.generation.load(Ordering::Acquire)
    }

    /// Whether the device gave up.
    pub fn is_reset_needed(&self) -> bool {
        self.needs_reset.load(Ordering::Acquire)
    }

    /// Whether the driver may be told of configuration changes.
    pub fn set_live(&self, live: bool) {
        self.live.store(live, Ordering::Release);
    }

    /// The vector for configuration changes.
    pub fn config_vector(&self) -> u16 {
        self.config_vector.load(Ordering::Acquire)
    }

    /// Sets it; a vector that does not exist becomes [`NO_VECTOR`].
    pub fn set_config_vector(&self, vector: u16) {
        self.config_vector
            .store(self.existing(vector), Ordering::Release);
    }

    /// The vector of a queue.
    pub fn queue_vector(&self, queue: u16) -> u16 {
        self.queue_vectors
            .get(usize::from(queue))
            .map_or(NO_VECTOR, |vector| vector.load(Ordering::Acquire))
    }

    /// Sets it; a vector that does not exist becomes [`NO_VECTOR`].
    pub fn set_queue_vector(&self, queue: u16, vector: u16) {
        if let Some(slot) = self.queue_vectors.get(usize::from(queue)) {
            slot.store(self.existing(vector), Ordering::Release);
        }
    }

    /// Back to power-on.
    pub fn reset(&self) {
        self.restore(0, 0, false);
        self.live.store(false, Ordering::Release);
        self.config_vector.store(NO_VECTOR, Ordering::Release);
        for vector in &self.queue_vectors {
            vector.store(NO_VECTOR, Ordering::Release);
        }
    }

    /// Takes over saved values.
    pub fn restore(&self, isr: u8, generation: u8, needs_reset: bool) {
        self.isr.store(isr, Ordering::Release);
        self.generation.store(generation, Ordering::Release);
        self.needs_reset.store(needs_reset, Ordering::Release);
    }

    fn existing(&self, vector: u16) -> u16 {
        if vector < self.msix.vectors() {
            vector
        } else {
            NO_VECTOR
        }
    }

    fn send(&self, vector: u16) {
        if vector != NO_VECTOR {
            self.msix.signal(vector);
        }
    }
}

impl VirtioInterrupt for TransportInterrupt {
    fn signal_queue(&self, queue: u16) {
        self.isr.fetch_or(ISR_QUEUE, Ordering::AcqRel);
        self.send(self.queue_vector(queue));
    }

    fn signal_config(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        if self.live.load(Ordering::Acquire) {
            self.isr.fetch_or(ISR_CONFIG, Ordering::AcqRel);
            self.send(self.config_vector());
        }
    }

    fn needs_reset(&self) {
        self.needs_reset.store(true, Ordering::Release);
        self.signal_config();
    }
}
