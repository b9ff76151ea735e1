//! Jumps, calls, returns and the stack.
//!
//! A jump inside its page goes straight to the target's code once that is
//! there. Every other jump looks its target up in the jump table by linear
//! address. The lookup changes no flags, so nobody needs to know whether the
//! target wants them. Its index mask is kept at zero, and the entry with index
//! zero empty, while somebody wants attention: so no jump needs to look for
//! that. Jumps inside the page do, if they go back.

use super::assembler::Opcode;
use super::assembler::{Rm, Vex, absolute, at, condition, host, narrow, wide};
use super::emit::{Cold, EdgeRequest, Emitter};
use super::form::{Form, Memory, PushOf};
use crate::mmu::Line;

/// What an indirect jump that found no target must be undone by if the target
/// turns out to be no address at all: so that the interpreter can raise the
/// fault at the instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Undo {
    /// Offset of the instruction in its page.
    pub offset: u32,
    /// What it added to RSP.
    pub moved: i32,
}

impl Undo {
    fn encode(self) -> u32 {
        self.offset & 0xfff | (self.moved as u32) << 12
    }

    pub(super) fn decode(value: u32) -> Self {
        Self {
            offset: value & 0xfff,
            moved: value as i32 >> 12,
        }
    }
}

/// Eight bytes of stack.
pub(super) const STACK_READ: Memory = Memory {
    size: 8,
    write: false,
    alignment: 1,
};
pub(super) const STACK_WRITE: Memory = Memory {
    size: 8,
    write: true,
    alignment: 1,
};

