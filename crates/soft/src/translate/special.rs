//! Instructions that take more than a copy: division, bit strings in memory,
//! flags on the stack, byte order, selectors, x87.

use super::assembler::{Opcode, Rm, absolute, at, condition, host, narrow, two, wide};
use super::emit::{Cold, Emitter, Noted};
use super::flow::STACK_WRITE;
use super::form::{Memory, number};

impl Emitter<'_> {
    /// An x87 instruction.
    pub(super) fn x87(
        &mut self,
        item: usize,
        encoding: Option<&super::encoding::Encoding<'_>>,
        memory: Option<Memory>,
        noted: Option<u16>,
    ) {
        let (read, written) = super::form::flags(&self.items[item].instruction);
        let offset = self.items[item].offset;
        match (encoding, memory) {
            (Some(encoding), Some(memory)) => {
                let live = self.items[item].live_in;
                if !self.address(item) {
                    return self.interpret(item);
                }
                if noted.is_some() {
                    self.note_operand(item);
                }
                let (resume, checked) = self.check(item, memory, live);
                self.a.op(encoding.opcode, encoding.reg, checked.rm(), &[]);
                self.noted = noted.map(|opcode| Noted { offset, opcode }).or(self.noted);
                self.a.bind(resume);
            }
            _ => {
                self.want_flags(read, written);
                let bytes = self.items[item].bytes;
                self.a.raw(bytes);
                self.noted = noted.map(|opcode| Noted { offset, opcode }).or(self.noted);
            }
        }
    }

    /// The operand's offset is its linear address but for a segment's base.
    fn note_operand(&mut self, item: usize) {
        use iced_x86::Register;
        let segment = self.items[item].instruction.memory_segment();
        let number = (segment as u8).wrapping_sub(Register::ES as u8);
        if matches!(segment, Register::FS | Register::GS) {
            // Take the base off again.
            let base = absolute(self.context.bases + 8 * i32::from(number));
            self.a.load(host::R10, base);
            // NOT R10 changes no flags: -base = not base + 1.
            self.a.op(wide(0xf7), 2, Rm::Register(host::R10), &[]);
            let offset = Rm::Memory(Some(host::R11), Some((host::R10, 0)), 1);
            self.a.lea(host::R11, offset);
            self.context.places.note_operand(&mut self.a, number);
            self.a.load(host::R10, base);
            let linear = Rm::Memory(Some(host::R11), Some((host::R10, 0)), 0);
            self.a.lea(host::R11, linear);
            return;
        }
        self.context.places.note_operand(&mut self.a, number);
    }

    /// BT and its kin in memory: the address of the word the bit lies in, then
    /// the form with a number within that word.
    pub(super) fn bit_in_memory(&mut self, item: usize, extension: u8, long: bool) {
        let instruction = self.items[item].instruction;
        let live = self.items[item].live_in;
        let number = number(instruction.op1_register());
        if !self.address(item) {
            return self.interpret(item);
        }
        self.spare_flags(live);
        let (bits, bytes) = if long { (6, 8) } else { (5, 4) };
        let from = self.read(number, host::R10);
        // MOV; SAR: which word; a 32-bit number is signed, too.
        if long {
            self.a.op(wide(0x8b), host::R10, Rm::Register(from), &[]);
        } else {
            self.a.op(wide(0x63), host::R10, Rm::Register(from), &[]);
        }
        self.a.op(wide(0xc1), 7, Rm::Register(host::R10), &[bits]);
        let scale = if long { 3 } else { 2 };
        let word = Rm::Memory(Some(host::R11), Some((host::R10, scale)), 0);
        if instruction.memory_base().is_gpr32() || instruction.memory_index().is_gpr32() {
            self.a.op(narrow(0x8d), host::R11, word, &[]);
        } else {
            self.a.lea(host::R11, word);
        }
        let memory = Memory {
            size: bytes,
            write: extension != 4,
            alignment: 1,
        };
        let (resume, checked) = self.check(item, memory, live);
        let from = self.read(number, host::R10);
        if from != host::R10 {
            self.a.op(wide(0x8b), host::R10, Rm::Register(from), &[]);
        }
        let mask = (1u8 << bits) - 1;
        self.a.op(narrow(0x83), 4, Rm::Register(host::R10), &[mask]);
        let (read, written) = super::form::flags(&instruction);
        self.want_flags(read, written);
        // BT 0F A3, BTS AB, BTR B3, BTC BB.
        let opcode = Opcode {
            wide: long,
            lock: instruction.has_lock_prefix(),
            ..two(0xa3 + 8 * (extension - 4))
        };
        self.a.op(opcode, host::R10, checked.rm(), &[]);
        self.a.bind(resume);
    }

    /// BSWAP where the register lies in memory, or is RSP.
    pub(super) fn swap_bytes(&mut self, register: u8, long: bool) {
        let own = self.read(register, host::R10);
        if long {
            self.a.raw(&[0x49, 0x0f, 0xc8 | own & 7]);
        } else {
            self.a.raw(&[0x41, 0x0f, 0xc8 | own & 7]);
        }
        if own == host::R10 {
            let home = self.context.places.home(register);
            self.a.store(home, host::R10);
        }
    }

    /// SWAPGS: the base is in the segment, in its copy for addresses, and in
    /// the register it is swapped with.
    pub(super) fn swap_gs(&mut self) {
        let (copy, segment, other) = self.context.places.gs(self.context.bases);
        self.a.load(host::R10, copy);
        self.a.load(host::R11, other);
        self.a.store(other, host::R10);
        self.a.store(copy, host::R11);
        self.a.store(segment, host::R11);
    }

    /// MOV from a segment register.
    pub(super) fn selector(&mut self, register: u8, segment: u8) {
        let from = self.context.places.selector(segment);
        let movzx = two(0xb7);
        match Self::resident(register) {
            Some(own) => self.a.op(movzx, own, from, &[]),
            None => {
                self.a.op(movzx, host::R10, from, &[]);
                let home = self.context.places.home(register);
                self.a.store(home, host::R10);
            }
        }
    }

    /// PUSHFQ: the host's arithmetic flags and the guest's others.
    pub(super) fn push_flags(&mut self, item: usize) {
        let live = self.items[item].live_in;
        self.want_flags(u16::MAX, 0);
        // PUSHFQ; POP R10. What is not arithmetic is the host's: replace it.
        self.a.raw(&[0x9c, 0x41, 0x5a]);
        self.a.load(host::R11, absolute(self.context.system_flags));
        let fixed = crate::cpu::rflags::FIXED as i32;
        let sum = Rm::Memory(
            Some(host::R10),
            Some((host::R11, 0)),
            fixed - self.context.host_flags,
        );
        self.a.lea(host::R10, sum);
        let target = self.context.places.target();
        self.a.store(target, host::R10);
        let (resume, checked) = self.stack(item, -8, STACK_WRITE, live);
        let free = checked.free();
        self.a.load(free, target);
        self.a.store(checked.rm(), free);
        self.move_stack(-8);
        if let Some(resume) = resume {
            self.a.bind(resume);
        }
    }

    /// Only quotients that certainly fit; the interpreter does the others.
    pub(super) fn divide(&mut self, item: usize, signed: bool, long: bool) {
        let instruction = self.items[item].instruction;
        let slow = self.a.label();
        let mut resume = None;
        let divisor = if instruction.op0_kind() == iced_x86::OpKind::Memory {
            let memory = Memory {
                size: if long { 8 } else { 4 },
                write: false,
                alignment: 1,
            };
            let Some((label, checked)) = self.operand(item, memory) else {
                self.a.bind(slow);
                return self.interpret(item);
            };
            resume = label;
            if long {
                self.a.load(host::R10, checked.rm());
            } else {
                self.a.load32(host::R10, checked.rm());
            }
            host::R10
        } else {
            self.read(number(instruction.op0_register()), host::R10)
        };
        // Every flag is undefined afterwards.
        self.aside = false;
        let of = |byte| if long { wide(byte) } else { narrow(byte) };
        if signed {
            // RDX must be RAX's sign, and the divisor neither 0 nor -1.
            self.a.op(of(0x8d), host::R11, at(divisor, 1), &[]);
            self.a.op(of(0x83), 7, Rm::Register(host::R11), &[1]);
            self.a.jump_if(condition::BELOW_OR_EQUAL, slow);
            self.a.op(of(0x8b), host::R11, Rm::Register(host::RAX), &[]);
            let shift = if long { 63 } else { 31 };
            self.a.op(of(0xc1), 7, Rm::Register(host::R11), &[shift]);
            self.a.op(of(0x3b), host::R11, Rm::Register(host::RDX), &[]);
            self.a.jump_if(condition::NOT_EQUAL, slow);
        } else {
            self.a.op(of(0x3b), host::RDX, Rm::Register(divisor), &[]);
            self.a.jump_if(condition::ABOVE_OR_EQUAL, slow);
        }
        let extension = if signed { 7 } else { 6 };
        self.a.op(of(0xf7), extension, Rm::Register(divisor), &[]);
        let resume = resume.unwrap_or_else(|| self.a.label());
        self.cold.push(Cold::Interpret {
            from: slow,
            resume,
            item,
            aside: false,
            noted: self.noted,
        });
        self.a.bind(resume);
    }
}
