//! System instructions as operations: operands around the methods of
//! [`crate::system`], [`crate::segment`] and [`crate::msr`].

use favo_accel::VcpuExit;
use favo_accel::state::InterruptShadow;

use super::string::port_size;
use crate::cpu::{CodeSize, Cpu, SegmentRegister, gpr};
use crate::mmu::Access;
use crate::operation::Operation;
use crate::scalar::Scalar;
use crate::trap::{Exec, GP0, Trap, UD};

const RAX: u8 = gpr::RAX as u8;
const RCX: u8 = gpr::RCX as u8;
const RDX: u8 = gpr::RDX as u8;

/// A segment register by number; CS can't be loaded.
pub(crate) fn segment_register(number: u8) -> Exec<SegmentRegister> {
    Ok(match number {
        0 => SegmentRegister::Es,
        2 => SegmentRegister::Ss,
        3 => SegmentRegister::Ds,
        4 => SegmentRegister::Fs,
        5 => SegmentRegister::Gs,
        _ => return Err(UD),
    })
}

/// Completes the instruction and has the next one looked up anew.
fn end_block(cpu: &mut Cpu, op: &Operation) -> Exec {
    cpu.advance(op);
    Err(Trap::EndBlock)
}

pub(crate) fn undefined(_: &mut Cpu, _: &Operation) -> Exec {
    Err(UD)
}

/// An instruction this processor does not have; `immediate` is its mnemonic.
pub(crate) fn missing(cpu: &mut Cpu, op: &Operation) -> Exec {
    let name = iced_x86::Mnemonic::try_from(op.immediate as usize).map_or_else(
        |_| "unknown".into(),
        |mnemonic| format!("{mnemonic:?}").to_lowercase(),
    );
    crate::counters::count(&mut cpu.counters.undefined, name);
    Err(UD)
}

/// More than 15 bytes.
pub(crate) fn too_long(_: &mut Cpu, _: &Operation) -> Exec {
    Err(GP0)
}

pub(crate) fn nothing(cpu: &mut Cpu, op: &Operation) -> Exec {
    cpu.advance(op);
    Ok(())
}

pub(crate) fn pause(cpu: &mut Cpu, op: &Operation) -> Exec {
    std::hint::spin_loop();
    cpu.advance(op);
    // Somebody may be waiting for this processor's attention.
    Err(Trap::EndBlock)
}

pub(crate) fn fence(cpu: &mut Cpu, op: &Operation) -> Exec {
    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    cpu.advance(op);
    Ok(())
}

/// CLFLUSH and friends: the address must be readable.
pub(crate) fn flush_line(cpu: &mut Cpu, op: &Operation) -> Exec {
    cpu.read_operand::<u8>(op)?;
    cpu.advance(op);
    Ok(())
}

pub(crate) fn halt(cpu: &mut Cpu, op: &Operation) -> Exec {
    cpu.ring0()?;
    cpu.advance(op);
    Err(Trap::Halt)
}

/// WBINVD, INVD, WBNOINVD: caches are the host's.
pub(crate) fn privileged_nothing(cpu: &mut Cpu, op: &Operation) -> Exec {
    cpu.ring0()?;
    cpu.advance(op);
    Ok(())
}

// MOV with segment registers: `first` is the segment for loads, `second` for
// stores.

pub(crate) fn segment_from_register(cpu: &mut Cpu, op: &Operation) -> Exec {
    let selector = cpu.register::<u16>(op.second);
    load_segment(cpu, op, selector)
}

pub(crate) fn segment_from_memory(cpu: &mut Cpu, op: &Operation) -> Exec {
    segment_register(op.first)?;
    let selector = cpu.read_operand::<u16>(op)?;
    load_segment(cpu, op, selector)
}

fn load_segment(cpu: &mut Cpu, op: &Operation, selector: u16) -> Exec {
    let register = segment_register(op.first)?;
    cpu.load_segment(register, selector)?;
    if register == SegmentRegister::Ss {
        cpu.shadow = InterruptShadow::MovSs;
    }
    end_block(cpu, op)
}

pub(crate) fn register_from_segment<T: Scalar>(cpu: &mut Cpu, op: &Operation) -> Exec {
    let selector = cpu.segments[usize::from(op.second)].selector;
    cpu.set_register(op.first, T::from_u64(selector.into()));
    cpu.advance(op);
    Ok(())
}

pub(crate) fn memory_from_segment(cpu: &mut Cpu, op: &Operation) -> Exec {
    let selector = cpu.segments[usize::from(op.second)].selector;
    cpu.write_operand(op, selector)?;
    cpu.advance(op);
    Ok(())
}

