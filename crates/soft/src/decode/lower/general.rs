//! Instructions any program uses: arithmetic, moves, bits, shifts.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::{any_width, has_memory, operand_width, shape, wide};
use crate::exec::alu::{self, Shape, by_width};
use crate::exec::shift::{self, Count};
use crate::exec::{bcd, bits, moves, muldiv, stack, system};
use crate::operation::{Handler, NO_REGISTER, Operation};

/// The handler of a general-purpose instruction, `None` if it is none.
pub(super) fn handler(instruction: &Instruction, operation: &mut Operation) -> Option<Handler> {
    arithmetic(instruction)
        .or_else(|| shifts(instruction))
        .or_else(|| data_movement(instruction, operation))
        .or_else(|| bit_instructions(instruction, operation))
}

fn arithmetic(instruction: &Instruction) -> Option<Handler> {
    let width = operand_width(instruction);
    let memory = has_memory(instruction);
    let binary = || shape(instruction);
    Some(match instruction.mnemonic() {
        Mnemonic::Add => alu::binary::<alu::Add>(binary()?, width),
        Mnemonic::Adc => alu::binary::<alu::Adc>(binary()?, width),
        Mnemonic::Sub => alu::binary::<alu::Sub>(binary()?, width),
        Mnemonic::Sbb => alu::binary::<alu::Sbb>(binary()?, width),
        Mnemonic::Cmp => alu::binary::<alu::Cmp>(binary()?, width),
        Mnemonic::And => alu::binary::<alu::And>(binary()?, width),
        Mnemonic::Or => alu::binary::<alu::Or>(binary()?, width),
        Mnemonic::Xor => alu::binary::<alu::Xor>(binary()?, width),
        Mnemonic::Test => alu::binary::<alu::Test>(binary()?, width),
        Mnemonic::Inc => alu::unary::<alu::Inc>(memory, width),
        Mnemonic::Dec => alu::unary::<alu::Dec>(memory, width),
        Mnemonic::Neg => alu::unary::<alu::Neg>(memory, width),
        Mnemonic::Not => alu::unary::<alu::Not>(memory, width),
        Mnemonic::Xadd if memory => any_width!(width, alu::xadd_memory),
        Mnemonic::Xadd => any_width!(width, alu::xadd_register),
        Mnemonic::Cmpxchg if memory => any_width!(width, alu::cmpxchg_memory),
        Mnemonic::Cmpxchg => any_width!(width, alu::cmpxchg_register),
        Mnemonic::Mul if memory => any_width!(width, muldiv::mul, true),
        Mnemonic::Mul => any_width!(width, muldiv::mul, false),
        Mnemonic::Imul => multiplication(instruction, width, memory),
        Mnemonic::Div if memory => any_width!(width, muldiv::div, true),
        Mnemonic::Div => any_width!(width, muldiv::div, false),
        Mnemonic::Idiv if memory => any_width!(width, muldiv::idiv, true),
        Mnemonic::Idiv => any_width!(width, muldiv::idiv, false),
        Mnemonic::Cbw => muldiv::extend_accumulator::<u16>,
        Mnemonic::Cwde => muldiv::extend_accumulator::<u32>,
        Mnemonic::Cdqe => muldiv::extend_accumulator::<u64>,
        Mnemonic::Cwd => muldiv::extend_into_rdx::<u16>,
        Mnemonic::Cdq => muldiv::extend_into_rdx::<u32>,
        Mnemonic::Cqo => muldiv::extend_into_rdx::<u64>,
        Mnemonic::Adcx => bits::scan::<bits::AddWithFlag<false>>(memory, width),
        Mnemonic::Adox => bits::scan::<bits::AddWithFlag<true>>(memory, width),
        Mnemonic::Daa => bcd::decimal_adjust::<false>,
        Mnemonic::Das => bcd::decimal_adjust::<true>,
        Mnemonic::Aaa => bcd::ascii_adjust::<false>,
        Mnemonic::Aas => bcd::ascii_adjust::<true>,
        Mnemonic::Aam => bcd::ascii_adjust_after_multiply,
        Mnemonic::Aad => bcd::ascii_adjust_before_divide,
        _ => return None,
    })
}

fn multiplication(instruction: &Instruction, width: u8, memory: bool) -> Handler {
    match (instruction.op_count(), memory) {
        (1, true) => any_width!(width, muldiv::imul, true),
        (1, false) => any_width!(width, muldiv::imul, false),
        (2, true) => wide!(width, muldiv::imul_two, true),
        (2, false) => wide!(width, muldiv::imul_two, false),
        (_, true) => wide!(width, muldiv::imul_three, true),
        (_, false) => wide!(width, muldiv::imul_three, false),
    }
}

