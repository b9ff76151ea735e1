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

fn file_of(bytes: u64, writes: &[(u64, &[u8])]) -> Arc<File> {
    use std::os::unix::fs::FileExt;
    let file = make_memfd(ByteCount(bytes)).unwrap();
    for (at, bytes) in writes {
        file.write_all_at(bytes, *at).unwrap();
    }
    Arc::new(file)
}

fn byte(memory: &GuestMemory, address: u64) -> u8 {
    let mut byte = [0];
    memory.read(GuestAddress(address), &mut byte).unwrap();
    byte[0]
}

/// Two regions, the second behind a hole.
const SPLIT: [(GuestAddress, ByteCount); 2] = [
    (GuestAddress(0), ByteCount(0x10_0000)),
    (GuestAddress(1 << 32), ByteCount(0x1_0000)),
];

#[test]
fn memory_begins_as_its_layers_and_leaves_them_alone() {
    let lowest = file_of(
        0x11_1000,
        &[(0x1000, b"a"), (0x10_2000, b"b"), (0x5000, b"c")],
    );
    let upper = file_of(
        0x11_0000,
        &[(0x5000, b"C"), (0x1000, b"X"), (0x10_3000, b"d")],
    );
    let layers = vec![
        Layer {
            file: lowest.clone(),
            ranges: None,
        },
        Layer {
            file: upper,
            ranges: Some(vec![
                0x5000..0x7000,
                0xf_f000..0x10_1000,
                0x10_3000..0x10_4000,
            ]),
        },
    ];
    let first = GuestMemory::copy_on_write(&SPLIT, layers.clone()).unwrap();
    let second = GuestMemory::copy_on_write(&SPLIT, layers).unwrap();
    for (address, expected) in [
        (0x1000, b'a'),
        (0x5000, b'C'),
        ((1 << 32) + 0x2000, b'b'),
        ((1 << 32) + 0x3000, b'd'),
        (0x9000, 0),
    ] {
        assert_eq!(byte(&first, address), expected);
    }
    first.write(GuestAddress(0x1000), b"Z").unwrap();
    first.write(GuestAddress(0x9000), b"n").unwrap();
    assert_eq!(byte(&second, 0x1000), b'a');
    let populated = first.populated().unwrap();
    for at in [0x1000u64, 0x5000, 0x9000, 0x10_2000, 0x10_3000] {
        assert!(populated.iter().any(|range| range.contains(&at)), "{at:#x}");
    }
    let mut byte = [0];
    first.read_file_range(0x10_3000, &mut byte).unwrap();
    assert_eq!(byte, *b"d");
    assert!(first.read_file_range(0x11_0000, &mut byte).is_err());
}

#[test]
fn what_is_discarded_reads_as_zeroes_whatever_is_behind() {
    let layered = GuestMemory::copy_on_write(
        &SPLIT,
        vec![Layer {
            file: file_of(0x11_0000, &[(0x2000, b"old"), (0x10_4000, b"old")]),
            ranges: None,
        }],
    );
    for memory in [
        memory(MemoryBacking::Anonymous),
        memory(MemoryBacking::Memfd),
        layered.unwrap(),
    ] {
        memory.write(GuestAddress(0x3000), b"new").unwrap();
        let regions = memory.regions();
        memory.discard(&regions[0], 0x2000, 0x2000).unwrap();
        memory.discard(&regions[1], 0x4000, 0x1000).unwrap();
        for address in [0x2000, 0x3000, (1 << 32) + 0x4000] {
            assert_eq!(byte(&memory, address), 0);
        }
        assert!(memory.discard(&regions[1], 0x1_0000, 0x1000).is_err());
        assert!(memory.discard(&regions[0], 1, 0x1000).is_err());
    }
}

#[test]
fn populated_finds_what_was_written() {
    for backing in [MemoryBacking::Anonymous, MemoryBacking::Memfd] {
        let memory = GuestMemory::new(&SPLIT, backing).unwrap();
        memory
            .write(GuestAddress((1 << 32) + 0x5000), b"x")
            .unwrap();
        let populated = memory.populated().unwrap();
        assert!(populated.iter().any(|range| range.contains(&0x10_5000)));
        let bytes: u64 = populated.iter().map(|range| range.end - range.start).sum();
        assert!(bytes < 0x11_0000, "{populated:?}");
        assert_eq!(memory.file_offset(GuestAddress(1 << 32)), Some(0x10_0000));
    }
}

#[test]
fn layers_that_can_not_be_are_refused() {
    let one = |range: Range<u64>| Some(Vec::from([range]));
    let layer = |bytes, ranges| Layer {
        file: file_of(bytes, &[]),
        ranges,
    };
    for layers in [
        vec![],
        vec![layer(0x10_f000, None)],
        vec![layer(0x11_0000, Some(vec![]))],
        vec![
            layer(0x11_0000, None),
            layer(0x11_0000, one(0x1000..0x1800)),
        ],
        vec![
            layer(0x11_0000, None),
            layer(0x11_0000, one(0x10_f000..0x11_1000)),
        ],
        vec![
            layer(0x11_0000, None),
            layer(0x11_0000, Some(vec![0x2000..0x3000, 0x1000..0x2000])),
        ],
    ] {
        assert!(matches!(
            GuestMemory::copy_on_write(&SPLIT, layers),
            Err(MemoryError::InvalidLayer(_))
        ));
    }
}

#[test]
fn what_is_frozen_stays_and_the_machine_goes_on() {
    let layered = GuestMemory::copy_on_write(
        &SPLIT,
        vec![Layer {
            file: file_of(0x11_1000, &[(0x2000, b"old"), (0x10_4000, b"old")]),
            ranges: None,
        }],
    );
    let many = || GuestMemory::new(&SPLIT, MemoryBacking::Memfd).unwrap();
    let anonymous = GuestMemory::new(&SPLIT, MemoryBacking::Anonymous).unwrap();
    for memory in [anonymous, many(), layered.unwrap()] {
        let mut moments = Vec::new();
        for round in 0..6u8 {
            let here = u64::from(round) * 0x2_1000;
            memory.write(GuestAddress(here), &[round + 1]).unwrap();
            memory.write(GuestAddress(0x7000), &[round + 1]).unwrap();
            memory
                .write(GuestAddress((1 << 32) + 0x1000), &[round + 1])
                .unwrap();
            if round == 3 {
                // Nothing to freeze but what was frozen.
                let first = memory.freeze().unwrap().len();
                assert_eq!(memory.freeze().unwrap().len(), first);
            }
            let mut bytes = vec![0; 0x11_0000];
            memory.read_file_range(0, &mut bytes).unwrap();
            moments.push((memory.freeze().unwrap(), bytes));
        }
        memory.write(GuestAddress(0x7000), &[99]).unwrap();
        for (layers, expected) in moments {
            let clone = GuestMemory::copy_on_write(&SPLIT, layers).unwrap();
            let mut bytes = vec![0; 0x11_0000];
            clone.read_file_range(0, &mut bytes).unwrap();
            assert!(bytes == expected);
            clone.write(GuestAddress(0x7000), &[77]).unwrap();
        }
        assert_eq!(byte(&memory, 0x7000), 99);
    }
}
