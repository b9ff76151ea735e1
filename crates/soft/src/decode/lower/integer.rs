//! Moves, arithmetic, shifts, the stack, string instructions.

use iced_x86::{Code, Instruction, Mnemonic};

use crate::decode::operand::{Place, place, width};
use crate::decode::pick::{by_bytes, by_flag, by_word};
use crate::exec::alu::{self, Shape};
use crate::exec::shift::{self, Count};
use crate::exec::{bcd, moves, muldiv, stack, string, system};
use crate::operation::{Handler, Operation, prefix};

pub(super) fn handler(instruction: &Instruction, operation: &mut Operation) -> Option<Handler> {
    arithmetic(instruction)
        .or_else(|| data(instruction, operation))
        .or_else(|| on_stack(instruction, operation))
        .or_else(|| strings(instruction, operation))
        .or_else(|| decimal(instruction))
}

fn is_memory(instruction: &Instruction, operand: u32) -> bool {
    place(instruction, operand) == Place::Memory
}

/// The shape of a two-operand instruction.
fn shape(instruction: &Instruction) -> Shape {
    match (place(instruction, 0), place(instruction, 1)) {
        (Place::Memory, Place::Register) => Shape::MemoryRegister,
        (Place::Memory, _) => Shape::MemoryImmediate,
        (_, Place::Register) => Shape::RegisterRegister,
        (_, Place::Memory) => Shape::RegisterMemory,
        _ => Shape::RegisterImmediate,
    }
}

fn arithmetic(instruction: &Instruction) -> Option<Handler> {
    use Mnemonic::*;
    let bytes = width(instruction, 0);
    let memory = is_memory(instruction, 0);
    let shape = || shape(instruction);
    let count = || match place(instruction, instruction.op_count() - 1) {
        Place::Register => Count::Cl,
        _ => Count::Immediate,
    };
    Some(match instruction.mnemonic() {
        Add => alu::binary::<alu::Add>(shape(), bytes),
        Adc => alu::binary::<alu::Adc>(shape(), bytes),
        Sub => alu::binary::<alu::Sub>(shape(), bytes),
        Sbb => alu::binary::<alu::Sbb>(shape(), bytes),
        Cmp => alu::binary::<alu::Cmp>(shape(), bytes),
        And => alu::binary::<alu::And>(shape(), bytes),
        Or => alu::binary::<alu::Or>(shape(), bytes),
        Xor => alu::binary::<alu::Xor>(shape(), bytes),
        Test => alu::binary::<alu::Test>(shape(), bytes),
        Inc => alu::unary::<alu::Inc>(memory, bytes),
        Dec => alu::unary::<alu::Dec>(memory, bytes),
        Neg => alu::unary::<alu::Neg>(memory, bytes),
        Not => alu::unary::<alu::Not>(memory, bytes),
        Xadd if memory => by_bytes!(bytes, alu::xadd_memory),
        Xadd => by_bytes!(bytes, alu::xadd_register),
        Cmpxchg if memory => by_bytes!(bytes, alu::cmpxchg_memory),
        Cmpxchg => by_bytes!(bytes, alu::cmpxchg_register),
        Shl | Sal => shift::shift::<shift::Shl>(memory, count(), bytes),
        Shr => shift::shift::<shift::Shr>(memory, count(), bytes),
        Sar => shift::shift::<shift::Sar>(memory, count(), bytes),
        Rol => shift::shift::<shift::Rol>(memory, count(), bytes),
        Ror => shift::shift::<shift::Ror>(memory, count(), bytes),
        Rcl => shift::shift::<shift::Rcl>(memory, count(), bytes),
        Rcr => shift::shift::<shift::Rcr>(memory, count(), bytes),
        Shld => shift::double_shift(true, memory, count(), bytes),
        Shrd => shift::double_shift(false, memory, count(), bytes),
        Mul => by_bytes!(bytes, muldiv::mul, memory),
        Div => by_bytes!(bytes, muldiv::div, memory),
        Idiv => by_bytes!(bytes, muldiv::idiv, memory),
        Imul => match instruction.op_count() {
            1 => by_bytes!(bytes, muldiv::imul, memory),
            2 => by_bytes!(bytes, muldiv::imul_two, is_memory(instruction, 1)),
            _ => by_bytes!(bytes, muldiv::imul_three, is_memory(instruction, 1)),
        },
        Cbw => muldiv::extend_accumulator::<u16>,
        Cwde => muldiv::extend_accumulator::<u32>,
        Cdqe => muldiv::extend_accumulator::<u64>,
        Cwd => muldiv::extend_into_rdx::<u16>,
        Cdq => muldiv::extend_into_rdx::<u32>,
        Cqo => muldiv::extend_into_rdx::<u64>,
        _ => return None,
    })
}

