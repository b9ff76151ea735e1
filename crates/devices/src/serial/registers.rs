//! The UART's registers and FIFOs, as a pure state machine (PC16550D, 8).

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::state::{StateError, check_version};

const DEVICE: &str = "serial port";

/// Above this many bytes of unwritten output the transmitter is busy.
pub const OUTPUT_SOFT_LIMIT: usize = 64 << 10;
/// Above this many, output is lost.
pub const OUTPUT_HARD_LIMIT: usize = 1 << 20;

/// Bytes of the receiver FIFO.
const FIFO_BYTES: usize = 16;

/// That many reads of the line status in a row are a driver that polls for
/// input. A driver that waits to send stops at the first, mostly.
const POLLING: u8 = 64;

// Register offsets. With the divisor latch open, 0 and 1 are the divisor.
const DATA: u64 = 0;
pub(super) const INTERRUPT_ENABLE: u64 = 1;
const IDENTIFICATION_OR_FIFO: u64 = 2;
const LINE_CONTROL: u64 = 3;
const MODEM_CONTROL: u64 = 4;
const LINE_STATUS: u64 = 5;
const MODEM_STATUS: u64 = 6;
const SCRATCH: u64 = 7;

const ENABLE_RECEIVED: u8 = 1 << 0;
const ENABLE_TRANSMITTER_EMPTY: u8 = 1 << 1;
const ENABLE_MODEM_STATUS: u8 = 1 << 3;
const ENABLE_ALL: u8 = 0x0f;

const IDENTIFY_NONE: u8 = 0x01;
const IDENTIFY_MODEM_STATUS: u8 = 0x00;
const IDENTIFY_TRANSMITTER_EMPTY: u8 = 0x02;
const IDENTIFY_RECEIVED: u8 = 0x04;
const IDENTIFY_TIMEOUT: u8 = 0x0c;
const IDENTIFY_FIFOS: u8 = 0xc0;

const FIFO_ENABLE: u8 = 1 << 0;
const FIFO_CLEAR_RECEIVER: u8 = 1 << 1;
/// Enable, DMA mode and trigger level are kept.
const FIFO_KEPT: u8 = 0xc9;

const DIVISOR_LATCH: u8 = 1 << 7;

const MODEM_LOOP: u8 = 1 << 4;
const MODEM_ALL: u8 = 0x1f;

const STATUS_DATA_READY: u8 = 1 << 0;
const STATUS_TRANSMITTER_EMPTY: u8 = 1 << 5 | 1 << 6;

/// Clear to send, data set ready, carrier: somebody is there.
const MODEM_CONNECTED: u8 = 0xb0;

pub(super) struct Registers {
    interrupt_enable: u8,
    fifo_control: u8,
    line_control: u8,
    modem_control: u8,
    scratch: u8,
    divisor: u16,
    /// Bits 3:0 of the modem status: what changed since it was read.
    modem_delta: u8,
    /// The transmitter became empty and nobody has noticed.
    transmitter_empty_pending: bool,
    /// How often the line status was read with nothing else in between.
    status_polls: u8,
    input: VecDeque<u8>,
    output: VecDeque<u8>,
    lost_output: u64,
}

/// Everything in a serial port.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SerialState {
    /// [`SerialState::VERSION`] when it was written.
    pub version: u32,
    /// Interrupt enable register.
    pub interrupt_enable: u8,
    /// FIFO control register: enable, DMA mode, trigger level.
    pub fifo_control: u8,
    /// Line control register.
    pub line_control: u8,
    /// Modem control register.
    pub modem_control: u8,
    /// Modem status register, bits 3:0.
    pub modem_delta: u8,
    /// Scratch register.
    pub scratch: u8,
    /// Divisor latch.
    pub divisor: u16,
    /// The transmitter's interrupt waits to be seen.
    pub transmitter_empty_pending: bool,
    /// The receiver FIFO, oldest byte first.
    pub input: Vec<u8>,
    /// Output the host has not written yet, oldest byte first.
    pub output: Vec<u8>,
}

impl SerialState {
    /// The version of the layout described here.
    pub const VERSION: u32 = 1;
}

impl Registers {
    pub(super) fn new() -> Self {
        Self {
            interrupt_enable: 0,
            fifo_control: 0,
            // 8 data bits.
            line_control: 3,
            modem_control: 0,
            scratch: 0,
            // 9600 baud.
            divisor: 12,
            modem_delta: 0,
            transmitter_empty_pending: false,
            status_polls: 0,
            input: VecDeque::new(),
            output: VecDeque::new(),
            lost_output: 0,
        }
    }

    pub(super) fn reset(&mut self) {
        let output = std::mem::take(&mut self.output);
        *self = Self {
            output,
            lost_output: self.lost_output,
            ..Self::new()
        };
    }

