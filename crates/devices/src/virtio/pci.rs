//! Virtio over PCI (virtio 1.2, 4.1): any [`VirtioDevice`] as a PCI function.
//!
//! One 32 KiB BAR holds everything, each part in pages of its own:
//!
//! | offset | what |
//! |---|---|
//! | 0x0000 | common configuration |
//! | 0x1000 | ISR status |
//! | 0x2000 | device configuration |
//! | 0x3000 | notifications: queue n at 4 × n |
//! | 0x4000 | MSI-X table |
//! | 0x6000 | MSI-X pending bits |
//!
//! MSI-X vector 0 is what drivers use for configuration changes by habit, and
//! there is one more per queue; the driver assigns them as it likes.
//!
//! A notification only signals the queue's event descriptor, without a lock;
//! [`VirtioPci::notifications`] lists the addresses, so that an engine that
//! can (ioeventfd) does it without even an exit.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use favo_accel::{AccessSize, EventCounter, GuestMemory};

use super::common::{COMMON_SIZE, Transport, TransportState};
use super::device::{DeviceError, DeviceType, VirtioDevice};
use super::event::EventFd;
use super::interrupt::TransportInterrupt;
use crate::interrupt::MsiSender;
use crate::pci::{
    BarIndex, BarKind, BarSpec, Capability, Msix, MsixSpec, PciDevice, PciIdentity, PciSpec,
};

const VENDOR: u16 = 0x1af4;
/// Device ids of modern devices start here (4.1.2.1).
const DEVICE_BASE: u16 = 0x1040;

const BAR_SIZE: u64 = 0x8000;
const COMMON: u64 = 0;
const ISR: u64 = 0x1000;
const CONFIG: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;
const PART_SIZE: u64 = 0x1000;
const MSIX_TABLE: u32 = 0x4000;
const MSIX_PENDING: u32 = 0x6000;
const NOTIFY_MULTIPLIER: u32 = 4;
/// What the notification and MSI-X pages have room for.
const MAX_QUEUES: usize = 511;

/// Vendor-specific capability.
const CAPABILITY_ID: u8 = 9;
/// `cfg_type`s (4.1.4).
const TYPE_COMMON: u8 = 1;
const TYPE_NOTIFY: u8 = 2;
const TYPE_ISR: u8 = 3;
const TYPE_DEVICE: u8 = 4;
const TYPE_PCI: u8 = 5;
/// The index of the PCI configuration access capability in the list below.
const PCI_ACCESS_INDEX: usize = 4;

/// A virtio device as a PCI function.
pub struct VirtioPci {
    name: String,
    device_type: DeviceType,
    transport: Mutex<Transport>,
    interrupt: Arc<TransportInterrupt>,
    msix: Arc<Msix>,
    kicks: Vec<Arc<EventFd>>,
    window: Mutex<Window>,
}

/// Where a driver's write notifies a queue.
#[derive(Clone, Debug)]
pub struct Notification {
    /// Which queue.
    pub queue: u16,
    /// The BAR.
    pub bar: BarIndex,
    /// Where in it. A write of any width and value notifies.
    pub offset: u64,
    /// What the write signals.
    pub event: Arc<EventFd>,
}

/// The registers of the PCI configuration access capability (4.1.4.9): a BAR
/// access by way of the configuration space, for firmware.
#[derive(Clone, Copy, Default)]
struct Window {
    bar: u8,
    offset: u32,
    length: u32,
}

