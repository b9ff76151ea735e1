//! Model-specific registers.
//!
//! An MSR that is not here raises #GP and is counted; Linux reads unknown
//! ones with its fault handler armed.

use favo_types::GuestAddress;

use crate::apic::{Effect, base};
use crate::clock::host_tsc;
use crate::counters::count;
use crate::cpu::{Cpu, SegmentRegister};
use crate::partition::realtime;
use crate::segment::is_canonical;
use crate::trap::{Exec, GP0};

/// MSR numbers.
mod number {
    pub const TSC: u32 = 0x10;
    pub const PLATFORM_ID: u32 = 0x17;
    pub const APIC_BASE: u32 = 0x1b;
    pub const FEATURE_CONTROL: u32 = 0x3a;
    pub const TSC_ADJUST: u32 = 0x3b;
    pub const SPEC_CTRL: u32 = 0x48;
    pub const PRED_CMD: u32 = 0x49;
    pub const MICROCODE: u32 = 0x8b;
    pub const MTRR_CAP: u32 = 0xfe;
    pub const ARCH_CAPABILITIES: u32 = 0x10a;
    pub const SYSENTER_CS: u32 = 0x174;
    pub const SYSENTER_ESP: u32 = 0x175;
    pub const SYSENTER_EIP: u32 = 0x176;
    pub const MCG_CAP: u32 = 0x179;
    pub const MCG_STATUS: u32 = 0x17a;
    pub const MISC_ENABLE: u32 = 0x1a0;
    pub const DEBUG_CTL: u32 = 0x1d9;
    pub const MTRR_VARIABLE: u32 = 0x200;
    pub const PAT: u32 = 0x277;
    pub const MTRR_DEFAULT: u32 = 0x2ff;
    pub const TSC_DEADLINE: u32 = 0x6e0;
    pub const X2APIC: u32 = 0x800;
    pub const X2APIC_LAST: u32 = 0x8ff;
    pub const KVM_WALL_CLOCK_OLD: u32 = 0x11;
    pub const KVM_SYSTEM_TIME_OLD: u32 = 0x12;
    pub const KVM_WALL_CLOCK: u32 = 0x4b56_4d00;
    pub const KVM_SYSTEM_TIME: u32 = 0x4b56_4d01;
    pub const EFER: u32 = 0xc000_0080;
    pub const STAR: u32 = 0xc000_0081;
    pub const LSTAR: u32 = 0xc000_0082;
    pub const CSTAR: u32 = 0xc000_0083;
    pub const SFMASK: u32 = 0xc000_0084;
    pub const FS_BASE: u32 = 0xc000_0100;
    pub const GS_BASE: u32 = 0xc000_0101;
    pub const KERNEL_GS_BASE: u32 = 0xc000_0102;
    pub const TSC_AUX: u32 = 0xc000_0103;
    pub const AMD_SYSCFG: u32 = 0xc001_0010;
    pub const AMD_HWCR: u32 = 0xc001_0015;
    pub const AMD_PATCH_LEVEL: u32 = 0xc001_0020;
    pub const AMD_NB_CFG: u32 = 0xc001_001f;
    pub const AMD_INT_PENDING: u32 = 0xc001_0055;
    pub const AMD_LS_CFG: u32 = 0xc001_1020;
    pub const AMD_DE_CFG: u32 = 0xc001_1029;
    pub const AMD_DC_CFG: u32 = 0xc001_1022;
}

/// Eight variable ranges, fixed ranges, write combining.
const MTRR_CAPABILITIES: u64 = 0x508;
/// The numbers of the fixed-range MTRRs.
const MTRR_FIXED: [u32; 11] = [
    0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f,
];
/// The TSC counts at the frequency of the fastest state, whatever the state.
const HWCR_TSC_FREQUENCY_P0: u64 = 1 << 24;
/// LFENCE serializes.
const DE_CFG_LFENCE: u64 = 1 << 1;
/// Not affected by RDCL, MDS, TAA and the rest; enhanced IBRS.
const NOT_AFFECTED: u64 = 1 << 0
    | 1 << 1
    | 1 << 3
    | 1 << 4
    | 1 << 5
    | 1 << 6
    | 1 << 8
    | 1 << 13
    | 1 << 14
    | 1 << 15
    | 1 << 20
    | 1 << 24
    | 1 << 26
    | 1 << 27;

impl Cpu {
    /// The guest's time stamp counter.
    #[inline]
    pub(crate) fn tsc(&self) -> u64 {
        host_tsc().wrapping_add(self.tsc_offset)
    }

    /// The guest's TSC as a host TSC.
    fn to_host_tsc(&self, guest: u64) -> u64 {
        guest.wrapping_sub(self.tsc_offset)
    }

    fn is_amd(&self) -> bool {
        // "Auth", "Hygo".
        matches!(self.cpuid.get(0, 0).ebx, 0x6874_7541 | 0x6f67_7948)
    }

