//! FXSAVE, FXRSTOR, the XSAVE family, XGETBV and XSETBV (SDM vol. 1, 10.5 and
//! chapter 13): the extended state in memory.
//!
//! Components: 0 x87, 1 SSE, 2 AVX. XSAVES and XRSTORS are not offered.

mod area;

use favo_accel::cpuid::CpuidTable;
use iced_x86::{Code, CpuidFeature, Instruction};

use crate::cpu::{CodeSize, Cpu, cr0, cr4, efer, gpr, rflags};
use crate::native::{self, ExtendedState, MXCSR_DEFAULT, MXCSR_VALID};
use crate::operation::{Handler, Operation};
use crate::trap::{Exception, Exec, GP0, UD};

use area::{Area, HEADER, YMM_HIGH};

/// State components.
const X87: u64 = 1;
const SSE: u64 = 2;
const AVX: u64 = 4;
/// XCOMP_BV: the area is compacted.
const COMPACT: u64 = 1 << 63;

/// The handler, if `instruction` is one of these and the processor has it.
pub(crate) fn handler(cpuid: &CpuidTable, instruction: &Instruction) -> Option<Handler> {
    let basic = cpuid.get(1, 0);
    let variants = cpuid.get(0xd, 1).eax;
    let offered = |feature: &CpuidFeature| match feature {
        CpuidFeature::FXSR => basic.edx >> 24 & 1 != 0,
        CpuidFeature::XSAVE => basic.ecx >> 26 & 1 != 0,
        CpuidFeature::XSAVEOPT => variants & 1 != 0,
        CpuidFeature::XSAVEC => variants & 2 != 0,
        _ => true,
    };
    if !instruction.cpuid_features().iter().all(offered) {
        return None;
    }
    Some(match instruction.code() {
        Code::Fxsave_m512byte => fxsave::<false>,
        Code::Fxsave64_m512byte => fxsave::<true>,
        Code::Fxrstor_m512byte => fxrstor::<false>,
        Code::Fxrstor64_m512byte => fxrstor::<true>,
        Code::Xsave_mem => xsave::<false, PLAIN>,
        Code::Xsave64_mem => xsave::<true, PLAIN>,
        Code::Xsaveopt_mem => xsave::<false, OPTIMIZED>,
        Code::Xsaveopt64_mem => xsave::<true, OPTIMIZED>,
        Code::Xsavec_mem => xsave::<false, COMPACTED>,
        Code::Xsavec64_mem => xsave::<true, COMPACTED>,
        Code::Xrstor_mem => xrstor::<false>,
        Code::Xrstor64_mem => xrstor::<true>,
        Code::Xgetbv => xgetbv,
        Code::Xsetbv => xsetbv,
        _ => return None,
    })
}

/// Which of the XSAVE instructions.
const PLAIN: u8 = 0;
const OPTIMIZED: u8 = 1;
const COMPACTED: u8 = 2;

impl Cpu {
    /// XMM or YMM registers that the mode has names for.
    fn vector_count(&self) -> usize {
        if self.code_size == CodeSize::Bits64 {
            16
        } else {
            8
        }
    }

    /// The SSE part of FXSAVE is left out: the OS has not said that it knows
    /// it, or asked for the fast form (AMD APM vol. 2, 3.1.7).
    fn fxsave_skips_sse(&self) -> bool {
        let fast =
            self.efer & efer::FFXSR != 0 && self.cpl == 0 && self.code_size == CodeSize::Bits64;
        fast || self.cr4 & cr4::OSFXSR == 0
    }

    /// #UD or #NM before the XSAVE family.
    fn check_xsave(&self) -> Exec {
        if self.cr4 & cr4::OSXSAVE == 0 {
            return Err(UD);
        }
        if self.cr0 & cr0::TS != 0 {
            return Err(Exception::DeviceNotAvailable.into());
        }
        Ok(())
    }

    /// The components that EDX:EAX asks for and XCR0 allows.
    fn requested_components(&self) -> u64 {
        let low = self.gpr[gpr::RAX] & 0xffff_ffff;
        let high = self.gpr[gpr::RDX] << 32;
        (low | high) & self.xcr0
    }

