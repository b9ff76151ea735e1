//! System instructions: control and debug registers, descriptor tables,
//! SYSCALL and SYSENTER, flags the guest may and may not change, and who may
//! touch I/O ports.
//!
//! Each method is one instruction without its operands. Whoever decodes calls
//! it with plain values, then moves RIP (unless the method is a transfer) and
//! ends the block with [`crate::trap::Trap::EndBlock`]. All checks come before
//! any change.

use favo_accel::cpuid::CpuidTable;

use crate::cpu::{CodeSize, Cpu, SegmentRegister, cr0, cr4, efer, gpr, rflags};
use crate::interrupt::DR7_GD;
use crate::mmu::Access;
use crate::segment::{flat, is_canonical};
use crate::trap::{Exception, Exec, GP0, UD};

/// What this processor's CPUID lets the guest switch on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Bits of CR4 that exist.
    pub cr4: u64,
    /// Bits of EFER that exist.
    pub efer: u64,
    /// Bits of XCR0 that exist.
    pub xcr0: u64,
    /// Width of a guest-physical address (MAXPHYADDR).
    pub physical_bits: u8,
}

impl Limits {
    /// Reads them off a processor's CPUID.
    pub fn from_cpuid(cpuid: &CpuidTable) -> Self {
        let basic = cpuid.get(1, 0);
        let extended = cpuid.get(7, 0);
        let amd = cpuid.get(0x8000_0001, 0);
        let xstate = cpuid.get(0xd, 0);
        let has = |register: u32, bit: u32| register >> bit & 1 != 0;
        let mut allowed_cr4 = cr4::PCE | cr4::OSXMMEXCPT;
        for (present, bit) in [
            (has(basic.edx, 1), cr4::VME | cr4::PVI),
            (has(basic.edx, 4), cr4::TSD),
            (has(basic.edx, 2), cr4::DE),
            (has(basic.edx, 3), cr4::PSE),
            (has(basic.edx, 6), cr4::PAE),
            (has(basic.edx, 7) || has(basic.edx, 14), cr4::MCE),
            (has(basic.edx, 13), cr4::PGE),
            (has(basic.edx, 24), cr4::OSFXSR),
            (has(basic.ecx, 17), cr4::PCIDE),
            (has(basic.ecx, 26), cr4::OSXSAVE),
            (has(extended.ebx, 0), cr4::FSGSBASE),
            (has(extended.ebx, 7), cr4::SMEP),
            (has(extended.ebx, 20), cr4::SMAP),
            (has(extended.ecx, 2), cr4::UMIP),
        ] {
            if present {
                allowed_cr4 |= bit;
            }
        }
        let mut allowed_efer = 0;
        for (present, bit) in [
            (has(amd.edx, 11), efer::SCE),
            (has(amd.edx, 29), efer::LME | efer::LMA),
            (has(amd.edx, 20), efer::NXE),
            (has(amd.edx, 25), efer::FFXSR),
        ] {
            if present {
                allowed_efer |= bit;
            }
        }
        let physical_bits = match cpuid.get(0x8000_0008, 0).eax as u8 {
            bits @ 32..=52 => bits,
            _ => 36,
        };
        Self {
            cr4: allowed_cr4,
            efer: allowed_efer,
            xcr0: u64::from(xstate.eax) | u64::from(xstate.edx) << 32,
            physical_bits,
        }
    }
}

impl Cpu {
    /// #GP(0) unless at level 0.
    #[inline]
    pub fn require_ring0(&self) -> Exec {
        if self.cpl == 0 { Ok(()) } else { Err(GP0) }
    }

    /// SGDT, SIDT, SLDT, STR, SMSW: refused to user code under UMIP.
    pub fn check_umip(&self) -> Exec {
        if self.cpl > 0 && self.cr4 & cr4::UMIP != 0 {
            Err(GP0)
        } else {
            Ok(())
        }
    }