    pub(super) fn read(&mut self, offset: u64) -> u8 {
        if offset == LINE_STATUS {
            self.status_polls = self.status_polls.saturating_add(1);
        } else if self.status_polls < POLLING {
            self.status_polls = 0;
        }
        let [divisor_low, divisor_high] = self.divisor.to_le_bytes();
        match offset {
            DATA if self.divisor_latch_open() => divisor_low,
            INTERRUPT_ENABLE if self.divisor_latch_open() => divisor_high,
            DATA => self.input.pop_front().unwrap_or(0),
            INTERRUPT_ENABLE => self.interrupt_enable,
            IDENTIFICATION_OR_FIFO => self.read_identification(),
            LINE_CONTROL => self.line_control,
            MODEM_CONTROL => self.modem_control,
            LINE_STATUS => self.line_status(),
            MODEM_STATUS => self.modem_lines() | std::mem::take(&mut self.modem_delta),
            SCRATCH => self.scratch,
            _ => 0,
        }
    }

    pub(super) fn write(&mut self, offset: u64, value: u8) {
        let [divisor_low, divisor_high] = self.divisor.to_le_bytes();
        match offset {
            DATA if self.divisor_latch_open() => {
                self.divisor = u16::from_le_bytes([value, divisor_high]);
            }
            INTERRUPT_ENABLE if self.divisor_latch_open() => {
                self.divisor = u16::from_le_bytes([divisor_low, value]);
            }
            DATA => self.transmit(value),
            INTERRUPT_ENABLE => {
                let enabled = value & ENABLE_ALL;
                // Enabling the transmitter's interrupt while it is empty
                // raises it at once.
                if enabled & !self.interrupt_enable & ENABLE_TRANSMITTER_EMPTY != 0 {
                    self.transmitter_empty_pending = !self.transmitter_busy();
                }
                self.interrupt_enable = enabled;
                self.status_polls = 0;
            }
            IDENTIFICATION_OR_FIFO => {
                // Turning the FIFOs on or off empties them (8.5).
                let toggled = (value ^ self.fifo_control) & FIFO_ENABLE != 0;
                if toggled || value & FIFO_CLEAR_RECEIVER != 0 {
                    self.input.clear();
                }
                // The output buffer is the host's side of the line: what is
                // there was sent, and clearing the transmitter can't undo it.
                self.fifo_control = match value & FIFO_ENABLE {
                    0 => 0,
                    _ => value & FIFO_KEPT,
                };
            }
            LINE_CONTROL => self.line_control = value,
            MODEM_CONTROL => {
                let before = self.modem_lines();
                self.modem_control = value & MODEM_ALL;
                self.note_modem_change(before);
            }
            SCRATCH => self.scratch = value,
            _ => {}
        }
    }

    /// Puts bytes into the receiver, as many as it has room for.
    pub(super) fn receive(&mut self, bytes: &[u8]) -> usize {
        let room = self.input_room();
        let taken = &bytes[..bytes.len().min(room)];
        self.input.extend(taken);
        taken.len()
    }

    pub(super) fn input_room(&self) -> usize {
        // In loop mode the receiver is cut off from the line. And a driver that
        // does not listen yet will clear the FIFO before it does: what comes in
        // meanwhile waits outside.
        if self.modem_control & MODEM_LOOP != 0 || !self.listening() {
            return 0;
        }
        self.fifo_bytes().saturating_sub(self.input.len())
    }

    pub(super) fn output_bytes(&self) -> usize {
        self.output.len()
    }

    /// Moves all output to the end of `to`.
    pub(super) fn take_output(&mut self, to: &mut Vec<u8>) {
        let was_busy = self.transmitter_busy();
        to.extend(self.output.drain(..));
        if was_busy {
            self.transmitter_empty_pending = true;
        }
    }

    pub(super) fn lost_output(&self) -> u64 {
        self.lost_output
    }

    pub(super) fn interrupt_pending(&self) -> bool {
        self.identification() != IDENTIFY_NONE
    }

    pub(super) fn save(&self) -> SerialState {
        SerialState {
            version: SerialState::VERSION,
            interrupt_enable: self.interrupt_enable,
            fifo_control: self.fifo_control,
            line_control: self.line_control,
            modem_control: self.modem_control,
            modem_delta: self.modem_delta,
            scratch: self.scratch,
            divisor: self.divisor,
            transmitter_empty_pending: self.transmitter_empty_pending,
            input: self.input.iter().copied().collect(),
            output: self.output.iter().copied().collect(),
        }
    }

