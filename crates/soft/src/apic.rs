//! The local APIC (SDM vol. 3, chapter 11), as a pure state machine.
//!
//! It has no clock and knows no other processor: time is passed in as host
//! TSC ticks, and what concerns others comes back as an [`Effect`]. Registers
//! are numbered as in x2APIC mode; an xAPIC register at offset `n` × 16 is
//! number `n`.

use favo_accel::state::LocalApicState;

use crate::clock::{APIC_HZ, ticks};
use crate::trap::{Exec, GP0};

/// Register numbers.
pub(crate) mod register {
    pub const ID: u32 = 0x02;
    pub const VERSION: u32 = 0x03;
    pub const TPR: u32 = 0x08;
    pub const PPR: u32 = 0x0a;
    pub const EOI: u32 = 0x0b;
    pub const LDR: u32 = 0x0d;
    pub const DFR: u32 = 0x0e;
    pub const SVR: u32 = 0x0f;
    pub const ISR: u32 = 0x10;
    pub const TMR: u32 = 0x18;
    pub const IRR: u32 = 0x20;
    pub const ESR: u32 = 0x28;
    pub const CMCI: u32 = 0x2f;
    pub const ICR: u32 = 0x30;
    pub const ICR_HIGH: u32 = 0x31;
    pub const LVT_TIMER: u32 = 0x32;
    pub const LVT_ERROR: u32 = 0x37;
    pub const INITIAL_COUNT: u32 = 0x38;
    pub const CURRENT_COUNT: u32 = 0x39;
    pub const DIVIDE: u32 = 0x3e;
    pub const SELF_IPI: u32 = 0x3f;
}

/// Version 14H, six LVT entries, no EOI suppression.
const VERSION: u32 = 0x0005_0014;
const LVT_MASKED: u32 = 1 << 16;
const SVR_ENABLE: u32 = 1 << 8;
/// ESR: a register that does not exist was accessed.
const ESR_ILLEGAL_REGISTER: u32 = 1 << 7;
/// ESR: a vector below 16 was sent or received.
const ESR_ILLEGAL_VECTOR: u32 = 1 << 6;

/// IA32_APIC_BASE bits.
pub(crate) mod base {
    pub const BOOTSTRAP: u64 = 1 << 8;
    pub const X2APIC: u64 = 1 << 10;
    pub const ENABLE: u64 = 1 << 11;
    pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
}

/// What a register write means for the world outside.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Effect {
    /// Nothing.
    None,
    /// The end of a level-triggered interrupt: the I/O APIC must hear of it.
    EndOfLevel(u8),
    /// An interprocessor interrupt, as written to the ICR.
    Send(u64),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum TimerMode {
    OneShot,
    Periodic,
    Deadline,
}

/// One local APIC.
#[derive(Clone, Debug)]
pub(crate) struct LocalApic {
    state: LocalApicState,
    /// The initial id; also the x2APIC id.
    id: u32,
    x2apic: bool,
    enabled: bool,
    tsc_khz: u32,
    /// Host TSC at which the timer fires.
    expires: Option<u64>,
    /// Errors since the ESR was last written.
    errors: u32,
}

impl LocalApic {
    pub(crate) fn new(id: u32, state: LocalApicState, apic_base: u64, tsc_khz: u32) -> Self {
        let mut apic = Self {
            state,
            id,
            x2apic: false,
            enabled: false,
            tsc_khz,
            expires: None,
            errors: 0,
        };
        apic.set_base(apic_base);
        apic
    }

    /// IA32_APIC_BASE changed.
    pub(crate) fn set_base(&mut self, value: u64) {
        let was_x2apic = self.x2apic;
        self.enabled = value & base::ENABLE != 0;
        self.x2apic = self.enabled && value & base::X2APIC != 0;
        if self.x2apic && !was_x2apic {
            self.state.id = self.id;
            self.state.ldr = (self.id >> 4) << 16 | 1 << (self.id & 15);
        } else if !self.x2apic && was_x2apic {
            self.state.id = self.id << 24;
        }
        if !self.enabled {
            self.expires = None;
        }
    }

    /// Replaces the state; timers are restarted from what it says at `now`.
    pub(crate) fn load(&mut self, state: &LocalApicState, apic_base: u64, now: u64) {
        self.state = *state;
        self.expires = None;
        self.errors = 0;
        self.enabled = apic_base & base::ENABLE != 0;
        self.x2apic = self.enabled && apic_base & base::X2APIC != 0;
        if self.timer_mode() != TimerMode::Deadline && state.timer_current_count != 0 {
            self.expires = Some(now.saturating_add(self.count_ticks(state.timer_current_count)));
        }
    }

