//! The translator: guest code that runs often becomes host code.
//!
//! Guest and host speak the same instruction set, so most instructions are
//! copied; what changes is where registers lie and how memory is reached
//! ([`thunk`] and [`emit`] say how). What is rare, or hard, or faults, is left
//! to the interpreter, one instruction at a time, in the middle of translated
//! code.
//!
//! What is translated is known by its guest-physical address and its mode, and
//! computes every linear address from the page it was entered at; so a
//! library's code serves every process that maps it. It is valid as long as
//! the decoded blocks it was made from are. Whoever writes a page of code has
//! every processor told ([`crate::mailbox`]); the processor then cuts the
//! page's code off before it goes on.
//!
//! Each processor has its own translations: nothing here is shared, locked or
//! patched while it runs.

mod assembler;
mod code;
mod emit;
mod encoding;
mod flow;
mod form;
mod hot;
mod machine;
mod numbered;
mod perf_map;
mod special;
mod thunk;
mod unit;

use std::rc::Rc;

use flow::Undo;
pub(crate) use form::flags as flags_of;
use hot::NO_UNDO;
pub(crate) use hot::{Hot, initial};
pub(crate) use machine::JUMP_MASK;
use machine::{Machine, OFFSETS, Unit, empty_key, jump_index};
pub(crate) use thunk::Return;

use crate::cache::Block;
use crate::cpu::{CodeSize, Cpu, cr0, cr4};
use crate::mmu::Translation;
use crate::native::MXCSR_MASKS;
use crate::trap::Exec;

/// How often a block is interpreted before it is translated.
const THRESHOLD: u32 = 12;
/// The most blocks in a unit.
const MOST_BLOCKS: usize = 6;

/// How modes are counted: a translation table and whether vector instructions
/// may run as they are.
const VARIANTS: usize = 6;

/// Codes of a block, one for each variant, and how often it was interpreted.
#[derive(Debug, Default)]
pub(crate) struct Translations {
    generation: std::cell::Cell<u32>,
    units: [std::cell::Cell<u32>; VARIANTS],
    count: std::cell::Cell<u32>,
}

impl Translations {
    /// The unit in a variant, plus one; 0 if there is none.
    #[inline(always)]
    fn unit(&self, variant: usize, generation: u32) -> u32 {
        if self.generation.get() == generation {
            self.units[variant].get()
        } else {
            0
        }
    }

    fn set(&self, variant: usize, generation: u32, unit: u32) {
        if self.generation.replace(generation) != generation {
            self.units.iter().for_each(|unit| unit.set(0));
        }
        self.units[variant].set(unit + 1);
    }
}

/// One processor's translations.
pub(crate) struct Translator {
    /// None if this host can't, or the processor shall not.
    machine: Option<Machine>,
    /// How the operation ended that translated code had interpreted.
    pub(crate) outcome: Exec,
    threshold: u32,
}

// SAFETY: as for the block cache: everything in it moves as a whole, between
// runs.
unsafe impl Send for Translator {}

impl Translator {
    /// Translates nothing.
    pub(crate) fn off() -> Self {
        Self {
            machine: None,
            outcome: Ok(()),
            threshold: THRESHOLD,
        }
    }

    /// Prepares a processor that lies where it will stay, in low memory.
    pub(crate) fn start(cpu: &mut Cpu) -> std::io::Result<()> {
        let capable = std::arch::is_x86_feature_detected!("bmi2")
            && std::arch::is_x86_feature_detected!("xsave");
        if !capable || std::env::var_os("FAVO_NO_TRANSLATION").is_some() {
            return Ok(());
        }
        let machine = Machine::new(cpu)?;
        cpu.translator.machine = Some(machine);
        cpu.shared.mailbox(cpu.id).set_jump_mask(JUMP_MASK);
        Ok(())
    }

    /// Translates a block when it has been interpreted so often.
    #[cfg(any(test, feature = "difftest"))]
    pub(crate) fn set_threshold(&mut self, threshold: u32) {
        self.threshold = threshold;
    }

