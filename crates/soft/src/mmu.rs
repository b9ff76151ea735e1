//! From linear addresses to host memory.
//!
//! A direct-mapped table of translations in front of the page walk
//! ([`walk`]). Three tables, by who asks: supervisor code, user code, and
//! supervisor code with EFLAGS.AC set, for which SMAP does not hold. A tag
//! says "this access is allowed and goes there"; everything else, the first
//! write to a clean page and device memory included, misses and takes the slow
//! way. Stores look at the page's notice flags after the bytes are written
//! (`favo_accel::memory::pages` has the protocol with the code caches).

mod walk;

use std::sync::atomic::{AtomicU8, Ordering};

use favo_accel::memory::pages::{NOTICE, RegionPages};
use favo_accel::{GuestMemory, PAGE_SIZE};

use crate::cpu::{CodeSize, Cpu, cr0, cr4, rflags};
use crate::scalar::Scalar;
use crate::segment::is_canonical;
use crate::trap::{Exception, Exec, GP0};

pub(crate) use walk::Translation;

const ENTRIES: usize = 1024;
/// Entries of a change of address space that are dropped one by one; beyond
/// that all are looked at.
const MOST_LOCAL: usize = 256;
const PAGE_MASK: u64 = PAGE_SIZE - 1;
/// Never a page address.
const NO_TAG: u64 = 1;

/// Who accesses memory, and for what.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// The program's data, with the rights of its privilege level.
    Data,
    /// The same through SS: its faults are #SS.
    Stack,
    /// The processor itself: descriptor tables, task state, inner stacks.
    System,
}

/// What an access wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Want {
    Read,
    Write,
    Execute,
}

/// Which table an access uses.
const SUPERVISOR: usize = 0;
const USER: usize = 1;
const SUPERVISOR_AC: usize = 2;

#[derive(Clone, Copy)]
struct Entry {
    /// Host address minus linear address.
    addend: u64,
    /// The page's notice flags.
    flags: *const AtomicU8,
    /// Guest-physical page.
    physical: u64,
    /// The linear page.
    linear: u64,
    global: bool,
    /// Log2 of the size of the guest's page.
    page_bits: u8,
}

struct Table {
    read: [u64; ENTRIES],
    write: [u64; ENTRIES],
    execute: [u64; ENTRIES],
    entries: [Entry; ENTRIES],
    /// Indices filled with pages that are not global since those were last
    /// dropped, as far as there is room.
    local: Vec<u16>,
    large: LargePages,
}

/// Remembers where large pages may have been cut into entries: dropping one of
/// them has to look through the whole table.
#[derive(Clone, Copy, Default)]
pub(crate) struct LargePages {
    mebi: u64,
    gibi: u64,
}

impl LargePages {
    pub(crate) fn note(&mut self, linear: u64, page_bits: u8) {
        match page_bits {
            ..=12 => {}
            // 4 MiB pages are two of 2 MiB.
            13..=22 => self.mebi |= 3 << (linear >> 22 << 1 & 63),
            _ => self.gibi |= 1 << (linear >> 30 & 63),
        }
    }

    pub(crate) fn may_contain(&self, linear: u64) -> bool {
        self.mebi >> (linear >> 21 & 63) & 1 != 0 || self.gibi >> (linear >> 30 & 63) & 1 != 0
    }
}

impl Table {
    fn new() -> Box<Self> {
        let entry = Entry {
            addend: 0,
            flags: std::ptr::null(),
            physical: 0,
            linear: 0,
            global: false,
            page_bits: 12,
        };
        Box::new(Self {
            read: [NO_TAG; ENTRIES],
            write: [NO_TAG; ENTRIES],
            execute: [NO_TAG; ENTRIES],
            entries: [entry; ENTRIES],
            local: Vec::with_capacity(MOST_LOCAL),
            large: LargePages::default(),
        })
    }

    fn clear(&mut self) {
        self.read.fill(NO_TAG);
        self.write.fill(NO_TAG);
        self.execute.fill(NO_TAG);
        self.local.clear();
        self.large = LargePages::default();
    }

