use proptest::prelude::*;

use super::super::function::test::{HIGH, LOW, TestDevice};
use super::*;
use AccessSize::{Byte, Dword, Qword, Word};

const LOW_START: u64 = 0xc000_0000;
const HIGH_START: u64 = 0x10_0000_0000;

struct Machine {
    mmio: Arc<Bus>,
    root: Arc<PciRoot>,
}

impl Machine {
    fn new() -> Self {
        let mmio = Arc::new(Bus::mmio());
        let windows = PciWindows {
            low: (GuestAddress(LOW_START), ByteCount(0x10_0000)),
            high: (GuestAddress(HIGH_START), ByteCount::gib(1)),
        };
        let root = PciRoot::new(&mmio, windows);
        Self { mmio, root }
    }

    fn attach(&self, slot: u8) -> Arc<TestDevice> {
        let (device, _) = TestDevice::new(if slot == 1 { "one" } else { "other" });
        self.root
            .attach(PciSlot::new(slot), device.clone())
            .unwrap();
        device
    }

    fn read(&self, slot: u64, register: u64, size: AccessSize) -> u32 {
        self.root.read_config(slot << 15 | register, size)
    }

    fn write(&self, slot: u64, register: u64, size: AccessSize, value: u32) {
        self.root.write_config(slot << 15 | register, size, value);
    }

    /// The offsets of a slot's capabilities with an id.
    fn capabilities(&self, slot: u64, id: u32) -> Vec<u64> {
        let mut found = Vec::new();
        let mut at = u64::from(self.read(slot, 0x34, Byte));
        while at != 0 {
            if self.read(slot, at, Byte) == id {
                found.push(at);
            }
            at = u64::from(self.read(slot, at + 1, Byte));
        }
        found
    }
}

#[test]
fn a_guest_finds_the_host_bridge_and_the_devices() {
    let machine = Machine::new();
    machine.attach(1);
    assert_eq!(machine.read(0, 0x08, Dword) >> 16, 0x0600);
    assert_eq!(machine.read(1, 0x00, Dword), 0x1042_1af4);
    assert_eq!(machine.read(1, 0x08, Dword), 0x0180_0001);
    assert_eq!(machine.read(1, 0x2c, Dword), 0x0040_1af4);
    assert_eq!(machine.read(1, 0x0e, Byte), 0, "type 0, one function");
    assert_eq!(machine.read(1, 0x3d, Byte), 0, "no wired interrupt");
    assert_eq!(machine.read(2, 0, Dword), 0xffff_ffff);
    // Function 1 of a slot, another bus, the extended space.
    assert_eq!(
        machine.root.read_config(1 << 15 | 1 << 12, Dword),
        0xffff_ffff
    );
    assert_eq!(machine.root.read_config(1 << 20, Word), 0xffff);
    assert_eq!(machine.read(1, 0x100, Dword), 0xffff_ffff);
    assert_eq!(
        BusDevice::read(&*machine.root, 1 << 15, Qword),
        0x0010_0000_1042_1af4
    );
    // Identity can't be changed.
    machine.write(1, 0, Dword, 0);
    assert_eq!(machine.read(1, 0, Dword), 0x1042_1af4);
}

#[test]
fn a_driver_sizes_bars() {
    let machine = Machine::new();
    machine.attach(1);
    assert_eq!(machine.read(1, 0x10, Dword), HIGH_START as u32 | 0xc);
    assert_eq!(machine.read(1, 0x14, Dword), (HIGH_START >> 32) as u32);
    assert_eq!(machine.read(1, 0x18, Dword), LOW_START as u32);
    for register in [0x10, 0x14, 0x18, 0x1c, 0x20, 0x24, 0x30] {
        machine.write(1, register, Dword, u32::MAX);
    }
    assert_eq!(machine.read(1, 0x10, Dword), 0xffff_c00c);
    assert_eq!(machine.read(1, 0x14, Dword), 0xffff_ffff);
    assert_eq!(machine.read(1, 0x18, Dword), 0xffff_f000);
    for absent in [0x1c, 0x20, 0x24, 0x30] {
        assert_eq!(machine.read(1, absent, Dword), 0);
    }
}

