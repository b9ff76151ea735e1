//! What this processor has until the local APIC, the clock and the table of
//! model-specific registers are wired in: a task priority of 0, the host's
//! time stamp counter, and the registers that only hold values.

use favo_accel::cpuid::CpuidResult;

use crate::cpu::{Cpu, SegmentRegister, cr4};
use crate::trap::{Exec, GP0};

impl Cpu {
    pub(crate) fn cr8(&self) -> u64 {
        0
    }

    pub(crate) fn set_cr8(&mut self, _value: u64) {}

    /// The time stamp counter as the guest reads it.
    pub(crate) fn tsc(&self) -> u64 {
        // SAFETY: every x86-64 processor has RDTSC.
        unsafe { std::arch::x86_64::_rdtsc() }
    }

    /// CPUID with the bits that follow the processor's state.
    pub(crate) fn cpuid_now(&self, function: u32, index: u32) -> CpuidResult {
        let mut result = self.cpuid.get(function, index);
        if function == 1 {
            result.ecx &= !(1 << 27);
            if self.cr4 & cr4::OSXSAVE != 0 {
                result.ecx |= 1 << 27;
            }
        }
        result
    }

    pub(crate) fn read_msr(&mut self, index: u32) -> Exec<u64> {
        Ok(match index {
            0xc000_0080 => self.efer,
            0xc000_0081 => self.msrs.star,
            0xc000_0082 => self.msrs.lstar,
            0xc000_0083 => self.msrs.cstar,
            0xc000_0084 => self.msrs.sfmask,
            0xc000_0100 => self.segments[SegmentRegister::Fs as usize].base,
            0xc000_0101 => self.segments[SegmentRegister::Gs as usize].base,
            0xc000_0102 => self.msrs.kernel_gs_base,
            0xc000_0103 => self.msrs.tsc_aux,
            _ => return Err(GP0),
        })
    }

    pub(crate) fn write_msr(&mut self, index: u32, value: u64) -> Exec {
        match index {
            0xc000_0080 => return self.write_efer(value),
            0xc000_0081 => self.msrs.star = value,
            0xc000_0082 => self.msrs.lstar = value,
            0xc000_0083 => self.msrs.cstar = value,
            0xc000_0084 => self.msrs.sfmask = value,
            0xc000_0100 => self.write_segment_base(SegmentRegister::Fs, value)?,
            0xc000_0101 => self.write_segment_base(SegmentRegister::Gs, value)?,
            0xc000_0102 => self.msrs.kernel_gs_base = value,
            0xc000_0103 => self.msrs.tsc_aux = value,
            _ => return Err(GP0),
        }
        self.update_mode();
        Ok(())
    }
}
