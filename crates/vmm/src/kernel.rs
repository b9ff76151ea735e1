//! Kernel files: what `--kernel` may name.
//!
//! A distribution ships a bzImage: real-mode setup code, a decompressor, and
//! the compressed ELF kernel inside. favo decompresses on the host, where it
//! costs milliseconds on any engine, and enters the ELF kernel at its 64-bit
//! entry; no 16- or 32-bit code runs. A plain ELF vmlinux works the same way.
//!
//! The file comes from anywhere, so every offset in it is checked, and what
//! it may decompress to is bounded.

mod payload;

use std::path::{Path, PathBuf};

use elf::ElfBytes;
use elf::abi::{EM_X86_64, PT_LOAD};
use elf::endian::LittleEndian;
use favo_types::{ByteCount, GuestAddress};

/// No kernel is larger than this once unpacked.
const MAX_KERNEL: ByteCount = ByteCount::mib(512);

/// Offsets in a bzImage's first sector (Linux, Documentation/arch/x86/boot.rst).
mod header {
    pub const START: usize = 0x1f1;
    pub const SETUP_SECTORS: usize = 0x1f1;
    pub const BOOT_FLAG: usize = 0x1fe;
    pub const JUMP_LENGTH: usize = 0x201;
    pub const MAGIC: usize = 0x202;
    pub const VERSION: usize = 0x206;
    pub const XLOADFLAGS: usize = 0x236;
    pub const PAYLOAD_OFFSET: usize = 0x248;
    pub const PAYLOAD_LENGTH: usize = 0x24c;
    /// The furthest the setup header can reach in the zero page.
    pub const END_MAX: usize = 0x290;
}

/// Why a file can't be booted.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// It can't be read.
    #[error("can't read the kernel {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The host's answer.
        source: std::io::Error,
    },
    /// It is neither a bzImage nor an ELF file.
    #[error("{0} is not a Linux kernel: it is neither a bzImage nor an ELF vmlinux")]
    NotAKernel(PathBuf),
    /// It is one, but broken or of a kind that can't be booted.
    #[error("{path} can't be booted: {reason}")]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// A piece of the kernel and where it goes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Segment {
    /// Guest-physical address of its first byte.
    pub address: GuestAddress,
    /// Its bytes in [`Kernel::image`].
    pub file: std::ops::Range<usize>,
    /// How much memory it takes; what the file does not fill is zero.
    pub memory_size: ByteCount,
}

/// A kernel ready to be placed in memory.
#[derive(Debug)]
pub struct Kernel {
    /// The ELF file.
    pub image: Vec<u8>,
    /// What to load, ascending by address.
    pub segments: Vec<Segment>,
    /// The 64-bit entry point.
    pub entry: GuestAddress,
    /// The setup header of the bzImage it came from, as it belongs at
    /// [`Kernel::SETUP_HEADER_OFFSET`] of the zero page.
    pub setup_header: Option<Vec<u8>>,
}

impl Kernel {
    /// Where the setup header lies in the zero page.
    pub const SETUP_HEADER_OFFSET: u64 = header::START as u64;