    /// An aligned operand.
    fn state_address(
        &self,
        operation: &Operation,
        size: usize,
        align: u64,
        write: bool,
    ) -> Exec<u64> {
        let address = self.address(operation, size, write)?;
        if address & (align - 1) != 0 {
            return Err(GP0);
        }
        Ok(address)
    }
}

/// Components that are not in their initial state.
fn in_use(state: &ExtendedState) -> u64 {
    let x87 = &state.x87;
    let x87_in_use = x87.fcw != 0x37f
        || x87.fsw != 0
        || x87.ftw != 0
        || state.fip != 0
        || state.fdp != 0
        || state.fop != 0
        || x87.st.iter().any(|st| st[..10] != [0; 10]);
    let sse = state.ymm.iter().any(|ymm| ymm[..16] != [0; 16]);
    let avx = state.ymm.iter().any(|ymm| ymm[16..] != [0; 16]);
    [(x87_in_use, X87), (sse, SSE), (avx, AVX)]
        .iter()
        .filter(|(used, _)| *used)
        .map(|(_, component)| component)
        .sum()
}

fn fxsave<const REX_W: bool>(cpu: &mut Cpu, operation: &Operation) -> Exec {
    cpu.check_x87()?;
    let address = cpu.state_address(operation, 512, 16, true)?;
    let mut area = Area::default();
    area.put_x87(&cpu.extended, REX_W && cpu.code_size == CodeSize::Bits64);
    area.put_mxcsr(&cpu.extended);
    let mut end = 160;
    if !cpu.fxsave_skips_sse() {
        let count = cpu.vector_count();
        area.put_sse(&cpu.extended, count);
        end += 16 * count;
    }
    let access = Cpu::operand_access(operation);
    cpu.check_writable(address, 512, access)?;
    cpu.write_pieces(address, &area.bytes[..end], access)?;
    cpu.advance(operation);
    Ok(())
}

fn fxrstor<const REX_W: bool>(cpu: &mut Cpu, operation: &Operation) -> Exec {
    cpu.check_x87()?;
    let address = cpu.state_address(operation, 512, 16, false)?;
    let mut area = Area::default();
    cpu.read_pieces(
        address,
        &mut area.bytes[..416],
        Cpu::operand_access(operation),
    )?;
    let with_mxcsr = cpu.cr4 & cr4::OSFXSR != 0;
    if with_mxcsr && area.mxcsr() & !MXCSR_VALID != 0 {
        return Err(GP0);
    }
    area.take_x87(
        &mut cpu.extended,
        REX_W && cpu.code_size == CodeSize::Bits64,
    );
    if with_mxcsr {
        cpu.extended.mxcsr = area.mxcsr();
    }
    if !cpu.fxsave_skips_sse() {
        let count = cpu.vector_count();
        area.take_sse(&mut cpu.extended, count);
    }
    cpu.advance(operation);
    Ok(())
}

fn xsave<const REX_W: bool, const KIND: u8>(cpu: &mut Cpu, operation: &Operation) -> Exec {
    cpu.check_xsave()?;
    let requested = cpu.requested_components();
    let address = cpu.state_address(operation, HEADER + 64, 64, true)?;
    let access = Cpu::operand_access(operation);
    let state = &cpu.extended;
    let mut used = in_use(state) & requested;
    if KIND == COMPACTED && requested & SSE != 0 && state.mxcsr != MXCSR_DEFAULT {
        used |= SSE;
    }
    let written = if KIND == PLAIN { requested } else { used };
    let mut area = Area::default();
    area.put_x87(state, REX_W && cpu.code_size == CodeSize::Bits64);
    area.put_mxcsr(state);
    let count = cpu.vector_count();
    area.put_sse(state, count);
    area.put_avx(state, count);
    let with_mxcsr = match KIND {
        COMPACTED => written & SSE != 0,
        _ => requested & (SSE | AVX) != 0,
    };
    let parts = [
        (written & X87 != 0, 0..24),
        (with_mxcsr, 24..32),
        (written & X87 != 0, 32..160),
        (written & SSE != 0, 160..160 + 16 * count),
        (written & AVX != 0, YMM_HIGH..YMM_HIGH + 16 * count),
    ];
    let size = if written & AVX != 0 {
        YMM_HIGH + 256
    } else {
        HEADER + 64
    };
    cpu.check_writable(address, size, access)?;
    let header = address.wrapping_add(HEADER as u64);
    let old = if KIND == COMPACTED {
        0
    } else {
        cpu.read_linear::<u64>(header, access)?
    };
    for (_, range) in parts.into_iter().filter(|(write, _)| *write) {
        let at = address.wrapping_add(range.start as u64);
        cpu.write_pieces(at, &area.bytes[range], access)?;
    }
    cpu.write_linear(header, old & !requested | used, access)?;
    if KIND == COMPACTED {
        cpu.write_linear(header.wrapping_add(8), requested | COMPACT, access)?;
    }
    cpu.advance(operation);
    Ok(())
}

