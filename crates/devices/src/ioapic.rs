//! The I/O APIC: 24 pins for the few wired interrupts (82093AA data sheet;
//! version 20H, with the EOI register).
//!
//! It lives here and not in an engine, so that both engines have the same
//! one. Local APICs are the engine's; the two meet in [`IoApicOutput`]:
//! messages go out, and the engine hears which vectors need an EOI back,
//! which arrives as [`VcpuExit::IoapicEoi`](favo_accel::VcpuExit::IoapicEoi)
//! and is passed to [`IoApic::end_of_interrupt`].
//!
//! Order of locks: the I/O APIC, then whatever the output locks. An output
//! must not call back.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use favo_accel::{AccessSize, Msi};
use serde::{Deserialize, Serialize};

use crate::bus::BusDevice;
use crate::interrupt::{InterruptLine, MsiSender, PartitionMsiSender};
use crate::state::{StateError, check_version};

const DEVICE: &str = "I/O APIC";

/// Register select, register window, and EOI: offsets in the MMIO page.
const SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;
const EOI: u64 = 0x40;

/// Indirect registers.
const REGISTER_ID: u8 = 0x00;
const REGISTER_VERSION: u8 = 0x01;
const REGISTER_ARBITRATION: u8 = 0x02;
const FIRST_REDIRECTION: u8 = 0x10;

/// Version 20H, last redirection entry in bits 23:16.
const VERSION: u32 = 0x20 | (IoApic::PINS as u32 - 1) << 16;

/// Bits of a redirection entry.
const DELIVERY_MODE: u64 = 7 << 8;
const LOGICAL: u64 = 1 << 11;
const DELIVERY_STATUS: u64 = 1 << 12;
const REMOTE_IRR: u64 = 1 << 14;
const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
/// Delivery status and remote IRR are the I/O APIC's own; bits 48:17 but the
/// extended destination are reserved.
const WRITABLE: u64 = 0xfffe_0000_0001_ffff & !DELIVERY_STATUS & !REMOTE_IRR;

/// Where an I/O APIC delivers to.
pub trait IoApicOutput: MsiSender {
    /// The vectors whose EOI must come back: one entry per pin, the message
    /// it sends if it is level triggered and unmasked, or still waits for an
    /// EOI.
    fn set_level_triggered_pins(&self, pins: &[Option<Msi>]);
}

impl IoApicOutput for PartitionMsiSender {
    fn set_level_triggered_pins(&self, pins: &[Option<Msi>]) {
        self.report_level_triggered_pins(pins);
    }
}

/// An I/O APIC.
pub struct IoApic {
    output: Arc<dyn IoApicOutput>,
    inner: Mutex<Inner>,
}

struct Inner {
    select: u8,
    id: u8,
    entries: [u64; IoApic::PINS],
    /// Bit n: pin n is active.
    lines: u32,
    /// What the output was told last.
    reported: [Option<Msi>; IoApic::PINS],
}

/// Everything in an I/O APIC.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct IoApicState {
    /// [`IoApicState::VERSION`] when it was written.
    pub version: u32,
    /// The register select register.
    pub select: u8,
    /// The id, bits 27:24 of register 0.
    pub id: u8,
    /// The redirection table, remote IRR included.
    pub entries: [u64; IoApic::PINS],
    /// Bit n: pin n is active.
    pub lines: u32,
}

impl IoApicState {
    /// The version of the layout described here.
    pub const VERSION: u32 = 1;
}

impl IoApic {
    /// How many pins there are.
    pub const PINS: usize = 24;

    /// An I/O APIC with all pins masked.
    pub fn new(output: Arc<dyn IoApicOutput>) -> Arc<Self> {
        Arc::new(Self {
            output,
            inner: Mutex::new(Inner::new()),
        })
    }

    /// The wire to pin `pin`, if there is such a pin. One device per pin.
    pub fn pin(self: &Arc<Self>, pin: u8) -> Option<Arc<dyn InterruptLine>> {
        (usize::from(pin) < Self::PINS).then(|| {
            Arc::new(Pin {
                ioapic: self.clone(),
                pin: usize::from(pin),
            }) as Arc<dyn InterruptLine>
        })
    }

    /// A processor ended the level-triggered interrupt `vector`.
    pub fn end_of_interrupt(&self, vector: u8) {
        let mut inner = self.lock();
        for pin in 0..Self::PINS {
            let entry = inner.entries[pin];
            if entry as u8 == vector && entry & REMOTE_IRR != 0 {
                inner.entries[pin] &= !REMOTE_IRR;
                self.service_level(&mut inner, pin);
            }
        }
        self.report(&mut inner);
    }

    /// Back to power-on. Lines stay as their devices drive them.
    pub fn reset(&self) {
        let mut inner = self.lock();
        let (lines, reported) = (inner.lines, inner.reported);
        *inner = Inner {
            lines,
            reported,
            ..Inner::new()
        };
        self.report(&mut inner);
    }

    /// Everything in it.
    pub fn save(&self) -> IoApicState {
        let inner = self.lock();
        IoApicState {
            version: IoApicState::VERSION,
            select: inner.select,
            id: inner.id,
            entries: inner.entries,
            lines: inner.lines,
        }
    }

