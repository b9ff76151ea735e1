//! The Linux boot protocol, 64-bit entry (Linux,
//! Documentation/arch/x86/boot.rst and zero-page.rst).
//!
//! Puts a kernel, its command line, an initial RAM disk and the zero page into
//! memory, and gives the boot processor the state the protocol asks for: long
//! mode, the first 4 GiB mapped to themselves, flat segments, RSI at the zero
//! page, interrupts off.

use std::ops::Range;

use favo_accel::state::{Segment, VcpuState};
use favo_accel::{GuestMemory, MemoryError, PAGE_SIZE};
use favo_types::{ByteCount, GuestAddress};

use crate::kernel::Kernel;

/// Everything the protocol needs fits below the first 640 KiB.
mod place {
    use favo_types::GuestAddress;

    pub const GDT: GuestAddress = GuestAddress(0x500);
    pub const ZERO_PAGE: GuestAddress = GuestAddress(0x7000);
    pub const STACK_TOP: GuestAddress = GuestAddress(0x8ff0);
    pub const PML4: GuestAddress = GuestAddress(0x9000);
    pub const PDPT: GuestAddress = GuestAddress(0xa000);
    /// Four page directories, one for each GiB.
    pub const PAGE_DIRECTORIES: GuestAddress = GuestAddress(0xb000);
    pub const COMMAND_LINE: GuestAddress = GuestAddress(0x2_0000);
}

/// Offsets in the zero page.
mod zero_page {
    pub const ACPI_RSDP: usize = 0x070;
    pub const E820_ENTRIES: usize = 0x1e8;
    pub const BOOT_FLAG: usize = 0x1fe;
    pub const HEADER_MAGIC: usize = 0x202;
    pub const VERSION: usize = 0x206;
    pub const TYPE_OF_LOADER: usize = 0x210;
    pub const LOADFLAGS: usize = 0x211;
    pub const RAMDISK_IMAGE: usize = 0x218;
    pub const RAMDISK_SIZE: usize = 0x21c;
    pub const CMD_LINE_PTR: usize = 0x228;
    pub const INITRD_ADDR_MAX: usize = 0x22c;
    pub const CMDLINE_SIZE: usize = 0x238;
    pub const E820_TABLE: usize = 0x2d0;
}

/// "No id assigned": a loader Linux does not know by name.
const LOADER_UNDEFINED: u8 = 0xff;
/// The protected-mode code is at 1 MiB or above.
const LOADED_HIGH: u8 = 1;
/// What Linux accepts when the header does not say.
const DEFAULT_CMDLINE_MAX: usize = 2047;
/// Where the kernel and the initrd may lie.
const HIGH_MEMORY: GuestAddress = GuestAddress(1 << 20);

/// What an address range is for (ACPI 6.4, table 15-6).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum RangeKind {
    /// Usable RAM.
    Ram = 1,
    /// Not to be touched.
    Reserved = 2,
}

/// A line of the memory map handed to the kernel.
pub type MapEntry = (Range<u64>, RangeKind);

/// What to boot.
pub struct Boot<'a> {
    /// The kernel.
    pub kernel: &'a Kernel,
    /// The initial RAM disk; may be several archives behind each other.
    pub initrd: &'a [u8],
    /// The kernel's command line.
    pub command_line: &'a str,
    /// The memory map, ascending.
    pub memory_map: &'a [MapEntry],
    /// Where the ACPI root pointer lies.
    pub acpi_rsdp: Option<GuestAddress>,
}

/// Why a machine can't be booted with what it was given.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// Kernel and initrd are larger than the memory they may lie in.
    #[error("{what} of {size} does not fit into the machine's memory; give it more with --memory")]
    DoesNotFit {
        /// "the kernel" or "the initial RAM disk".
        what: &'static str,
        /// How large it is.
        size: ByteCount,
    },
    /// The kernel would lie over something else.
    #[error("the kernel wants to lie at {0}, below 1 MiB, where the boot data is")]
    KernelTooLow(GuestAddress),
    /// The kernel can't take so long a command line.
    #[error("the kernel command line is {length} bytes long, and this kernel takes {limit}")]
    CommandLineTooLong {
        /// How long it is.
        length: usize,
        /// The most the kernel takes.
        limit: usize,
    },
    /// The kernel command line holds a NUL byte.
    #[error("the kernel command line holds a zero byte")]
    CommandLineNul,
    /// The memory map has more lines than fit into the zero page.
    #[error("the memory map has {0} ranges; the boot protocol takes 128")]
    TooManyRanges(usize),
    /// Memory could not be written.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