    /// MOV to CR0.
    pub fn write_cr0(&mut self, value: u64) -> Exec {
        self.require_ring0()?;
        let old = self.cr0;
        let new = (value | cr0::ET) & KNOWN_CR0;
        let on = |bit| new & bit != 0;
        if value >> 32 != 0 || on(cr0::PG) && !on(cr0::PE) || on(cr0::NW) && !on(cr0::CD) {
            return Err(GP0);
        }
        let paging_on = on(cr0::PG) && old & cr0::PG == 0;
        let paging_off = !on(cr0::PG) && old & cr0::PG != 0;
        if paging_on && self.efer & efer::LME != 0 {
            let wrong_tss = self.tr.kind() & 0xd == 1 && self.tr.present();
            if self.cr4 & cr4::PAE == 0 || self.cs().long() || wrong_tss {
                return Err(GP0);
            }
            self.efer |= efer::LMA;
        }
        if paging_off {
            if self.code_size == CodeSize::Bits64 || self.cr4 & cr4::PCIDE != 0 {
                return Err(GP0);
            }
            self.efer &= !efer::LMA;
        }
        self.cr0 = new;
        if (old ^ new) & (cr0::PG | cr0::WP | cr0::PE) != 0 {
            self.flush_tlb_all();
        }
        self.update_mode();
        Ok(())
    }

    /// MOV to CR2.
    pub fn write_cr2(&mut self, value: u64) -> Exec {
        self.require_ring0()?;
        self.cr2 = value;
        Ok(())
    }

    /// MOV to CR3.
    pub fn write_cr3(&mut self, value: u64) -> Exec {
        self.require_ring0()?;
        let pcid = self.cr4 & cr4::PCIDE != 0;
        let keep = pcid && value >> 63 != 0;
        let value = if pcid { value & !(1 << 63) } else { value };
        if self.long_mode && value >> self.limits.physical_bits != 0 {
            return Err(GP0);
        }
        self.cr3 = value;
        self.address_space_changed(keep);
        Ok(())
    }

    /// MOV to CR4.
    pub fn write_cr4(&mut self, value: u64) -> Exec {
        self.require_ring0()?;
        let old = self.cr4;
        let changed = old ^ value;
        if value & !self.limits.cr4 != 0 {
            return Err(GP0);
        }
        if self.long_mode && value & cr4::PAE == 0 {
            return Err(GP0);
        }
        let pcid_on = changed & value & cr4::PCIDE != 0;
        if pcid_on && (!self.long_mode || self.cr3 & 0xfff != 0) {
            return Err(GP0);
        }
        self.cr4 = value;
        const PAGING: u64 = cr4::PAE | cr4::PSE | cr4::PGE | cr4::PCIDE | cr4::SMEP | cr4::SMAP;
        if changed & PAGING != 0 {
            self.flush_tlb_all();
        }
        self.update_mode();
        Ok(())
    }

    /// LMSW: PE can be set by it but not cleared.
    pub fn load_machine_status_word(&mut self, value: u16) -> Exec {
        self.require_ring0()?;
        let keep = self.cr0 & !0xe;
        self.write_cr0(keep | u64::from(value & 0xf))
    }

    /// CLTS.
    pub fn clear_task_switched(&mut self) -> Exec {
        self.require_ring0()?;
        self.cr0 &= !cr0::TS;
        self.update_mode();
        Ok(())
    }

    /// WRMSR to EFER; LMA is the processor's own.
    pub fn write_efer(&mut self, value: u64) -> Exec {
        let old = self.efer;
        if value & !self.limits.efer != 0 {
            return Err(GP0);
        }
        if (old ^ value) & efer::LME != 0 && self.cr0 & cr0::PG != 0 {
            return Err(GP0);
        }
        self.efer = value & !efer::LMA | old & efer::LMA;
        if (old ^ value) & efer::NXE != 0 {
            self.flush_tlb_all();
        }
        self.update_mode();
        Ok(())
    }

