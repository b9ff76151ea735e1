//! What this host's KVM offers.

use std::io;
use std::sync::Arc;

use favo_accel::cpuid::CpuidTable;
use favo_accel::{AccelError, Accelerator, EngineKind, Partition, PartitionConfig};
use kvm_ioctls::{Cap, Kvm};

use crate::error::host;
use crate::partition::KvmPartition;
use crate::state::msrs::MsrSupport;

const DEVICE: &str = "/dev/kvm";

/// The one version of the interface there has ever been since Linux 2.6.22.
const API_VERSION: i32 = 12;

/// Without any of these no guest of favo's runs.
const NEEDED: [(Cap, &str); 12] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::SplitIrqchip, "KVM_CAP_SPLIT_IRQCHIP"),
    (Cap::SignalMsi, "KVM_CAP_SIGNAL_MSI"),
    (Cap::IrqRouting, "KVM_CAP_IRQ_ROUTING"),
    (Cap::X2ApicApi, "KVM_CAP_X2APIC_API"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::MpState, "KVM_CAP_MP_STATE"),
    (Cap::VcpuEvents, "KVM_CAP_VCPU_EVENTS"),
    (Cap::Debugregs, "KVM_CAP_DEBUGREGS"),
    (Cap::Xsave, "KVM_CAP_XSAVE"),
    (Cap::AdjustClock, "KVM_CAP_ADJUST_CLOCK"),
];

/// Linux KVM on this host.
pub struct KvmAccelerator {
    host: Arc<HostKvm>,
}

/// What partitions and processors need to know of the host.
pub(crate) struct HostKvm {
    pub(crate) kvm: Kvm,
    pub(crate) cpuid: CpuidTable,
    pub(crate) msrs: MsrSupport,
    pub(crate) tsc_khz: u32,
    pub(crate) has_xcrs: bool,
    max_vcpus: u32,
}

impl KvmAccelerator {
    /// Opens `/dev/kvm` and asks what it can do. The error of a host without
    /// KVM, or whose KVM is not open to this user, says what would help.
    pub fn open() -> Result<Self, AccelError> {
        let kvm = Kvm::new().map_err(|error| unavailable(open_reason(error.errno())))?;
        let version = kvm.get_api_version();
        if version != API_VERSION {
            return Err(unavailable(format!(
                "{DEVICE} speaks version {version} of its interface, favo speaks {API_VERSION}"
            )));
        }
        let missing: Vec<&str> = NEEDED
            .iter()
            .filter(|(cap, _)| !kvm.check_extension(*cap))
            .map(|(_, name)| *name)
            .collect();
        if !missing.is_empty() {
            return Err(unavailable(format!(
                "the host's KVM lacks {}; Linux 4.13 or newer has it",
                missing.join(", ")
            )));
        }
        let cpuid = crate::cpuid::supported(&kvm)?;
        let msrs = MsrSupport::of(&kvm)?;
        let tsc_khz = tsc_khz(&kvm)?;
        Ok(Self {
            host: Arc::new(HostKvm {
                max_vcpus: u32::try_from(kvm.get_max_vcpus()).unwrap_or(u32::MAX),
                has_xcrs: kvm.check_extension(Cap::Xcrs),
                kvm,
                cpuid,
                msrs,
                tsc_khz,
            }),
        })
    }
}

impl Accelerator for KvmAccelerator {
    fn kind(&self) -> EngineKind {
        EngineKind::Kvm
    }

    fn max_vcpus(&self) -> u32 {
        self.host.max_vcpus
    }

    fn supported_cpuid(&self) -> &CpuidTable {
        &self.host.cpuid
    }

    fn create_partition(&self, config: PartitionConfig) -> Result<Arc<dyn Partition>, AccelError> {
        if config.vcpus == 0 || config.vcpus > self.host.max_vcpus {
            return Err(AccelError::Unsupported(format!(
                "a machine of {} processors: this host's KVM runs 1 to {}",
                config.vcpus, self.host.max_vcpus
            )));
        }
        Ok(Arc::new(KvmPartition::new(self.host.clone(), config)?))
    }
}

fn unavailable(reason: String) -> AccelError {
    AccelError::Unavailable {
        engine: EngineKind::Kvm,
        reason,
    }
}

fn open_reason(errno: i32) -> String {
    match errno {
        libc::ENOENT => format!(
            "there is no {DEVICE}; switch virtualization on in the firmware and load the module \
             kvm_intel or kvm_amd, or use the soft engine"
        ),
        libc::ENODEV | libc::ENXIO => format!(
            "{DEVICE} is there but no KVM behind it; load the module kvm_intel or kvm_amd, or use \
             the soft engine"
        ),
        libc::EACCES | libc::EPERM => format!(
            "no permission to open {DEVICE}; add yourself to the group kvm (sudo usermod -aG kvm \
             $USER) and log in again"
        ),
        _ => format!(
            "{DEVICE} can't be opened: {}",
            io::Error::from_raw_os_error(errno)
        ),
    }
}

/// The frequency every guest's time stamp counter will have. KVM tells it of a
/// processor only, so one is made and thrown away.
fn tsc_khz(kvm: &Kvm) -> Result<u32, AccelError> {
    let vm = kvm
        .create_vm()
        .map_err(host("creating a virtual machine (KVM_CREATE_VM)"))?;
    let vcpu = vm
        .create_vcpu(0)
        .map_err(host("creating a processor (KVM_CREATE_VCPU)"))?;
    match vcpu.get_tsc_khz() {
        Ok(khz) if khz > 0 => Ok(khz),
        Ok(_) => Err(unavailable(
            "KVM does not know the frequency of the time stamp counter".into(),
        )),
        Err(error) => Err(host(
            "reading the time stamp counter's frequency (KVM_GET_TSC_KHZ)",
        )(error)),
    }
}

#[cfg(test)]
#[path = "accelerator_test.rs"]
mod test;