/// LDS, LES, LFS, LGS, LSS: `first` the register, `second` the segment.
pub(crate) fn load_far_pointer(cpu: &mut Cpu, op: &Operation) -> Exec {
    let register = segment_register(op.second)?;
    let (selector, offset) = super::flow::far_pointer(cpu, op)?;
    cpu.load_segment(register, selector)?;
    match op.width {
        2 => cpu.set_register(op.first, offset as u16),
        4 => cpu.set_register(op.first, offset as u32),
        _ => cpu.set_register(op.first, offset),
    }
    end_block(cpu, op)
}

// Control and debug registers: `first` and `second` as in the instruction.

pub(crate) fn read_control(cpu: &mut Cpu, op: &Operation) -> Exec {
    cpu.ring0()?;
    let value = match op.second {
        0 => cpu.cr0,
        2 => cpu.cr2,
        3 => cpu.cr3,
        4 => cpu.cr4,
        8 => cpu.apic.cr8(),
        _ => return Err(UD),
    };
    write_wide(cpu, op.first, value);
    cpu.advance(op);
    Ok(())
}

pub(crate) fn write_control(cpu: &mut Cpu, op: &Operation) -> Exec {
    let value = read_wide(cpu, op.second);
    match op.first {
        0 => cpu.write_cr0(value)?,
        2 => cpu.write_cr2(value)?,
        3 => cpu.write_cr3(value)?,
        4 => cpu.write_cr4(value)?,
        8 => {
            cpu.ring0()?;
            if value > 15 {
                return Err(GP0);
            }
            cpu.apic.set_cr8(value);
        }
        _ => return Err(UD),
    }
    end_block(cpu, op)
}

pub(crate) fn read_debug(cpu: &mut Cpu, op: &Operation) -> Exec {
    let value = cpu.read_dr(op.second)?;
    write_wide(cpu, op.first, value);
    cpu.advance(op);
    Ok(())
}

pub(crate) fn write_debug(cpu: &mut Cpu, op: &Operation) -> Exec {
    let value = read_wide(cpu, op.second);
    cpu.write_dr(op.first, value)?;
    end_block(cpu, op)
}

/// These move 64 bits in 64-bit mode and 32 elsewhere, whatever the prefixes.
fn read_wide(cpu: &Cpu, register: u8) -> u64 {
    if cpu.code_size == CodeSize::Bits64 {
        cpu.register::<u64>(register)
    } else {
        cpu.register::<u32>(register).into()
    }
}

fn write_wide(cpu: &mut Cpu, register: u8, value: u64) {
    if cpu.code_size == CodeSize::Bits64 {
        cpu.set_register(register, value);
    } else {
        cpu.set_register(register, value as u32);
    }
}

// Descriptor tables.

/// The base of a pseudo-descriptor: 24 bits with a 16-bit operand.
fn table_operand(cpu: &mut Cpu, op: &Operation) -> Exec<(u64, u16)> {
    cpu.ring0()?;
    let wide = cpu.code_size == CodeSize::Bits64;
    let address = cpu.address(op, if wide { 10 } else { 6 }, false)?;
    let access = Cpu::operand_access(op);
    let limit = cpu.read_linear::<u16>(address, access)?;
    let base_at = address.wrapping_add(2);
    let base = match (wide, op.width) {
        (true, _) => cpu.read_linear::<u64>(base_at, access)?,
        (false, 2) => u64::from(cpu.read_linear::<u32>(base_at, access)? & 0xff_ffff),
        (false, _) => cpu.read_linear::<u32>(base_at, access)?.into(),
    };
    Ok((base, limit))
}

pub(crate) fn load_gdt(cpu: &mut Cpu, op: &Operation) -> Exec {
    let (base, limit) = table_operand(cpu, op)?;
    cpu.load_gdtr(base, limit)?;
    cpu.advance(op);
    Ok(())
}

pub(crate) fn load_idt(cpu: &mut Cpu, op: &Operation) -> Exec {
    let (base, limit) = table_operand(cpu, op)?;
    cpu.load_idtr(base, limit)?;
    cpu.advance(op);
    Ok(())
}

/// SGDT and SIDT.
pub(crate) fn store_table<const INTERRUPT: bool>(cpu: &mut Cpu, op: &Operation) -> Exec {
    cpu.check_umip()?;
    let table = if INTERRUPT { cpu.idtr } else { cpu.gdtr };
    let wide = cpu.code_size == CodeSize::Bits64;
    let size = if wide { 10 } else { 6 };
    let address = cpu.address(op, size, true)?;
    let mut bytes = [0; 10];
    bytes[..2].copy_from_slice(&table.limit.to_le_bytes());
    bytes[2..].copy_from_slice(&table.base.to_le_bytes());
    cpu.write_bytes(address, &bytes[..size], Cpu::operand_access(op))?;
    cpu.advance(op);
    Ok(())
}

