//! What a virtio device is to its transport.
//!
//! A device does not know of PCI, registers or interrupt vectors. Its
//! transport negotiates features, then starts queues; the device serves them
//! on threads of its own and hands each queue's state back when it is stopped.
//!
//! The life of a device, in the only order a transport follows:
//!
//! ```text
//!  built ── set_features ── start_queue(i) ⇄ stop_queue(i) ── reset ─┐
//!    └───────────────────────────────────────────────────────────────┘
//! ```
//!
//! Pausing a machine stops all queues; saving happens between a stop and a
//! start; restoring is `restore`, `set_features`, then `start_queue` with the
//! saved queue states.

use std::sync::Arc;

use favo_accel::GuestMemory;
use serde::{Deserialize, Serialize};

use super::event::EventFd;
use super::queue::{QueueError, QueueState};
use crate::state::{StateError, check_version};

/// The device's type (virtio 1.2, 5).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u16)]
pub enum DeviceType {
    /// Network card.
    Network = 1,
    /// Block device.
    Block = 2,
    /// Console.
    Console = 3,
    /// Entropy source.
    Entropy = 4,
    /// Traditional memory balloon.
    Balloon = 5,
    /// Socket device.
    Socket = 19,
}

impl DeviceType {
    /// The virtio device ID.
    pub const fn id(self) -> u16 {
        self as u16
    }

    /// The name used in messages and saved states.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Network => "virtio-net",
            Self::Block => "virtio-blk",
            Self::Console => "virtio-console",
            Self::Entropy => "virtio-rng",
            Self::Balloon => "virtio-balloon",
            Self::Socket => "virtio-vsock",
        }
    }
}

/// `VIRTIO_F_INDIRECT_DESC` as a mask (virtio 1.2, 6).
pub const F_INDIRECT_DESC: u64 = 1 << 28;
/// `VIRTIO_F_EVENT_IDX` as a mask.
pub const F_EVENT_IDX: u64 = 1 << 29;
/// `VIRTIO_F_VERSION_1` as a mask.
pub const F_VERSION_1: u64 = 1 << 32;
/// `VIRTIO_F_RING_RESET` as a mask.
pub const F_RING_RESET: u64 = 1 << 40;

/// The ring features every transport of favo offers beside the device's own.
pub const TRANSPORT_FEATURES: u64 = F_INDIRECT_DESC | F_EVENT_IDX | F_VERSION_1 | F_RING_RESET;

/// Why a device can't do what its transport or the vmm asked.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// There is no such queue.
    #[error("{device} has no queue {queue}")]
    NoSuchQueue {
        /// Which device.
        device: &'static str,
        /// Which queue was asked for.
        queue: u16,
    },
    /// The queue is already running.
    #[error("queue {queue} of {device} is already running")]
    AlreadyStarted {
        /// Which device.
        device: &'static str,
        /// Which queue.
        queue: u16,
    },
    /// The driver set the queue up wrongly.
    #[error("queue {queue} of {device} can't be used: {source}")]
    Queue {
        /// Which device.
        device: &'static str,
        /// Which queue.
        queue: u16,
        /// What is wrong with it.
        source: QueueError,
    },
    /// The host refused something the device needs.
    #[error("{device}: {operation}: {source}")]
    Host {
        /// Which device.
        device: &'static str,
        /// What was being done.
        operation: &'static str,
        /// The host's answer.
        source: std::io::Error,
    },
    /// The device's thread is gone.
    #[error("{device}: its thread ended unexpectedly; restart the machine")]
    WorkerGone {
        /// Which device.
        device: &'static str,
    },
    /// The device was described wrongly.
    #[error("{device}: {reason}")]
    InvalidSpec {
        /// Which device.
        device: &'static str,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// The device can't be saved in the state it is in, or not at all.
    #[error("{device} can't be saved: {reason}")]
    NotSaveable {
        /// Which device.
        device: &'static str,
        /// Why.
        reason: String,
    },
    /// A saved state does not fit the device.
    #[error(transparent)]
    State(#[from] StateError),
}

/// What a device must remember beyond its queues, for snapshots and migration.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DeviceState {
    /// Which device it belongs to.
    pub device: DeviceType,
    /// Format of the payload; each device counts its own.
    pub version: u32,
    /// The device's own encoding (postcard of its state struct).
    pub payload: Vec<u8>,
}