    pub(super) fn restore(&mut self, state: &SerialState) -> Result<(), StateError> {
        check_version(DEVICE, state.version, SerialState::VERSION)?;
        let fifos_on = state.fifo_control & FIFO_ENABLE != 0;
        let reason = if state.interrupt_enable & !ENABLE_ALL != 0
            || state.fifo_control & !FIFO_KEPT != 0
            || state.fifo_control != 0 && !fifos_on
            || state.modem_control & !MODEM_ALL != 0
            || state.modem_delta & !0xf != 0
        {
            Some("a register has bits that don't exist")
        } else if state.input.len() > if fifos_on { FIFO_BYTES } else { 1 } {
            Some("more input than fits into the receiver")
        } else if state.output.len() > OUTPUT_HARD_LIMIT {
            Some("more output than is ever kept")
        } else {
            None
        };
        if let Some(reason) = reason {
            return Err(StateError::invalid(DEVICE, reason));
        }
        *self = Self {
            interrupt_enable: state.interrupt_enable,
            fifo_control: state.fifo_control,
            line_control: state.line_control,
            modem_control: state.modem_control,
            scratch: state.scratch,
            divisor: state.divisor,
            modem_delta: state.modem_delta,
            transmitter_empty_pending: state.transmitter_empty_pending,
            status_polls: 0,
            input: state.input.iter().copied().collect(),
            output: state.output.iter().copied().collect(),
            lost_output: self.lost_output,
        };
        Ok(())
    }

    fn transmit(&mut self, value: u8) {
        self.transmitter_empty_pending = false;
        if self.modem_control & MODEM_LOOP != 0 {
            if self.input.len() < self.fifo_bytes() {
                self.input.push_back(value);
            }
        } else if self.output.len() < OUTPUT_HARD_LIMIT {
            self.output.push_back(value);
        } else {
            self.lost_output += 1;
        }
        // The line is infinitely fast until the host stops reading.
        self.transmitter_empty_pending = !self.transmitter_busy();
    }

    /// Whether a driver takes input: by interrupt, or by polling.
    fn listening(&self) -> bool {
        self.interrupt_enable & ENABLE_RECEIVED != 0 || self.status_polls >= POLLING
    }

    fn transmitter_busy(&self) -> bool {
        self.output.len() >= OUTPUT_SOFT_LIMIT
    }

    fn line_status(&self) -> u8 {
        let mut status = 0;
        if !self.input.is_empty() {
            status |= STATUS_DATA_READY;
        }
        if !self.transmitter_busy() {
            status |= STATUS_TRANSMITTER_EMPTY;
        }
        status
    }

    /// The lines of the modem status register, bits 7:4: in loop mode the
    /// port's own outputs (8.6).
    fn modem_lines(&self) -> u8 {
        let control = self.modem_control;
        if control & MODEM_LOOP == 0 {
            return MODEM_CONNECTED;
        }
        // RTS to CTS, DTR to DSR, OUT1 to RI, OUT2 to DCD.
        (control & 2) << 3 | (control & 1) << 5 | (control & 4) << 4 | (control & 8) << 4
    }

    fn note_modem_change(&mut self, before: u8) {
        let after = self.modem_lines();
        // Ring counts only when it ends.
        let changed = (before ^ after) & !(after & 1 << 6);
        self.modem_delta |= changed >> 4;
    }

    /// The most urgent interrupt that is enabled (8.6, table IV).
    fn identification(&self) -> u8 {
        if self.interrupt_enable & ENABLE_RECEIVED != 0 && !self.input.is_empty() {
            // There is no time on this line, so the time-out of an incomplete
            // FIFO comes at once.
            return if self.input.len() >= self.trigger_level() {
                IDENTIFY_RECEIVED
            } else {
                IDENTIFY_TIMEOUT
            };
        }
        if self.interrupt_enable & ENABLE_TRANSMITTER_EMPTY != 0 && self.transmitter_empty_pending {
            return IDENTIFY_TRANSMITTER_EMPTY;
        }
        if self.interrupt_enable & ENABLE_MODEM_STATUS != 0 && self.modem_delta != 0 {
            return IDENTIFY_MODEM_STATUS;
        }
        IDENTIFY_NONE
    }

    fn read_identification(&mut self) -> u8 {
        let identification = self.identification();
        if identification == IDENTIFY_TRANSMITTER_EMPTY {
            self.transmitter_empty_pending = false;
        }
        match self.fifo_control & FIFO_ENABLE {
            0 => identification,
            _ => identification | IDENTIFY_FIFOS,
        }
    }

    fn trigger_level(&self) -> usize {
        match (self.fifo_control & FIFO_ENABLE, self.fifo_control >> 6) {
            (0, _) | (_, 0) => 1,
            (_, 1) => 4,
            (_, 2) => 8,
            _ => 14,
        }
    }

    fn fifo_bytes(&self) -> usize {
        match self.fifo_control & FIFO_ENABLE {
            0 => 1,
            _ => FIFO_BYTES,
        }
    }

    fn divisor_latch_open(&self) -> bool {
        self.line_control & DIVISOR_LATCH != 0
    }
}
