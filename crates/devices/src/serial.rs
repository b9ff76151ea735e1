//! The serial port COM1: a 16550A UART (National PC16550D data sheet).
//!
//! Bytes pass through it unchanged, in both directions, and no processor ever
//! waits for the host:
//!
//! * **Output.** What the guest sends is kept in a buffer that
//!   [`SerialPort::pump_output`], on a thread of the VMM's, empties into a
//!   writer. When the host reads too slowly and the buffer is past
//!   [`OUTPUT_SOFT_LIMIT`], the transmitter reports itself busy, as a slow
//!   line would; drivers wait. Linux's console gives up waiting after 10 ms a
//!   byte and sends anyway; that is kept too, up to [`OUTPUT_HARD_LIMIT`], and
//!   only beyond it lost and counted.
//! * **Input.** [`SerialPort::push_input`] takes as many bytes as the receiver
//!   FIFO has room for; the rest stays with the caller, who can
//!   [wait](SerialPort::wait_input_room). Nothing is ever overrun, and nothing
//!   is taken while no driver listens, since a driver that starts throws away
//!   what it finds.
//!
//! The `vm-superio` crate's port doesn't fit here: its transmitter is always
//! ready and writes to the host from the processor's thread, and it has no
//! FIFO control.
//!
//! There is no line to be slow: divisor and frame format are kept, without
//! effect. A break, parity and framing errors don't occur.

mod registers;

use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use favo_accel::AccessSize;

use crate::bus::BusDevice;
use crate::interrupt::InterruptLine;
use crate::state::StateError;

use registers::{INTERRUPT_ENABLE, Registers};
pub use registers::{OUTPUT_HARD_LIMIT, OUTPUT_SOFT_LIMIT, SerialState};

/// A serial port.
pub struct SerialPort {
    line: Arc<dyn InterruptLine>,
    inner: Mutex<Inner>,
    /// Output arrived, or the port was closed.
    output: Condvar,
    /// The receiver has room, or the port was closed.
    input: Condvar,
}

struct Inner {
    registers: Registers,
    /// What the wire was set to last.
    level: bool,
    closed: bool,
    /// The host's side stands still.
    paused: bool,
}

impl SerialPort {
    /// How many ports it has.
    pub const PORTS: u64 = 8;

    /// A port that interrupts through `line`.
    pub fn new(line: Arc<dyn InterruptLine>) -> Self {
        Self {
            line,
            inner: Mutex::new(Inner {
                registers: Registers::new(),
                level: false,
                closed: false,
                paused: false,
            }),
            output: Condvar::new(),
            input: Condvar::new(),
        }
    }

    /// Offers input to the guest; returns how many bytes it took. Never
    /// blocks. A closed port takes nothing.
    pub fn push_input(&self, bytes: &[u8]) -> usize {
        let mut inner = self.lock();
        if inner.closed || inner.paused {
            return 0;
        }
        let taken = inner.registers.receive(bytes);
        self.update_line(&mut inner);
        taken
    }

    /// Waits until the receiver has room, at most `timeout`. Whether it has;
    /// false also when the port is closed.
    pub fn wait_input_room(&self, timeout: Duration) -> bool {
        let inner = self.lock();
        let (inner, _) = self
            .input
            .wait_timeout_while(inner, timeout, |inner| {
                !inner.closed && (inner.paused || inner.registers.input_room() == 0)
            })
            .unwrap_or_else(PoisonError::into_inner);
        !inner.closed && !inner.paused && inner.registers.input_room() > 0
    }

    /// Has the host's side stand still, or go on: while it does, input is not
    /// taken and output stays here, so that nothing but the guest changes the
    /// port. A port that is closed writes what it has all the same.
    pub fn set_paused(&self, paused: bool) {
        self.lock().paused = paused;
        self.output.notify_all();
        self.input.notify_all();
    }

    /// Writes everything the guest sends to `writer`, and flushes it whenever
    /// there is nothing more to write. Returns when the port is closed and
    /// all output is written, or with the writer's error; bytes of a failed
    /// write are lost, all others stay for the next call.
    pub fn pump_output(&self, writer: &mut dyn Write) -> io::Result<()> {
        let mut chunk = Vec::new();
        loop {
            {
                let mut inner = self.lock();
                if inner.registers.output_bytes() == 0 {
                    drop(inner);
                    writer.flush()?;
                    inner = self.lock();
                }
                inner = self
                    .output
                    .wait_while(inner, |inner| {
                        !inner.closed && (inner.paused || inner.registers.output_bytes() == 0)
                    })
                    .unwrap_or_else(PoisonError::into_inner);
                if inner.registers.output_bytes() == 0 {
                    return Ok(());
                }
                chunk.clear();
                inner.registers.take_output(&mut chunk);
                self.update_line(&mut inner);
            }
            writer.write_all(&chunk)?;
        }
    }

    /// Takes what the guest has sent so far, without waiting.
    pub fn take_output(&self) -> Vec<u8> {
        let mut inner = self.lock();
        let mut output = Vec::new();
        inner.registers.take_output(&mut output);
        self.update_line(&mut inner);
        output
    }

    /// Ends [`SerialPort::pump_output`], once it has written what is there,
    /// and all waiting for input.
    pub fn close(&self) {
        self.lock().closed = true;
        self.output.notify_all();
        self.input.notify_all();
    }

    /// How many bytes of output were lost because the host didn't read.
    pub fn lost_output(&self) -> u64 {
        self.lock().registers.lost_output()
    }

    /// Back to power-on. Output that was not written yet stays.
    pub fn reset(&self) {
        let mut inner = self.lock();
        inner.registers.reset();
        self.update_line(&mut inner);
        self.input.notify_all();
    }

    /// Everything in it, unwritten output included.
    pub fn save(&self) -> SerialState {
        self.lock().registers.save()
    }

    /// Takes over a saved state.
    pub fn restore(&self, state: &SerialState) -> Result<(), StateError> {
        let mut inner = self.lock();
        inner.registers.restore(state)?;
        self.update_line(&mut inner);
        drop(inner);
        self.output.notify_all();
        self.input.notify_all();
        Ok(())
    }

    /// Drives the wire as the registers say. Under the lock, so that levels
    /// reach the interrupt controller in order.
    fn update_line(&self, inner: &mut Inner) {
        let level = inner.registers.interrupt_pending();
        if level != inner.level {
            inner.level = level;
            self.line.set_level(level);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BusDevice for SerialPort {
    /// Registers are one byte wide; of a wider access the others read as 0.
    fn read(&self, offset: u64, _size: AccessSize) -> u64 {
        let mut inner = self.lock();
        let had_room = inner.registers.input_room() > 0;
        let value = inner.registers.read(offset);
        self.update_line(&mut inner);
        if !had_room && inner.registers.input_room() > 0 {
            self.input.notify_all();
        }
        u64::from(value)
    }

    fn write(&self, offset: u64, _size: AccessSize, value: u64) {
        let mut inner = self.lock();
        let idle = inner.registers.output_bytes() == 0;
        let had_room = inner.registers.input_room() > 0;
        if offset == INTERRUPT_ENABLE && inner.level {
            // A pending interrupt makes a new edge for the driver that has
            // just come to listen: an earlier one may have met a masked pin.
            inner.level = false;
            self.line.set_level(false);
        }
        inner.registers.write(offset, value as u8);
        self.update_line(&mut inner);
        if idle && inner.registers.output_bytes() > 0 {
            self.output.notify_all();
        }
        if !had_room && inner.registers.input_room() > 0 {
            self.input.notify_all();
        }
    }
}

#[cfg(test)]
#[path = "serial_test.rs"]
mod test;