    fn clear_non_global(&mut self) {
        if self.local.len() < MOST_LOCAL {
            while let Some(index) = self.local.pop() {
                if !self.entries[usize::from(index)].global {
                    self.clear_entry(index.into());
                }
            }
            return;
        }
        self.local.clear();
        for index in 0..ENTRIES {
            if !self.entries[index].global {
                self.clear_entry(index);
            }
        }
    }

    fn clear_page(&mut self, linear: u64) {
        self.clear_entry(index(linear));
        if !self.large.may_contain(linear) {
            return;
        }
        for index in 0..ENTRIES {
            let entry = &self.entries[index];
            if entry.page_bits > 12 && (entry.linear ^ linear) >> entry.page_bits == 0 {
                self.clear_entry(index);
            }
        }
    }

    #[inline(always)]
    fn clear_entry(&mut self, index: usize) {
        self.read[index] = NO_TAG;
        self.write[index] = NO_TAG;
        self.execute[index] = NO_TAG;
    }

    /// Remembers an entry for what `want` asked; what else was remembered of
    /// the same page stays.
    fn fill(&mut self, entry: Entry, want: Want, writable: bool) {
        let index = index(entry.linear);
        let page = entry.linear;
        for tags in [&mut self.read, &mut self.write, &mut self.execute] {
            if tags[index] != page {
                tags[index] = NO_TAG;
            }
        }
        match want {
            Want::Execute => self.execute[index] = page,
            Want::Read | Want::Write => {
                self.read[index] = page;
                self.write[index] = if writable { page } else { NO_TAG };
            }
        }
        if !entry.global && self.local.len() < MOST_LOCAL {
            self.local.push(index as u16);
        }
        self.large.note(entry.linear, entry.page_bits);
        self.entries[index] = entry;
    }
}

/// The translation tables of one processor. Only its own thread touches them.
pub(crate) struct Mmu {
    memory: GuestMemory,
    tables: [Box<Table>; 3],
    /// The table of the code that runs now. Derived.
    current: usize,
    /// Pages with data breakpoints: never in the tables. `NO_TAG` for none.
    watched: [u64; 8],
}

// SAFETY: the pointers lead into guest memory's page flags, which `memory`
// keeps alive, and are only followed by whichever thread owns the processor.
unsafe impl Send for Mmu {}

/// A place in RAM.
#[derive(Clone, Copy)]
pub(crate) struct RamPlace<'a> {
    pub host: *mut u8,
    pub pages: &'a RegionPages,
    /// Index in `pages`.
    pub page: usize,
}

#[inline(always)]
fn index(linear: u64) -> usize {
    (linear >> 12) as usize & (ENTRIES - 1)
}

impl Mmu {
    pub(crate) fn new(memory: GuestMemory) -> Self {
        Self {
            memory,
            tables: [Table::new(), Table::new(), Table::new()],
            current: SUPERVISOR,
            watched: [NO_TAG; 8],
        }
    }

    /// Where a guest-physical address lies, if it is RAM.
    pub(crate) fn ram(&self, physical: u64) -> Option<RamPlace<'_>> {
        self.memory.regions().iter().find_map(|region| {
            let offset = physical.wrapping_sub(region.start.0);
            (offset < region.size.bytes()).then(|| RamPlace {
                // SAFETY: the offset is inside the region's mapping.
                host: unsafe { region.host_address.0.add(offset as usize) },
                pages: &region.pages,
                page: (offset / PAGE_SIZE) as usize,
            })
        })
    }

    fn fill(&mut self, table: usize, linear: u64, want: Want, translation: &Translation) {
        let page = linear & !PAGE_MASK;
        if want != Want::Execute && self.watched.contains(&page) {
            return;
        }
        let Some(place) = self.ram(translation.physical & !PAGE_MASK) else {
            return;
        };
        let entry = Entry {
            addend: (place.host as u64).wrapping_sub(page),
            flags: &place.pages.flags()[place.page],
            physical: translation.physical & !PAGE_MASK,
            linear: page,
            global: translation.global,
            page_bits: translation.page_bits,
        };
        self.tables[table].fill(entry, want, translation.writable);
    }
}

impl Cpu {
    /// Which table data accesses use now; part of [`Cpu::update_mode`].
    pub(crate) fn update_mmu_mode(&mut self) {
        self.mmu.current = if self.cpl == 3 {
            USER
        } else if self.cr4 & cr4::SMAP != 0 && self.system_flags & rflags::AC != 0 {
            SUPERVISOR_AC
        } else {
            SUPERVISOR
        };
    }