    /// Changes when everything is given up.
    pub(crate) fn generation(&self) -> u32 {
        self.machine
            .as_ref()
            .map_or(0, |machine| machine.generation)
    }

    #[inline(always)]
    pub(crate) fn is_on(&self) -> bool {
        self.machine.is_some()
    }

    /// Bytes of code in use.
    pub(crate) fn code_bytes(&self) -> usize {
        self.machine
            .as_ref()
            .map_or(0, |machine| machine.code.touched())
    }

    /// Linear addresses lead nowhere any more.
    pub(crate) fn forget_all_addresses(&mut self) {
        if let Some(machine) = &mut self.machine {
            (0..3).for_each(|table| machine.clear_table(table));
        }
    }

    /// Only those of global pages still lead somewhere.
    pub(crate) fn forget_local_addresses(&mut self) {
        let Some(machine) = &mut self.machine else {
            return;
        };
        for (table, local) in machine.tables.iter_mut().zip(&mut machine.local) {
            while let Some(index) = local.pop() {
                table.keys[usize::from(index)] = empty_key(index.into());
            }
        }
    }

    /// Those of one page lead nowhere.
    pub(crate) fn forget_page(&mut self, linear: u64) {
        let Some(machine) = &mut self.machine else {
            return;
        };
        let group = jump_index(linear & !0xfff) / OFFSETS;
        (0..3).for_each(|table| machine.clear_group(table, group));
    }

    /// Code of a page was written: what was made of it must not run again.
    pub(crate) fn page_changed(&mut self, physical: u64) {
        if let Some(machine) = &mut self.machine {
            machine.drop_page(physical);
        }
    }

    /// Any code may have been written.
    pub(crate) fn pages_changed(&mut self) {
        if let Some(machine) = &mut self.machine {
            let pages: Vec<u64> = machine.by_page.keys().copied().collect();
            pages.into_iter().for_each(|page| machine.drop_page(page));
        }
    }
}

/// How translated code was left, as the run loop sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Left {
    /// By an interpreted operation: its outcome.
    Interpreted(Exec),
    /// By an edge: it may be linked to the unit at RIP.
    Edge(u32),
    /// By a jump: RIP may be put into the jump table.
    Jump,
    /// RIP is where to go on.
    Here,
    /// The instruction at RIP must be interpreted.
    Interpret,
}

impl Cpu {
    /// The mode that translated code depends on.
    #[inline(always)]
    pub(crate) fn variant(&self) -> usize {
        self.mmu.current() * 2 + usize::from(self.vectors_run())
    }

    /// Vector instructions need no test before they run.
    #[inline(always)]
    fn vectors_run(&self) -> bool {
        let all = cr4::OSFXSR | cr4::OSXSAVE;
        self.cr0 & (cr0::EM | cr0::TS) == 0
            && self.cr4 & all == all
            && self.xcr0 & 6 == 6
            && self.extended.mxcsr & MXCSR_MASKS == MXCSR_MASKS
    }

    /// The unit of a block that is at `linear`, which is RIP; translated now if
    /// it has run often enough.
    #[inline(always)]
    pub(crate) fn unit_of(&mut self, block: *const Block) -> Option<u32> {
        let variant = self.variant();
        let machine = self.translator.machine.as_ref()?;
        // SAFETY: as in `run_block`: blocks live until another is decoded.
        let translations = unsafe { &(*block).translations };
        match translations.unit(variant, machine.generation) {
            // News of a change may come when the new code is translated
            // already; then the unit is gone and the block is as good as ever.
            unit if unit != 0 && machine.unit(unit - 1).is_some() => Some(unit - 1),
            _ => {
                let count = translations.count.get() + 1;
                translations.count.set(count);
                if count <= self.translator.threshold {
                    return None;
                }
                self.translate_block(block, variant, false)
            }
        }
    }

    /// The unit an edge shall lead to.
    pub(crate) fn unit_for_edge(&mut self, edge: u32, block: *const Block) -> Option<u32> {
        let plain = self.translator.machine.as_ref()?.edges.get(edge)?.plain;
        if plain {
            let variant = self.variant();
            return self.translate_block(block, variant, true);
        }
        self.unit_of(block)
    }

