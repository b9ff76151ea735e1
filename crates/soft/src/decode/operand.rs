//! Operands of decoded instructions as operations have them.

use iced_x86::{Instruction, OpKind, Register};

use crate::cpu::{CodeSize, SegmentRegister};
use crate::operation::{NO_REGISTER, NO_SEGMENT, Operation, RIP_BASE, prefix};

/// The number of a register among those of its kind; 16 to 19 for AH to BH.
pub(super) fn number(register: Register) -> u8 {
    if register.is_gpr8() {
        let index = register as u8 - Register::AL as u8;
        return match index {
            0..=3 => index,
            4..=7 => index + 12,
            _ => index - 4,
        };
    }
    let first = if register.is_gpr16() {
        Register::AX
    } else if register.is_gpr32() {
        Register::EAX
    } else if register.is_gpr64() {
        Register::RAX
    } else if register.is_segment_register() {
        Register::ES
    } else if register.is_cr() {
        Register::CR0
    } else if register.is_dr() {
        Register::DR0
    } else {
        return NO_REGISTER;
    };
    register as u8 - first as u8
}

/// Where an operand is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Place {
    Register,
    Memory,
    Immediate,
    Other,
}

pub(super) fn place(instruction: &Instruction, operand: u32) -> Place {
    if operand >= instruction.op_count() {
        return Place::Other;
    }
    match instruction.op_kind(operand) {
        OpKind::Register => Place::Register,
        OpKind::Memory => Place::Memory,
        OpKind::Immediate8
        | OpKind::Immediate8_2nd
        | OpKind::Immediate16
        | OpKind::Immediate32
        | OpKind::Immediate64
        | OpKind::Immediate8to16
        | OpKind::Immediate8to32
        | OpKind::Immediate8to64
        | OpKind::Immediate32to64 => Place::Immediate,
        _ => Place::Other,
    }
}

/// Bytes of an operand: of its register, or of the access to memory.
pub(super) fn width(instruction: &Instruction, operand: u32) -> u8 {
    match place(instruction, operand) {
        Place::Register => instruction.op_register(operand).size() as u8,
        _ => instruction.memory_size().size() as u8,
    }
}

/// Bytes of a near branch's operand.
pub(super) fn branch_width(instruction: &Instruction) -> u8 {
    match instruction.op0_kind() {
        OpKind::NearBranch16 => 2,
        OpKind::NearBranch32 => 4,
        OpKind::NearBranch64 => 8,
        _ => width(instruction, 0),
    }
}

fn address_shift(bytes: usize) -> u8 {
    match bytes {
        2 => 48,
        4 => 32,
        _ => 0,
    }
}

/// An operation whose operands are those of the instruction, registers in the
/// order of appearance, and whose handler is `handler`.
pub(super) fn resolve(
    instruction: &Instruction,
    size: CodeSize,
    handler: crate::operation::Handler,
) -> Operation {
    let mut operation = Operation {
        handler,
        immediate: 0,
        displacement: 0,
        first: NO_REGISTER,
        second: NO_REGISTER,
        base: NO_REGISTER,
        index: NO_REGISTER,
        scale: 0,
        segment: NO_SEGMENT,
        address_shift: 0,
        length: instruction.len() as u8,
        third: NO_REGISTER,
        width: 0,
        prefixes: 0,
        checks_segment: false,
    };
    if instruction.has_lock_prefix() {
        operation.prefixes |= prefix::LOCK;
    }
    let mut registers = 0;
    let mut has_immediate = false;
    for operand in 0..instruction.op_count() {
        match instruction.op_kind(operand) {
            OpKind::Register => {
                let number = number(instruction.op_register(operand));
                match registers {
                    0 => operation.first = number,
                    1 => operation.second = number,
                    2 => operation.third = number,
                    _ => {}
                }
                registers += 1;
            }
            OpKind::Memory => memory(instruction, size, &mut operation),
            OpKind::MemorySegSI | OpKind::MemorySegDI | OpKind::MemoryESDI => {
                string(instruction, size, 2, &mut operation)
            }
            OpKind::MemorySegESI | OpKind::MemorySegEDI | OpKind::MemoryESEDI => {
                string(instruction, size, 4, &mut operation)
            }
            OpKind::MemorySegRSI | OpKind::MemorySegRDI | OpKind::MemoryESRDI => {
                string(instruction, size, 8, &mut operation)
            }
            OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => {
                operation.immediate = instruction
                    .near_branch_target()
                    .wrapping_sub(instruction.next_ip());
            }
            OpKind::FarBranch16 | OpKind::FarBranch32 => {
                let offset = if instruction.op_kind(operand) == OpKind::FarBranch16 {
                    instruction.far_branch16().into()
                } else {
                    instruction.far_branch32()
                };
                operation.immediate =
                    u64::from(instruction.far_branch_selector()) << 48 | u64::from(offset);
            }
            _ if has_immediate => {}
            _ => {
                operation.immediate = instruction.try_immediate(operand).unwrap_or(0);
                has_immediate = true;
            }
        }
    }
    operation
}

fn segment(instruction: &Instruction, size: CodeSize) -> u8 {
    let segment = instruction.memory_segment();
    if size != CodeSize::Bits64 {
        return number(segment);
    }
    // Overrides with other segments are ignored; what is left of SS is that
    // its faults are #SS.
    match instruction.segment_prefix() {
        Register::FS | Register::GS => number(instruction.segment_prefix()),
        _ => match instruction.memory_base() {
            Register::RSP | Register::RBP | Register::ESP | Register::EBP => {
                SegmentRegister::Ss as u8
            }
            _ => SegmentRegister::Ds as u8,
        },
    }
}

fn memory(instruction: &Instruction, size: CodeSize, operation: &mut Operation) {
    let (base, index) = (instruction.memory_base(), instruction.memory_index());
    operation.segment = segment(instruction, size);
    operation.checks_segment = size != CodeSize::Bits64;
    let address_bytes = match (base, index) {
        (Register::None, Register::None) => instruction.memory_displ_size() as usize,
        (Register::None, index) => index.size(),
        (base, _) => base.size(),
    };
    operation.address_shift = address_shift(address_bytes);
    if instruction.is_ip_rel_memory_operand() {
        operation.base = RIP_BASE;
        operation.displacement = instruction
            .ip_rel_memory_address()
            .wrapping_sub(instruction.next_ip());
        return;
    }
    operation.displacement = instruction.memory_displacement64();
    if base != Register::None {
        operation.base = number(base);
    }
    if index != Register::None {
        operation.index = number(index);
        operation.scale = instruction.memory_index_scale().trailing_zeros() as u8;
    }
}

/// The implicit operands of string instructions.
fn string(instruction: &Instruction, size: CodeSize, address: usize, operation: &mut Operation) {
    operation.address_shift = address_shift(address);
    operation.segment = match size {
        CodeSize::Bits64 => match instruction.segment_prefix() {
            prefix @ (Register::FS | Register::GS) => number(prefix),
            _ => SegmentRegister::Ds as u8,
        },
        _ => match instruction.segment_prefix() {
            Register::None => SegmentRegister::Ds as u8,
            prefix => number(prefix),
        },
    };
    operation.checks_segment = size != CodeSize::Bits64;
    operation.width = instruction.memory_size().size() as u8;
    if instruction.has_rep_prefix() {
        operation.prefixes |= prefix::REP;
    }
    if instruction.has_repne_prefix() {
        operation.prefixes |= prefix::REPNE;
    }
}
