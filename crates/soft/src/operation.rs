//! A decoded instruction: a function and its operands, ready to run.

use crate::cpu::Cpu;
use crate::trap::Exec;

/// Executes one operation, RIP included. On an error nothing has changed,
/// unless [`crate::trap::Trap`] says so.
pub(crate) type Handler = fn(&mut Cpu, &Operation) -> Exec;

/// Register number for "none": it reads as zero.
pub(crate) const NO_REGISTER: u8 = 16;
/// Base register number for RIP.
pub(crate) const RIP_BASE: u8 = 17;
/// Segment number for "base 0, no limit".
pub(crate) const NO_SEGMENT: u8 = 6;

/// An instruction with its operands resolved as far as they can be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Operation {
    pub handler: Handler,
    /// Immediate operand, sign-extended to the operand's width; or whatever
    /// the handler wants.
    pub immediate: u64,
    /// Displacement of the memory operand, sign-extended.
    pub displacement: u64,
    /// First register operand: 0 to 15, and 16 to 19 for AH, CH, DH, BH.
    pub first: u8,
    /// Second register operand.
    pub second: u8,
    /// Base register of the memory operand, [`NO_REGISTER`] or [`RIP_BASE`].
    pub base: u8,
    /// Index register of the memory operand, or [`NO_REGISTER`].
    pub index: u8,
    /// The index is shifted left by this.
    pub scale: u8,
    /// Segment of the memory operand, or [`NO_SEGMENT`].
    pub segment: u8,
    /// Bits the effective address loses: 0, 32 or 48.
    pub address_shift: u8,
    /// Bytes of the instruction.
    pub length: u8,
    /// Third register operand (VEX forms).
    pub third: u8,
    /// Bytes per operand, where one handler serves several.
    pub width: u8,
    /// REP, REPNE, LOCK: see the constants.
    pub prefixes: u8,
    /// The segment is checked for its limit and rights: outside 64-bit mode.
    pub checks_segment: bool,
}

/// Bits of [`Operation::prefixes`].
pub(crate) mod prefix {
    pub const REP: u8 = 1;
    pub const REPNE: u8 = 2;
    pub const LOCK: u8 = 4;
    /// Whether a single-step trap follows depends on TF after the instruction
    /// rather than before it.
    pub const NEW_TRAP_FLAG: u8 = 8;
    /// It ends its block only so that an interrupt can be taken: STI, POPF.
    pub const ENABLES_INTERRUPTS: u8 = 16;
}
