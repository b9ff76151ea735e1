//! ADD, ADC, SUB, SBB, CMP, AND, OR, XOR, TEST, INC, DEC, NEG, NOT, XADD,
//! CMPXCHG, ADCX, ADOX.

use crate::cpu::{Cpu, gpr};
use crate::flags::ArithmeticFlags;
use crate::operation::{Handler, Operation};
use crate::scalar::Scalar;
use crate::trap::Exec;

/// A two-operand operation: its result and its flags.
pub(crate) trait Binary {
    /// CMP and TEST throw the result away.
    const STORES: bool = true;
    fn apply<T: Scalar>(flags: ArithmeticFlags, a: T, b: T) -> (T, ArithmeticFlags);
}

macro_rules! binary {
    ($name:ident, $stores:literal, |$flags:ident, $a:ident, $b:ident, $bits:ident| $body:expr) => {
        pub(crate) struct $name;
        impl Binary for $name {
            const STORES: bool = $stores;
            #[inline(always)]
            fn apply<T: Scalar>($flags: ArithmeticFlags, $a: T, $b: T) -> (T, ArithmeticFlags) {
                let $bits = T::BITS;
                let ($a, $b) = ($a.to_u64(), $b.to_u64());
                let _ = $flags;
                let (result, flags): (u64, ArithmeticFlags) = $body;
                (T::from_u64(result), flags)
            }
        }
    };
}

#[inline(always)]
fn add(a: u64, b: u64, carry: bool, bits: u32) -> (u64, ArithmeticFlags) {
    let result = a.wrapping_add(b).wrapping_add(carry.into());
    (result, ArithmeticFlags::after_add(a, b, result, bits))
}

#[inline(always)]
fn sub(a: u64, b: u64, borrow: bool, bits: u32) -> (u64, ArithmeticFlags) {
    let result = a.wrapping_sub(b).wrapping_sub(borrow.into());
    (result, ArithmeticFlags::after_sub(a, b, result, bits))
}

#[inline(always)]
fn logic(result: u64, bits: u32) -> (u64, ArithmeticFlags) {
    (result, ArithmeticFlags::after_logic(result, bits))
}

binary!(Add, true, |flags, a, b, bits| add(a, b, false, bits));
binary!(Adc, true, |flags, a, b, bits| add(
    a,
    b,
    flags.carry(),
    bits
));
binary!(Sub, true, |flags, a, b, bits| sub(a, b, false, bits));
binary!(Sbb, true, |flags, a, b, bits| sub(
    a,
    b,
    flags.carry(),
    bits
));
binary!(Cmp, false, |flags, a, b, bits| sub(a, b, false, bits));
binary!(And, true, |flags, a, b, bits| logic(a & b, bits));
binary!(Or, true, |flags, a, b, bits| logic(a | b, bits));
binary!(Xor, true, |flags, a, b, bits| logic(a ^ b, bits));
binary!(Test, false, |flags, a, b, bits| logic(a & b, bits));

fn register_register<O: Binary, T: Scalar>(cpu: &mut Cpu, op: &Operation) -> Exec {
    let (result, flags) = O::apply::<T>(
        cpu.arithmetic,
        cpu.register(op.first),
        cpu.register(op.second),
    );
    cpu.arithmetic = flags;
    if O::STORES {
        cpu.set_register(op.first, result);
    }
    cpu.advance(op);
    Ok(())
}

fn register_immediate<O: Binary, T: Scalar>(cpu: &mut Cpu, op: &Operation) -> Exec {
    let (result, flags) = O::apply::<T>(
        cpu.arithmetic,
        cpu.register(op.first),
        T::from_u64(op.immediate),
    );
    cpu.arithmetic = flags;
    if O::STORES {
        cpu.set_register(op.first, result);
    }
    cpu.advance(op);
    Ok(())
}

fn register_memory<O: Binary, T: Scalar>(cpu: &mut Cpu, op: &Operation) -> Exec {
    let source = cpu.read_operand::<T>(op)?;
    let (result, flags) = O::apply(cpu.arithmetic, cpu.register(op.first), source);
    cpu.arithmetic = flags;
    if O::STORES {
        cpu.set_register(op.first, result);
    }
    cpu.advance(op);
    Ok(())
}