fn shifts(instruction: &Instruction) -> Option<Handler> {
    let width = operand_width(instruction);
    let memory = has_memory(instruction);
    let last = instruction.op_count().checked_sub(1)?;
    let in_cl = instruction.op_kind(last) == OpKind::Register
        && instruction.op_register(last) == Register::CL;
    let count = if in_cl { Count::Cl } else { Count::Immediate };
    Some(match instruction.mnemonic() {
        Mnemonic::Shl | Mnemonic::Sal => shift::shift::<shift::Shl>(memory, count, width),
        Mnemonic::Shr => shift::shift::<shift::Shr>(memory, count, width),
        Mnemonic::Sar => shift::shift::<shift::Sar>(memory, count, width),
        Mnemonic::Rol => shift::shift::<shift::Rol>(memory, count, width),
        Mnemonic::Ror => shift::shift::<shift::Ror>(memory, count, width),
        Mnemonic::Rcl => shift::shift::<shift::Rcl>(memory, count, width),
        Mnemonic::Rcr => shift::shift::<shift::Rcr>(memory, count, width),
        Mnemonic::Shld => shift::double_shift(true, memory, count, width),
        Mnemonic::Shrd => shift::double_shift(false, memory, count, width),
        _ => return None,
    })
}

fn data_movement(instruction: &Instruction, operation: &mut Operation) -> Option<Handler> {
    let width = operand_width(instruction);
    let memory = has_memory(instruction);
    Some(match instruction.mnemonic() {
        Mnemonic::Mov => return plain_move(instruction, width),
        Mnemonic::Movzx | Mnemonic::Movsx | Mnemonic::Movsxd => {
            let signed = instruction.mnemonic() != Mnemonic::Movzx;
            moves::extension(width, source_width(instruction, memory), signed, memory)
        }
        Mnemonic::Lea => wide!(instruction.op_register(0).size(), moves::lea),
        Mnemonic::Xchg if memory => any_width!(width, moves::exchange_memory),
        Mnemonic::Xchg => any_width!(width, moves::exchange_registers),
        Mnemonic::Bswap => wide!(width, moves::byte_swap),
        Mnemonic::Movbe if instruction.op_kind(0) == OpKind::Memory => {
            wide!(width, moves::store_swapped)
        }
        Mnemonic::Movbe => wide!(width, moves::load_swapped),
        Mnemonic::Xlatb => {
            operation.base = crate::cpu::gpr::RBX as u8;
            operation.index = NO_REGISTER;
            moves::translate_byte
        }
        Mnemonic::Lahf => stack::load_flags_to_ah,
        Mnemonic::Sahf => stack::store_ah_to_flags,
        Mnemonic::Clc => stack::clear_carry,
        Mnemonic::Stc => stack::set_carry,
        Mnemonic::Cmc => stack::complement_carry,
        Mnemonic::Cld => stack::clear_direction,
        Mnemonic::Std => stack::set_direction,
        Mnemonic::Pause => system::pause,
        mnemonic if is_hint(mnemonic) => system::nothing,
        mnemonic => return conditional(instruction, mnemonic, width, memory),
    })
}

fn plain_move(instruction: &Instruction, width: u8) -> Option<Handler> {
    let general = (0..2).all(|index| {
        instruction.op_kind(index) != OpKind::Register || instruction.op_register(index).is_gpr()
    });
    if !general {
        return None;
    }
    Some(match shape(instruction)? {
        Shape::RegisterRegister => any_width!(width, moves::register_register),
        Shape::RegisterImmediate => any_width!(width, moves::register_immediate),
        Shape::RegisterMemory => any_width!(width, moves::load),
        Shape::MemoryRegister => any_width!(width, moves::store),
        Shape::MemoryImmediate => any_width!(width, moves::store_immediate),
    })
}

fn source_width(instruction: &Instruction, memory: bool) -> u8 {
    if memory {
        instruction.memory_size().size() as u8
    } else {
        instruction.op_register(1).size() as u8
    }
}

/// Instructions that may do nothing.
fn is_hint(mnemonic: Mnemonic) -> bool {
    matches!(
        mnemonic,
        Mnemonic::Nop
            | Mnemonic::Prefetchnta
            | Mnemonic::Prefetcht0
            | Mnemonic::Prefetcht1
            | Mnemonic::Prefetcht2
            | Mnemonic::Prefetchw
            | Mnemonic::Prefetch
            | Mnemonic::Prefetchwt1
            | Mnemonic::Prefetch_reserved3
            | Mnemonic::Prefetch_reserved4
            | Mnemonic::Prefetch_reserved5
            | Mnemonic::Prefetch_reserved6
            | Mnemonic::Prefetch_reserved7
            | Mnemonic::Reservednop
            | Mnemonic::Endbr64
            | Mnemonic::Endbr32
            | Mnemonic::Rdsspd
            | Mnemonic::Rdsspq
    )
}

