//! Event descriptors on both ends: guest writes that signal one, and ones that
//! raise an interrupt.

use std::os::fd::{BorrowedFd, FromRawFd, IntoRawFd};

use favo_accel::{AccelError, AccessSize, IoEventAddress, IoEventFd, IrqFd, Msi};
use kvm_ioctls::{IoEventAddress as KvmAddress, NoDatamatch};
use vmm_sys_util::eventfd::EventFd;

use crate::error::host;
use crate::partition::PartitionInner;

/// The library wants to own descriptors; KVM knows an event by what is behind
/// its descriptor, so a duplicate that is closed afterwards does.
#[allow(unsafe_code)]
fn duplicate(event: BorrowedFd<'_>) -> Result<EventFd, AccelError> {
    let owned = event
        .try_clone_to_owned()
        .map_err(|source| AccelError::Host {
            operation: "duplicating an event descriptor",
            source,
        })?;
    // SAFETY: the descriptor is open and from here on owned by the EventFd.
    Ok(unsafe { EventFd::from_raw_fd(owned.into_raw_fd()) })
}

fn kvm_address(address: IoEventAddress) -> KvmAddress {
    match address {
        IoEventAddress::Port(port) => KvmAddress::Pio(port.into()),
        IoEventAddress::Mmio(address) => KvmAddress::Mmio(address.0),
    }
}

impl IoEventFd for PartitionInner {
    fn register(
        &self,
        address: IoEventAddress,
        datamatch: Option<(AccessSize, u64)>,
        event: BorrowedFd<'_>,
    ) -> Result<(), AccelError> {
        let event = duplicate(event)?;
        let address = kvm_address(address);
        match datamatch {
            None => self.vm.register_ioevent(&event, &address, NoDatamatch),
            Some((AccessSize::Byte, value)) => {
                self.vm.register_ioevent(&event, &address, value as u8)
            }
            Some((AccessSize::Word, value)) => {
                self.vm.register_ioevent(&event, &address, value as u16)
            }
            Some((AccessSize::Dword, value)) => {
                self.vm.register_ioevent(&event, &address, value as u32)
            }
            Some((AccessSize::Qword, value)) => self.vm.register_ioevent(&event, &address, value),
        }
        .map_err(host("making a guest write signal an event (KVM_IOEVENTFD)"))
    }

    fn unregister(
        &self,
        address: IoEventAddress,
        datamatch: Option<(AccessSize, u64)>,
        event: BorrowedFd<'_>,
    ) -> Result<(), AccelError> {
        let event = duplicate(event)?;
        let address = kvm_address(address);
        match datamatch {
            None => self.vm.unregister_ioevent(&event, &address, NoDatamatch),
            Some((AccessSize::Byte, value)) => {
                self.vm.unregister_ioevent(&event, &address, value as u8)
            }
            Some((AccessSize::Word, value)) => {
                self.vm.unregister_ioevent(&event, &address, value as u16)
            }
            Some((AccessSize::Dword, value)) => {
                self.vm.unregister_ioevent(&event, &address, value as u32)
            }
            Some((AccessSize::Qword, value)) => self.vm.unregister_ioevent(&event, &address, value),
        }
        .map_err(host("undoing a guest write's event (KVM_IOEVENTFD)"))
    }
}

impl IrqFd for PartitionInner {
    fn register(&self, event: BorrowedFd<'_>, msi: Msi) -> Result<u32, AccelError> {
        let event = duplicate(event)?;
        let route = self.routing.add(&self.vm, msi)?;
        match self.vm.register_irqfd(&event, route) {
            Ok(()) => Ok(route),
            Err(error) => {
                self.routing.remove(&self.vm, route)?;
                Err(host("making an event raise an interrupt (KVM_IRQFD)")(
                    error,
                ))
            }
        }
    }

    fn unregister(&self, event: BorrowedFd<'_>, route: u32) -> Result<(), AccelError> {
        let event = duplicate(event)?;
        self.vm
            .unregister_irqfd(&event, route)
            .map_err(host("undoing an event's interrupt (KVM_IRQFD)"))?;
        self.routing.remove(&self.vm, route)
    }
}
