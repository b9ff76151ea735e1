//! The transport's own state: device status, feature negotiation, and the set
//! up of queues (virtio 1.2, 2.1, 2.2, 3.1, and the common configuration
//! structure of 4.1.4.3).
//!
//! [`Transport`] decides which queues run. A queue runs exactly while the
//! driver has enabled it, `DRIVER_OK` is set, the device may master the bus,
//! and the machine is not paused; every event only changes one of these and
//! has queues started and stopped to match.

use std::sync::Arc;

use favo_accel::{AccessSize, GuestMemory};
use favo_types::GuestAddress;
use serde::{Deserialize, Serialize};

use super::device::{
    DeviceError, DeviceState, F_EVENT_IDX, F_RING_RESET, F_VERSION_1, QueueResources,
    TRANSPORT_FEATURES, VirtioDevice, VirtioInterrupt,
};
use super::event::EventFd;
use super::interrupt::TransportInterrupt;
use super::queue::QueueState;
use crate::state::{StateError, check_version};

/// Bytes in the common configuration structure.
pub const COMMON_SIZE: u64 = 64;

const STATUS_DRIVER_OK: u8 = 4;
const STATUS_FEATURES_OK: u8 = 8;
const STATUS_NEEDS_RESET: u8 = 64;
/// The bits a driver may set.
const STATUS_WRITABLE: u8 = 1 | 2 | STATUS_DRIVER_OK | STATUS_FEATURES_OK | 128;

/// How the driver has set a queue up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct QueueConfig {
    /// The rings, and how far a stopped queue was served.
    pub state: QueueState,
    /// The driver wants it to run.
    pub enabled: bool,
    /// Its MSI-X vector.
    pub vector: u16,
}

/// All a transport must remember, its device's state included.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TransportState {
    /// [`TransportState::VERSION`] when it was written.
    pub version: u32,
    /// The device status register.
    pub status: u8,
    /// The features the driver accepted.
    pub driver_features: u64,
    /// `device_feature_select`.
    pub device_feature_select: u32,
    /// `driver_feature_select`.
    pub driver_feature_select: u32,
    /// `queue_select`.
    pub queue_select: u16,
    /// The vector for configuration changes.
    pub config_vector: u16,
    /// The ISR byte.
    pub isr: u8,
    /// `config_generation`.
    pub generation: u8,
    /// Whether the device may master the bus.
    pub bus_master: bool,
    /// Every queue.
    pub queues: Vec<QueueConfig>,
    /// The device's own state.
    pub device: DeviceState,
}

impl TransportState {
    /// The version of the layout described here.
    pub const VERSION: u32 = 1;
}

struct QueueSlot {
    max_size: u16,
    state: QueueState,
    enabled: bool,
    running: bool,
    /// Starting it failed; it is not tried again before a reset.
    failed: bool,
    kick: Arc<EventFd>,
}

impl QueueSlot {
    fn reset(&mut self) {
        self.state = QueueState {
            size: self.max_size,
            ..QueueState::default()
        };
        self.enabled = false;
        self.failed = false;
    }
}

/// See the module.
pub struct Transport {
    device: Box<dyn VirtioDevice>,
    memory: GuestMemory,
    interrupt: Arc<TransportInterrupt>,
    queues: Vec<QueueSlot>,
    status: u8,
    driver_features: u64,
    device_feature_select: u32,
    driver_feature_select: u32,
    queue_select: u16,
    bus_master: bool,
    paused: bool,
}

