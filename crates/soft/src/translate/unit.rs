//! What is translated at once: one or more decoded blocks that follow each
//! other in a page, entered only at the top.

use std::rc::Rc;

use iced_x86::{Decoder, Instruction, Mnemonic, OpKind, Register};

use super::assembler::{Assembler, at, condition, host};
use super::emit::{Cold, Context, EdgeRequest, Emitter};
use super::flow::WINDOW_SPAN;
use super::form::{self, Form, PushOf};
use crate::cache::Block;
use crate::cpu::rflags::ARITHMETIC;
use crate::operation::Operation;

/// The most instructions in a unit.
pub(super) const MOST_ITEMS: usize = 128;
const ALL: u16 = ARITHMETIC as u16;

/// One instruction of a unit.
pub(super) struct Item<'a> {
    pub instruction: Instruction,
    pub bytes: &'a [u8],
    pub operation: *const Operation,
    /// Offset in the page.
    pub offset: u32,
    pub form: Form<'a>,
    /// Some arithmetic flag is wanted before it is executed.
    pub live_in: bool,
    /// Some arithmetic flag is wanted where it jumps to.
    pub live_target: bool,
}

impl Item<'_> {
    /// Offset of the next instruction.
    pub(super) fn next(&self) -> u32 {
        self.offset + self.instruction.len() as u32
    }

    fn uses_vectors(&self) -> bool {
        let instruction = &self.instruction;
        match &self.form {
            Form::Copy { vector, .. } => *vector,
            Form::Raw => matches!(
                instruction.mnemonic(),
                Mnemonic::Vzeroupper | Mnemonic::Vzeroall
            ),
            _ => false,
        }
    }

    fn uses_x87(&self) -> bool {
        matches!(self.form, Form::X87 { .. })
    }
}

/// Code written for a unit.
pub(super) struct Written {
    pub code: Vec<u8>,
    /// For jumps that have set the page already.
    pub entry: u32,
    pub edges: Vec<EdgeRequest>,
    /// Where an entry that holds no more leads to.
    pub stale: u32,
}

/// Decodes again what `blocks` hold, `bytes` being the whole page.
pub(super) fn items<'a>(
    blocks: &'a [(u32, Rc<Block>)],
    page: &'a [u8],
    vectors: bool,
    user: bool,
) -> Option<Vec<Item<'a>>> {
    let mut items = Vec::with_capacity(32);
    for (start, block) in blocks {
        let mut offset = *start;
        for operation in &block.operations {
            let end = offset + u32::from(operation.length);
            let bytes = page.get(offset as usize..end as usize)?;
            let mut decoder =
                Decoder::with_ip(64, bytes, offset.into(), crate::decode::decoder_options());
            let instruction = decoder.decode();
            let form = if instruction.is_invalid() || instruction.len() != bytes.len() {
                Form::Interpret
            } else {
                form::of(&instruction, bytes, operation, vectors, user)
            };
            items.push(Item {
                instruction,
                bytes,
                operation,
                offset,
                form,
                live_in: true,
                live_target: true,
            });
            offset = end;
        }
    }
    Some(items)
}

/// Finds out where flags are wanted. `wanted_at` says which are at an offset
/// of the page, as far as it is known.
pub(super) fn mark_live(items: &mut [Item<'_>], wanted_at: impl Fn(u32) -> Option<u16>) {
    let at_place = |offset: u64| {
        u32::try_from(offset)
            .ok()
            .filter(|offset| *offset < 4096)
            .and_then(&wanted_at)
            .unwrap_or(ALL)
    };
    let Some(last) = items.last() else { return };
    let mut live = at_place(last.next().into());
    for item in items.iter_mut().rev() {
        let (read, written) = if item.instruction.is_invalid() {
            (ALL, 0)
        } else {
            form::flags(&item.instruction)
        };
        let target = match item.form {
            Form::ConditionalJump(_) => {
                let target = at_place(item.instruction.near_branch_target());
                live |= target;
                target
            }
            Form::Jump => {
                live = at_place(item.instruction.near_branch_target());
                live
            }
            Form::Call | Form::JumpIndirect { .. } | Form::Return(_) | Form::Pause => {
                live = ALL;
                ALL
            }
            _ => ALL,
        };
        item.live_target = target != 0;
        live = live & !written | read;
        item.live_in = live != 0;
    }
}

/// What an instruction does to RSP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum StackEffect {
    None,
    Move(i32),
    Unknown,
}

