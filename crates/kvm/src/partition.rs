//! One machine on KVM: memory slots, interrupts, clock.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use favo_accel::cpuid::CpuidTable;
use favo_accel::state::{ClockState, VcpuState};
use favo_accel::{
    AccelError, DirtyLog, EngineKind, GuestMemory, IoEventFd, IrqFd, Msi, Partition,
    PartitionConfig, Vcpu, VcpuId,
};
use kvm_bindings::{
    KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_X2APIC_API, KVM_CLOCK_REALTIME,
    KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK, KVM_X2APIC_API_USE_32BIT_IDS, kvm_clock_data,
    kvm_enable_cap, kvm_msi,
};
use kvm_ioctls::{Cap, VmFd};

use crate::accelerator::HostKvm;
use crate::error::host;
use crate::routing::{self, Routing};
use crate::slots;
use crate::state::tsc::MachineOffset;
use crate::vcpu::KvmVcpu;

/// Three pages for a task segment and one for an identity map, which KVM needs
/// in the guest's address space on older Intel processors. They lie below the
/// firmware, where no PC has RAM.
const IDENTITY_MAP: u64 = 0xfeff_c000;
const TASK_SEGMENT: usize = 0xfeff_d000;
const APIC_PAGE: u64 = 0xfee0_0000;
/// From the local APICs' messages to the end of the pages above no RAM may lie.
const RESERVED: std::ops::Range<u64> = APIC_PAGE..0xff00_0000;

pub(crate) struct KvmPartition {
    inner: Arc<PartitionInner>,
}

/// What a machine's processors hold on to: dropping the last of them unmaps
/// the guest's memory.
pub(crate) struct PartitionInner {
    pub(crate) host: Arc<HostKvm>,
    pub(crate) vm: VmFd,
    pub(crate) memory: GuestMemory,
    pub(crate) routing: Routing,
    pub(crate) tsc_offset: MachineOffset,
    vcpus: u32,
    has_events: bool,
}

impl KvmPartition {
    pub(crate) fn new(host_kvm: Arc<HostKvm>, config: PartitionConfig) -> Result<Self, AccelError> {
        check_memory(&config.memory)?;
        let vm = host_kvm
            .kvm
            .create_vm()
            .map_err(host("creating a virtual machine (KVM_CREATE_VM)"))?;
        vm.set_identity_map_address(IDENTITY_MAP)
            .map_err(host("placing the identity map (KVM_SET_IDENTITY_MAP_ADDR)"))?;
        vm.set_tss_address(TASK_SEGMENT)
            .map_err(host("placing the task segment (KVM_SET_TSS_ADDR)"))?;
        enable(&vm, KVM_CAP_SPLIT_IRQCHIP, routing::PINS.into())
            .map_err(host("creating the local APICs (KVM_CAP_SPLIT_IRQCHIP)"))?;
        enable(
            &vm,
            KVM_CAP_X2APIC_API,
            (KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK).into(),
        )
        .map_err(host("asking for 32-bit APIC ids (KVM_CAP_X2APIC_API)"))?;
        for (slot, region) in (0..).zip(config.memory.regions()) {
            slots::set(&vm, slot, region, false)?;
        }
        let has_events = vm.check_extension(Cap::Ioeventfd) && vm.check_extension(Cap::Irqfd);
        Ok(Self {
            inner: Arc::new(PartitionInner {
                host: host_kvm,
                vm,
                memory: config.memory,
                routing: Routing::default(),
                tsc_offset: MachineOffset::default(),
                vcpus: config.vcpus,
                has_events,
            }),
        })
    }
}

fn enable(vm: &VmFd, cap: u32, argument: u64) -> Result<(), kvm_ioctls::Error> {
    let mut request = kvm_enable_cap {
        cap,
        ..Default::default()
    };
    request.args[0] = argument;
    vm.enable_cap(&request)
}

