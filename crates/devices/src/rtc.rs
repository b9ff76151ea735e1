//! The real-time clock of a PC: an MC146818A (Motorola data sheet) at ports
//! 0x70 (register number) and 0x71 (its value).
//!
//! It shows the host's real-time clock in UTC. A guest that sets it gets an
//! offset from then on; the host's clock is never touched. The rest of its
//! 128 bytes is memory that keeps what is written.
//!
//! It has no interrupt line, and says so: the enable bits for periodic, alarm
//! and update interrupts can't be set, and ACPI names no pin. Linux then uses
//! it as a clock without alarms. The update-ended flag works for those who
//! poll it.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use favo_accel::AccessSize;
use serde::{Deserialize, Serialize};
use time::{Date, Month, OffsetDateTime, PrimitiveDateTime, Time, UtcDateTime};

use crate::bus::BusDevice;
use crate::state::{StateError, check_version};

const DEVICE: &str = "real-time clock";

const SECONDS: usize = 0x00;
const SECONDS_ALARM: usize = 0x01;
const MINUTES: usize = 0x02;
const MINUTES_ALARM: usize = 0x03;
const HOURS: usize = 0x04;
const HOURS_ALARM: usize = 0x05;
const WEEKDAY: usize = 0x06;
const DAY: usize = 0x07;
const MONTH: usize = 0x08;
const YEAR: usize = 0x09;
const STATUS_A: usize = 0x0a;
const STATUS_B: usize = 0x0b;
const STATUS_C: usize = 0x0c;
const STATUS_D: usize = 0x0d;
/// Where PCs keep the century; the FADT names it.
const CENTURY: usize = Rtc::CENTURY as usize;

/// Status A: an update is under way.
const UPDATE_IN_PROGRESS: u8 = 1 << 7;
/// Status A: divider bits "held in reset": the clock stands.
const DIVIDER_RESET: u8 = 0x60;
/// Status A after reset: 32.768 kHz crystal, 1.024 kHz rate.
const STATUS_A_RESET: u8 = 0x26;

/// Status B: the clock stands while it is being set.
const SET: u8 = 1 << 7;
/// Status B: periodic, alarm, update-ended interrupt and square wave: absent.
const ABSENT: u8 = 0x78;
/// Status B: numbers are binary, not BCD.
const BINARY: u8 = 1 << 2;
/// Status B: 24 hours, not 12.
const HOURS_24: u8 = 1 << 1;

/// Status C: an update ended since this was last read.
const UPDATE_ENDED: u8 = 1 << 4;
/// Status D: the battery is good.
const VALID: u8 = 1 << 7;
/// Hours register in 12-hour mode: afternoon.
const AFTERNOON: u8 = 1 << 7;

const NANOS_PER_SECOND: i128 = 1_000_000_000;
/// The registers are being updated for so long before each second
/// (data sheet: 244 µs from the flag to the update).
const UPDATE_NANOS: i128 = 244_000;

/// Tells the time in nanoseconds since 1970, UTC.
pub type RealTimeClock = Box<dyn Fn() -> i128 + Send + Sync>;

/// A real-time clock.
pub struct Rtc {
    now: RealTimeClock,
    inner: Mutex<Inner>,
}

struct Inner {
    index: u8,
    /// All bytes; those of the time count only while the clock stands.
    memory: [u8; Rtc::BYTES],
    /// The guest's time minus the host's, in nanoseconds.
    offset: i128,
    /// The second in which status C was last read.
    seen_second: i128,
}

/// Everything in a real-time clock. The time itself comes from the host.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RtcState {
    /// [`RtcState::VERSION`] when it was written.
    pub version: u32,
    /// The register number at port 0x70.
    pub index: u8,
    /// The guest's time minus the host's: seconds, rounded down.
    pub offset_seconds: i64,
    /// The nanoseconds above those seconds.
    pub offset_nanos: u32,
    /// All 128 bytes.
    pub memory: Vec<u8>,
}

impl RtcState {
    /// The version of the layout described here.
    pub const VERSION: u32 = 1;
}

impl Rtc {
    /// How many ports it has.
    pub const PORTS: u64 = 2;
    /// Register that holds the century.
    pub const CENTURY: u8 = 0x32;

    const BYTES: usize = 128;