impl VirtioPci {
    /// A function around `device`, in its reset state. `name` is what logs and
    /// listings call it.
    pub fn new(
        name: String,
        device: Box<dyn VirtioDevice>,
        memory: GuestMemory,
        sender: Arc<dyn MsiSender>,
    ) -> Result<Arc<Self>, DeviceError> {
        let device_type = device.device_type();
        let queues = device.queue_sizes().len();
        if queues > MAX_QUEUES {
            return Err(DeviceError::InvalidSpec {
                device: device_type.name(),
                reason: format!("{queues} queues are too many; use at most {MAX_QUEUES}"),
            });
        }
        let msix = Msix::new(queues as u16 + 1, sender);
        let interrupt = Arc::new(TransportInterrupt::new(queues, msix.clone()));
        let kicks = (0..queues)
            .map(|_| EventFd::new().map(Arc::new))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|source| DeviceError::Host {
                device: device_type.name(),
                operation: "making an event descriptor",
                source,
            })?;
        let transport = Transport::new(device, memory, interrupt.clone(), &kicks);
        Ok(Arc::new(Self {
            name,
            device_type,
            transport: Mutex::new(transport),
            interrupt,
            msix,
            kicks,
            window: Mutex::default(),
        }))
    }

    /// Every queue's notification address, for engines that turn guest writes
    /// into events. Valid at wherever the guest has put the BAR.
    pub fn notifications(&self) -> Vec<Notification> {
        (0u16..)
            .zip(&self.kicks)
            .map(|(queue, event)| Notification {
                queue,
                bar: bar(),
                offset: NOTIFY + u64::from(NOTIFY_MULTIPLIER) * u64::from(queue),
                event: event.clone(),
            })
            .collect()
    }

    /// Stops all queues. When it returns nothing of the device touches guest
    /// memory any more.
    pub fn pause(&self) {
        self.transport().pause();
    }

    /// Undoes [`VirtioPci::pause`].
    pub fn resume(&self) {
        self.transport().resume();
    }

    /// The state of transport and device, without what the PCI function itself
    /// saves (configuration space, MSI-X). Only while paused.
    pub fn save(&self) -> Result<TransportState, DeviceError> {
        self.transport().save()
    }

    /// Loads a saved state; the device stays paused.
    pub fn restore(&self, state: &TransportState) -> Result<(), DeviceError> {
        self.transport().restore(state)
    }

    /// What the device counted.
    pub fn counters(&self) -> Vec<EventCounter> {
        self.transport().device().counters()
    }

    fn transport(&self) -> MutexGuard<'_, Transport> {
        self.transport
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn window(&self) -> MutexGuard<'_, Window> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn notify(&self, offset: u64) {
        let queue = offset / u64::from(NOTIFY_MULTIPLIER);
        if let Some(kick) = self.kicks.get(queue as usize) {
            kick.signal();
        }
    }

    fn read(&self, offset: u64, size: AccessSize) -> u64 {
        let (part, within) = (offset & !(PART_SIZE - 1), offset % PART_SIZE);
        match part {
            COMMON => self.transport().read_common(within, size),
            ISR if within == 0 => self.interrupt.take_isr().into(),
            CONFIG => self.transport().read_config(within as u32, size),
            _ => 0,
        }
    }

    fn write(&self, offset: u64, size: AccessSize, value: u64) {
        let (part, within) = (offset & !(PART_SIZE - 1), offset % PART_SIZE);
        match part {
            COMMON => self.transport().write_common(within, size, value),
            CONFIG => self.transport().write_config(within as u32, size, value),
            NOTIFY => self.notify(within),
            _ => {}
        }
    }

    /// What the window shows: offset and width, if they make sense.
    fn window_target(&self) -> Option<(u64, AccessSize)> {
        let window = *self.window();
        let size = AccessSize::from_bytes(window.length as usize)?;
        let offset = u64::from(window.offset);
        let sensible = window.bar == bar().get()
            && size != AccessSize::Qword
            && offset.is_multiple_of(size.bytes() as u64)
            && offset < u64::from(MSIX_TABLE);
        sensible.then_some((offset, size))
    }
}

fn bar() -> BarIndex {
    const BAR: BarIndex = match BarIndex::new(0) {
        Some(bar) => bar,
        None => unreachable!(),
    };
    BAR
}

/// `struct virtio_pci_cap` behind its two header bytes, and what follows it.
fn capability(cfg_type: u8, offset: u64, length: u64, rest: &[u8], dynamic: bool) -> Capability {
    let mut body = vec![16 + rest.len() as u8, cfg_type, bar().get(), 0, 0, 0];
    body.extend((offset as u32).to_le_bytes());
    body.extend((length as u32).to_le_bytes());
    body.extend(rest);
    Capability {
        id: CAPABILITY_ID,
        body,
        dynamic,
    }
}