    /// MOV from a debug register.
    pub fn read_dr(&mut self, number: u8) -> Exec<u64> {
        self.check_debug_access(number)?;
        Ok(match number {
            0..=3 => self.debug.address[usize::from(number)],
            4 | 6 => self.debug.dr6,
            _ => self.debug.dr7,
        })
    }

    /// MOV to a debug register.
    pub fn write_dr(&mut self, number: u8, value: u64) -> Exec {
        self.check_debug_access(number)?;
        match number {
            0..=3 => {
                // Not canonical is allowed: such an address never matches.
                self.debug.address[usize::from(number)] = value;
            }
            _ if value >> 32 != 0 => return Err(GP0),
            4 | 6 => self.debug.dr6 = value & 0xe00f | 0xffff_0ff0,
            _ => self.debug.dr7 = value & !0xd000 | 0x400,
        }
        self.breakpoints_changed();
        self.update_mode();
        Ok(())
    }

    fn check_debug_access(&mut self, number: u8) -> Exec {
        if number > 7 || matches!(number, 4 | 5) && self.cr4 & cr4::DE != 0 {
            return Err(UD);
        }
        self.require_ring0()?;
        if self.debug.dr7 & DR7_GD != 0 {
            return Err(Exception::DebugFault(1 << 13).into());
        }
        Ok(())
    }

    /// LGDT.
    pub fn load_gdtr(&mut self, base: u64, limit: u16) -> Exec {
        self.check_table_load(base)?;
        self.gdtr = favo_accel::state::DescriptorTable { base, limit };
        Ok(())
    }

    /// LIDT.
    pub fn load_idtr(&mut self, base: u64, limit: u16) -> Exec {
        self.check_table_load(base)?;
        self.idtr = favo_accel::state::DescriptorTable { base, limit };
        Ok(())
    }

    fn check_table_load(&self, base: u64) -> Exec {
        self.require_ring0()?;
        if self.code_size == CodeSize::Bits64 && !is_canonical(base) {
            return Err(GP0);
        }
        Ok(())
    }

    /// INVLPG. A non-canonical address does nothing.
    pub fn invalidate_page(&mut self, address: u64) -> Exec {
        self.require_ring0()?;
        if is_canonical(address) {
            self.flush_tlb_page(address);
        }
        Ok(())
    }

    /// INVPCID (SDM vol. 2); the descriptor's two words are read already.
    pub fn invalidate_pcid(&mut self, kind: u64, pcid: u64, address: u64) -> Exec {
        self.require_ring0()?;
        if kind > 3 || kind < 2 && pcid >> 12 != 0 {
            return Err(GP0);
        }
        if kind < 2 && pcid != 0 && self.cr4 & cr4::PCIDE == 0 {
            return Err(GP0);
        }
        match kind {
            0 if !is_canonical(address) => return Err(GP0),
            0 => self.flush_tlb_page_of_pcid(pcid as u16, address),
            1 => self.flush_tlb_pcid(pcid as u16),
            2 => self.flush_tlb_all(),
            _ => self.flush_tlb_non_global(),
        }
        Ok(())
    }

    /// SWAPGS.
    pub fn swap_gs(&mut self) -> Exec {
        if self.code_size != CodeSize::Bits64 {
            return Err(UD);
        }
        self.require_ring0()?;
        let gs = &mut self.segments[SegmentRegister::Gs as usize];
        std::mem::swap(&mut gs.base, &mut self.msrs.kernel_gs_base);
        Ok(())
    }

    /// RDFSBASE, RDGSBASE, WRFSBASE, WRGSBASE: may they be used?
    pub fn check_fsgsbase(&self) -> Exec {
        if self.code_size != CodeSize::Bits64 || self.cr4 & cr4::FSGSBASE == 0 {
            return Err(UD);
        }
        Ok(())
    }

