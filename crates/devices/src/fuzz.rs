//! What a hostile guest does, out of bytes: one function per device, for fuzz
//! targets. Each makes the device, does to it what the bytes say, then saves
//! and restores it. They return nothing; a panic is the finding.
//!
//! [`drive`] serves for any other [`BusDevice`].

use std::sync::Arc;

use favo_accel::{AccessSize, Msi};
use favo_types::{ByteCount, GuestAddress};

use crate::bus::{Bus, BusDevice};
use crate::interrupt::{MsiSender, Unconnected};
use crate::ioapic::{IoApic, IoApicOutput};
use crate::pci::{
    BarIndex, BarKind, BarSpec, Capability, ConfigPorts, Msix, MsixSpec, PciDevice, PciIdentity,
    PciRoot, PciSpec, PciWindows,
};
use crate::power::{EventSink, KeyboardReset, MachineEvent, Power, ResetControl};
use crate::pvpanic::Pvpanic;
use crate::rtc::Rtc;
use crate::serial::SerialPort;

/// Bytes one access takes: what, where (4), value (8).
const ACCESS_BYTES: usize = 13;

/// One thing a guest does. Anything is one.
#[derive(Clone, Copy, Debug)]
struct Access {
    /// Bits 1:0 the width, bit 2 whether it writes; the others are free.
    what: u8,
    offset: u32,
    value: u64,
}

impl Access {
    fn all(bytes: &[u8]) -> impl Iterator<Item = Self> + '_ {
        bytes.chunks_exact(ACCESS_BYTES).map(|chunk| {
            let number = |bytes: &[u8]| {
                bytes
                    .iter()
                    .rev()
                    .fold(0, |number, byte| number << 8 | u64::from(*byte))
            };
            Self {
                what: chunk[0],
                offset: number(&chunk[1..5]) as u32,
                value: number(&chunk[5..]),
            }
        })
    }

    fn size(self) -> AccessSize {
        match self.what & 3 {
            0 => AccessSize::Byte,
            1 => AccessSize::Word,
            2 => AccessSize::Dword,
            _ => AccessSize::Qword,
        }
    }

    fn apply(self, device: &dyn BusDevice, offset: u64) {
        let size = self.size();
        if self.what & 4 == 0 {
            device.read(offset, size);
        } else {
            device.write(offset, size, size.truncate(self.value));
        }
    }
}

/// Reads and writes a device that has `length` addresses, never past its end,
/// as its bus would.
pub fn drive(device: &dyn BusDevice, length: u64, bytes: &[u8]) {
    for access in Access::all(bytes) {
        let Some(last) = length.checked_sub(access.size().bytes() as u64) else {
            continue;
        };
        let offset = u64::from(access.offset);
        access.apply(device, if last == 0 { 0 } else { offset % (last + 1) });
    }
}

struct Nowhere;

impl MsiSender for Nowhere {
    fn send(&self, _msi: Msi) {}
}

impl IoApicOutput for Nowhere {
    fn set_level_triggered_pins(&self, _pins: &[Option<Msi>]) {}
}

impl EventSink for Nowhere {
    fn signal(&self, _event: MachineEvent) {}
}

/// The serial port, with a host that pushes input and takes output.
pub fn serial(bytes: &[u8]) {
    let serial = SerialPort::new(Arc::new(Unconnected));
    for access in Access::all(bytes) {
        match access.what >> 6 {
            0 => _ = serial.push_input(&access.value.to_le_bytes()),
            1 if access.what & 8 == 0 => _ = serial.take_output(),
            _ => access.apply(&serial, u64::from(access.offset) % SerialPort::PORTS),
        }
    }
    assert_eq!(serial.restore(&serial.save()), Ok(()));
}

/// The real-time clock, on a host whose clock does what it likes.
pub fn rtc(bytes: &[u8]) {
    let start = bytes.iter().fold(0i64, |sum, byte| {
        sum.wrapping_mul(31).wrapping_add(i64::from(*byte))
    });
    let rtc = Rtc::with_clock(Box::new(move || i128::from(start)));
    drive(&rtc, Rtc::PORTS, bytes);
    assert_eq!(rtc.restore(&rtc.save()), Ok(()));
}

