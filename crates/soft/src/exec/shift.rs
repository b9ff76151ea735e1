//! SHL, SHR, SAR, ROL, ROR, RCL, RCR, SHLD, SHRD, and BMI2's SHLX, SHRX,
//! SARX, RORX.

use crate::cpu::{Cpu, gpr};
use crate::exec::alu::by_width;
use crate::flags::ArithmeticFlags;
use crate::operation::{Handler, Operation};
use crate::scalar::Scalar;
use crate::trap::Exec;

/// A shift by a count that is already masked to 5 or 6 bits.
pub(crate) trait Shift {
    fn apply<T: Scalar>(flags: ArithmeticFlags, value: T, count: u32) -> (T, ArithmeticFlags);
}

/// Bit `index` of `value`; bits beyond the width are clear.
fn bit(value: u64, index: u32) -> bool {
    index < 64 && value >> index & 1 != 0
}

pub(crate) struct Shl;
impl Shift for Shl {
    #[inline(always)]
    fn apply<T: Scalar>(flags: ArithmeticFlags, value: T, count: u32) -> (T, ArithmeticFlags) {
        if count == 0 {
            return (value, flags);
        }
        let wide = u128::from(value.to_u64()) << count;
        let carry = wide >> T::BITS & 1 != 0;
        let result = T::from_u64(wide as u64);
        let top = bit(result.to_u64(), T::BITS - 1);
        (
            result,
            ArithmeticFlags::from_result(result.to_u64(), T::BITS, carry, top != carry),
        )
    }
}

pub(crate) struct Shr;
impl Shift for Shr {
    #[inline(always)]
    fn apply<T: Scalar>(flags: ArithmeticFlags, value: T, count: u32) -> (T, ArithmeticFlags) {
        if count == 0 {
            return (value, flags);
        }
        let wide = value.to_u64();
        let carry = bit(wide, count - 1);
        let result = wide.checked_shr(count).unwrap_or(0);
        let overflow = bit(result, T::BITS - 1) != bit(result, T::BITS - 2);
        // For a count of 1 this is the old sign; for others it is undefined.
        let overflow = if count == 1 {
            bit(wide, T::BITS - 1)
        } else {
            overflow
        };
        (
            T::from_u64(result),
            ArithmeticFlags::from_result(result, T::BITS, carry, overflow),
        )
    }
}

pub(crate) struct Sar;
impl Shift for Sar {
    #[inline(always)]
    fn apply<T: Scalar>(flags: ArithmeticFlags, value: T, count: u32) -> (T, ArithmeticFlags) {
        if count == 0 {
            return (value, flags);
        }
        let wide = value.to_i64();
        let carry = wide >> (count - 1).min(63) & 1 != 0;
        let result = (wide >> count.min(63)) as u64;
        (
            T::from_u64(result),
            ArithmeticFlags::from_result(result, T::BITS, carry, false),
        )
    }
}

pub(crate) struct Rol;
impl Shift for Rol {
    #[inline(always)]
    fn apply<T: Scalar>(flags: ArithmeticFlags, value: T, count: u32) -> (T, ArithmeticFlags) {
        if count == 0 {
            return (value, flags);
        }
        let wide = value.to_u64();
        let by = count % T::BITS;
        let result = if by == 0 {
            wide
        } else {
            wide << by | wide >> (T::BITS - by)
        };
        let result = T::from_u64(result);
        let carry = bit(result.to_u64(), 0);
        let overflow = bit(result.to_u64(), T::BITS - 1) != carry;
        (result, flags.with_carry_overflow(carry, overflow))
    }
}

pub(crate) struct Ror;
impl Shift for Ror {
    #[inline(always)]
    fn apply<T: Scalar>(flags: ArithmeticFlags, value: T, count: u32) -> (T, ArithmeticFlags) {
        if count == 0 {
            return (value, flags);
        }
        let wide = value.to_u64();
        let by = count % T::BITS;
        let result = if by == 0 {
            wide
        } else {
            wide >> by | wide << (T::BITS - by)
        };
        let result = T::from_u64(result);
        let carry = bit(result.to_u64(), T::BITS - 1);
        let overflow = carry != bit(result.to_u64(), T::BITS - 2);
        (result, flags.with_carry_overflow(carry, overflow))
    }
}

