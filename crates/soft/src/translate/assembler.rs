//! Writes x86-64 machine code for the host.
//!
//! The few encodings that translated code is made of, byte by byte: a general
//! encoder would take longer than decoding, interpreting and translating the
//! instruction together.

/// A host register by its encoding.
pub(super) type Register = u8;

#[allow(missing_docs)]
pub(super) mod host {
    use super::Register;
    pub const RAX: Register = 0;
    pub const RCX: Register = 1;
    pub const RDX: Register = 2;
    pub const RBX: Register = 3;
    pub const RSP: Register = 4;
    pub const RBP: Register = 5;
    pub const RDI: Register = 7;
    pub const R9: Register = 9;
    pub const R10: Register = 10;
    pub const R11: Register = 11;
}

/// The ModRM operand that may be memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rm {
    Register(Register),
    /// Base, index with its shift, displacement. Without a base the
    /// displacement is an absolute address.
    Memory(Option<Register>, Option<(Register, u8)>, i32),
}

/// Memory at an absolute address.
pub(super) const fn absolute(address: i32) -> Rm {
    Rm::Memory(None, None, address)
}

/// Memory at a register.
pub(super) const fn at(base: Register, displacement: i32) -> Rm {
    Rm::Memory(Some(base), None, displacement)
}

/// VEX fields that do not come from the operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Vex {
    /// The register in vvvv.
    pub register: Register,
    pub long: bool,
    /// 0 none, 1 66, 2 F3, 3 F2.
    pub prefix: u8,
}

/// An instruction but for its operands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Opcode {
    pub lock: bool,
    /// 66.
    pub operand_size: bool,
    /// F2 or F3.
    pub repeat: Option<u8>,
    pub wide: bool,
    /// 0 one byte, 1 0F, 2 0F38, 3 0F3A.
    pub map: u8,
    pub byte: u8,
    /// A REX prefix is needed even without a bit in it: SPL, BPL, SIL, DIL.
    pub force_rex: bool,
    pub vex: Option<Vex>,
}

/// An opcode of one byte, 64 bits wide.
pub(super) const fn wide(byte: u8) -> Opcode {
    Opcode {
        wide: true,
        ..narrow(byte)
    }
}

/// An opcode of one byte, 32 bits wide.
pub(super) const fn narrow(byte: u8) -> Opcode {
    Opcode {
        lock: false,
        operand_size: false,
        repeat: None,
        wide: false,
        map: 0,
        byte,
        force_rex: false,
        vex: None,
    }
}

/// An opcode behind 0F.
pub(super) const fn two(byte: u8) -> Opcode {
    Opcode {
        map: 1,
        ..narrow(byte)
    }
}

/// A place to jump to, known or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Label(usize);

/// Code under construction, at a fixed address.
pub(super) struct Assembler {
    pub bytes: Vec<u8>,
    start: u32,
    labels: Vec<Option<u32>>,
    fixups: Vec<(usize, Label)>,
}

impl Assembler {
    pub(super) fn new(start: u32) -> Self {
        Self {
            bytes: Vec::with_capacity(1024),
            start,
            labels: Vec::new(),
            fixups: Vec::new(),
        }
    }

    /// Where the next byte goes.
    pub(super) fn here(&self) -> u32 {
        self.start + self.bytes.len() as u32
    }

    pub(super) fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    pub(super) fn bind(&mut self, label: Label) {
        self.labels[label.0] = Some(self.here());
    }

    /// Fills in every jump to a label. All labels must be bound.
    pub(super) fn finish(mut self) -> Vec<u8> {
        for (at, label) in std::mem::take(&mut self.fixups) {
            let target = self.labels[label.0].unwrap_or(self.start);
            self.patch(at, target);
        }
        self.bytes
    }

    fn patch(&mut self, at: usize, target: u32) {
        let from = self.start + at as u32 + 4;
        let distance = target.wrapping_sub(from);
        self.bytes[at..at + 4].copy_from_slice(&distance.to_le_bytes());
    }

    pub(super) fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// An instruction with a ModRM byte and `immediate`.
    pub(super) fn op(&mut self, opcode: Opcode, reg: Register, rm: Rm, immediate: &[u8]) {
        if opcode.lock {
            self.bytes.push(0xf0);
        }
        let (x, b) = match rm {
            Rm::Register(register) => (0, register >> 3),
            Rm::Memory(base, index, _) => (
                index.map_or(0, |(index, _)| index >> 3),
                base.map_or(0, |base| base >> 3),
            ),
        };
        let r = reg >> 3;
        if let Some(vex) = opcode.vex {
            self.vex(opcode, vex, [r, x, b]);
        } else {
            if opcode.operand_size {
                self.bytes.push(0x66);
            }
            if let Some(repeat) = opcode.repeat {
                self.bytes.push(repeat);
            }
            let rex = 0x40 | u8::from(opcode.wide) << 3 | r << 2 | x << 1 | b;
            if rex != 0x40 || opcode.force_rex {
                self.bytes.push(rex);
            }
            match opcode.map {
                0 => {}
                1 => self.bytes.push(0x0f),
                2 => self.raw(&[0x0f, 0x38]),
                _ => self.raw(&[0x0f, 0x3a]),
            }
        }
        self.bytes.push(opcode.byte);
        self.modrm(reg & 7, rm);
        self.raw(immediate);
    }

