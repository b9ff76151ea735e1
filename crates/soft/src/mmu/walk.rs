//! Page walks (SDM vol. 3, chapter 4): 32-bit, PAE and 4-level paging.
//!
//! A walk checks every level, then the rights, and only then sets accessed
//! and dirty bits, each with a compare-and-exchange that starts the walk over
//! if the entry changed meanwhile. Entries outside RAM read as not present.

use super::{PAGE_MASK, Want};
use crate::cpu::{Cpu, cr0, cr4, efer};
use crate::scalar::Scalar;

/// Bits of a paging-structure entry.
mod entry {
    pub const PRESENT: u64 = 1 << 0;
    pub const WRITABLE: u64 = 1 << 1;
    pub const USER: u64 = 1 << 2;
    pub const ACCESSED: u64 = 1 << 5;
    pub const DIRTY: u64 = 1 << 6;
    pub const LARGE: u64 = 1 << 7;
    pub const GLOBAL: u64 = 1 << 8;
    pub const NO_EXECUTE: u64 = 1 << 63;
}

/// Bits of a page fault's error code.
mod fault {
    pub const PROTECTION: u32 = 1 << 0;
    pub const WRITE: u32 = 1 << 1;
    pub const USER: u32 = 1 << 2;
    pub const RESERVED: u32 = 1 << 3;
    pub const FETCH: u32 = 1 << 4;
}

/// Where a linear address leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Translation {
    /// The guest-physical address, offset included.
    pub physical: u64,
    /// A write is allowed, too, and the page is marked dirty already.
    pub writable: bool,
    /// Stays valid across address spaces.
    pub global: bool,
    /// Log2 of the size of the page.
    pub page_bits: u8,
}

/// One step of a walk.
#[derive(Clone, Copy, Default)]
struct Step {
    address: u64,
    value: u64,
}

/// How a paging mode reads its tables.
struct Mode {
    levels: u32,
    /// Bits of the linear address per level.
    index_bits: u32,
    entry_bytes: u64,
    /// PDPT entries of PAE paging have no rights and no accessed bit.
    pae: bool,
}

impl Cpu {
    /// Walks the tables. The error is the page fault's error code.
    pub(super) fn walk(
        &mut self,
        linear: u64,
        want: Want,
        user: bool,
        ignores_smap: bool,
    ) -> Result<Translation, u32> {
        // Another processor may change an entry between our reading and our
        // marking it; then the walk starts over. Bounded, for a hostile guest.
        for _ in 0..64 {
            if let Some(translation) = self.try_walk(linear, want, user, ignores_smap)? {
                return Ok(translation);
            }
        }
        Err(self.fault_code(0, want, user))
    }

    fn try_walk(
        &mut self,
        linear: u64,
        want: Want,
        user: bool,
        ignores_smap: bool,
    ) -> Result<Option<Translation>, u32> {
        let mode = self.paging_mode();
        let no_execute = self.efer & efer::NXE != 0;
        let mut steps = [Step::default(); 4];
        let mut table = if mode.pae {
            self.cr3 & 0xffff_ffe0
        } else {
            self.cr3 & ADDRESS
        };
        let (mut writable, mut allows_user, mut executable) = (true, true, true);
        let mut depth = 0;
        let (leaf, page_bits) = loop {
            let level = mode.levels - 1 - depth;
            let shift = 12 + level * mode.index_bits;
            let width = if mode.pae && level == 2 {
                2
            } else {
                mode.index_bits
            };
            let index = linear >> shift & ((1 << width) - 1);
            let address = table + index * mode.entry_bytes;
            let value = self.read_entry(address, mode.entry_bytes);
            if value & entry::PRESENT == 0 {
                return Err(self.fault_code(0, want, user));
            }
            steps[depth as usize] = Step { address, value };
            depth += 1;
            let large = level > 0 && value & entry::LARGE != 0 && self.allows_large(&mode, level);
            if self.has_reserved_bits(value, &mode, level, large, no_execute) {
                let code = fault::PROTECTION | fault::RESERVED;
                return Err(self.fault_code(code, want, user));
            }
            let bare = mode.pae && level == 2;
            if !bare {
                writable &= value & entry::WRITABLE != 0;
                allows_user &= value & entry::USER != 0;
                executable &= !(no_execute && value & entry::NO_EXECUTE != 0);
            }
            if level == 0 || large {
                break (value, shift);
            }
            table = if mode.entry_bytes == 4 {
                value & 0xffff_f000
            } else {
                value & ADDRESS
            };
        };

        let write_protect = self.cr0 & cr0::WP != 0;
        let writable = writable || !user && !write_protect;
        let smap = self.cr4 & cr4::SMAP != 0 && !ignores_smap;
        let smep = self.cr4 & cr4::SMEP != 0;
        let allowed = (!user || allows_user)
            && match want {
                Want::Execute => executable && (user || !smep || !allows_user),
                Want::Write => writable && (user || !smap || !allows_user),
                Want::Read => user || !smap || !allows_user,
            };
        if !allowed {
            return Err(self.fault_code(fault::PROTECTION, want, user));
        }

        let marks_dirty = want == Want::Write;
        for (number, step) in steps[..depth as usize].iter().enumerate() {
            let is_leaf = number as u32 + 1 == depth;
            if mode.pae && number == 0 {
                continue;
            }
            let mut marked = step.value | entry::ACCESSED;
            if is_leaf && marks_dirty {
                marked |= entry::DIRTY;
            }
            if marked != step.value && !self.replace_entry(step, marked, mode.entry_bytes) {
                return Ok(None);
            }
        }

        let base = if mode.entry_bytes == 4 && page_bits == 22 {
            // PSE-36: bits 20:13 are address bits 39:32.
            leaf & 0xffc0_0000 | (leaf >> 13 & 0xff) << 32
        } else if mode.entry_bytes == 4 {
            leaf & 0xffff_f000
        } else {
            leaf & ADDRESS & !((1 << page_bits) - 1)
        };
        Ok(Some(Translation {
            physical: base | linear & ((1 << page_bits) - 1),
            writable: writable && (marks_dirty || leaf & entry::DIRTY != 0),
            global: leaf & entry::GLOBAL != 0 && self.cr4 & cr4::PGE != 0,
            page_bits: page_bits as u8,
        }))
    }