/// For instructions other than PUSH, POP, CALL, RET and LEAVE.
pub(super) fn stack_effect(item: &Item<'_>) -> StackEffect {
    let instruction = &item.instruction;
    let names_rsp = |n: u32| {
        instruction.op_kind(n) == OpKind::Register
            && instruction.op_register(n).full_register() == Register::RSP
    };
    match item.form {
        Form::Copy { .. } | Form::Constant { .. } => {}
        Form::SwapBytes { register: 4, .. } | Form::Selector { register: 4, .. } => {
            return StackEffect::Unknown;
        }
        Form::Interpret => return StackEffect::Unknown,
        _ => return StackEffect::None,
    }
    if !(0..instruction.op_count()).any(names_rsp) {
        return StackEffect::None;
    }
    let whole = instruction.op0_register() == Register::RSP;
    match instruction.mnemonic() {
        Mnemonic::Cmp | Mnemonic::Test => StackEffect::None,
        Mnemonic::Sub | Mnemonic::Add if whole && instruction.op1_kind() != OpKind::Register => {
            let by = match instruction.op1_kind() {
                OpKind::Immediate8to64 | OpKind::Immediate32to64 => instruction.immediate(1) as i64,
                _ => return StackEffect::Unknown,
            };
            let by = if instruction.mnemonic() == Mnemonic::Sub {
                -by
            } else {
                by
            };
            moved(by)
        }
        Mnemonic::Lea if whole => match stack_displacement(instruction) {
            Some(by) => moved(by.into()),
            None => StackEffect::Unknown,
        },
        _ if !names_rsp(0)
            && instruction.mnemonic() != Mnemonic::Xchg
            && instruction.mnemonic() != Mnemonic::Xadd =>
        {
            StackEffect::None
        }
        _ => StackEffect::Unknown,
    }
}

/// Far moves are not followed: what they lead to is no window.
fn moved(by: i64) -> StackEffect {
    const FAR: i64 = 1 << 16;
    if (-FAR..=FAR).contains(&by) {
        StackEffect::Move(by as i32)
    } else {
        StackEffect::Unknown
    }
}

/// The displacement of a memory operand that is RSP and a displacement.
pub(super) fn stack_displacement(instruction: &Instruction) -> Option<i32> {
    let plain = instruction.memory_base() == Register::RSP
        && instruction.memory_index() == Register::None
        && !matches!(instruction.memory_segment(), Register::FS | Register::GS);
    plain.then_some(instruction.memory_displacement64() as i32)
}

