//! Tables of translations, in front of the page walk.
//!
//! Direct-mapped, one line of 32 bytes per entry, laid out for translated
//! code: it XORs an address with the tag of its line, and what is left is the
//! offset in the page if the tag was right and at least 4096 if not. So a tag
//! that means "nothing" must be right for no address at all that comes to its
//! line: it is a page whose own line is another.
//!
//! A `write` tag promises that a store needs no further thought: the page is
//! RAM, writable, marked dirty, and nobody wants to hear of writes to it
//! (`favo_accel::memory::pages`). Whoever begins to want that has the tag
//! taken away first ([`Table::revoke`]).

use std::sync::atomic::AtomicU8;

use favo_accel::PAGE_SIZE;

use super::Want;
use crate::low::LowBox;

/// Entries of a table.
pub(crate) const ENTRIES: usize = 4096;
/// Log2 of the bytes of a [`Line`].
pub(crate) const LINE_BITS: u32 = 5;
/// Fills of non-global pages that are remembered one by one; beyond that a
/// change of address space looks at the whole table.
const MOST_LOCAL: usize = 512;
const PAGE_MASK: u64 = PAGE_SIZE - 1;

/// What translated code looks at.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Line {
    /// The linear page that may be read.
    pub read: u64,
    /// The linear page that may be written.
    pub write: u64,
    /// Where the page lies on the host.
    pub host: u64,
    /// The linear page that may be executed.
    pub execute: u64,
}

const _: () = assert!(size_of::<Line>() == 1 << LINE_BITS);

/// What else is known of a line's page.
#[derive(Clone, Copy)]
pub(crate) struct Page {
    /// Guest-physical page.
    pub physical: u64,
    /// The page's notice flags.
    pub flags: *const AtomicU8,
    /// The linear page.
    pub linear: u64,
    /// Stays through a change of address space.
    pub global: bool,
    /// Log2 of the size of the guest's page.
    pub page_bits: u8,
}

/// Remembers where large pages may have been cut into entries: dropping one of
/// them has to look through the whole table. The halves of the address space
/// are kept apart, because kernels use large pages and programs drop small
/// ones.
#[derive(Clone, Copy, Default)]
pub(crate) struct LargePages {
    mebi: [u64; 2],
    gibi: [u64; 2],
}

impl LargePages {
    pub(crate) fn note(&mut self, linear: u64, page_bits: u8) {
        let half = (linear >> 63) as usize;
        match page_bits {
            ..=12 => {}
            // 4 MiB pages are two of 2 MiB.
            13..=22 => self.mebi[half] |= 3 << (linear >> 22 << 1 & 63),
            _ => self.gibi[half] |= 1 << (linear >> 30 & 63),
        }
    }

    pub(crate) fn may_contain(&self, linear: u64) -> bool {
        let half = (linear >> 63) as usize;
        self.mebi[half] >> (linear >> 21 & 63) & 1 != 0
            || self.gibi[half] >> (linear >> 30 & 63) & 1 != 0
    }
}

/// One table.
pub(crate) struct Table {
    pub(crate) lines: LowBox<[Line; ENTRIES]>,
    pub(crate) pages: Box<[Page]>,
    /// Indices filled with pages that are not global since those were last
    /// dropped, as far as there is room.
    local: Vec<u16>,
    large: LargePages,
}

/// The line of an address.
#[inline(always)]
pub(crate) fn index(linear: u64) -> usize {
    (linear >> 12) as usize & (ENTRIES - 1)
}

/// A tag that no address of line `index` has.
#[inline(always)]
fn nothing(index: usize) -> u64 {
    ((index ^ (ENTRIES / 2)) as u64) << 12
}

impl Table {
    pub(crate) fn new() -> std::io::Result<Self> {
        let page = Page {
            physical: 0,
            flags: std::ptr::null(),
            linear: 0,
            global: false,
            page_bits: 12,
        };
        // SAFETY: lines are integers.
        let lines = unsafe { LowBox::zeroed() }?;
        let mut table = Self {
            lines,
            pages: vec![page; ENTRIES].into(),
            local: Vec::with_capacity(MOST_LOCAL),
            large: LargePages::default(),
        };
        table.clear();
        Ok(table)
    }

    pub(crate) fn clear(&mut self) {
        for index in 0..ENTRIES {
            self.clear_entry(index);
        }
        self.local.clear();
        self.large = LargePages::default();
    }

    pub(crate) fn clear_non_global(&mut self) {
        if self.local.len() < MOST_LOCAL {
            while let Some(index) = self.local.pop() {
                if !self.pages[usize::from(index)].global {
                    self.clear_entry(index.into());
                }
            }
            return;
        }
        self.local.clear();
        for index in 0..ENTRIES {
            if !self.pages[index].global {
                self.clear_entry(index);
            }
        }
    }

    pub(crate) fn clear_page(&mut self, linear: u64) {
        self.clear_entry(index(linear));
        if !self.large.may_contain(linear) {
            return;
        }
        for index in 0..ENTRIES {
            let page = &self.pages[index];
            if page.page_bits > 12 && (page.linear ^ linear) >> page.page_bits == 0 {
                self.clear_entry(index);
            }
        }
    }

    #[inline(always)]
    fn clear_entry(&mut self, index: usize) {
        let none = nothing(index);
        let line = &mut self.lines[index];
        line.read = none;
        line.write = none;
        line.execute = none;
    }

    /// Remembers a page for what `want` asked; what else was remembered of
    /// the same page stays.
    pub(crate) fn fill(&mut self, page: Page, host: u64, want: Want, writable: bool) {
        let index = index(page.linear);
        let none = nothing(index);
        let line = &mut self.lines[index];
        let linear = page.linear;
        for tag in [&mut line.read, &mut line.write, &mut line.execute] {
            if *tag != linear {
                *tag = none;
            }
        }
        match want {
            Want::Execute => line.execute = linear,
            Want::Read | Want::Write => {
                line.read = linear;
                line.write = if writable { linear } else { none };
            }
        }
        line.host = host;
        if !page.global && self.local.len() < MOST_LOCAL {
            self.local.push(index as u16);
        }
        self.large.note(page.linear, page.page_bits);
        self.pages[index] = page;
    }

    /// From here on a write to a guest-physical page, or to any if None, goes
    /// the slow way.
    pub(crate) fn revoke(&mut self, physical: Option<u64>) {
        for index in 0..ENTRIES {
            if physical.is_none_or(|physical| self.pages[index].physical == physical) {
                self.lines[index].write = nothing(index);
            }
        }
    }

    /// The line that allows a read, or a write, of the page of `address`.
    #[inline(always)]
    pub(crate) fn line(&self, address: u64) -> &Line {
        &self.lines[index(address)]
    }

    /// The rest of what is known of the page of `address`.
    pub(crate) fn page(&self, address: u64) -> &Page {
        &self.pages[index(address & !PAGE_MASK)]
    }
}
