//! MMX, SSE and AVX instructions: what is checked before the host's units
//! execute them ([`crate::native`]), and the memory operand.
//!
//! Order of faults: #UD and #NM from the control registers, #MF of an earlier
//! x87 instruction, #GP for a misaligned operand, then what the access itself
//! raises, and last #XM.

use favo_accel::cpuid::CpuidTable;
use iced_x86::Instruction;

use crate::cpu::{Cpu, cr0, cr4, rflags};
use crate::exec::{vector_special, x87, xsave};
use crate::flags::ArithmeticFlags;
use crate::mmu::Want;
use crate::native::{self, Form, MemoryAccess, Native, SimdException, Unit};
use crate::operation::{Handler, Operation};
use crate::trap::{Exception, Exec, GP0, UD};

/// Completes `operation` for an x87, MMX, SSE or AVX instruction, or one that
/// manages their state. Its memory operand and length are there already.
/// `bytes` are the instruction's. None if it is not such an instruction, or
/// not one that this host and this processor have.
pub(crate) fn prepare(
    cpuid: &CpuidTable,
    instruction: &Instruction,
    bytes: &[u8],
    operation: &mut Operation,
) -> Option<Handler> {
    let registers = |leaf, subleaf| {
        let result = cpuid.get(leaf, subleaf);
        [result.eax, result.ebx, result.ecx, result.edx]
    };
    if !native::offered(instruction.code(), registers) {
        return None;
    }
    if let Some(handler) = xsave::handler(cpuid, instruction) {
        return Some(handler);
    }
    if let Some(handler) = x87::control_handler(instruction) {
        [operation.first, operation.second] = x87::opcode(bytes).to_le_bytes();
        return Some(handler);
    }
    if let Some(handler) = vector_special::prepare(instruction, operation) {
        return Some(handler);
    }
    let native = native::lookup(instruction)?;
    operation.immediate = std::ptr::from_ref(native.form) as u64;
    [
        operation.first,
        operation.second,
        operation.third,
        operation.width,
    ] = native.registers;
    let access = native.form.access;
    Some(match native.form.unit {
        Unit::X87 => return Some(x87::native_handler(native.form, bytes, operation)),
        Unit::Mmx => handlers::<{ unit::MMX }>(access),
        Unit::MmxSse => handlers::<{ unit::MMX_SSE }>(access),
        Unit::Sse => handlers::<{ unit::SSE }>(access),
        Unit::Avx => handlers::<{ unit::AVX }>(access),
    })
}

fn handlers<const UNIT: u8>(access: MemoryAccess) -> Handler {
    match access {
        MemoryAccess::None => registers::<UNIT>,
        MemoryAccess::Read => load::<UNIT>,
        MemoryAccess::Write => store::<UNIT>,
    }
}

/// [`Unit`] as a constant parameter.
pub(crate) mod unit {
    pub const MMX: u8 = 0;
    pub const MMX_SSE: u8 = 1;
    pub const SSE: u8 = 2;
    pub const AVX: u8 = 3;
}

/// The native instruction in an operation that [`prepare`] completed.
#[inline(always)]
pub(crate) fn native_of(operation: &Operation) -> Native {
    // SAFETY: only `prepare` pairs the handlers that come here with an
    // operation, and it puts the address of a form there; forms live as long
    // as the process.
    let form: &'static Form = unsafe { &*(operation.immediate as *const Form) };
    Native {
        form,
        registers: [
            operation.first,
            operation.second,
            operation.third,
            operation.width,
        ],
    }
}

fn registers<const UNIT: u8>(cpu: &mut Cpu, operation: &Operation) -> Exec {
    cpu.check_vector::<UNIT>()?;
    cpu.execute_native(native_of(operation), std::ptr::null_mut())?;
    cpu.advance(operation);
    Ok(())
}

