//! What a processor's translator keeps: the code, the units it is made of, the
//! jumps between them, and the tables by which other jumps find them.

use std::collections::{HashMap, HashSet, VecDeque};
use std::ops::Range;
use std::rc::Rc;

use super::assembler::Assembler;
use super::code::CodeMemory;
use super::emit::Context;
use super::numbered::Numbered;
use super::thunk::{self, Places, Thunks};
use super::{VARIANTS, unit};
use crate::cache::Block;
use crate::cpu::Cpu;
use crate::low::{LARGE_PAGE, LowBox, address};

/// Bytes of code a processor keeps at most.
const MOST_CODE: usize = 128 << 20;
/// Bytes of code that all processors of a machine keep: Linux has only a
/// gibibyte of addresses for programs that want low ones.
const MACHINE_CODE: usize = 192 << 20;

/// Bytes of code that each of so many processors keeps, in large pages.
fn code_bytes(processors: usize) -> usize {
    // Tests run in many threads of one process.
    let whole = if cfg!(test) { 16 << 20 } else { MACHINE_CODE };
    let each = (whole / processors.max(1)).min(MOST_CODE);
    each.max(LARGE_PAGE * 2) / LARGE_PAGE * LARGE_PAGE
}
/// Bits of a linear address that make an index in the jump table: nine of the
/// offset in the page (functions begin at multiples of 16, and two calls
/// hardly ever return to the same eight bytes), seven of the page.
pub(crate) const JUMP_MASK: u64 = 0x7_fff8;
/// Indices that one page has.
pub(super) const OFFSETS: usize = 512;
pub(super) const JUMPS: usize = 1 << 16;

/// Where jumps lead, by linear address.
#[repr(C)]
pub(super) struct JumpTable {
    /// The linear address, negated, so that adding the target gives zero.
    pub(super) keys: [u64; JUMPS],
    /// Code for it.
    pub(super) codes: [u64; JUMPS],
}

/// A jump inside a page.
#[derive(Clone, Copy, Debug)]
pub(super) struct Edge {
    pub(super) site: u32,
    pub(super) stub: u32,
    /// The unit it leaves.
    pub(super) from: u32,
    pub(super) plain: bool,
    pub(super) linked: bool,
}

/// Translated code.
pub(super) struct Unit {
    pub(super) key: u64,
    /// For jumps inside the page.
    pub(super) entry: u32,
    /// For jumps by linear address.
    pub(super) far_entry: u32,
    pub(super) stale: u32,
    pub(super) alive: bool,
    /// Edges that lead here.
    pub(super) incoming: Vec<u32>,
    /// Holds the operations its code points to.
    pub(super) blocks: Vec<Rc<Block>>,
}

/// One processor's code.
pub(super) struct Machine {
    pub(super) code: CodeMemory,
    pub(super) context: [Context; VARIANTS],
    pub(super) thunks: Thunks,
    pub(super) tables: [LowBox<JumpTable>; 3],
    /// Indices filled with pages that are not global.
    pub(super) local: [Vec<u16>; 3],
    /// Groups of indices of a page that may have something in them.
    pub(super) filled: [u128; 3],
    /// Vector instructions ran as they are when the tables were filled.
    pub(super) vectors: [bool; 3],
    pub(super) units: Numbered<Unit>,
    pub(super) edges: Numbered<Edge>,
    /// The first units and edges of the segments of code in use, the oldest
    /// first.
    segments: VecDeque<(u32, u32)>,
    pub(super) evictions: u64,
    pub(super) by_key: HashMap<u64, u32>,
    pub(super) by_page: HashMap<u64, Vec<u32>>,
    pub(super) generation: u32,
}

/// RFLAGS of the host, but for the arithmetic flags: the same wherever
/// translated code runs.
fn host_flags() -> i32 {
    let flags: u64;
    // SAFETY: reads the flags by way of the stack.
    unsafe { std::arch::asm!("pushfq", "pop {}", out(reg) flags, options(preserves_flags)) };
    (flags & !crate::cpu::rflags::ARITHMETIC) as i32
}

pub(super) fn jump_index(linear: u64) -> usize {
    (linear >> 3) as usize % JUMPS
}

const _: () = assert!(JUMP_MASK == (JUMPS as u64 - 1) << 3);

/// A key that no address with this index has.
pub(super) fn empty_key(index: usize) -> u64 {
    if index == 0 {
        // Not an address; the index may be asked for with any.
        return 0x8bad_c0de_5eed_f00du64.wrapping_neg();
    }
    (((index ^ 1) as u64) << 3).wrapping_neg()
}

