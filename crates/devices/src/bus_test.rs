use std::sync::Mutex;

use proptest::prelude::*;

use super::*;

/// Remembers what reaches it; reads return the low byte of each address.
#[derive(Default)]
struct Recorder(Mutex<Vec<(u64, AccessSize, u64)>>);

impl Recorder {
    fn new() -> Arc<Self> {
        Arc::default()
    }

    fn take(&self) -> Vec<(u64, AccessSize, u64)> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl BusDevice for Recorder {
    fn read(&self, offset: u64, size: AccessSize) -> u64 {
        (0..size.bytes() as u64)
            .rev()
            .fold(0, |value, byte| value << 8 | (offset + byte) & 0xff)
    }

    fn write(&self, offset: u64, size: AccessSize, value: u64) {
        self.0.lock().unwrap().push((offset, size, value));
    }
}

#[test]
fn an_access_reaches_its_device_with_the_offset() {
    let bus = Bus::ports();
    let (first, second) = (Recorder::new(), Recorder::new());
    bus.insert("first", 0x10, 8, first.clone()).unwrap();
    bus.insert("second", 0x18, 8, second.clone()).unwrap();
    assert_eq!(bus.read(0x14, AccessSize::Word), 0x0504);
    bus.write(0x18, AccessSize::Dword, 0xffff_ffff_1234_5678);
    assert_eq!(first.take(), []);
    assert_eq!(second.take(), [(0, AccessSize::Dword, 0x1234_5678)]);
    assert_eq!(bus.missed(), (0, 0));
}

#[test]
fn nothing_reads_as_ones_and_is_counted() {
    let bus = Bus::mmio();
    assert_eq!(bus.read(0x1000, AccessSize::Byte), 0xff);
    assert_eq!(bus.read(u64::MAX, AccessSize::Dword), 0xffff_ffff);
    assert_eq!(bus.read(0, AccessSize::Qword), u64::MAX);
    bus.write(0x1000, AccessSize::Byte, 1);
    assert_eq!(bus.missed(), (3, 1));
}

#[test]
fn an_access_across_the_edge_of_a_device_is_split() {
    let bus = Bus::mmio();
    let (first, second) = (Recorder::new(), Recorder::new());
    bus.insert("first", 0x100, 0x10, first.clone()).unwrap();
    bus.insert("second", 0x112, 0x10, second.clone()).unwrap();
    // Two bytes of the first, two of nothing, four of the second.
    assert_eq!(bus.read(0x10e, AccessSize::Qword), 0x0302_0100_ffff_0f0e);
    bus.write(0x10e, AccessSize::Qword, 0x0807_0605_0403_0201);
    assert_eq!(
        first.take(),
        [(14, AccessSize::Byte, 1), (15, AccessSize::Byte, 2)]
    );
    assert_eq!(second.take().len(), 4);
    // The last address of all.
    bus.insert("last", u64::MAX, 1, first.clone()).unwrap();
    assert_eq!(bus.read(u64::MAX, AccessSize::Word), 0xff00);
    bus.write(u64::MAX, AccessSize::Word, 0x0102);
    assert_eq!(first.take(), [(0, AccessSize::Byte, 2)]);
}

#[test]
fn an_overlap_is_refused_and_names_both() {
    let bus = Bus::ports();
    bus.insert("serial", 0x3f8, 8, Recorder::new()).unwrap();
    for (start, length) in [(0x3f8, 8), (0x3f0, 9), (0x3ff, 1), (0x300, 0x400)] {
        let error = bus
            .insert("impostor", start, length, Recorder::new())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("impostor") && error.contains("serial has 0x3f8..=0x3ff"),
            "{error}"
        );
    }
    bus.insert("before", 0x3f0, 8, Recorder::new()).unwrap();
    bus.insert("after", 0x400, 1, Recorder::new()).unwrap();
    for (start, length) in [(0x10, 0), (0xffff, 2), (0x10000, 1), (u64::MAX, u64::MAX)] {
        assert!(matches!(
            bus.insert("outside", start, length, Recorder::new()),
            Err(BusError::OutOfRange { .. })
        ));
    }
    assert_eq!(bus.list().len(), 3);
}

#[test]
fn ranges_move_and_go_away() {
    let bus = Bus::mmio();
    let device = Recorder::new();
    bus.insert("a", 0x1000, 0x1000, device.clone()).unwrap();
    bus.insert("b", 0x5000, 0x1000, Recorder::new()).unwrap();
    // To where it overlaps only itself.
    bus.move_range(0x1000, 0x1800).unwrap();
    assert_eq!(bus.read(0x2000, AccessSize::Word), 0x0100);
    assert!(matches!(
        bus.move_range(0x1800, 0x4800),
        Err(BusError::Overlap { .. })
    ));
    assert!(bus.move_range(0x1800, u64::MAX - 5).is_err());
    assert_eq!(
        bus.list(),
        [
            ("a".to_owned(), 0x1800, 0x27ff),
            ("b".to_owned(), 0x5000, 0x5fff)
        ]
    );
    bus.remove(0x1800).unwrap();
    assert_eq!(
        bus.remove(0x1800).err(),
        Some(BusError::NotFound {
            bus: "memory",
            start: 0x1800
        })
    );
    assert_eq!(bus.read(0x2000, AccessSize::Byte), 0xff);
}

/// A device may change the bus while it handles an access.
#[test]
fn a_device_may_move_itself() {
    struct Mover(Arc<Bus>);
    impl BusDevice for Mover {
        fn read(&self, _offset: u64, _size: AccessSize) -> u64 {
            0
        }
        fn write(&self, _offset: u64, _size: AccessSize, value: u64) {
            self.0.move_range(0x1000, value).unwrap();
        }
    }
    let bus = Arc::new(Bus::mmio());
    bus.insert("mover", 0x1000, 0x10, Arc::new(Mover(bus.clone())))
        .unwrap();
    bus.write(0x1000, AccessSize::Qword, 0x2000);
    assert_eq!(bus.list()[0].1, 0x2000);
    // Breaks the cycle.
    bus.remove(0x2000).unwrap();
}

fn size() -> impl Strategy<Value = AccessSize> {
    prop::sample::select(vec![
        AccessSize::Byte,
        AccessSize::Word,
        AccessSize::Dword,
        AccessSize::Qword,
    ])
}

proptest! {
    /// Against a model with one entry per address.
    #[test]
    fn the_bus_is_a_map_from_addresses(
        ranges in prop::collection::vec((0u64..64, 1u64..12), 0..10),
        accesses in prop::collection::vec((0u64..70, size()), 1..20),
    ) {
        let bus = Bus::mmio();
        let mut model = [None; 96];
        for (start, length) in ranges {
            let cells = start as usize..(start + length) as usize;
            let free = model[cells.clone()].iter().all(Option::is_none);
            let inserted = bus.insert("device", start, length, Recorder::new());
            prop_assert_eq!(free, inserted.is_ok());
            if free {
                for cell in cells {
                    model[cell] = Some(cell as u64 - start);
                }
            }
        }
        for (address, size) in accesses {
            let expected = (0..size.bytes())
                .rev()
                .fold(0, |value, byte| {
                    value << 8 | model[address as usize + byte].unwrap_or(0xff)
                });
            prop_assert_eq!(bus.read(address, size), expected);
        }
    }
}
