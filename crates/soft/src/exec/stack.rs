//! PUSH, POP, PUSHA, POPA, PUSHF, POPF, ENTER, LEAVE.
//!
//! The width of the stack pointer is that of the stack segment, not that of
//! the operand; in 64-bit mode it is always 64 bits, and the fast way.

use crate::cpu::{CodeSize, Cpu, SegmentRegister, gpr, rflags};
use crate::mmu::Access;
use crate::operation::Operation;
use crate::scalar::Scalar;
use crate::trap::{Exec, GP0, Trap, UD};

const RSP: usize = gpr::RSP;

impl Cpu {
    /// Pushes; RSP moves only if the write went well.
    #[inline(always)]
    pub(crate) fn push<T: Scalar>(&mut self, value: T) -> Exec {
        if self.code_size == CodeSize::Bits64 {
            let address = self.gpr[RSP].wrapping_sub(T::SIZE as u64);
            self.write_linear(address, value, Access::Stack)?;
            self.gpr[RSP] = address;
            return Ok(());
        }
        let mut stack = self.stack();
        stack.push(self, value.to_u64(), T::SIZE as u8)?;
        stack.commit(self);
        Ok(())
    }

    /// Pops.
    #[inline(always)]
    pub(crate) fn pop<T: Scalar>(&mut self) -> Exec<T> {
        if self.code_size == CodeSize::Bits64 {
            let address = self.gpr[RSP];
            let value = self.read_linear(address, Access::Stack)?;
            self.gpr[RSP] = address.wrapping_add(T::SIZE as u64);
            return Ok(value);
        }
        let mut stack = self.stack();
        let value = stack.pop(self, T::SIZE as u8)?;
        stack.commit(self);
        Ok(T::from_u64(value))
    }
}

pub(crate) fn push_register<T: Scalar>(cpu: &mut Cpu, op: &Operation) -> Exec {
    cpu.push::<T>(cpu.register(op.first))?;
    cpu.advance(op);
    Ok(())
}

pub(crate) fn push_immediate<T: Scalar>(cpu: &mut Cpu, op: &Operation) -> Exec {
    cpu.push(T::from_u64(op.immediate))?;
    cpu.advance(op);
    Ok(())
}

pub(crate) fn push_memory<T: Scalar>(cpu: &mut Cpu, op: &Operation) -> Exec {
    let value = cpu.read_operand::<T>(op)?;
    cpu.push(value)?;
    cpu.advance(op);
    Ok(())
}

/// PUSH of a segment register, `first`.
pub(crate) fn push_segment<T: Scalar>(cpu: &mut Cpu, op: &Operation) -> Exec {
    let selector = cpu.segments[usize::from(op.first)].selector;
    cpu.push(T::from_u64(selector.into()))?;
    cpu.advance(op);
    Ok(())
}

pub(crate) fn pop_register<T: Scalar>(cpu: &mut Cpu, op: &Operation) -> Exec {
    let value = cpu.pop::<T>()?;
    cpu.set_register(op.first, value);
    cpu.advance(op);
    Ok(())
}

/// POP to memory: an address with RSP uses its value after the pop.
pub(crate) fn pop_memory<T: Scalar>(cpu: &mut Cpu, op: &Operation) -> Exec {
    let before = cpu.gpr[RSP];
    let value = cpu.pop::<T>()?;
    let written = cpu.write_operand(op, value);
    if written.is_err() {
        cpu.gpr[RSP] = before;
    }
    written?;
    cpu.advance(op);
    Ok(())
}

/// POP of a segment register, `first`.
pub(crate) fn pop_segment<T: Scalar>(cpu: &mut Cpu, op: &Operation) -> Exec {
    let before = cpu.gpr[RSP];
    let register = super::system::segment_register(op.first)?;
    let selector = cpu.pop::<T>()?.to_u64() as u16;
    let loaded = cpu.load_segment(register, selector);
    if loaded.is_err() {
        cpu.gpr[RSP] = before;
    }
    loaded?;
    if register == SegmentRegister::Ss {
        cpu.shadow = favo_accel::state::InterruptShadow::MovSs;
    }
    cpu.advance(op);
    Err(Trap::EndBlock)
}

