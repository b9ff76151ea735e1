//! Vector instructions that access memory element by element, and those that
//! only touch state: done in Rust.
//!
//! A gather commits elements one by one and clears their mask bits, so that it
//! can be interrupted by a fault and continued. Masked loads and stores touch
//! only the elements whose mask bit is set; a masked store checks all of them
//! before it writes the first.

use iced_x86::{Instruction, MemorySize, Mnemonic, Register};

use crate::cpu::{Cpu, gpr};
use crate::exec::vector::unit;
use crate::native::{self, MXCSR_VALID};
use crate::operation::{Handler, NO_REGISTER, NO_SEGMENT, Operation};
use crate::trap::{Exec, GP0};

/// Bits of [`Operation::width`].
const WIDE: u8 = 1;
const QWORD: u8 = 2;

/// Completes `operation` for one of these instructions.
pub(crate) fn prepare(instruction: &Instruction, operation: &mut Operation) -> Option<Handler> {
    use Mnemonic::*;
    let code = instruction.code();
    if !native::is_emulated(code) || !native::supports(code) {
        return None;
    }
    let number = |n: u32| instruction.op_register(n).number() as u8;
    let store = instruction.op0_kind() == iced_x86::OpKind::Memory;
    let wide = (0..instruction.op_count()).any(|n| instruction.op_register(n).is_ymm());
    match instruction.mnemonic() {
        Emms => Some(emms),
        Vzeroupper => Some(vzeroupper),
        Vzeroall => Some(vzeroall),
        Ldmxcsr => Some(ldmxcsr::<{ unit::SSE }>),
        Vldmxcsr => Some(ldmxcsr::<{ unit::AVX }>),
        Stmxcsr => Some(stmxcsr::<{ unit::SSE }>),
        Vstmxcsr => Some(stmxcsr::<{ unit::AVX }>),
        Maskmovq | Maskmovdqu | Vmaskmovdqu => {
            operation.first = number(1);
            operation.second = number(2);
            operation.base = gpr::RDI as u8;
            operation.index = NO_REGISTER;
            operation.scale = 0;
            operation.displacement = 0;
            operation.segment = implicit_segment(instruction, operation);
            Some(match instruction.mnemonic() {
                Maskmovq => maskmov::<{ unit::MMX }>,
                Maskmovdqu => maskmov::<{ unit::SSE }>,
                _ => maskmov::<{ unit::AVX }>,
            })
        }
        Vmaskmovps | Vmaskmovpd | Vpmaskmovd | Vpmaskmovq => {
            let qword = matches!(instruction.mnemonic(), Vmaskmovpd | Vpmaskmovq);
            operation.width = flags(wide, qword);
            let (data, mask) = if store { (2, 1) } else { (0, 1) };
            operation.first = number(data);
            operation.second = number(mask);
            Some(if store { masked_store } else { masked_load })
        }
        Vgatherdps | Vgatherdpd | Vgatherqps | Vgatherqpd | Vpgatherdd | Vpgatherdq
        | Vpgatherqd | Vpgatherqq => {
            let index = instruction.memory_index();
            // SDM vol. 2, VGATHER: #UD if two of the three are the same.
            let (destination, mask) = (number(0), number(2));
            let index_number = index.number() as u8;
            if destination == mask || destination == index_number || mask == index_number {
                return Some(undefined);
            }
            operation.first = destination;
            operation.second = mask;
            operation.third = index_number;
            operation.index = NO_REGISTER;
            let qword = instruction.memory_size() == MemorySize::Float64
                || matches!(
                    instruction.mnemonic(),
                    Vgatherdpd | Vgatherqpd | Vpgatherdq | Vpgatherqq
                );
            operation.width = flags(wide, qword);
            operation.immediate = u64::from(lanes(instruction, qword)) << 8
                | u64::from(matches!(
                    instruction.mnemonic(),
                    Vgatherqps | Vgatherqpd | Vpgatherqd | Vpgatherqq
                ));
            Some(gather)
        }
        _ => None,
    }
}

fn flags(wide: bool, qword: bool) -> u8 {
    (if wide { WIDE } else { 0 }) | (if qword { QWORD } else { 0 })
}

