//! MOV, MOVZX, MOVSX, CMOVcc, SETcc, LEA, XCHG, BSWAP, MOVBE, XLAT, and the
//! conditions they test.

use crate::cpu::{Cpu, gpr};
use crate::operation::{Handler, Operation};
use crate::scalar::Scalar;
use crate::trap::Exec;

pub(crate) fn register_register<T: Scalar>(cpu: &mut Cpu, op: &Operation) -> Exec {
    let value: T = cpu.register(op.second);
    cpu.set_register(op.first, value);
    cpu.advance(op);
    Ok(())
}

pub(crate) fn register_immediate<T: Scalar>(cpu: &mut Cpu, op: &Operation) -> Exec {
    cpu.set_register(op.first, T::from_u64(op.immediate));
    cpu.advance(op);
    Ok(())
}

pub(crate) fn load<T: Scalar>(cpu: &mut Cpu, op: &Operation) -> Exec {
    let value = cpu.read_operand::<T>(op)?;
    cpu.set_register(op.first, value);
    cpu.advance(op);
    Ok(())
}

pub(crate) fn store<T: Scalar>(cpu: &mut Cpu, op: &Operation) -> Exec {
    let value: T = cpu.register(op.first);
    cpu.write_operand(op, value)?;
    cpu.advance(op);
    Ok(())
}

pub(crate) fn store_immediate<T: Scalar>(cpu: &mut Cpu, op: &Operation) -> Exec {
    cpu.write_operand(op, T::from_u64(op.immediate))?;
    cpu.advance(op);
    Ok(())
}

/// MOVZX and MOVSX between registers: from `S` to `T`.
fn extend_register<T: Scalar, S: Scalar, const SIGNED: bool>(
    cpu: &mut Cpu,
    op: &Operation,
) -> Exec {
    let value: S = cpu.register(op.second);
    let value = if SIGNED {
        value.to_i64() as u64
    } else {
        value.to_u64()
    };
    cpu.set_register(op.first, T::from_u64(value));
    cpu.advance(op);
    Ok(())
}

fn extend_memory<T: Scalar, S: Scalar, const SIGNED: bool>(cpu: &mut Cpu, op: &Operation) -> Exec {
    let value = cpu.read_operand::<S>(op)?;
    let value = if SIGNED {
        value.to_i64() as u64
    } else {
        value.to_u64()
    };
    cpu.set_register(op.first, T::from_u64(value));
    cpu.advance(op);
    Ok(())
}

/// The handler of MOVZX, MOVSX, MOVSXD.
pub(crate) fn extension(to: u8, from: u8, signed: bool, memory: bool) -> Handler {
    fn pick<T: Scalar, S: Scalar>(signed: bool, memory: bool) -> Handler {
        match (signed, memory) {
            (false, false) => extend_register::<T, S, false>,
            (false, true) => extend_memory::<T, S, false>,
            (true, false) => extend_register::<T, S, true>,
            (true, true) => extend_memory::<T, S, true>,
        }
    }
    match (to, from) {
        (2, 1) => pick::<u16, u8>(signed, memory),
        (2, 4) => pick::<u16, u32>(signed, memory),
        (2, _) => pick::<u16, u16>(signed, memory),
        (4, 1) => pick::<u32, u8>(signed, memory),
        (4, 2) => pick::<u32, u16>(signed, memory),
        (4, _) => pick::<u32, u32>(signed, memory),
        (_, 1) => pick::<u64, u8>(signed, memory),
        (_, 2) => pick::<u64, u16>(signed, memory),
        (_, _) => pick::<u64, u32>(signed, memory),
    }
}

pub(crate) fn lea<T: Scalar>(cpu: &mut Cpu, op: &Operation) -> Exec {
    let offset = cpu.offset(op);
    cpu.set_register(op.first, T::from_u64(offset));
    cpu.advance(op);
    Ok(())
}

pub(crate) fn exchange_registers<T: Scalar>(cpu: &mut Cpu, op: &Operation) -> Exec {
    let (a, b): (T, T) = (cpu.register(op.first), cpu.register(op.second));
    cpu.set_register(op.first, b);
    cpu.set_register(op.second, a);
    cpu.advance(op);
    Ok(())
}

/// XCHG with memory is locked whether it says so or not.
pub(crate) fn exchange_memory<T: Scalar>(cpu: &mut Cpu, op: &Operation) -> Exec {
    let value: T = cpu.register(op.first);
    let address = cpu.address(op, T::SIZE, true)?;
    let access = Cpu::operand_access(op);
    let old = match cpu.locked_host(address, T::SIZE, access)? {
        Some(host) => {
            // SAFETY: `locked_host` vouches for the bytes.
            let old = unsafe { T::exchange(host, value) };
            cpu.written(address, access);
            old
        }
        None => cpu.change_locked(address, access, |_, _| value)?,
    };
    cpu.set_register(op.first, old);
    cpu.advance(op);
    Ok(())
}

pub(crate) fn byte_swap<T: Scalar>(cpu: &mut Cpu, op: &Operation) -> Exec {
    let value = cpu.register::<T>(op.first);
    cpu.set_register(op.first, swapped(value));
    cpu.advance(op);
    Ok(())
}