    #[inline(always)]
    fn table_for(&self, access: Access) -> usize {
        if access == Access::System {
            SUPERVISOR
        } else {
            self.mmu.current
        }
    }

    /// Reads at a linear address.
    #[inline(always)]
    pub fn read_linear<T: Scalar>(&mut self, address: u64, access: Access) -> Exec<T> {
        let table = &self.mmu.tables[self.table_for(access)];
        let index = index(address);
        // The page of the last byte: an access that crosses pages can't match,
        // because the next page belongs to the next index.
        if table.read[index] == address.wrapping_add(T::SIZE as u64 - 1) & !PAGE_MASK {
            let host = table.entries[index].addend.wrapping_add(address) as *const u8;
            // SAFETY: the tag vouches that this page is RAM, mapped at
            // `addend`, and the access lies inside it.
            return Ok(unsafe { T::load(host) });
        }
        self.read_slow(address, T::SIZE, access).map(T::from_u64)
    }

    /// Writes at a linear address.
    #[inline(always)]
    pub fn write_linear<T: Scalar>(&mut self, address: u64, value: T, access: Access) -> Exec {
        let table = &self.mmu.tables[self.table_for(access)];
        let index = index(address);
        if table.write[index] == address.wrapping_add(T::SIZE as u64 - 1) & !PAGE_MASK {
            let entry = &table.entries[index];
            let host = entry.addend.wrapping_add(address) as *mut u8;
            // SAFETY: as in `read_linear`; `flags` lives as long as the memory.
            let noticed = unsafe {
                T::store(host, value);
                (*entry.flags).load(Ordering::Relaxed) & NOTICE != 0
            };
            if noticed {
                self.notice_write(entry.physical);
            }
            return Ok(());
        }
        self.write_slow(address, value.to_u64(), T::SIZE, access)
    }

    /// A page somebody watches was written: tell, and have the running block
    /// end, for it may have been the code that was written.
    #[cold]
    pub(crate) fn notice_write(&mut self, physical: u64) {
        if let Some(place) = self.mmu.ram(physical) {
            place.pages.note_write(place.page);
        }
        self.leave_block = true;
    }

    #[cold]
    #[inline(never)]
    fn read_slow(&mut self, address: u64, size: usize, access: Access) -> Exec<u64> {
        self.check_canonical(address, size, access)?;
        if access != Access::System {
            self.watch_data(address, size, false);
        }
        let first = (PAGE_SIZE - (address & PAGE_MASK)) as usize;
        if first < size {
            let next = self.wrap(address.wrapping_add(first as u64));
            let low_page = self.translate(address, access, Want::Read)?;
            let high_page = self.translate(next, access, Want::Read)?;
            let low = self.read_physical(low_page.physical, first)?;
            let high = self.read_physical(high_page.physical, size - first)?;
            return Ok(low | high << (8 * first));
        }
        let translation = self.translate(address, access, Want::Read)?;
        let table = self.table_for(access);
        self.mmu.fill(table, address, Want::Read, &translation);
        self.read_physical(translation.physical, size)
    }

    #[cold]
    #[inline(never)]
    fn write_slow(&mut self, address: u64, value: u64, size: usize, access: Access) -> Exec {
        self.check_canonical(address, size, access)?;
        if access != Access::System {
            self.watch_data(address, size, true);
        }
        let first = (PAGE_SIZE - (address & PAGE_MASK)) as usize;
        if first < size {
            // Both pages must be writable before the first byte is.
            let next = self.wrap(address.wrapping_add(first as u64));
            let low_page = self.translate(address, access, Want::Write)?;
            let high_page = self.translate(next, access, Want::Write)?;
            self.write_physical(low_page.physical, value, first)?;
            return self.write_physical(high_page.physical, value >> (8 * first), size - first);
        }
        let translation = self.translate(address, access, Want::Write)?;
        let table = self.table_for(access);
        self.mmu.fill(table, address, Want::Write, &translation);
        self.write_physical(translation.physical, value, size)
    }