pub(crate) struct Rcl;
impl Shift for Rcl {
    fn apply<T: Scalar>(flags: ArithmeticFlags, value: T, count: u32) -> (T, ArithmeticFlags) {
        let by = count % (T::BITS + 1);
        if by == 0 {
            return (value, flags);
        }
        // CF on top of the value, rotated as one word of BITS + 1.
        let word = u128::from(flags.carry()) << T::BITS | u128::from(value.to_u64());
        let rotated = word << by | word >> (T::BITS + 1 - by);
        let result = T::from_u64(rotated as u64);
        let carry = rotated >> T::BITS & 1 != 0;
        let overflow = bit(result.to_u64(), T::BITS - 1) != carry;
        (result, flags.with_carry_overflow(carry, overflow))
    }
}

pub(crate) struct Rcr;
impl Shift for Rcr {
    fn apply<T: Scalar>(flags: ArithmeticFlags, value: T, count: u32) -> (T, ArithmeticFlags) {
        let by = count % (T::BITS + 1);
        if by == 0 {
            return (value, flags);
        }
        let word = u128::from(flags.carry()) << T::BITS | u128::from(value.to_u64());
        let rotated = word >> by | word << (T::BITS + 1 - by);
        let result = T::from_u64(rotated as u64);
        let carry = rotated >> T::BITS & 1 != 0;
        let overflow = bit(result.to_u64(), T::BITS - 1) != bit(result.to_u64(), T::BITS - 2);
        (result, flags.with_carry_overflow(carry, overflow))
    }
}

/// Where the count comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Count {
    Immediate,
    Cl,
}

#[inline(always)]
fn count<T: Scalar, const CL: bool>(cpu: &Cpu, op: &Operation) -> u32 {
    let count = if CL { cpu.gpr[gpr::RCX] } else { op.immediate };
    count as u32 & if T::SIZE == 8 { 63 } else { 31 }
}

fn register<O: Shift, T: Scalar, const CL: bool>(cpu: &mut Cpu, op: &Operation) -> Exec {
    let count = count::<T, CL>(cpu, op);
    let (result, flags) = O::apply::<T>(cpu.arithmetic, cpu.register(op.first), count);
    cpu.arithmetic = flags;
    cpu.set_register(op.first, result);
    cpu.advance(op);
    Ok(())
}

fn memory<O: Shift, T: Scalar, const CL: bool>(cpu: &mut Cpu, op: &Operation) -> Exec {
    let count = count::<T, CL>(cpu, op);
    cpu.change_operand(op, |cpu, old: T| {
        let (result, flags) = O::apply(cpu.arithmetic, old, count);
        cpu.arithmetic = flags;
        result
    })?;
    cpu.advance(op);
    Ok(())
}

fn shaped<O: Shift, T: Scalar>(is_memory: bool, count: Count) -> Handler {
    match (is_memory, count) {
        (false, Count::Immediate) => register::<O, T, false>,
        (false, Count::Cl) => register::<O, T, true>,
        (true, Count::Immediate) => memory::<O, T, false>,
        (true, Count::Cl) => memory::<O, T, true>,
    }
}

/// The handler of a shift or rotate.
pub(crate) fn shift<O: Shift>(is_memory: bool, count: Count, width: u8) -> Handler {
    by_width!(width, shaped::<O>, (is_memory, count))
}

