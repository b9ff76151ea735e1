//! An instruction taken apart, so that it can be written again with other
//! registers and another memory operand.

use super::assembler::{Opcode, Vex};

/// The parts of an instruction with a ModRM byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Encoding<'a> {
    pub opcode: Opcode,
    /// The reg field, with its extension.
    pub reg: u8,
    /// The register in rm, if it is one.
    pub rm: Option<u8>,
    /// A REX prefix was there: byte registers 4 to 7 are SPL to DIL.
    pub has_rex: bool,
    pub immediate: &'a [u8],
}

impl<'a> Encoding<'a> {
    /// Takes apart the bytes of a valid instruction that has a ModRM byte.
    /// None for encodings the translator does not know: EVEX, XOP.
    pub(super) fn of(bytes: &'a [u8]) -> Option<Self> {
        let mut opcode = Opcode::default();
        let mut at = 0;
        let mut rex = 0;
        loop {
            match *bytes.get(at)? {
                0x66 => opcode.operand_size = true,
                prefix @ (0xf2 | 0xf3) => opcode.repeat = Some(prefix),
                0xf0 => opcode.lock = true,
                0x2e | 0x36 | 0x3e | 0x26 | 0x64 | 0x65 | 0x67 => {}
                _ => break,
            }
            at += 1;
        }
        if bytes.get(at)? & 0xf0 == 0x40 {
            rex = bytes[at];
            at += 1;
        }
        let (mut r, mut b) = (rex >> 2 & 1, rex & 1);
        opcode.wide = rex & 8 != 0;
        match *bytes.get(at)? {
            0xc5 => {
                let second = *bytes.get(at + 1)?;
                r = !second >> 7;
                b = 0;
                opcode.map = 1;
                opcode.vex = Some(vex(second));
                at += 2;
            }
            0xc4 => {
                let (second, third) = (*bytes.get(at + 1)?, *bytes.get(at + 2)?);
                r = !second >> 7;
                b = !second >> 5 & 1;
                opcode.map = second & 0x1f;
                opcode.wide = third >> 7 != 0;
                opcode.vex = Some(vex(third));
                at += 3;
            }
            0x62 | 0x8f => return None,
            0x0f => {
                at += 1;
                opcode.map = match *bytes.get(at)? {
                    0x38 => 2,
                    0x3a => 3,
                    _ => 1,
                };
                at += usize::from(opcode.map > 1);
            }
            _ => {}
        }
        if opcode.map > 3 {
            return None;
        }
        opcode.byte = *bytes.get(at)?;
        let modrm = *bytes.get(at + 1)?;
        at += 2;
        let (mode, rm) = (modrm >> 6, modrm & 7);
        if mode != 3 {
            let mut base = rm;
            if rm == 4 {
                base = bytes.get(at)? & 7;
                at += 1;
            }
            at += match mode {
                0 if base == 5 => 4,
                0 => 0,
                1 => 1,
                _ => 4,
            };
        }
        Some(Self {
            opcode,
            reg: modrm >> 3 & 7 | r << 3,
            rm: (mode == 3).then_some(rm | b << 3),
            has_rex: rex != 0,
            immediate: bytes.get(at..)?,
        })
    }
}

fn vex(last: u8) -> Vex {
    Vex {
        register: !last >> 3 & 15,
        long: last & 4 != 0,
        prefix: last & 3,
    }
}