fn mov(instruction: &Instruction, operation: &mut Operation) -> Option<Handler> {
    let (to, from) = (instruction.op0_register(), instruction.op1_register());
    let bytes = width(instruction, 0);
    if to.is_segment_register() {
        return Some(match place(instruction, 1) {
            Place::Memory => system::segment_from_memory,
            _ => system::segment_from_register,
        });
    }
    if from.is_segment_register() {
        if is_memory(instruction, 0) {
            operation.second = operation.first;
            return Some(system::memory_from_segment);
        }
        return Some(by_word!(bytes, system::register_from_segment));
    }
    if to.is_cr() {
        return Some(system::write_control);
    }
    if from.is_cr() {
        return Some(system::read_control);
    }
    if to.is_dr() {
        return Some(system::write_debug);
    }
    if from.is_dr() {
        return Some(system::read_debug);
    }
    if to.is_tr() || from.is_tr() {
        return None;
    }
    Some(match shape(instruction) {
        Shape::RegisterRegister => by_bytes!(bytes, moves::register_register),
        Shape::RegisterImmediate => by_bytes!(bytes, moves::register_immediate),
        Shape::RegisterMemory => by_bytes!(bytes, moves::load),
        Shape::MemoryRegister => by_bytes!(bytes, moves::store),
        Shape::MemoryImmediate => by_bytes!(bytes, moves::store_immediate),
    })
}

fn data(instruction: &Instruction, operation: &mut Operation) -> Option<Handler> {
    use Mnemonic::*;
    let bytes = width(instruction, 0);
    let memory = is_memory(instruction, 0);
    let from_memory = is_memory(instruction, 1);
    Some(match instruction.mnemonic() {
        Mov => return mov(instruction, operation),
        Movnti => by_word!(bytes, moves::store),
        Movzx => moves::extension(bytes, width(instruction, 1), false, from_memory),
        // AMD's processors read 32 bits whatever the operand size.
        Movsxd if from_memory && crate::native::host_is_amd() => {
            moves::extension(bytes, 4, true, true)
        }
        Movsx | Movsxd => moves::extension(bytes, width(instruction, 1), true, from_memory),
        Lea => by_word!(bytes, moves::lea),
        Xchg if memory => by_bytes!(bytes, moves::exchange_memory),
        Xchg if from_memory => by_bytes!(bytes, moves::exchange_memory),
        Xchg => by_bytes!(bytes, moves::exchange_registers),
        Bswap => by_word!(bytes, moves::byte_swap),
        Movbe if memory => by_word!(bytes, moves::store_swapped),
        Movbe => by_word!(bytes, moves::load_swapped),
        Xlatb => {
            operation.index = crate::operation::NO_REGISTER;
            operation.scale = 0;
            moves::translate_byte
        }
        Cmovo | Cmovno | Cmovb | Cmovae | Cmove | Cmovne | Cmovbe | Cmova | Cmovs | Cmovns
        | Cmovp | Cmovnp | Cmovl | Cmovge | Cmovle | Cmovg => {
            moves::conditional_move(condition(instruction), bytes, from_memory)
        }
        Seto | Setno | Setb | Setae | Sete | Setne | Setbe | Seta | Sets | Setns | Setp | Setnp
        | Setl | Setge | Setle | Setg => moves::conditional_set(condition(instruction), memory),
        _ => return None,
    })
}

/// A condition code as the opcode has it.
pub(super) fn condition(instruction: &Instruction) -> u8 {
    (instruction.condition_code() as u8).wrapping_sub(1) & 15
}

