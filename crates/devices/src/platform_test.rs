use super::*;

#[test]
fn small_memory_is_one_range() {
    let map = MemoryMap::new(ByteCount::mib(512), 40).unwrap();
    assert_eq!(map.ram, [(GuestAddress(0), ByteCount::mib(512))]);
    assert_eq!(
        map.pci_high_window,
        (GuestAddress(1 << 32), PCI_HIGH_WINDOW_SIZE)
    );
}

#[test]
fn large_memory_leaves_the_hole_below_4_gib() {
    let map = MemoryMap::new(ByteCount::gib(8), 40).unwrap();
    assert_eq!(
        map.ram,
        [
            (GuestAddress(0), ByteCount::gib(3)),
            (GuestAddress(1 << 32), ByteCount::gib(5)),
        ]
    );
    assert_eq!(map.pci_high_window.0, GuestAddress(12 << 30));
}

#[test]
fn a_narrow_processor_gets_a_smaller_window_or_a_clear_error() {
    let map = MemoryMap::new(ByteCount::gib(8), 36).unwrap();
    assert_eq!(map.pci_high_window.1, ByteCount::gib(64 - 12));
    let error = MemoryMap::new(ByteCount::gib(64), 36).unwrap_err();
    assert!(error.to_string().contains("37 address bits"), "{error}");
    for ram in [0, 4096, (2 << 20) + 1, u64::MAX, u64::MAX - 4095] {
        assert!(MemoryMap::new(ByteCount(ram), 52).is_err(), "{ram:#x}");
    }
}

#[test]
fn nothing_fixed_overlaps() {
    let mut fixed = [PCI_LOW_WINDOW, ECAM, IOAPIC, LOCAL_APIC];
    fixed.sort();
    assert!(LOW_RAM_END <= fixed[0].0);
    for pair in fixed.windows(2) {
        assert!(pair[0].0.0 + pair[0].1.bytes() <= pair[1].0.0);
    }
    assert!(fixed[3].0.0 + fixed[3].1.bytes() <= HIGH_RAM_START.0);
}

#[test]
fn the_tables_lie_in_what_is_reserved() {
    let end = |(start, size): (GuestAddress, ByteCount)| start.0 + size.bytes();
    assert!(LEGACY_AREA.0 <= ACPI_TABLES.0 && end(ACPI_TABLES) <= end(LEGACY_AREA));
    assert_eq!(end(LEGACY_AREA), 1 << 20);
}