    /// WRFSBASE, WRGSBASE and the MSRs.
    pub fn write_segment_base(&mut self, register: SegmentRegister, base: u64) -> Exec {
        if !is_canonical(base) {
            return Err(GP0);
        }
        self.segments[register as usize].base = base;
        Ok(())
    }

    /// RDTSC, RDTSCP: may they be used?
    pub fn check_time_stamp_access(&self) -> Exec {
        if self.cpl > 0 && self.cr4 & cr4::TSD != 0 {
            Err(GP0)
        } else {
            Ok(())
        }
    }

    /// CLI, STI and the others that IOPL guards.
    pub fn check_io_privilege(&self) -> Exec {
        let iopl = (self.system_flags & rflags::IOPL) >> 12;
        if self.protected() && u64::from(self.cpl) > iopl {
            Err(GP0)
        } else {
            Ok(())
        }
    }

    /// May this code touch `width` ports from `port` on? (SDM vol. 1, 19.5.2)
    pub fn check_port_access(&mut self, port: u16, width: u8) -> Exec {
        if self.check_io_privilege().is_ok() {
            return Ok(());
        }
        // The bitmap exists in 32- and 64-bit task state segments.
        let limit = u64::from(self.tr.limit);
        if self.tr.unusable() || !self.tr.present() || self.tr.kind() & 0x1d != 9 || limit < 0x67 {
            return Err(GP0);
        }
        let base = self.tr.base;
        let map = self.read_linear::<u16>(base.wrapping_add(0x66), Access::System)?;
        let first = u64::from(map) + u64::from(port / 8);
        if first + 1 > limit {
            return Err(GP0);
        }
        let bits = self.read_linear::<u16>(base.wrapping_add(first), Access::System)?;
        let mask = ((1u32 << width) - 1) << (port % 8);
        if u32::from(bits) & mask != 0 {
            Err(GP0)
        } else {
            Ok(())
        }
    }

    /// The bits of RFLAGS that POPF may change here, for an operand of
    /// `width` bytes.
    pub fn popf_mask(&self, width: u8) -> u64 {
        use rflags::{AC, ARITHMETIC, DF, ID, IF, IOPL, NT, RF, TF};
        let mut mask = ARITHMETIC | TF | DF | NT;
        if width > 2 {
            // POPF clears RF rather than loading it; the caller passes 0 there.
            mask |= AC | ID | RF;
        }
        if self.cpl == 0 || !self.protected() {
            mask |= IOPL | IF;
        } else if self.check_io_privilege().is_ok() {
            mask |= IF;
        }
        mask
    }

    /// SYSCALL; `next` is the RIP behind it.
    pub fn syscall(&mut self, next: u64) -> Exec {
        if self.efer & efer::SCE == 0 || !self.protected() {
            return Err(UD);
        }
        let star = self.msrs.star;
        let selector = (star >> 32) as u16 & !3;
        let flags = self.rflags();
        if self.long_mode {
            let target = if self.code_size == CodeSize::Bits64 {
                self.msrs.lstar
            } else {
                self.msrs.cstar
            };
            self.gpr[gpr::RCX] = next;
            self.gpr[gpr::R11] = flags & !rflags::RF;
            let mask = self.msrs.sfmask | rflags::RF;
            self.set_rflags_masked(0, mask & !rflags::FIXED);
            self.segments[SegmentRegister::Ss as usize] = flat(selector + 8, DATA | DB);
            self.enter_code(flat(selector, CODE | LONG), target);
        } else {
            self.gpr[gpr::RCX] = next & 0xffff_ffff;
            self.set_rflags_masked(0, rflags::IF | rflags::RF | rflags::VM);
            self.segments[SegmentRegister::Ss as usize] = flat(selector + 8, DATA | DB);
            self.enter_code(flat(selector, CODE | DB), star & 0xffff_ffff);
        }
        Ok(())
    }

