//! Pushes and pops that commit RSP only when all of them went well.
//!
//! Far transfers and event delivery touch the stack several times and may
//! fault at each; the guest must then find RSP as it was.

use crate::cpu::{CodeSize, Cpu, SegmentRegister, gpr};
use crate::mmu::Access;
use crate::trap::{Exception, Exec};

/// A stack in use, apart from the processor's own RSP.
pub(crate) struct Stack {
    pointer: u64,
    base: u64,
    /// Bits of the pointer that count: 16, 32 or 64.
    mask: u64,
    /// Highest offset, `u64::MAX` in 64-bit mode.
    limit: u64,
    access: Access,
}

impl Cpu {
    /// The current stack.
    pub(crate) fn stack(&self) -> Stack {
        let (base, mask, limit) = self.stack_geometry();
        Stack {
            pointer: self.gpr[gpr::RSP],
            base,
            mask,
            limit,
            access: Access::Data,
        }
    }

    fn stack_geometry(&self) -> (u64, u64, u64) {
        let ss = self.ss();
        if self.code_size == CodeSize::Bits64 {
            (0, u64::MAX, u64::MAX)
        } else if ss.big() {
            (ss.base, 0xffff_ffff, ss.limit.into())
        } else {
            (ss.base, 0xffff, ss.limit.into())
        }
    }

    /// Sets the stack pointer in the current stack's width.
    pub(crate) fn set_stack_pointer(&mut self, value: u64) {
        let (_, mask, _) = self.stack_geometry();
        let rsp = &mut self.gpr[gpr::RSP];
        // A 32-bit write clears the upper half, a 16-bit one keeps the rest.
        *rsp = if mask == 0xffff {
            *rsp & !0xffff | value & 0xffff
        } else {
            value & mask
        };
    }

    /// Adds to the stack pointer in the current stack's width.
    pub(crate) fn add_to_stack_pointer(&mut self, bytes: u64) {
        self.set_stack_pointer(self.gpr[gpr::RSP].wrapping_add(bytes));
    }
}

impl Stack {
    /// A stack that event delivery switches to; written with supervisor
    /// rights whatever the old level was.
    pub(crate) fn switched(pointer: u64, base: u64, mask: u64, limit: u64, access: Access) -> Self {
        Self {
            pointer,
            base,
            mask,
            limit,
            access,
        }
    }

    /// The pointer as it stands.
    pub(crate) fn pointer(&self) -> u64 {
        self.pointer
    }

    pub(crate) fn push(&mut self, cpu: &mut Cpu, value: u64, width: u8) -> Exec {
        let offset = self.pointer.wrapping_sub(width.into()) & self.mask;
        let address = self.locate(offset, width)?;
        match width {
            2 => cpu.write_linear::<u16>(address, value as u16, self.access)?,
            4 => cpu.write_linear::<u32>(address, value as u32, self.access)?,
            _ => cpu.write_linear::<u64>(address, value, self.access)?,
        }
        self.move_to(offset);
        Ok(())
    }

    pub(crate) fn pop(&mut self, cpu: &mut Cpu, width: u8) -> Exec<u64> {
        let offset = self.pointer & self.mask;
        let address = self.locate(offset, width)?;
        let value = match width {
            2 => cpu.read_linear::<u16>(address, self.access)?.into(),
            4 => cpu.read_linear::<u32>(address, self.access)?.into(),
            _ => cpu.read_linear::<u64>(address, self.access)?,
        };
        self.move_to(offset.wrapping_add(width.into()) & self.mask);
        Ok(value)
    }

    /// Skips `bytes` of parameters.
    pub(crate) fn release(&mut self, bytes: u64) {
        self.move_to(self.pointer.wrapping_add(bytes) & self.mask);
    }

    /// Points elsewhere in the same segment.
    pub(crate) fn move_pointer(&mut self, pointer: u64) {
        self.pointer = pointer;
    }

    /// Moves down one word without writing.
    pub(crate) fn retreat(&mut self, width: u8) {
        self.retreat_by(width.into());
    }

    /// Moves down without writing.
    pub(crate) fn retreat_by(&mut self, bytes: u64) {
        self.move_to(self.pointer.wrapping_sub(bytes) & self.mask);
    }

    /// Reads the word the pointer is at.
    pub(crate) fn peek(&self, cpu: &mut Cpu, width: u8) -> Exec<u64> {
        let mut copy = Self { ..*self };
        copy.pop(cpu, width)
    }

    /// Faults unless the word the pointer is at may be written.
    pub(crate) fn probe(&self, cpu: &mut Cpu, width: u8) -> Exec {
        let address = self.locate(self.pointer & self.mask, width)?;
        cpu.check_writable(address, width.into(), self.access)
    }

    /// Makes the pointer the processor's.
    pub(crate) fn commit(self, cpu: &mut Cpu) {
        cpu.gpr[gpr::RSP] = self.pointer;
    }

    fn move_to(&mut self, offset: u64) {
        self.pointer = if self.mask == 0xffff {
            self.pointer & !0xffff | offset
        } else {
            offset
        };
    }

    fn locate(&self, offset: u64, width: u8) -> Exec<u64> {
        let last = offset.wrapping_add(u64::from(width) - 1);
        if self.mask == u64::MAX {
            if !crate::segment::is_canonical(offset) || !crate::segment::is_canonical(last) {
                return Err(Exception::Stack(0).into());
            }
            return Ok(offset);
        }
        if last > self.limit || last < offset {
            return Err(Exception::Stack(0).into());
        }
        Ok(self.base.wrapping_add(offset) & 0xffff_ffff)
    }
}

/// SS as an index, for callers that replace it.
pub(crate) const SS: usize = SegmentRegister::Ss as usize;