fn xrstor<const REX_W: bool>(cpu: &mut Cpu, operation: &Operation) -> Exec {
    cpu.check_xsave()?;
    let requested = cpu.requested_components();
    let address = cpu.state_address(operation, HEADER + 64, 64, false)?;
    let access = Cpu::operand_access(operation);
    let mut area = Area::default();
    let at = |offset: usize| address.wrapping_add(offset as u64);
    cpu.read_pieces(at(HEADER), &mut area.bytes[HEADER..YMM_HIGH], access)?;
    let (present, compaction) = area.header();
    let compact = compaction & COMPACT != 0;
    area.check_header(cpu.xcr0)?;
    if present & AVX & requested != 0 {
        cpu.read_pieces(at(YMM_HIGH), &mut area.bytes[YMM_HIGH..], access)?;
    }
    cpu.read_pieces(address, &mut area.bytes[..416], access)?;
    let loads_mxcsr = if compact {
        requested & present & SSE != 0
    } else {
        requested & (SSE | AVX) != 0
    };
    if loads_mxcsr && area.mxcsr() & !MXCSR_VALID != 0 {
        return Err(GP0);
    }
    let initial = Area::initial();
    let count = cpu.vector_count();
    let source = |component| {
        if present & component != 0 {
            &area
        } else {
            &initial
        }
    };
    if requested & X87 != 0 {
        let wide = REX_W && cpu.code_size == CodeSize::Bits64;
        source(X87).take_x87(&mut cpu.extended, wide);
    }
    if requested & SSE != 0 {
        source(SSE).take_sse(&mut cpu.extended, count);
    }
    if requested & AVX != 0 {
        source(AVX).take_avx(&mut cpu.extended, count);
    }
    if loads_mxcsr {
        cpu.extended.mxcsr = area.mxcsr();
    } else if compact && requested & SSE != 0 {
        cpu.extended.mxcsr = MXCSR_DEFAULT;
    }
    cpu.advance(operation);
    Ok(())
}

fn xgetbv(cpu: &mut Cpu, operation: &Operation) -> Exec {
    if cpu.cr4 & cr4::OSXSAVE == 0 {
        return Err(UD);
    }
    // CPUID.(D,1):EAX[2]: XGETBV with ECX = 1.
    let with_in_use = cpu.cpuid.get(0xd, 1).eax & 4 != 0;
    let value = match cpu.gpr[gpr::RCX] as u32 {
        0 => cpu.xcr0,
        1 if with_in_use => cpu.xcr0 & in_use(&cpu.extended),
        _ => return Err(GP0),
    };
    cpu.gpr[gpr::RAX] = value & 0xffff_ffff;
    cpu.gpr[gpr::RDX] = value >> 32;
    cpu.advance(operation);
    Ok(())
}

fn xsetbv(cpu: &mut Cpu, operation: &Operation) -> Exec {
    if cpu.cr4 & cr4::OSXSAVE == 0 {
        return Err(UD);
    }
    if cpu.cpl != 0 || cpu.system_flags & rflags::VM != 0 {
        return Err(GP0);
    }
    let value = cpu.gpr[gpr::RAX] & 0xffff_ffff | cpu.gpr[gpr::RDX] << 32;
    let allowed = cpu.limits.xcr0 & native::xcr0();
    let valid = cpu.gpr[gpr::RCX] as u32 == 0
        && value & !allowed == 0
        && value & X87 != 0
        && (value & AVX == 0 || value & SSE != 0);
    if !valid {
        return Err(GP0);
    }
    cpu.xcr0 = value;
    cpu.advance(operation);
    Err(crate::trap::Trap::EndBlock)
}