fn swapped<T: Scalar>(value: T) -> T {
    match T::SIZE {
        // BSWAP of 16 bits is undefined; processors clear the register.
        2 => T::from_u64(0),
        4 => T::from_u64((value.to_u64() as u32).swap_bytes().into()),
        _ => T::from_u64(value.to_u64().swap_bytes()),
    }
}

fn swapped_move<T: Scalar>(value: T) -> T {
    if T::SIZE == 2 {
        T::from_u64((value.to_u64() as u16).swap_bytes().into())
    } else {
        swapped(value)
    }
}

/// MOVBE from memory.
pub(crate) fn load_swapped<T: Scalar>(cpu: &mut Cpu, op: &Operation) -> Exec {
    let value = cpu.read_operand::<T>(op)?;
    cpu.set_register(op.first, swapped_move(value));
    cpu.advance(op);
    Ok(())
}

/// MOVBE to memory.
pub(crate) fn store_swapped<T: Scalar>(cpu: &mut Cpu, op: &Operation) -> Exec {
    let value: T = cpu.register(op.first);
    cpu.write_operand(op, swapped_move(value))?;
    cpu.advance(op);
    Ok(())
}

/// XLAT: AL indexes the table at (R/E)BX; the decoder made it a memory
/// operand with base BX.
pub(crate) fn translate_byte(cpu: &mut Cpu, op: &Operation) -> Exec {
    let mut indexed = *op;
    indexed.displacement = op
        .displacement
        .wrapping_add(u64::from(cpu.register::<u8>(gpr::RAX as u8)));
    let value = cpu.read_operand::<u8>(&indexed)?;
    cpu.set_register(gpr::RAX as u8, value);
    cpu.advance(op);
    Ok(())
}

/// A condition code (SDM vol. 1, appendix B).
#[inline(always)]
pub(crate) fn holds<const CODE: u8>(cpu: &Cpu) -> bool {
    let flags = cpu.arithmetic;
    let value = match CODE >> 1 {
        0 => flags.overflow(),
        1 => flags.carry(),
        2 => flags.zero(),
        3 => flags.carry() || flags.zero(),
        4 => flags.sign(),
        5 => flags.parity(),
        6 => flags.sign() != flags.overflow(),
        _ => flags.zero() || flags.sign() != flags.overflow(),
    };
    value != (CODE & 1 != 0)
}

/// Picks a function generic over a condition code.
macro_rules! by_condition {
    ($code:expr, $function:ident $(::<$fixed:ty>)?) => {
        match $code & 15 {
            0 => $function::<$($fixed,)? 0>,
            1 => $function::<$($fixed,)? 1>,
            2 => $function::<$($fixed,)? 2>,
            3 => $function::<$($fixed,)? 3>,
            4 => $function::<$($fixed,)? 4>,
            5 => $function::<$($fixed,)? 5>,
            6 => $function::<$($fixed,)? 6>,
            7 => $function::<$($fixed,)? 7>,
            8 => $function::<$($fixed,)? 8>,
            9 => $function::<$($fixed,)? 9>,
            10 => $function::<$($fixed,)? 10>,
            11 => $function::<$($fixed,)? 11>,
            12 => $function::<$($fixed,)? 12>,
            13 => $function::<$($fixed,)? 13>,
            14 => $function::<$($fixed,)? 14>,
            _ => $function::<$($fixed,)? 15>,
        }
    };
}
pub(crate) use by_condition;

fn move_if_register<T: Scalar, const CODE: u8>(cpu: &mut Cpu, op: &Operation) -> Exec {
    // With 32 bits the upper half is cleared even if nothing moves.
    let source = if holds::<CODE>(cpu) {
        op.second
    } else {
        op.first
    };
    let value: T = cpu.register(source);
    cpu.set_register(op.first, value);
    cpu.advance(op);
    Ok(())
}

fn move_if_memory<T: Scalar, const CODE: u8>(cpu: &mut Cpu, op: &Operation) -> Exec {
    // The load happens, and may fault, whether the condition holds or not.
    let loaded = cpu.read_operand::<T>(op)?;
    let value = if holds::<CODE>(cpu) {
        loaded
    } else {
        cpu.register(op.first)
    };
    cpu.set_register(op.first, value);
    cpu.advance(op);
    Ok(())
}

/// The handler of CMOVcc.
pub(crate) fn conditional_move(code: u8, width: u8, memory: bool) -> Handler {
    fn pick<T: Scalar>(code: u8, memory: bool) -> Handler {
        if memory {
            by_condition!(code, move_if_memory::<T>)
        } else {
            by_condition!(code, move_if_register::<T>)
        }
    }
    match width {
        2 => pick::<u16>(code, memory),
        4 => pick::<u32>(code, memory),
        _ => pick::<u64>(code, memory),
    }
}

fn set_register_if<const CODE: u8>(cpu: &mut Cpu, op: &Operation) -> Exec {
    let value = u8::from(holds::<CODE>(cpu));
    cpu.set_register(op.first, value);
    cpu.advance(op);
    Ok(())
}

fn set_memory_if<const CODE: u8>(cpu: &mut Cpu, op: &Operation) -> Exec {
    let value = u8::from(holds::<CODE>(cpu));
    cpu.write_operand(op, value)?;
    cpu.advance(op);
    Ok(())
}

/// The handler of SETcc.
pub(crate) fn conditional_set(code: u8, memory: bool) -> Handler {
    if memory {
        by_condition!(code, set_memory_if)
    } else {
        by_condition!(code, set_register_if)
    }
}