#[test]
fn bars_are_decoded_only_while_memory_is_enabled() {
    let machine = Machine::new();
    let device = machine.attach(1);
    assert_eq!(machine.mmio.read(HIGH_START, Dword), 0xffff_ffff);
    machine.write(1, 4, Word, 6);
    assert_eq!(machine.read(1, 4, Word), 6);
    assert_eq!(machine.mmio.read(HIGH_START + 0x44, Dword), 0x44);
    machine.mmio.write(LOW_START + 0xffc, Dword, 5);
    assert_eq!(
        device.take_log(),
        [
            "bus master true",
            "BAR 0 at 0x1000000000",
            "BAR 2 at 0xc0000000",
            "read 0 0x44 Dword",
            "write 2 0xffc Dword 0x5",
        ]
    );
    machine.write(1, 4, Word, 0);
    assert_eq!(machine.mmio.read(HIGH_START + 0x44, Dword), 0xffff_ffff);
    assert_eq!(
        device.take_log(),
        ["bus master false", "BAR 0 nowhere", "BAR 2 nowhere"]
    );
}

#[test]
fn a_guest_moves_bars_also_onto_each_other_for_a_while() {
    let machine = Machine::new();
    machine.attach(1);
    machine.attach(2);
    let bar = |slot: u8, bar| {
        let function = machine.root.function(PciSlot::new(slot).unwrap()).unwrap();
        function.bar_address(bar).map(|address| address.0)
    };
    for slot in [1, 2] {
        machine.write(slot, 4, Word, 2);
    }
    let (first, second) = (bar(1, LOW).unwrap(), bar(2, LOW).unwrap());
    // The first device goes where the second is; then the second makes room.
    machine.write(1, 0x18, Dword, second as u32);
    assert_eq!(bar(1, LOW), None);
    assert_eq!(bar(2, LOW), Some(second));
    machine.write(2, 0x18, Dword, first as u32);
    assert_eq!((bar(1, LOW), bar(2, LOW)), (Some(second), Some(first)));
    // A 64-bit BAR moves in two writes.
    machine.write(1, 0x14, Dword, 0x20);
    machine.write(1, 0x10, Dword, 0x1234_4000);
    assert_eq!(bar(1, HIGH), Some(0x20_1234_4000));
    assert_eq!(machine.mmio.read(0x20_1234_4008, Byte), 8);
}

#[test]
fn a_driver_uses_msix() {
    let machine = Machine::new();
    let (device, sent) = TestDevice::new("device");
    machine
        .root
        .attach(PciSlot::new(1), device.clone())
        .unwrap();
    machine.write(1, 4, Word, 6);
    let capability = machine.capabilities(1, 0x11)[0];
    assert_eq!(machine.read(1, capability + 2, Word), 2, "three vectors");
    assert_eq!(machine.read(1, capability + 4, Dword), 0x2000);
    assert_eq!(machine.read(1, capability + 8, Dword), 0x3000);
    // Through one dword, as some systems do; the read-only half stays.
    machine.write(1, capability, Dword, 0x8000_ffff);
    assert_eq!(machine.read(1, capability + 2, Word), 0x8002);
    let entry = HIGH_START + 0x2010;
    machine.mmio.write(entry, Dword, 0xfee0_3000);
    machine.mmio.write(entry + 4, Dword, 0);
    machine.mmio.write(entry + 8, Dword, 0x55);
    device.msix.signal(1);
    assert_eq!(machine.mmio.read(HIGH_START + 0x3000, Byte), 2);
    assert_eq!(sent.take(), []);
    machine.mmio.write(entry + 12, Dword, 0);
    let sent = sent.take();
    assert_eq!((sent[0].address, sent[0].data), (0xfee0_3000, 0x55));
    // The byte with enable and function mask alone.
    machine.write(1, capability + 3, Byte, 0x40);
    assert_eq!(machine.read(1, capability + 2, Word), 0x4002);
    // Half in the table, half behind it.
    device.take_log();
    assert_eq!(machine.mmio.read(HIGH_START + 0x202c, Qword), 0);
    machine.mmio.write(HIGH_START + 0x202c, Qword, u64::MAX);
    assert_eq!(device.take_log(), Vec::<String>::new());
}

#[test]
fn dynamic_capabilities_reach_the_device() {
    let machine = Machine::new();
    let device = machine.attach(1);
    let found = machine.capabilities(1, 9);
    assert_eq!(found.len(), 2);
    assert_eq!(machine.read(1, found[0], Dword) >> 16, 0x0110);
    assert_eq!(machine.read(1, found[1] + 16, Dword), 0x1234_5678);
    assert_eq!(machine.read(1, found[1] + 4, Byte), 0x78);
    machine.write(1, found[1] + 8, Word, 0xabcd);
    assert_eq!(
        device.take_log(),
        [
            "capability 1 14 Dword",
            "capability 1 2 Byte",
            "capability 1 6 Word 0xabcd",
        ]
    );
}

