use std::sync::atomic::Ordering;

use super::pages::{CODE, DIRTY, LOG};
use super::*;

fn memory(backing: MemoryBacking) -> GuestMemory {
    GuestMemory::new(
        &[
            (GuestAddress(0), ByteCount::mib(1)),
            (GuestAddress(1 << 32), ByteCount::kib(64)),
        ],
        backing,
    )
    .unwrap()
}

#[test]
fn reads_back_what_was_written() {
    for backing in [MemoryBacking::Anonymous, MemoryBacking::Memfd] {
        let memory = memory(backing);
        memory.write(GuestAddress((1 << 32) + 5), b"comb").unwrap();
        let mut bytes = [0; 4];
        memory
            .read(GuestAddress((1 << 32) + 5), &mut bytes)
            .unwrap();
        assert_eq!(&bytes, b"comb");
        assert_eq!(memory.memfd().is_some(), backing == MemoryBacking::Memfd);
        assert_eq!(memory.size(), ByteCount(0x11_0000));
    }
}

#[test]
fn an_access_that_is_not_all_ram_is_refused_whole() {
    let memory = memory(MemoryBacking::Anonymous);
    let end = GuestAddress((1 << 20) - 2);
    assert!(matches!(
        memory.write(end, b"four"),
        Err(MemoryError::OutOfRange { .. })
    ));
    let mut bytes = [1; 2];
    memory.read(end, &mut bytes).unwrap();
    assert_eq!(bytes, [0; 2]);
    assert!(
        memory
            .read(GuestAddress(u64::MAX - 1), &mut [0; 8])
            .is_err()
    );
    assert!(memory.find(GuestAddress(u64::MAX), u64::MAX).is_none());
}

#[test]
fn bad_regions_are_named() {
    for ranges in [
        &[(GuestAddress(0), ByteCount(0))][..],
        &[(GuestAddress(1), ByteCount(4096))],
        &[
            (GuestAddress(0), ByteCount(8192)),
            (GuestAddress(4096), ByteCount(4096)),
        ],
        &[(GuestAddress(u64::MAX - 4095), ByteCount(4096))],
    ] {
        let error = GuestMemory::new(ranges, MemoryBacking::Anonymous).unwrap_err();
        assert!(
            matches!(error, MemoryError::InvalidRegion { .. }),
            "{error}"
        );
    }
}

#[test]
fn a_device_write_makes_cached_code_stale() {
    let memory = memory(MemoryBacking::Anonymous);
    let pages = &memory.regions()[0].pages;
    let (version, newly) = pages.arm_code(2);
    assert!(newly);
    memory.write(GuestAddress(2 * PAGE_SIZE - 1), b"x").unwrap();
    assert_eq!(
        pages.versions()[2].load(Ordering::SeqCst),
        version,
        "other page"
    );
    memory
        .write(GuestAddress(2 * PAGE_SIZE - 1), b"xy")
        .unwrap();
    assert_ne!(pages.versions()[2].load(Ordering::SeqCst), version);
    assert_eq!(pages.flags()[2].load(Ordering::SeqCst) & CODE, 0);
    assert_eq!(pages.arm_code(2), (version + 1, true));
}

#[test]
fn the_log_tells_each_written_page_once() {
    let memory = memory(MemoryBacking::Anonymous);
    let pages = &memory.regions()[0].pages;
    memory.write(GuestAddress(0), b"before").unwrap();
    pages.start_log();
    assert!(pages.take_log().is_empty());
    memory
        .write(GuestAddress(3 * PAGE_SIZE - 2), b"span")
        .unwrap();
    memory.mark_written(GuestAddress(9 * PAGE_SIZE), 1);
    assert_eq!(pages.take_log(), [2, 3, 9]);
    assert!(pages.take_log().is_empty());
    memory.write(GuestAddress(2 * PAGE_SIZE), b"again").unwrap();
    assert_eq!(pages.take_log(), [2]);
    pages.stop_log();
    memory.write(GuestAddress(0), b"after").unwrap();
    assert_eq!(pages.flags()[0].load(Ordering::SeqCst) & (LOG | DIRTY), 0);
}

#[test]
fn logging_and_cached_code_share_a_page() {
    let memory = memory(MemoryBacking::Anonymous);
    let pages = &memory.regions()[0].pages;
    pages.start_log();
    let (version, _) = pages.arm_code(1);
    memory.write(GuestAddress(PAGE_SIZE), b"x").unwrap();
    assert_eq!(pages.versions()[1].load(Ordering::SeqCst), version + 1);
    assert_eq!(pages.take_log(), [1]);
}
