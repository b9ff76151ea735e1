//! RAM as KVM's memory slots, one slot per region.

#![allow(unsafe_code)]

use favo_accel::AccelError;
use favo_accel::memory::RamRegion;
use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;

use crate::error::host;

/// Makes slot `slot` show `region`, or changes whether its writes are logged.
///
/// The region must stay mapped for as long as any processor of `vm` can run:
/// the partition holds the `GuestMemory` it belongs to, and every processor
/// holds the partition.
pub(crate) fn set(
    vm: &VmFd,
    slot: u32,
    region: &RamRegion,
    log_dirty: bool,
) -> Result<(), AccelError> {
    let slot = kvm_userspace_memory_region {
        slot,
        flags: if log_dirty {
            KVM_MEM_LOG_DIRTY_PAGES
        } else {
            0
        },
        guest_phys_addr: region.start.0,
        memory_size: region.size.bytes(),
        userspace_addr: region.host_address.0 as u64,
    };
    // SAFETY: the range is one mapping of guest memory, which outlives the
    // machine (see above) and is never turned into a Rust reference.
    unsafe { vm.set_user_memory_region(slot) }.map_err(host(
        "giving the guest its memory (KVM_SET_USER_MEMORY_REGION)",
    ))
}
