//! The forms of x87 instructions, which run on the host's x87.

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::super::encoding::Encoding;
use super::{Form, Memory};
use crate::exec::x87::opcode;
use crate::native::{self, MemoryAccess};

/// Control instructions that can be copied; None if it is none of them.
pub(super) fn control<'a>(instruction: &Instruction, bytes: &'a [u8]) -> Option<Form<'a>> {
    use Mnemonic::*;
    let store = |size| Form::X87 {
        encoding: Encoding::of(bytes),
        memory: Some(Memory {
            size,
            write: true,
            alignment: 1,
        }),
        noted: None,
    };
    let bare = |noted| Form::X87 {
        encoding: None,
        memory: None,
        noted,
    };
    Some(match instruction.mnemonic() {
        Fnstcw => store(2),
        Fnstsw if instruction.op0_kind() == OpKind::Memory => store(2),
        // No exception is pending while all of them are masked, and that is
        // looked at when the registers are loaded.
        Fnstsw | Fnclex | Wait => bare(None),
        Fnop => bare(Some(opcode(bytes) & 0x7ff)),
        Fldcw | Fninit | Fneni | Fndisi | Fnsetpm | Fnstenv | Fldenv | Fnsave | Frstor => {
            Form::Interpret
        }
        _ => return None,
    })
}

/// Computation; `noted` is its opcode, if it shows in the state.
pub(super) fn plain<'a>(bytes: &'a [u8], form: &native::Form, noted: Option<u16>) -> Form<'a> {
    let memory = match form.access {
        MemoryAccess::None => None,
        access => Some(Memory {
            size: form.size.into(),
            write: access == MemoryAccess::Write,
            alignment: 1,
        }),
    };
    let encoding = memory.and_then(|_| Encoding::of(bytes));
    if memory.is_some() && encoding.is_none() {
        return Form::Interpret;
    }
    Form::X87 {
        encoding,
        memory,
        noted,
    }
}

/// Whether the interpreter needs the x87 registers for an instruction.
pub(in crate::translate) fn touches_x87(instruction: &Instruction) -> bool {
    use iced_x86::CpuidFeature as F;
    instruction.is_invalid()
        || instruction.cpuid_features().iter().any(|feature| {
            matches!(
                feature,
                F::FPU
                    | F::FPU287
                    | F::FPU387
                    | F::MMX
                    | F::FXSR
                    | F::XSAVE
                    | F::XSAVEC
                    | F::XSAVEOPT
                    | F::XSAVES
                    | F::D3NOW
                    | F::D3NOWEXT
            )
        })
        || (0..instruction.op_count()).any(|n| {
            instruction.op_kind(n) == OpKind::Register && instruction.op_register(n).is_mm()
        })
}