impl Transport {
    /// A transport in its reset state. `kicks` has one entry per queue.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: GuestMemory,
        interrupt: Arc<TransportInterrupt>,
        kicks: &[Arc<EventFd>],
    ) -> Self {
        let queues = device
            .queue_sizes()
            .iter()
            .zip(kicks)
            .map(|(&max_size, kick)| {
                let mut slot = QueueSlot {
                    max_size,
                    state: QueueState::default(),
                    enabled: false,
                    running: false,
                    failed: false,
                    kick: kick.clone(),
                };
                slot.reset();
                slot
            })
            .collect();
        Self {
            device,
            memory,
            interrupt,
            queues,
            status: 0,
            driver_features: 0,
            device_feature_select: 0,
            driver_feature_select: 0,
            queue_select: 0,
            bus_master: false,
            paused: false,
        }
    }

    /// The device behind it.
    pub fn device(&self) -> &dyn VirtioDevice {
        &*self.device
    }

    /// Reads the device's configuration space.
    pub fn read_config(&self, offset: u32, size: AccessSize) -> u64 {
        let mut bytes = [0; 8];
        self.device.read_config(offset, &mut bytes[..size.bytes()]);
        u64::from_le_bytes(bytes)
    }

    /// Writes the device's configuration space.
    pub fn write_config(&mut self, offset: u32, size: AccessSize, value: u64) {
        self.device
            .write_config(offset, &value.to_le_bytes()[..size.bytes()]);
    }

    /// Reads the common configuration structure.
    pub fn read_common(&self, offset: u64, size: AccessSize) -> u64 {
        let image = self.common_image();
        let mut bytes = [0; 8];
        let start = offset.min(COMMON_SIZE) as usize;
        let end = (start + size.bytes()).min(image.len());
        bytes[..end - start].copy_from_slice(&image[start..end]);
        u64::from_le_bytes(bytes)
    }

    /// Writes the common configuration structure. A driver accesses each field
    /// with its own width (4.1.3.1), 64-bit fields also by halves; anything
    /// else has no effect.
    pub fn write_common(&mut self, offset: u64, size: AccessSize, value: u64) {
        use AccessSize::{Byte, Dword, Qword, Word};
        match (offset, size) {
            (0, Dword) => self.device_feature_select = value as u32,
            (8, Dword) => self.driver_feature_select = value as u32,
            (12, Dword) => self.accept_features(value as u32),
            (16, Word) => self.interrupt.set_config_vector(value as u16),
            (20, Byte) => self.write_status(value as u8),
            (22, Word) => self.queue_select = value as u16,
            (24, Word) => {
                if let Some(queue) = self.configurable_queue()
                    && (value as u16).is_power_of_two()
                    && value as u16 <= queue.max_size
                {
                    queue.state.size = value as u16;
                }
            }
            (26, Word) => self
                .interrupt
                .set_queue_vector(self.queue_select, value as u16),
            (28, Word) if value == 1 => {
                if let Some(queue) = self.configurable_queue() {
                    queue.enabled = true;
                    self.settle();
                }
            }
            (32..56, Dword | Qword) => self.write_ring_address(offset, size, value),
            (58, Word) if value == 1 => self.reset_queue(),
            _ => {}
        }
    }

    /// The guest allowed or forbade the device to access memory.
    pub fn set_bus_master(&mut self, enabled: bool) {
        self.bus_master = enabled;
        self.settle();
    }

    /// Stops all queues until [`Transport::resume`]. Nothing of the device
    /// touches guest memory when this returns.
    pub fn pause(&mut self) {
        self.paused = true;
        self.settle();
    }

    /// Undoes [`Transport::pause`].
    pub fn resume(&mut self) {
        self.paused = false;
        self.settle();
    }

    /// Everything back to power-on, except for pause and bus mastering.
    pub fn reset(&mut self) {
        for index in 0..self.queues.len() {
            self.stop(index);
            self.queues[index].reset();
        }
        self.device.reset();
        self.interrupt.reset();
        self.status = 0;
        self.driver_features = 0;
        self.device_feature_select = 0;
        self.driver_feature_select = 0;
        self.queue_select = 0;
    }

    /// The transport's and its device's state. Only while it is paused.
    pub fn save(&self) -> Result<TransportState, DeviceError> {
        if !self.paused {
            return Err(DeviceError::NotSaveable {
                device: self.name(),
                reason: "it is running; pause the machine first".to_owned(),
            });
        }
        let queues = (0u16..)
            .zip(&self.queues)
            .map(|(index, queue)| QueueConfig {
                state: queue.state,
                enabled: queue.enabled,
                vector: self.interrupt.queue_vector(index),
            });
        Ok(TransportState {
            version: TransportState::VERSION,
            status: self.status(),
            driver_features: self.driver_features,
            device_feature_select: self.device_feature_select,
            driver_feature_select: self.driver_feature_select,
            queue_select: self.queue_select,
            config_vector: self.interrupt.config_vector(),
            isr: self.interrupt.isr(),
            generation: self.interrupt.generation(),
            bus_master: self.bus_master,
            queues: queues.collect(),
            device: self.device.save()?,
        })
    }

    /// Loads a saved state and stays paused.
    pub fn restore(&mut self, state: &TransportState) -> Result<(), DeviceError> {
        self.check(state)?;
        self.pause();
        self.reset();
        self.device.restore(&state.device)?;
        if state.status & STATUS_FEATURES_OK != 0 {
            self.device.set_features(state.driver_features);
        }
        self.status = state.status & STATUS_WRITABLE;
        self.driver_features = state.driver_features;
        self.device_feature_select = state.device_feature_select;
        self.driver_feature_select = state.driver_feature_select;
        self.queue_select = state.queue_select;
        self.bus_master = state.bus_master;
        self.interrupt.restore(
            state.isr,
            state.generation,
            state.status & STATUS_NEEDS_RESET != 0,
        );
        self.interrupt
            .set_live(state.status & STATUS_DRIVER_OK != 0);
        self.interrupt.set_config_vector(state.config_vector);
        for (index, queue) in (0u16..).zip(&state.queues) {
            let slot = &mut self.queues[usize::from(index)];
            slot.state = queue.state;
            slot.enabled = queue.enabled;
            self.interrupt.set_queue_vector(index, queue.vector);
        }
        Ok(())
    }

    fn check(&self, state: &TransportState) -> Result<(), DeviceError> {
        let name = self.name();
        let invalid = |reason: String| Err(StateError::invalid(name, reason).into());
        check_version(name, state.version, TransportState::VERSION)?;
        if state.queues.len() != self.queues.len() {
            return invalid(format!(
                "it has {} queues, this device has {}",
                state.queues.len(),
                self.queues.len()
            ));
        }
        // Before it is agreed a driver may have written any nonsense.
        let agreed = state.status & STATUS_FEATURES_OK != 0;
        if agreed && state.driver_features & !self.offered() != 0 {
            return invalid(format!(
                "its driver uses features {:#x}, this device offers {:#x}",
                state.driver_features,
                self.offered()
            ));
        }
        for (queue, slot) in state.queues.iter().zip(&self.queues) {
            let size = queue.state.size;
            if !size.is_power_of_two() || size > slot.max_size {
                return invalid(format!("a queue has {size} descriptors"));
            }
        }
        Ok(())
    }

    fn name(&self) -> &'static str {
        self.device.device_type().name()
    }

    fn offered(&self) -> u64 {
        self.device.features() | TRANSPORT_FEATURES
    }

    fn status(&self) -> u8 {
        if self.interrupt.is_reset_needed() {
            self.status | STATUS_NEEDS_RESET
        } else {
            self.status
        }
    }

    fn common_image(&self) -> [u8; COMMON_SIZE as usize] {
        let half = |features: u64, select: u32| match select {
            0 => features as u32,
            1 => (features >> 32) as u32,
            _ => 0,
        };
        let mut image = [0; COMMON_SIZE as usize];
        let mut put = |offset: usize, bytes: &[u8]| {
            image[offset..offset + bytes.len()].copy_from_slice(bytes);
        };
        put(0, &self.device_feature_select.to_le_bytes());
        put(
            4,
            &half(self.offered(), self.device_feature_select).to_le_bytes(),
        );
        put(8, &self.driver_feature_select.to_le_bytes());
        put(
            12,
            &half(self.driver_features, self.driver_feature_select).to_le_bytes(),
        );
        put(16, &self.interrupt.config_vector().to_le_bytes());
        put(18, &(self.queues.len() as u16).to_le_bytes());
        put(20, &[self.status(), self.interrupt.generation()]);
        put(22, &self.queue_select.to_le_bytes());
        // A queue that does not exist has size 0.
        if let Some(queue) = self.queues.get(usize::from(self.queue_select)) {
            put(24, &queue.state.size.to_le_bytes());
            put(
                26,
                &self.interrupt.queue_vector(self.queue_select).to_le_bytes(),
            );
            put(28, &u16::from(queue.enabled).to_le_bytes());
            put(30, &self.queue_select.to_le_bytes());
            put(32, &queue.state.descriptor_table.0.to_le_bytes());
            put(40, &queue.state.available_ring.0.to_le_bytes());
            put(48, &queue.state.used_ring.0.to_le_bytes());
        }
        image
    }

    fn accept_features(&mut self, value: u32) {
        if self.status & STATUS_FEATURES_OK != 0 {
            return;
        }
        let value = u64::from(value);
        match self.driver_feature_select {
            0 => self.driver_features = self.driver_features & !0xffff_ffff | value,
            1 => self.driver_features = self.driver_features & 0xffff_ffff | value << 32,
            _ => {}
        }
    }

    fn write_status(&mut self, value: u8) {
        if value == 0 {
            self.reset();
            return;
        }
        let mut new = value & STATUS_WRITABLE & !self.status;
        if new & STATUS_FEATURES_OK != 0 {
            // 2.2.2 and 6.1: nothing that was not offered, and never legacy.
            let acceptable = self.driver_features & !self.offered() == 0
                && self.driver_features & F_VERSION_1 != 0;
            if acceptable {
                self.device.set_features(self.driver_features);
            } else {
                new &= !STATUS_FEATURES_OK;
            }
        }
        if (self.status | new) & STATUS_FEATURES_OK == 0 {
            new &= !STATUS_DRIVER_OK;
        }
        self.status |= new;
        if new & STATUS_DRIVER_OK != 0 {
            self.interrupt.set_live(true);
            self.settle();
        }
    }

    /// The selected queue, if it may be set up now.
    fn configurable_queue(&mut self) -> Option<&mut QueueSlot> {
        let negotiated = self.status & STATUS_FEATURES_OK != 0;
        self.queues
            .get_mut(usize::from(self.queue_select))
            .filter(|queue| negotiated && !queue.enabled)
    }

    fn write_ring_address(&mut self, offset: u64, size: AccessSize, value: u64) {
        let Some(queue) = self.configurable_queue() else {
            return;
        };
        let field: &mut GuestAddress = match offset & !7 {
            32 => &mut queue.state.descriptor_table,
            40 => &mut queue.state.available_ring,
            _ => &mut queue.state.used_ring,
        };
        match (offset % 8, size) {
            (0, AccessSize::Qword) => field.0 = value,
            (0, _) => field.0 = field.0 & !0xffff_ffff | value & 0xffff_ffff,
            (4, AccessSize::Dword) => field.0 = field.0 & 0xffff_ffff | value << 32,
            _ => {}
        }
    }

    /// `queue_reset` (2.6.1): done when the write returns.
    fn reset_queue(&mut self) {
        let index = usize::from(self.queue_select);
        if self.driver_features & F_RING_RESET == 0 || index >= self.queues.len() {
            return;
        }
        self.stop(index);
        self.queues[index].reset();
    }

    /// Starts and stops queues as they should be.
    fn settle(&mut self) {
        let may_run = self.status & STATUS_DRIVER_OK != 0 && self.bus_master && !self.paused;
        for index in 0..self.queues.len() {
            let queue = &self.queues[index];
            match (queue.running, may_run && queue.enabled && !queue.failed) {
                (false, true) => self.start(index),
                (true, false) => self.stop(index),
                _ => {}
            }
        }
    }

    fn start(&mut self, index: usize) {
        let event_index = self.driver_features & F_EVENT_IDX != 0;
        let queue = &mut self.queues[index];
        queue.state.event_index = event_index;
        let resources = QueueResources {
            memory: self.memory.clone(),
            state: queue.state,
            kick: queue.kick.clone(),
            interrupt: self.interrupt.clone(),
        };
        match self.device.start_queue(index as u16, resources) {
            Ok(()) => queue.running = true,
            Err(error) => {
                queue.failed = true;
                tracing::warn!(%error, "a queue can't be started; device needs reset");
                self.interrupt.needs_reset();
            }
        }
    }

    fn stop(&mut self, index: usize) {
        let queue = &mut self.queues[index];
        if !std::mem::take(&mut queue.running) {
            return;
        }
        match self.device.stop_queue(index as u16) {
            Ok(Some(state)) => queue.state = state,
            Ok(None) => {}
            Err(error) => {
                queue.failed = true;
                tracing::error!(%error, "a queue can't be stopped");
                self.interrupt.needs_reset();
            }
        }
    }
}

#[cfg(test)]
#[path = "common_test.rs"]
mod test;
