//! Blocks of decoded instructions, and how the next one is found.
//!
//! A block is known by the guest-physical address of its first byte and by
//! how wide the code is; so it survives changes of the address space. It holds
//! while the version of its page is what it was when its bytes were read
//! (`favo_accel::memory::pages`).
//!
//! In front of that lies a table by linear address. An entry there holds while
//! its stamp is one of the two current ones: one for global pages, one for
//! the others, so that a change of address space forgets the latter only.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::cpu::CodeSize;
use crate::mmu::{LargePages, Translation};
use crate::operation::Operation;
use crate::translate::Translations;

/// Operations kept before everything is dropped and decoding starts over;
/// at about 40 bytes each this is 80 MiB.
const MOST_OPERATIONS: usize = 2 << 20;

/// Entries of the table by linear address.
const NEAR: usize = 1 << 14;
/// Counters for forgetting single pages; several pages share one.
const PAGES: usize = 256;

/// A page of code and the version of it that was decoded.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CodePage {
    version: *const AtomicU32,
    decoded: u32,
}

impl CodePage {
    /// `version` points into guest memory's page table, which outlives every
    /// block cache; `decoded` is what `arm_code` returned.
    pub(crate) fn new(version: &AtomicU32, decoded: u32) -> Self {
        Self { version, decoded }
    }

    #[inline(always)]
    fn is_current(&self) -> bool {
        // SAFETY: the processor that owns this cache keeps the memory alive.
        unsafe { (*self.version).load(Ordering::Acquire) == self.decoded }
    }
}

/// Straight-line code up to a transfer, a page end, or a limit.
#[derive(Debug)]
pub(crate) struct Block {
    /// What to execute.
    pub operations: Box<[Operation]>,
    /// Bytes they take.
    pub length: u32,
    /// Behind its last operation the next block begins, as far as is known.
    pub falls_through: bool,
    /// The arithmetic flags that are wanted where it begins.
    pub wanted_flags: u16,
    /// What the translator made of it.
    pub translations: Translations,
    /// The page its first byte lies in.
    pub page: CodePage,
    /// Guest-physical page and version of the second page, for an instruction
    /// that crosses into one.
    pub second: Option<(u64, CodePage)>,
}

impl Block {
    /// Its pages are as they were when it was decoded.
    #[inline(always)]
    pub(crate) fn is_current(&self) -> bool {
        self.page.is_current()
            && self
                .second
                .as_ref()
                .is_none_or(|(_, page)| page.is_current())
    }
}

#[derive(Clone)]
struct NearEntry {
    linear: u64,
    stamp: u64,
    /// What the page's counter was.
    page: u32,
    block: Option<Rc<Block>>,
}

/// The blocks of one processor.
pub(crate) struct BlockCache {
    blocks: HashMap<u64, Rc<Block>, BuildHasherDefault<AddressHasher>>,
    operations: usize,
    near: Box<[NearEntry]>,
    /// Counts how often a page was forgotten.
    pages: Box<[u32; PAGES]>,
    global_stamp: u64,
    local_stamp: u64,
    next_stamp: u64,
    /// Where code in large pages was found.
    large: LargePages,
}

// SAFETY: the Rcs are all inside this cache or on the stack of the thread that
// runs the processor; the cache moves between threads only as a whole, between
// runs. The version pointers are as in `CodePage`.
unsafe impl Send for BlockCache {}

impl Default for BlockCache {
    fn default() -> Self {
        let empty = NearEntry {
            linear: 0,
            stamp: 0,
            page: 0,
            block: None,
        };
        Self {
            blocks: HashMap::default(),
            operations: 0,
            near: vec![empty; NEAR].into(),
            pages: Box::new([0; PAGES]),
            global_stamp: 1,
            local_stamp: 2,
            next_stamp: 3,
            large: LargePages::default(),
        }
    }
}

#[inline(always)]
fn near_index(linear: u64, mode: u64) -> usize {
    (linear ^ linear >> 14 ^ linear >> 28 ^ mode << 11) as usize % NEAR
}

#[inline(always)]
fn page_index(linear: u64) -> usize {
    (linear >> 12 ^ linear >> 20) as usize % PAGES
}

impl BlockCache {
    /// The block at a linear address, if it is near and valid. `mode` is
    /// whatever else it depends on: code width and privilege.
    /// The pointer holds until the next `insert` or `remember`.
    #[inline(always)]
    pub(crate) fn near(&self, linear: u64, mode: u64) -> Option<*const Block> {
        let entry = &self.near[near_index(linear, mode)];
        let key = linear.wrapping_add(mode << 56);
        if entry.linear == key
            && entry.page == self.pages[page_index(linear)]
            && (entry.stamp == self.local_stamp || entry.stamp == self.global_stamp)
            && let Some(block) = &entry.block
            && block.is_current()
        {
            return Some(Rc::as_ptr(block));
        }
        None
    }

    /// Remembers a block by its linear address.
    pub(crate) fn remember(
        &mut self,
        linear: u64,
        mode: u64,
        page: &Translation,
        block: &Rc<Block>,
    ) {
        let stamp = if page.global {
            self.global_stamp
        } else {
            self.local_stamp
        };
        self.large.note(linear, page.page_bits);
        self.near[near_index(linear, mode)] = NearEntry {
            linear: linear.wrapping_add(mode << 56),
            stamp,
            page: self.pages[page_index(linear)],
            block: Some(block.clone()),
        };
    }

    /// The block at a guest-physical address, if it is there and valid.
    pub(crate) fn find(&self, physical: u64, size: CodeSize) -> Option<Rc<Block>> {
        self.blocks
            .get(&key(physical, size))
            .filter(|block| block.is_current())
            .cloned()
    }

    /// Keeps a block.
    pub(crate) fn insert(&mut self, physical: u64, size: CodeSize, block: Block) -> Rc<Block> {
        if self.operations > MOST_OPERATIONS {
            self.clear();
        }
        self.operations += block.operations.len();
        let block = Rc::new(block);
        if let Some(old) = self.blocks.insert(key(physical, size), block.clone()) {
            self.operations -= old.operations.len();
        }
        block
    }

    fn clear(&mut self) {
        self.blocks.clear();
        self.operations = 0;
        self.near.iter_mut().for_each(|entry| entry.block = None);
    }

    /// No linear address leads anywhere any more.
    pub(crate) fn forget_all_addresses(&mut self) {
        self.large = LargePages::default();
        self.global_stamp = self.stamp();
        self.local_stamp = self.stamp();
    }

    /// Only global linear addresses still lead somewhere.
    pub(crate) fn forget_local_addresses(&mut self) {
        self.local_stamp = self.stamp();
    }

    /// The linear addresses of one page lead nowhere. False if that meant to
    /// forget all of them.
    pub(crate) fn forget_page(&mut self, linear: u64) -> bool {
        if self.large.may_contain(linear) {
            self.forget_all_addresses();
            return false;
        }
        // An entry that stays untouched while its counter goes once round
        // would come back to life.
        let counter = &mut self.pages[page_index(linear)];
        *counter = counter.wrapping_add(1);
        if *counter == 0 {
            self.forget_all_addresses();
        }
        true
    }

    fn stamp(&mut self) -> u64 {
        self.next_stamp += 1;
        self.next_stamp
    }
}

fn key(physical: u64, size: CodeSize) -> u64 {
    physical << 2 | size as u64
}

/// Spreads addresses; they come from the guest, but a guest can slow down
/// only itself.
#[derive(Default)]
struct AddressHasher(u64);

impl Hasher for AddressHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64((*byte).into());
        }
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0 ^ value)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(26);
    }
}
