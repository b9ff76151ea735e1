//! Virtio entropy device (virtio 1.2, 5.4): random bytes from the host's
//! getrandom(2).
//!
//! One queue; the driver offers buffers and gets them back filled. There is
//! neither configuration nor state. How much a guest may draw at a time is
//! bounded, so that one guest can't keep a host thread in the kernel.

use std::sync::Arc;

use rustix::rand::{GetRandomFlags, getrandom};
use serde::{Deserialize, Serialize};

use super::device::{DeviceError, DeviceState, DeviceType, QueueResources, VirtioDevice};
use super::queue::{QueueCounters, QueueState, Virtqueue, write_segments};
use super::worker::{Context, Handler, Worker};

const NAME: &str = DeviceType::Entropy.name();
const QUEUE_SIZES: [u16; 1] = [64];
const STATE_VERSION: u32 = 1;

/// The most bytes one buffer chain is filled with; a driver that offers more
/// gets a short answer, which the specification allows.
const MAX_CHAIN_BYTES: usize = 4096;
/// Chains served before the thread looks at anything else.
const CHAINS_PER_STEP: usize = 16;

/// An entropy source.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RngSpec {}

impl RngSpec {
    /// Makes the device.
    pub fn build(&self) -> Result<Rng, DeviceError> {
        Ok(Rng {
            worker: Worker::spawn(NAME, "virtio-rng".into(), QUEUE_SIZES.len(), RngHandler)?,
            counters: Arc::default(),
        })
    }
}

/// The entropy device.
pub struct Rng {
    worker: Worker<RngHandler>,
    counters: Arc<QueueCounters>,
}

impl VirtioDevice for Rng {
    fn device_type(&self) -> DeviceType {
        DeviceType::Entropy
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn set_features(&mut self, _features: u64) {}

    fn read_config(&self, _offset: u32, data: &mut [u8]) {
        data.fill(0);
    }

    fn write_config(&mut self, _offset: u32, _data: &[u8]) {}

    fn start_queue(&mut self, index: u16, resources: QueueResources) -> Result<(), DeviceError> {
        let queue = Virtqueue::for_device(NAME, &QUEUE_SIZES, index, resources, &self.counters)?;
        self.worker.start_queue(queue)
    }

    fn stop_queue(&mut self, index: u16) -> Result<Option<QueueState>, DeviceError> {
        self.worker.stop_queue(index)
    }

    fn reset(&mut self) {}

    fn save(&self) -> Result<DeviceState, DeviceError> {
        DeviceState::encode(DeviceType::Entropy, STATE_VERSION, &())
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), DeviceError> {
        state.decode(DeviceType::Entropy, STATE_VERSION)
    }

    fn counters(&self) -> Vec<favo_accel::EventCounter> {
        self.counters.event_counters()
    }
}

struct RngHandler;

impl Handler for RngHandler {
    fn serve(&mut self, index: u16, context: &mut Context) {
        let Some(queue) = context.queue(index) else {
            return;
        };
        let mut random = [0; MAX_CHAIN_BYTES];
        let mut more = true;
        for _ in 0..CHAINS_PER_STEP {
            let Some(chain) = queue.pop() else {
                more = false;
                break;
            };
            let wanted = chain.writable_bytes().min(MAX_CHAIN_BYTES as u64) as usize;
            // Never blocks once the host has booted; on an error the driver
            // gets nothing and asks again.
            let got = getrandom(&mut random[..wanted], GetRandomFlags::NONBLOCK).unwrap_or(0);
            let written = write_segments(queue.memory(), chain.writable(), 0, &random[..got]);
            queue.add_used(chain, written as u32);
        }
        queue.signal();
        if more {
            context.request(index);
        }
    }
}

#[cfg(test)]
#[path = "rng_test.rs"]
mod test;
