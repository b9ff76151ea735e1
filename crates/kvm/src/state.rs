//! The canonical state to KVM's structures and back.
//!
//! The order of loading is KVM's own demand: registers that decide how others
//! are read come first (the APIC's mode before its registers, the local APIC's
//! timer mode before a deadline), what is about to happen comes last.

pub(crate) mod events;
pub(crate) mod fpu;
pub(crate) mod local_apic;
pub(crate) mod msrs;
pub(crate) mod registers;
pub(crate) mod tsc;

use favo_accel::AccelError;
use favo_accel::state::VcpuState;

use crate::vcpu::KvmVcpu;

pub(crate) fn export(vcpu: &KvmVcpu) -> Result<VcpuState, AccelError> {
    let fd = &vcpu.fd;
    // First of all: asking for it makes KVM act on an INIT or SIPI that waits,
    // which changes the other registers.
    let activity = events::export_activity(fd)?;
    let general = registers::export_general(fd)?;
    let (segments, control, apic_base) = registers::export_system(fd)?;
    let xcr0 = fpu::export_xcr0(vcpu)?;
    Ok(VcpuState {
        version: VcpuState::VERSION,
        general,
        segments,
        control: favo_accel::state::ControlRegisters { xcr0, ..control },
        debug: registers::export_debug(fd)?,
        fpu: fpu::export(fd)?,
        local_apic: local_apic::export(fd)?,
        events: events::export(fd)?,
        activity,
        msrs: msrs::export(vcpu, apic_base)?,
    })
}

/// `state` was validated.
pub(crate) fn import(vcpu: &KvmVcpu, state: &VcpuState) -> Result<(), AccelError> {
    let fd = &vcpu.fd;
    // A processor that waits for INIT takes most state only after it runs.
    events::import_activity(fd, state)?;
    registers::import_system(fd, state)?;
    registers::import_general(fd, &state.general)?;
    fpu::import_xcr0(vcpu, state.control.xcr0)?;
    fpu::import(fd, &state.fpu)?;
    registers::import_debug(fd, &state.debug)?;
    local_apic::import(fd, &state.local_apic)?;
    msrs::import(vcpu, &state.msrs)?;
    events::import(fd, &state.events)?;
    events::import_activity(fd, state)?;
    if state.events.init_pending {
        events::send_init(vcpu)?;
    }
    Ok(())
}
