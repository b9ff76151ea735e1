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
mod perf_map;
mod thunk;
mod unit;

use std::collections::HashMap;
use std::rc::Rc;

use assembler::Assembler;
use code::CodeMemory;
use emit::Context;
use flow::Undo;
pub(crate) use form::flags as flags_of;
pub(crate) use thunk::{Hot, Return, initial};
use thunk::{NO_UNDO, Places, Thunks};

use crate::cache::Block;
use crate::cpu::{CodeSize, Cpu, cr0, cr4};
use crate::low::{LowBox, address};
use crate::mmu::Translation;
use crate::native::MXCSR_MASKS;
use crate::trap::Exec;

/// Bytes of code a processor keeps.
const CODE_BYTES: usize = 64 << 20;
/// How often a block is interpreted before it is translated.
const THRESHOLD: u32 = 12;
/// The most blocks in a unit.
const MOST_BLOCKS: usize = 6;

/// Bits of a linear address that make an index in the jump table: nine of the
/// offset in the page (functions begin at multiples of 16, and two calls
/// hardly ever return to the same eight bytes), seven of the page.
pub(crate) const JUMP_MASK: u64 = 0x7_fff8;
/// Indices that one page has.
const OFFSETS: usize = 512;
const JUMPS: usize = 1 << 16;

/// How modes are counted: a translation table and whether vector instructions
/// may run as they are.
const VARIANTS: usize = 6;

/// Where jumps lead, by linear address.
#[repr(C)]
struct JumpTable {
    /// The linear address, negated, so that adding the target gives zero.
    keys: [u64; JUMPS],
    /// Code for it.
    codes: [u64; JUMPS],
}

/// A jump inside a page.
#[derive(Clone, Copy, Debug)]
struct Edge {
    site: u32,
    stub: u32,
    /// The unit it leaves.
    from: u32,
    plain: bool,
    linked: bool,
}

/// Translated code.
struct Unit {
    key: u64,
    /// For jumps inside the page.
    entry: u32,
    /// For jumps by linear address.
    far_entry: u32,
    stale: u32,
    alive: bool,
    /// Edges that lead here.
    incoming: Vec<u32>,
    /// Holds the operations its code points to.
    blocks: Vec<Rc<Block>>,
}

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

struct Machine {
    code: CodeMemory,
    /// What `code` is cut back to.
    code_start: u32,
    context: [Context; VARIANTS],
    thunks: Thunks,
    tables: [LowBox<JumpTable>; 3],
    /// Indices filled with pages that are not global.
    local: [Vec<u16>; 3],
    /// Groups of indices of a page that may have something in them.
    filled: [u128; 3],
    /// Vector instructions ran as they are when the tables were filled.
    vectors: [bool; 3],
    units: Vec<Unit>,
    edges: Vec<Edge>,
    by_key: HashMap<u64, u32>,
    by_page: HashMap<u64, Vec<u32>>,
    generation: u32,
}

// SAFETY: as for the block cache: everything in it moves as a whole, between
// runs.
unsafe impl Send for Translator {}

/// RFLAGS of the host, but for the arithmetic flags: the same wherever
/// translated code runs.
fn host_flags() -> i32 {
    let flags: u64;
    // SAFETY: reads the flags by way of the stack.
    unsafe { std::arch::asm!("pushfq", "pop {}", out(reg) flags, options(preserves_flags)) };
    (flags & !crate::cpu::rflags::ARITHMETIC) as i32
}

fn jump_index(linear: u64) -> usize {
    (linear >> 3) as usize % JUMPS
}

const _: () = assert!(JUMP_MASK == (JUMPS as u64 - 1) << 3);

/// A key that no address with this index has.
fn empty_key(index: usize) -> u64 {
    if index == 0 {
        // Not an address; the index may be asked for with any.
        return 0x8bad_c0de_5eed_f00du64.wrapping_neg();
    }
    (((index ^ 1) as u64) << 3).wrapping_neg()
}

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
            .map_or(0, |machine| machine.code.used())
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

impl Machine {
    fn new(cpu: &Cpu) -> std::io::Result<Self> {
        let mut code = CodeMemory::new(CODE_BYTES)?;
        let places = Places::of(cpu);
        let mut assembler = Assembler::new(code.next());
        let thunks = thunk::write(&mut assembler, &places);
        code.publish(&assembler.finish());
        let table = || -> std::io::Result<LowBox<JumpTable>> {
            // SAFETY: a jump table is integers.
            unsafe { LowBox::zeroed() }
        };
        let tables = [table()?, table()?, table()?];
        let mailbox = cpu.shared.mailbox(cpu.id);
        let context = std::array::from_fn(|variant| Context {
            places,
            thunks,
            lines: address(cpu.mmu.lines(variant / 2)),
            keys: address(&raw const tables[variant / 2].keys),
            codes: address(&raw const tables[variant / 2].codes),
            mask: address(mailbox.jump_mask()),
            attention: address(mailbox.attention()),
            bases: address(&raw const cpu.bases),
            system_flags: address(&raw const cpu.system_flags),
            host_flags: host_flags(),
            windows: true,
        });
        let mut machine = Self {
            code_start: code.next(),
            code,
            context,
            thunks,
            tables,
            local: Default::default(),
            filled: [u128::MAX; 3],
            vectors: [false; 3],
            units: Vec::new(),
            edges: Vec::new(),
            by_key: HashMap::new(),
            by_page: HashMap::new(),
            generation: 1,
        };
        (0..3).for_each(|table| {
            machine.tables[table].codes.fill(thunks.lost.into());
            machine.clear_table(table);
        });
        Ok(machine)
    }

