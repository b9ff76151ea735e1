//! Who gets an interrupt that is named by number.
//!
//! KVM knows interrupts of event descriptors by a number (GSI), and a table
//! says which message each one is. The first numbers are the I/O APIC's pins:
//! with favo's own I/O APIC they carry no interrupts, but KVM reads from them
//! which vectors are level triggered, to exit on their EOI.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use favo_accel::{AccelError, Msi};
use kvm_bindings::{
    KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_irq_routing_entry, kvm_irq_routing_entry__bindgen_ty_1,
    kvm_irq_routing_msi,
};
use kvm_ioctls::VmFd;

use crate::error::host;

/// Numbers set aside for the I/O APIC; given to KVM_CAP_SPLIT_IRQCHIP.
pub(crate) const PINS: u32 = 64;

/// One past the highest number KVM takes (KVM_MAX_IRQ_ROUTES).
const END: u32 = 4096;

/// Message data, bit 15: level triggered.
const LEVEL: u32 = 1 << 15;

#[derive(Default)]
pub(crate) struct Routing {
    routes: Mutex<Routes>,
}

#[derive(Default)]
struct Routes {
    pins: Vec<Option<Msi>>,
    events: BTreeMap<u32, Msi>,
}

impl Routing {
    /// Replaces the pins' messages.
    pub(crate) fn set_pins(&self, vm: &VmFd, pins: &[Option<Msi>]) -> Result<(), AccelError> {
        if pins.len() > PINS as usize {
            return Err(AccelError::Unsupported(format!(
                "an I/O APIC of {} pins: the KVM engine takes {PINS}",
                pins.len()
            )));
        }
        let mut routes = self.lock();
        if routes.pins == pins {
            return Ok(());
        }
        let before = std::mem::replace(&mut routes.pins, pins.to_vec());
        routes.load(vm).inspect_err(|_| routes.pins = before)
    }

    /// Gives `msi` a number.
    pub(crate) fn add(&self, vm: &VmFd, msi: Msi) -> Result<u32, AccelError> {
        let mut routes = self.lock();
        let free = (PINS..END).find(|gsi| !routes.events.contains_key(gsi));
        let Some(gsi) = free else {
            return Err(AccelError::Unsupported(format!(
                "more than {} interrupts of event descriptors",
                END - PINS
            )));
        };
        routes.events.insert(gsi, msi);
        match routes.load(vm) {
            Ok(()) => Ok(gsi),
            Err(error) => {
                routes.events.remove(&gsi);
                Err(error)
            }
        }
    }

    /// Forgets what [`Routing::add`] returned.
    pub(crate) fn remove(&self, vm: &VmFd, gsi: u32) -> Result<(), AccelError> {
        let mut routes = self.lock();
        let Some(msi) = routes.events.remove(&gsi) else {
            return Err(AccelError::Unsupported(format!(
                "there is no interrupt route {gsi}"
            )));
        };
        match routes.load(vm) {
            Ok(()) => Ok(()),
            Err(error) => {
                routes.events.insert(gsi, msi);
                Err(error)
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Routes> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Routes {
    fn load(&self, vm: &VmFd) -> Result<(), AccelError> {
        let pins = (0..).zip(&self.pins).filter_map(|(gsi, msi)| {
            let msi = (*msi)?;
            Some((
                gsi,
                Msi {
                    data: msi.data | LEVEL,
                    ..msi
                },
            ))
        });
        let entries: Vec<kvm_irq_routing_entry> = pins
            .chain(self.events.iter().map(|(gsi, msi)| (*gsi, *msi)))
            .map(|(gsi, msi)| entry(gsi, msi))
            .collect();
        let table = KvmIrqRouting::from_entries(&entries)
            .map_err(|_| AccelError::Unsupported(format!("{} interrupt routes", entries.len())))?;
        vm.set_gsi_routing(&table)
            .map_err(host("routing interrupts (KVM_SET_GSI_ROUTING)"))
    }
}

fn entry(gsi: u32, msi: Msi) -> kvm_irq_routing_entry {
    kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_MSI,
        u: kvm_irq_routing_entry__bindgen_ty_1 {
            msi: kvm_irq_routing_msi {
                address_lo: msi.address as u32,
                // Bits 39:32 belong to no destination and KVM refuses them.
                address_hi: (msi.address >> 32) as u32 & !0xff,
                data: msi.data,
                ..Default::default()
            },
        },
        ..Default::default()
    }
}
