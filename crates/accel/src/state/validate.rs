//! Which states no processor can be in.
//!
//! Snapshots and migration streams come from outside. Every engine calls
//! [`VcpuState::validate`] before it loads anything, so that all of them refuse
//! the same states with the same words.

use super::*;
use crate::engine::AccelError;

/// Bits of RFLAGS that are always 0 (SDM vol. 1, 3.4.3).
const RFLAGS_RESERVED: u64 = !0x003f_7fd7;
/// PE, MP, EM, TS, ET, NE, WP, AM, NW, CD, PG.
const CR0_DEFINED: u64 = 0xe005_003f;
const CR0_PE: u64 = 1;
const CR0_NW: u64 = 1 << 29;
const CR0_CD: u64 = 1 << 30;
const CR0_PG: u64 = 1 << 31;
/// VME to UMIP, LA57, FSGSBASE, PCIDE, OSXSAVE, SMEP, SMAP (SDM vol. 3, 2.5).
/// VMX, SMX, PKE, CET and what follows have state that is not carried.
const CR4_DEFINED: u64 = 0x0037_1fff;
const CR4_PAE: u64 = 1 << 5;
const CR4_LA57: u64 = 1 << 12;
/// SCE, LME, LMA, NXE, FFXSR, TCE, AUTOIBRS.
const EFER_DEFINED: u64 = 1 | 1 << 8 | 1 << 10 | 1 << 11 | 1 << 14 | 1 << 15 | 1 << 21;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// x87, SSE, AVX.
const XCR0_DEFINED: u64 = 7;
const SEGMENT_DEFINED: u32 = 0x1_f0ff;
const SEGMENT_L_AND_DB: u32 = 3 << 13;
const APIC_BASE_X2APIC: u64 = 1 << 10;
const APIC_BASE_ENABLE: u64 = 1 << 11;
const APIC_BASE_RESERVED: u64 = 0xff | 1 << 9 | !((1 << 52) - 1);
/// Physical addresses end here; bit 63 of CR3 is never stored.
const CR3_RESERVED: u64 = !((1 << 52) - 1);

impl VcpuState {
    /// Refuses a state no processor can be in. Says nothing of features: what
    /// this engine or this CPUID lacks is the engine's to check.
    pub fn validate(&self) -> Result<(), AccelError> {
        self.check().map_err(AccelError::InvalidState)
    }

    fn check(&self) -> Result<(), String> {
        if self.version != Self::VERSION {
            return Err(format!(
                "it has version {}, this favo reads {}",
                self.version,
                Self::VERSION
            ));
        }
        self.check_control()?;
        self.check_segments()?;
        self.check_canonical()?;
        self.check_msrs()?;
        self.check_events()?;
        reserved("RFLAGS", self.general.rflags, RFLAGS_RESERVED)?;
        require(self.general.rflags & 2 != 0, "bit 1 of RFLAGS is clear")?;
        reserved("DR6", self.debug.dr6, !0xffff_ffff)?;
        reserved("DR7", self.debug.dr7, !0xffff_ffff)?;
        reserved("MXCSR", self.fpu.mxcsr.into(), !0xffff)?;
        reserved("the x87 opcode", self.fpu.fop.into(), !0x7ff)?;
        reserved("the task priority", self.local_apic.tpr.into(), !0xff)
    }

    fn check_control(&self) -> Result<(), String> {
        let ControlRegisters {
            cr0,
            cr3,
            cr4,
            efer,
            xcr0,
            ..
        } = self.control;
        reserved("CR0", cr0, !CR0_DEFINED)?;
        reserved("CR3", cr3, CR3_RESERVED)?;
        reserved("CR4", cr4, !CR4_DEFINED)?;
        reserved("EFER", efer, !EFER_DEFINED)?;
        reserved("XCR0", xcr0, !XCR0_DEFINED)?;
        require(
            cr0 & CR0_PG == 0 || cr0 & CR0_PE != 0,
            "CR0 has paging without protection",
        )?;
        require(
            cr0 & CR0_NW == 0 || cr0 & CR0_CD != 0,
            "CR0 has NW without CD",
        )?;
        let long = efer & EFER_LME != 0 && cr0 & CR0_PG != 0;
        require(
            long == (efer & EFER_LMA != 0),
            "EFER.LMA does not follow from EFER.LME and CR0.PG",
        )?;
        require(!long || cr4 & CR4_PAE != 0, "long mode without CR4.PAE")?;
        require(xcr0 & 1 != 0, "XCR0 is without x87")?;
        require(xcr0 & 4 == 0 || xcr0 & 2 != 0, "XCR0 has AVX without SSE")
    }

