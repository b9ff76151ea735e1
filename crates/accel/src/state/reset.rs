//! The state of a processor at power-on (SDM vol. 3, table 10-1).

use super::*;

/// Present, writable data segment, accessed.
const DATA: u32 = 0x93;
/// Present, readable code segment, accessed.
const CODE: u32 = 0x9b;
/// Present LDT.
const LDT: u32 = 0x82;
/// Present, busy TSS.
const TSS: u32 = 0x8b;

impl VcpuState {
    /// Processor `id` at power-on: 0 at the reset vector, the others waiting
    /// for INIT. CPUID's signature, which RDX holds at reset, is `signature`.
    pub fn power_on(id: u32, signature: u32) -> Self {
        let real = |access| Segment {
            selector: 0,
            base: 0,
            limit: 0xffff,
            access,
        };
        let bootstrap = id == 0;
        Self {
            version: Self::VERSION,
            general: GeneralRegisters {
                rdx: signature.into(),
                rip: 0xfff0,
                rflags: 2,
                ..Default::default()
            },
            segments: SegmentRegisters {
                es: real(DATA),
                cs: Segment {
                    selector: 0xf000,
                    base: 0xffff_0000,
                    limit: 0xffff,
                    access: CODE,
                },
                ss: real(DATA),
                ds: real(DATA),
                fs: real(DATA),
                gs: real(DATA),
                ldtr: real(LDT),
                tr: real(TSS),
                gdtr: DescriptorTable {
                    base: 0,
                    limit: 0xffff,
                },
                idtr: DescriptorTable {
                    base: 0,
                    limit: 0xffff,
                },
            },
            control: ControlRegisters {
                cr0: 0x6000_0010,
                xcr0: 1,
                ..Default::default()
            },
            debug: DebugRegisters::default(),
            msrs: Msrs {
                apic_base: 0xfee0_0800 | if bootstrap { 0x100 } else { 0 },
                pat: 0x0007_0406_0007_0406,
                misc_enable: 1,
                paravirtual: ParavirtualMsrs {
                    // The host may poll before it lets a halted processor sleep.
                    poll_control: 1,
                    ..Default::default()
                },
                ..Default::default()
            },
            fpu: FpuState {
                fcw: 0x40,
                ..Default::default()
            },
            local_apic: LocalApicState {
                id: id << 24,
                dfr: 0xffff_ffff,
                svr: 0xff,
                lvt_cmci: 1 << 16,
                lvt_timer: 1 << 16,
                lvt_thermal: 1 << 16,
                lvt_performance: 1 << 16,
                lvt_lint0: 1 << 16,
                lvt_lint1: 1 << 16,
                lvt_error: 1 << 16,
                ..Default::default()
            },
            events: PendingEvents::default(),
            activity: if bootstrap {
                Activity::Running
            } else {
                Activity::WaitForInit
            },
        }
    }
}