/// Offsets in the body of the PCI configuration access capability.
const WINDOW_BAR: u16 = 2;
const WINDOW_OFFSET: u16 = 6;
const WINDOW_LENGTH: u16 = 10;
const WINDOW_DATA: u16 = 14;

impl PciDevice for VirtioPci {
    fn spec(&self) -> PciSpec {
        let class = match self.device_type {
            DeviceType::Network => 0x02_00_00,
            DeviceType::Block => 0x01_80_00,
            DeviceType::Console | DeviceType::Socket => 0x07_80_00,
            DeviceType::Entropy | DeviceType::Balloon => 0xff_00_00,
        };
        let id = DEVICE_BASE + self.device_type.id();
        let notify_size = self.kicks.len() as u64 * u64::from(NOTIFY_MULTIPLIER);
        PciSpec {
            name: self.name.clone(),
            identity: PciIdentity {
                vendor: VENDOR,
                device: id,
                revision: 1,
                class,
                subsystem_vendor: VENDOR,
                subsystem: id,
            },
            bars: vec![BarSpec {
                index: bar(),
                kind: BarKind::Memory32,
                prefetchable: false,
                size: BAR_SIZE,
            }],
            capabilities: vec![
                capability(TYPE_COMMON, COMMON, COMMON_SIZE, &[], false),
                capability(TYPE_ISR, ISR, 1, &[], false),
                capability(TYPE_DEVICE, CONFIG, PART_SIZE, &[], false),
                capability(
                    TYPE_NOTIFY,
                    NOTIFY,
                    notify_size,
                    &NOTIFY_MULTIPLIER.to_le_bytes(),
                    false,
                ),
                capability(TYPE_PCI, 0, 0, &[0; 4], true),
            ],
            msix: Some(MsixSpec {
                msix: self.msix.clone(),
                bar: bar(),
                table_offset: MSIX_TABLE,
                pending_offset: MSIX_PENDING,
            }),
        }
    }

    fn read_bar(&self, bar_index: BarIndex, offset: u64, size: AccessSize) -> u64 {
        if bar_index == bar() {
            size.truncate(self.read(offset, size))
        } else {
            0
        }
    }

    fn write_bar(&self, bar_index: BarIndex, offset: u64, size: AccessSize, value: u64) {
        if bar_index == bar() {
            self.write(offset, size, size.truncate(value));
        }
    }

    fn read_capability(&self, index: usize, offset: u16, size: AccessSize) -> u32 {
        if index != PCI_ACCESS_INDEX {
            return 0;
        }
        if offset >= WINDOW_DATA {
            return self
                .window_target()
                .map_or(0, |(at, width)| self.read(at, width) as u32);
        }
        let window = *self.window();
        let mut body = capability(TYPE_PCI, 0, 0, &[0; 4], true).body;
        body[usize::from(WINDOW_BAR)] = window.bar;
        body[usize::from(WINDOW_OFFSET)..][..4].copy_from_slice(&window.offset.to_le_bytes());
        body[usize::from(WINDOW_LENGTH)..][..4].copy_from_slice(&window.length.to_le_bytes());
        let mut bytes = [0; 4];
        let wanted = size.bytes().min(4);
        let from = body.get(usize::from(offset)..).unwrap_or_default();
        let count = wanted.min(from.len());
        bytes[..count].copy_from_slice(&from[..count]);
        u32::from_le_bytes(bytes)
    }

    fn write_capability(&self, index: usize, offset: u16, size: AccessSize, value: u32) {
        if index != PCI_ACCESS_INDEX {
            return;
        }
        match (offset, size) {
            (WINDOW_BAR, _) => self.window().bar = value as u8,
            (WINDOW_OFFSET, AccessSize::Dword) => self.window().offset = value,
            (WINDOW_LENGTH, AccessSize::Dword) => self.window().length = value,
            (WINDOW_DATA, _) => {
                if let Some((at, width)) = self.window_target() {
                    self.write(at, width, width.truncate(value.into()));
                }
            }
            _ => {}
        }
    }

    fn set_bus_master(&self, enabled: bool) {
        self.transport().set_bus_master(enabled);
    }

    fn reset(&self) {
        self.transport().reset();
        *self.window() = Window::default();
    }
}

#[cfg(test)]
#[path = "pci_test.rs"]
mod test;
