//! One block's host code: what every instruction has in common.
//!
//! The order within an instruction is always the same: compute the address,
//! check it (which may leave for the interpreter, with nothing changed yet),
//! then execute. The check changes the host's flags; where the guest's are
//! still wanted they are put aside first and taken back when an instruction
//! touches them or the block is left.

use super::assembler::{
    Assembler, Label, Register, Rm, absolute, at, condition, host, narrow, wide,
};
use super::form::{Fields, Memory, number};
use super::thunk::{Places, Thunks, X87};
use super::unit::Item;
use crate::mmu::{ENTRIES, LINE_BITS, Line};

/// Where translated code finds what it needs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Context {
    pub places: Places,
    pub thunks: Thunks,
    /// The lines of the translation table of this mode.
    pub lines: i32,
    /// The keys and the codes of the jump table of this mode.
    pub keys: i32,
    pub codes: i32,
    /// The mask that makes an index of a jump's target.
    pub mask: i32,
    /// The word that says that somebody wants attention.
    pub attention: i32,
    /// Segment bases.
    pub bases: i32,
    /// RFLAGS without the arithmetic flags.
    pub system_flags: i32,
    /// What the host's RFLAGS are without them.
    pub host_flags: i32,
    /// Whether tests of stack accesses may be put together.
    pub windows: bool,
}

/// What is written behind the block.
pub(super) enum Cold {
    /// Interpret `item` and go on at `resume`.
    Interpret {
        from: Label,
        resume: Label,
        item: usize,
        aside: bool,
        noted: Option<Noted>,
    },
    /// Load vector or x87 registers.
    Load {
        from: Label,
        resume: Label,
        load: u32,
        offset: u32,
        aside: bool,
        noted: Option<Noted>,
    },
    /// Leave, to go on at an offset.
    Poll { from: Label, offset: u32 },
    /// Leave by an edge that is not linked.
    Edge { from: Label, edge: u32, offset: u32 },
    /// Look for the stack's page in the table, and retry.
    Window {
        from: Label,
        retry: Label,
        low: i32,
        span: u32,
        edge: u32,
        aside: bool,
    },
}

/// The last x87 instruction, where that is not written down yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Noted {
    pub offset: u32,
    pub opcode: u16,
}

/// A jump inside the page, to be linked when its target is there.
#[derive(Clone, Copy, Debug)]
pub(super) struct EdgeRequest {
    /// Where the distance lies.
    pub site: u32,
    /// Where it leads while it is not linked.
    pub stub: u32,
    /// Offset of the target in the page.
    pub offset: u32,
    /// The target must be the variant without windows.
    pub plain: bool,
}

/// A memory operand that has been checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Checked {
    /// At the host address in R11.
    Here,
    /// At R9 + R10 and so many bytes.
    Window(i32),
}

impl Checked {
    pub(super) fn rm(self) -> Rm {
        match self {
            Self::Here => at(host::R11, 0),
            Self::Window(displacement) => {
                Rm::Memory(Some(host::R9), Some((host::R10, 0)), displacement)
            }
        }
    }

    /// The register left for an operand that has none.
    pub(super) fn free(self) -> Register {
        match self {
            Self::Here => host::R10,
            Self::Window(_) => host::R11,
        }
    }
}

/// Writes one block.
pub(super) struct Emitter<'a> {
    pub a: Assembler,
    pub context: Context,
    pub items: &'a [Item<'a>],
    pub cold: Vec<Cold>,
    pub edges: Vec<EdgeRequest>,
    pub first_edge: u32,
    /// The guest's flags are aside, the host's mean nothing.
    pub aside: bool,
    /// The window covers these bytes, relative to RSP at the block's start.
    pub window: Option<(i32, i32)>,
    /// RSP now relative to RSP at the block's start, while that is known.
    pub depth: Option<i32>,
    /// The block uses vector registers; they are loaded.
    pub vectors: bool,
    /// The same of x87 registers.
    pub x87: bool,
    pub noted: Option<Noted>,
}