    fn vex(&mut self, opcode: Opcode, vex: Vex, [r, x, b]: [u8; 3]) {
        let last = (!vex.register & 15) << 3 | u8::from(vex.long) << 2 | vex.prefix;
        if opcode.map == 1 && !opcode.wide && x == 0 && b == 0 {
            self.raw(&[0xc5, (r ^ 1) << 7 | last]);
        } else {
            self.raw(&[
                0xc4,
                (r ^ 1) << 7 | (x ^ 1) << 6 | (b ^ 1) << 5 | opcode.map,
                u8::from(opcode.wide) << 7 | last,
            ]);
        }
    }

    fn modrm(&mut self, reg: u8, rm: Rm) {
        let reg = reg << 3;
        match rm {
            Rm::Register(register) => self.bytes.push(0xc0 | reg | register & 7),
            Rm::Memory(None, index, displacement) => {
                let (index, scale) = index.unwrap_or((4, 0));
                self.raw(&[reg | 4, scale << 6 | (index & 7) << 3 | 5]);
                self.raw(&displacement.to_le_bytes());
            }
            Rm::Memory(Some(base), index, displacement) => {
                let small = i8::try_from(displacement);
                let mode = match small {
                    Ok(0) if base & 7 != 5 => 0,
                    Ok(_) => 0x40,
                    Err(_) => 0x80,
                };
                if index.is_some() || base & 7 == 4 {
                    let (index, scale) = index.unwrap_or((4, 0));
                    self.raw(&[mode | reg | 4, scale << 6 | (index & 7) << 3 | base & 7]);
                } else {
                    self.bytes.push(mode | reg | base & 7);
                }
                match (mode, small) {
                    (0, _) => {}
                    (0x40, Ok(small)) => self.bytes.push(small as u8),
                    _ => self.raw(&displacement.to_le_bytes()),
                }
            }
        }
    }

    /// MOV of 64 bits into a register.
    pub(super) fn load(&mut self, to: Register, from: Rm) {
        self.op(wide(0x8b), to, from, &[]);
    }

    /// MOV of 32 bits into a register.
    pub(super) fn load32(&mut self, to: Register, from: Rm) {
        self.op(narrow(0x8b), to, from, &[]);
    }

    /// MOV of 64 bits out of a register.
    pub(super) fn store(&mut self, to: Rm, from: Register) {
        self.op(wide(0x89), from, to, &[]);
    }

    /// LEA, 64 bits.
    pub(super) fn lea(&mut self, to: Register, address: Rm) {
        self.op(wide(0x8d), to, address, &[]);
    }

    /// MOV r32, imm32.
    pub(super) fn set32(&mut self, to: Register, value: u32) {
        if to >= 8 {
            self.bytes.push(0x41);
        }
        self.bytes.push(0xb8 | to & 7);
        self.raw(&value.to_le_bytes());
    }

    /// MOV r64, imm64.
    pub(super) fn set64(&mut self, to: Register, value: u64) {
        if let Ok(small) = u32::try_from(value) {
            return self.set32(to, small);
        }
        self.raw(&[0x48 | to >> 3, 0xb8 | to & 7]);
        self.raw(&value.to_le_bytes());
    }

    /// CMP DWORD [address], 0.
    pub(super) fn test_dword(&mut self, address: i32) {
        self.op(narrow(0x83), 7, absolute(address), &[0]);
    }

    /// JMP to an address.
    pub(super) fn jump(&mut self, target: u32) {
        self.bytes.push(0xe9);
        self.relative(target);
    }

    /// CALL an address.
    pub(super) fn call(&mut self, target: u32) {
        self.bytes.push(0xe8);
        self.relative(target);
    }

    /// JMP to what lies in memory.
    pub(super) fn jump_memory(&mut self, target: Rm) {
        self.op(narrow(0xff), 4, target, &[]);
    }

    fn relative(&mut self, target: u32) {
        let at = self.bytes.len();
        self.raw(&[0; 4]);
        self.patch(at, target);
    }

    /// JMP to a label.
    pub(super) fn jump_to(&mut self, label: Label) {
        self.bytes.push(0xe9);
        self.fixups.push((self.bytes.len(), label));
        self.raw(&[0; 4]);
    }

    /// Jcc to a label. The answer is where the distance lies, for patching.
    pub(super) fn jump_if(&mut self, condition: u8, label: Label) -> u32 {
        self.raw(&[0x0f, 0x80 | condition]);
        self.fixups.push((self.bytes.len(), label));
        self.raw(&[0; 4]);
        self.here() - 4
    }

    /// JRCXZ over what `skipped` writes, at most 127 bytes.
    pub(super) fn unless_rcx_zero(&mut self, skipped: impl FnOnce(&mut Self)) {
        self.raw(&[0xe3, 0]);
        let from = self.bytes.len();
        skipped(self);
        let distance = self.bytes.len() - from;
        debug_assert!(distance < 128);
        self.bytes[from - 1] = distance as u8;
    }
}

/// Condition codes.
pub(super) mod condition {
    pub const EQUAL: u8 = 4;
    pub const NOT_EQUAL: u8 = 5;
    pub const BELOW_OR_EQUAL: u8 = 6;
    pub const ABOVE: u8 = 7;
    pub const ABOVE_OR_EQUAL: u8 = 3;
}

#[cfg(test)]
#[path = "assembler_test.rs"]
mod test;