/// The segment of DS:RDI, which may be overridden.
fn implicit_segment(instruction: &Instruction, operation: &Operation) -> u8 {
    match instruction.memory_segment() {
        Register::ES => 0,
        Register::CS => 1,
        Register::SS => 2,
        Register::DS => 3,
        Register::FS => 4,
        Register::GS => 5,
        _ if operation.checks_segment => 3,
        _ => NO_SEGMENT,
    }
}

/// Elements a gather loads: as many as fit both destination and index.
fn lanes(instruction: &Instruction, qword: bool) -> u8 {
    let index_qword = {
        use Mnemonic::*;
        matches!(
            instruction.mnemonic(),
            Vgatherqps | Vgatherqpd | Vpgatherqd | Vpgatherqq
        )
    };
    let bytes = |register: Register| if register.is_ymm() { 32 } else { 16 };
    let data = bytes(instruction.op0_register()) / if qword { 8 } else { 4 };
    let index = bytes(instruction.memory_index()) / if index_qword { 8 } else { 4 };
    data.min(index)
}

fn undefined(cpu: &mut Cpu, _: &Operation) -> Exec {
    cpu.check_avx()?;
    Err(crate::trap::UD)
}

/// EMMS: empties the registers; TOP becomes 0 as with any MMX instruction.
fn emms(cpu: &mut Cpu, operation: &Operation) -> Exec {
    cpu.check_mmx()?;
    cpu.extended.x87.enter_mmx();
    cpu.extended.x87.ftw = 0;
    cpu.advance(operation);
    Ok(())
}

fn vzeroupper(cpu: &mut Cpu, operation: &Operation) -> Exec {
    cpu.check_avx()?;
    for ymm in cpu.visible_vectors() {
        ymm[16..].fill(0);
    }
    cpu.advance(operation);
    Ok(())
}

fn vzeroall(cpu: &mut Cpu, operation: &Operation) -> Exec {
    cpu.check_avx()?;
    cpu.visible_vectors().fill([0; 32]);
    cpu.advance(operation);
    Ok(())
}

fn ldmxcsr<const UNIT: u8>(cpu: &mut Cpu, operation: &Operation) -> Exec {
    cpu.check_vector::<UNIT>()?;
    let value: u32 = cpu.read_operand(operation)?;
    if value & !MXCSR_VALID != 0 {
        return Err(GP0);
    }
    cpu.extended.mxcsr = value;
    cpu.advance(operation);
    Ok(())
}

fn stmxcsr<const UNIT: u8>(cpu: &mut Cpu, operation: &Operation) -> Exec {
    cpu.check_vector::<UNIT>()?;
    cpu.write_operand(operation, cpu.extended.mxcsr)?;
    cpu.advance(operation);
    Ok(())
}

/// MASKMOVQ and MASKMOVDQU: bytes whose mask byte has its top bit set.
fn maskmov<const UNIT: u8>(cpu: &mut Cpu, operation: &Operation) -> Exec {
    cpu.check_vector::<UNIT>()?;
    let (data, mask, size) = if UNIT == unit::MMX {
        let mut x87 = cpu.extended.x87;
        x87.enter_mmx();
        let register = |n: u8| x87.st[usize::from(n & 7)];
        (register(operation.first), register(operation.second), 8)
    } else {
        let register = |n: u8| {
            let mut low = [0; 16];
            low.copy_from_slice(&cpu.extended.ymm[usize::from(n & 15)][..16]);
            low
        };
        (register(operation.first), register(operation.second), 16)
    };
    if UNIT == unit::MMX {
        // Even if the access faults, as the host has it.
        cpu.extended.x87.enter_mmx();
    }
    let address = cpu.address(operation, size, true)?;
    let selected: Vec<usize> = (0..size).filter(|n| mask[*n] & 0x80 != 0).collect();
    let access = Cpu::operand_access(operation);
    // The whole operand must be writable, whatever the mask: the manual leaves
    // it open, the host has it so.
    cpu.check_writable(address, size, access)?;
    for n in selected {
        cpu.write_linear(address.wrapping_add(n as u64), data[n], access)?;
    }
    cpu.advance(operation);
    Ok(())
}

/// Element size and number of elements of VMASKMOV and VPMASKMOV.
fn elements(operation: &Operation) -> (usize, usize) {
    let size = if operation.width & QWORD != 0 { 8 } else { 4 };
    (
        size,
        if operation.width & WIDE != 0 { 32 } else { 16 } / size,
    )
}

