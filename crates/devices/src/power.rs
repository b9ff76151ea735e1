//! Power-off, reset and the power button.
//!
//! What a guest does about its machine's power ends as a [`MachineEvent`] in
//! the VMM's [`EventSink`]; what the host wants of the guest (please shut
//! down) arrives as a press of the ACPI power button.
//!
//! Hardware-reduced ACPI (ACPI 6.5, 4.1 and 4.8.3.7) has no fixed power
//! button and no power management timer: sleep control and status registers,
//! and a generic event device (5.6.9) with one interrupt.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use favo_accel::AccessSize;
use serde::{Deserialize, Serialize};

use crate::bus::BusDevice;
use crate::interrupt::InterruptLine;
use crate::state::{StateError, check_version};

/// What a guest did to its machine.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MachineEvent {
    /// It powered the machine off (ACPI S5).
    PowerOff,
    /// It reset the machine.
    Reset,
    /// Its kernel panicked.
    GuestPanicked,
    /// Its kernel panicked and has started a crash kernel.
    GuestCrashLoaded,
}

/// Hears of events. Called on a processor's thread: it notes the event, wakes
/// the VMM and returns. The guest goes on running until the VMM stops it.
pub trait EventSink: Send + Sync {
    /// An event happened.
    fn signal(&self, event: MachineEvent);
}

/// ACPI's registers, at [`platform::POWER_PORT`](crate::platform::POWER_PORT).
/// All are one byte wide.
pub struct Power {
    events: Arc<dyn EventSink>,
    line: Arc<dyn InterruptLine>,
    pending: AtomicU8,
}

/// What is pending in [`Power`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PowerState {
    /// [`PowerState::VERSION`] when it was written.
    pub version: u32,
    /// The event register.
    pub pending: u8,
}

impl PowerState {
    /// The version of the layout described here.
    pub const VERSION: u32 = 1;
}

impl Power {
    /// How many ports it has.
    pub const PORTS: u64 = 3;
    /// Offset of the sleep control register (ACPI 6.5, table 4.21).
    pub const SLEEP_CONTROL: u16 = 0;
    /// Offset of the sleep status register. Always 0: the machine never wakes.
    pub const SLEEP_STATUS: u16 = 1;
    /// Offset of the event register: which events are pending. Reading it
    /// clears it.
    pub const EVENTS: u16 = 2;
    /// Bit of the event register: the power button was pressed.
    pub const EVENT_POWER_BUTTON: u8 = 1 << 0;
    /// Bit of the event register: the machine's generation changed.
    pub const EVENT_GENERATION: u8 = 1 << 1;
    /// SLP_TYP of the S5 state, as `\_S5` gives it.
    pub const S5_SLEEP_TYPE: u8 = 5;

    const SLEEP_ENABLE: u8 = 1 << 5;
    const SLEEP_TYPE_SHIFT: u32 = 2;

    /// The registers; `line` is the pin of the generic event device.
    pub fn new(events: Arc<dyn EventSink>, line: Arc<dyn InterruptLine>) -> Self {
        Self {
            events,
            line,
            pending: AtomicU8::new(0),
        }
    }

    /// Asks the guest to shut down. It decides whether and when.
    pub fn press_power_button(&self) {
        self.pending
            .fetch_or(Self::EVENT_POWER_BUTTON, Ordering::SeqCst);
        self.line.pulse();
    }

    /// Tells the guest that [`platform::GENERATION_ID`](crate::platform::GENERATION_ID)
    /// holds something else.
    pub fn generation_changed(&self) {
        self.pending
            .fetch_or(Self::EVENT_GENERATION, Ordering::SeqCst);
        self.line.pulse();
    }

    /// Back to power-on.
    pub fn reset(&self) {
        self.pending.store(0, Ordering::SeqCst);
    }

    /// What is pending.
    pub fn save(&self) -> PowerState {
        PowerState {
            version: PowerState::VERSION,
            pending: self.pending.load(Ordering::SeqCst),
        }
    }

