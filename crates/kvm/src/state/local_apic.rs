//! The local APIC's register page (SDM vol. 3, table 11-1). KVM keeps this
//! layout in x2APIC mode too, with the id in full and the interrupt command
//! in two halves.

use favo_accel::AccelError;
use favo_accel::state::LocalApicState;
use kvm_bindings::kvm_lapic_state;
use kvm_ioctls::VcpuFd;

use crate::error::host;

const ID: usize = 0x20;
const VERSION: usize = 0x30;
const TPR: usize = 0x80;
const LDR: usize = 0xd0;
const DFR: usize = 0xe0;
const SVR: usize = 0xf0;
const ISR: usize = 0x100;
const TMR: usize = 0x180;
const IRR: usize = 0x200;
const ESR: usize = 0x280;
const LVT_CMCI: usize = 0x2f0;
const ICR_LOW: usize = 0x300;
const ICR_HIGH: usize = 0x310;
const LVT_TIMER: usize = 0x320;
const LVT_THERMAL: usize = 0x330;
const LVT_PERFORMANCE: usize = 0x340;
const LVT_LINT0: usize = 0x350;
const LVT_LINT1: usize = 0x360;
const LVT_ERROR: usize = 0x370;
const INITIAL_COUNT: usize = 0x380;
const CURRENT_COUNT: usize = 0x390;
const DIVIDE: usize = 0x3e0;

/// What KVM's local APIC says of itself: version 14H, six or seven entries.
const VERSION_VALUE: u32 = 0x0005_0014;

pub(crate) fn export(fd: &VcpuFd) -> Result<LocalApicState, AccelError> {
    let page = fd
        .get_lapic()
        .map_err(host("reading the local APIC (KVM_GET_LAPIC)"))?;
    let bank = |base: usize| std::array::from_fn(|word| get(&page, base + 0x10 * word));
    Ok(LocalApicState {
        id: get(&page, ID),
        tpr: get(&page, TPR),
        ldr: get(&page, LDR),
        dfr: get(&page, DFR),
        svr: get(&page, SVR),
        isr: bank(ISR),
        tmr: bank(TMR),
        irr: bank(IRR),
        esr: get(&page, ESR),
        icr: u64::from(get(&page, ICR_HIGH)) << 32 | u64::from(get(&page, ICR_LOW)),
        lvt_cmci: get(&page, LVT_CMCI),
        lvt_timer: get(&page, LVT_TIMER),
        lvt_thermal: get(&page, LVT_THERMAL),
        lvt_performance: get(&page, LVT_PERFORMANCE),
        lvt_lint0: get(&page, LVT_LINT0),
        lvt_lint1: get(&page, LVT_LINT1),
        lvt_error: get(&page, LVT_ERROR),
        timer_initial_count: get(&page, INITIAL_COUNT),
        timer_current_count: get(&page, CURRENT_COUNT),
        timer_divide: get(&page, DIVIDE),
    })
}

pub(crate) fn import(fd: &VcpuFd, apic: &LocalApicState) -> Result<(), AccelError> {
    let mut page = kvm_lapic_state::default();
    for (offset, value) in [
        (ID, apic.id),
        (VERSION, VERSION_VALUE),
        (TPR, apic.tpr),
        (LDR, apic.ldr),
        (DFR, apic.dfr),
        (SVR, apic.svr),
        (ESR, apic.esr),
        (LVT_CMCI, apic.lvt_cmci),
        (ICR_LOW, apic.icr as u32),
        (ICR_HIGH, (apic.icr >> 32) as u32),
        (LVT_TIMER, apic.lvt_timer),
        (LVT_THERMAL, apic.lvt_thermal),
        (LVT_PERFORMANCE, apic.lvt_performance),
        (LVT_LINT0, apic.lvt_lint0),
        (LVT_LINT1, apic.lvt_lint1),
        (LVT_ERROR, apic.lvt_error),
        (INITIAL_COUNT, apic.timer_initial_count),
        (CURRENT_COUNT, apic.timer_current_count),
        (DIVIDE, apic.timer_divide),
    ] {
        set(&mut page, offset, value);
    }
    for (base, bank) in [(ISR, &apic.isr), (TMR, &apic.tmr), (IRR, &apic.irr)] {
        for (word, value) in bank.iter().enumerate() {
            set(&mut page, base + 0x10 * word, *value);
        }
    }
    fd.set_lapic(&page)
        .map_err(host("loading the local APIC (KVM_SET_LAPIC)"))
}

fn get(page: &kvm_lapic_state, offset: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|byte| page.regs[offset + byte] as u8))
}

fn set(page: &mut kvm_lapic_state, offset: usize, value: u32) {
    for (byte, bits) in value.to_le_bytes().into_iter().enumerate() {
        page.regs[offset + byte] = bits as std::os::raw::c_char;
    }
}
