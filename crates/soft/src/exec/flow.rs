//! Jumps, calls, returns, loops, INT n.
//!
//! These end blocks. A near target outside 64-bit mode must lie within the
//! code segment; in 64-bit mode it must be canonical.

use crate::cpu::{CodeSize, Cpu, gpr};
use crate::exec::moves::{by_condition, holds};
use crate::interrupt::Source;
use crate::mmu::Access;
use crate::operation::{Handler, Operation};
use crate::scalar::Scalar;
use crate::trap::{Exception, Exec, GP0, Trap};

impl Cpu {
    /// Checks a near target of an operand `width` bytes wide.
    #[inline(always)]
    fn near_target(&self, target: u64) -> Exec<u64> {
        if self.code_size == CodeSize::Bits64 {
            if crate::segment::is_canonical(target) {
                Ok(target)
            } else {
                Err(GP0)
            }
        } else if target <= u64::from(self.cs().limit) {
            Ok(target)
        } else {
            Err(GP0)
        }
    }

    /// RIP behind the operation.
    #[inline(always)]
    pub(crate) fn next_rip(&self, op: &Operation) -> u64 {
        self.rip.wrapping_add(op.length.into())
    }

    /// A relative target: `immediate` bytes behind the operation, in the
    /// operand's width.
    #[inline(always)]
    fn relative_target<T: Scalar>(&self, op: &Operation) -> u64 {
        self.next_rip(op).wrapping_add(op.immediate) & T::MASK
    }
}

pub(crate) fn jump<T: Scalar>(cpu: &mut Cpu, op: &Operation) -> Exec {
    cpu.rip = cpu.near_target(cpu.relative_target::<T>(op))?;
    Ok(())
}

fn jump_if<T: Scalar, const CODE: u8>(cpu: &mut Cpu, op: &Operation) -> Exec {
    if holds::<CODE>(cpu) {
        return jump::<T>(cpu, op);
    }
    cpu.advance(op);
    Ok(())
}

/// The handler of Jcc.
pub(crate) fn conditional_jump(code: u8, width: u8) -> Handler {
    match width {
        2 => by_condition!(code, jump_if::<u16>),
        4 => by_condition!(code, jump_if::<u32>),
        _ => by_condition!(code, jump_if::<u64>),
    }
}

pub(crate) fn jump_register<T: Scalar>(cpu: &mut Cpu, op: &Operation) -> Exec {
    cpu.rip = cpu.near_target(cpu.register::<T>(op.first).to_u64())?;
    Ok(())
}

pub(crate) fn jump_memory<T: Scalar>(cpu: &mut Cpu, op: &Operation) -> Exec {
    let target = cpu.read_operand::<T>(op)?;
    cpu.rip = cpu.near_target(target.to_u64())?;
    Ok(())
}

#[inline(always)]
fn call_to<T: Scalar>(cpu: &mut Cpu, op: &Operation, target: u64) -> Exec {
    let target = match cpu.near_target(target) {
        Ok(target) => target,
        Err(trap) => {
            // The stack is written before the target is looked at.
            if cpu.code_size == CodeSize::Bits64 {
                let slot = cpu.gpr[gpr::RSP].wrapping_sub(T::SIZE as u64);
                cpu.check_writable(slot, T::SIZE, Access::Stack)?;
            }
            return Err(trap);
        }
    };
    cpu.push(T::from_u64(cpu.next_rip(op)))?;
    cpu.rip = target;
    Ok(())
}

pub(crate) fn call<T: Scalar>(cpu: &mut Cpu, op: &Operation) -> Exec {
    call_to::<T>(cpu, op, cpu.relative_target::<T>(op))
}

pub(crate) fn call_register<T: Scalar>(cpu: &mut Cpu, op: &Operation) -> Exec {
    let target = cpu.register::<T>(op.first);
    call_to::<T>(cpu, op, target.to_u64())
}

pub(crate) fn call_memory<T: Scalar>(cpu: &mut Cpu, op: &Operation) -> Exec {
    let target = cpu.read_operand::<T>(op)?;
    call_to::<T>(cpu, op, target.to_u64())
}

/// RET near; `immediate` bytes of parameters are released.
pub(crate) fn return_near<T: Scalar>(cpu: &mut Cpu, op: &Operation) -> Exec {
    let before = cpu.gpr[gpr::RSP];
    let target = cpu.pop::<T>()?.to_u64();
    match cpu.near_target(target) {
        Ok(target) => cpu.rip = target,
        Err(trap) => {
            cpu.gpr[gpr::RSP] = before;
            return Err(trap);
        }
    }
    if op.immediate != 0 {
        cpu.add_to_stack_pointer(op.immediate);
    }
    Ok(())
}

/// LOOP, LOOPE, LOOPNE: `second` is 0, 1 or 2; the counter has the address
/// size.
pub(crate) fn loop_back<T: Scalar>(cpu: &mut Cpu, op: &Operation) -> Exec {
    let counter = count_register(cpu, op).wrapping_sub(1) & counter_mask(op);
    let wanted = match op.second {
        1 => cpu.arithmetic.zero(),
        2 => !cpu.arithmetic.zero(),
        _ => true,
    };
    let target = if counter != 0 && wanted {
        cpu.near_target(cpu.relative_target::<T>(op))?
    } else {
        cpu.next_rip(op)
    };
    set_count_register(cpu, op, counter);
    cpu.rip = target;
    Ok(())
}