fn load<const UNIT: u8>(cpu: &mut Cpu, operation: &Operation) -> Exec {
    cpu.check_vector::<UNIT>()?;
    let native = native_of(operation);
    let size = usize::from(native.form.size);
    let address = cpu.vector_address(operation, native.form, false)?;
    let access = Cpu::operand_access(operation);
    if (address & 0xfff) as usize + size <= 0x1000
        && let Some(host) = cpu.host_range(address, size, access, Want::Read)?
    {
        cpu.execute_native(native, host)?;
    } else {
        let mut buffer = Buffer::default();
        cpu.read_pieces(address, &mut buffer.0[..size], access)?;
        cpu.execute_native(native, buffer.0.as_mut_ptr())?;
    }
    cpu.advance(operation);
    Ok(())
}

fn store<const UNIT: u8>(cpu: &mut Cpu, operation: &Operation) -> Exec {
    cpu.check_vector::<UNIT>()?;
    let native = native_of(operation);
    let size = usize::from(native.form.size);
    let address = cpu.vector_address(operation, native.form, true)?;
    let access = Cpu::operand_access(operation);
    if (address & 0xfff) as usize + size <= 0x1000
        && let Some(host) = cpu.host_range(address, size, access, Want::Write)?
    {
        cpu.execute_native(native, host)?;
        cpu.written(address, access);
    } else {
        cpu.check_writable(address, size, access)?;
        let before = cpu.extended.clone();
        let mut buffer = Buffer::default();
        cpu.execute_native(native, buffer.0.as_mut_ptr())?;
        if let Err(trap) = cpu.write_pieces(address, &buffer.0[..size], access) {
            cpu.extended = before;
            return Err(trap);
        }
    }
    cpu.advance(operation);
    Ok(())
}

/// Stands in for memory that is not in one piece or not RAM.
#[derive(Default)]
#[repr(align(32))]
pub(crate) struct Buffer(pub [u8; 32]);

impl Cpu {
    /// #UD, #NM or #MF before an instruction of a unit.
    #[inline(always)]
    pub(crate) fn check_vector<const UNIT: u8>(&self) -> Exec {
        match UNIT {
            unit::AVX => self.check_avx(),
            unit::SSE => self.check_sse(),
            unit::MMX => self.check_mmx(),
            _ => {
                self.check_sse()?;
                self.check_mmx()
            }
        }
    }

    /// SDM vol. 3, 14.1.4: legacy SSE.
    #[inline(always)]
    pub(crate) fn check_sse(&self) -> Exec {
        if self.cr0 & (cr0::EM | cr0::TS) != 0 || self.cr4 & cr4::OSFXSR == 0 {
            return Err(if self.cr0 & cr0::EM != 0 || self.cr4 & cr4::OSFXSR == 0 {
                UD
            } else {
                Exception::DeviceNotAvailable.into()
            });
        }
        Ok(())
    }

    /// SDM vol. 2, 2.4: VEX-encoded instructions.
    #[inline(always)]
    pub(crate) fn check_avx(&self) -> Exec {
        const YMM: u64 = 6;
        if self.cr4 & cr4::OSXSAVE == 0
            || self.xcr0 & YMM != YMM
            || self.cr0 & cr0::PE == 0
            || self.system_flags & rflags::VM != 0
        {
            return Err(UD);
        }
        if self.cr0 & cr0::TS != 0 {
            return Err(Exception::DeviceNotAvailable.into());
        }
        Ok(())
    }

    /// SDM vol. 3, 13.1: MMX.
    #[inline(always)]
    pub(crate) fn check_mmx(&self) -> Exec {
        if self.cr0 & cr0::EM != 0 {
            return Err(UD);
        }
        if self.cr0 & cr0::TS != 0 {
            return Err(Exception::DeviceNotAvailable.into());
        }
        self.check_pending_x87()
    }