    /// Linear addresses are 32 bits wide outside 64-bit mode.
    fn wrap(&self, address: u64) -> u64 {
        if self.code_size == CodeSize::Bits64 || self.long_mode {
            address
        } else {
            address & 0xffff_ffff
        }
    }

    pub(crate) fn check_canonical(&self, address: u64, size: usize, access: Access) -> Exec {
        if !self.long_mode {
            return Ok(());
        }
        let last = address.wrapping_add(size as u64 - 1);
        if is_canonical(address) && is_canonical(last) {
            Ok(())
        } else if access == Access::Stack {
            Err(Exception::Stack(0).into())
        } else {
            Err(GP0)
        }
    }

    /// Reads up to 8 bytes inside one page.
    fn read_physical(&mut self, physical: u64, size: usize) -> Exec<u64> {
        let Some(place) = self.mmu.ram(physical) else {
            return self.read_device(physical, size);
        };
        let host = place.host;
        // SAFETY: the bytes lie inside one page of RAM.
        Ok(unsafe {
            match size {
                1 => u8::load(host).into(),
                2 => u16::load(host).into(),
                4 => u32::load(host).into(),
                8 => u64::load(host),
                _ => (0..size).rev().fold(0, |value, byte| {
                    value << 8 | u64::from(u8::load(host.add(byte)))
                }),
            }
        })
    }

    /// Writes up to 8 bytes inside one page.
    fn write_physical(&mut self, physical: u64, value: u64, size: usize) -> Exec {
        let Some(place) = self.mmu.ram(physical) else {
            return self.write_device(physical, value, size);
        };
        let host = place.host;
        // SAFETY: as above.
        unsafe {
            match size {
                1 => u8::store(host, value as u8),
                2 => u16::store(host, value as u16),
                4 => u32::store(host, value as u32),
                8 => u64::store(host, value),
                _ => (0..size)
                    .for_each(|byte| u8::store(host.add(byte), (value >> (8 * byte)) as u8)),
            }
        }
        if place.pages.flags()[place.page].load(Ordering::Relaxed) & NOTICE != 0 {
            self.notice_write(physical);
        }
        Ok(())
    }

    /// Where `length` bytes inside one page lie on the host, if they are RAM
    /// that may be accessed so. A writer calls [`Cpu::written`] afterwards.
    pub(crate) fn host_range(
        &mut self,
        address: u64,
        length: usize,
        access: Access,
        want: Want,
    ) -> Exec<Option<*mut u8>> {
        debug_assert!((address & PAGE_MASK) as usize + length <= PAGE_SIZE as usize);
        let table = self.table_for(access);
        let index = index(address);
        let tags = match want {
            Want::Write => &self.mmu.tables[table].write,
            _ => &self.mmu.tables[table].read,
        };
        if tags[index] == address & !PAGE_MASK {
            let addend = self.mmu.tables[table].entries[index].addend;
            return Ok(Some(addend.wrapping_add(address) as *mut u8));
        }
        self.check_canonical(address, length.max(1), access)?;
        if self.mmu.watched.contains(&(address & !PAGE_MASK)) {
            return Ok(None);
        }
        let translation = self.translate(address, access, want)?;
        self.mmu.fill(table, address, want, &translation);
        Ok(self.mmu.ram(translation.physical).map(|place| place.host))
    }

    /// Bytes at a linear address were written through [`Cpu::host_range`].
    pub(crate) fn written(&mut self, address: u64, access: Access) {
        let entry = self.mmu.tables[self.table_for(access)].entries[index(address)];
        // SAFETY: `host_range` filled this entry a moment ago; flags live as
        // long as the memory.
        if unsafe { (*entry.flags).load(Ordering::Relaxed) } & NOTICE != 0 {
            self.notice_write(entry.physical);
        }
    }

    /// Reads bytes; they may cross pages.
    pub fn read_bytes(&mut self, address: u64, bytes: &mut [u8], access: Access) -> Exec {
        for (offset, byte) in bytes.iter_mut().enumerate() {
            let address = self.wrap(address.wrapping_add(offset as u64));
            *byte = self.read_linear(address, access)?;
        }
        Ok(())
    }

    /// Writes bytes; all pages are checked before the first byte is written.
    pub fn write_bytes(&mut self, address: u64, bytes: &[u8], access: Access) -> Exec {
        self.check_writable(address, bytes.len(), access)?;
        for (offset, byte) in bytes.iter().enumerate() {
            let address = self.wrap(address.wrapping_add(offset as u64));
            self.write_linear(address, *byte, access)?;
        }
        Ok(())
    }

