//! MUL, IMUL, DIV, IDIV, MULX, and the sign extensions around them.

use crate::cpu::{Cpu, gpr};
use crate::flags::ArithmeticFlags;
use crate::operation::Operation;
use crate::scalar::Scalar;
use crate::trap::{Exception, Exec};

const RAX: u8 = gpr::RAX as u8;
const RDX: u8 = gpr::RDX as u8;
/// AH as a byte register.
const AH: u8 = super::operand::HIGH_BYTES;

/// Reads the one operand of these, from a register or from memory.
#[inline(always)]
fn source<T: Scalar, const MEMORY: bool>(cpu: &mut Cpu, op: &Operation) -> Exec<T> {
    if MEMORY {
        cpu.read_operand(op)
    } else {
        Ok(cpu.register(op.first))
    }
}

/// The upper half of a double-width accumulator.
fn upper<T: Scalar>(cpu: &Cpu) -> T {
    cpu.register(if T::SIZE == 1 { AH } else { RDX })
}

fn set_accumulator<T: Scalar>(cpu: &mut Cpu, low: u64, high: u64) {
    cpu.set_register(RAX, T::from_u64(low));
    cpu.set_register(if T::SIZE == 1 { AH } else { RDX }, T::from_u64(high));
}

/// After a multiplication: CF and OF say that the upper half counts. SF, ZF,
/// AF and PF are undefined; they are left alone.
fn set_product_flags(cpu: &mut Cpu, overflows: bool) {
    cpu.arithmetic = cpu.arithmetic.with_carry_overflow(overflows, overflows);
}

/// MUL.
pub(crate) fn mul<T: Scalar, const MEMORY: bool>(cpu: &mut Cpu, op: &Operation) -> Exec {
    let a: T = cpu.register(RAX);
    let b = source::<T, MEMORY>(cpu, op)?;
    let product = u128::from(a.to_u64()) * u128::from(b.to_u64());
    let high = (product >> T::BITS) as u64;
    set_accumulator::<T>(cpu, product as u64, high);
    set_product_flags(cpu, high & T::MASK != 0);
    cpu.advance(op);
    Ok(())
}

/// IMUL with one operand.
pub(crate) fn imul<T: Scalar, const MEMORY: bool>(cpu: &mut Cpu, op: &Operation) -> Exec {
    let a: T = cpu.register(RAX);
    let b = source::<T, MEMORY>(cpu, op)?;
    let product = i128::from(a.to_i64()) * i128::from(b.to_i64());
    set_accumulator::<T>(cpu, product as u64, (product >> T::BITS) as u64);
    set_product_flags(
        cpu,
        i128::from(T::from_u64(product as u64).to_i64()) != product,
    );
    cpu.advance(op);
    Ok(())
}

/// The product of two signed values, with its flags.
pub(crate) fn signed_product<T: Scalar>(cpu: &mut Cpu, a: T, b: T) -> T {
    let product = i128::from(a.to_i64()) * i128::from(b.to_i64());
    let result = T::from_u64(product as u64);
    set_product_flags(cpu, i128::from(result.to_i64()) != product);
    result
}

/// IMUL r, r/m.
pub(crate) fn imul_two<T: Scalar, const MEMORY: bool>(cpu: &mut Cpu, op: &Operation) -> Exec {
    let b = if MEMORY {
        cpu.read_operand(op)?
    } else {
        cpu.register::<T>(op.second)
    };
    let a = cpu.register(op.first);
    let result = signed_product(cpu, a, b);
    cpu.set_register(op.first, result);
    cpu.advance(op);
    Ok(())
}

/// IMUL r, r/m, imm.
pub(crate) fn imul_three<T: Scalar, const MEMORY: bool>(cpu: &mut Cpu, op: &Operation) -> Exec {
    let a = if MEMORY {
        cpu.read_operand(op)?
    } else {
        cpu.register::<T>(op.second)
    };
    let result = signed_product(cpu, a, T::from_u64(op.immediate));
    cpu.set_register(op.first, result);
    cpu.advance(op);
    Ok(())
}

/// DIV. The flags are undefined and left alone.
pub(crate) fn div<T: Scalar, const MEMORY: bool>(cpu: &mut Cpu, op: &Operation) -> Exec {
    let divisor = u128::from(source::<T, MEMORY>(cpu, op)?.to_u64());
    let high: T = upper(cpu);
    let low: T = cpu.register(RAX);
    let dividend = u128::from(high.to_u64()) << T::BITS | u128::from(low.to_u64());
    let quotient = dividend
        .checked_div(divisor)
        .ok_or(Exception::DivideError)?;
    if quotient > u128::from(T::MASK) {
        return Err(Exception::DivideError.into());
    }
    set_accumulator::<T>(cpu, quotient as u64, (dividend % divisor) as u64);
    cpu.advance(op);
    Ok(())
}

/// IDIV.
pub(crate) fn idiv<T: Scalar, const MEMORY: bool>(cpu: &mut Cpu, op: &Operation) -> Exec {
    let divisor = i128::from(source::<T, MEMORY>(cpu, op)?.to_i64());
    let high: T = upper(cpu);
    let low: T = cpu.register(RAX);
    let dividend = i128::from(high.to_i64()) << T::BITS | i128::from(low.to_u64());
    let quotient = dividend
        .checked_div(divisor)
        .ok_or(Exception::DivideError)?;
    if i128::from(T::from_u64(quotient as u64).to_i64()) != quotient {
        return Err(Exception::DivideError.into());
    }
    set_accumulator::<T>(cpu, quotient as u64, (dividend % divisor) as u64);
    cpu.advance(op);
    Ok(())
}

/// CBW, CWDE, CDQE: `T` is the result's width.
pub(crate) fn extend_accumulator<T: Scalar>(cpu: &mut Cpu, op: &Operation) -> Exec {
    let value = match T::SIZE {
        2 => cpu.register::<u8>(RAX).to_i64(),
        4 => cpu.register::<u16>(RAX).to_i64(),
        _ => cpu.register::<u32>(RAX).to_i64(),
    };
    cpu.set_register(RAX, T::from_u64(value as u64));
    cpu.advance(op);
    Ok(())
}

/// CWD, CDQ, CQO.
pub(crate) fn extend_into_rdx<T: Scalar>(cpu: &mut Cpu, op: &Operation) -> Exec {
    let sign = cpu.register::<T>(RAX).to_i64() >> 63;
    cpu.set_register(RDX, T::from_u64(sign as u64));
    cpu.advance(op);
    Ok(())
}

/// What AAM divides with, kept with the other division.
pub(crate) fn divide_byte(value: u8, by: u8) -> Exec<(u8, u8)> {
    let quotient = value.checked_div(by).ok_or(Exception::DivideError)?;
    Ok((quotient, value % by))
}

/// ZF, SF, PF from a byte, the rest clear: the BCD instructions.
pub(crate) fn byte_flags(value: u8) -> ArithmeticFlags {
    ArithmeticFlags::after_logic(value.into(), 8)
}
