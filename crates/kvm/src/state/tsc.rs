//! The time stamp counter, set exactly.
//!
//! Writing IA32_TSC is not exact: a value within a second of what KVM expects
//! is taken for an attempt to synchronize processors, and KVM puts the one it
//! expected in its place, so a guest's counter could go back on import. The
//! counter's offset (Linux 5.16 and newer) is taken as it is.
//!
//! That puts the care for synchronization here. The processors of a machine
//! are exported and imported one after the other, so their counters seem to
//! differ by the time in between, though a guest's processors all show one
//! time. So the first processor that is imported sets the machine's offset and
//! the others follow it, unless they are more than a second away.

#![allow(unsafe_code)]

use std::os::fd::AsRawFd;
use std::sync::{Mutex, PoisonError};

use favo_accel::{AccelError, VcpuId};
use kvm_bindings::{KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, KVMIO, kvm_device_attr};
use kvm_ioctls::VcpuFd;
use vmm_sys_util::errno::Error;
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;

use super::msrs;
use crate::error::host;
use crate::vcpu::KvmVcpu;

ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, KVMIO, 0xe1, kvm_device_attr);
ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, KVMIO, 0xe2, kvm_device_attr);

/// Which processor last set the machine's offset, and to what.
#[derive(Default)]
pub(crate) struct MachineOffset(Mutex<Option<(VcpuId, u64)>>);

impl MachineOffset {
    /// The offset processor `id` shall have, which on its own would be
    /// `offset`. `second` is a second, in counts.
    fn agree(&self, id: VcpuId, offset: u64, second: u64) -> u64 {
        let mut machine = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match *machine {
            Some((other, agreed))
                if other != id && (offset.wrapping_sub(agreed) as i64).unsigned_abs() < second =>
            {
                agreed
            }
            _ => {
                *machine = Some((id, offset));
                offset
            }
        }
    }
}

/// Makes the processor's counter read `value` now. False if this KVM has only
/// the inexact way.
pub(crate) fn import(vcpu: &KvmVcpu, value: u64) -> Result<bool, AccelError> {
    let Ok(before) = offset(&vcpu.fd) else {
        return Ok(false);
    };
    let Some(now) = msrs::read_tsc(&vcpu.fd) else {
        return Ok(false);
    };
    let own = before.wrapping_add(value.wrapping_sub(now));
    let second = u64::from(vcpu.partition.host.tsc_khz) * 1000;
    let agreed = vcpu.partition.tsc_offset.agree(vcpu.id, own, second);
    set_offset(&vcpu.fd, agreed)
        .map_err(host("setting the time stamp counter (KVM_SET_DEVICE_ATTR)"))?;
    Ok(true)
}

fn attribute(value: *const u64) -> kvm_device_attr {
    kvm_device_attr {
        group: KVM_VCPU_TSC_CTRL,
        attr: KVM_VCPU_TSC_OFFSET.into(),
        addr: value as u64,
        flags: 0,
    }
}

fn offset(fd: &VcpuFd) -> Result<u64, Error> {
    let mut value = 0_u64;
    let attribute = attribute(&raw mut value);
    // SAFETY: the attribute is 8 bytes, which KVM writes to `value`.
    if unsafe { ioctl_with_ref(&fd.as_raw_fd(), KVM_GET_DEVICE_ATTR(), &attribute) } != 0 {
        return Err(Error::last());
    }
    // SAFETY: as above: a plain integer that only the kernel knew of.
    Ok(unsafe { std::ptr::read_volatile(&raw const value) })
}

fn set_offset(fd: &VcpuFd, value: u64) -> Result<(), Error> {
    let attribute = attribute(&raw const value);
    // SAFETY: the attribute is 8 bytes, which KVM reads from `value`.
    if unsafe { ioctl_with_ref(&fd.as_raw_fd(), KVM_SET_DEVICE_ATTR(), &attribute) } != 0 {
        return Err(Error::last());
    }
    Ok(())
}

#[cfg(test)]
#[path = "tsc_test.rs"]
mod test;