    /// Translates the block at RIP.
    #[inline(never)]
    fn translate_block(&mut self, block: *const Block, variant: usize, plain: bool) -> Option<u32> {
        let linear = self.rip;
        // SAFETY: as in `unit_of`.
        if self.code_size != CodeSize::Bits64 || unsafe { &*block }.second.is_some() {
            return None;
        }
        let physical = self.translate_code(linear).ok()?.physical;
        let head = self.cache.find(physical, self.code_size)?;
        if !std::ptr::eq(Rc::as_ptr(&head), block) {
            return None;
        }
        let key = physical << 4 | (variant as u64) << 1 | u64::from(plain);
        let machine = self.translator.machine.as_ref()?;
        if let Some(unit) = machine.by_key.get(&key).copied() {
            if !plain {
                head.translations.set(variant, machine.generation, unit);
            }
            return Some(unit);
        }
        let began = crate::clock::host_tsc();
        let page = physical & !0xfff;
        let blocks = self.follow(physical, head.clone());
        let bytes = self.read_page(page)?;
        if !head.is_current() {
            return None;
        }
        let mut items = unit::items(
            &blocks,
            &bytes,
            variant % 2 == 1,
            variant / 2 == crate::mmu::USER,
        )?;
        let cache = &self.cache;
        unit::mark_live(&mut items, |offset| {
            cache
                .find(page | u64::from(offset), CodeSize::Bits64)
                .map(|block| block.wanted_flags)
        });
        let instructions = items.len() as u64;
        let machine = self.translator.machine.as_mut()?;
        let unit = machine.add(&items, key, page, variant, plain)?;
        let made = machine.units.get_mut(unit)?;
        made.blocks = blocks.iter().map(|(_, block)| block.clone()).collect();
        let far_entry = made.far_entry;
        if !plain {
            head.translations.set(variant, machine.generation, unit);
        }
        let length = machine.code.next().saturating_sub(far_entry) as usize;
        perf_map::note(far_entry, length, linear, variant / 2 == crate::mmu::USER);
        self.counters.code_evictions = machine.evictions;
        self.counters.units_translated += 1;
        self.counters.instructions_translated += instructions;
        self.counters.translating += crate::clock::host_tsc().saturating_sub(began);
        Some(unit)
    }

    /// The host code of the block at RIP, for people to look at.
    #[cfg(any(test, feature = "difftest"))]
    pub(crate) fn translate_here(&mut self) -> Option<(u64, Vec<u8>)> {
        let block = self.next_block().ok()?;
        let unit = self.unit_of(block)?;
        let machine = self.translator.machine.as_ref()?;
        let start = machine.unit(unit)?.far_entry;
        Some((start.into(), machine.code.read(start)))
    }

    /// The block and those that follow it when its jumps are not taken, if
    /// those run about as often.
    fn follow(&self, physical: u64, head: Rc<Block>) -> Vec<(u32, Rc<Block>)> {
        let page = physical & !0xfff;
        let mut offset = (physical & 0xfff) as u32;
        let mut count = head.operations.len();
        let mut blocks = vec![(offset, head)];
        while let Some((_, last)) = blocks.last() {
            offset += last.length;
            if !last.falls_through || offset >= 4096 || blocks.len() >= MOST_BLOCKS {
                break;
            }
            let next = self.cache.find(page | u64::from(offset), self.code_size);
            let Some(next) = next.filter(|next| {
                next.second.is_none()
                    && next.translations.count.get() * 2 >= self.translator.threshold
            }) else {
                break;
            };
            count += next.operations.len();
            if count > unit::MOST_ITEMS {
                break;
            }
            blocks.push((offset, next));
        }
        blocks
    }

    /// The bytes of a page of code.
    fn read_page(&self, physical: u64) -> Option<Box<[u8]>> {
        let place = self.mmu.ram(physical)?;
        let mut bytes = vec![0; 4096].into_boxed_slice();
        // SAFETY: a page of RAM.
        unsafe { crate::scalar::copy_forward(bytes.as_mut_ptr(), place.host, 4096) };
        Some(bytes)
    }

