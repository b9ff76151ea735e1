//! The device a guest tells of its own panic (QEMU, docs/specs/pvpanic): one
//! port, whose bits are the events it knows; ACPI shows it as QEMU0001.
//!
//! It has no state.

use std::sync::Arc;

use favo_accel::AccessSize;

use crate::bus::BusDevice;
use crate::power::{EventSink, MachineEvent};

/// The port; see [`platform::PVPANIC_PORT`](crate::platform::PVPANIC_PORT).
pub struct Pvpanic {
    events: Arc<dyn EventSink>,
}

impl Pvpanic {
    /// Bit 0: the kernel panicked.
    const PANICKED: u8 = 1 << 0;
    /// Bit 1: the kernel panicked, and a crash kernel takes over.
    const CRASH_LOADED: u8 = 1 << 1;

    /// The device.
    pub fn new(events: Arc<dyn EventSink>) -> Self {
        Self { events }
    }
}

impl BusDevice for Pvpanic {
    /// Which events can be told.
    fn read(&self, _offset: u64, _size: AccessSize) -> u64 {
        u64::from(Self::PANICKED | Self::CRASH_LOADED)
    }

    fn write(&self, _offset: u64, _size: AccessSize, value: u64) {
        let value = value as u8;
        if value & Self::PANICKED != 0 {
            self.events.signal(MachineEvent::GuestPanicked);
        } else if value & Self::CRASH_LOADED != 0 {
            self.events.signal(MachineEvent::GuestCrashLoaded);
        }
    }
}

#[cfg(test)]
#[path = "pvpanic_test.rs"]
mod test;
