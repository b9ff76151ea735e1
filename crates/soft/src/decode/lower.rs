//! From a decoded instruction to an operation.

mod bits;
mod feature;
mod flow;
mod integer;
mod system;

use favo_accel::cpuid::CpuidTable;
use iced_x86::{Instruction, Mnemonic};

use super::operand;
use crate::cpu::{CodeSize, Cpu};
use crate::exec::{system as exec, vector};
use crate::operation::{Handler, Operation};

/// The operation for an instruction, given its bytes. One that the processor
/// does not have becomes #UD when it is executed.
pub(super) fn operation(cpu: &Cpu, instruction: &Instruction, bytes: &[u8]) -> Operation {
    let (cpuid, size) = (&cpu.cpuid, cpu.code_size);
    let mut operation = operand::resolve(instruction, size, exec::undefined);
    let handler = if !feature::available(cpuid, instruction) {
        None
    } else {
        handler(cpuid, instruction, bytes, &mut operation, size)
    };
    operation.handler = match (handler, instruction.mnemonic()) {
        (Some(handler), _) => handler,
        (None, Mnemonic::INVALID | Mnemonic::Ud0 | Mnemonic::Ud1 | Mnemonic::Ud2) => {
            exec::undefined
        }
        (None, mnemonic) => {
            operation.immediate = mnemonic as u64;
            exec::missing
        }
    };
    operation
}

fn handler(
    cpuid: &CpuidTable,
    instruction: &Instruction,
    bytes: &[u8],
    operation: &mut Operation,
    size: CodeSize,
) -> Option<Handler> {
    integer::handler(instruction, operation)
        .or_else(|| flow::handler(instruction, operation))
        .or_else(|| bits::handler(cpuid, instruction, operation))
        .or_else(|| system::handler(instruction, operation, size))
        .or_else(|| vector::prepare(cpuid, instruction, bytes, operation))
}