    /// A clock that shows the host's time.
    pub fn new() -> Self {
        Self::with_clock(Box::new(|| {
            let since = SystemTime::now().duration_since(UNIX_EPOCH);
            // A host's clock before 1970 shows as 1970.
            since.map_or(0, |since| since.as_nanos() as i128)
        }))
    }

    /// A clock that shows the time `now` tells.
    pub fn with_clock(now: RealTimeClock) -> Self {
        let rtc = Self {
            now,
            inner: Mutex::new(Inner {
                index: 0,
                memory: [0; Self::BYTES],
                offset: 0,
                seen_second: 0,
            }),
        };
        rtc.inner_reset();
        rtc
    }

    /// Back to power-on; memory and time stay, as with a battery.
    pub fn reset(&self) {
        self.inner_reset();
    }

    /// Everything in it.
    pub fn save(&self) -> RtcState {
        let inner = self.lock();
        RtcState {
            version: RtcState::VERSION,
            index: inner.index,
            // A guest sets years 0 to 9999: seconds fit by far.
            offset_seconds: inner.offset.div_euclid(NANOS_PER_SECOND) as i64,
            offset_nanos: inner.offset.rem_euclid(NANOS_PER_SECOND) as u32,
            memory: inner.memory.to_vec(),
        }
    }

    /// Takes over a saved state.
    pub fn restore(&self, state: &RtcState) -> Result<(), StateError> {
        check_version(DEVICE, state.version, RtcState::VERSION)?;
        let memory: [u8; Self::BYTES] = state.memory.as_slice().try_into().map_err(|_| {
            StateError::invalid(
                DEVICE,
                format!("it has {} bytes, not {}", state.memory.len(), Self::BYTES),
            )
        })?;
        if usize::from(state.index) >= Self::BYTES || memory[STATUS_B] & ABSENT != 0 {
            return Err(StateError::invalid(
                DEVICE,
                "a register has bits that don't exist",
            ));
        }
        let nanos = i128::from(state.offset_nanos);
        if nanos >= NANOS_PER_SECOND {
            return Err(StateError::invalid(DEVICE, "its offset is not a time"));
        }
        let now = (self.now)();
        let mut inner = self.lock();
        inner.index = state.index;
        inner.memory = memory;
        inner.offset = i128::from(state.offset_seconds) * NANOS_PER_SECOND + nanos;
        inner.seen_second = (now + inner.offset).div_euclid(NANOS_PER_SECOND);
        Ok(())
    }