impl Boot<'_> {
    /// Writes everything into `memory` and changes `state`, a power-on state,
    /// to what the kernel expects at its entry.
    pub fn place(&self, memory: &GuestMemory, state: &mut VcpuState) -> Result<(), BootError> {
        let kernel_end = self.place_kernel(memory)?;
        let initrd = self.place_initrd(memory, kernel_end)?;
        self.place_command_line(memory)?;
        let page = self.zero_page(initrd)?;
        memory.write(place::ZERO_PAGE, &page)?;
        place_page_tables(memory)?;
        place_gdt(memory)?;
        enter_long_mode(state);
        state.general.rip = self.kernel.entry.0;
        state.general.rsi = place::ZERO_PAGE.0;
        state.general.rsp = place::STACK_TOP.0;
        Ok(())
    }

    fn place_kernel(&self, memory: &GuestMemory) -> Result<u64, BootError> {
        let size = ByteCount(self.kernel.image.len() as u64);
        let mut end = HIGH_MEMORY.0;
        for segment in &self.kernel.segments {
            if segment.address < HIGH_MEMORY {
                return Err(BootError::KernelTooLow(segment.address));
            }
            if memory
                .find(segment.address, segment.memory_size.bytes())
                .is_none()
            {
                return Err(BootError::DoesNotFit {
                    what: "the kernel",
                    size,
                });
            }
            memory.write(segment.address, &self.kernel.image[segment.file.clone()])?;
            end = end.max(segment.address.0 + segment.memory_size.bytes());
        }
        Ok(end)
    }

    /// The initrd goes as high as it may, so that a kernel that moves or
    /// grows finds room behind itself.
    fn place_initrd(&self, memory: &GuestMemory, kernel_end: u64) -> Result<u64, BootError> {
        if self.initrd.is_empty() {
            return Ok(0);
        }
        let size = self.initrd.len() as u64;
        let does_not_fit = || BootError::DoesNotFit {
            what: "the initial RAM disk",
            size: ByteCount(size),
        };
        let low = memory.regions().first().ok_or_else(does_not_fit)?;
        let highest = self
            .header_u32(zero_page::INITRD_ADDR_MAX)
            .unwrap_or(0x37ff_ffff);
        let top = (low.start.0 + low.size.bytes()).min(u64::from(highest) + 1);
        let address = top
            .checked_sub(size)
            .map(|address| address & !(PAGE_SIZE - 1))
            .ok_or_else(does_not_fit)?;
        if address < kernel_end {
            return Err(does_not_fit());
        }
        memory.write(GuestAddress(address), self.initrd)?;
        Ok(address)
    }

    fn place_command_line(&self, memory: &GuestMemory) -> Result<(), BootError> {
        let limit = match self.header_u32(zero_page::CMDLINE_SIZE) {
            Some(size) if size > 0 => (size as usize).min(0xffff),
            _ => DEFAULT_CMDLINE_MAX,
        };
        let length = self.command_line.len();
        if length > limit {
            return Err(BootError::CommandLineTooLong { length, limit });
        }
        let line =
            std::ffi::CString::new(self.command_line).map_err(|_| BootError::CommandLineNul)?;
        Ok(memory.write(place::COMMAND_LINE, line.as_bytes_with_nul())?)
    }

    fn zero_page(&self, initrd: u64) -> Result<Vec<u8>, BootError> {
        let mut page = vec![0; PAGE_SIZE as usize];
        let mut put = |offset: usize, bytes: &[u8]| {
            page[offset..offset + bytes.len()].copy_from_slice(bytes);
        };
        match &self.kernel.setup_header {
            Some(header) => put(Kernel::SETUP_HEADER_OFFSET as usize, header),
            None => {
                put(zero_page::BOOT_FLAG, &0xaa55u16.to_le_bytes());
                put(zero_page::HEADER_MAGIC, b"HdrS");
                put(zero_page::VERSION, &0x20cu16.to_le_bytes());
                put(
                    zero_page::CMDLINE_SIZE,
                    &(DEFAULT_CMDLINE_MAX as u32).to_le_bytes(),
                );
            }
        }
        put(zero_page::TYPE_OF_LOADER, &[LOADER_UNDEFINED]);
        put(zero_page::LOADFLAGS, &[LOADED_HIGH]);
        put(
            zero_page::CMD_LINE_PTR,
            &(place::COMMAND_LINE.0 as u32).to_le_bytes(),
        );
        put(zero_page::RAMDISK_IMAGE, &(initrd as u32).to_le_bytes());
        put(
            zero_page::RAMDISK_SIZE,
            &(self.initrd.len() as u32).to_le_bytes(),
        );
        if let Some(rsdp) = self.acpi_rsdp {
            put(zero_page::ACPI_RSDP, &rsdp.0.to_le_bytes());
        }
        if self.memory_map.len() > 128 {
            return Err(BootError::TooManyRanges(self.memory_map.len()));
        }
        put(zero_page::E820_ENTRIES, &[self.memory_map.len() as u8]);
        for (index, (range, kind)) in self.memory_map.iter().enumerate() {
            let at = zero_page::E820_TABLE + index * 20;
            put(at, &range.start.to_le_bytes());
            put(at + 8, &(range.end - range.start).to_le_bytes());
            put(at + 16, &(*kind as u32).to_le_bytes());
        }
        Ok(page)
    }

    /// A dword of the setup header, if the kernel has one that reaches there.
    fn header_u32(&self, zero_page_offset: usize) -> Option<u32> {
        let at = zero_page_offset - Kernel::SETUP_HEADER_OFFSET as usize;
        let bytes = self.kernel.setup_header.as_ref()?.get(at..at + 4)?;
        Some(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }
}

