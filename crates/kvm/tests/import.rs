//! A state that only this host's KVM can refuse.

use favo_accel::state::VcpuState;
use favo_accel::{AccelError, Accelerator, GuestMemory, MemoryBacking, PartitionConfig, VcpuId};
use favo_kvm::KvmAccelerator;
use favo_types::{ByteCount, GuestAddress};

#[test]
fn a_state_kvm_refuses_late_leaves_the_processor_as_it_was() {
    let accelerator = match KvmAccelerator::open() {
        Ok(accelerator) => accelerator,
        Err(reason) => {
            println!("skipped: {reason}");
            return;
        }
    };
    let memory = GuestMemory::new(
        &[(GuestAddress(0), ByteCount(1 << 20))],
        MemoryBacking::Anonymous,
    )
    .unwrap();
    let partition = accelerator
        .create_partition(PartitionConfig { vcpus: 1, memory })
        .unwrap();
    let mut vcpu = partition
        .create_vcpu(VcpuId(0), accelerator.supported_cpuid().clone())
        .unwrap();

    let mut good = VcpuState::flat_long_mode(0, 0x2000, 0x1000);
    good.general.rdi = 7;
    good.fpu.ymm[5][3] = 9;
    vcpu.import_state(&good).unwrap();

    // Registers load before MSRs, and no processor has this bit.
    let mut bad = good.clone();
    bad.general.rdi = 8;
    bad.fpu.ymm[5][3] = 10;
    bad.msrs.mtrr.default_type = 1 << 60;
    let error = vcpu.import_state(&bad).unwrap_err();
    assert!(
        matches!(&error, AccelError::InvalidState(reason) if reason.contains("0x2ff")),
        "{error}"
    );

    let after = vcpu.export_state().unwrap();
    assert_eq!(after.general, good.general);
    assert_eq!(after.fpu, good.fpu);
    assert_eq!(after.msrs.mtrr, good.msrs.mtrr);
}

#[test]
fn memory_where_the_local_apics_are_is_refused() {
    let Ok(accelerator) = KvmAccelerator::open() else {
        println!("skipped: no KVM");
        return;
    };
    let memory = GuestMemory::new(
        &[(GuestAddress(0xfee0_0000), ByteCount(1 << 20))],
        MemoryBacking::Anonymous,
    )
    .unwrap();
    let result = accelerator.create_partition(PartitionConfig { vcpus: 1, memory });
    assert!(matches!(result, Err(AccelError::Unsupported(_))));
}
