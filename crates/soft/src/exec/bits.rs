//! Bit tests and scans, POPCNT, BMI1 and BMI2, CRC32, RDRAND.

use crate::cpu::{Cpu, gpr};
use crate::exec::shift::{Flagless, flagless};
use crate::flags::ArithmeticFlags;
use crate::operation::{Handler, Operation};
use crate::scalar::Scalar;
use crate::trap::Exec;

/// What happens to the tested bit: BT, BTS, BTR, BTC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum BitChange {
    Test,
    Set,
    Reset,
    Complement,
}

impl BitChange {
    const fn apply(self, value: u64, mask: u64) -> u64 {
        match self {
            Self::Test => value,
            Self::Set => value | mask,
            Self::Reset => value & !mask,
            Self::Complement => value ^ mask,
        }
    }
}

fn change(number: u8) -> BitChange {
    match number {
        0 => BitChange::Test,
        1 => BitChange::Set,
        2 => BitChange::Reset,
        _ => BitChange::Complement,
    }
}

fn set_carry(cpu: &mut Cpu, carry: bool) {
    cpu.arithmetic = cpu
        .arithmetic
        .with_carry_overflow(carry, cpu.arithmetic.overflow());
}

/// The bit number: a register (`second`) or an immediate.
fn bit_number<T: Scalar, const IMMEDIATE: bool>(cpu: &Cpu, op: &Operation, register: u8) -> i64 {
    if IMMEDIATE {
        (op.immediate & u64::from(T::BITS - 1)) as i64
    } else {
        cpu.register::<T>(register).to_i64()
    }
}

fn bit_register<T: Scalar, const IMMEDIATE: bool, const CHANGE: u8>(
    cpu: &mut Cpu,
    op: &Operation,
) -> Exec {
    let number = bit_number::<T, IMMEDIATE>(cpu, op, op.second) as u64 & u64::from(T::BITS - 1);
    let value = cpu.register::<T>(op.first).to_u64();
    set_carry(cpu, value >> number & 1 != 0);
    if CHANGE != 0 {
        cpu.set_register(
            op.first,
            T::from_u64(change(CHANGE).apply(value, 1 << number)),
        );
    }
    cpu.advance(op);
    Ok(())
}

/// With a register for the number, the bit may lie anywhere around the
/// operand.
fn bit_memory<T: Scalar, const IMMEDIATE: bool, const CHANGE: u8>(
    cpu: &mut Cpu,
    op: &Operation,
) -> Exec {
    let number = bit_number::<T, IMMEDIATE>(cpu, op, op.first);
    let mut shifted = *op;
    let word = number >> T::BITS.trailing_zeros();
    shifted.displacement = op.displacement.wrapping_add((word * T::SIZE as i64) as u64);
    let bit = number as u64 & u64::from(T::BITS - 1);
    let old = if CHANGE == 0 {
        cpu.read_operand::<T>(&shifted)?
    } else {
        cpu.change_operand(&shifted, |_, old: T| {
            T::from_u64(change(CHANGE).apply(old.to_u64(), 1 << bit))
        })?
    };
    set_carry(cpu, old.to_u64() >> bit & 1 != 0);
    cpu.advance(op);
    Ok(())
}

/// The handler of BT, BTS, BTR, BTC.
pub(crate) fn bit_test(change: BitChange, memory: bool, immediate: bool, width: u8) -> Handler {
    fn pick<T: Scalar, const CHANGE: u8>(memory: bool, immediate: bool) -> Handler {
        match (memory, immediate) {
            (false, false) => bit_register::<T, false, CHANGE>,
            (false, true) => bit_register::<T, true, CHANGE>,
            (true, false) => bit_memory::<T, false, CHANGE>,
            (true, true) => bit_memory::<T, true, CHANGE>,
        }
    }
    fn widths<const CHANGE: u8>(memory: bool, immediate: bool, width: u8) -> Handler {
        match width {
            2 => pick::<u16, CHANGE>(memory, immediate),
            4 => pick::<u32, CHANGE>(memory, immediate),
            _ => pick::<u64, CHANGE>(memory, immediate),
        }
    }
    match change {
        BitChange::Test => widths::<0>(memory, immediate, width),
        BitChange::Set => widths::<1>(memory, immediate, width),
        BitChange::Reset => widths::<2>(memory, immediate, width),
        BitChange::Complement => widths::<3>(memory, immediate, width),
    }
}

