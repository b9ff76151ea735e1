//! Between the processor's own form and the canonical state.

use favo_accel::AccelError;
use favo_accel::cpuid::CpuidTable;
use favo_accel::state::{
    ControlRegisters, FpuState, GeneralRegisters, Segment as CanonicalSegment, SegmentRegisters,
    VcpuState,
};

use crate::cpu::{Cpu, Segment, cr0, rflags};
use crate::native::MXCSR_VALID;
use crate::system::Limits;

fn invalid(reason: impl Into<String>) -> AccelError {
    AccelError::InvalidState(reason.into())
}

impl From<CanonicalSegment> for Segment {
    fn from(segment: CanonicalSegment) -> Self {
        let CanonicalSegment {
            selector,
            base,
            limit,
            access,
        } = segment;
        Self {
            selector,
            base,
            limit,
            access,
        }
    }
}

impl From<Segment> for CanonicalSegment {
    fn from(segment: Segment) -> Self {
        let Segment {
            selector,
            base,
            limit,
            access,
        } = segment;
        Self {
            selector,
            base,
            limit,
            access,
        }
    }
}

/// Refuses a state no processor can be in, or none with this CPUID.
pub(crate) fn check(state: &VcpuState, cpuid: &CpuidTable) -> Result<(), AccelError> {
    state.validate()?;
    let limits = Limits::from_cpuid(cpuid);
    let ControlRegisters {
        cr3,
        cr4,
        efer,
        xcr0,
        ..
    } = state.control;
    let apic_base = state.msrs.apic_base;
    let physical = !0 >> (64 - limits.physical_bits);
    for (name, value, allowed) in [
        ("CR3", cr3, physical),
        ("CR4", cr4, limits.cr4),
        ("EFER", efer, limits.efer),
        ("XCR0", xcr0, limits.xcr0),
        ("IA32_APIC_BASE", apic_base, physical),
        ("MXCSR", state.fpu.mxcsr.into(), MXCSR_VALID.into()),
    ] {
        if value & !allowed != 0 {
            return Err(invalid(format!(
                "{name} is {value:#x}, of which this processor has {allowed:#x}"
            )));
        }
    }
    if state.general.rflags & rflags::VM != 0 {
        return Err(invalid(
            "virtual-8086 mode is on, which this engine does not have",
        ));
    }
    Ok(())
}

impl Cpu {
    /// Loads a checked state. What concerns the local APIC and events is the
    /// run loop's.
    pub(crate) fn load(&mut self, state: &VcpuState) {
        let GeneralRegisters {
            rax,
            rbx,
            rcx,
            rdx,
            rsi,
            rdi,
            rsp,
            rbp,
            r8,
            r9,
            r10,
            r11,
            r12,
            r13,
            r14,
            r15,
            rip,
            rflags,
        } = state.general;
        self.gpr = [
            rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15, 0,
        ];
        self.rip = rip;
        let SegmentRegisters {
            es,
            cs,
            ss,
            ds,
            fs,
            gs,
            ldtr,
            tr,
            gdtr,
            idtr,
        } = state.segments;
        self.segments = [es, cs, ss, ds, fs, gs].map(Segment::from);
        (self.ldtr, self.tr) = (ldtr.into(), tr.into());
        (self.gdtr, self.idtr) = (gdtr, idtr);
        self.cr0 = state.control.cr0 | cr0::ET;
        self.cr2 = state.control.cr2;
        self.cr3 = state.control.cr3;
        self.cr4 = state.control.cr4;
        self.efer = state.control.efer;
        self.xcr0 = state.control.xcr0;
        self.debug = state.debug;
        self.breakpoints_changed();
        self.msrs = state.msrs.clone();
        self.extended = (&state.fpu).into();
        self.shadow = state.events.shadow;
        self.nmi_masked = state.events.nmi_masked;
        self.set_tsc(state.msrs.tsc);
        self.set_rflags_masked(rflags, !rflags::VM);
        self.log.finish();
        self.end_of_level = None;
        self.update_mode();
        self.flush_tlb_all();
    }

    /// The processor's part of the state.
    pub(crate) fn save(&self, state: &mut VcpuState) {
        let [
            rax,
            rcx,
            rdx,
            rbx,
            rsp,
            rbp,
            rsi,
            rdi,
            r8,
            r9,
            r10,
            r11,
            r12,
            r13,
            r14,
            r15,
            _,
        ] = self.gpr;
        let (rip, rflags) = (self.rip, self.rflags());
        state.version = VcpuState::VERSION;
        state.general = GeneralRegisters {
            rax,
            rbx,
            rcx,
            rdx,
            rsi,
            rdi,
            rsp,
            rbp,
            r8,
            r9,
            r10,
            r11,
            r12,
            r13,
            r14,
            r15,
            rip,
            rflags,
        };
        let [es, cs, ss, ds, fs, gs] = self.segments.map(CanonicalSegment::from);
        state.segments = SegmentRegisters {
            es,
            cs,
            ss,
            ds,
            fs,
            gs,
            ldtr: self.ldtr.into(),
            tr: self.tr.into(),
            gdtr: self.gdtr,
            idtr: self.idtr,
        };
        state.control = ControlRegisters {
            cr0: self.cr0,
            cr2: self.cr2,
            cr3: self.cr3,
            cr4: self.cr4,
            efer: self.efer,
            xcr0: self.xcr0,
        };
        state.debug = self.debug;
        state.msrs = self.msrs.clone();
        state.msrs.tsc = self.tsc();
        if !self.apic.deadline_armed() {
            state.msrs.tsc_deadline = 0;
        }
        state.fpu = FpuState::from(&self.extended);
        state.events.shadow = self.shadow;
        state.events.nmi_masked = self.nmi_masked;
    }
}