/// The 16-bit operand of LLDT, LTR, LMSW, VERR, VERW.
fn selector_operand<const MEMORY: bool>(cpu: &mut Cpu, op: &Operation) -> Exec<u16> {
    if MEMORY {
        cpu.read_operand(op)
    } else {
        Ok(cpu.register(op.first))
    }
}

pub(crate) fn load_ldt<const MEMORY: bool>(cpu: &mut Cpu, op: &Operation) -> Exec {
    require_protected(cpu)?;
    cpu.ring0()?;
    let selector = selector_operand::<MEMORY>(cpu, op)?;
    cpu.load_ldtr(selector)?;
    cpu.advance(op);
    Ok(())
}

pub(crate) fn load_task<const MEMORY: bool>(cpu: &mut Cpu, op: &Operation) -> Exec {
    require_protected(cpu)?;
    cpu.ring0()?;
    let selector = selector_operand::<MEMORY>(cpu, op)?;
    cpu.load_task_register(selector)?;
    cpu.advance(op);
    Ok(())
}

pub(crate) fn load_machine_status<const MEMORY: bool>(cpu: &mut Cpu, op: &Operation) -> Exec {
    cpu.ring0()?;
    let value = selector_operand::<MEMORY>(cpu, op)?;
    cpu.load_machine_status_word(value)?;
    end_block(cpu, op)
}

fn require_protected(cpu: &Cpu) -> Exec {
    if cpu.protected() { Ok(()) } else { Err(UD) }
}

/// SLDT, STR, SMSW: `second` says which; a register gets `width` bytes,
/// memory always 16 bits.
pub(crate) fn store_system_word<const MEMORY: bool>(cpu: &mut Cpu, op: &Operation) -> Exec {
    let value = match op.second {
        0 | 1 => {
            require_protected(cpu)?;
            cpu.check_umip()?;
            u64::from(if op.second == 0 {
                cpu.ldtr.selector
            } else {
                cpu.tr.selector
            })
        }
        _ => {
            cpu.check_umip()?;
            cpu.cr0
        }
    };
    if MEMORY {
        cpu.write_operand(op, value as u16)?;
    } else {
        match op.width {
            2 => cpu.set_register(op.first, value as u16),
            4 => cpu.set_register(op.first, value as u32),
            _ => cpu.set_register(op.first, value),
        }
    }
    cpu.advance(op);
    Ok(())
}

/// ARPL: the destination's RPL is raised to the source's.
pub(crate) fn adjust_privilege<const MEMORY: bool>(cpu: &mut Cpu, op: &Operation) -> Exec {
    require_protected(cpu)?;
    let source = cpu.register::<u16>(if MEMORY { op.first } else { op.second });
    let raise = |old: u16| old & !3 | (old & 3).max(source & 3);
    let old = if MEMORY {
        cpu.change_operand::<u16>(op, |_, old| raise(old))?
    } else {
        let old = cpu.register::<u16>(op.first);
        cpu.set_register(op.first, raise(old));
        old
    };
    set_zero(cpu, old & 3 < source & 3);
    cpu.advance(op);
    Ok(())
}

fn set_zero(cpu: &mut Cpu, zero: bool) {
    use crate::cpu::rflags::ZF;
    let bits = cpu.arithmetic.bits() & !ZF | if zero { ZF } else { 0 };
    cpu.arithmetic = crate::flags::ArithmeticFlags::from_bits(bits);
}

/// LAR (`LIMIT` false) and LSL.
pub(crate) fn describe_segment<const LIMIT: bool, const MEMORY: bool>(
    cpu: &mut Cpu,
    op: &Operation,
) -> Exec {
    let selector: u16 = if MEMORY {
        cpu.read_operand(op)?
    } else {
        cpu.register(op.second)
    };
    let answer = if LIMIT {
        cpu.segment_limit(selector)?
    } else {
        cpu.access_rights(selector)?
    };
    if let Some(value) = answer {
        match op.width {
            2 => cpu.set_register(op.first, value as u16),
            _ => cpu.set_register(op.first, value),
        }
    }
    set_zero(cpu, answer.is_some());
    cpu.advance(op);
    Ok(())
}