    fn paging_mode(&self) -> Mode {
        if self.long_mode {
            Mode {
                levels: 4,
                index_bits: 9,
                entry_bytes: 8,
                pae: false,
            }
        } else if self.cr4 & cr4::PAE != 0 {
            Mode {
                levels: 3,
                index_bits: 9,
                entry_bytes: 8,
                pae: true,
            }
        } else {
            Mode {
                levels: 2,
                index_bits: 10,
                entry_bytes: 4,
                pae: false,
            }
        }
    }

    fn allows_large(&self, mode: &Mode, level: u32) -> bool {
        match mode.levels {
            4 => level <= 2,
            3 => level == 1,
            _ => level == 1 && self.cr4 & cr4::PSE != 0,
        }
    }

    fn has_reserved_bits(
        &self,
        value: u64,
        mode: &Mode,
        level: u32,
        large: bool,
        no_execute: bool,
    ) -> bool {
        if mode.entry_bytes == 4 {
            return large && value & 1 << 21 != 0;
        }
        let mut reserved = ADDRESS & !((1 << self.limits.physical_bits) - 1);
        if mode.pae {
            reserved |= 0x7ff0_0000_0000_0000;
            if level == 2 {
                reserved |= entry::NO_EXECUTE | 0x1e6;
            }
        }
        if !no_execute {
            reserved |= entry::NO_EXECUTE;
        }
        if large {
            // Below the page's own address bits, but for PAT (bit 12).
            reserved |= ((1 << (12 + level * 9)) - 1) & !0x1fff;
        } else if mode.levels == 4 && level == 3 {
            reserved |= entry::LARGE;
        }
        value & reserved != 0
    }

    fn fault_code(&self, code: u32, want: Want, user: bool) -> u32 {
        let fetch_shows =
            self.efer & efer::NXE != 0 && self.cr4 & cr4::PAE != 0 || self.cr4 & cr4::SMEP != 0;
        code | match want {
            Want::Write => fault::WRITE,
            Want::Execute if fetch_shows => fault::FETCH,
            _ => 0,
        } | if user { fault::USER } else { 0 }
    }

    fn read_entry(&self, address: u64, bytes: u64) -> u64 {
        match self.mmu.ram(address) {
            // SAFETY: entries are aligned to their size, so they lie inside
            // one page of RAM.
            Some(place) if bytes == 4 => unsafe { u32::load(place.host).into() },
            // SAFETY: as above.
            Some(place) => unsafe { u64::load(place.host) },
            None => 0,
        }
    }

    /// Replaces an entry unless it changed since it was read.
    fn replace_entry(&mut self, step: &Step, new: u64, bytes: u64) -> bool {
        let Some(place) = self.mmu.ram(step.address) else {
            return false;
        };
        // SAFETY: as in `read_entry`.
        let replaced = unsafe {
            if bytes == 4 {
                let old = step.value as u32;
                u32::compare_exchange(place.host, old, new as u32) == old
            } else {
                u64::compare_exchange(place.host, step.value, new) == step.value
            }
        };
        if replaced {
            let flags = place.pages.flags()[place.page].load(std::sync::atomic::Ordering::Relaxed);
            if flags & favo_accel::memory::pages::NOTICE != 0 {
                place.pages.note_write(place.page);
            }
        }
        replaced
    }
}

/// Bits 51:12 of an entry: the next table or the page.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

const _: () = assert!(ADDRESS & PAGE_MASK == 0);