    /// Faults unless `length` bytes may be written.
    pub(crate) fn check_writable(&mut self, address: u64, length: usize, access: Access) -> Exec {
        if length == 0 {
            return Ok(());
        }
        self.check_canonical(address, length, access)?;
        let mut page = address;
        let last = address.wrapping_add(length as u64 - 1);
        loop {
            self.translate(self.wrap(page), access, Want::Write)?;
            if page & !PAGE_MASK == last & !PAGE_MASK {
                return Ok(());
            }
            page = (page & !PAGE_MASK).wrapping_add(PAGE_SIZE);
        }
    }

    /// Translates, or raises the page fault.
    pub(crate) fn translate(
        &mut self,
        address: u64,
        access: Access,
        want: Want,
    ) -> Exec<Translation> {
        if self.cr0 & cr0::PG == 0 {
            let physical = address & 0xffff_ffff;
            return Ok(Translation {
                physical,
                writable: true,
                global: false,
                page_bits: 12,
            });
        }
        self.counters.page_walks += 1;
        let user = self.cpl == 3 && access != Access::System;
        let ignores_smap = access != Access::System && self.system_flags & rflags::AC != 0;
        self.walk(address, want, user, ignores_smap)
            .map_err(|error_code| {
                self.fault_address = address;
                Exception::PageFault { error_code }.into()
            })
    }

    /// Translates the address of an instruction.
    pub(crate) fn translate_code(&mut self, address: u64) -> Exec<Translation> {
        let (index, page) = (index(address), address & !PAGE_MASK);
        let table = self.mmu.current;
        if self.mmu.tables[table].execute[index] == page {
            let entry = &self.mmu.tables[table].entries[index];
            return Ok(Translation {
                physical: entry.physical | address & PAGE_MASK,
                writable: false,
                global: entry.global,
                page_bits: entry.page_bits,
            });
        }
        let translation = self.translate(address, Access::Data, Want::Execute)?;
        self.mmu.fill(table, address, Want::Execute, &translation);
        Ok(translation)
    }

    /// Keeps these pages out of the tables from here on, and no others.
    pub(crate) fn watch_pages(&mut self, addresses: &[u64]) {
        self.mmu.watched = [NO_TAG; 8];
        for (page, address) in self.mmu.watched.iter_mut().zip(addresses) {
            *page = address & !PAGE_MASK;
        }
        for address in addresses {
            self.mmu
                .tables
                .iter_mut()
                .for_each(|table| table.clear_page(*address));
        }
    }

    /// Drops every translation.
    pub fn flush_tlb_all(&mut self) {
        self.mmu.tables.iter_mut().for_each(|table| table.clear());
        self.cache.forget_all_addresses();
    }

    /// Drops every translation of a page that is not global.
    pub fn flush_tlb_non_global(&mut self) {
        self.mmu
            .tables
            .iter_mut()
            .for_each(|table| table.clear_non_global());
        self.cache.forget_local_addresses();
    }

    /// Drops the translations of one page, in the current address space.
    pub fn flush_tlb_page(&mut self, address: u64) {
        self.mmu
            .tables
            .iter_mut()
            .for_each(|table| table.clear_page(address));
        self.cache.forget_page(address);
    }

    /// INVPCID of one page: translations aren't kept for address spaces other
    /// than the current one, so there is at most that one to drop.
    pub fn flush_tlb_page_of_pcid(&mut self, _pcid: u16, address: u64) {
        self.flush_tlb_page(address);
    }

    /// INVPCID of one address space.
    pub fn flush_tlb_pcid(&mut self, _pcid: u16) {
        self.flush_tlb_non_global();
    }

    /// CR3 was written. Whether the new address space's translations may be
    /// kept does not matter: none are.
    pub(crate) fn address_space_changed(&mut self, _keep: bool) {
        if self.cr4 & cr4::PGE != 0 {
            self.flush_tlb_non_global();
        } else {
            self.flush_tlb_all();
        }
    }
}

#[cfg(test)]
#[path = "mmu_test.rs"]
mod test;
