//! Decimal arithmetic of 16- and 32-bit code: AAA, AAS, AAD, AAM, DAA, DAS.

use super::muldiv::{byte_flags, divide_byte};
use super::operand::HIGH_BYTES as AH;
use crate::cpu::{Cpu, gpr, rflags};
use crate::flags::ArithmeticFlags;
use crate::operation::Operation;
use crate::trap::Exec;

const AL: u8 = gpr::RAX as u8;

fn with_adjust_carry(flags: ArithmeticFlags, adjust: bool, carry: bool) -> ArithmeticFlags {
    let mut bits = flags.bits() & !(rflags::AF | rflags::CF);
    if adjust {
        bits |= rflags::AF;
    }
    if carry {
        bits |= rflags::CF;
    }
    ArithmeticFlags::from_bits(bits)
}

/// DAA and DAS.
pub(crate) fn decimal_adjust<const SUBTRACT: bool>(cpu: &mut Cpu, op: &Operation) -> Exec {
    let old: u8 = cpu.register(AL);
    let (old_carry, old_adjust) = (cpu.arithmetic.carry(), cpu.arithmetic.adjust());
    let step = |value: u8, by: u8| {
        if SUBTRACT {
            value.overflowing_sub(by)
        } else {
            value.overflowing_add(by)
        }
    };
    let (mut value, mut carry) = (old, false);
    let adjust = old & 0xf > 9 || old_adjust;
    if adjust {
        let (stepped, out) = step(value, 6);
        value = stepped;
        carry = old_carry || out;
    }
    if old > 0x99 || old_carry {
        value = step(value, 0x60).0;
        carry = true;
    }
    cpu.set_register(AL, value);
    cpu.arithmetic = with_adjust_carry(byte_flags(value), adjust, carry);
    cpu.advance(op);
    Ok(())
}

/// AAA and AAS.
pub(crate) fn ascii_adjust<const SUBTRACT: bool>(cpu: &mut Cpu, op: &Operation) -> Exec {
    let ax: u16 = cpu.register(AL);
    let adjust = ax & 0xf > 9 || cpu.arithmetic.adjust();
    let adjusted = match (adjust, SUBTRACT) {
        (false, _) => ax,
        (true, false) => ax.wrapping_add(0x106),
        (true, true) => ax.wrapping_sub(0x106),
    } & 0xff0f;
    cpu.set_register(AL, adjusted);
    let flags = byte_flags(adjusted as u8);
    cpu.arithmetic = with_adjust_carry(flags, adjust, adjust);
    cpu.advance(op);
    Ok(())
}

/// AAM.
pub(crate) fn ascii_adjust_after_multiply(cpu: &mut Cpu, op: &Operation) -> Exec {
    let (high, low) = divide_byte(cpu.register(AL), op.immediate as u8)?;
    cpu.set_register(AL, low);
    cpu.set_register(AH, high);
    cpu.arithmetic = byte_flags(low);
    cpu.advance(op);
    Ok(())
}

/// AAD.
pub(crate) fn ascii_adjust_before_divide(cpu: &mut Cpu, op: &Operation) -> Exec {
    let (low, high): (u8, u8) = (cpu.register(AL), cpu.register(AH));
    let value = low.wrapping_add(high.wrapping_mul(op.immediate as u8));
    cpu.set_register(AL, u16::from(value));
    cpu.arithmetic = byte_flags(value);
    cpu.advance(op);
    Ok(())
}

/// SALC, which no manual of Intel's names: AL is all ones if CF is set.
pub(crate) fn set_al_from_carry(cpu: &mut Cpu, op: &Operation) -> Exec {
    let value = if cpu.arithmetic.carry() { 0xffu8 } else { 0 };
    cpu.set_register(AL, value);
    cpu.advance(op);
    Ok(())
}