    /// Reads and, if need be, unpacks a kernel file.
    pub fn open(path: &Path) -> Result<Self, KernelError> {
        let file = std::fs::read(path).map_err(|source| KernelError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(file).map_err(|error| match error {
            ParseError::NotAKernel => KernelError::NotAKernel(path.to_owned()),
            ParseError::Unusable(reason) => KernelError::Unusable {
                path: path.to_owned(),
                reason,
            },
        })
    }

    fn parse(file: Vec<u8>) -> Result<Self, ParseError> {
        if file.starts_with(b"\x7fELF") {
            return Self::from_elf(file, None);
        }
        let is_bzimage = file.get(header::BOOT_FLAG..header::BOOT_FLAG + 2) == Some(&[0x55, 0xaa])
            && file.get(header::MAGIC..header::MAGIC + 4) == Some(b"HdrS");
        if !is_bzimage {
            return Err(ParseError::NotAKernel);
        }
        let version = read_u16(&file, header::VERSION)?;
        if version < 0x20c {
            return Err(unusable(format!(
                "its boot protocol is {}.{:02}; 2.12 (Linux 3.8) is the oldest with a 64-bit entry",
                version >> 8,
                version & 0xff
            )));
        }
        // XLF_KERNEL_64: it has a 64-bit entry at all.
        if read_u16(&file, header::XLOADFLAGS)? & 1 == 0 {
            return Err(unusable("it is a 32-bit kernel".to_owned()));
        }
        let setup_header = setup_header(&file)?;
        let payload = bzimage_payload(&file)?;
        let image = payload::unpack(payload, MAX_KERNEL).map_err(unusable)?;
        Self::from_elf(image, Some(setup_header))
    }

    fn from_elf(image: Vec<u8>, setup_header: Option<Vec<u8>>) -> Result<Self, ParseError> {
        let broken =
            |error: elf::ParseError| unusable(format!("its ELF headers are broken ({error})"));
        let file = ElfBytes::<LittleEndian>::minimal_parse(&image).map_err(broken)?;
        if file.ehdr.e_machine != EM_X86_64 {
            return Err(unusable("it is not for x86-64".to_owned()));
        }
        let entry = GuestAddress(file.ehdr.e_entry);
        let headers = file
            .segments()
            .ok_or_else(|| unusable("it has no program headers".to_owned()))?;
        let mut segments = Vec::new();
        for header in headers.iter().filter(|header| header.p_type == PT_LOAD) {
            segments.push(load_segment(&header, image.len())?);
        }
        segments.sort_by_key(|segment| segment.address);
        let contains_entry = segments.iter().any(|segment| {
            entry
                .checked_offset_from(segment.address)
                .is_some_and(|offset| offset < segment.file.len() as u64)
        });
        if !contains_entry {
            return Err(unusable(format!(
                "its entry point {entry} is in none of its segments"
            )));
        }
        Ok(Self {
            image,
            segments,
            entry,
            setup_header,
        })
    }
}

#[derive(Debug, PartialEq)]
enum ParseError {
    NotAKernel,
    Unusable(String),
}

fn unusable(reason: String) -> ParseError {
    ParseError::Unusable(reason)
}

fn truncated() -> ParseError {
    unusable("it ends in the middle; it was not copied completely".to_owned())
}

fn read_u16(file: &[u8], offset: usize) -> Result<u16, ParseError> {
    let bytes = file.get(offset..offset + 2).ok_or_else(truncated)?;
    Ok(u16::from_le_bytes([bytes[0], bytes[1]]))
}

fn read_u32(file: &[u8], offset: usize) -> Result<usize, ParseError> {
    let bytes = file.get(offset..offset + 4).ok_or_else(truncated)?;
    Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize)
}

/// The setup header: its end follows from the jump at its start.
fn setup_header(file: &[u8]) -> Result<Vec<u8>, ParseError> {
    let length = file
        .get(header::JUMP_LENGTH)
        .copied()
        .ok_or_else(truncated)?;
    let end = (header::MAGIC + usize::from(length)).min(header::END_MAX);
    Ok(file.get(header::START..end).ok_or_else(truncated)?.to_vec())
}

/// The compressed kernel inside a bzImage.
fn bzimage_payload(file: &[u8]) -> Result<&[u8], ParseError> {
    let setup_sectors = match file.get(header::SETUP_SECTORS) {
        Some(0) => 4,
        Some(sectors) => usize::from(*sectors),
        None => return Err(truncated()),
    };
    let protected_mode = (setup_sectors + 1) * 512;
    let start = protected_mode + read_u32(file, header::PAYLOAD_OFFSET)?;
    let end = start + read_u32(file, header::PAYLOAD_LENGTH)?;
    file.get(start..end).ok_or_else(truncated)
}

fn load_segment(
    header: &elf::segment::ProgramHeader,
    file_size: usize,
) -> Result<Segment, ParseError> {
    let outside = || unusable("one of its segments lies outside the file".to_owned());
    let start = usize::try_from(header.p_offset).map_err(|_| outside())?;
    let length = usize::try_from(header.p_filesz).map_err(|_| outside())?;
    let end = start
        .checked_add(length)
        .filter(|end| *end <= file_size)
        .ok_or_else(outside)?;
    let fits = header.p_memsz >= header.p_filesz
        && header
            .p_paddr
            .checked_add(header.p_memsz)
            .is_some_and(|end| end < 1 << 52);
    if !fits {
        return Err(unusable(
            "one of its segments has impossible sizes".to_owned(),
        ));
    }
    Ok(Segment {
        address: GuestAddress(header.p_paddr),
        file: start..end,
        memory_size: ByteCount(header.p_memsz),
    })
}

#[cfg(test)]
#[path = "kernel_test.rs"]
mod test;