    fn clear_table(&mut self, table: usize) {
        (0..JUMPS / OFFSETS).for_each(|group| self.clear_group(table, group));
        self.local[table].clear();
    }

    fn clear_group(&mut self, table: usize, group: usize) {
        if self.filled[table] >> group & 1 == 0 {
            return;
        }
        self.filled[table] &= !(1 << group);
        let first = group * OFFSETS;
        let keys = &mut self.tables[table].keys[first..first + OFFSETS];
        for (offset, key) in keys.iter_mut().enumerate() {
            *key = empty_key(first + offset);
        }
    }

    /// Gives up everything.
    fn clear(&mut self) {
        self.code.truncate(self.code_start);
        self.units.clear();
        self.edges.clear();
        self.by_key.clear();
        self.by_page.clear();
        self.generation += 1;
        (0..3).for_each(|table| self.clear_table(table));
    }

    fn drop_page(&mut self, physical: u64) {
        for number in self.by_page.remove(&physical).unwrap_or_default() {
            let unit = &mut self.units[number as usize];
            unit.alive = false;
            self.by_key.remove(&unit.key);
            unit.blocks.clear();
            for edge in std::mem::take(&mut unit.incoming) {
                let edge = &mut self.edges[edge as usize];
                edge.linked = false;
                // The code of what is gone already begins with another jump.
                if self.units[edge.from as usize].alive {
                    self.code.link(edge.site, edge.stub);
                }
            }
            let unit = &self.units[number as usize];
            // The jump table may still lead here.
            let distance = unit.stale.wrapping_sub(unit.entry + 5).to_le_bytes();
            let [a, b, c, d] = distance;
            self.code.patch(unit.entry, &[0xe9, a, b, c, d]);
        }
    }

    fn remember(&mut self, table: usize, linear: u64, unit: u32, global: bool) {
        let index = jump_index(linear);
        if index == 0 {
            return;
        }
        let jumps = &mut self.tables[table];
        jumps.keys[index] = linear.wrapping_neg();
        self.filled[table] |= 1 << (index / OFFSETS);
        jumps.codes[index] = self.units[unit as usize].far_entry.into();
        if !global {
            if self.local[table].len() >= JUMPS {
                // The same indices again and again: begin anew.
                return self.clear_table(table);
            }
            self.local[table].push(index as u16);
        }
    }

    fn link(&mut self, number: u32, to: u32) {
        let unit = &mut self.units[to as usize];
        let edge = &mut self.edges[number as usize];
        if edge.linked || !unit.alive {
            return;
        }
        edge.linked = true;
        unit.incoming.push(number);
        let (site, entry, from) = (edge.site, unit.entry, edge.from);
        if self.units[from as usize].alive {
            self.code.link(site, entry);
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
        let generation = self.translator.machine.as_ref()?.generation;
        // SAFETY: as in `run_block`: blocks live until another is decoded.
        let translations = unsafe { &(*block).translations };
        match translations.unit(variant, generation) {
            0 => {
                let count = translations.count.get() + 1;
                translations.count.set(count);
                if count <= self.translator.threshold {
                    return None;
                }
                self.translate_block(block, variant, false)
            }
            unit => Some(unit - 1),
        }
    }

    /// The unit an edge shall lead to.
    pub(crate) fn unit_for_edge(&mut self, edge: u32, block: *const Block) -> Option<u32> {
        let plain = self
            .translator
            .machine
            .as_ref()?
            .edges
            .get(edge as usize)?
            .plain;
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
        let generation = machine.generation;
        let unit = machine.add(&items, key, page, variant, plain)?;
        machine.units[unit as usize].blocks =
            blocks.iter().map(|(_, block)| block.clone()).collect();
        if !plain {
            head.translations.set(variant, machine.generation, unit);
        }
        let Unit { far_entry, .. } = machine.units[unit as usize];
        let length = machine.code.next().saturating_sub(far_entry) as usize;
        perf_map::note(far_entry, length, linear, variant / 2 == crate::mmu::USER);
        self.counters.code_flushes += u64::from(machine.generation - generation);
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
        let start = machine.units[unit as usize].far_entry;
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
        let (entry, enter) = (machine.units[unit as usize].entry, machine.thunks.enter);
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
        if let Some(machine) = &mut self.translator.machine
            && (edge as usize) < machine.edges.len()
        {
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

impl Machine {
    /// Writes a unit. None if it is too large.
    fn add(
        &mut self,
        items: &[unit::Item<'_>],
        key: u64,
        page: u64,
        variant: usize,
        plain: bool,
    ) -> Option<u32> {
        let context = Context {
            windows: !plain,
            ..self.context[variant]
        };
        let mut written = unit::write(
            items,
            context,
            self.code.next(),
            self.edges.len() as u32,
            self.thunks.stale,
        )?;
        let mut start = self.code.next();
        if !self.code.publish(&written.code) {
            self.clear();
            start = self.code.next();
            written = unit::write(items, context, start, 0, self.thunks.stale)?;
            if !self.code.publish(&written.code) {
                return None;
            }
        }
        let number = self.units.len() as u32;
        for request in &written.edges {
            self.edges.push(Edge {
                site: request.site,
                stub: request.stub,
                from: number,
                plain: request.plain,
                linked: false,
            });
        }
        self.units.push(Unit {
            key,
            entry: written.entry,
            far_entry: start,
            stale: written.stale,
            alive: true,
            incoming: Vec::new(),
            blocks: Vec::new(),
        });
        self.by_key.insert(key, number);
        self.by_page.entry(page).or_default().push(number);
        Some(number)
    }
}

#[cfg(test)]
#[path = "translate_test.rs"]
mod test;