/// CMOVcc and SETcc.
fn conditional(
    instruction: &Instruction,
    mnemonic: Mnemonic,
    width: u8,
    memory: bool,
) -> Option<Handler> {
    let code = super::condition(instruction)?;
    match mnemonic {
        Mnemonic::Cmovo | Mnemonic::Cmovno | Mnemonic::Cmovb | Mnemonic::Cmovae
        | Mnemonic::Cmove | Mnemonic::Cmovne | Mnemonic::Cmovbe | Mnemonic::Cmova
        | Mnemonic::Cmovs | Mnemonic::Cmovns | Mnemonic::Cmovp | Mnemonic::Cmovnp
        | Mnemonic::Cmovl | Mnemonic::Cmovge | Mnemonic::Cmovle | Mnemonic::Cmovg => {
            Some(moves::conditional_move(code, width, memory))
        }
        Mnemonic::Seto | Mnemonic::Setno | Mnemonic::Setb | Mnemonic::Setae | Mnemonic::Sete
        | Mnemonic::Setne | Mnemonic::Setbe | Mnemonic::Seta | Mnemonic::Sets | Mnemonic::Setns
        | Mnemonic::Setp | Mnemonic::Setnp | Mnemonic::Setl | Mnemonic::Setge | Mnemonic::Setle
        | Mnemonic::Setg => Some(moves::conditional_set(code, memory)),
        _ => None,
    }
}

fn bit_instructions(instruction: &Instruction, operation: &mut Operation) -> Option<Handler> {
    use bits::BitChange;
    let width = operand_width(instruction);
    let memory = has_memory(instruction);
    let immediate = instruction.op_count() == 2 && instruction.op_kind(1) == OpKind::Immediate8;
    Some(match instruction.mnemonic() {
        Mnemonic::Bt => bits::bit_test(BitChange::Test, memory, immediate, width),
        Mnemonic::Bts => bits::bit_test(BitChange::Set, memory, immediate, width),
        Mnemonic::Btr => bits::bit_test(BitChange::Reset, memory, immediate, width),
        Mnemonic::Btc => bits::bit_test(BitChange::Complement, memory, immediate, width),
        Mnemonic::Bsf => bits::scan::<bits::BitScan<false>>(memory, width),
        Mnemonic::Bsr => bits::scan::<bits::BitScan<true>>(memory, width),
        Mnemonic::Tzcnt => bits::scan::<bits::CountZeros<false>>(memory, width),
        Mnemonic::Lzcnt => bits::scan::<bits::CountZeros<true>>(memory, width),
        Mnemonic::Popcnt => bits::scan::<bits::PopulationCount>(memory, width),
        Mnemonic::Blsi => vex_one::<bits::LowestBit<0>>(memory, width),
        Mnemonic::Blsmsk => vex_one::<bits::LowestBit<1>>(memory, width),
        Mnemonic::Blsr => vex_one::<bits::LowestBit<2>>(memory, width),
        Mnemonic::Rdrand | Mnemonic::Rdseed => wide!(width, bits::random),
        Mnemonic::Crc32 => {
            let from = source_width(instruction, memory);
            if memory {
                any_width!(from, bits::crc32, true)
            } else {
                any_width!(from, bits::crc32, false)
            }
        }
        mnemonic => return vex(instruction, mnemonic, operation, memory, width),
    })
}

fn vex_one<S: bits::Scan>(memory: bool, width: u8) -> Handler {
    bits::scan::<S>(memory, width)
}

/// BMI: which operand is the VEX register differs between them.
fn vex(
    instruction: &Instruction,
    mnemonic: Mnemonic,
    operation: &mut Operation,
    memory: bool,
    width: u8,
) -> Option<Handler> {
    let handler = match mnemonic {
        Mnemonic::Andn => bits::vex::<bits::Andn>(memory, width),
        Mnemonic::Bextr => bits::vex::<bits::Bextr>(memory, width),
        Mnemonic::Bzhi => bits::vex::<bits::Bzhi>(memory, width),
        Mnemonic::Pdep => bits::vex::<bits::Pdep>(memory, width),
        Mnemonic::Pext => bits::vex::<bits::Pext>(memory, width),
        Mnemonic::Mulx => bits::vex::<bits::Mulx>(memory, width),
        Mnemonic::Shlx => bits::vex::<bits::VexShift<0>>(memory, width),
        Mnemonic::Shrx => bits::vex::<bits::VexShift<1>>(memory, width),
        Mnemonic::Sarx => bits::vex::<bits::VexShift<2>>(memory, width),
        Mnemonic::Rorx => return Some(bits::vex::<bits::Rorx>(memory, width)),
        _ => return None,
    };
    // ANDN, PDEP, PEXT and MULX: dest, VEX, r/m. The others: dest, r/m, VEX.
    let number = |index| super::register_number(instruction.op_register(index));
    let vex_first =
        matches!(mnemonic, Mnemonic::Andn | Mnemonic::Pdep | Mnemonic::Pext | Mnemonic::Mulx);
    let (plain, general) = if vex_first { (1, 2) } else { (2, 1) };
    operation.third = number(plain);
    if !memory {
        operation.second = number(general);
    }
    Some(handler)
}
