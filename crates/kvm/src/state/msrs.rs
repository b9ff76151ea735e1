//! Model-specific registers, those the host's KVM has.
//!
//! One that KVM does not know exports as it is at power-on, and importing that
//! value is fine. Any other value that KVM does not take is an error: the
//! guest would miss it.

use std::collections::BTreeSet;

use favo_accel::AccelError;
use favo_accel::state::{Msrs, VcpuState};
use kvm_bindings::{Msrs as KvmMsrs, kvm_msr_entry};
use kvm_ioctls::{Kvm, VcpuFd};

use super::tsc;
use crate::error::host;
use crate::vcpu::KvmVcpu;

const TSC: u32 = 0x10;
const TSC_DEADLINE: u32 = 0x6e0;
const MTRR_DEFAULT_TYPE: u32 = 0x2ff;
const MTRR_VARIABLE: u32 = 0x200;
const MTRR_FIXED: [u32; 11] = [
    0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f,
];

/// Which registers this host's KVM saves and restores.
pub(crate) struct MsrSupport {
    listed: BTreeSet<u32>,
}

impl MsrSupport {
    pub(crate) fn of(kvm: &Kvm) -> Result<Self, AccelError> {
        let list = kvm
            .get_msr_index_list()
            .map_err(host("asking which MSRs KVM has (KVM_GET_MSR_INDEX_LIST)"))?;
        Ok(Self {
            listed: list.as_slice().iter().copied().collect(),
        })
    }

    fn has(&self, index: u32) -> bool {
        // KVM has had the memory types longer than it has listed them.
        let memory_type = index == MTRR_DEFAULT_TYPE
            || MTRR_FIXED.contains(&index)
            || (MTRR_VARIABLE..MTRR_VARIABLE + 16).contains(&index);
        memory_type || index == TSC_DEADLINE || self.listed.contains(&index)
    }
}

/// Every register beside IA32_APIC_BASE, which travels with the system
/// registers, in the order they are loaded: the deadline after the counter it
/// is compared with.
fn fields(msrs: &mut Msrs) -> Vec<(u32, &mut u64)> {
    let mut fields = vec![
        (0x3b, &mut msrs.tsc_adjust),
        (TSC, &mut msrs.tsc),
        (0xc000_0103, &mut msrs.tsc_aux),
        (0x174, &mut msrs.sysenter_cs),
        (0x175, &mut msrs.sysenter_esp),
        (0x176, &mut msrs.sysenter_eip),
        (0xc000_0081, &mut msrs.star),
        (0xc000_0082, &mut msrs.lstar),
        (0xc000_0083, &mut msrs.cstar),
        (0xc000_0084, &mut msrs.sfmask),
        (0xc000_0102, &mut msrs.kernel_gs_base),
        (0x277, &mut msrs.pat),
        (0x1a0, &mut msrs.misc_enable),
        (0x48, &mut msrs.spec_ctrl),
        (MTRR_DEFAULT_TYPE, &mut msrs.mtrr.default_type),
        (0x4b56_4d00, &mut msrs.paravirtual.wall_clock),
        (0x4b56_4d01, &mut msrs.paravirtual.system_time),
        (0x4b56_4d02, &mut msrs.paravirtual.async_pf),
        (0x4b56_4d03, &mut msrs.paravirtual.steal_time),
        (0x4b56_4d04, &mut msrs.paravirtual.pv_eoi),
        (0x4b56_4d05, &mut msrs.paravirtual.poll_control),
    ];
    fields.extend(MTRR_FIXED.into_iter().zip(&mut msrs.mtrr.fixed));
    for (index, (base, mask)) in (MTRR_VARIABLE..).step_by(2).zip(&mut msrs.mtrr.variable) {
        fields.push((index, base));
        fields.push((index + 1, mask));
    }
    fields.push((TSC_DEADLINE, &mut msrs.tsc_deadline));
    fields
}

