//! What is about to happen to a processor, and whether it runs at all.

use favo_accel::state::{
    Activity, InterruptShadow, PendingEvents, PendingException, PendingInterrupt, VcpuState,
};
use favo_accel::{AccelError, Msi};
use kvm_bindings::{
    KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_RUNNABLE,
    KVM_MP_STATE_SIPI_RECEIVED, KVM_MP_STATE_UNINITIALIZED, KVM_VCPUEVENT_VALID_NMI_PENDING,
    KVM_VCPUEVENT_VALID_SHADOW, KVM_VCPUEVENT_VALID_SIPI_VECTOR, KVM_X86_SHADOW_INT_MOV_SS,
    KVM_X86_SHADOW_INT_STI, kvm_mp_state, kvm_vcpu_events,
};
use kvm_ioctls::VcpuFd;

use crate::error::host;
use crate::vcpu::KvmVcpu;

pub(crate) fn export_activity(fd: &VcpuFd) -> Result<Activity, AccelError> {
    let state = fd
        .get_mp_state()
        .map_err(host("reading whether a processor runs (KVM_GET_MP_STATE)"))?;
    match state.mp_state {
        KVM_MP_STATE_RUNNABLE => Ok(Activity::Running),
        KVM_MP_STATE_HALTED => Ok(Activity::Halted),
        KVM_MP_STATE_UNINITIALIZED => Ok(Activity::WaitForInit),
        KVM_MP_STATE_INIT_RECEIVED | KVM_MP_STATE_SIPI_RECEIVED => Ok(Activity::WaitForSipi),
        other => Err(AccelError::InvalidState(format!(
            "the processor is in KVM's state {other}, which favo does not know"
        ))),
    }
}

pub(crate) fn import_activity(fd: &VcpuFd, state: &VcpuState) -> Result<(), AccelError> {
    let mp_state = match (state.activity, state.events.sipi_vector) {
        (Activity::Running, _) => KVM_MP_STATE_RUNNABLE,
        (Activity::Halted, _) => KVM_MP_STATE_HALTED,
        (Activity::WaitForInit, _) => KVM_MP_STATE_UNINITIALIZED,
        (Activity::WaitForSipi, None) => KVM_MP_STATE_INIT_RECEIVED,
        (Activity::WaitForSipi, Some(_)) => KVM_MP_STATE_SIPI_RECEIVED,
    };
    fd.set_mp_state(kvm_mp_state { mp_state })
        .map_err(host("setting whether a processor runs (KVM_SET_MP_STATE)"))
}

pub(crate) fn export(fd: &VcpuFd) -> Result<PendingEvents, AccelError> {
    let events = fd.get_vcpu_events().map_err(host(
        "reading what waits for a processor (KVM_GET_VCPU_EVENTS)",
    ))?;
    let exception = (events.exception.injected != 0).then(|| PendingException {
        vector: events.exception.nr,
        error_code: (events.exception.has_error_code != 0).then_some(events.exception.error_code),
    });
    let interrupt = (events.interrupt.injected != 0).then_some(PendingInterrupt {
        vector: events.interrupt.nr,
        software: events.interrupt.soft != 0,
    });
    let shadow = u32::from(events.interrupt.shadow);
    // AMD's processors don't tell the two apart, and KVM then reports both.
    let shadow = if shadow & KVM_X86_SHADOW_INT_STI != 0 {
        InterruptShadow::Sti
    } else if shadow & KVM_X86_SHADOW_INT_MOV_SS != 0 {
        InterruptShadow::MovSs
    } else {
        InterruptShadow::None
    };
    // An NMI whose delivery has not finished counts as one that waits; KVM has
    // masked the next one for it already.
    let injected = events.nmi.injected != 0;
    Ok(PendingEvents {
        exception,
        interrupt,
        shadow,
        nmi_pending: injected || events.nmi.pending != 0,
        nmi_masked: events.nmi.masked != 0 && !injected,
        sipi_vector: None,
        init_pending: false,
    })
}

pub(crate) fn import(fd: &VcpuFd, pending: &PendingEvents) -> Result<(), AccelError> {
    let mut events = kvm_vcpu_events {
        flags: KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW,
        ..Default::default()
    };
    if let Some(exception) = pending.exception {
        events.exception.injected = 1;
        events.exception.nr = exception.vector;
        events.exception.has_error_code = exception.error_code.is_some().into();
        events.exception.error_code = exception.error_code.unwrap_or(0);
    }
    if let Some(interrupt) = pending.interrupt {
        events.interrupt.injected = 1;
        events.interrupt.nr = interrupt.vector;
        events.interrupt.soft = interrupt.software.into();
    }
    events.interrupt.shadow = match pending.shadow {
        InterruptShadow::None => 0,
        InterruptShadow::Sti => KVM_X86_SHADOW_INT_STI as u8,
        InterruptShadow::MovSs => KVM_X86_SHADOW_INT_MOV_SS as u8,
    };
    events.nmi.pending = pending.nmi_pending.into();
    events.nmi.masked = pending.nmi_masked.into();
    if let Some(vector) = pending.sipi_vector {
        events.flags |= KVM_VCPUEVENT_VALID_SIPI_VECTOR;
        events.sipi_vector = vector.into();
    }
    fd.set_vcpu_events(&events).map_err(host(
        "loading what waits for a processor (KVM_SET_VCPU_EVENTS)",
    ))
}

/// KVM can't be told that an INIT waits; it can be sent one.
pub(crate) fn send_init(vcpu: &KvmVcpu) -> Result<(), AccelError> {
    const INIT_ASSERTED: u32 = 5 << 8 | 1 << 14;
    let id = u64::from(vcpu.id.0);
    vcpu.partition.signal_msi(Msi {
        address: 0xfee0_0000 | (id & 0xff) << 12 | (id >> 8) << 40,
        data: INIT_ASSERTED,
    })
}