#[inline(always)]
fn memory_value<O: Binary, T: Scalar>(cpu: &mut Cpu, op: &Operation, source: T) -> Exec {
    if O::STORES {
        let change = |cpu: &mut Cpu, old: T| {
            let (result, flags) = O::apply(cpu.arithmetic, old, source);
            cpu.arithmetic = flags;
            result
        };
        cpu.change_operand(op, change)?;
    } else {
        let old = cpu.read_operand::<T>(op)?;
        cpu.arithmetic = O::apply(cpu.arithmetic, old, source).1;
    }
    cpu.advance(op);
    Ok(())
}

fn memory_register<O: Binary, T: Scalar>(cpu: &mut Cpu, op: &Operation) -> Exec {
    let source = cpu.register(op.first);
    memory_value::<O, T>(cpu, op, source)
}

fn memory_immediate<O: Binary, T: Scalar>(cpu: &mut Cpu, op: &Operation) -> Exec {
    memory_value::<O, T>(cpu, op, T::from_u64(op.immediate))
}

/// Where the operands of a two-operand instruction are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Shape {
    RegisterRegister,
    RegisterImmediate,
    RegisterMemory,
    MemoryRegister,
    MemoryImmediate,
}

fn shaped<O: Binary, T: Scalar>(shape: Shape) -> Handler {
    match shape {
        Shape::RegisterRegister => register_register::<O, T>,
        Shape::RegisterImmediate => register_immediate::<O, T>,
        Shape::RegisterMemory => register_memory::<O, T>,
        Shape::MemoryRegister => memory_register::<O, T>,
        Shape::MemoryImmediate => memory_immediate::<O, T>,
    }
}

/// Picks a generic function by operand width in bytes.
macro_rules! by_width {
    ($width:expr, $function:ident $(::<$($fixed:ty),+>)?) => { by_width!($width, $function $(::<$($fixed),+>)?, ()) };
    ($width:expr, $function:ident ::<$($fixed:ty),+>, ($($argument:expr),*)) => {
        match $width {
            1 => $function::<$($fixed,)+ u8>($($argument),*),
            2 => $function::<$($fixed,)+ u16>($($argument),*),
            4 => $function::<$($fixed,)+ u32>($($argument),*),
            _ => $function::<$($fixed,)+ u64>($($argument),*),
        }
    };
}
pub(crate) use by_width;

/// The handler of a two-operand instruction.
pub(crate) fn binary<O: Binary>(shape: Shape, width: u8) -> Handler {
    by_width!(width, shaped::<O>, (shape))
}

/// A one-operand operation.
pub(crate) trait Unary {
    fn apply<T: Scalar>(flags: ArithmeticFlags, a: T) -> (T, ArithmeticFlags);
}

macro_rules! unary {
    ($name:ident, |$flags:ident, $a:ident, $bits:ident| $body:expr) => {
        pub(crate) struct $name;
        impl Unary for $name {
            #[inline(always)]
            fn apply<T: Scalar>($flags: ArithmeticFlags, $a: T) -> (T, ArithmeticFlags) {
                let $bits = T::BITS;
                let $a = $a.to_u64();
                let (result, flags): (u64, ArithmeticFlags) = $body;
                (T::from_u64(result), flags)
            }
        }
    };
}

unary!(Inc, |flags, a, bits| {
    let (result, new) = add(a, 1, false, bits);
    (result, new.with_carry_of(flags))
});
unary!(Dec, |flags, a, bits| {
    let (result, new) = sub(a, 1, false, bits);
    (result, new.with_carry_of(flags))
});
unary!(Neg, |flags, a, bits| {
    let _ = flags;
    sub(0, a, false, bits)
});
unary!(Not, |flags, a, bits| {
    let _ = bits;
    (!a, flags)
});