    /// RDMSR.
    pub(crate) fn read_msr(&mut self, number: u32) -> Exec<u64> {
        let msrs = &self.msrs;
        Ok(match number {
            number::TSC => self.tsc(),
            number::TSC_ADJUST => msrs.tsc_adjust,
            number::TSC_DEADLINE if self.apic.deadline_armed() => msrs.tsc_deadline,
            number::TSC_DEADLINE => 0,
            number::TSC_AUX => msrs.tsc_aux,
            number::APIC_BASE => msrs.apic_base,
            number::SYSENTER_CS => msrs.sysenter_cs,
            number::SYSENTER_ESP => msrs.sysenter_esp,
            number::SYSENTER_EIP => msrs.sysenter_eip,
            number::EFER => self.efer,
            number::STAR => msrs.star,
            number::LSTAR => msrs.lstar,
            number::CSTAR => msrs.cstar,
            number::SFMASK => msrs.sfmask,
            number::FS_BASE => self.segments[SegmentRegister::Fs as usize].base,
            number::GS_BASE => self.segments[SegmentRegister::Gs as usize].base,
            number::KERNEL_GS_BASE => msrs.kernel_gs_base,
            number::PAT => msrs.pat,
            number::MISC_ENABLE => msrs.misc_enable,
            number::SPEC_CTRL if self.has_spec_ctrl() => msrs.spec_ctrl,
            number::ARCH_CAPABILITIES if self.has_arch_capabilities() => NOT_AFFECTED,
            number::MTRR_CAP => MTRR_CAPABILITIES,
            number::MTRR_DEFAULT => msrs.mtrr.default_type,
            number::KVM_WALL_CLOCK | number::KVM_WALL_CLOCK_OLD => msrs.paravirtual.wall_clock,
            number::KVM_SYSTEM_TIME | number::KVM_SYSTEM_TIME_OLD => msrs.paravirtual.system_time,
            number::X2APIC..=number::X2APIC_LAST => {
                return self.apic.read_x2apic(number - number::X2APIC, host_tsc());
            }
            number::AMD_DE_CFG if self.is_amd() => DE_CFG_LFENCE,
            number::AMD_HWCR if self.is_amd() => HWCR_TSC_FREQUENCY_P0,
            number::MICROCODE => u64::MAX >> 32 << 32,
            number::PLATFORM_ID
            | number::MCG_CAP
            | number::MCG_STATUS
            | number::DEBUG_CTL
            | number::FEATURE_CONTROL => 0,
            number::AMD_SYSCFG
            | number::AMD_INT_PENDING
            | number::AMD_LS_CFG
            | number::AMD_DC_CFG
            | number::AMD_NB_CFG
                if self.is_amd() =>
            {
                0
            }
            _ => match mtrr_slot(number) {
                Some(MtrrSlot::Fixed(index)) => msrs.mtrr.fixed[index],
                Some(MtrrSlot::Base(index)) => msrs.mtrr.variable[index].0,
                Some(MtrrSlot::Mask(index)) => msrs.mtrr.variable[index].1,
                None => return Err(self.unknown_msr("read", number)),
            },
        })
    }