/// Instructions with one source and one destination.
pub(crate) trait Scan {
    fn apply<T: Scalar>(cpu: &mut Cpu, source: T, destination: u8);
}

/// BSF and BSR: ZF says that the source was zero; the destination then stays.
pub(crate) struct BitScan<const REVERSE: bool>;
impl<const REVERSE: bool> Scan for BitScan<REVERSE> {
    fn apply<T: Scalar>(cpu: &mut Cpu, source: T, destination: u8) {
        let value = source.to_u64();
        // The other flags are undefined; they are left alone.
        let bits = cpu.arithmetic.bits() & !crate::cpu::rflags::ZF;
        let zero = if value == 0 {
            crate::cpu::rflags::ZF
        } else {
            0
        };
        cpu.arithmetic = ArithmeticFlags::from_bits(bits | zero);
        if value == 0 {
            return;
        }
        let found = if REVERSE {
            63 - value.leading_zeros()
        } else {
            value.trailing_zeros()
        };
        cpu.set_register(destination, T::from_u64(found.into()));
    }
}

/// TZCNT, LZCNT.
pub(crate) struct CountZeros<const LEADING: bool>;
impl<const LEADING: bool> Scan for CountZeros<LEADING> {
    fn apply<T: Scalar>(cpu: &mut Cpu, source: T, destination: u8) {
        let value = source.to_u64();
        let count = if LEADING {
            value.leading_zeros() - (64 - T::BITS)
        } else {
            value.trailing_zeros().min(T::BITS)
        };
        let (carry, zero) = (value == 0, count == 0);
        let keep = cpu.arithmetic.bits() & !(crate::cpu::rflags::CF | crate::cpu::rflags::ZF);
        let carry = if carry { crate::cpu::rflags::CF } else { 0 };
        let zero = if zero { crate::cpu::rflags::ZF } else { 0 };
        cpu.arithmetic = ArithmeticFlags::from_bits(keep | carry | zero);
        cpu.set_register(destination, T::from_u64(count.into()));
    }
}

/// POPCNT: ZF for a zero source, everything else clear.
pub(crate) struct PopulationCount;
impl Scan for PopulationCount {
    fn apply<T: Scalar>(cpu: &mut Cpu, source: T, destination: u8) {
        let zero = if source.to_u64() == 0 {
            crate::cpu::rflags::ZF
        } else {
            0
        };
        cpu.arithmetic = ArithmeticFlags::from_bits(zero);
        cpu.set_register(
            destination,
            T::from_u64(source.to_u64().count_ones().into()),
        );
    }
}

/// BLSI, BLSMSK, BLSR: `KIND` 0, 1, 2.
pub(crate) struct LowestBit<const KIND: u8>;
impl<const KIND: u8> Scan for LowestBit<KIND> {
    fn apply<T: Scalar>(cpu: &mut Cpu, source: T, destination: u8) {
        let value = source.to_u64();
        let (result, carry) = match KIND {
            0 => (value & value.wrapping_neg(), value != 0),
            1 => (value ^ value.wrapping_sub(1), value == 0),
            _ => (value & value.wrapping_sub(1), value == 0),
        };
        let result = T::from_u64(result);
        cpu.arithmetic = ArithmeticFlags::from_result(result.to_u64(), T::BITS, carry, false);
        cpu.set_register(destination, result);
    }
}

/// ADCX and ADOX.
pub(crate) struct AddWithFlag<const OVERFLOW: bool>;
impl<const OVERFLOW: bool> Scan for AddWithFlag<OVERFLOW> {
    fn apply<T: Scalar>(cpu: &mut Cpu, source: T, destination: u8) {
        super::alu::add_with_flag::<T, OVERFLOW>(cpu, destination, source);
    }
}