    /// Takes over a saved state. Sends nothing: what was sent is in the local
    /// APICs' state.
    pub fn restore(&self, state: &IoApicState) -> Result<(), StateError> {
        check_version(DEVICE, state.version, IoApicState::VERSION)?;
        let settable = WRITABLE | REMOTE_IRR;
        if let Some(pin) = state.entries.iter().position(|entry| {
            entry & !settable != 0 || entry & REMOTE_IRR != 0 && entry & LEVEL == 0
        }) {
            return Err(StateError::invalid(
                DEVICE,
                format!(
                    "the redirection entry of pin {pin}, {:#x}, is not one",
                    state.entries[pin]
                ),
            ));
        }
        if state.lines >> Self::PINS != 0 || state.id > 0xf {
            return Err(StateError::invalid(
                DEVICE,
                "it has an id or pins that don't exist",
            ));
        }
        let mut inner = self.lock();
        inner.select = state.select;
        inner.id = state.id;
        inner.entries = state.entries;
        inner.lines = state.lines;
        self.report(&mut inner);
        Ok(())
    }

    fn set_line(&self, pin: usize, active: bool) {
        let mut inner = self.lock();
        let bit = 1 << pin;
        let was = inner.lines & bit != 0;
        if active {
            inner.lines |= bit;
        } else {
            inner.lines &= !bit;
        }
        let entry = inner.entries[pin];
        if entry & LEVEL != 0 {
            self.service_level(&mut inner, pin);
        } else if active && !was && entry & MASKED == 0 {
            // An edge on a masked pin is lost (data sheet, 3.2.4).
            self.output.send(message(entry));
        }
    }

    /// Sends a level-triggered interrupt that is due.
    fn service_level(&self, inner: &mut Inner, pin: usize) {
        let entry = inner.entries[pin];
        let active = inner.lines & 1 << pin != 0;
        if active && entry & LEVEL != 0 && entry & (MASKED | REMOTE_IRR) == 0 {
            inner.entries[pin] |= REMOTE_IRR;
            // The engine knows the vector before the interrupt can arrive and
            // its EOI be missed: write_entry reported it.
            self.output.send(message(entry));
        }
    }

    fn read_register(&self) -> u32 {
        let inner = self.lock();
        match inner.select {
            REGISTER_ID | REGISTER_ARBITRATION => u32::from(inner.id) << 24,
            REGISTER_VERSION => VERSION,
            select => redirection(select).map_or(0, |(pin, shift)| {
                (inner.entries[pin] >> shift & 0xffff_ffff) as u32
            }),
        }
    }

    fn write_register(&self, value: u32) {
        let mut inner = self.lock();
        match inner.select {
            REGISTER_ID => inner.id = (value >> 24 & 0xf) as u8,
            select => {
                let Some((pin, shift)) = redirection(select) else {
                    return;
                };
                let mask = WRITABLE & 0xffff_ffff << shift;
                let old = inner.entries[pin];
                let mut entry = old & !mask | u64::from(value) << shift & mask;
                if entry & LEVEL == 0 {
                    // Changing the trigger mode to edge ends the wait for an
                    // EOI; Linux does it to recover a stuck pin.
                    entry &= !REMOTE_IRR;
                }
                inner.entries[pin] = entry;
                self.report(&mut inner);
                self.service_level(&mut inner, pin);
            }
        }
    }

    /// Tells the output which pins need an EOI, if that changed.
    fn report(&self, inner: &mut Inner) {
        let pins = inner.entries.map(|entry| {
            let waits = entry & LEVEL != 0 && (entry & MASKED == 0 || entry & REMOTE_IRR != 0);
            waits.then(|| message(entry))
        });
        if pins != inner.reported {
            inner.reported = pins;
            self.output.set_level_triggered_pins(&pins);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BusDevice for IoApic {
    fn read(&self, offset: u64, size: AccessSize) -> u64 {
        // Registers are 32 bits wide; narrower reads return their low part.
        let value = match offset {
            SELECT => u32::from(self.lock().select),
            WINDOW => self.read_register(),
            _ => 0,
        };
        size.truncate(u64::from(value))
    }

    fn write(&self, offset: u64, size: AccessSize, value: u64) {
        match (offset, size) {
            (SELECT, _) => self.lock().select = value as u8,
            (WINDOW, AccessSize::Dword) => self.write_register(value as u32),
            (EOI, _) => self.end_of_interrupt(value as u8),
            _ => {}
        }
    }
}

impl Inner {
    fn new() -> Self {
        Self {
            select: 0,
            id: 0,
            entries: [MASKED; IoApic::PINS],
            lines: 0,
            reported: [None; IoApic::PINS],
        }
    }
}

/// The pin, and the half of its entry, that a register number means.
fn redirection(select: u8) -> Option<(usize, u32)> {
    let index = usize::from(select.checked_sub(FIRST_REDIRECTION)?);
    (index / 2 < IoApic::PINS).then_some((index / 2, 32 * (index as u32 % 2)))
}

/// The message an entry sends.
fn message(entry: u64) -> Msi {
    let destination = entry >> 56;
    // KVM's extended destination: entry bits 55:49 are id bits 14:8.
    let extended = entry >> 49 & 0x7f;
    let mut address = 0xfee0_0000 | destination << 12 | extended << 40;
    if entry & LOGICAL != 0 {
        address |= 1 << 2;
    }
    let mut data = (entry & (0xff | DELIVERY_MODE)) as u32;
    if entry & LEVEL != 0 {
        // Level triggered, asserted.
        data |= 1 << 15 | 1 << 14;
    }
    Msi { address, data }
}

/// A wire to one pin.
struct Pin {
    ioapic: Arc<IoApic>,
    pin: usize,
}

impl InterruptLine for Pin {
    fn set_level(&self, active: bool) {
        self.ioapic.set_line(self.pin, active);
    }
}

#[cfg(test)]
#[path = "ioapic_test.rs"]
mod test;