    /// WRMSR.
    pub(crate) fn write_msr(&mut self, number: u32, value: u64) -> Exec {
        let canonical = is_canonical(value);
        match number {
            number::TSC => {
                let delta = value.wrapping_sub(self.tsc());
                self.tsc_offset = self.tsc_offset.wrapping_add(delta);
                self.msrs.tsc_adjust = self.msrs.tsc_adjust.wrapping_add(delta);
                self.rearm_deadline();
            }
            number::TSC_ADJUST => {
                let delta = value.wrapping_sub(self.msrs.tsc_adjust);
                self.tsc_offset = self.tsc_offset.wrapping_add(delta);
                self.msrs.tsc_adjust = value;
                self.rearm_deadline();
            }
            number::TSC_DEADLINE => {
                self.msrs.tsc_deadline = value;
                let deadline = (value != 0).then(|| self.to_host_tsc(value));
                self.apic.set_deadline(deadline);
            }
            number::TSC_AUX if value >> 32 == 0 => self.msrs.tsc_aux = value,
            number::APIC_BASE => return self.write_apic_base(value),
            number::SYSENTER_CS => self.msrs.sysenter_cs = value & 0xffff_ffff,
            number::SYSENTER_ESP if canonical => self.msrs.sysenter_esp = value,
            number::SYSENTER_EIP if canonical => self.msrs.sysenter_eip = value,
            number::EFER => return self.write_efer(value),
            number::STAR => self.msrs.star = value,
            number::LSTAR if canonical => self.msrs.lstar = value,
            number::CSTAR if canonical => self.msrs.cstar = value,
            number::SFMASK if value >> 32 == 0 => self.msrs.sfmask = value,
            number::FS_BASE => self.write_base(SegmentRegister::Fs, value)?,
            number::GS_BASE => self.write_base(SegmentRegister::Gs, value)?,
            number::KERNEL_GS_BASE if canonical => self.msrs.kernel_gs_base = value,
            number::PAT if is_valid_pat(value) => self.msrs.pat = value,
            number::MISC_ENABLE => self.msrs.misc_enable = value,
            number::SPEC_CTRL if self.has_spec_ctrl() && value & !7 == 0 => {
                self.msrs.spec_ctrl = value;
            }
            number::PRED_CMD if self.has_spec_ctrl() && value & !1 == 0 => {}
            number::MTRR_DEFAULT if value & !0xcff == 0 && is_memory_type(value as u8) => {
                self.msrs.mtrr.default_type = value;
            }
            number::KVM_WALL_CLOCK | number::KVM_WALL_CLOCK_OLD => {
                self.msrs.paravirtual.wall_clock = value;
                self.write_wall_clock(value);
            }
            number::KVM_SYSTEM_TIME | number::KVM_SYSTEM_TIME_OLD => {
                self.msrs.paravirtual.system_time = value;
                self.write_system_time();
            }
            number::X2APIC..=number::X2APIC_LAST => {
                let effect = self
                    .apic
                    .write_x2apic(number - number::X2APIC, value, host_tsc())?;
                self.apply(effect);
            }
            number::MICROCODE
            | number::AMD_PATCH_LEVEL
            | number::MCG_STATUS
            | number::DEBUG_CTL => {}
            number::AMD_SYSCFG
            | number::AMD_HWCR
            | number::AMD_LS_CFG
            | number::AMD_DE_CFG
            | number::AMD_DC_CFG
            | number::AMD_NB_CFG
                if self.is_amd() => {}
            _ => match mtrr_slot(number) {
                Some(MtrrSlot::Fixed(index)) => self.msrs.mtrr.fixed[index] = value,
                Some(MtrrSlot::Base(index)) => self.msrs.mtrr.variable[index].0 = value,
                Some(MtrrSlot::Mask(index)) => self.msrs.mtrr.variable[index].1 = value,
                None => return Err(self.unknown_msr("write", number)),
            },
        }
        Ok(())
    }

    #[cold]
    fn unknown_msr(&mut self, operation: &str, number: u32) -> crate::trap::Trap {
        count(
            &mut self.counters.unsupported,
            format!("{operation} of msr {number:#x}"),
        );
        GP0
    }

    fn has_spec_ctrl(&self) -> bool {
        self.cpuid.get(7, 0).edx >> 26 & 1 != 0
    }

    fn has_arch_capabilities(&self) -> bool {
        self.cpuid.get(7, 0).edx >> 29 & 1 != 0
    }

    fn write_base(&mut self, register: SegmentRegister, value: u64) -> Exec {
        self.write_segment_base(register, value)?;
        self.update_mode();
        Ok(())
    }

    /// Rules of SDM vol. 3, figure 11-27: x2APIC is entered from xAPIC and
    /// left through "disabled" only.
    fn write_apic_base(&mut self, value: u64) -> Exec {
        let old = self.msrs.apic_base;
        let known = base::BOOTSTRAP | base::X2APIC | base::ENABLE | base::ADDRESS;
        let mode = |value: u64| value & (base::ENABLE | base::X2APIC);
        let allowed = match (mode(old), mode(value)) {
            (_, base::X2APIC) => false,
            (0, new) => new != base::ENABLE | base::X2APIC,
            (old, new) if old == base::ENABLE | base::X2APIC => new != base::ENABLE,
            _ => true,
        };
        if value & !known != 0 || value >> self.limits.physical_bits != 0 || !allowed {
            return Err(GP0);
        }
        self.msrs.apic_base = value & !base::BOOTSTRAP | old & base::BOOTSTRAP;
        self.apic.set_base(self.msrs.apic_base);
        self.publish_apic();
        Ok(())
    }

    /// Tells senders how to address this processor.
    pub(crate) fn publish_apic(&self) {
        let mailbox = self.shared.mailbox(self.id);
        mailbox.publish(self.msrs.apic_base, self.apic.ldr(), self.apic.dfr());
    }

    /// Carries out what a local APIC register write asks for.
    pub(crate) fn apply(&mut self, effect: Effect) {
        match effect {
            Effect::None => {}
            Effect::EndOfLevel(vector) => self.end_of_level = Some(vector),
            Effect::Send(icr) => {
                self.publish_apic();
                self.shared.send_ipi(self.id, icr, self.apic.is_x2apic());
            }
        }
    }