fn scan_register<S: Scan, T: Scalar>(cpu: &mut Cpu, op: &Operation) -> Exec {
    let source = cpu.register(op.second);
    S::apply::<T>(cpu, source, op.first);
    cpu.advance(op);
    Ok(())
}

fn scan_memory<S: Scan, T: Scalar>(cpu: &mut Cpu, op: &Operation) -> Exec {
    let source = cpu.read_operand::<T>(op)?;
    S::apply::<T>(cpu, source, op.first);
    cpu.advance(op);
    Ok(())
}

/// The handler of a [`Scan`].
pub(crate) fn scan<S: Scan>(memory: bool, width: u8) -> Handler {
    match (width, memory) {
        (2, false) => scan_register::<S, u16>,
        (2, true) => scan_memory::<S, u16>,
        (4, false) => scan_register::<S, u32>,
        (4, true) => scan_memory::<S, u32>,
        (_, false) => scan_register::<S, u64>,
        (_, true) => scan_memory::<S, u64>,
    }
}

/// VEX instructions with two sources: `first` = destination, one source in a
/// register (`third`), the other in a register (`second`) or in memory.
pub(crate) trait Vex {
    /// `plain` is the register source, `general` the one that may be memory.
    fn apply<T: Scalar>(cpu: &mut Cpu, op: &Operation, plain: T, general: T);
}

pub(crate) struct Andn;
impl Vex for Andn {
    fn apply<T: Scalar>(cpu: &mut Cpu, op: &Operation, plain: T, general: T) {
        let result = T::from_u64(!plain.to_u64() & general.to_u64());
        cpu.arithmetic = ArithmeticFlags::after_logic(result.to_u64(), T::BITS);
        cpu.set_register(op.first, result);
    }
}

pub(crate) struct Bextr;
impl Vex for Bextr {
    fn apply<T: Scalar>(cpu: &mut Cpu, op: &Operation, plain: T, general: T) {
        let control = plain.to_u64();
        let (start, length) = (control as u8, (control >> 8) as u8);
        let shifted = general.to_u64().checked_shr(start.into()).unwrap_or(0);
        let mask = 1u64
            .checked_shl(length.into())
            .map_or(u64::MAX, |bit| bit - 1);
        let result = T::from_u64(shifted & mask);
        cpu.arithmetic = ArithmeticFlags::after_logic(result.to_u64(), T::BITS);
        cpu.set_register(op.first, result);
    }
}

pub(crate) struct Bzhi;
impl Vex for Bzhi {
    fn apply<T: Scalar>(cpu: &mut Cpu, op: &Operation, plain: T, general: T) {
        let count = u32::from(plain.to_u64() as u8);
        let carry = count >= T::BITS;
        let mask = if carry { T::MASK } else { (1u64 << count) - 1 };
        let result = general.to_u64() & mask;
        cpu.arithmetic = ArithmeticFlags::from_result(result, T::BITS, carry, false);
        cpu.set_register(op.first, T::from_u64(result));
    }
}

pub(crate) struct Pdep;
impl Vex for Pdep {
    fn apply<T: Scalar>(cpu: &mut Cpu, op: &Operation, plain: T, general: T) {
        let (mut mask, mut source, mut result) = (general.to_u64(), plain.to_u64(), 0);
        while mask != 0 {
            let lowest = mask & mask.wrapping_neg();
            if source & 1 != 0 {
                result |= lowest;
            }
            source >>= 1;
            mask ^= lowest;
        }
        cpu.set_register(op.first, T::from_u64(result));
    }
}

