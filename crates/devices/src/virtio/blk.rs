//! Virtio block device (virtio 1.2, 5.2): a disk.
//!
//! Every queue has its own thread and its own way to the disk, so a guest with
//! several processors uses several of the host's. Guest memory is handed to
//! the disk by address: nothing is copied.
//!
//! [`request`] is the protocol, [`handler`] what a queue's thread does,
//! [`backend`] what it needs of a disk.

pub mod backend;
pub mod handler;
pub mod request;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use favo_accel::EventCounter;
use serde::{Deserialize, Serialize};

use super::device::{
    DeviceError, DeviceState, DeviceType, QueueResources, VirtioDevice, read_config_bytes,
};
use super::queue::{QueueState, Virtqueue};
use super::worker::Worker;
use crate::state::StateError;
use backend::{BlockDevice, BlockInfo};
use handler::{Agreed, BlkCounters, BlkHandler};
use request::{ID_SIZE, Limits, MAX_RANGES, SECTOR_SIZE};

const NAME: &str = DeviceType::Block.name();
const STATE_VERSION: u32 = 1;
/// Descriptors of each queue.
const QUEUE_SIZE: u16 = 256;
/// The most queues of one device.
pub const MAX_QUEUES: u16 = 64;

const F_SEG_MAX: u64 = 1 << 2;
const F_RO: u64 = 1 << 5;
const F_BLK_SIZE: u64 = 1 << 6;
const F_FLUSH: u64 = 1 << 9;
const F_TOPOLOGY: u64 = 1 << 10;
const F_MQ: u64 = 1 << 12;
const F_DISCARD: u64 = 1 << 13;
const F_WRITE_ZEROES: u64 = 1 << 14;

/// Buffers of one request: a chain's length, less header and status.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// The longest discard or write-zeroes range, in sectors: 1 GiB.
const MAX_RANGE_SECTORS: u32 = 1 << 21;

fn one() -> u16 {
    1
}

/// A disk as the guest sees it. What is behind it is given to
/// [`BlkSpec::build`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlkSpec {
    /// Queues, each with a thread; as many as the guest has processors is
    /// best.
    #[serde(default = "one")]
    pub queues: u16,
    /// The disk's serial number in the guest (`/dev/disk/by-id/virtio-…`), at
    /// most 20 bytes.
    #[serde(default)]
    pub serial: String,
}

impl Default for BlkSpec {
    fn default() -> Self {
        Self {
            queues: 1,
            serial: String::new(),
        }
    }
}

impl BlkSpec {
    /// Makes the device over `disk`.
    pub fn build(&self, disk: Arc<dyn BlockDevice>) -> Result<Blk, DeviceError> {
        let invalid = |reason: String| DeviceError::InvalidSpec {
            device: NAME,
            reason,
        };
        if self.queues == 0 || self.queues > MAX_QUEUES {
            let reason = format!("{} queues; choose 1 to {MAX_QUEUES}", self.queues);
            return Err(invalid(reason));
        }
        let serial = self.serial.as_bytes();
        if serial.len() > ID_SIZE {
            let reason = format!(
                "the serial number '{}' is longer than {ID_SIZE} bytes",
                self.serial
            );
            return Err(invalid(reason));
        }
        let mut id = [0; ID_SIZE];
        id[..serial.len()].copy_from_slice(serial);
        let info = disk.info();
        check(&info).map_err(invalid)?;
        Ok(Blk {
            disk,
            info,
            id,
            features: 0,
            workers: (0..self.queues).map(|_| None).collect(),
            queue_sizes: vec![QUEUE_SIZE; usize::from(self.queues)],
            counters: Arc::default(),
        })
    }
}

fn check(info: &BlockInfo) -> Result<(), String> {
    let sizes = [info.logical_block_size, info.physical_block_size];
    if sizes
        .iter()
        .any(|size| !size.is_power_of_two() || *size < 512)
        || sizes[0] > sizes[1]
    {
        return Err(format!("block sizes of {sizes:?} bytes are not possible"));
    }
    if !info.capacity.is_multiple_of(sizes[0].into()) {
        return Err(format!(
            "a disk of {} bytes is not a whole number of {}-byte blocks",
            info.capacity, sizes[0]
        ));
    }
    Ok(())
}

/// The block device.
pub struct Blk {
    disk: Arc<dyn BlockDevice>,
    info: BlockInfo,
    id: [u8; ID_SIZE],
    features: u64,
    workers: Vec<Option<Worker<BlkHandler>>>,
    queue_sizes: Vec<u16>,
    counters: Arc<BlkCounters>,
}

