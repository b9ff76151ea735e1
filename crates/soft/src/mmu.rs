//! From linear addresses to host memory.
//!
//! A direct-mapped table of translations in front of the page walk
//! ([`walk`]). Three tables, by who asks: supervisor code, user code, and
//! supervisor code with EFLAGS.AC set, for which SMAP does not hold. A tag
//! says "this access is allowed and goes there"; everything else, the first
//! write to a clean page and device memory included, misses and takes the slow
//! way. Stores look at the page's notice flags after the bytes are written
//! (`favo_accel::memory::pages` has the protocol with the code caches).

mod table;
mod walk;

use std::sync::atomic::Ordering;

use favo_accel::memory::pages::{NOTICE, RegionPages};
use favo_accel::{GuestMemory, PAGE_SIZE};

use crate::cpu::{CodeSize, Cpu, cr0, cr4, rflags};
use crate::scalar::Scalar;
use crate::segment::is_canonical;
use crate::trap::{Exception, Exec, GP0};

pub(crate) use table::{ENTRIES, LINE_BITS, LargePages, Line};
use table::{Page, Table};
pub(crate) use walk::Translation;

const PAGE_MASK: u64 = PAGE_SIZE - 1;
/// Never a page address.
const NO_PAGE: u64 = 1;

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
pub(crate) const SUPERVISOR: usize = 0;
pub(crate) const USER: usize = 1;
pub(crate) const SUPERVISOR_AC: usize = 2;

/// The translation tables of one processor. Only its own thread touches them.
pub(crate) struct Mmu {
    memory: GuestMemory,
    tables: [Table; 3],
    /// The table of the code that runs now. Derived.
    current: usize,
    /// Guest-physical pages that some write tag may lead to, one bit each.
    written: Box<[u64]>,
    /// Pages with data breakpoints: never in the tables. `NO_PAGE` for none.
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
fn written_bit(physical: u64) -> (usize, u64) {
    let page = (physical >> 12) as usize;
    (page / 64, 1 << (page % 64))
}

impl Mmu {
    pub(crate) fn new(memory: GuestMemory) -> std::io::Result<Self> {
        let end = memory
            .regions()
            .iter()
            .map(|region| region.start.0 + region.size.bytes())
            .max()
            .unwrap_or(0);
        Ok(Self {
            written: vec![0; (end.div_ceil(PAGE_SIZE * 64)) as usize].into(),
            memory,
            tables: [Table::new()?, Table::new()?, Table::new()?],
            current: SUPERVISOR,
            watched: [NO_PAGE; 8],
        })
    }

    /// The table of the code that runs now.
    pub(crate) fn current(&self) -> usize {
        self.current
    }

    /// The lines of a table, for translated code.
    pub(crate) fn lines(&self, table: usize) -> *const Line {
        self.tables[table].lines.as_ptr()
    }

    /// Writes to a guest-physical page, or to any page if None, go the slow
    /// way from here on.
    pub(crate) fn revoke_writes(&mut self, physical: Option<u64>) {
        match physical {
            Some(physical) => {
                let (word, bit) = written_bit(physical);
                if self.written[word] & bit == 0 {
                    return;
                }
                self.written[word] &= !bit;
            }
            None => self.written.fill(0),
        }
        for table in &mut self.tables {
            table.revoke(physical);
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
        let host = place.host as u64;
        let flags = &place.pages.flags()[place.page];
        let entry = Page {
            flags,
            physical: translation.physical & !PAGE_MASK,
            linear: page,
            global: translation.global,
            page_bits: translation.page_bits,
        };
        let writable = translation.writable && flags.load(Ordering::SeqCst) & NOTICE == 0;
        if writable && want != Want::Execute {
            let (word, bit) = written_bit(entry.physical);
            self.written[word] |= bit;
        }
        self.tables[table].fill(entry, host, want, writable);
    }
}

impl Cpu {
    /// Which table data accesses use now; part of [`Cpu::update_mode`].
    pub(crate) fn update_mmu_mode(&mut self) {
        let table = if self.cpl == 3 {
            USER
        } else if self.cr4 & cr4::SMAP != 0 && self.system_flags & rflags::AC != 0 {
            SUPERVISOR_AC
        } else {
            SUPERVISOR
        };
        if table != self.mmu.current {
            self.mmu.current = table;
            self.hot.window_limit = 0;
        }
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
        let line = table.line(address);
        // The page of the last byte: an access that crosses pages can't match,
        // because the next page belongs to the next line.
        if line.read == address.wrapping_add(T::SIZE as u64 - 1) & !PAGE_MASK {
            let host = (line.host | address & PAGE_MASK) as *const u8;
            // SAFETY: the tag vouches that this page is RAM, mapped at
            // `host`, and the access lies inside it.
            return Ok(unsafe { T::load(host) });
        }
        self.read_slow(address, T::SIZE, access).map(T::from_u64)
    }

    /// Writes at a linear address.
    #[inline(always)]
    pub fn write_linear<T: Scalar>(&mut self, address: u64, value: T, access: Access) -> Exec {
        let table = &self.mmu.tables[self.table_for(access)];
        let line = table.line(address);
        if line.write == address.wrapping_add(T::SIZE as u64 - 1) & !PAGE_MASK {
            let host = (line.host | address & PAGE_MASK) as *mut u8;
            // SAFETY: as in `read_linear`. Nobody wants to hear of the write:
            // the tag says so.
            unsafe { T::store(host, value) };
            return Ok(());
        }
        self.write_slow(address, value.to_u64(), T::SIZE, access)
    }

    /// Gives up writing pages without notice.
    pub(crate) fn revoke_writes(&mut self, physical: Option<u64>) {
        self.mmu.revoke_writes(physical);
        self.hot.window_limit = 0;
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
        let line = self.mmu.tables[table].line(address);
        let tag = match want {
            Want::Write => line.write,
            _ => line.read,
        };
        if tag == address & !PAGE_MASK {
            return Ok(Some((line.host | address & PAGE_MASK) as *mut u8));
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
        let table = &self.mmu.tables[self.table_for(access)];
        if table.line(address).write == address & !PAGE_MASK {
            return;
        }
        let page = table.page(address);
        // SAFETY: `host_range` filled this entry a moment ago; flags live as
        // long as the memory.
        if unsafe { (*page.flags).load(Ordering::SeqCst) } & NOTICE != 0 {
            self.notice_write(page.physical);
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
        let table = self.mmu.current;
        if self.mmu.tables[table].line(address).execute == address & !PAGE_MASK {
            let entry = self.mmu.tables[table].page(address);
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
        self.hot.window_limit = 0;
        self.mmu.watched = [NO_PAGE; 8];
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
        self.translator.forget_all_addresses();
        self.hot.window_limit = 0;
    }

    /// Drops every translation of a page that is not global.
    pub fn flush_tlb_non_global(&mut self) {
        self.counters.address_space_flushes += 1;
        self.mmu
            .tables
            .iter_mut()
            .for_each(|table| table.clear_non_global());
        self.cache.forget_local_addresses();
        self.translator.forget_local_addresses();
        self.hot.window_limit = 0;
    }

    /// Drops the translations of one page, in the current address space.
    pub fn flush_tlb_page(&mut self, address: u64) {
        self.mmu
            .tables
            .iter_mut()
            .for_each(|table| table.clear_page(address));
        if self.cache.forget_page(address) {
            self.translator.forget_page(address);
        } else {
            self.translator.forget_all_addresses();
        }
        self.hot.window_limit = 0;
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
