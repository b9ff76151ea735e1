//! A processor ready to run 64-bit code: what a boot protocol, the probe guest
//! and the conformance guests begin from.

use super::*;

/// 64-bit code segment, ring 0.
const CODE_64: u32 = 0xa09b;
/// Flat data segment, ring 0.
const DATA_FLAT: u32 = 0xc093;

/// PE, MP, ET, NE, WP, PG.
const CR0: u64 = 0x8001_0033;
/// PAE, OSFXSR, OSXMMEXCPT.
const CR4: u64 = 0x620;
/// SCE, LME, LMA.
const EFER: u64 = 0x501;

impl VcpuState {
    /// Processor `id` in 64-bit mode, interrupts off, at `rip`, with the page
    /// tables at `cr3` and flat segments (CS 8H, the others 10H; no descriptor
    /// tables yet). Everything else is as at power-on.
    pub fn flat_long_mode(id: u32, cr3: u64, rip: u64) -> Self {
        let mut state = Self::power_on(id, 0);
        let data = Segment {
            selector: 0x10,
            base: 0,
            limit: u32::MAX,
            access: DATA_FLAT,
        };
        let segments = &mut state.segments;
        segments.cs = Segment {
            selector: 8,
            access: CODE_64,
            ..data
        };
        for segment in [
            &mut segments.ss,
            &mut segments.ds,
            &mut segments.es,
            &mut segments.fs,
            &mut segments.gs,
        ] {
            *segment = data;
        }
        segments.gdtr.limit = 0;
        segments.idtr.limit = 0;
        state.control = ControlRegisters {
            cr0: CR0,
            cr3,
            cr4: CR4,
            efer: EFER,
            ..state.control
        };
        state.fpu = FpuState {
            fcw: 0x37f,
            ..state.fpu
        };
        state.general.rip = rip;
        state.activity = Activity::Running;
        state
    }
}