/// Maps the first 4 GiB to themselves with 2 MiB pages.
fn place_page_tables(memory: &GuestMemory) -> Result<(), MemoryError> {
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 1 << 7;
    let entries = |entries: Vec<u64>| -> Vec<u8> {
        entries
            .iter()
            .flat_map(|entry| entry.to_le_bytes())
            .collect()
    };
    memory.write(
        place::PML4,
        &entries(vec![place::PDPT.0 | PRESENT_WRITABLE]),
    )?;
    let directories = (0..4)
        .map(|i| (place::PAGE_DIRECTORIES.0 + i * PAGE_SIZE) | PRESENT_WRITABLE)
        .collect();
    memory.write(place::PDPT, &entries(directories))?;
    let pages = (0..2048u64)
        .map(|i| (i << 21) | PRESENT_WRITABLE | LARGE)
        .collect();
    memory.write(place::PAGE_DIRECTORIES, &entries(pages))
}

/// Selectors 10H (code) and 18H (data), as the protocol wants them.
fn place_gdt(memory: &GuestMemory) -> Result<(), MemoryError> {
    let gdt: Vec<u8> = [0, 0, 0x00af_9b00_0000_ffffu64, 0x00cf_9300_0000_ffff]
        .iter()
        .flat_map(|entry| entry.to_le_bytes())
        .collect();
    memory.write(place::GDT, &gdt)
}

fn enter_long_mode(state: &mut VcpuState) {
    const PROTECTED: u64 = 1 << 0;
    const EXTENSION_TYPE: u64 = 1 << 4;
    const NUMERIC_ERROR: u64 = 1 << 5;
    const PAGING: u64 = 1 << 31;
    const PAE: u64 = 1 << 5;
    const LME_LMA: u64 = 1 << 8 | 1 << 10;

    let flat = |selector, access| Segment {
        selector,
        base: 0,
        limit: u32::MAX,
        access,
    };
    let code = flat(0x10, 0xa09b);
    let data = flat(0x18, 0xc093);
    let segments = &mut state.segments;
    segments.cs = code;
    segments.ds = data;
    segments.es = data;
    segments.ss = data;
    segments.fs = data;
    segments.gs = data;
    segments.gdtr.base = place::GDT.0;
    segments.gdtr.limit = 4 * 8 - 1;
    segments.idtr.limit = 0;
    state.control.cr0 = PROTECTED | EXTENSION_TYPE | NUMERIC_ERROR | PAGING;
    state.control.cr3 = place::PML4.0;
    state.control.cr4 = PAE;
    state.control.efer = LME_LMA;
    state.general.rflags = 2;
    state.fpu = Default::default();
}

#[cfg(test)]
#[path = "linux_boot_test.rs"]
mod test;