    /// The deadline is in guest time: a change of the offset moves it.
    fn rearm_deadline(&mut self) {
        if self.apic.deadline_armed() {
            let deadline = self.to_host_tsc(self.msrs.tsc_deadline);
            self.apic.set_deadline(Some(deadline));
        }
    }

    /// Sets the guest's TSC to `value` now, without the adjustment MSR. The
    /// machine's processors show one time: see [`crate::partition::Shared::agree_tsc`].
    pub(crate) fn set_tsc(&mut self, value: u64) {
        let own = value.wrapping_sub(host_tsc());
        self.tsc_offset = self.shared.agree_tsc(self.id, own);
    }

    /// Arms the deadline timer with what the MSR holds.
    pub(crate) fn arm_deadline(&mut self) {
        let value = self.msrs.tsc_deadline;
        let deadline = (value != 0).then(|| self.to_host_tsc(value));
        self.apic.set_deadline(deadline);
    }

    /// `struct pvclock_wall_clock`: when kvmclock was zero.
    fn write_wall_clock(&mut self, address: u64) {
        let boot = realtime().saturating_sub(self.shared.kvmclock(host_tsc()));
        let mut page = [0; 12];
        page[..4].copy_from_slice(&2u32.to_le_bytes());
        page[4..8].copy_from_slice(&((boot / 1_000_000_000) as u32).to_le_bytes());
        page[8..].copy_from_slice(&((boot % 1_000_000_000) as u32).to_le_bytes());
        // An address that is not RAM is the guest's mistake, and harmless.
        let _ = self.shared.memory.write(GuestAddress(address), &page);
    }

    /// `struct pvclock_vcpu_time_info`. The version is odd while it changes.
    pub(crate) fn write_system_time(&mut self) {
        let address = self.msrs.paravirtual.system_time;
        if address & 1 == 0 {
            return;
        }
        let address = GuestAddress(address & !1);
        let (host_base, nanoseconds) = self.shared.clock_base();
        let scale = self.shared.scale;
        let memory = self.shared.memory.clone();
        let mut old = [0; 4];
        if memory.read(address, &mut old).is_err() {
            return;
        }
        let version = (u32::from_le_bytes(old) & !1).wrapping_add(1);
        let mut page = [0; 32];
        page[..4].copy_from_slice(&version.to_le_bytes());
        page[8..16].copy_from_slice(&host_base.wrapping_add(self.tsc_offset).to_le_bytes());
        page[16..24].copy_from_slice(&nanoseconds.to_le_bytes());
        page[24..28].copy_from_slice(&scale.multiplier.to_le_bytes());
        page[28] = scale.shift as u8;
        // PVCLOCK_TSC_STABLE_BIT: the same on every processor.
        page[29] = 1;
        let _ = memory.write(address, &page);
        let _ = memory.write(address, &version.wrapping_add(1).to_le_bytes());
    }

    /// CPUID as it is now: some bits mirror control registers.
    pub(crate) fn cpuid_now(&self, function: u32, index: u32) -> favo_accel::cpuid::CpuidResult {
        use crate::cpu::cr4;
        let mut result = self.cpuid.get(function, index);
        match (function, index) {
            (1, _) => {
                // OSXSAVE follows CR4, APIC follows its base register.
                result.ecx &= !(1 << 27);
                if self.cr4 & cr4::OSXSAVE != 0 {
                    result.ecx |= 1 << 27;
                }
                if !self.apic.is_enabled() {
                    result.edx &= !(1 << 9);
                }
            }
            (0xd, 0 | 1) => result.ebx = xsave_size(self.xcr0),
            (0xb, _) => result.ecx = result.ecx & !0xff | index & 0xff,
            _ => {}
        }
        result
    }
}

/// Bytes XSAVE needs for the components in `xcr0`.
fn xsave_size(xcr0: u64) -> u32 {
    if xcr0 & 4 != 0 { 576 + 256 } else { 576 }
}

enum MtrrSlot {
    Fixed(usize),
    Base(usize),
    Mask(usize),
}

fn mtrr_slot(number: u32) -> Option<MtrrSlot> {
    if let Some(index) = MTRR_FIXED.iter().position(|fixed| *fixed == number) {
        return Some(MtrrSlot::Fixed(index));
    }
    let offset = number
        .checked_sub(number::MTRR_VARIABLE)
        .filter(|offset| *offset < 16)?;
    let index = (offset / 2) as usize;
    Some(if offset % 2 == 0 {
        MtrrSlot::Base(index)
    } else {
        MtrrSlot::Mask(index)
    })
}

/// UC, WC, WT, WP, WB.
fn is_memory_type(kind: u8) -> bool {
    matches!(kind, 0 | 1 | 4 | 5 | 6)
}

/// A page attribute table of eight valid types (7 is UC−).
fn is_valid_pat(value: u64) -> bool {
    value
        .to_le_bytes()
        .into_iter()
        .all(|kind| is_memory_type(kind) || kind == 7)
}