    /// The state at `now`.
    pub(crate) fn save(&self, now: u64) -> LocalApicState {
        LocalApicState {
            timer_current_count: self.current_count(now),
            ..self.state
        }
    }

    pub(crate) fn is_enabled(&self) -> bool {
        self.enabled
    }

    pub(crate) fn is_x2apic(&self) -> bool {
        self.x2apic
    }

    /// Software-enabled by the spurious vector register.
    fn accepts(&self) -> bool {
        self.enabled && self.state.svr & SVR_ENABLE != 0
    }

    /// Logical destination register, for senders.
    pub(crate) fn ldr(&self) -> u32 {
        self.state.ldr
    }

    /// Destination format register, for senders.
    pub(crate) fn dfr(&self) -> u32 {
        self.state.dfr
    }

    /// CR8.
    pub(crate) fn cr8(&self) -> u64 {
        u64::from(self.state.tpr >> 4 & 15)
    }

    pub(crate) fn set_cr8(&mut self, value: u64) {
        self.state.tpr = (value as u32 & 15) << 4;
    }

    /// A fixed interrupt arrives.
    pub(crate) fn accept(&mut self, vector: u8, level: bool) {
        if !self.accepts() {
            return;
        }
        if vector < 16 {
            self.errors |= ESR_ILLEGAL_VECTOR;
            return;
        }
        set_bit(&mut self.state.irr, vector, true);
        set_bit(&mut self.state.tmr, vector, level);
    }

    fn processor_priority(&self) -> u32 {
        let in_service = highest(&self.state.isr).map_or(0, u32::from);
        let tpr = self.state.tpr & 0xff;
        if tpr >> 4 >= in_service >> 4 {
            tpr
        } else {
            in_service & 0xf0
        }
    }

    /// The interrupt the processor should take now, if it takes any.
    pub(crate) fn deliverable(&self) -> Option<u8> {
        if !self.accepts() {
            return None;
        }
        highest(&self.state.irr)
            .filter(|vector| u32::from(vector >> 4) > self.processor_priority() >> 4)
    }

    /// The processor takes the interrupt [`LocalApic::deliverable`] named.
    pub(crate) fn acknowledge(&mut self, vector: u8) {
        set_bit(&mut self.state.irr, vector, false);
        set_bit(&mut self.state.isr, vector, true);
    }

    fn end_of_interrupt(&mut self) -> Effect {
        let Some(vector) = highest(&self.state.isr) else {
            return Effect::None;
        };
        set_bit(&mut self.state.isr, vector, false);
        if bit(&self.state.tmr, vector) {
            Effect::EndOfLevel(vector)
        } else {
            Effect::None
        }
    }

    /// Reads an xAPIC register; one that does not exist reads as zero.
    pub(crate) fn read_xapic(&mut self, offset: u64, now: u64) -> u32 {
        let number = (offset >> 4) as u32;
        if offset & 0xf != 0 {
            return 0;
        }
        match number {
            register::DFR => self.state.dfr,
            register::ICR => self.state.icr as u32,
            register::ICR_HIGH => (self.state.icr >> 32) as u32,
            _ => self.read(number, now).unwrap_or_else(|| {
                self.errors |= ESR_ILLEGAL_REGISTER;
                0
            }),
        }
    }

    /// Writes an xAPIC register; one that does not exist is an error to the
    /// ESR only.
    pub(crate) fn write_xapic(&mut self, offset: u64, value: u32, now: u64) -> Effect {
        let number = (offset >> 4) as u32;
        if offset & 0xf != 0 {
            return Effect::None;
        }
        match number {
            register::ID => {
                self.state.id = value & 0xff00_0000;
                Effect::None
            }
            register::LDR => {
                self.state.ldr = value & 0xff00_0000;
                Effect::None
            }
            register::DFR => {
                self.state.dfr = value | 0x0fff_ffff;
                Effect::None
            }
            register::ICR_HIGH => {
                self.state.icr =
                    self.state.icr & 0xffff_ffff | u64::from(value & 0xff00_0000) << 32;
                Effect::None
            }
            register::ICR => {
                // Bit 12, delivery status, is never pending here.
                let command = u64::from(value & !(1 << 12));
                self.state.icr = self.state.icr & !0xffff_ffff | command;
                Effect::Send(self.state.icr)
            }
            _ => self.write(number, value, now).unwrap_or_else(|| {
                self.errors |= ESR_ILLEGAL_REGISTER;
                Effect::None
            }),
        }
    }