impl DeviceState {
    /// Encodes `state` as the payload.
    pub fn encode<T: Serialize>(
        device: DeviceType,
        version: u32,
        state: &T,
    ) -> Result<Self, DeviceError> {
        let payload = postcard::to_stdvec(state).map_err(|error| DeviceError::NotSaveable {
            device: device.name(),
            reason: error.to_string(),
        })?;
        Ok(Self {
            device,
            version,
            payload,
        })
    }

    /// Decodes the payload; leftovers, another device and another version are
    /// errors.
    pub fn decode<T: for<'de> Deserialize<'de>>(
        &self,
        device: DeviceType,
        version: u32,
    ) -> Result<T, DeviceError> {
        let name = device.name();
        if self.device != device {
            let reason = format!("it is the state of a {}", self.device.name());
            return Err(StateError::invalid(name, reason).into());
        }
        check_version(name, self.version, version)?;
        let (state, rest) = postcard::take_from_bytes(&self.payload)
            .map_err(|error| StateError::invalid(name, error.to_string()))?;
        if !rest.is_empty() {
            let reason = format!("{} bytes are left over", rest.len());
            return Err(StateError::invalid(name, reason).into());
        }
        Ok(state)
    }
}

/// How a device reaches its driver. Implemented by the transport; callable
/// from any thread, never blocks on a queue or a device.
pub trait VirtioInterrupt: Send + Sync {
    /// Used buffers are waiting in `queue`.
    fn signal_queue(&self, queue: u16);

    /// The device's configuration space changed.
    fn signal_config(&self);

    /// The driver broke the rules so that the device can't go on: sets
    /// `DEVICE_NEEDS_RESET` and tells the driver (virtio 1.2, 2.1.1).
    fn needs_reset(&self);
}

/// What a device gets to run one queue.
pub struct QueueResources {
    /// The guest's RAM.
    pub memory: GuestMemory,
    /// Where the rings lie and how far they have been served.
    pub state: QueueState,
    /// Signalled when the driver notifies the queue.
    pub kick: Arc<EventFd>,
    /// The way to the driver.
    pub interrupt: Arc<dyn VirtioInterrupt>,
}

/// A virtio device. All methods are called by its transport, one at a time.
pub trait VirtioDevice: Send {
    /// What kind of device it is.
    fn device_type(&self) -> DeviceType;

    /// The device's own feature bits (0 to 23 and 50 to 127 in the
    /// specification; here those below 64). The transport adds
    /// [`TRANSPORT_FEATURES`].
    fn features(&self) -> u64;

    /// The largest size of each queue, a power of two; its length is the
    /// number of queues.
    fn queue_sizes(&self) -> &[u16];

    /// What was agreed with the driver: a subset of what was offered. Called
    /// before the first queue is started.
    fn set_features(&mut self, features: u64);

    /// Reads the device's configuration space. What lies behind its end reads
    /// as zeroes.
    fn read_config(&self, offset: u32, data: &mut [u8]);

    /// Writes the device's configuration space. Writes to fields the driver
    /// may not change have no effect.
    fn write_config(&mut self, offset: u32, data: &[u8]);

    /// Begins to serve a queue. The device looks at the ring at once: buffers
    /// that were made available while it was stopped are not lost. On an error
    /// the queue is as if it had not been started.
    fn start_queue(&mut self, index: u16, resources: QueueResources) -> Result<(), DeviceError>;

    /// Stops serving a queue and returns its state, `None` if it was not
    /// running. Every buffer taken from the ring has been used or is put back
    /// when this returns, so the state describes the queue fully, and nothing
    /// writes guest memory for it any more.
    fn stop_queue(&mut self, index: u16) -> Result<Option<QueueState>, DeviceError>;

    /// Back to how it was built. All queues are stopped.
    fn reset(&mut self);

    /// What must be remembered beyond the queues. All queues are stopped.
    fn save(&self) -> Result<DeviceState, DeviceError>;

    /// Loads what [`VirtioDevice::save`] returned. All of it is checked before
    /// any of it is loaded.
    fn restore(&mut self, state: &DeviceState) -> Result<(), DeviceError>;

    /// What the device counted, for people who tune or debug.
    fn counters(&self) -> Vec<favo_accel::EventCounter> {
        Vec::new()
    }
}

/// Copies the part of a configuration space that an access wants; what lies
/// behind the end reads as zeroes.
pub fn read_config_bytes(config: &[u8], offset: u32, data: &mut [u8]) {
    data.fill(0);
    let offset = offset as usize;
    if let Some(source) = config.get(offset..) {
        let length = source.len().min(data.len());
        data[..length].copy_from_slice(&source[..length]);
    }
}

#[cfg(test)]
#[path = "device_test.rs"]
mod test;