fn on_stack(instruction: &Instruction, operation: &mut Operation) -> Option<Handler> {
    use Mnemonic::*;
    let bytes = instruction.stack_pointer_increment().unsigned_abs();
    let segment = instruction.op0_register().is_segment_register();
    Some(match instruction.mnemonic() {
        Push if segment => by_word!(bytes, stack::push_segment),
        Pop if segment => by_word!(bytes, stack::pop_segment),
        Push => match place(instruction, 0) {
            Place::Register => by_word!(bytes, stack::push_register),
            Place::Memory => by_word!(bytes, stack::push_memory),
            _ => by_word!(bytes, stack::push_immediate),
        },
        Pop => match place(instruction, 0) {
            Place::Memory => by_word!(bytes, stack::pop_memory),
            _ => by_word!(bytes, stack::pop_register),
        },
        Pusha | Pushad => {
            operation.width = (bytes / 8) as u8;
            stack::push_all
        }
        Popa | Popad => {
            operation.width = (bytes / 8) as u8;
            stack::pop_all
        }
        Pushf | Pushfd | Pushfq => by_word!(bytes, stack::push_flags),
        Popf | Popfd | Popfq => {
            operation.prefixes |= crate::operation::prefix::ENABLES_INTERRUPTS;
            by_word!(bytes, stack::pop_flags)
        }
        Enter => {
            operation.immediate = u64::from(instruction.immediate16())
                | u64::from(instruction.immediate8_2nd()) << 16;
            match instruction.code() {
                Code::Enterw_imm16_imm8 => stack::enter::<u16>,
                Code::Enterd_imm16_imm8 => stack::enter::<u32>,
                _ => stack::enter::<u64>,
            }
        }
        Leave => match instruction.code() {
            Code::Leavew => stack::leave::<u16>,
            Code::Leaved => stack::leave::<u32>,
            _ => stack::leave::<u64>,
        },
        Lahf => stack::load_flags_to_ah,
        Sahf => stack::store_ah_to_flags,
        Clc => stack::clear_carry,
        Stc => stack::set_carry,
        Cmc => stack::complement_carry,
        Cld => stack::clear_direction,
        Std => stack::set_direction,
        Cli => stack::clear_interrupts,
        Sti => {
            operation.prefixes |= crate::operation::prefix::ENABLES_INTERRUPTS;
            stack::set_interrupts
        }
        Clac => stack::change_alignment_check::<false>,
        Stac => stack::change_alignment_check::<true>,
        _ => return None,
    })
}

fn strings(instruction: &Instruction, operation: &mut Operation) -> Option<Handler> {
    use Mnemonic::*;
    let bytes = operation.width;
    let repeats = operation.prefixes & (prefix::REP | prefix::REPNE) != 0;
    let handler = match instruction.mnemonic() {
        Movsb | Movsw | Movsd | Movsq if instruction.is_string_instruction() => {
            by_bytes!(bytes, string::movs)
        }
        Stosb | Stosw | Stosd | Stosq => by_bytes!(bytes, string::stos),
        Lodsb | Lodsw | Lodsd | Lodsq => by_bytes!(bytes, string::lods),
        Scasb | Scasw | Scasd | Scasq => by_bytes!(bytes, string::scas),
        Cmpsb | Cmpsw | Cmpsd | Cmpsq if instruction.is_string_instruction() => {
            by_bytes!(bytes, string::cmps)
        }
        Insb | Insw | Insd => by_bytes!(bytes, string::ins),
        Outsb | Outsw | Outsd => by_bytes!(bytes, string::outs),
        _ => return None,
    };
    if repeats
        && !matches!(
            instruction.mnemonic(),
            Cmpsb | Cmpsw | Cmpsd | Cmpsq | Scasb | Scasw | Scasd | Scasq
        )
    {
        // F2 repeats these as F3 does.
        operation.prefixes = operation.prefixes & !prefix::REPNE | prefix::REP;
    }
    Some(handler)
}

fn decimal(instruction: &Instruction) -> Option<Handler> {
    use Mnemonic::*;
    Some(match instruction.mnemonic() {
        Daa => by_flag!(false, bcd::decimal_adjust),
        Das => by_flag!(true, bcd::decimal_adjust),
        Aaa => by_flag!(false, bcd::ascii_adjust),
        Aas => by_flag!(true, bcd::ascii_adjust),
        Aam => bcd::ascii_adjust_after_multiply,
        Aad => bcd::ascii_adjust_before_divide,
        Salc => bcd::set_al_from_carry,
        _ => return None,
    })
}
