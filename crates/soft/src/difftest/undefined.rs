//! What the manuals leave undefined, and so need not be equal.

use super::Outcome;
use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, RflagsBits};

/// RFLAGS bits that `instruction` leaves undefined, as a mask in RFLAGS. The
/// table of undefined flags is SDM vol. 1, appendix A.2, by way of iced's;
/// added to it is what depends on a count.
pub fn flags(instruction: &Instruction) -> u64 {
    use Mnemonic::*;
    const CF: u64 = 1;
    const AF: u64 = 1 << 4;
    const OF: u64 = 1 << 11;
    let mut mask = rflags(instruction.rflags_undefined());
    match instruction.mnemonic() {
        // SDM vol. 2, SAL/SAR/SHL/SHR: OF is defined for counts of 1 only, CF
        // not for counts of the operand's size or more, AF never.
        Shl | Sal | Shr | Sar => mask |= OF | CF | AF,
        // SDM vol. 2, RCL/RCR/ROL/ROR: OF is defined for counts of 1 only.
        Rcl | Rcr | Rol | Ror => mask |= OF,
        // SDM vol. 2, SHLD and SHRD: as the shifts, and everything for a count
        // larger than the operand.
        Shld | Shrd => mask |= OF | AF,
        _ => {}
    }
    mask
}

/// Whether a result register is undefined: nothing of the case is compared but
/// that it does not fault.
///
/// SDM vol. 2: SHLD and SHRD of 16 bits by more than 16. BSF and BSR of zero
/// leave the destination as it is on every processor there is (AMD documents
/// it), so they are compared.
pub fn result(instruction: &Instruction, rcx: u64) -> bool {
    match instruction.mnemonic() {
        Mnemonic::Shld | Mnemonic::Shrd if instruction.op1_register().size() == 2 => {
            let count = match instruction.op2_kind() {
                iced_x86::OpKind::Register => rcx as u8,
                _ => instruction.immediate8(),
            };
            count & 31 > 16
        }
        _ => false,
    }
}

/// The instructions of a sequence so far: one that reads what an earlier one
/// left undefined has no defined result.
#[derive(Debug, Default)]
pub struct Chain {
    undefined: u64,
}

impl Chain {
    /// Whether an instruction can follow; if so, it is counted in.
    pub fn accepts(&mut self, bytes: &[u8]) -> bool {
        use Mnemonic::*;
        let instruction = Decoder::with_ip(64, bytes, 0, DecoderOptions::NONE).decode();
        let reads = rflags(instruction.rflags_read());
        if reads & self.undefined != 0 || matches!(instruction.mnemonic(), Shld | Shrd) {
            return false;
        }
        let may_write_nothing = matches!(
            instruction.mnemonic(),
            Shl | Sal | Shr | Sar | Rol | Ror | Rcl | Rcr
        ) || instruction.is_string_instruction();
        if !may_write_nothing {
            self.undefined &= !rflags(instruction.rflags_modified());
        }
        self.undefined |= flags(&instruction);
        true
    }
}

/// Bits of MXCSR that are not compared after a case that ended in `vector`.
///
/// Known differences, not undefined results, and only when an exception is
/// unmasked and delivered:
///
/// * With an unmasked overflow or underflow (SDM vol. 1, 11.5.2.4, 11.5.2.5)
///   PE says whether the result with an unbounded exponent was inexact; ours
///   may say so when it was exact.
/// * DPPS and DPPD multiply, then add, and stop where the exception is; ours
///   has the flags of all steps.
pub fn mxcsr(instructions: &[Instruction], vector: Option<u8>, mxcsr: u32) -> u32 {
    use Mnemonic::{Dppd, Dpps, Vdppd, Vdpps};
    const OVERFLOW_UNDERFLOW: u32 = 0x18;
    const PRECISION: u32 = 0x20;
    if vector != Some(19) {
        0
    } else if instructions
        .iter()
        .any(|i| matches!(i.mnemonic(), Dppd | Dpps | Vdppd | Vdpps))
    {
        0x3f
    } else if mxcsr & !(mxcsr >> 7) & OVERFLOW_UNDERFLOW != 0 {
        PRECISION
    } else {
        0
    }
}

/// The case switched on AMD's misaligned mode (MXCSR bit 17, APM vol. 1,
/// 4.2.2), which the host has and a guest is not offered.
pub fn misaligned_mode(instructions: &[Instruction], host: &Outcome) -> bool {
    let loads = |i: &Instruction| matches!(i.mnemonic(), Mnemonic::Ldmxcsr | Mnemonic::Vldmxcsr);
    instructions.iter().any(loads) && host.state.fpu.mxcsr >> 17 & 1 != 0
}

/// iced's flags as RFLAGS bits.
fn rflags(bits: u32) -> u64 {
    [
        (RflagsBits::CF, 0),
        (RflagsBits::PF, 2),
        (RflagsBits::AF, 4),
        (RflagsBits::ZF, 6),
        (RflagsBits::SF, 7),
        (RflagsBits::OF, 11),
    ]
    .iter()
    .filter(|(bit, _)| bits & bit != 0)
    .map(|(_, position)| 1 << position)
    .sum()
}
