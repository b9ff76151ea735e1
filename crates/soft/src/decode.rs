//! Guest bytes to blocks of operations.
//!
//! A block is decoded without regard to where it is mapped: everything
//! relative to RIP stays relative, so that one block serves every linear
//! address its page has.

mod lower;
mod operand;
mod pick;

use iced_x86::{Decoder, DecoderError, DecoderOptions, FlowControl, Instruction, Mnemonic};

use crate::cache::{Block, CodePage};
use crate::counters;
use crate::cpu::{CodeSize, Cpu, rflags};
use crate::mmu::{Access, Want};
use crate::operation::Operation;
use crate::segment::is_canonical;
use crate::translate::{Translations, flags_of};
use crate::trap::{Exec, GP0};

/// The most operations in a block: how long the processor may go without
/// looking for interrupts.
const MOST_OPERATIONS: usize = 64;
/// The longest instruction.
const LONGEST: usize = 15;
const PAGE: u64 = 4096;

/// Bytes of code, taken from one page or two.
struct Code {
    bytes: Vec<u8>,
    page: CodePage,
}

/// Decodes the block at a linear address that translates to `physical`.
/// `most` bytes lie within the code segment's limit.
pub(crate) fn block(cpu: &mut Cpu, linear: u64, physical: u64, most: u64) -> Exec<Block> {
    let in_page = (PAGE - physical % PAGE).min(most);
    let wanted = in_page.min((MOST_OPERATIONS * LONGEST) as u64) as usize;
    let code = read_code(cpu, physical, wanted)?;
    let decoded = operations(cpu, &code.bytes);
    if !decoded.operations.is_empty() {
        return Ok(Block {
            operations: decoded.operations.into_boxed_slice(),
            length: decoded.length,
            falls_through: decoded.falls_through,
            wanted_flags: decoded.wanted_flags,
            translations: Translations::default(),
            page: code.page,
            second: None,
        });
    }
    if code.bytes.len() >= LONGEST || in_page == most {
        // More than 15 bytes long, or beyond the segment's limit.
        return Err(GP0);
    }
    crossing(cpu, linear, code, most)
}

/// The one instruction that begins in the last bytes of a page and ends in
/// the next.
fn crossing(cpu: &mut Cpu, linear: u64, first: Code, most: u64) -> Exec<Block> {
    let next = (linear & !(PAGE - 1)).wrapping_add(PAGE);
    let next = match cpu.code_size {
        CodeSize::Bits64 if !is_canonical(next) => return Err(GP0),
        CodeSize::Bits64 => next,
        _ => next & 0xffff_ffff,
    };
    let second = cpu.translate(next, Access::Data, Want::Execute)?;
    let present = first.bytes.len();
    let wanted = (LONGEST as u64).min(most) as usize - present;
    let second_code = read_code(cpu, second.physical, wanted)?;
    let mut bytes = first.bytes;
    bytes.extend_from_slice(&second_code.bytes);
    let mut operations = operations(cpu, &bytes).operations;
    operations.truncate(1);
    let Some(only) = operations.first() else {
        return Err(GP0);
    };
    Ok(Block {
        length: only.length.into(),
        operations: operations.into_boxed_slice(),
        falls_through: false,
        wanted_flags: u16::MAX,
        translations: Translations::default(),
        page: first.page,
        second: Some((second.physical, second_code.page)),
    })
}

/// Reads code inside one page, after announcing that it will be kept.
fn read_code(cpu: &mut Cpu, physical: u64, length: usize) -> Exec<Code> {
    let Some(place) = cpu.mmu.ram(physical) else {
        counters::count(&mut cpu.counters.unsupported, "code outside RAM".into());
        return Err(GP0);
    };
    let page_address = physical & !(PAGE - 1);
    let shared = cpu.shared.clone();
    let (version, newly) = shared.arm_code(cpu.id, &place, page_address);
    let page = CodePage::new(&place.pages.versions()[place.page], version);
    let host = place.host;
    if newly {
        cpu.revoke_writes(Some(page_address));
    }
    let mut bytes = vec![0; length];
    // SAFETY: `length` bytes from here on lie in the same page of RAM.
    unsafe { crate::scalar::copy_forward(bytes.as_mut_ptr(), host, length) };
    Ok(Code { bytes, page })
}

/// The guest's processor is of the host's make: AMD's near branches take a
/// 16-bit operand in 64-bit mode, Intel's do not.
pub(crate) fn decoder_options() -> u32 {
    if crate::native::host_is_amd() {
        DecoderOptions::AMD
    } else {
        DecoderOptions::NONE
    }
}

/// What some bytes of code hold.
struct Decoded {
    operations: Vec<Operation>,
    /// Bytes they take.
    length: u32,
    falls_through: bool,
    wanted_flags: u16,
}

/// As many operations as `bytes` hold.
fn operations(cpu: &Cpu, bytes: &[u8]) -> Decoded {
    let bits = match cpu.code_size {
        CodeSize::Bits16 => 16,
        CodeSize::Bits32 => 32,
        CodeSize::Bits64 => 64,
    };
    let mut decoder = Decoder::with_ip(bits, bytes, 0, decoder_options());
    let mut operations = Vec::with_capacity(16);
    let mut instruction = Instruction::default();
    let mut length = 0;
    let mut falls_through = true;
    let (mut wanted_flags, mut written_flags) = (0, 0);
    while operations.len() < MOST_OPERATIONS && decoder.can_decode() {
        let start = decoder.position();
        decoder.decode_out(&mut instruction);
        let error = decoder.last_error();
        if error == DecoderError::NoMoreBytes {
            break;
        }
        length = decoder.position() as u32;
        let own_bytes = &bytes[start..decoder.position()];
        let mut operation = lower::operation(cpu, &instruction, own_bytes);
        if error != DecoderError::None && own_bytes.len() >= LONGEST {
            operation.handler = crate::exec::system::too_long;
        }
        operations.push(operation);
        if error == DecoderError::None {
            let (read, written) = flags_of(&instruction);
            wanted_flags |= read & !written_flags;
            written_flags |= written;
        }
        if error != DecoderError::None || ends_block(&instruction) {
            falls_through = error == DecoderError::None
                && instruction.flow_control() == FlowControl::ConditionalBranch;
            break;
        }
    }
    wanted_flags |= rflags::ARITHMETIC as u16 & !written_flags;
    Decoded {
        operations,
        length,
        falls_through,
        wanted_flags,
    }
}

/// After these the next instruction is somewhere else, or nobody knows yet
/// what it will be.
fn ends_block(instruction: &Instruction) -> bool {
    use Mnemonic::{
        Cpuid, Hlt, Invlpg, Invpcid, Lmsw, Pause, Popf, Popfd, Popfq, Sti, Wrmsr, Xsetbv,
    };
    instruction.flow_control() != FlowControl::Next
        || matches!(
            instruction.mnemonic(),
            Cpuid
                | Hlt
                | Invlpg
                | Invpcid
                | Lmsw
                | Pause
                | Popf
                | Popfd
                | Popfq
                | Sti
                | Wrmsr
                | Xsetbv
        )
}

#[cfg(test)]
#[path = "decode_test.rs"]
mod test;