/// The top bit of element `n` of `mask`.
fn selected(mask: &[u8; 32], n: usize, size: usize) -> bool {
    mask[n * size + size - 1] & 0x80 != 0
}

/// The linear address of what lies `offset` bytes into the memory operand: an
/// address of 32 bits wraps there, as the host has it.
fn part(cpu: &Cpu, operation: &Operation, offset: usize, size: usize, write: bool) -> Exec<u64> {
    let part = Operation {
        displacement: operation.displacement.wrapping_add(offset as u64),
        ..*operation
    };
    cpu.address(&part, size, write)
}

fn masked_load(cpu: &mut Cpu, operation: &Operation) -> Exec {
    cpu.check_avx()?;
    let (size, count) = elements(operation);
    let mask = cpu.extended.ymm[usize::from(operation.second & 15)];
    cpu.address(operation, size * count, false)?;
    let mut result = [0; 32];
    for n in (0..count).filter(|n| selected(&mask, *n, size)) {
        let at = part(cpu, operation, n * size, size, false)?;
        cpu.read_pieces(
            at,
            &mut result[n * size..][..size],
            Cpu::operand_access(operation),
        )?;
    }
    cpu.extended.ymm[usize::from(operation.first & 15)] = result;
    cpu.advance(operation);
    Ok(())
}

fn masked_store(cpu: &mut Cpu, operation: &Operation) -> Exec {
    cpu.check_avx()?;
    let (size, count) = elements(operation);
    let mask = cpu.extended.ymm[usize::from(operation.second & 15)];
    let data = cpu.extended.ymm[usize::from(operation.first & 15)];
    cpu.address(operation, size * count, true)?;
    let access = Cpu::operand_access(operation);
    for n in (0..count).filter(|n| selected(&mask, *n, size)) {
        let at = part(cpu, operation, n * size, size, true)?;
        cpu.check_writable(at, size, access)?;
    }
    for n in (0..count).filter(|n| selected(&mask, *n, size)) {
        let at = part(cpu, operation, n * size, size, true)?;
        cpu.write_pieces(at, &data[n * size..][..size], access)?;
    }
    cpu.advance(operation);
    Ok(())
}

/// SDM vol. 2, VGATHER and VPGATHER.
fn gather(cpu: &mut Cpu, operation: &Operation) -> Exec {
    cpu.check_avx()?;
    let size = if operation.width & QWORD != 0 { 8 } else { 4 };
    let count = (operation.immediate >> 8 & 0xff) as usize;
    let index_size = if operation.immediate & 1 != 0 { 8 } else { 4 };
    let index = cpu.extended.ymm[usize::from(operation.third & 15)];
    let (destination, mask) = (
        usize::from(operation.first & 15),
        usize::from(operation.second & 15),
    );
    // Elements in the log of a run that is continued were committed then.
    for n in 0..count {
        if !selected(&cpu.extended.ymm[mask], n, size) {
            cpu.extended.ymm[mask][n * size..][..size].fill(0);
            continue;
        }
        let mut bytes = [0; 8];
        bytes[..index_size].copy_from_slice(&index[n * index_size..][..index_size]);
        let index = if index_size == 8 {
            u64::from_le_bytes(bytes)
        } else {
            i64::from(u64::from_le_bytes(bytes) as i32) as u64
        };
        let element = Operation {
            displacement: operation
                .displacement
                .wrapping_add(index << operation.scale),
            ..*operation
        };
        let address = cpu.address(&element, size, false)?;
        let mut value = [0; 8];
        cpu.read_pieces(address, &mut value[..size], Cpu::operand_access(operation))?;
        // The element is complete: a fault at a later one continues there.
        cpu.extended.ymm[destination][n * size..][..size].copy_from_slice(&value[..size]);
        cpu.extended.ymm[mask][n * size..][..size].fill(0);
        cpu.log.finish();
    }
    cpu.extended.ymm[mask].fill(0);
    let used = count * size;
    cpu.extended.ymm[destination][used.max(16)..].fill(0);
    if used < 16 {
        cpu.extended.ymm[destination][used..].fill(0);
    }
    cpu.advance(operation);
    Ok(())
}

impl Cpu {
    /// Vector registers that the current mode has names for.
    fn visible_vectors(&mut self) -> &mut [[u8; 32]] {
        let count = if self.code_size == crate::cpu::CodeSize::Bits64 {
            16
        } else {
            8
        };
        &mut self.extended.ymm[..count]
    }
}
