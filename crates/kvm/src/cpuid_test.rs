use super::*;

fn all_ones() -> CpuidResult {
    CpuidResult {
        eax: u32::MAX,
        ebx: u32::MAX,
        ecx: u32::MAX,
        edx: u32::MAX,
    }
}

#[test]
fn what_the_state_cannot_carry_is_not_offered() {
    let mut table = CpuidTable::new();
    table.set(7, Some(0), all_ones());
    table.set(0xd, Some(0), all_ones());
    table.set(0xd, Some(9), all_ones());
    table.set(0x8000_000a, None, all_ones());
    let carried = only_what_state_carries(&table);

    let avx512f = 1 << 16;
    let avx2 = 1 << 5;
    assert_eq!(carried.get(7, 0).ebx & avx512f, 0);
    assert_ne!(carried.get(7, 0).ebx & avx2, 0);
    assert_eq!(carried.get(0xd, 0).eax, 7);
    assert_eq!(carried.get(0xd, 9), CpuidResult::default());
    assert_eq!(carried.get(0x8000_000a, 0), CpuidResult::default());
}

#[test]
fn subleaves_keep_their_index_on_the_way_to_kvm() {
    let mut table = CpuidTable::new();
    table.set(1, None, all_ones());
    table.set(4, Some(2), all_ones());
    let kvm = to_kvm(&table).unwrap();
    let entries = kvm.as_slice();
    assert_eq!((entries[0].function, entries[0].flags), (1, 0));
    assert_eq!(
        (entries[1].index, entries[1].flags),
        (2, KVM_CPUID_FLAG_SIGNIFCANT_INDEX)
    );
}

#[test]
fn a_table_too_large_for_kvm_is_refused() {
    let mut table = CpuidTable::new();
    for index in 0..=KVM_MAX_CPUID_ENTRIES as u32 {
        table.set(4, Some(index), all_ones());
    }
    assert!(matches!(to_kvm(&table), Err(AccelError::Unsupported(_))));
}