impl Blk {
    /// `struct virtio_blk_config`, as far as [`Blk::features`] make it valid.
    fn config(&self) -> [u8; 60] {
        let info = &self.info;
        let exponent = (info.physical_block_size / info.logical_block_size).trailing_zeros();
        let range_alignment = info.physical_block_size / SECTOR_SIZE as u32;
        let mut config = [0; 60];
        let mut put = |offset: usize, bytes: &[u8]| {
            config[offset..offset + bytes.len()].copy_from_slice(bytes);
        };
        put(0, &(info.capacity / SECTOR_SIZE).to_le_bytes());
        put(12, &SEG_MAX.to_le_bytes());
        put(20, &info.logical_block_size.to_le_bytes());
        put(24, &[exponent as u8, 0]);
        // min_io_size and opt_io_size, in logical blocks.
        put(26, &((1u32 << exponent).min(1 << 15) as u16).to_le_bytes());
        put(34, &(self.workers.len() as u16).to_le_bytes());
        put(36, &MAX_RANGE_SECTORS.to_le_bytes());
        put(40, &(MAX_RANGES as u32).to_le_bytes());
        put(44, &range_alignment.to_le_bytes());
        put(48, &MAX_RANGE_SECTORS.to_le_bytes());
        put(52, &(MAX_RANGES as u32).to_le_bytes());
        put(56, &[u8::from(info.discard)]);
        config
    }

    fn start(
        &self,
        index: u16,
        resources: QueueResources,
    ) -> Result<Worker<BlkHandler>, DeviceError> {
        let host = |operation| {
            move |source| DeviceError::Host {
                device: NAME,
                operation,
                source,
            }
        };
        let queue = Virtqueue::for_device(
            NAME,
            &self.queue_sizes,
            index,
            resources,
            &self.counters.queues,
        )?;
        let disk = self
            .disk
            .queue(queue.size())
            .map_err(host("opening a queue of the disk"))?;
        let limits = Limits {
            capacity: self.info.capacity,
            read_only: self.info.read_only,
            discard: self.features & F_DISCARD != 0,
            write_zeroes: self.features & F_WRITE_ZEROES != 0,
        };
        let agreed = Agreed {
            limits,
            id: self.id,
            write_through: self.features & F_FLUSH == 0,
        };
        let handler = BlkHandler::new(&queue, disk, agreed, self.counters.clone());
        let name = format!("virtio-blk {index}");
        let worker = Worker::spawn(NAME, name, self.workers.len(), handler)?;
        worker
            .call(BlkHandler::watch)?
            .map_err(host("watching the disk's event descriptor"))?;
        worker.start_queue(queue)?;
        Ok(worker)
    }
}

impl VirtioDevice for Blk {
    fn device_type(&self) -> DeviceType {
        DeviceType::Block
    }

    fn features(&self) -> u64 {
        let mut features = F_SEG_MAX | F_BLK_SIZE | F_FLUSH | F_TOPOLOGY | F_MQ;
        for (has, feature) in [
            (self.info.read_only, F_RO),
            (self.info.discard && !self.info.read_only, F_DISCARD),
            (
                self.info.write_zeroes && !self.info.read_only,
                F_WRITE_ZEROES,
            ),
        ] {
            if has {
                features |= feature;
            }
        }
        features
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn set_features(&mut self, features: u64) {
        self.features = features;
    }

    fn read_config(&self, offset: u32, data: &mut [u8]) {
        read_config_bytes(&self.config(), offset, data);
    }

    fn write_config(&mut self, _offset: u32, _data: &[u8]) {}

    fn start_queue(&mut self, index: u16, resources: QueueResources) -> Result<(), DeviceError> {
        match self.workers.get(usize::from(index)) {
            None => Err(DeviceError::NoSuchQueue {
                device: NAME,
                queue: index,
            }),
            Some(Some(_)) => Err(DeviceError::AlreadyStarted {
                device: NAME,
                queue: index,
            }),
            Some(None) => {
                self.workers[usize::from(index)] = Some(self.start(index, resources)?);
                Ok(())
            }
        }
    }

    fn stop_queue(&mut self, index: u16) -> Result<Option<QueueState>, DeviceError> {
        match self
            .workers
            .get_mut(usize::from(index))
            .and_then(Option::take)
        {
            Some(worker) => worker.stop_queue(index),
            None => Ok(None),
        }
    }

    fn reset(&mut self) {
        self.features = 0;
    }

    fn save(&self) -> Result<DeviceState, DeviceError> {
        DeviceState::encode(DeviceType::Block, STATE_VERSION, &self.info.capacity)
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), DeviceError> {
        let capacity: u64 = state.decode(DeviceType::Block, STATE_VERSION)?;
        if capacity != self.info.capacity {
            let reason = format!(
                "its disk has {capacity} bytes, this one has {}",
                self.info.capacity
            );
            return Err(StateError::invalid(NAME, reason).into());
        }
        Ok(())
    }

    fn counters(&self) -> Vec<EventCounter> {
        let mut counters = self.counters.queues.event_counters();
        let own: [(&'static str, &AtomicU64); 4] = [
            ("read-bytes", &self.counters.read_bytes),
            ("written-bytes", &self.counters.written_bytes),
            ("flushes", &self.counters.flushes),
            ("errors", &self.counters.errors),
        ];
        counters.extend(own.map(|(name, count)| EventCounter {
            name,
            detail: None,
            count: count.load(Ordering::Relaxed),
        }));
        counters
    }
}

#[cfg(test)]
#[path = "blk_test.rs"]
mod test;