/// PUSHA and PUSHAD.
pub(crate) fn push_all(cpu: &mut Cpu, op: &Operation) -> Exec {
    let mut stack = cpu.stack();
    let rsp = cpu.gpr[RSP];
    for register in 0..8 {
        let value = if register == RSP {
            rsp
        } else {
            cpu.gpr[register]
        };
        stack.push(cpu, value, op.width)?;
    }
    stack.commit(cpu);
    cpu.advance(op);
    Ok(())
}

/// POPA and POPAD: the value for RSP is dropped.
pub(crate) fn pop_all(cpu: &mut Cpu, op: &Operation) -> Exec {
    let mut stack = cpu.stack();
    let mut values = [0; 8];
    for register in (0..8).rev() {
        values[register] = stack.pop(cpu, op.width)?;
    }
    stack.commit(cpu);
    for (register, value) in values.into_iter().enumerate() {
        if register == RSP {
            continue;
        }
        match op.width {
            2 => cpu.set_register(register as u8, value as u16),
            _ => cpu.set_register(register as u8, value as u32),
        }
    }
    cpu.advance(op);
    Ok(())
}

/// PUSHF: VM and RF read as zero.
pub(crate) fn push_flags<T: Scalar>(cpu: &mut Cpu, op: &Operation) -> Exec {
    let flags = cpu.rflags() & !(rflags::RF | rflags::VM);
    cpu.push(T::from_u64(flags))?;
    cpu.advance(op);
    Ok(())
}

pub(crate) fn pop_flags<T: Scalar>(cpu: &mut Cpu, op: &Operation) -> Exec {
    let mask = cpu.popf_mask(T::SIZE as u8);
    let flags = cpu.pop::<T>()?.to_u64() & !rflags::RF;
    cpu.set_rflags_masked(flags, mask);
    cpu.advance(op);
    // IF or TF may have changed.
    Err(Trap::EndBlock)
}

/// ENTER: `immediate` holds the frame size and, in bits 20:16, the level.
pub(crate) fn enter<T: Scalar>(cpu: &mut Cpu, op: &Operation) -> Exec {
    let (size, level) = (op.immediate & 0xffff, op.immediate >> 16 & 31);
    let width = T::SIZE as u8;
    let old_frame = cpu.gpr[gpr::RBP];
    let mut stack = cpu.stack();
    stack.push(cpu, old_frame, width)?;
    let frame = stack.pointer();
    if level > 0 {
        let mut outer = cpu.stack();
        outer.move_pointer(old_frame);
        for _ in 1..level {
            outer.retreat(width);
            let value = outer.peek(cpu, width)?;
            stack.push(cpu, value, width)?;
        }
        stack.push(cpu, frame, width)?;
    }
    stack.retreat_by(size);
    // The last page of the new frame must be writable.
    stack.probe(cpu, width)?;
    stack.commit(cpu);
    match width {
        2 => cpu.set_register(gpr::RBP as u8, frame as u16),
        4 => cpu.set_register(gpr::RBP as u8, frame as u32),
        _ => cpu.gpr[gpr::RBP] = frame,
    }
    cpu.advance(op);
    Ok(())
}

pub(crate) fn leave<T: Scalar>(cpu: &mut Cpu, op: &Operation) -> Exec {
    if cpu.code_size == CodeSize::Bits64 && T::SIZE == 8 {
        let frame = cpu.gpr[gpr::RBP];
        let value = cpu.read_linear::<u64>(frame, Access::Stack)?;
        cpu.gpr[RSP] = frame.wrapping_add(8);
        cpu.gpr[gpr::RBP] = value;
        cpu.advance(op);
        return Ok(());
    }
    let frame = cpu.gpr[gpr::RBP];
    let mut stack = cpu.stack();
    stack.move_pointer(frame);
    let value = stack.pop(cpu, T::SIZE as u8)?;
    stack.commit(cpu);
    cpu.set_register(gpr::RBP as u8, T::from_u64(value));
    cpu.advance(op);
    Ok(())
}