/// JCXZ, JECXZ, JRCXZ.
pub(crate) fn jump_if_counter_zero<T: Scalar>(cpu: &mut Cpu, op: &Operation) -> Exec {
    if count_register(cpu, op) == 0 {
        return jump::<T>(cpu, op);
    }
    cpu.advance(op);
    Ok(())
}

fn counter_mask(op: &Operation) -> u64 {
    u64::MAX >> op.address_shift
}

/// (R/E)CX in the operation's address size.
pub(crate) fn count_register(cpu: &Cpu, op: &Operation) -> u64 {
    cpu.gpr[gpr::RCX] & counter_mask(op)
}

pub(crate) fn set_count_register(cpu: &mut Cpu, op: &Operation, value: u64) {
    match op.address_shift {
        0 => cpu.gpr[gpr::RCX] = value,
        32 => cpu.set_register(gpr::RCX as u8, value as u32),
        _ => cpu.set_register(gpr::RCX as u8, value as u16),
    }
}

/// JMP far to an immediate pointer: selector in bits 63:48 of `immediate`.
pub(crate) fn jump_far(cpu: &mut Cpu, op: &Operation) -> Exec {
    cpu.far_jump((op.immediate >> 48) as u16, op.immediate & 0xffff_ffff)?;
    Err(Trap::EndBlock)
}

pub(crate) fn call_far(cpu: &mut Cpu, op: &Operation) -> Exec {
    let next = cpu.next_rip(op);
    cpu.far_call(
        (op.immediate >> 48) as u16,
        op.immediate & 0xffff_ffff,
        next,
        op.width,
    )?;
    Err(Trap::EndBlock)
}

/// Reads a far pointer of `width` offset bytes from memory.
pub(crate) fn far_pointer(cpu: &mut Cpu, op: &Operation) -> Exec<(u16, u64)> {
    let width = usize::from(op.width);
    let address = cpu.address(op, width + 2, false)?;
    let access = Cpu::operand_access(op);
    let offset = match op.width {
        2 => cpu.read_linear::<u16>(address, access)?.into(),
        4 => cpu.read_linear::<u32>(address, access)?.into(),
        _ => cpu.read_linear::<u64>(address, access)?,
    };
    let selector = cpu.read_linear::<u16>(address.wrapping_add(width as u64), access)?;
    Ok((selector, offset))
}

pub(crate) fn jump_far_memory(cpu: &mut Cpu, op: &Operation) -> Exec {
    let (selector, offset) = far_pointer(cpu, op)?;
    cpu.far_jump(selector, offset)?;
    Err(Trap::EndBlock)
}

pub(crate) fn call_far_memory(cpu: &mut Cpu, op: &Operation) -> Exec {
    let (selector, offset) = far_pointer(cpu, op)?;
    let next = cpu.next_rip(op);
    cpu.far_call(selector, offset, next, op.width)?;
    Err(Trap::EndBlock)
}

pub(crate) fn return_far(cpu: &mut Cpu, op: &Operation) -> Exec {
    cpu.far_return(op.width, op.immediate as u16)?;
    Err(Trap::EndBlock)
}

pub(crate) fn interrupt_return(cpu: &mut Cpu, op: &Operation) -> Exec {
    cpu.interrupt_return(op.width)?;
    Err(Trap::EndBlock)
}

/// INT n. A fault on the way starts the instruction over.
pub(crate) fn software_interrupt(cpu: &mut Cpu, op: &Operation) -> Exec {
    let before = cpu.rip;
    cpu.advance(op);
    let delivered = cpu.deliver_interrupt(op.immediate as u8, Source::Software);
    if delivered.is_err() {
        cpu.rip = before;
    }
    delivered?;
    Err(Trap::EndBlock)
}

/// INT3.
pub(crate) fn breakpoint(cpu: &mut Cpu, op: &Operation) -> Exec {
    cpu.advance(op);
    Err(Exception::Breakpoint.into())
}

/// INT1.
pub(crate) fn debug_trap(cpu: &mut Cpu, op: &Operation) -> Exec {
    cpu.advance(op);
    Err(Exception::Debug(0).into())
}

/// INTO.
pub(crate) fn overflow_trap(cpu: &mut Cpu, op: &Operation) -> Exec {
    let overflow = cpu.arithmetic.overflow();
    cpu.advance(op);
    if overflow {
        Err(Exception::Overflow.into())
    } else {
        Ok(())
    }
}

/// BOUND: `first` is the index, memory holds the bounds.
pub(crate) fn bound<T: Scalar>(cpu: &mut Cpu, op: &Operation) -> Exec {
    let address = cpu.address(op, 2 * T::SIZE, false)?;
    let access = Cpu::operand_access(op);
    let lower = cpu.read_linear::<T>(address, access)?.to_i64();
    let upper = cpu
        .read_linear::<T>(address.wrapping_add(T::SIZE as u64), access)?
        .to_i64();
    let index = cpu.register::<T>(op.first).to_i64();
    if index < lower || index > upper {
        return Err(Exception::BoundRange.into());
    }
    cpu.advance(op);
    Ok(())
}