    fn check_segments(&self) -> Result<(), String> {
        for (name, segment) in self.named_segments() {
            if segment.access & !SEGMENT_DEFINED != 0 {
                return Err(format!(
                    "{name} has access rights {:#x} with reserved bits",
                    segment.access
                ));
            }
        }
        let long = self.control.efer & EFER_LMA != 0;
        require(
            !long || self.segments.cs.access & SEGMENT_L_AND_DB != SEGMENT_L_AND_DB,
            "CS is both 64-bit and 32-bit",
        )
    }

    fn named_segments(&self) -> [(&'static str, &Segment); 8] {
        let segments = &self.segments;
        [
            ("ES", &segments.es),
            ("CS", &segments.cs),
            ("SS", &segments.ss),
            ("DS", &segments.ds),
            ("FS", &segments.fs),
            ("GS", &segments.gs),
            ("LDTR", &segments.ldtr),
            ("TR", &segments.tr),
        ]
    }

    fn check_canonical(&self) -> Result<(), String> {
        let bits = if self.control.cr4 & CR4_LA57 != 0 {
            57
        } else {
            48
        };
        let msrs = &self.msrs;
        let segments = &self.segments;
        for (name, address) in [
            ("RIP", self.general.rip),
            ("FS.base", segments.fs.base),
            ("GS.base", segments.gs.base),
            ("LDTR.base", segments.ldtr.base),
            ("TR.base", segments.tr.base),
            ("GDTR.base", segments.gdtr.base),
            ("IDTR.base", segments.idtr.base),
            ("KERNEL_GS_BASE", msrs.kernel_gs_base),
            ("LSTAR", msrs.lstar),
            ("CSTAR", msrs.cstar),
            ("SYSENTER_ESP", msrs.sysenter_esp),
            ("SYSENTER_EIP", msrs.sysenter_eip),
        ] {
            let extended = (address as i64) << (64 - bits) >> (64 - bits);
            if extended as u64 != address {
                return Err(format!("{name} is {address:#x}, which is not canonical"));
            }
        }
        Ok(())
    }

    fn check_msrs(&self) -> Result<(), String> {
        let base = self.msrs.apic_base;
        reserved("IA32_APIC_BASE", base, APIC_BASE_RESERVED)?;
        require(
            base & APIC_BASE_X2APIC == 0 || base & APIC_BASE_ENABLE != 0,
            "IA32_APIC_BASE has x2APIC mode without the APIC",
        )?;
        require(
            self.msrs
                .pat
                .to_le_bytes()
                .iter()
                .all(|kind| matches!(kind, 0 | 1 | 4..=7)),
            "PAT has a memory type that does not exist",
        )
    }

    fn check_events(&self) -> Result<(), String> {
        if let Some(exception) = self.events.exception
            && (exception.vector > 31 || exception.vector == 2)
        {
            return Err(format!(
                "an exception with vector {} waits, which is none",
                exception.vector
            ));
        }
        Ok(())
    }
}

fn reserved(name: &str, value: u64, mask: u64) -> Result<(), String> {
    if value & mask == 0 {
        Ok(())
    } else {
        Err(format!("{name} is {value:#x}, with reserved bits set"))
    }
}

fn require(holds: bool, otherwise: &str) -> Result<(), String> {
    if holds {
        Ok(())
    } else {
        Err(otherwise.to_owned())
    }
}

#[cfg(test)]
#[path = "validate_test.rs"]
mod test;
