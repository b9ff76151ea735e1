//! Jumps, calls, returns, interrupts.

use iced_x86::{Code, Instruction, Mnemonic, OpKind};

use super::integer::condition;
use crate::decode::operand::{Place, branch_width, place, width};
use crate::decode::pick::by_word;
use crate::exec::flow;
use crate::operation::{Handler, Operation, prefix};

pub(super) fn handler(instruction: &Instruction, operation: &mut Operation) -> Option<Handler> {
    use Mnemonic::*;
    if instruction.is_jcc_short_or_near() {
        return Some(flow::conditional_jump(
            condition(instruction),
            branch_width(instruction),
        ));
    }
    Some(match instruction.mnemonic() {
        Jmp => jump(instruction, operation),
        Call => call(instruction, operation),
        Ret => match instruction.code() {
            Code::Retnw | Code::Retnw_imm16 => flow::return_near::<u16>,
            Code::Retnd | Code::Retnd_imm16 => flow::return_near::<u32>,
            _ => flow::return_near::<u64>,
        },
        Retf => {
            operation.width = match instruction.code() {
                Code::Retfw | Code::Retfw_imm16 => 2,
                Code::Retfd | Code::Retfd_imm16 => 4,
                _ => 8,
            };
            flow::return_far
        }
        Iret | Iretd | Iretq => {
            operation.width = match instruction.mnemonic() {
                Iret => 2,
                Iretd => 4,
                _ => 8,
            };
            flow::interrupt_return
        }
        Loop | Loope | Loopne => {
            operation.second = match instruction.mnemonic() {
                Loope => 1,
                Loopne => 2,
                _ => 0,
            };
            operation.address_shift = loop_shift(instruction.code());
            by_word!(branch_width(instruction), flow::loop_back)
        }
        Jcxz | Jecxz | Jrcxz => {
            operation.address_shift = match instruction.mnemonic() {
                Jcxz => 48,
                Jecxz => 32,
                _ => 0,
            };
            by_word!(branch_width(instruction), flow::jump_if_counter_zero)
        }
        Int => {
            operation.prefixes |= prefix::NEW_TRAP_FLAG;
            flow::software_interrupt
        }
        Int3 => flow::breakpoint,
        Int1 => flow::debug_trap,
        Into => flow::overflow_trap,
        Bound => by_word!(width(instruction, 0), flow::bound),
        _ => return None,
    })
}

/// The counter's width, by the form.
fn loop_shift(code: Code) -> u8 {
    use Code::*;
    match code {
        Loop_rel8_16_CX | Loop_rel8_32_CX | Loope_rel8_16_CX | Loope_rel8_32_CX
        | Loopne_rel8_16_CX | Loopne_rel8_32_CX => 48,
        Loop_rel8_16_ECX | Loop_rel8_32_ECX | Loop_rel8_64_ECX | Loope_rel8_16_ECX
        | Loope_rel8_32_ECX | Loope_rel8_64_ECX | Loopne_rel8_16_ECX | Loopne_rel8_32_ECX
        | Loopne_rel8_64_ECX => 32,
        _ => 0,
    }
}

/// Bytes of the offset in a far pointer, if the instruction has one.
fn far_width(instruction: &Instruction) -> Option<u8> {
    match instruction.op0_kind() {
        OpKind::FarBranch16 => Some(2),
        OpKind::FarBranch32 => Some(4),
        OpKind::Memory
            if instruction.is_jmp_far_indirect() || instruction.is_call_far_indirect() =>
        {
            Some(width(instruction, 0).saturating_sub(2))
        }
        _ => None,
    }
}

fn jump(instruction: &Instruction, operation: &mut Operation) -> Handler {
    let place = place(instruction, 0);
    if let Some(width) = far_width(instruction) {
        operation.width = width;
        return if place == Place::Memory {
            flow::jump_far_memory
        } else {
            flow::jump_far
        };
    }
    let bytes = branch_width(instruction);
    match place {
        Place::Register => by_word!(bytes, flow::jump_register),
        Place::Memory => by_word!(bytes, flow::jump_memory),
        _ => by_word!(bytes, flow::jump),
    }
}

fn call(instruction: &Instruction, operation: &mut Operation) -> Handler {
    let place = place(instruction, 0);
    if let Some(width) = far_width(instruction) {
        operation.width = width;
        return if place == Place::Memory {
            flow::call_far_memory
        } else {
            flow::call_far
        };
    }
    let bytes = branch_width(instruction);
    match place {
        Place::Register => by_word!(bytes, flow::call_register),
        Place::Memory => by_word!(bytes, flow::call_memory),
        _ => by_word!(bytes, flow::call),
    }
}