impl Emitter<'_> {
    /// The host register for a guest register that has one.
    pub(super) fn resident(register: u8) -> Option<Register> {
        match register {
            4 => Some(host::R9),
            9..=11 => None,
            other => Some(other),
        }
    }

    /// The host register that holds a guest register: its own, or `scratch`
    /// after loading it.
    pub(super) fn read(&mut self, register: u8, scratch: Register) -> Register {
        match Self::resident(register) {
            Some(own) => own,
            None => {
                let home = self.context.places.home(register);
                self.a.load(scratch, home);
                scratch
            }
        }
    }

    /// Before an instruction that reads the arithmetic flags in `read` and
    /// certainly writes those in `written`, or before an exit.
    pub(super) fn want_flags(&mut self, read: u16, written: u16) {
        const ALL: u16 = crate::cpu::rflags::ARITHMETIC as u16;
        if read == u16::MAX {
            self.write_noted();
        }
        if !self.aside || read | written == 0 {
            return;
        }
        self.aside = false;
        if read != 0 || written != ALL {
            self.context.places.take_flags_back(&mut self.a);
        }
    }

    /// Writes down the last x87 instruction.
    fn write_noted(&mut self) {
        if let Some(Noted { offset, opcode }) = self.noted.take() {
            self.context
                .places
                .note_instruction(&mut self.a, offset, opcode);
        }
    }

    /// Before code that changes the host's flags. `live` says whether the
    /// guest's are wanted.
    pub(super) fn spare_flags(&mut self, live: bool) {
        if !live {
            self.aside = false;
        } else if !self.aside {
            self.context.places.put_flags_aside(&mut self.a);
            self.aside = true;
        }
    }

    /// The address of an item's memory operand into R11. False if the
    /// interpreter must do it.
    pub(super) fn address(&mut self, item: usize) -> bool {
        let instruction = &self.items[item].instruction;
        let (base, index) = (instruction.memory_base(), instruction.memory_index());
        let displacement = instruction.memory_displacement64();
        let narrow_address = base.is_gpr32() || index.is_gpr32();
        if index.is_vector_register() || base == iced_x86::Register::EIP {
            return false;
        }
        let segment = instruction.memory_segment();
        let places = self.context.places;
        if instruction.is_ip_rel_memory_operand() {
            let Ok(offset) = i32::try_from(displacement as i64) else {
                return false;
            };
            self.a.load(host::R11, places.page());
            self.a.lea(host::R11, at(host::R11, offset));
        } else {
            let wanted = displacement as i64;
            let small = displacement as i32;
            let none = base == iced_x86::Register::None && index == iced_x86::Register::None;
            if none && i64::from(small) != wanted {
                return false;
            }
            let base =
                (base != iced_x86::Register::None).then(|| self.read(number(base), host::R11));
            let scale = instruction.memory_index_scale().trailing_zeros() as u8;
            let index = (index != iced_x86::Register::None)
                .then(|| (self.read(number(index), host::R10), scale));
            let rm = Rm::Memory(base, index, small);
            if narrow_address {
                self.a.op(narrow(0x8d), host::R11, rm, &[]);
            } else {
                self.a.lea(host::R11, rm);
            }
        }
        if let iced_x86::Register::FS | iced_x86::Register::GS = segment {
            let number = segment as i32 - iced_x86::Register::ES as i32;
            self.a
                .load(host::R10, absolute(self.context.bases + 8 * number));
            let sum = Rm::Memory(Some(host::R11), Some((host::R10, 0)), 0);
            self.a.lea(host::R11, sum);
        }
        true
    }

    /// Turns the linear address in R11 into a host address, or leaves for the
    /// interpreter.
    pub(super) fn check(&mut self, item: usize, memory: Memory, live: bool) -> (Label, Checked) {
        self.spare_flags(live);
        let resume = self.a.label();
        let slow = self.a.label();
        self.lookup(memory.write);
        let last = 4096 - i32::from(memory.size);
        self.a
            .op(wide(0x81), 7, Rm::Register(host::R11), &last.to_le_bytes());
        self.a.jump_if(condition::ABOVE, slow);
        if memory.alignment > 1 {
            // TEST R11D, alignment - 1.
            let mask = u32::from(memory.alignment) - 1;
            self.a.op(
                narrow(0xf7),
                0,
                Rm::Register(host::R11),
                &mask.to_le_bytes(),
            );
            self.a.jump_if(condition::NOT_EQUAL, slow);
        }
        let place = self.line(std::mem::offset_of!(Line, host));
        self.a.op(wide(0x03), host::R11, place, &[]);
        self.cold.push(Cold::Interpret {
            from: slow,
            resume,
            item,
            aside: self.aside,
            noted: self.noted,
        });
        (resume, Checked::Here)
    }

    /// R10 to the line of the address in R11, and R11 to the offset if its tag
    /// is right.
    pub(super) fn lookup(&mut self, write: bool) {
        // RORX R10, R11, 12; XOR R10D, R11D; SHR R10D; AND R10D: as
        // `mmu::table::index`.
        let rorx = super::assembler::Opcode {
            map: 3,
            wide: true,
            byte: 0xf0,
            vex: Some(super::assembler::Vex {
                register: 0,
                long: false,
                prefix: 3,
            }),
            ..super::assembler::Opcode::default()
        };
        self.a.op(rorx, host::R10, Rm::Register(host::R11), &[12]);
        self.a
            .op(narrow(0x33), host::R10, Rm::Register(host::R11), &[]);
        self.a.op(
            narrow(0xc1),
            5,
            Rm::Register(host::R10),
            &[(12 - LINE_BITS) as u8],
        );
        let mask = ((ENTRIES as u32 - 1) << LINE_BITS).to_le_bytes();
        self.a.op(narrow(0x81), 4, Rm::Register(host::R10), &mask);
        let tag = if write {
            std::mem::offset_of!(Line, write)
        } else {
            std::mem::offset_of!(Line, read)
        };
        let place = self.line(tag);
        self.a.op(wide(0x33), host::R11, place, &[]);
    }

    /// A field of the line in R10.
    pub(super) fn line(&self, field: usize) -> Rm {
        at(host::R10, self.context.lines + field as i32)
    }

    /// Checks the stack at RSP and so many bytes: by the window if it covers
    /// them.
    pub(super) fn stack(
        &mut self,
        item: usize,
        displacement: i32,
        memory: Memory,
        live: bool,
    ) -> (Option<Label>, Checked) {
        if let (Some((low, high)), Some(depth)) = (self.window, self.depth) {
            let first = depth.saturating_add(displacement);
            if first >= low && first.saturating_add(memory.size.into()) <= high {
                let window = self.context.places.window();
                self.a.load(host::R10, window);
                return (None, Checked::Window(displacement));
            }
        }
        self.a.lea(host::R11, at(host::R9, displacement));
        let (resume, checked) = self.check(item, memory, live);
        (Some(resume), checked)
    }

    /// An item's memory operand, checked. None if the interpreter must do it.
    pub(super) fn operand(
        &mut self,
        item: usize,
        memory: Memory,
    ) -> Option<(Option<Label>, Checked)> {
        let live = self.items[item].live_in;
        let instruction = &self.items[item].instruction;
        if memory.alignment == 1
            && let Some(displacement) = super::unit::stack_displacement(instruction)
        {
            return Some(self.stack(item, displacement, memory, live));
        }
        if !self.address(item) {
            return None;
        }
        let (resume, checked) = self.check(item, memory, live);
        Some((Some(resume), checked))
    }

    /// Has the interpreter do an item, in line.
    pub(super) fn interpret(&mut self, item: usize) {
        self.want_flags(u16::MAX, 0);
        self.call_interpreter(item);
        self.depth = None;
    }

    fn call_interpreter(&mut self, item: usize) {
        let Item {
            operation, offset, ..
        } = self.items[item];
        let x87 = match super::form::touches_x87(&self.items[item].instruction) {
            false => X87::Stay,
            true if self.x87 => X87::Keep,
            true => X87::Save,
        };
        self.a.set64(host::R10, operation as u64);
        self.a.set32(host::R11, offset);
        self.a
            .call(self.context.thunks.interpret[usize::from(self.vectors)][x87 as usize]);
    }

    /// An instruction copied with its own registers replaced by the host's.
    pub(super) fn copy(
        &mut self,
        item: usize,
        encoding: &super::encoding::Encoding<'_>,
        fields: &Fields,
        memory: Option<Memory>,
    ) {
        let Some(registers) = Operands::of(encoding, fields) else {
            return self.interpret(item);
        };
        let homeless = registers.homeless();
        if homeless.len() > if memory.is_some() { 1 } else { 2 } {
            return self.interpret(item);
        }
        let is_lea = self.items[item].instruction.mnemonic() == iced_x86::Mnemonic::Lea;
        let (mut resume, mut place) = (None, None);
        if let Some(memory) = memory.filter(|_| !is_lea) {
            match self.operand(item, memory) {
                Some((label, checked)) => (resume, place) = (label, Some(checked)),
                None => return self.interpret(item),
            }
        } else if is_lea {
            return self.lea(item, encoding);
        }
        let (read, written) = super::form::flags(&self.items[item].instruction);
        self.want_flags(read, written);
        let scratch = match place {
            Some(place) => [place.free(), place.free()],
            None => [host::R10, host::R11],
        };
        for (register, scratch) in homeless.iter().zip(scratch) {
            let home = self.context.places.home(*register);
            self.a.load(scratch, home);
        }
        let host_of = |register: u8| {
            Self::resident(register).unwrap_or_else(|| {
                let n = homeless.iter().position(|r| *r == register).unwrap_or(0);
                scratch[n]
            })
        };
        let mut opcode = encoding.opcode;
        let reg = if fields.reg.is_some() {
            host_of(encoding.reg)
        } else {
            encoding.reg
        };
        let rm = match (place, encoding.rm) {
            (Some(place), _) => place.rm(),
            (None, Some(rm)) if fields.rm.is_some() => Rm::Register(host_of(rm)),
            (None, rm) => Rm::Register(rm.unwrap_or(0)),
        };
        if let (Some(vex), Some(_)) = (&mut opcode.vex, fields.vvvv) {
            vex.register = host_of(vex.register);
        }
        let needs_rex = |field: Option<super::form::Field>, register: u8| {
            field.is_some_and(|field| field.byte) && (4..8).contains(&register)
        };
        opcode.force_rex = needs_rex(fields.reg, reg)
            || matches!(rm, Rm::Register(register) if needs_rex(fields.rm, register));
        self.a.op(opcode, reg, rm, encoding.immediate);
        for register in registers.written() {
            if let Some(n) = homeless.iter().position(|r| *r == register) {
                let home = self.context.places.home(register);
                self.a.store(home, scratch[n]);
            }
        }
        if let Some(resume) = resume {
            self.a.bind(resume);
        }
    }

    fn lea(&mut self, item: usize, encoding: &super::encoding::Encoding<'_>) {
        let instruction = &self.items[item].instruction;
        let size = instruction.op0_register().size();
        // LEA has no segment.
        if size == 2 || instruction.has_segment_prefix() {
            return self.interpret(item);
        }
        if !self.address(item) {
            return self.interpret(item);
        }
        let to = encoding.reg;
        let opcode = if size == 8 { wide(0x8b) } else { narrow(0x8b) };
        match Self::resident(to) {
            Some(own) => self.a.op(opcode, own, Rm::Register(host::R11), &[]),
            None => {
                if size == 4 {
                    self.a.op(opcode, host::R11, Rm::Register(host::R11), &[]);
                }
                let home = self.context.places.home(to);
                self.a.store(home, host::R11);
            }
        }
    }

    /// Everything that was put off.
    pub(super) fn cold(&mut self) {
        let places = self.context.places;
        for cold in std::mem::take(&mut self.cold) {
            match cold {
                Cold::Interpret {
                    from,
                    resume,
                    item,
                    aside,
                    noted,
                } => {
                    self.a.bind(from);
                    self.noted = noted;
                    self.write_noted();
                    if aside {
                        places.take_flags_back(&mut self.a);
                    }
                    self.call_interpreter(item);
                    self.a.jump_to(resume);
                }
                Cold::Load {
                    from,
                    resume,
                    load,
                    offset,
                    aside,
                    noted,
                } => {
                    self.a.bind(from);
                    self.noted = noted;
                    self.write_noted();
                    if aside {
                        places.take_flags_back(&mut self.a);
                    }
                    self.a.set32(host::R11, offset);
                    self.a.call(load);
                    self.a.jump_to(resume);
                }
                Cold::Poll { from, offset } => {
                    self.a.bind(from);
                    self.a.set32(host::R11, offset);
                    self.a.jump(self.context.thunks.poll);
                }
                Cold::Edge { from, edge, offset } => {
                    self.a.bind(from);
                    self.edges[(edge - self.first_edge) as usize].stub = self.a.here();
                    self.a.set32(host::R11, offset);
                    self.a.set32(host::R10, edge);
                    self.a.jump(self.context.thunks.edge);
                }
                Cold::Window {
                    from,
                    retry,
                    low,
                    span,
                    edge,
                    aside,
                } => self.refill_window(from, retry, low, span, edge, aside),
            }
        }
    }
}