/// SHLD and SHRD: a value shifted, filled from `fill`.
fn double<T: Scalar, const LEFT: bool>(
    flags: ArithmeticFlags,
    value: T,
    fill: T,
    count: u32,
) -> (T, ArithmeticFlags) {
    if count == 0 {
        return (value, flags);
    }
    let (a, b) = (u128::from(value.to_u64()), u128::from(fill.to_u64()));
    let bits = T::BITS;
    // Two words side by side, shifted as one. A 16-bit count above 16 is
    // undefined; a third word, the value again, is what processors shift in.
    let third = if bits == 16 { a } else { 0 };
    let (result, carry) = if LEFT {
        let (wide, words) = if bits == 16 {
            (a << 32 | b << 16 | third, 3)
        } else {
            (a << bits | b, 2)
        };
        let shifted_out = words * bits - count;
        (
            (wide << count >> ((words - 1) * bits)) as u64,
            wide >> shifted_out & 1 != 0,
        )
    } else {
        let wide = if bits == 16 {
            third << 32 | b << 16 | a
        } else {
            b << bits | a
        };
        ((wide >> count) as u64, wide >> (count - 1) & 1 != 0)
    };
    let result = T::from_u64(result);
    let overflow = bit(result.to_u64(), bits - 1) != bit(value.to_u64(), bits - 1);
    (
        result,
        ArithmeticFlags::from_result(result.to_u64(), bits, carry, overflow),
    )
}

fn double_register<T: Scalar, const LEFT: bool, const CL: bool>(
    cpu: &mut Cpu,
    op: &Operation,
) -> Exec {
    let count = count::<T, CL>(cpu, op);
    let (value, fill): (T, T) = (cpu.register(op.first), cpu.register(op.second));
    let (result, flags) = double::<T, LEFT>(cpu.arithmetic, value, fill, count);
    cpu.arithmetic = flags;
    cpu.set_register(op.first, result);
    cpu.advance(op);
    Ok(())
}

fn double_memory<T: Scalar, const LEFT: bool, const CL: bool>(
    cpu: &mut Cpu,
    op: &Operation,
) -> Exec {
    let count = count::<T, CL>(cpu, op);
    let fill: T = cpu.register(op.first);
    cpu.change_operand(op, |cpu, old: T| {
        let (result, flags) = double::<T, LEFT>(cpu.arithmetic, old, fill, count);
        cpu.arithmetic = flags;
        result
    })?;
    cpu.advance(op);
    Ok(())
}

fn double_handler<T: Scalar>(left: bool, is_memory: bool, count: Count) -> Handler {
    match (left, is_memory, count) {
        (true, false, Count::Immediate) => double_register::<T, true, false>,
        (true, false, Count::Cl) => double_register::<T, true, true>,
        (true, true, Count::Immediate) => double_memory::<T, true, false>,
        (true, true, Count::Cl) => double_memory::<T, true, true>,
        (false, false, Count::Immediate) => double_register::<T, false, false>,
        (false, false, Count::Cl) => double_register::<T, false, true>,
        (false, true, Count::Immediate) => double_memory::<T, false, false>,
        (false, true, Count::Cl) => double_memory::<T, false, true>,
    }
}

/// The handler of SHLD or SHRD; 16 bits or wider.
pub(crate) fn double_shift(left: bool, is_memory: bool, count: Count, width: u8) -> Handler {
    match width {
        2 => double_handler::<u16>(left, is_memory, count),
        4 => double_handler::<u32>(left, is_memory, count),
        _ => double_handler::<u64>(left, is_memory, count),
    }
}

/// SHLX, SHRX, SARX, RORX without flags.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Flagless {
    Shl,
    Shr,
    Sar,
    Ror,
}

/// BMI2 shifts: `source` shifted by `by`.
pub(crate) fn flagless<T: Scalar>(kind: Flagless, source: T, by: u32) -> T {
    let by = by & (T::BITS - 1);
    let none = ArithmeticFlags::default();
    match kind {
        Flagless::Shl => Shl::apply(none, source, by).0,
        Flagless::Shr => Shr::apply(none, source, by).0,
        Flagless::Sar => Sar::apply(none, source, by).0,
        Flagless::Ror => Ror::apply(none, source, by).0,
    }
}