/// VERR and VERW.
pub(crate) fn verify_segment<const WRITE: bool, const MEMORY: bool>(
    cpu: &mut Cpu,
    op: &Operation,
) -> Exec {
    let selector = selector_operand::<MEMORY>(cpu, op)?;
    let ok = cpu.verify_segment(selector, WRITE)?;
    set_zero(cpu, ok);
    cpu.advance(op);
    Ok(())
}

pub(crate) fn clear_task_switched(cpu: &mut Cpu, op: &Operation) -> Exec {
    cpu.clear_task_switched()?;
    end_block(cpu, op)
}

pub(crate) fn invalidate_page(cpu: &mut Cpu, op: &Operation) -> Exec {
    let address = cpu.bases[usize::from(op.segment)].wrapping_add(cpu.offset(op));
    cpu.invalidate_page(address)?;
    end_block(cpu, op)
}

pub(crate) fn invalidate_pcid(cpu: &mut Cpu, op: &Operation) -> Exec {
    cpu.ring0()?;
    let kind = read_wide(cpu, op.first);
    let address = cpu.address(op, 16, false)?;
    let access = Cpu::operand_access(op);
    let pcid = cpu.read_linear::<u64>(address, access)?;
    let linear = cpu.read_linear::<u64>(address.wrapping_add(8), access)?;
    cpu.invalidate_pcid(kind, pcid, linear)?;
    end_block(cpu, op)
}

pub(crate) fn swap_gs(cpu: &mut Cpu, op: &Operation) -> Exec {
    cpu.swap_gs()?;
    cpu.update_mode();
    cpu.advance(op);
    Ok(())
}

/// RDFSBASE and RDGSBASE: `second` is the segment.
pub(crate) fn read_base<T: Scalar>(cpu: &mut Cpu, op: &Operation) -> Exec {
    cpu.check_fsgsbase()?;
    let base = cpu.segments[usize::from(op.second)].base;
    cpu.set_register(op.first, T::from_u64(base));
    cpu.advance(op);
    Ok(())
}

/// WRFSBASE and WRGSBASE.
pub(crate) fn write_base<T: Scalar>(cpu: &mut Cpu, op: &Operation) -> Exec {
    cpu.check_fsgsbase()?;
    let base = cpu.register::<T>(op.first).to_u64();
    cpu.write_segment_base(segment_register(op.second)?, base)?;
    cpu.update_mode();
    cpu.advance(op);
    Ok(())
}

fn set_edx_eax(cpu: &mut Cpu, value: u64) {
    cpu.set_register(RAX, value as u32);
    cpu.set_register(RDX, (value >> 32) as u32);
}

fn edx_eax(cpu: &Cpu) -> u64 {
    u64::from(cpu.register::<u32>(RAX)) | u64::from(cpu.register::<u32>(RDX)) << 32
}

pub(crate) fn read_time_stamp(cpu: &mut Cpu, op: &Operation) -> Exec {
    cpu.check_time_stamp_access()?;
    let tsc = cpu.tsc();
    set_edx_eax(cpu, tsc);
    cpu.advance(op);
    Ok(())
}

pub(crate) fn read_time_stamp_and_id(cpu: &mut Cpu, op: &Operation) -> Exec {
    read_time_stamp(cpu, op)?;
    cpu.set_register(RCX, cpu.msrs.tsc_aux as u32);
    Ok(())
}

pub(crate) fn read_processor_id<T: Scalar>(cpu: &mut Cpu, op: &Operation) -> Exec {
    cpu.set_register(op.first, T::from_u64(cpu.msrs.tsc_aux & 0xffff_ffff));
    cpu.advance(op);
    Ok(())
}

/// RDPMC: there are no counters.
pub(crate) fn read_performance_counter(_: &mut Cpu, _: &Operation) -> Exec {
    Err(GP0)
}

pub(crate) fn cpuid(cpu: &mut Cpu, op: &Operation) -> Exec {
    let (function, index) = (cpu.register::<u32>(RAX), cpu.register::<u32>(RCX));
    let result = cpu.cpuid_now(function, index);
    cpu.set_register(RAX, result.eax);
    cpu.set_register(gpr::RBX as u8, result.ebx);
    cpu.set_register(RCX, result.ecx);
    cpu.set_register(RDX, result.edx);
    // CPUID serializes: code another processor wrote is seen from here on.
    end_block(cpu, op)
}

pub(crate) fn read_msr(cpu: &mut Cpu, op: &Operation) -> Exec {
    cpu.ring0()?;
    let value = cpu.read_msr(cpu.register(RCX))?;
    set_edx_eax(cpu, value);
    cpu.advance(op);
    Ok(())
}

pub(crate) fn write_msr(cpu: &mut Cpu, op: &Operation) -> Exec {
    cpu.ring0()?;
    cpu.write_msr(cpu.register(RCX), edx_eax(cpu))?;
    end_block(cpu, op)
}