    /// RDMSR of an x2APIC register.
    pub(crate) fn read_x2apic(&mut self, number: u32, now: u64) -> Exec<u64> {
        if !self.x2apic {
            return Err(GP0);
        }
        match number {
            register::ICR => Ok(self.state.icr),
            register::DFR | register::ICR_HIGH | register::EOI | register::SELF_IPI => Err(GP0),
            _ => self.read(number, now).map(u64::from).ok_or(GP0),
        }
    }

    /// WRMSR of an x2APIC register.
    pub(crate) fn write_x2apic(&mut self, number: u32, value: u64, now: u64) -> Exec<Effect> {
        if !self.x2apic {
            return Err(GP0);
        }
        match number {
            register::ICR => {
                if value & 0xfff3_2000 != 0 {
                    return Err(GP0);
                }
                self.state.icr = value & !(1 << 12);
                Ok(Effect::Send(self.state.icr))
            }
            register::SELF_IPI => {
                if value > 0xff {
                    return Err(GP0);
                }
                self.accept(value as u8, false);
                Ok(Effect::None)
            }
            // EOI and ESR take zero only.
            register::EOI | register::ESR if value != 0 => Err(GP0),
            register::ID | register::LDR | register::DFR | register::ICR_HIGH => Err(GP0),
            _ if value >> 32 != 0 => Err(GP0),
            _ => self.write(number, value as u32, now).ok_or(GP0),
        }
    }

    /// Registers that are the same in both modes. `None`: there is none, or it
    /// can't be read.
    fn read(&self, number: u32, now: u64) -> Option<u32> {
        let state = &self.state;
        Some(match number {
            register::ID => state.id,
            register::VERSION => VERSION,
            register::TPR => state.tpr,
            register::PPR => self.processor_priority(),
            register::EOI => 0,
            register::LDR => state.ldr,
            register::SVR => state.svr,
            register::ISR..register::TMR => state.isr[(number - register::ISR) as usize],
            register::TMR..register::IRR => state.tmr[(number - register::TMR) as usize],
            register::IRR..register::ESR => state.irr[(number - register::IRR) as usize],
            register::ESR => state.esr,
            register::CMCI => state.lvt_cmci,
            register::LVT_TIMER => state.lvt_timer,
            0x33 => state.lvt_thermal,
            0x34 => state.lvt_performance,
            0x35 => state.lvt_lint0,
            0x36 => state.lvt_lint1,
            register::LVT_ERROR => state.lvt_error,
            register::INITIAL_COUNT => state.timer_initial_count,
            register::CURRENT_COUNT => self.current_count(now),
            register::DIVIDE => state.timer_divide,
            _ => return None,
        })
    }

    fn write(&mut self, number: u32, value: u32, now: u64) -> Option<Effect> {
        // A software-disabled APIC keeps its LVT entries masked.
        let mask = if self.accepts() { 0 } else { LVT_MASKED };
        match number {
            register::TPR => self.state.tpr = value & 0xff,
            register::EOI => return Some(self.end_of_interrupt()),
            register::SVR => self.write_svr(value),
            register::ESR => self.state.esr = std::mem::take(&mut self.errors),
            register::CMCI => self.state.lvt_cmci = value & 0x1_07ff | mask,
            register::LVT_TIMER => self.write_lvt_timer(value & 0x7_00ff | mask, now),
            0x33 => self.state.lvt_thermal = value & 0x1_07ff | mask,
            0x34 => self.state.lvt_performance = value & 0x1_07ff | mask,
            0x35 => self.state.lvt_lint0 = value & 0x1_a7ff | mask,
            0x36 => self.state.lvt_lint1 = value & 0x1_a7ff | mask,
            register::LVT_ERROR => self.state.lvt_error = value & 0x1_00ff | mask,
            register::INITIAL_COUNT => {
                if self.timer_mode() != TimerMode::Deadline {
                    self.state.timer_initial_count = value;
                    self.start_count(now);
                }
            }
            register::DIVIDE => {
                let left = self.current_count(now);
                self.state.timer_divide = value & 0xb;
                if self.expires.is_some() && self.timer_mode() != TimerMode::Deadline {
                    self.expires = Some(now.saturating_add(self.count_ticks(left)));
                }
            }
            _ => return None,
        }
        Some(Effect::None)
    }

