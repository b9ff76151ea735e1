//! CF, PF, AF, ZF, SF and OF, kept as what they follow from.
//!
//! Nearly every instruction sets all six and nearly none is looked at, so an
//! operation stores two words and a reader computes the one flag it wants:
//!
//! * `result`: the result, sign-extended to 64 bits. ZF, SF and PF follow.
//! * `aux`: the carries out of each bit, with the operand's top bit moved to
//!   bit 63. CF is bit 63, OF is bit 63 xor bit 62, AF is bit 3. Bit 0 and
//!   bits 15:8 are corrections for combinations no result has (POPF, SAHF):
//!   SF is the result's sign xor bit 0, PF is the parity of the result's low
//!   byte xor bits 15:8.
//!
//! One form for all widths and all operations; no table of kinds.

use crate::cpu::rflags::{AF, ARITHMETIC, CF, OF, PF, SF, ZF};

const AUX_CARRY: u64 = 1 << 63;
const AUX_OVERFLOW: u64 = 1 << 62;
const AUX_ADJUST: u64 = 1 << 3;
const AUX_KEPT: u64 = AUX_CARRY | AUX_OVERFLOW | AUX_ADJUST;

/// The six arithmetic flags.
#[derive(Clone, Copy, Debug, Default)]
pub struct ArithmeticFlags {
    result: u64,
    aux: u64,
}

/// `value`, of `bits` bits, sign-extended.
#[inline(always)]
const fn sign_extend(value: u64, bits: u32) -> u64 {
    let shift = 64 - bits;
    ((value << shift) as i64 >> shift) as u64
}

/// Carries out of each bit, moved so that the top bit's is bit 63.
#[inline(always)]
const fn place(carries: u64, bits: u32) -> u64 {
    ((carries << (64 - bits)) & (AUX_CARRY | AUX_OVERFLOW)) | (carries & AUX_ADJUST)
}

impl ArithmeticFlags {
    /// After an addition of `a` and `b` (and a carry) gave `result`, all
    /// `bits` wide.
    #[inline(always)]
    pub const fn after_add(a: u64, b: u64, result: u64, bits: u32) -> Self {
        let carries = (a & b) | ((a | b) & !result);
        Self {
            result: sign_extend(result, bits),
            aux: place(carries, bits),
        }
    }

    /// After a subtraction of `b` (and a borrow) from `a` gave `result`.
    #[inline(always)]
    pub const fn after_sub(a: u64, b: u64, result: u64, bits: u32) -> Self {
        let borrows = (!a & b) | ((!a | b) & result);
        Self {
            result: sign_extend(result, bits),
            aux: place(borrows, bits),
        }
    }

    /// After AND, OR, XOR or TEST: CF, OF and AF are clear.
    #[inline(always)]
    pub const fn after_logic(result: u64, bits: u32) -> Self {
        Self {
            result: sign_extend(result, bits),
            aux: 0,
        }
    }

    /// This, with CF as it was in `before`: INC and DEC.
    #[inline(always)]
    pub const fn with_carry_of(self, before: Self) -> Self {
        // OF is the difference of bits 63 and 62: move both.
        let flip = (self.aux ^ before.aux) & AUX_CARRY;
        Self {
            result: self.result,
            aux: self.aux ^ flip ^ (flip >> 1),
        }
    }

    /// ZF, SF and PF from `result`, the others as given: shifts, rotates by
    /// way of [`ArithmeticFlags::with_carry_overflow`], multiplications.
    #[inline(always)]
    pub const fn from_result(result: u64, bits: u32, carry: bool, overflow: bool) -> Self {
        Self {
            result: sign_extend(result, bits),
            aux: carry_overflow(carry, overflow),
        }
    }

    /// This, with CF and OF replaced: rotates, CLC, STC, CMC.
    #[inline(always)]
    pub const fn with_carry_overflow(self, carry: bool, overflow: bool) -> Self {
        let aux = self.aux & !(AUX_CARRY | AUX_OVERFLOW);
        Self {
            result: self.result,
            aux: aux | carry_overflow(carry, overflow),
        }
    }

    /// CF.
    #[inline(always)]
    pub const fn carry(self) -> bool {
        self.aux & AUX_CARRY != 0
    }

    /// ZF.
    #[inline(always)]
    pub const fn zero(self) -> bool {
        self.result == 0
    }

    /// SF.
    #[inline(always)]
    pub const fn sign(self) -> bool {
        (self.result >> 63) ^ (self.aux & 1) != 0
    }

    /// OF.
    #[inline(always)]
    pub const fn overflow(self) -> bool {
        (self.aux ^ (self.aux << 1)) & AUX_CARRY != 0
    }

    /// PF.
    #[inline(always)]
    pub const fn parity(self) -> bool {
        ((self.result ^ (self.aux >> 8)) as u8).count_ones() & 1 == 0
    }

    /// AF.
    #[inline(always)]
    pub const fn adjust(self) -> bool {
        self.aux & AUX_ADJUST != 0
    }

    /// All six at their places in RFLAGS.
    pub const fn bits(self) -> u64 {
        (if self.carry() { CF } else { 0 })
            | (if self.parity() { PF } else { 0 })
            | (if self.adjust() { AF } else { 0 })
            | (if self.zero() { ZF } else { 0 })
            | (if self.sign() { SF } else { 0 })
            | (if self.overflow() { OF } else { 0 })
    }

    /// The six flags of an RFLAGS value; its other bits are ignored.
    pub const fn from_bits(rflags: u64) -> Self {
        let rflags = rflags & ARITHMETIC;
        let result = if rflags & ZF != 0 { 0 } else { 1 };
        let sign = if rflags & SF != 0 { 1 } else { 0 };
        // The parity of `result` alone is even exactly when it is 0.
        let parity_differs = (rflags & PF != 0) != (result == 0);
        let adjust = if rflags & AF != 0 { AUX_ADJUST } else { 0 };
        Self {
            result,
            aux: carry_overflow(rflags & CF != 0, rflags & OF != 0)
                | adjust
                | sign
                | if parity_differs { 1 << 8 } else { 0 },
        }
    }
}

#[inline(always)]
const fn carry_overflow(carry: bool, overflow: bool) -> u64 {
    (if carry { AUX_CARRY } else { 0 }) | (if carry != overflow { AUX_OVERFLOW } else { 0 })
}

const _: () = assert!(
    AUX_KEPT & 0xff01 == 0,
    "corrections and carries must not meet"
);

#[cfg(test)]
#[path = "flags_test.rs"]
mod test;