    fn inner_reset(&self) {
        let now = (self.now)();
        let mut inner = self.lock();
        inner.index = 0;
        inner.memory[STATUS_A] = STATUS_A_RESET;
        inner.memory[STATUS_B] = HOURS_24;
        inner.seen_second = (now + inner.offset).div_euclid(NANOS_PER_SECOND);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Rtc {
    fn default() -> Self {
        Self::new()
    }
}

impl BusDevice for Rtc {
    fn read(&self, offset: u64, _size: AccessSize) -> u64 {
        if offset == 0 {
            // The number register can't be read back on a PC.
            return 0xff;
        }
        let now = (self.now)();
        u64::from(self.lock().read(now))
    }

    fn write(&self, offset: u64, _size: AccessSize, value: u64) {
        // Bit 7 of the number masks NMIs on a PC; there are none to mask.
        if offset == 0 {
            self.lock().index = value as u8 & 0x7f;
        } else {
            let now = (self.now)();
            self.lock().write(value as u8, now);
        }
    }
}

impl Inner {
    fn read(&mut self, now: i128) -> u8 {
        let index = usize::from(self.index);
        let time = now + self.offset;
        match index {
            _ if is_time(index) => {
                if !self.stands() {
                    self.show(time);
                }
                self.memory[index]
            }
            STATUS_A => {
                let until_next = NANOS_PER_SECOND - time.rem_euclid(NANOS_PER_SECOND);
                let updates = !self.stands() && until_next <= UPDATE_NANOS;
                self.memory[index] | if updates { UPDATE_IN_PROGRESS } else { 0 }
            }
            STATUS_C => {
                let second = time.div_euclid(NANOS_PER_SECOND);
                let ended = !self.stands() && second != self.seen_second;
                self.seen_second = second;
                if ended { UPDATE_ENDED } else { 0 }
            }
            STATUS_D => VALID,
            _ => self.memory.get(index).copied().unwrap_or(0xff),
        }
    }

    fn write(&mut self, value: u8, now: i128) {
        let index = usize::from(self.index);
        match index {
            STATUS_A | STATUS_B => {
                let stood = self.stands();
                if !stood {
                    self.show(now + self.offset);
                }
                self.memory[index] = value
                    & if index == STATUS_A {
                        !UPDATE_IN_PROGRESS
                    } else {
                        !ABSENT
                    };
                if stood && !self.stands() {
                    self.take_time(now);
                }
            }
            STATUS_C | STATUS_D => {}
            _ if is_time(index) => {
                // Without SET the clock is set a register at a time.
                let stands = self.stands();
                if !stands {
                    self.show(now + self.offset);
                }
                self.memory[index] = value;
                if !stands {
                    self.take_time(now);
                }
            }
            _ => {
                if let Some(byte) = self.memory.get_mut(index) {
                    *byte = value;
                }
            }
        }
    }

    fn stands(&self) -> bool {
        self.memory[STATUS_B] & SET != 0 || self.memory[STATUS_A] & DIVIDER_RESET == DIVIDER_RESET
    }

    /// Puts a time into the registers, in the format status B asks for.
    fn show(&mut self, nanos: i128) {
        // Years beyond 9999 can't be had: the guest's own doing.
        let time =
            OffsetDateTime::from_unix_timestamp_nanos(nanos).unwrap_or(OffsetDateTime::UNIX_EPOCH);
        let year = time.year().clamp(0, 9999) as u16;
        let hour = if self.memory[STATUS_B] & HOURS_24 != 0 {
            self.encode(time.hour())
        } else {
            let afternoon = if time.hour() >= 12 { AFTERNOON } else { 0 };
            self.encode((time.hour() + 11) % 12 + 1) | afternoon
        };
        for (register, value) in [
            (SECONDS, self.encode(time.second())),
            (MINUTES, self.encode(time.minute())),
            (HOURS, hour),
            (WEEKDAY, self.encode(time.weekday().number_from_sunday())),
            (DAY, self.encode(time.day())),
            (MONTH, self.encode(time.month().into())),
            (YEAR, self.encode((year % 100) as u8)),
            (CENTURY, self.encode((year / 100) as u8)),
        ] {
            self.memory[register] = value;
        }
    }

    /// Makes the time in the registers the guest's time. Registers that hold
    /// no date leave it as it was.
    fn take_time(&mut self, now: i128) {
        let Some(time) = self.registers_time() else {
            return;
        };
        // The fraction of the second starts anew, as in the chip.
        self.offset = i128::from(time) * NANOS_PER_SECOND - now;
        self.seen_second = i128::from(time);
    }

    /// The time in the registers, in seconds since 1970.
    fn registers_time(&self) -> Option<i64> {
        let number = |register: usize| self.decode(self.memory[register]);
        let hour = if self.memory[STATUS_B] & HOURS_24 != 0 {
            number(HOURS)?
        } else {
            let register = self.memory[HOURS];
            let hour = self.decode(register & !AFTERNOON)?;
            if !(1..=12).contains(&hour) {
                return None;
            }
            hour % 12 + if register & AFTERNOON != 0 { 12 } else { 0 }
        };
        let year = i32::from(number(CENTURY)?) * 100 + i32::from(number(YEAR)?);
        let month = Month::try_from(number(MONTH)?).ok()?;
        let date = Date::from_calendar_date(year, month, number(DAY)?).ok()?;
        let time = Time::from_hms(hour, number(MINUTES)?, number(SECONDS)?).ok()?;
        let time = PrimitiveDateTime::new(date, time).assume_utc();
        Some(UtcDateTime::from(time).unix_timestamp())
    }

    fn encode(&self, value: u8) -> u8 {
        if self.memory[STATUS_B] & BINARY != 0 {
            value
        } else {
            ((value / 10) << 4) | (value % 10)
        }
    }

    /// The number in a register, 0 to 99.
    fn decode(&self, register: u8) -> Option<u8> {
        let value = if self.memory[STATUS_B] & BINARY != 0 {
            register
        } else if register & 0xf < 10 {
            (register >> 4) * 10 + (register & 0xf)
        } else {
            return None;
        };
        (value < 100).then_some(value)
    }
}

fn is_time(index: usize) -> bool {
    index == CENTURY
        || index <= YEAR && !matches!(index, SECONDS_ALARM | MINUTES_ALARM | HOURS_ALARM)
}

#[cfg(test)]
#[path = "rtc_test.rs"]
mod test;