#[test]
fn the_old_ports_reach_the_same_space() {
    struct Reset;
    impl BusDevice for Reset {
        fn read(&self, _offset: u64, _size: AccessSize) -> u64 {
            0x77
        }
        fn write(&self, _offset: u64, _size: AccessSize, _value: u64) {}
    }
    let machine = Machine::new();
    machine.attach(1);
    let ports = ConfigPorts::new(machine.root.clone(), Arc::new(Reset));
    assert_eq!(ports.read(4, Dword) as u32, u32::MAX);
    ports.write(0, Dword, 0x8000_0800);
    assert_eq!(ports.read(0, Dword), 0x8000_0800);
    assert_eq!(ports.read(4, Dword), 0x1042_1af4);
    assert_eq!(ports.read(6, Word), 0x1042);
    assert_eq!(ports.read(1, Byte), 0x77);
    ports.write(0, Dword, 0x8000_0804);
    ports.write(4, Word, 2);
    assert_eq!(machine.read(1, 4, Word), 2);
    // Function 1, bus 1.
    for address in [0x8000_0900, 0x8001_0800] {
        ports.write(0, Dword, address);
        assert_eq!(ports.read(4, Dword) as u32, u32::MAX);
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let machine = Machine::new();
    machine.attach(1);
    let (device, _) = TestDevice::new("late");
    let error = machine.root.attach(PciSlot::new(1), device).unwrap_err();
    assert_eq!(
        error.to_string(),
        "late can't have PCI slot 1: one is there"
    );
    for slot in 2..32 {
        let (device, _) = TestDevice::new("one more");
        assert_eq!(machine.root.attach(None, device).unwrap().0.get(), slot);
    }
    let (device, _) = TestDevice::new("late");
    assert!(matches!(
        machine.root.attach(None, device),
        Err(PciError::NoFreeSlot { .. })
    ));
    assert_eq!(PciSlot::new(0), None);
    assert_eq!(PciSlot::new(32), None);

    struct Odd(PciSpec);
    impl PciDevice for Odd {
        fn spec(&self) -> PciSpec {
            self.0.clone()
        }
        fn read_bar(&self, _: BarIndex, _: u64, _: AccessSize) -> u64 {
            0
        }
        fn write_bar(&self, _: BarIndex, _: u64, _: AccessSize, _: u64) {}
        fn reset(&self) {}
    }
    let machine = Machine::new();
    let good = TestDevice::new("odd").0.spec();
    let attach = |change: &dyn Fn(&mut PciSpec)| {
        let mut spec = good.clone();
        change(&mut spec);
        machine.root.attach(None, Arc::new(Odd(spec))).err()
    };
    let invalid: [&dyn Fn(&mut PciSpec); 9] = [
        &|spec| spec.bars[0].size = 0x1001,
        &|spec| spec.bars[1].size = 0x800,
        &|spec| spec.bars[0].index = BarIndex::new(5).unwrap(),
        &|spec| spec.bars[1].index = BarIndex::new(1).unwrap(),
        &|spec| spec.bars[1].index = HIGH,
        &|spec| spec.capabilities[0].body = vec![0; 200],
        &|spec| spec.msix.as_mut().unwrap().bar = BarIndex::new(4).unwrap(),
        &|spec| spec.msix.as_mut().unwrap().table_offset = 0x3ff8,
        &|spec| spec.msix.as_mut().unwrap().pending_offset = 0x2008,
    ];
    for (number, change) in invalid.iter().enumerate() {
        let error = attach(change);
        assert!(
            matches!(error, Some(PciError::InvalidSpec { .. })),
            "{number}: {error:?}"
        );
    }
    assert!(matches!(
        attach(&|spec| spec.bars[1].size = 1 << 30),
        Some(PciError::NoSpace { bar: 2, .. })
    ));
    assert_eq!(attach(&|_| {}), None);
}

#[test]
fn reset_and_detach_take_bars_off_the_bus() {
    let machine = Machine::new();
    let device = machine.attach(1);
    machine.write(1, 0x18, Dword, 0xd000_0000);
    machine.write(1, 4, Word, 6);
    assert_eq!(machine.mmio.list().len(), 2);
    device.take_log();
    machine.root.reset();
    assert_eq!(machine.mmio.list(), []);
    assert_eq!(device.take_log().last().unwrap(), "reset");
    assert_eq!(machine.read(1, 0x18, Dword), LOW_START as u32);
    assert_eq!(machine.read(1, 4, Word), 0);
    machine.write(1, 4, Word, 2);
    assert_eq!(machine.mmio.list().len(), 2);
    machine.root.detach(PciSlot::new(1).unwrap()).unwrap();
    assert_eq!(machine.mmio.list(), []);
    assert_eq!(machine.read(1, 0, Dword), u32::MAX);
}

#[test]
fn state_moves_to_a_machine_with_the_same_devices() {
    let first = Machine::new();
    first.attach(1);
    first.attach(2);
    first.write(1, 4, Word, 6);
    first.write(2, 4, Word, 2);
    // They swap places.
    let (one, two) = (first.read(1, 0x18, Dword), first.read(2, 0x18, Dword));
    first.write(1, 0x18, Dword, two);
    first.write(2, 0x18, Dword, one);
    first.write(1, 0x3c, Byte, 11);
    let text = serde_json::to_string(&first.root.save()).unwrap();
    let state: PciRootState = serde_json::from_str(&text).unwrap();

    let second = Machine::new();
    let device = second.attach(1);
    second.attach(2);
    second.write(1, 4, Word, 2);
    second.write(2, 4, Word, 2);
    second.root.restore(&state).unwrap();
    assert_eq!(second.root.save(), state);
    assert_eq!(second.mmio.list(), first.mmio.list());
    assert!(device.take_log().contains(&"bus master true".to_owned()));

    let other = Machine::new();
    other.attach(1);
    assert!(matches!(
        other.root.restore(&state),
        Err(StateError::Invalid { .. })
    ));
    let mut bad = state.clone();
    bad.functions[0].1.config[0] ^= 1;
    let error = second.root.restore(&bad).unwrap_err().to_string();
    assert!(error.contains("byte 0x0"), "{error}");
    let mut bad = state.clone();
    bad.functions[1].1.config.pop();
    assert!(second.root.restore(&bad).is_err());
    let mut bad = state.clone();
    bad.functions[1].1.msix = None;
    assert!(second.root.restore(&bad).is_err());
    assert_eq!(second.root.save(), state, "refused states change nothing");
    assert!(serde_json::from_str::<PciSlot>("0").is_err());
}

/// What a guest does to the machine: for the property test, and for a fuzzer.
fn drive(machine: &Machine, accesses: &[(u8, u64, u8, u64)]) {
    for &(what, address, size, value) in accesses {
        let size = AccessSize::from_bytes(1 << (size % 4)).unwrap();
        // Mostly where something is.
        let config = address % (3 << 15);
        let config = if what & 8 == 0 {
            config & !0xf00
        } else {
            config
        };
        let mmio = match what >> 6 {
            0 => LOW_START + address % 0x4000,
            1 => HIGH_START + address % 0x8000,
            2 => address | u64::MAX << 14,
            _ => address,
        };
        match what & 7 {
            0 => _ = BusDevice::read(&*machine.root, config, size),
            1..=3 => BusDevice::write(&*machine.root, config, size, value),
            4 => BusDevice::write(&*machine.root, (address % 3) << 15 | 4, Word, value),
            5 => _ = machine.mmio.read(mmio, size),
            _ => machine.mmio.write(mmio, size, value),
        }
    }
}

proptest! {
    /// Nothing panics; everything a guest can bring about can be saved and
    /// restored; after a reset nothing is left of it.
    #[test]
    fn garbage_does_no_harm(accesses in prop::collection::vec(any::<(u8, u64, u8, u64)>(), 0..120)) {
        let machine = Machine::new();
        machine.attach(1);
        machine.attach(2);
        let fresh = machine.root.save();
        drive(&machine, &accesses);
        let state = machine.root.save();
        let mapped = machine.mmio.list();
        machine.root.restore(&state).unwrap();
        prop_assert_eq!(machine.root.save(), state);
        // BARs that lie on each other may win in another order.
        prop_assert_eq!(machine.mmio.list().len(), mapped.len());
        machine.root.reset();
        prop_assert_eq!(machine.root.save(), fresh);
        prop_assert_eq!(machine.mmio.list(), []);
    }
}
