//! Accesses that leave the processor, and how an instruction survives them.
//!
//! An instruction that reads a device register can't complete until the
//! caller has asked the device. Rather than being cut in two, it ends with
//! [`Trap::Exit`], and when the answer is there it runs again from its start:
//! accesses it has already made are answered from this log, in order, and the
//! first one that is not in the log ends it again. It works because an
//! instruction commits nothing before its last access can fail.
//!
//! The log belongs to one instruction, or to one iteration of a string
//! instruction; whoever completes that calls [`AccessLog::finish`].

use favo_accel::{AccessSize, VcpuExit};
use favo_types::GuestAddress;

use crate::cpu::Cpu;
use crate::trap::{Exec, Trap};

/// The most accesses one instruction makes: XRSTOR reads 1 KiB byte by byte
/// at worst.
const MOST: usize = 4096;

/// Answered accesses of the instruction under way.
#[derive(Debug, Default)]
pub(crate) struct AccessLog {
    answers: Vec<u64>,
    next: usize,
}

impl AccessLog {
    /// The instruction starts over.
    #[inline]
    pub(crate) fn rewind(&mut self) {
        self.next = 0;
    }

    /// The instruction is complete.
    #[inline]
    pub(crate) fn finish(&mut self) {
        self.answers.clear();
        self.next = 0;
    }

    /// Nothing is being run again.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.answers.is_empty()
    }

    /// The caller's answer to the last exit; 0 for a write.
    pub(crate) fn answer(&mut self, value: u64) {
        if self.answers.len() < MOST {
            self.answers.push(value);
        }
    }

    fn take(&mut self) -> Option<u64> {
        let answer = self.answers.get(self.next).copied();
        self.next += usize::from(answer.is_some());
        answer
    }
}

impl Cpu {
    /// One access outside: its answer if it was made, an exit if not.
    pub(crate) fn outside(&mut self, exit: VcpuExit) -> Exec<u64> {
        match self.log.take() {
            Some(answer) => Ok(answer),
            None => {
                self.exit = exit;
                Err(Trap::Exit)
            }
        }
    }

    /// Reads `length` bytes (1 to 8) of device memory, in pieces that are
    /// powers of two.
    pub(crate) fn read_device(&mut self, address: u64, length: usize) -> Exec<u64> {
        let mut value = 0;
        let mut done = 0;
        while done < length {
            let size = piece(length - done);
            let address = GuestAddress(address + done as u64);
            let part = self.outside(VcpuExit::MmioRead { address, size })?;
            value |= size.truncate(part) << (8 * done);
            done += size.bytes();
        }
        Ok(value)
    }

    /// Writes `length` bytes (1 to 8) of device memory.
    pub(crate) fn write_device(&mut self, address: u64, value: u64, length: usize) -> Exec {
        let mut done = 0;
        while done < length {
            let size = piece(length - done);
            let address = GuestAddress(address + done as u64);
            let value = size.truncate(value >> (8 * done));
            self.outside(VcpuExit::MmioWrite {
                address,
                size,
                value,
            })?;
            done += size.bytes();
        }
        Ok(())
    }
}

fn piece(left: usize) -> AccessSize {
    match left {
        8.. => AccessSize::Qword,
        4.. => AccessSize::Dword,
        2.. => AccessSize::Word,
        _ => AccessSize::Byte,
    }
}