    fn write_svr(&mut self, value: u32) {
        self.state.svr = value & 0x1ff;
        if value & SVR_ENABLE == 0 {
            let state = &mut self.state;
            for entry in [
                &mut state.lvt_cmci,
                &mut state.lvt_timer,
                &mut state.lvt_thermal,
                &mut state.lvt_performance,
                &mut state.lvt_lint0,
                &mut state.lvt_lint1,
                &mut state.lvt_error,
            ] {
                *entry |= LVT_MASKED;
            }
        }
    }

    fn write_lvt_timer(&mut self, value: u32, _now: u64) {
        let before = self.timer_mode();
        self.state.lvt_timer = value;
        let after = self.timer_mode();
        // Changing to or from the deadline mode disarms the timer.
        if before != after && (before == TimerMode::Deadline || after == TimerMode::Deadline) {
            self.expires = None;
            self.state.timer_initial_count = 0;
        }
    }

    fn timer_mode(&self) -> TimerMode {
        match self.state.lvt_timer >> 17 & 3 {
            0 => TimerMode::OneShot,
            1 => TimerMode::Periodic,
            _ => TimerMode::Deadline,
        }
    }

    fn divisor(&self) -> u64 {
        let value = self.state.timer_divide & 3 | self.state.timer_divide >> 1 & 4;
        if value == 7 { 1 } else { 2 << value }
    }

    /// Host TSC ticks in `count` of the timer's.
    fn count_ticks(&self, count: u32) -> u64 {
        let nanoseconds = u64::from(count) * self.divisor() * 1_000_000_000 / APIC_HZ;
        ticks(nanoseconds, self.tsc_khz).max(1)
    }

    fn start_count(&mut self, now: u64) {
        let count = self.state.timer_initial_count;
        self.expires = (count != 0).then(|| now.saturating_add(self.count_ticks(count)));
    }

    fn current_count(&self, now: u64) -> u32 {
        if self.timer_mode() == TimerMode::Deadline {
            return 0;
        }
        let Some(expires) = self.expires else {
            return 0;
        };
        let left = u128::from(expires.saturating_sub(now)) * 1_000_000
            / u128::from(self.tsc_khz)
            / u128::from(self.divisor());
        left.min(self.state.timer_initial_count.into()) as u32
    }

    /// IA32_TSC_DEADLINE was written: fire when the host TSC reaches
    /// `deadline`; `None` disarms. Ignored in the other modes.
    pub(crate) fn set_deadline(&mut self, deadline: Option<u64>) {
        if self.timer_mode() == TimerMode::Deadline {
            self.expires = deadline;
        }
    }

    /// Whether the TSC deadline is armed: the MSR reads as zero if not.
    pub(crate) fn deadline_armed(&self) -> bool {
        self.timer_mode() == TimerMode::Deadline && self.expires.is_some()
    }

    /// When the timer fires, in host TSC ticks.
    pub(crate) fn expires(&self) -> Option<u64> {
        self.expires
    }

    /// Fires the timer if it is due. Periods that were missed are one
    /// interrupt.
    pub(crate) fn advance(&mut self, now: u64) {
        let Some(expires) = self.expires else { return };
        if now < expires {
            return;
        }
        self.expires = None;
        if self.timer_mode() == TimerMode::Periodic && self.state.timer_initial_count != 0 {
            let period = self.count_ticks(self.state.timer_initial_count);
            let missed = (now - expires) / period;
            self.expires = Some(expires + (missed + 1) * period);
        }
        let entry = self.state.lvt_timer;
        if entry & LVT_MASKED == 0 {
            self.accept(entry as u8, false);
        }
    }
}

fn set_bit(bits: &mut [u32; 8], vector: u8, value: bool) {
    let word = &mut bits[usize::from(vector >> 5)];
    let mask = 1 << (vector & 31);
    *word = if value { *word | mask } else { *word & !mask };
}

fn bit(bits: &[u32; 8], vector: u8) -> bool {
    bits[usize::from(vector >> 5)] >> (vector & 31) & 1 != 0
}

/// The highest vector set.
fn highest(bits: &[u32; 8]) -> Option<u8> {
    let (index, word) = bits
        .iter()
        .enumerate()
        .rev()
        .find(|(_, word)| **word != 0)?;
    Some((index * 32) as u8 + (31 - word.leading_zeros()) as u8)
}

#[cfg(test)]
#[path = "apic_test.rs"]
mod test;