fn unary_register<O: Unary, T: Scalar>(cpu: &mut Cpu, op: &Operation) -> Exec {
    let (result, flags) = O::apply::<T>(cpu.arithmetic, cpu.register(op.first));
    cpu.arithmetic = flags;
    cpu.set_register(op.first, result);
    cpu.advance(op);
    Ok(())
}

fn unary_memory<O: Unary, T: Scalar>(cpu: &mut Cpu, op: &Operation) -> Exec {
    let change = |cpu: &mut Cpu, old: T| {
        let (result, flags) = O::apply(cpu.arithmetic, old);
        cpu.arithmetic = flags;
        result
    };
    cpu.change_operand(op, change)?;
    cpu.advance(op);
    Ok(())
}

fn unary_shaped<O: Unary, T: Scalar>(memory: bool) -> Handler {
    if memory {
        unary_memory::<O, T>
    } else {
        unary_register::<O, T>
    }
}

/// The handler of a one-operand instruction.
pub(crate) fn unary<O: Unary>(memory: bool, width: u8) -> Handler {
    by_width!(width, unary_shaped::<O>, (memory))
}

/// XADD between registers.
pub(crate) fn xadd_register<T: Scalar>(cpu: &mut Cpu, op: &Operation) -> Exec {
    let (a, b): (T, T) = (cpu.register(op.first), cpu.register(op.second));
    let (result, flags) = Add::apply(cpu.arithmetic, a, b);
    cpu.arithmetic = flags;
    cpu.set_register(op.second, a);
    cpu.set_register(op.first, result);
    cpu.advance(op);
    Ok(())
}

/// XADD to memory.
pub(crate) fn xadd_memory<T: Scalar>(cpu: &mut Cpu, op: &Operation) -> Exec {
    let source: T = cpu.register(op.first);
    let change = |cpu: &mut Cpu, old: T| {
        let (result, flags) = Add::apply(cpu.arithmetic, old, source);
        cpu.arithmetic = flags;
        result
    };
    let old = cpu.change_operand(op, change)?;
    cpu.set_register(op.first, old);
    cpu.advance(op);
    Ok(())
}

/// CMPXCHG between registers.
pub(crate) fn cmpxchg_register<T: Scalar>(cpu: &mut Cpu, op: &Operation) -> Exec {
    let (found, accumulator): (T, T) = (cpu.register(op.first), cpu.register(gpr::RAX as u8));
    cpu.arithmetic = Cmp::apply(cpu.arithmetic, accumulator, found).1;
    if found == accumulator {
        let source: T = cpu.register(op.second);
        cpu.set_register(op.first, source);
    } else {
        cpu.set_register(gpr::RAX as u8, found);
    }
    cpu.advance(op);
    Ok(())
}

/// CMPXCHG with memory; the destination is written either way.
pub(crate) fn cmpxchg_memory<T: Scalar>(cpu: &mut Cpu, op: &Operation) -> Exec {
    let (source, accumulator): (T, T) = (cpu.register(op.first), cpu.register(gpr::RAX as u8));
    let found = cpu.change_operand(op, |cpu, found| {
        cpu.arithmetic = Cmp::apply(cpu.arithmetic, accumulator, found).1;
        if found == accumulator { source } else { found }
    })?;
    if found != accumulator {
        cpu.set_register(gpr::RAX as u8, found);
    }
    cpu.advance(op);
    Ok(())
}

/// ADCX (carry by CF) and ADOX (carry by OF); no other flag changes.
pub(crate) fn add_with_flag<T: Scalar, const OVERFLOW: bool>(
    cpu: &mut Cpu,
    destination: u8,
    source: T,
) {
    let flags = cpu.arithmetic;
    let carry = if OVERFLOW {
        flags.overflow()
    } else {
        flags.carry()
    };
    let a: T = cpu.register(destination);
    let sum = u128::from(a.to_u64()) + u128::from(source.to_u64()) + u128::from(carry);
    let out = sum >> T::BITS != 0;
    cpu.arithmetic = if OVERFLOW {
        flags.with_carry_overflow(flags.carry(), out)
    } else {
        flags.with_carry_overflow(out, flags.overflow())
    };
    cpu.set_register(destination, T::from_u64(sum as u64));
}