/// LAHF and SAHF.
pub(crate) fn load_flags_to_ah(cpu: &mut Cpu, op: &Operation) -> Exec {
    let flags = (cpu.rflags() & 0xd5 | rflags::FIXED) as u8;
    cpu.set_register(super::operand::HIGH_BYTES, flags);
    cpu.advance(op);
    Ok(())
}

pub(crate) fn store_ah_to_flags(cpu: &mut Cpu, op: &Operation) -> Exec {
    let flags = u64::from(cpu.register::<u8>(super::operand::HIGH_BYTES));
    let merged = cpu.arithmetic.bits() & !0xd5 | flags & 0xd5;
    cpu.arithmetic = crate::flags::ArithmeticFlags::from_bits(merged);
    cpu.advance(op);
    Ok(())
}

/// CLC, STC, CMC, CLD, STD: `immediate` says which.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum FlagChange {
    ClearCarry,
    SetCarry,
    ComplementCarry,
    ClearDirection,
    SetDirection,
}

pub(crate) fn clear_carry(cpu: &mut Cpu, op: &Operation) -> Exec {
    change_flag(cpu, op, FlagChange::ClearCarry)
}

pub(crate) fn set_carry(cpu: &mut Cpu, op: &Operation) -> Exec {
    change_flag(cpu, op, FlagChange::SetCarry)
}

pub(crate) fn complement_carry(cpu: &mut Cpu, op: &Operation) -> Exec {
    change_flag(cpu, op, FlagChange::ComplementCarry)
}

pub(crate) fn clear_direction(cpu: &mut Cpu, op: &Operation) -> Exec {
    change_flag(cpu, op, FlagChange::ClearDirection)
}

pub(crate) fn set_direction(cpu: &mut Cpu, op: &Operation) -> Exec {
    change_flag(cpu, op, FlagChange::SetDirection)
}

fn change_flag(cpu: &mut Cpu, op: &Operation, change: FlagChange) -> Exec {
    let flags = cpu.arithmetic;
    let with_carry = |carry| flags.with_carry_overflow(carry, flags.overflow());
    match change {
        FlagChange::ClearCarry => cpu.arithmetic = with_carry(false),
        FlagChange::SetCarry => cpu.arithmetic = with_carry(true),
        FlagChange::ComplementCarry => cpu.arithmetic = with_carry(!flags.carry()),
        FlagChange::ClearDirection => cpu.system_flags &= !rflags::DF,
        FlagChange::SetDirection => cpu.system_flags |= rflags::DF,
    }
    cpu.advance(op);
    Ok(())
}

/// STAC and CLAC.
pub(crate) fn change_alignment_check<const SET: bool>(cpu: &mut Cpu, op: &Operation) -> Exec {
    if cpu.limits.cr4 & crate::cpu::cr4::SMAP == 0 {
        return Err(UD);
    }
    if cpu.cpl != 0 {
        return Err(UD);
    }
    if SET {
        cpu.system_flags |= rflags::AC;
    } else {
        cpu.system_flags &= !rflags::AC;
    }
    cpu.update_mmu_mode();
    cpu.advance(op);
    Ok(())
}

/// CLI.
pub(crate) fn clear_interrupts(cpu: &mut Cpu, op: &Operation) -> Exec {
    cpu.check_io_privilege()?;
    cpu.system_flags &= !rflags::IF;
    cpu.advance(op);
    Ok(())
}

/// STI: interrupts stay off for one more instruction.
pub(crate) fn set_interrupts(cpu: &mut Cpu, op: &Operation) -> Exec {
    cpu.check_io_privilege().map_err(|_| GP0)?;
    if cpu.system_flags & rflags::IF == 0 {
        cpu.system_flags |= rflags::IF;
        cpu.shadow = favo_accel::state::InterruptShadow::Sti;
    }
    cpu.advance(op);
    Err(Trap::EndBlock)
}
