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

/// Operations kept before everything is dropped and decoding starts over;
/// at about 40 bytes each this is 40 MiB.
const MOST_OPERATIONS: usize = 1 << 20;

/// Entries of the table by linear address: 64 pages' worth of 64 each, so that
/// forgetting a page touches 64 entries.
const PAGES: usize = 64;
const PER_PAGE: usize = 64;

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
    block: Option<Rc<Block>>,
}

/// The blocks of one processor.
pub(crate) struct BlockCache {
    blocks: HashMap<u64, Rc<Block>, BuildHasherDefault<AddressHasher>>,
    operations: usize,
    near: Box<[NearEntry]>,
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
            block: None,
        };
        Self {
            blocks: HashMap::default(),
            operations: 0,
            near: vec![empty; PAGES * PER_PAGE].into(),
            global_stamp: 1,
            local_stamp: 2,
            next_stamp: 3,
            large: LargePages::default(),
        }
    }
}

#[inline(always)]
fn near_index(linear: u64, mode: u64) -> usize {
    let page = (linear >> 12) as usize % PAGES;
    let within = (linear ^ linear >> 6 ^ mode << 4) as usize % PER_PAGE;
    page * PER_PAGE + within
}

impl BlockCache {
    /// The block at a linear address, if it is near and valid. `mode` is
    /// whatever else it depends on: code width and privilege.
    #[inline(always)]
    pub(crate) fn near(&self, linear: u64, mode: u64) -> Option<Rc<Block>> {
        let entry = &self.near[near_index(linear, mode)];
        let key = linear.wrapping_add(mode << 56);
        if entry.linear == key
            && (entry.stamp == self.local_stamp || entry.stamp == self.global_stamp)
            && let Some(block) = &entry.block
            && block.is_current()
        {
            return Some(block.clone());
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

    /// The linear addresses of one page lead nowhere.
    pub(crate) fn forget_page(&mut self, linear: u64) {
        if self.large.may_contain(linear) {
            return self.forget_all_addresses();
        }
        let start = (linear >> 12) as usize % PAGES * PER_PAGE;
        for entry in &mut self.near[start..start + PER_PAGE] {
            entry.stamp = 0;
        }
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