pub(crate) fn export(vcpu: &KvmVcpu, apic_base: u64) -> Result<Msrs, AccelError> {
    let support = &vcpu.partition.host.msrs;
    let mut msrs = Msrs {
        apic_base,
        tsc: 0,
        ..VcpuState::power_on(vcpu.id.0, 0).msrs
    };
    let mut wanted: Vec<(u32, &mut u64)> = fields(&mut msrs)
        .into_iter()
        .filter(|(index, _)| support.has(*index))
        .collect();
    let mut rest = wanted.as_mut_slice();
    while !rest.is_empty() {
        let entries: Vec<kvm_msr_entry> = rest.iter().map(|(index, _)| entry(*index, 0)).collect();
        let mut buffer = KvmMsrs::from_entries(&entries).map_err(|_| too_many(entries.len()))?;
        let read = vcpu
            .fd
            .get_msrs(&mut buffer)
            .map_err(host("reading MSRs (KVM_GET_MSRS)"))?;
        for ((_, field), entry) in rest.iter_mut().zip(&buffer.as_slice()[..read]) {
            **field = entry.data;
        }
        // KVM stops at the first it does not know: leave that one out.
        rest = rest.get_mut(read + 1..).unwrap_or_default();
    }
    Ok(msrs)
}

pub(crate) fn import(vcpu: &KvmVcpu, msrs: &Msrs) -> Result<(), AccelError> {
    // Before the deadline that is compared with it.
    let tsc_is_set = tsc::import(vcpu, msrs.tsc)?;
    let support = &vcpu.partition.host.msrs;
    let mut copy = msrs.clone();
    let mut initial = VcpuState::power_on(vcpu.id.0, 0).msrs;
    // What each register is to be, and what it is at power-on.
    let mut values: Vec<(u32, u64, u64)> = Vec::new();
    for ((index, value), (_, initial)) in fields(&mut copy).into_iter().zip(fields(&mut initial)) {
        if index == TSC && tsc_is_set {
            continue;
        }
        if support.has(index) {
            values.push((index, *value, *initial));
        } else if value != initial {
            return Err(refused(index, *value));
        }
    }
    let mut rest = values.as_slice();
    while !rest.is_empty() {
        let entries: Vec<kvm_msr_entry> = rest
            .iter()
            .map(|(index, value, _)| entry(*index, *value))
            .collect();
        let buffer = KvmMsrs::from_entries(&entries).map_err(|_| too_many(entries.len()))?;
        let written = vcpu
            .fd
            .set_msrs(&buffer)
            .map_err(host("loading MSRs (KVM_SET_MSRS)"))?;
        if let Some((index, value, initial)) = rest.get(written)
            && value != initial
            && read_one(&vcpu.fd, *index) != Some(*value)
        {
            return Err(refused(*index, *value));
        }
        rest = rest.get(written + 1..).unwrap_or_default();
    }
    Ok(())
}

/// The guest's time stamp counter, now.
pub(crate) fn read_tsc(fd: &VcpuFd) -> Option<u64> {
    read_one(fd, TSC)
}

fn read_one(fd: &VcpuFd, index: u32) -> Option<u64> {
    let mut buffer = KvmMsrs::from_entries(&[entry(index, 0)]).ok()?;
    let read = fd.get_msrs(&mut buffer).ok()?;
    (read == 1).then(|| buffer.as_slice()[0].data)
}

fn entry(index: u32, data: u64) -> kvm_msr_entry {
    kvm_msr_entry {
        index,
        data,
        ..Default::default()
    }
}

fn refused(index: u32, value: u64) -> AccelError {
    AccelError::InvalidState(format!(
        "MSR {index:#x} is {value:#x}, which this host's KVM does not take"
    ))
}

fn too_many(count: usize) -> AccelError {
    AccelError::InvalidState(format!("{count} MSRs are more than KVM takes at once"))
}