pub(crate) fn syscall(cpu: &mut Cpu, op: &Operation) -> Exec {
    let next = cpu.next_rip(op);
    cpu.syscall(next)?;
    Err(Trap::EndBlock)
}

pub(crate) fn sysret(cpu: &mut Cpu, op: &Operation) -> Exec {
    cpu.sysret(op.width == 8)?;
    Err(Trap::EndBlock)
}

pub(crate) fn sysenter(cpu: &mut Cpu, _: &Operation) -> Exec {
    cpu.sysenter()?;
    Err(Trap::EndBlock)
}

pub(crate) fn sysexit(cpu: &mut Cpu, op: &Operation) -> Exec {
    cpu.sysexit(op.width == 8)?;
    Err(Trap::EndBlock)
}

/// IN and OUT: `PORT_IN_DX`, else the port is the immediate.
fn port<const IN_DX: bool>(cpu: &Cpu, op: &Operation) -> u16 {
    if IN_DX {
        cpu.register(RDX)
    } else {
        op.immediate as u16 & 0xff
    }
}

pub(crate) fn input<T: Scalar, const IN_DX: bool>(cpu: &mut Cpu, op: &Operation) -> Exec {
    let port = port::<IN_DX>(cpu, op);
    cpu.check_port_access(port, T::SIZE as u8)?;
    let value = cpu.outside(VcpuExit::PortRead {
        port,
        size: port_size::<T>(),
    })?;
    cpu.watch_port(port, T::SIZE);
    cpu.set_register(RAX, T::from_u64(value));
    cpu.advance(op);
    Ok(())
}

pub(crate) fn output<T: Scalar, const IN_DX: bool>(cpu: &mut Cpu, op: &Operation) -> Exec {
    let port = port::<IN_DX>(cpu, op);
    cpu.check_port_access(port, T::SIZE as u8)?;
    let value = cpu.register::<T>(RAX).to_u64() as u32;
    cpu.outside(VcpuExit::PortWrite {
        port,
        size: port_size::<T>(),
        value,
    })?;
    cpu.watch_port(port, T::SIZE);
    cpu.advance(op);
    Ok(())
}

/// CMPXCHG8B.
pub(crate) fn cmpxchg8b(cpu: &mut Cpu, op: &Operation) -> Exec {
    let expected = edx_eax(cpu);
    let new =
        u64::from(cpu.register::<u32>(gpr::RBX as u8)) | u64::from(cpu.register::<u32>(RCX)) << 32;
    let found =
        cpu.change_operand::<u64>(op, |_, found| if found == expected { new } else { found })?;
    if found != expected {
        set_edx_eax(cpu, found);
    }
    set_zero(cpu, found == expected);
    cpu.advance(op);
    Ok(())
}

/// CMPXCHG16B: the operand must be aligned.
pub(crate) fn cmpxchg16b(cpu: &mut Cpu, op: &Operation) -> Exec {
    let address = cpu.address(op, 16, true)?;
    if address % 16 != 0 {
        return Err(GP0);
    }
    let access: Access = Cpu::operand_access(op);
    let wide = |low: usize, high: usize, cpu: &Cpu| {
        u128::from(cpu.gpr[low]) | u128::from(cpu.gpr[high]) << 64
    };
    let expected = wide(gpr::RAX, gpr::RDX, cpu);
    let new = wide(gpr::RBX, gpr::RCX, cpu);
    let found = if let Some(host) = cpu.locked_host(address, 16, access)? {
        // SAFETY: `locked_host` vouches for the bytes; the address is aligned
        // in its page and pages are aligned on the host.
        let found = unsafe { crate::scalar::compare_exchange_16(host, expected, new) };
        cpu.written(address, access);
        found
    } else {
        // Not RAM, or under a breakpoint.
        let _bus = crate::buslock::lock();
        cpu.check_writable(address, 16, access)?;
        let low = cpu.read_linear::<u64>(address, access)?;
        let high = cpu.read_linear::<u64>(address.wrapping_add(8), access)?;
        let found = u128::from(low) | u128::from(high) << 64;
        let stored = if found == expected { new } else { found };
        cpu.write_linear(address, stored as u64, access)?;
        cpu.write_linear(address.wrapping_add(8), (stored >> 64) as u64, access)?;
        found
    };
    if found != expected {
        cpu.gpr[gpr::RAX] = found as u64;
        cpu.gpr[gpr::RDX] = (found >> 64) as u64;
    }
    set_zero(cpu, found == expected);
    cpu.advance(op);
    Ok(())
}