    /// Takes over a saved state.
    pub fn restore(&self, state: &PowerState) -> Result<(), StateError> {
        check_version("ACPI power", state.version, PowerState::VERSION)?;
        if state.pending & !(Self::EVENT_POWER_BUTTON | Self::EVENT_GENERATION) != 0 {
            return Err(StateError::invalid("ACPI power", "unknown events pend"));
        }
        self.pending.store(state.pending, Ordering::SeqCst);
        Ok(())
    }

    fn write_sleep_control(&self, value: u8) {
        if value & Self::SLEEP_ENABLE == 0 {
            return;
        }
        match value >> Self::SLEEP_TYPE_SHIFT & 7 {
            Self::S5_SLEEP_TYPE => self.events.signal(MachineEvent::PowerOff),
            other => tracing::debug!(sleep_type = other, "a guest asks for an unknown sleep"),
        }
    }
}

impl BusDevice for Power {
    fn read(&self, offset: u64, size: AccessSize) -> u64 {
        match (u16::try_from(offset), size) {
            (Ok(Self::EVENTS), AccessSize::Byte) => {
                u64::from(self.pending.swap(0, Ordering::SeqCst))
            }
            _ => 0,
        }
    }

    fn write(&self, offset: u64, size: AccessSize, value: u64) {
        if offset == u64::from(Self::SLEEP_CONTROL) && size == AccessSize::Byte {
            self.write_sleep_control(value as u8);
        }
    }
}

/// The chipset's reset control register, port 0xcf9, one byte. Also what the
/// FADT names as the ACPI reset register.
pub struct ResetControl {
    events: Arc<dyn EventSink>,
    value: AtomicU8,
}

impl ResetControl {
    /// Writing a 1 here resets.
    const RESET_CPU: u8 = 1 << 2;
    /// Whether a reset is a hard one; kept, without effect.
    const SYSTEM_RESET: u8 = 1 << 1;
    /// What to write for a reset.
    pub const RESET_VALUE: u8 = Self::RESET_CPU | Self::SYSTEM_RESET;

    /// The register.
    pub fn new(events: Arc<dyn EventSink>) -> Self {
        Self {
            events,
            value: AtomicU8::new(0),
        }
    }
}

impl BusDevice for ResetControl {
    fn read(&self, _offset: u64, _size: AccessSize) -> u64 {
        u64::from(self.value.load(Ordering::Relaxed))
    }

    fn write(&self, _offset: u64, _size: AccessSize, value: u64) {
        let value = value as u8;
        self.value
            .store(value & Self::SYSTEM_RESET, Ordering::Relaxed);
        if value & Self::RESET_CPU != 0 {
            self.events.signal(MachineEvent::Reset);
        }
    }
}

/// The keyboard controller's command port, 0x64: no keyboard, only the line
/// by which PCs have been reset since 1984 (Linux's `reboot=k`).
pub struct KeyboardReset {
    events: Arc<dyn EventSink>,
}

impl KeyboardReset {
    /// The command that pulses the reset line.
    const PULSE_RESET: u8 = 0xfe;

    /// The port.
    pub fn new(events: Arc<dyn EventSink>) -> Self {
        Self { events }
    }
}

impl BusDevice for KeyboardReset {
    /// Status: the controller is ready for a command, and has no data.
    fn read(&self, _offset: u64, _size: AccessSize) -> u64 {
        0
    }

    fn write(&self, _offset: u64, _size: AccessSize, value: u64) {
        if value as u8 == Self::PULSE_RESET {
            self.events.signal(MachineEvent::Reset);
        }
    }
}

#[cfg(test)]
pub(crate) mod recorder {
    //! What tests connect instead of a VMM.

    use std::sync::Mutex;

    use super::*;

    /// Remembers the events.
    #[derive(Default)]
    pub(crate) struct EventRecorder(Mutex<Vec<MachineEvent>>);

    impl EventRecorder {
        pub(crate) fn new() -> Arc<Self> {
            Arc::default()
        }

        /// The events since the last call.
        pub(crate) fn take(&self) -> Vec<MachineEvent> {
            std::mem::take(&mut self.0.lock().unwrap())
        }
    }

    impl EventSink for EventRecorder {
        fn signal(&self, event: MachineEvent) {
            self.0.lock().unwrap().push(event);
        }
    }
}

#[cfg(test)]
#[path = "power_test.rs"]
mod test;