    /// #MF, if an earlier x87 instruction left an unmasked exception. With
    /// CR0.NE clear a PC would raise interrupt 13 instead; this platform has
    /// no such line, so it is #MF as well.
    #[inline(always)]
    pub(crate) fn check_pending_x87(&self) -> Exec {
        if self.extended.x87.exception_pending() {
            return Err(Exception::X87FloatingPoint.into());
        }
        Ok(())
    }

    /// The memory operand's address, its alignment checked.
    #[inline(always)]
    fn vector_address(&self, operation: &Operation, form: &Form, write: bool) -> Exec<u64> {
        let address = self.address(operation, form.size.into(), write)?;
        if address & (u64::from(form.alignment) - 1) != 0 {
            return Err(GP0);
        }
        Ok(address)
    }

    /// Runs a stub. `memory` is valid for what its form says.
    #[inline(always)]
    pub(crate) fn execute_native(&mut self, native: Native, memory: *mut u8) -> Exec {
        let Some(gpr) = self.gpr.first_chunk_mut::<16>() else {
            return Err(UD);
        };
        let flags = if native.form.reads_flags() {
            self.arithmetic.bits()
        } else {
            0
        };
        // SAFETY: callers pass a host address that `host_range` vouched for,
        // or a buffer of 32 bytes with that alignment; guest pages and host
        // pages are aligned alike, and alignment was checked.
        match unsafe { native.run(gpr, &mut self.extended, flags, memory) } {
            Ok(flags) => {
                if native.form.writes_flags() {
                    self.arithmetic = ArithmeticFlags::from_bits(flags);
                }
                Ok(())
            }
            Err(SimdException) => Err(self.simd_exception()),
        }
    }

    /// #XM, or #UD for an OS that does not know it.
    #[cold]
    fn simd_exception(&self) -> crate::trap::Trap {
        if self.cr4 & cr4::OSXMMEXCPT != 0 {
            Exception::SimdFloatingPoint.into()
        } else {
            UD
        }
    }

    /// Reads memory in pieces of at most 8 bytes.
    pub(crate) fn read_pieces(
        &mut self,
        address: u64,
        bytes: &mut [u8],
        access: crate::mmu::Access,
    ) -> Exec {
        self.check_canonical(address, bytes.len(), access)?;
        let mut at = address;
        for piece in pieces(bytes.len()) {
            let value = match piece.len() {
                8 => self.read_linear::<u64>(at, access)?,
                4 => self.read_linear::<u32>(at, access)?.into(),
                2 => self.read_linear::<u16>(at, access)?.into(),
                _ => self.read_linear::<u8>(at, access)?.into(),
            };
            at = at.wrapping_add(piece.len() as u64);
            let size = piece.len();
            bytes[piece].copy_from_slice(&value.to_le_bytes()[..size]);
        }
        Ok(())
    }

    /// Writes memory in pieces of at most 8 bytes. The caller has checked that
    /// all of it is writable.
    pub(crate) fn write_pieces(
        &mut self,
        address: u64,
        bytes: &[u8],
        access: crate::mmu::Access,
    ) -> Exec {
        let mut at = address;
        for piece in pieces(bytes.len()) {
            let size = piece.len();
            let mut value = [0; 8];
            value[..size].copy_from_slice(&bytes[piece]);
            let value = u64::from_le_bytes(value);
            match size {
                8 => self.write_linear(at, value, access)?,
                4 => self.write_linear(at, value as u32, access)?,
                2 => self.write_linear(at, value as u16, access)?,
                _ => self.write_linear(at, value as u8, access)?,
            }
            at = at.wrapping_add(size as u64);
        }
        Ok(())
    }
}

/// Cuts `length` bytes into pieces of 8, 4, 2 and 1.
fn pieces(length: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    let mut start = 0;
    std::iter::from_fn(move || {
        let size = match length - start {
            0 => return None,
            8.. => 8,
            4.. => 4,
            2.. => 2,
            _ => 1,
        };
        let piece = start..start + size;
        start += size;
        Some(piece)
    })
}