    /// SYSRET; `wide` with REX.W.
    pub fn sysret(&mut self, wide: bool) -> Exec {
        if self.efer & efer::SCE == 0 || !self.protected() {
            return Err(UD);
        }
        self.require_ring0()?;
        let selector = (self.msrs.star >> 48) as u16;
        let target = self.gpr[gpr::RCX];
        if self.long_mode && wide && !is_canonical(target) {
            return Err(GP0);
        }
        if self.long_mode {
            let flags = self.gpr[gpr::R11] & !(rflags::RF | rflags::VM);
            self.set_rflags_masked(flags, ALL_FLAGS);
        } else {
            self.system_flags |= rflags::IF;
        }
        let stack = flat((selector + 8) | 3, DATA | DB | RING3);
        self.segments[SegmentRegister::Ss as usize] = stack;
        if self.long_mode && wide {
            self.enter_code(flat((selector + 16) | 3, CODE | LONG | RING3), target);
        } else {
            self.enter_code(flat(selector | 3, CODE | DB | RING3), target & 0xffff_ffff);
        }
        Ok(())
    }

    /// SYSENTER.
    pub fn sysenter(&mut self) -> Exec {
        let selector = self.msrs.sysenter_cs as u16 & !3;
        if !self.protected() || selector == 0 {
            return Err(GP0);
        }
        let (mut rip, mut rsp) = (self.msrs.sysenter_eip, self.msrs.sysenter_esp);
        let size = if self.long_mode { LONG } else { DB };
        if !self.long_mode {
            (rip, rsp) = (rip & 0xffff_ffff, rsp & 0xffff_ffff);
        }
        self.set_rflags_masked(0, rflags::IF | rflags::VM);
        self.segments[SegmentRegister::Ss as usize] = flat(selector + 8, DATA | DB);
        self.enter_code(flat(selector, CODE | size), rip);
        self.gpr[gpr::RSP] = rsp;
        Ok(())
    }

    /// SYSEXIT; `wide` with REX.W.
    pub fn sysexit(&mut self, wide: bool) -> Exec {
        let selector = self.msrs.sysenter_cs as u16 & !3;
        if !self.protected() || selector == 0 || self.cpl != 0 {
            return Err(GP0);
        }
        let (rip, rsp) = (self.gpr[gpr::RDX], self.gpr[gpr::RCX]);
        if wide && !(is_canonical(rip) && is_canonical(rsp)) {
            return Err(GP0);
        }
        let (offset, size) = if wide { (32, LONG) } else { (16, DB) };
        let narrow = |value| if wide { value } else { value & 0xffff_ffff };
        let stack = flat((selector + offset + 8) | 3, DATA | DB | RING3);
        self.segments[SegmentRegister::Ss as usize] = stack;
        self.enter_code(
            flat((selector + offset) | 3, CODE | size | RING3),
            narrow(rip),
        );
        self.gpr[gpr::RSP] = narrow(rsp);
        Ok(())
    }
}

/// Bits of CR0 that exist; the others are ignored when written.
const KNOWN_CR0: u64 = cr0::PE
    | cr0::MP
    | cr0::EM
    | cr0::TS
    | cr0::ET
    | cr0::NE
    | cr0::WP
    | cr0::AM
    | cr0::NW
    | cr0::CD
    | cr0::PG;

/// Every flag SYSRET can load.
const ALL_FLAGS: u64 = rflags::ARITHMETIC
    | rflags::TF
    | rflags::IF
    | rflags::DF
    | rflags::IOPL
    | rflags::NT
    | rflags::RF
    | rflags::AC
    | rflags::VIF
    | rflags::VIP
    | rflags::ID;

// Access rights of the flat segments.
const CODE: u32 = 0x9b;
const DATA: u32 = 0x93;
const RING3: u32 = 3 << 5;
const LONG: u32 = 1 << 13;
const DB: u32 = 1 << 14;
