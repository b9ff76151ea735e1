use super::*;

fn offered() -> CpuidTable {
    let mut table = CpuidTable::new();
    let result = |eax, ebx| CpuidResult {
        eax,
        ebx,
        ecx: 0,
        edx: 0,
    };
    table.set(0, None, result(0xd, 0));
    table.set(1, None, result(0x1234, 0xffff_0800));
    table.set(4, Some(0), result(0x121, 0));
    table.set(4, Some(3), result(0x163, 0));
    table.set(0xb, Some(0), result(9, 9));
    table.set(0x1f, Some(0), result(9, 9));
    table.set(0x8000_0001, None, result(0, 0));
    table.set(0x8000_0008, None, result(48 | 48 << 8, 0));
    table.set(0x8000_001e, None, result(77, 77));
    table
}

#[test]
fn every_processor_has_ids_of_its_own() {
    for id in 0..3 {
        let table = table(&offered(), VcpuId(id), 3);
        let basic = table.get(1, 0);
        assert_eq!(basic.ebx, id << 24 | 4 << 16 | 0x800);
        assert_eq!(basic.edx & HTT, HTT);
        assert_eq!(basic.ecx & HYPERVISOR, HYPERVISOR);
        let (threads, cores) = (table.get(0xb, 0), table.get(0xb, 1));
        assert_eq!((threads.eax, threads.ebx, threads.edx), (0, 1, id));
        assert_eq!((cores.eax, cores.ebx, cores.edx), (2, 3, id));
        assert_eq!(cores.ecx, 0x201);
        assert_eq!(table.get(0x1f, 0), CpuidResult::default());
        assert_eq!(table.get(0x8000_0008, 0).ecx, 2 << 12 | 2);
        assert_eq!(table.get(0x8000_001e, 0).eax, id);
        assert_eq!(table.get(4, 0).eax >> 14 & 0xfff, 0);
        assert_eq!(table.get(4, 3).eax >> 14 & 0xfff, 2);
    }
}

#[test]
fn a_single_processor_is_alone() {
    let table = table(&offered(), VcpuId(0), 1);
    assert_eq!(table.get(1, 0).edx & HTT, 0);
    assert_eq!(table.get(0xb, 1).eax, 0);
    assert_eq!(table.get(0x8000_0001, 0).ecx & CMP_LEGACY, 0);
}

#[test]
fn address_bits_have_a_default() {
    assert_eq!(physical_address_bits(&offered()), 48);
    assert_eq!(physical_address_bits(&CpuidTable::new()), 36);
}

#[test]
fn features_an_engine_lacks_are_named() {
    let mut offered = CpuidTable::new();
    let features = |ebx| CpuidResult {
        ebx,
        ..CpuidResult::default()
    };
    offered.set(7, Some(0), features(1 << 5 | 1 << 3));
    let shown = table(&offered, VcpuId(1), 2);
    assert!(missing(&shown, &offered).is_empty());
    offered.set(7, Some(0), features(1 << 3));
    assert_eq!(missing(&shown, &offered), ["CPUID 7:0 EBX bit 5"]);
}