/// The general registers of an encoding.
struct Operands {
    registers: [Option<(u8, bool)>; 3],
}

impl Operands {
    /// None if one of them can't be replaced.
    fn of(encoding: &super::encoding::Encoding<'_>, fields: &Fields) -> Option<Self> {
        let vvvv = encoding.opcode.vex.map(|vex| vex.register);
        let pairs = [
            (fields.reg, Some(encoding.reg)),
            (fields.rm, encoding.rm),
            (fields.vvvv, vvvv),
        ];
        let mut registers = [None; 3];
        for (slot, (field, register)) in registers.iter_mut().zip(pairs) {
            if let (Some(field), Some(register)) = (field, register) {
                if field.byte && !encoding.has_rex && (4..8).contains(&register) {
                    return None;
                }
                *slot = Some((register, field.written));
            }
        }
        Some(Self { registers })
    }

    fn homeless(&self) -> Vec<u8> {
        let mut list = Vec::new();
        for (register, _) in self.registers.iter().flatten() {
            if (9..=11).contains(register) && !list.contains(register) {
                list.push(*register);
            }
        }
        list
    }

    fn written(&self) -> impl Iterator<Item = u8> {
        self.registers
            .iter()
            .flatten()
            .filter(|(_, written)| *written)
            .map(|(register, _)| *register)
    }
}