/// The I/O APIC, with devices that move its pins and processors that signal
/// the end of interrupts.
pub fn ioapic(bytes: &[u8]) {
    let ioapic = IoApic::new(Arc::new(Nowhere));
    for access in Access::all(bytes) {
        match access.what >> 6 {
            0 => ioapic.end_of_interrupt(access.value as u8),
            1 => {
                if let Some(pin) = ioapic.pin(access.offset as u8 % 32) {
                    pin.set_level(access.value & 1 != 0);
                }
            }
            _ => access.apply(&*ioapic, u64::from(access.offset & 0xff)),
        }
    }
    assert_eq!(ioapic.restore(&ioapic.save()), Ok(()));
}

/// Power registers, reset ports and pvpanic.
pub fn power(bytes: &[u8]) {
    let events = Arc::new(Nowhere);
    let power = Power::new(events.clone(), Arc::new(Unconnected));
    drive(&power, Power::PORTS, bytes);
    drive(&ResetControl::new(events.clone()), 1, bytes);
    drive(&KeyboardReset::new(events.clone()), 1, bytes);
    drive(&Pvpanic::new(events), 1, bytes);
    assert_eq!(power.restore(&power.save()), Ok(()));
}

/// PCI: configuration space through ECAM and ports, BARs that move, MSI-X.
pub fn pci(bytes: &[u8]) {
    let windows = PciWindows {
        low: (GuestAddress(0xc000_0000), ByteCount::mib(1)),
        high: (GuestAddress(1 << 36), ByteCount::mib(16)),
    };
    let mmio = Arc::new(Bus::mmio());
    let root = PciRoot::new(&mmio, windows);
    let devices = [Silent::new(), Silent::new()];
    for device in &devices {
        // Two devices of this size fit.
        let _ = root.attach(None, device.clone());
    }
    let reset_control = Arc::new(ResetControl::new(Arc::new(Nowhere)));
    let ports = ConfigPorts::new(root.clone(), reset_control);
    for access in Access::all(bytes) {
        let offset = u64::from(access.offset);
        match access.what >> 5 {
            // Mostly within the headers of what is there.
            0..=2 => access.apply(&*root, (offset % (3 << 15)) & !0xf00),
            3 => access.apply(&*root, (offset % PciRoot::ECAM_BYTES) & !7),
            4 => access.apply(&ports, offset % ConfigPorts::PORTS),
            5 => devices[access.offset as usize % 2]
                .msix
                .signal(access.value as u16 % 80),
            6 => mmio.write(1 << 36 | offset, access.size(), access.value),
            _ => {
                mmio.read(access.value, access.size());
            }
        }
    }
    assert_eq!(root.restore(&root.save()), Ok(()));
    root.reset();
    assert!(mmio.list().is_empty());
}

/// A device with everything a function can have, that does nothing.
struct Silent {
    msix: Arc<Msix>,
}

impl Silent {
    fn new() -> Arc<Self> {
        let msix = Msix::new(70, Arc::new(Nowhere));
        Arc::new(Self { msix })
    }
}

impl PciDevice for Silent {
    fn spec(&self) -> PciSpec {
        const TABLE: BarIndex = BarIndex::new(0).unwrap();
        const OTHER: BarIndex = BarIndex::new(4).unwrap();
        let bar = |index, kind| BarSpec {
            index,
            kind,
            prefetchable: false,
            size: 0x4000,
        };
        PciSpec {
            name: "silent".to_owned(),
            identity: PciIdentity {
                vendor: 0x1af4,
                device: 0x1041,
                revision: 1,
                class: 0xff_00_00,
                subsystem_vendor: 0,
                subsystem: 0,
            },
            bars: vec![bar(TABLE, BarKind::Memory64), bar(OTHER, BarKind::Memory32)],
            capabilities: vec![Capability {
                id: 9,
                body: vec![0; 18],
                dynamic: true,
            }],
            msix: Some(MsixSpec {
                msix: self.msix.clone(),
                bar: TABLE,
                table_offset: 0x1000,
                pending_offset: 0x3000,
            }),
        }
    }

    fn read_bar(&self, _bar: BarIndex, offset: u64, size: AccessSize) -> u64 {
        assert!(offset + size.bytes() as u64 <= 0x4000);
        offset
    }

    fn write_bar(&self, _bar: BarIndex, offset: u64, size: AccessSize, value: u64) {
        assert!(offset + size.bytes() as u64 <= 0x4000);
        assert_eq!(size.truncate(value), value);
    }

    fn reset(&self) {}
}

#[cfg(test)]
#[path = "fuzz_test.rs"]
mod test;