pub(crate) struct Pext;
impl Vex for Pext {
    fn apply<T: Scalar>(cpu: &mut Cpu, op: &Operation, plain: T, general: T) {
        let (mut mask, source, mut result, mut place) = (general.to_u64(), plain.to_u64(), 0, 1u64);
        while mask != 0 {
            let lowest = mask & mask.wrapping_neg();
            if source & lowest != 0 {
                result |= place;
            }
            place = place.wrapping_shl(1);
            mask ^= lowest;
        }
        cpu.set_register(op.first, T::from_u64(result));
    }
}

pub(crate) struct Mulx;
impl Vex for Mulx {
    fn apply<T: Scalar>(cpu: &mut Cpu, op: &Operation, _: T, general: T) {
        let a: T = cpu.register(gpr::RDX as u8);
        let product = u128::from(a.to_u64()) * u128::from(general.to_u64());
        // The low half first: with equal destinations the high half stays.
        cpu.set_register(op.third, T::from_u64(product as u64));
        cpu.set_register(op.first, T::from_u64((product >> T::BITS) as u64));
    }
}

/// SHLX, SHRX, SARX.
pub(crate) struct VexShift<const KIND: u8>;
impl<const KIND: u8> Vex for VexShift<KIND> {
    fn apply<T: Scalar>(cpu: &mut Cpu, op: &Operation, plain: T, general: T) {
        let kind = match KIND {
            0 => Flagless::Shl,
            1 => Flagless::Shr,
            _ => Flagless::Sar,
        };
        let result = flagless(kind, general, plain.to_u64() as u32);
        cpu.set_register(op.first, result);
    }
}

/// RORX: the count is an immediate.
pub(crate) struct Rorx;
impl Vex for Rorx {
    fn apply<T: Scalar>(cpu: &mut Cpu, op: &Operation, _: T, general: T) {
        let result = flagless(Flagless::Ror, general, op.immediate as u32);
        cpu.set_register(op.first, result);
    }
}

fn vex_register<V: Vex, T: Scalar>(cpu: &mut Cpu, op: &Operation) -> Exec {
    let (plain, general): (T, T) = (cpu.register(op.third), cpu.register(op.second));
    V::apply(cpu, op, plain, general);
    cpu.advance(op);
    Ok(())
}

fn vex_memory<V: Vex, T: Scalar>(cpu: &mut Cpu, op: &Operation) -> Exec {
    let general = cpu.read_operand::<T>(op)?;
    let plain = cpu.register(op.third);
    V::apply(cpu, op, plain, general);
    cpu.advance(op);
    Ok(())
}

/// The handler of a [`Vex`].
pub(crate) fn vex<V: Vex>(memory: bool, width: u8) -> Handler {
    match (width, memory) {
        (4, false) => vex_register::<V, u32>,
        (4, true) => vex_memory::<V, u32>,
        (_, false) => vex_register::<V, u64>,
        (_, true) => vex_memory::<V, u64>,
    }
}

/// CRC32 (Castagnoli), one operand of `T`; `width` is the destination's.
pub(crate) fn crc32<T: Scalar, const MEMORY: bool>(cpu: &mut Cpu, op: &Operation) -> Exec {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let source = if MEMORY {
        cpu.read_operand::<T>(op)?
    } else {
        cpu.register(op.second)
    }
    .to_u64();
    let mut crc: u32 = cpu.register(op.first);
    for byte in &source.to_le_bytes()[..T::SIZE] {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 != 0 { POLYNOMIAL } else { 0 };
        }
    }
    cpu.set_register(op.first, crc);
    cpu.advance(op);
    Ok(())
}

/// RDRAND and RDSEED: CF says that there was a number; there always is one.
pub(crate) fn random<T: Scalar>(cpu: &mut Cpu, op: &Operation) -> Exec {
    let mut bytes = [0; 8];
    let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    let carry = filled == Ok(8);
    let value = if carry { u64::from_le_bytes(bytes) } else { 0 };
    cpu.set_register(op.first, T::from_u64(value));
    let flags = if carry { crate::cpu::rflags::CF } else { 0 };
    cpu.arithmetic = ArithmeticFlags::from_bits(flags);
    cpu.advance(op);
    Ok(())
}