impl Emitter<'_> {
    /// Writes one item.
    pub(super) fn item(&mut self, item: usize) {
        let (read, written) = super::form::flags(&self.items[item].instruction);
        match self.items[item].form.clone() {
            Form::Nothing => {}
            Form::Raw => {
                self.want_flags(read, written);
                let bytes = self.items[item].bytes;
                self.a.raw(bytes);
            }
            Form::Copy {
                encoding,
                fields,
                memory,
                ..
            } => self.copy(item, &encoding, &fields, memory),
            Form::Divide { signed, wide } => self.divide(item, signed, wide),
            Form::BitInMemory { extension, wide } => self.bit_in_memory(item, extension, wide),
            Form::SwapBytes { register, wide } => self.swap_bytes(register, wide),
            Form::Selector { register, segment } => self.selector(register, segment),
            Form::PushFlags => self.push_flags(item),
            Form::SwapGs => self.swap_gs(),
            Form::ClearInterrupts => {
                let live = self.items[item].live_in;
                self.spare_flags(live);
                let keep = !(crate::cpu::rflags::IF as u32);
                let place = absolute(self.context.system_flags);
                self.a.op(narrow(0x81), 4, place, &keep.to_le_bytes());
            }
            Form::Constant { register, value } => match Self::resident(register) {
                Some(own) => self.a.set64(own, value),
                None => {
                    self.a.set64(host::R10, value);
                    let home = self.context.places.home(register);
                    self.a.store(home, host::R10);
                }
            },
            Form::Push(what) => self.push(item, what),
            Form::Pop(register) => self.pop(item, register),
            Form::Leave => self.leave(item),
            Form::X87 {
                encoding,
                memory,
                noted,
            } => self.x87(item, encoding.as_ref(), memory, noted),
            Form::ConditionalJump(code) => self.conditional(item, code),
            Form::Jump => self.jump(item),
            Form::Call => self.call(item),
            Form::JumpIndirect { call } => self.indirect(item, call),
            Form::Return(released) => self.return_near(item, released),
            Form::Pause => {
                self.want_flags(u16::MAX, 0);
                self.a.raw(&[0xf3, 0x90]);
                let next = self.items[item].next();
                let poll = self.a.label();
                self.cold.push(Cold::Poll {
                    from: poll,
                    offset: next,
                });
                self.a.jump_to(poll);
            }
            Form::Interpret => self.interpret(item),
        }
    }

    /// R9 moves.
    pub(super) fn move_stack(&mut self, by: i32) {
        self.a.lea(host::R9, at(host::R9, by));
        self.depth = self.depth.map(|depth| depth + by);
    }

    fn push(&mut self, item: usize, what: PushOf) {
        let live = self.items[item].live_in;
        if what == PushOf::Memory {
            // Two accesses: the value first, put into the target's place.
            let size = Memory {
                write: false,
                ..STACK_READ
            };
            let Some((resume, checked)) = self.operand(item, size) else {
                return self.interpret(item);
            };
            self.a.load(host::R11, checked.rm());
            let target = self.context.places.target();
            self.a.store(target, host::R11);
            let (second, checked) = self.stack(item, -8, STACK_WRITE, live);
            let free = checked.free();
            self.a.load(free, target);
            self.a.store(checked.rm(), free);
            self.move_stack(-8);
            // The interpreter has done all of it.
            for label in [resume, second].into_iter().flatten() {
                self.a.bind(label);
            }
            return;
        }
        let (resume, checked) = self.stack(item, -8, STACK_WRITE, live);
        match what {
            PushOf::Register(register) => {
                let from = self.read(register, checked.free());
                self.a.store(checked.rm(), from);
            }
            PushOf::Constant(value) => {
                self.a.op(wide(0xc7), 0, checked.rm(), &value.to_le_bytes());
            }
            PushOf::Memory => {}
        }
        self.move_stack(-8);
        if let Some(resume) = resume {
            self.a.bind(resume);
        }
    }

    fn pop(&mut self, item: usize, register: u8) {
        let live = self.items[item].live_in;
        if register == 4 {
            return self.interpret(item);
        }
        let (resume, checked) = self.stack(item, 0, STACK_READ, live);
        match Self::resident(register) {
            Some(own) => self.a.load(own, checked.rm()),
            None => {
                let free = checked.free();
                self.a.load(free, checked.rm());
                let home = self.context.places.home(register);
                self.a.store(home, free);
            }
        }
        self.move_stack(8);
        if let Some(resume) = resume {
            self.a.bind(resume);
        }
    }

    fn leave(&mut self, item: usize) {
        let live = self.items[item].live_in;
        self.a.lea(host::R11, at(host::RBP, 0));
        let (resume, checked) = self.check(item, STACK_READ, live);
        self.a.lea(host::R9, at(host::RBP, 8));
        self.a.load(host::RBP, checked.rm());
        self.depth = None;
        self.a.bind(resume);
    }

    /// Whether a jump from an item to an offset goes back.
    fn goes_back(&self, item: usize, target: u32) -> bool {
        target <= self.items[item].offset
    }

    /// An offset in the page, if the item's target is one.
    fn target_in_page(&self, item: usize) -> Option<u32> {
        let target = self.items[item].instruction.near_branch_target();
        (target < 4096).then_some(target as u32)
    }

    fn conditional(&mut self, item: usize, code: u8) {
        let live = u16::MAX;
        self.want_flags(live, 0);
        let Some(target) = self.target_in_page(item) else {
            let over = self.a.label();
            self.a.jump_if(code ^ 1, over);
            let target = self.items[item].instruction.near_branch_target();
            self.far(item, target as i64);
            self.a.bind(over);
            return;
        };
        if self.goes_back(item, target) {
            let over = self.a.label();
            self.a.jump_if(code ^ 1, over);
            self.edge(target, true, self.items[item].live_target);
            self.a.bind(over);
            return;
        }
        let from = self.a.label();
        let site = self.a.jump_if(code, from);
        self.request(site, from, target, false);
    }

    /// JMP to an offset in the page.
    pub(super) fn edge(&mut self, target: u32, back: bool, live: bool) {
        if back {
            self.poll(target, live);
        }
        let from = self.a.label();
        self.a.jump_to(from);
        let site = self.a.here() - 4;
        self.request(site, from, target, false);
    }

    fn request(
        &mut self,
        site: u32,
        from: super::assembler::Label,
        offset: u32,
        plain: bool,
    ) -> u32 {
        let edge = self.first_edge + self.edges.len() as u32;
        self.edges.push(EdgeRequest {
            site,
            stub: 0,
            offset,
            plain,
        });
        self.cold.push(Cold::Edge { from, edge, offset });
        edge
    }

    /// Leaves if somebody wants attention.
    fn poll(&mut self, target: u32, live: bool) {
        let attention = self.context.attention;
        if !live {
            let poll = self.a.label();
            self.a.test_dword(attention);
            self.a.jump_if(condition::NOT_EQUAL, poll);
            self.cold.push(Cold::Poll {
                from: poll,
                offset: target,
            });
            return;
        }
        let spill = self.context.places.spill_count();
        self.a.store(spill, host::RCX);
        self.a.load32(host::RCX, absolute(attention));
        let leave = self.context.thunks.poll;
        self.a.unless_rcx_zero(|a| {
            a.load(host::RCX, spill);
            a.set32(host::R11, target);
            a.jump(leave);
        });
        self.a.load(host::RCX, spill);
    }

    fn jump(&mut self, item: usize) {
        self.want_flags(u16::MAX, 0);
        match self.target_in_page(item) {
            Some(target) => {
                let back = self.goes_back(item, target);
                self.edge(target, back, self.items[item].live_target);
            }
            None => {
                let target = self.items[item].instruction.near_branch_target();
                self.far(item, target as i64);
            }
        }
    }

    /// Jumps to another page: so many bytes from the beginning of this one.
    pub(super) fn far(&mut self, item: usize, distance: i64) {
        let page = self.context.places.page();
        self.a.load(host::R11, page);
        match i32::try_from(distance) {
            Ok(distance) => self.a.lea(host::R11, at(host::R11, distance)),
            Err(_) => {
                self.a.set64(host::R10, distance as u64);
                let sum = Rm::Memory(Some(host::R11), Some((host::R10, 0)), 0);
                self.a.lea(host::R11, sum);
            }
        }
        let offset = self.items[item].offset;
        self.look_up(Undo { offset, moved: 0 });
    }

    /// Jumps to the linear address in R11.
    fn look_up(&mut self, undo: Undo) {
        let spill = self.context.places.spill_count();
        self.a.store(spill, host::RCX);
        // PEXT R10, R11, [mask].
        let pext = Opcode {
            map: 2,
            wide: true,
            byte: 0xf5,
            vex: Some(Vex {
                register: host::R11,
                long: false,
                prefix: 2,
            }),
            ..Opcode::default()
        };
        self.a.op(pext, host::R10, absolute(self.context.mask), &[]);
        let key = Rm::Memory(None, Some((host::R10, 3)), self.context.keys);
        self.a.load(host::RCX, key);
        let sum = Rm::Memory(Some(host::RCX), Some((host::R11, 0)), 0);
        self.a.lea(host::RCX, sum);
        let miss = self.context.thunks.indirect;
        self.a.unless_rcx_zero(|a| {
            a.load(host::RCX, spill);
            a.set32(host::R10, undo.encode());
            a.jump(miss);
        });
        self.a.load(host::RCX, spill);
        let code = Rm::Memory(None, Some((host::R10, 3)), self.context.codes);
        self.a.jump_memory(code);
    }

    /// Pushes the address behind an item.
    fn push_next(&mut self, item: usize) -> Option<super::assembler::Label> {
        let live = self.items[item].live_in;
        let next = self.items[item].next();
        let (resume, checked) = self.stack(item, -8, STACK_WRITE, live);
        let free = checked.free();
        let page = self.context.places.page();
        self.a.load(free, page);
        self.a.lea(free, at(free, next as i32));
        self.a.store(checked.rm(), free);
        self.move_stack(-8);
        resume
    }

    /// The interpreter has executed a jump that ended a block: it has left, so
    /// nobody resumes; but the label needs a place.
    fn bind_unreachable(&mut self, labels: &[Option<super::assembler::Label>]) {
        for label in labels.iter().flatten() {
            self.a.bind(*label);
        }
    }

    fn call(&mut self, item: usize) {
        let resume = self.push_next(item);
        self.want_flags(u16::MAX, 0);
        match self.target_in_page(item) {
            Some(target) => self.edge(target, false, true),
            None => {
                let target = self.items[item].instruction.near_branch_target();
                self.far_call(item, target as i64);
            }
        }
        self.bind_fallback(item, &[resume]);
    }

    fn far_call(&mut self, item: usize, distance: i64) {
        let page = self.context.places.page();
        self.a.load(host::R11, page);
        if let Ok(distance) = i32::try_from(distance) {
            self.a.lea(host::R11, at(host::R11, distance));
        } else {
            self.a.set64(host::R10, distance as u64);
            let sum = Rm::Memory(Some(host::R11), Some((host::R10, 0)), 0);
            self.a.lea(host::R11, sum);
        }
        let offset = self.items[item].offset;
        self.look_up(Undo { offset, moved: -8 });
    }

    /// Where the interpreter comes back to when it did a jump in the place of
    /// translated code and the target happens to be the next instruction.
    fn bind_fallback(&mut self, item: usize, labels: &[Option<super::assembler::Label>]) {
        if labels.iter().any(Option::is_some) {
            self.bind_unreachable(labels);
            let next = self.items[item].next();
            self.a.set32(host::R11, next);
            self.a.jump(self.context.thunks.poll);
        }
    }

    fn indirect(&mut self, item: usize, call: bool) {
        let instruction = self.items[item].instruction;
        let live = self.items[item].live_in;
        let offset = self.items[item].offset;
        let is_memory = instruction.op0_kind() == iced_x86::OpKind::Memory;
        let register = (!is_memory).then(|| super::form::number(instruction.op0_register()));
        if register == Some(4) {
            return self.interpret(item);
        }
        let target = self.context.places.target();
        let mut first = None;
        if is_memory {
            let Some((resume, checked)) = self.operand(item, STACK_READ) else {
                return self.interpret(item);
            };
            first = resume;
            self.a.load(host::R11, checked.rm());
            if call {
                self.a.store(target, host::R11);
                // The push may overwrite the operand, so a target that is no
                // address is found before it: MOV R10; SHL, SAR, CMP.
                self.spare_flags(live);
                let slow = self.a.label();
                self.a
                    .op(wide(0x8b), host::R10, Rm::Register(host::R11), &[]);
                self.a.op(wide(0xc1), 4, Rm::Register(host::R10), &[16]);
                self.a.op(wide(0xc1), 7, Rm::Register(host::R10), &[16]);
                self.a
                    .op(wide(0x3b), host::R10, Rm::Register(host::R11), &[]);
                self.a.jump_if(condition::NOT_EQUAL, slow);
                let resume = *first.get_or_insert_with(|| self.a.label());
                self.cold.push(Cold::Interpret {
                    from: slow,
                    resume,
                    item,
                    aside: self.aside,
                    noted: self.noted,
                });
            }
        }
        let mut second = None;
        let mut moved = 0;
        if call {
            // A register among R9 to R11 stays in its home.
            second = self.push_next(item);
            moved = -8;
        }
        match register {
            Some(register) => match Self::resident(register) {
                Some(own) => self.a.op(wide(0x8b), host::R11, Rm::Register(own), &[]),
                None => {
                    let home = self.context.places.home(register);
                    self.a.load(host::R11, home);
                }
            },
            None if call => self.a.load(host::R11, target),
            None => {}
        }
        self.want_flags(u16::MAX, 0);
        self.look_up(Undo { offset, moved });
        self.bind_fallback(item, &[first, second]);
    }

    fn return_near(&mut self, item: usize, released: u16) {
        let live = self.items[item].live_in;
        let offset = self.items[item].offset;
        let (resume, checked) = self.stack(item, 0, STACK_READ, live);
        self.a.load(host::R11, checked.rm());
        let moved = 8 + i32::from(released);
        self.move_stack(moved);
        self.want_flags(u16::MAX, 0);
        self.look_up(Undo { offset, moved });
        self.bind_fallback(item, &[resume]);
    }

    /// Tests the window at the block's start: `low` to `high` around RSP.
    pub(super) fn open_window(&mut self, low: i32, high: i32, live: bool) {
        self.spare_flags(live);
        let retry = self.a.label();
        let from = self.a.label();
        self.a.bind(retry);
        let places = self.context.places;
        self.a.lea(host::R11, at(host::R9, low));
        self.a.op(wide(0x33), host::R11, places.window_tag(), &[]);
        self.a.op(wide(0x3b), host::R11, places.window_limit(), &[]);
        self.a.jump_if(condition::ABOVE_OR_EQUAL, from);
        let edge = self.first_edge + self.edges.len() as u32;
        let offset = self.items[0].offset;
        self.edges.push(EdgeRequest {
            site: 0,
            stub: 0,
            offset,
            plain: true,
        });
        self.cold.push(Cold::Window {
            from,
            retry,
            low,
            span: (high - low) as u32,
            edge,
            aside: self.aside,
        });
        self.window = Some((low, high));
    }

    /// The window is elsewhere: take the page's line if there is one, or leave
    /// for the variant without windows, which has the page looked up.
    pub(super) fn refill_window(
        &mut self,
        from: super::assembler::Label,
        retry: super::assembler::Label,
        low: i32,
        span: u32,
        edge: u32,
        aside: bool,
    ) {
        let places = self.context.places;
        self.a.bind(from);
        self.a.lea(host::R11, at(host::R9, low));
        self.lookup(true);
        let last = 4096 - span as i32;
        self.a
            .op(wide(0x81), 7, Rm::Register(host::R11), &last.to_le_bytes());
        let give_up = self.a.label();
        self.a.jump_if(condition::ABOVE, give_up);
        // Spans beyond what a window is good for near the end of its page.
        let limit = WINDOW_LIMIT;
        self.a
            .op(wide(0x81), 7, Rm::Register(host::R11), &limit.to_le_bytes());
        self.a.jump_if(condition::ABOVE_OR_EQUAL, give_up);
        let tag = self.line(std::mem::offset_of!(Line, write));
        self.a.load(host::R11, tag);
        self.a.store(places.window_tag(), host::R11);
        let page = self.line(std::mem::offset_of!(Line, host));
        self.a.load(host::R10, page);
        // SUB R10, R11.
        self.a
            .op(wide(0x2b), host::R10, Rm::Register(host::R11), &[]);
        self.a.store(places.window(), host::R10);
        self.a
            .op(wide(0xc7), 0, places.window_limit(), &limit.to_le_bytes());
        self.a.jump_to(retry);
        self.a.bind(give_up);
        if aside {
            places.take_flags_back(&mut self.a);
        }
        let request = &mut self.edges[(edge - self.first_edge) as usize];
        // Until it is linked, the jump goes to the stub right behind it.
        let stub = self.a.label();
        self.a.jump_to(stub);
        request.site = self.a.here() - 4;
        self.a.bind(stub);
        request.stub = self.a.here();
        self.a.set32(host::R11, request.offset);
        self.a.set32(host::R10, edge);
        self.a.jump(self.context.thunks.edge);
    }
}

/// Offsets in a page at which windows may begin; what lies behind is the
/// longest window.
pub(super) const WINDOW_LIMIT: i32 = 4096 - WINDOW_SPAN;
/// The longest window, in bytes.
pub(super) const WINDOW_SPAN: i32 = 256;

const _: () = assert!(WINDOW_LIMIT > 0);