fn check_memory(memory: &GuestMemory) -> Result<(), AccelError> {
    let clash = memory.regions().iter().find(|region| {
        region.start.0 < RESERVED.end && RESERVED.start < region.start.0 + region.size.bytes()
    });
    match clash {
        None => Ok(()),
        Some(region) => Err(AccelError::Unsupported(format!(
            "RAM of {} at {}: the local APICs and KVM's own pages lie at {:#x} to {:#x}",
            region.size, region.start, RESERVED.start, RESERVED.end
        ))),
    }
}

impl Partition for KvmPartition {
    fn kind(&self) -> EngineKind {
        EngineKind::Kvm
    }

    fn memory(&self) -> &GuestMemory {
        &self.inner.memory
    }

    fn create_vcpu(&self, id: VcpuId, cpuid: CpuidTable) -> Result<Box<dyn Vcpu>, AccelError> {
        if id.0 >= self.inner.vcpus {
            return Err(AccelError::Unsupported(format!(
                "processor {id}: the machine was made for {}",
                self.inner.vcpus
            )));
        }
        let signature = cpuid.get(1, 0).eax;
        let mut vcpu = KvmVcpu::new(self.inner.clone(), id, &cpuid)?;
        // KVM's own power-on state differs between versions; ours does not.
        let mut state = VcpuState::power_on(id.0, signature);
        state.msrs.tsc = vcpu.export_state()?.msrs.tsc;
        vcpu.import_state(&state)?;
        Ok(Box::new(vcpu))
    }

    fn signal_msi(&self, msi: Msi) -> Result<(), AccelError> {
        self.inner.signal_msi(msi)
    }

    fn set_level_triggered_pins(&self, pins: &[Option<Msi>]) -> Result<(), AccelError> {
        self.inner.routing.set_pins(&self.inner.vm, pins)
    }

    fn tsc_khz(&self) -> u32 {
        self.inner.host.tsc_khz
    }

    fn export_clock(&self) -> Result<ClockState, AccelError> {
        let clock = self
            .inner
            .vm
            .get_clock()
            .map_err(host("reading the machine's clock (KVM_GET_CLOCK)"))?;
        let realtime_ns = if clock.flags & KVM_CLOCK_REALTIME != 0 {
            clock.realtime
        } else {
            SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| since.as_nanos() as u64)
        };
        Ok(ClockState {
            kvmclock_ns: clock.clock,
            realtime_ns,
        })
    }

    fn import_clock(&self, clock: &ClockState) -> Result<(), AccelError> {
        // Without KVM_CLOCK_REALTIME the value is taken as it is.
        let clock = kvm_clock_data {
            clock: clock.kvmclock_ns,
            ..Default::default()
        };
        self.inner
            .vm
            .set_clock(&clock)
            .map_err(host("setting the machine's clock (KVM_SET_CLOCK)"))
    }

    fn dirty_log(&self) -> Option<&dyn DirtyLog> {
        Some(&*self.inner)
    }

    fn io_event_fd(&self) -> Option<&dyn IoEventFd> {
        self.inner.has_events.then_some(&*self.inner as _)
    }

    fn irq_fd(&self) -> Option<&dyn IrqFd> {
        self.inner.has_events.then_some(&*self.inner as _)
    }
}

impl PartitionInner {
    pub(crate) fn signal_msi(&self, msi: Msi) -> Result<(), AccelError> {
        let high = (msi.address >> 32) as u32;
        // Bits 31:20 select the local APICs (SDM vol. 3, 11.11.1); bits 39:32
        // must be clear in the extended format.
        if msi.address & 0xfff0_0000 != APIC_PAGE || high & 0xff != 0 {
            return Ok(());
        }
        let message = kvm_msi {
            address_lo: msi.address as u32,
            address_hi: high,
            data: msi.data,
            ..Default::default()
        };
        match self.vm.signal_msi(message) {
            Ok(_) => Ok(()),
            // KVM's way to say that no local APIC took it.
            Err(error) if error.errno() == libc::EPERM => Ok(()),
            Err(error) => Err(host("delivering an interrupt (KVM_SIGNAL_MSI)")(error)),
        }
    }
}
