//! Which arithmetic flags an instruction reads and writes. From this the
//! emitter knows where the guest's flags may be lost.

use iced_x86::{FlowControl, Instruction, Mnemonic, OpKind, RflagsBits};

use crate::cpu::rflags::ARITHMETIC;

/// The arithmetic flags an instruction reads, and those it certainly writes.
pub(crate) fn flags(instruction: &Instruction) -> (u16, u16) {
    const ALL: u16 = ARITHMETIC as u16;
    match instruction.flow_control() {
        FlowControl::Next
        | FlowControl::ConditionalBranch
        | FlowControl::UnconditionalBranch
        | FlowControl::IndirectBranch
        | FlowControl::Return
        | FlowControl::Call
        | FlowControl::IndirectCall => {}
        // Whatever handles it may see them.
        _ => return (ALL, 0),
    }
    let mut read = places(instruction.rflags_read());
    let modified = places(instruction.rflags_modified());
    use Mnemonic::*;
    let written = match instruction.mnemonic() {
        // A count of zero writes none.
        Shl | Shr | Sar | Sal | Rol | Ror | Rcl | Rcr | Shld | Shrd => {
            let last = instruction.op_count() - 1;
            let wide = instruction.op_count() > 0
                && (instruction.op0_register().is_gpr64()
                    || instruction.op0_kind() == OpKind::Memory
                        && instruction.memory_size().size() == 8);
            let mask = if wide { 63 } else { 31 };
            let counted = instruction.op_kind(last) == OpKind::Immediate8
                && instruction.immediate8() & mask != 0;
            if counted {
                modified
            } else {
                // Then they pass through.
                read |= modified;
                0
            }
        }
        _ if is_repeated(instruction) => {
            read |= modified;
            0
        }
        // What is undefined is what the host makes of it.
        _ => modified,
    };
    (read, written)
}

fn is_repeated(instruction: &Instruction) -> bool {
    instruction.is_string_instruction()
        && (instruction.has_rep_prefix() || instruction.has_repne_prefix())
}

/// iced's flag bits at their places in RFLAGS.
fn places(bits: u32) -> u16 {
    use crate::cpu::rflags::{AF, CF, OF, PF, SF, ZF};
    [
        (RflagsBits::CF, CF),
        (RflagsBits::PF, PF),
        (RflagsBits::AF, AF),
        (RflagsBits::ZF, ZF),
        (RflagsBits::SF, SF),
        (RflagsBits::OF, OF),
    ]
    .iter()
    .filter(|(bit, _)| bits & bit != 0)
    .fold(0, |all, (_, place)| all | *place as u16)
}