/// The bytes around RSP that a unit's stack accesses touch, if they are worth
/// one test for all.
fn window(items: &[Item<'_>]) -> Option<(i32, i32)> {
    let (mut low, mut high, mut accesses) = (i32::MAX, i32::MIN, 0);
    let mut depth = 0i32;
    let mut touch = |depth: i32, displacement: i32, size: i32| -> bool {
        let Some(first) = depth.checked_add(displacement) else {
            return false;
        };
        let (new_low, new_high) = (low.min(first), high.max(first.saturating_add(size)));
        if new_high.saturating_sub(new_low) > WINDOW_SPAN {
            return false;
        }
        (low, high) = (new_low, new_high);
        accesses += 1;
        true
    };
    for item in items {
        let fits = match item.form {
            Form::Push(what) => {
                let fits = what != PushOf::Memory || operand_fits(item, depth, &mut touch);
                let fits = fits && touch(depth, -8, 8);
                depth -= 8;
                fits
            }
            Form::PushFlags => {
                let fits = touch(depth, -8, 8);
                depth -= 8;
                fits
            }
            Form::Pop(4) | Form::Leave => break,
            Form::Pop(_) => {
                let fits = touch(depth, 0, 8);
                depth += 8;
                fits
            }
            Form::Call => touch(depth, -8, 8),
            Form::JumpIndirect { call } => {
                operand_fits(item, depth, &mut touch) && (!call || touch(depth, -8, 8))
            }
            Form::Return(_) => touch(depth, 0, 8),
            // The address of an x87 operand is noted.
            Form::X87 { .. } => true,
            Form::Copy {
                memory: Some(memory),
                ..
            } if memory.alignment == 1 => operand_fits(item, depth, &mut touch),
            _ => true,
        };
        // What does not fit is tested by itself.
        let _ = fits;
        match stack_effect(item) {
            StackEffect::None => {}
            // A unit is short, and so are its moves: no overflow.
            StackEffect::Move(by) => depth += by,
            StackEffect::Unknown => break,
        }
    }
    (accesses >= 2).then_some((low, high))
}

fn operand_fits(
    item: &Item<'_>,
    depth: i32,
    touch: &mut impl FnMut(i32, i32, i32) -> bool,
) -> bool {
    let instruction = &item.instruction;
    let has_memory = (0..instruction.op_count()).any(|n| instruction.op_kind(n) == OpKind::Memory);
    if !has_memory || instruction.mnemonic() == Mnemonic::Lea {
        return true;
    }
    match stack_displacement(instruction) {
        Some(displacement) => touch(depth, displacement, instruction.memory_size().size() as i32),
        None => true,
    }
}

/// Writes a unit's code, to lie at `start`.
pub(super) fn write(
    items: &[Item<'_>],
    context: Context,
    start: u32,
    first_edge: u32,
    stale: u32,
) -> Option<Written> {
    let first = items.first()?;
    let mut emitter = Emitter {
        a: Assembler::new(start),
        context,
        items,
        cold: Vec::new(),
        edges: Vec::new(),
        first_edge,
        aside: false,
        window: None,
        depth: Some(0),
        vectors: false,
        x87: false,
        noted: None,
    };
    // R11 is the linear address of the first instruction.
    emitter
        .a
        .lea(host::R11, at(host::R11, -(first.offset as i32)));
    let page = context.places.page();
    emitter.a.store(page, host::R11);
    let entry = emitter.a.here();
    if context.windows
        && let Some((low, high)) = window(items)
    {
        emitter.open_window(low, high, first.live_in);
    }
    for (number, item) in items.iter().enumerate() {
        if !emitter.vectors && item.uses_vectors() {
            emitter.want_vectors(number);
        }
        if !emitter.x87 && item.uses_x87() {
            emitter.want_x87(number);
        }
        emitter.item(number);
        match stack_effect(item) {
            StackEffect::None => {}
            StackEffect::Move(by) => emitter.depth = emitter.depth.map(|depth| depth + by),
            StackEffect::Unknown => emitter.depth = None,
        }
    }
    let last = items.last()?;
    let ends = matches!(
        last.form,
        Form::Jump | Form::Call | Form::JumpIndirect { .. } | Form::Return(_) | Form::Pause
    );
    if !ends {
        emitter.want_flags(u16::MAX, 0);
        let next = last.next();
        if next < 4096 {
            emitter.edge(next, false, true);
        } else {
            emitter.far(items.len() - 1, next.into());
        }
    }
    emitter.cold();
    let stale_at = emitter.a.here();
    emitter.a.set32(host::R11, first.offset);
    emitter.a.jump(stale);
    let edges = std::mem::take(&mut emitter.edges);
    Some(Written {
        code: emitter.a.finish(),
        entry,
        edges,
        stale: stale_at,
    })
}

impl Emitter<'_> {
    /// Makes sure that the vector registers are loaded.
    fn want_vectors(&mut self, item: usize) {
        let (loaded, load) = (
            self.context.places.vectors(),
            self.context.thunks.load_vectors,
        );
        self.want_loaded(item, loaded, load);
        self.vectors = true;
    }

    /// Makes sure that the x87 registers are loaded.
    fn want_x87(&mut self, item: usize) {
        let (loaded, load) = (self.context.places.x87(), self.context.thunks.load_x87);
        self.want_loaded(item, loaded, load);
        self.x87 = true;
    }

    fn want_loaded(&mut self, item: usize, loaded: i32, load: u32) {
        let live = self.items[item].live_in;
        self.spare_flags(live);
        let (from, resume) = (self.a.label(), self.a.label());
        self.a.test_dword(loaded);
        self.a.jump_if(condition::EQUAL, from);
        self.a.bind(resume);
        self.cold.push(Cold::Load {
            from,
            resume,
            load,
            offset: self.items[item].offset,
            aside: self.aside,
            noted: self.noted,
        });
    }
}