impl Machine {
    pub(super) fn new(cpu: &Cpu) -> std::io::Result<Self> {
        let mut code = CodeMemory::new(code_bytes(cpu.shared.processors()))?;
        let places = Places::of(cpu);
        let mut assembler = Assembler::new(code.next());
        let thunks = thunk::write(&mut assembler, &places);
        code.publish(&assembler.finish());
        code.keep();
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
            code,
            context,
            thunks,
            tables,
            local: Default::default(),
            filled: [u128::MAX; 3],
            vectors: [false; 3],
            units: Numbered::default(),
            edges: Numbered::default(),
            segments: [(0, 0)].into(),
            evictions: 0,
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

    pub(super) fn clear_table(&mut self, table: usize) {
        (0..JUMPS / OFFSETS).for_each(|group| self.clear_group(table, group));
        self.local[table].clear();
    }

    pub(super) fn clear_group(&mut self, table: usize, group: usize) {
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
    pub(super) fn clear(&mut self) {
        self.code.restart();
        self.units = Numbered::default();
        self.edges = Numbered::default();
        self.segments = [(0, 0)].into();
        self.by_key.clear();
        self.by_page.clear();
        self.generation += 1;
        (0..3).for_each(|table| self.clear_table(table));
    }

    /// A unit that may be entered.
    #[inline(always)]
    pub(super) fn unit(&self, number: u32) -> Option<&Unit> {
        self.units.get(number).filter(|unit| unit.alive)
    }

    pub(super) fn drop_page(&mut self, physical: u64) {
        for number in self.by_page.remove(&physical).unwrap_or_default() {
            let Some(unit) = self.units.get_mut(number) else {
                continue;
            };
            unit.alive = false;
            self.by_key.remove(&unit.key);
            unit.blocks.clear();
            // The jump table may still lead here.
            let distance = unit.stale.wrapping_sub(unit.entry + 5).to_le_bytes();
            let [a, b, c, d] = distance;
            self.code.patch(unit.entry, &[0xe9, a, b, c, d]);
            let incoming = std::mem::take(&mut unit.incoming);
            self.cut(&incoming);
        }
    }

    /// These edges lead nowhere any more.
    fn cut(&mut self, edges: &[u32]) {
        for number in edges {
            let Some(edge) = self.edges.get_mut(*number) else {
                continue;
            };
            edge.linked = false;
            // The code of what is gone already begins with another jump.
            if self.units.get(edge.from).is_some_and(|unit| unit.alive) {
                self.code.link(edge.site, edge.stub);
            }
        }
    }

    /// Begins the next segment of code; what lay in it is forgotten. Only the
    /// oldest goes, so that what runs now mostly stays.
    fn next_segment(&mut self) {
        if self.units.next() > u32::MAX / 2 || self.edges.next() > u32::MAX / 2 {
            return self.clear();
        }
        let range = self.code.next_segment();
        if self.segments.len() == self.code.segments() {
            self.evict(&range);
        }
        self.segments
            .push_back((self.units.next(), self.edges.next()));
    }

    /// Forgets the units of the oldest segment, which lie in `range`.
    fn evict(&mut self, range: &Range<u32>) {
        self.evictions += 1;
        self.segments.pop_front();
        let none_left = (self.units.next(), self.edges.next());
        let (units, edges) = self.segments.front().copied().unwrap_or(none_left);
        let mut pages = HashSet::new();
        while let Some(unit) = self.units.pop_below(units) {
            if unit.alive {
                self.by_key.remove(&unit.key);
                pages.insert(unit.key >> 4 & !0xfff);
                self.cut(&unit.incoming);
            }
        }
        while self.edges.pop_below(edges).is_some() {}
        for page in pages {
            if let Some(numbers) = self.by_page.get_mut(&page) {
                numbers.retain(|number| *number >= units);
                if numbers.is_empty() {
                    self.by_page.remove(&page);
                }
            }
        }
        for (table, filled) in self.tables.iter_mut().zip(&self.filled) {
            for group in (0..JUMPS / OFFSETS).filter(|group| filled >> group & 1 != 0) {
                for index in group * OFFSETS..(group + 1) * OFFSETS {
                    if range.contains(&(table.codes[index] as u32)) {
                        table.keys[index] = empty_key(index);
                    }
                }
            }
        }
    }

    pub(super) fn remember(&mut self, table: usize, linear: u64, unit: u32, global: bool) {
        let index = jump_index(linear);
        if index == 0 {
            return;
        }
        let Some(&Unit { far_entry, .. }) = self.unit(unit) else {
            return;
        };
        let jumps = &mut self.tables[table];
        jumps.keys[index] = linear.wrapping_neg();
        self.filled[table] |= 1 << (index / OFFSETS);
        jumps.codes[index] = far_entry.into();
        if !global {
            if self.local[table].len() >= JUMPS {
                // The same indices again and again: begin anew.
                return self.clear_table(table);
            }
            self.local[table].push(index as u16);
        }
    }

    pub(super) fn link(&mut self, number: u32, to: u32) {
        let (Some(edge), Some(unit)) = (self.edges.get_mut(number), self.units.get_mut(to)) else {
            return;
        };
        if edge.linked || !unit.alive {
            return;
        }
        edge.linked = true;
        unit.incoming.push(number);
        let (site, entry, from) = (edge.site, unit.entry, edge.from);
        if self.unit(from).is_some() {
            self.code.link(site, entry);
        }
    }
}

impl Machine {
    /// Writes a unit. None if it is too large.
    pub(super) fn add(
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
        let write = |machine: &Self| {
            let (start, edge) = (machine.code.next(), machine.edges.next());
            unit::write(items, context, start, edge, machine.thunks.stale)
        };
        let mut written = write(self)?;
        let mut start = self.code.next();
        if !self.code.publish(&written.code) {
            self.next_segment();
            start = self.code.next();
            written = write(self)?;
            if !self.code.publish(&written.code) {
                return None;
            }
        }
        let number = self.units.next();
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