    /// Runs a unit; it begins at RIP.
    #[inline(always)]
    pub(crate) fn run_unit(&mut self, unit: u32) -> Left {
        let Some(machine) = &self.translator.machine else {
            return Left::Interpret;
        };
        let Some(&Unit { entry, .. }) = machine.unit(unit) else {
            return Left::Here;
        };
        let enter = machine.thunks.enter;
        self.hot.entry = entry.into();
        self.hot.page = self.rip & !0xfff;
        let bits = self.arithmetic.bits();
        self.hot.set_arithmetic(bits);
        // SAFETY: the thunk was written for this processor, which lies where it
        // lay then, and the unit is one of its own. Translated code changes
        // only this processor, its tables' contents, and guest memory.
        let reason = unsafe {
            let enter: extern "C" fn() -> u32 = std::mem::transmute(u64::from(enter) as *const ());
            std::hint::black_box(&mut *self);
            enter()
        };
        self.left(reason)
    }

    fn left(&mut self, reason: u32) -> Left {
        if reason == Return::Interpreted as u32 {
            self.counters.left_interpreted += 1;
            return Left::Interpreted(std::mem::replace(&mut self.translator.outcome, Ok(())));
        }
        self.arithmetic = crate::flags::ArithmeticFlags::from_bits(self.hot.arithmetic());
        const EDGE: u32 = Return::Edge as u32;
        const INDIRECT: u32 = Return::Indirect as u32;
        const INTERPRET: u32 = Return::Interpret as u32;
        const STALE: u32 = Return::Stale as u32;
        match reason {
            EDGE => {
                self.counters.left_by_edge += 1;
                Left::Edge(self.hot.edge)
            }
            INDIRECT => {
                self.counters.left_by_jump += 1;
                self.jumped()
            }
            INTERPRET => Left::Interpret,
            STALE => {
                self.forget_jump();
                Left::Here
            }
            _ => {
                self.counters.left_otherwise += 1;
                Left::Here
            }
        }
    }

    /// A jump found no target in the table.
    fn jumped(&mut self) -> Left {
        if crate::segment::is_canonical(self.rip) || self.hot.undo == NO_UNDO {
            return Left::Jump;
        }
        let undo = Undo::decode(self.hot.undo);
        self.rip = self.hot.page | u64::from(undo.offset);
        self.gpr[4] = self.gpr[4].wrapping_sub(undo.moved as i64 as u64);
        Left::Interpret
    }

    fn forget_jump(&mut self) {
        let (index, key) = (jump_index(self.rip), self.rip.wrapping_neg());
        if let Some(machine) = &mut self.translator.machine {
            for table in &mut machine.tables {
                if table.keys[index] == key {
                    table.keys[index] = empty_key(index);
                }
            }
        }
    }

    /// From here on the edge leads to the unit.
    pub(crate) fn link_edge(&mut self, edge: u32, unit: u32) {
        if let Some(machine) = &mut self.translator.machine {
            machine.link(edge, unit);
        }
    }

    /// From here on jumps to RIP lead to the unit.
    pub(crate) fn remember_jump(&mut self, unit: u32) {
        let linear = self.rip;
        let table = self.mmu.current();
        let vectors = self.vectors_run();
        let Ok(Translation { global, .. }) = self.translate_code(linear) else {
            return;
        };
        let Some(machine) = &mut self.translator.machine else {
            return;
        };
        if machine.vectors[table] != vectors {
            machine.vectors[table] = vectors;
            machine.clear_table(table);
        }
        machine.remember(table, linear, unit, global);
    }

    /// The mode changed: jumps must not lead to units of another.
    #[inline(always)]
    pub(crate) fn check_jump_tables(&mut self) {
        let table = self.mmu.current();
        let vectors = self.vectors_run();
        if let Some(machine) = &mut self.translator.machine
            && machine.vectors[table] != vectors
        {
            machine.vectors[table] = vectors;
            machine.clear_table(table);
        }
    }
}

#[cfg(test)]
#[path = "translate_test.rs"]
mod test;
