use favo_accel::AccessSize::{Byte, Dword, Qword, Word};
use favo_types::{ByteCount, GuestAddress};
use proptest::prelude::*;

use super::super::device::{F_EVENT_IDX, F_INDIRECT_DESC, TRANSPORT_FEATURES};
use super::super::rng::RngSpec;
use super::super::testing::{PATIENCE, TestDriver, test_memory};
use super::super::vsock::VsockSpec;
use super::*;
use crate::bus::Bus;
use crate::interrupt::recorder::MsiRecorder;
use crate::pci::{PciRoot, PciSlot, PciWindows};

fn write(pci: &VirtioPci, offset: u64, size: AccessSize, value: u64) {
    pci.write_bar(bar(), offset, size, value);
}

fn read(pci: &VirtioPci, offset: u64, size: AccessSize) -> u64 {
    pci.read_bar(bar(), offset, size)
}

/// Goes through the set-up a driver does.
fn drive(pci: &VirtioPci, queue: &super::super::testing::DriverQueue, features: u64) {
    pci.set_bus_master(true);
    write(pci, 20, Byte, 0);
    for bits in [1, 3] {
        write(pci, 20, Byte, bits);
    }
    let mut offered = 0;
    for half in 0..2 {
        write(pci, 0, Dword, half);
        offered |= read(pci, 4, Dword) << (32 * half);
        write(pci, 8, Dword, half);
        write(pci, 12, Dword, features >> (32 * half) & 0xffff_ffff);
    }
    assert_eq!(offered & features, features);
    write(pci, 20, Byte, 11);
    assert_eq!(read(pci, 20, Byte), 11);
    write(pci, 16, Word, 0);
    let state = queue.state();
    write(pci, 22, Word, 0);
    write(pci, 24, Word, state.size.into());
    write(pci, 26, Word, 1);
    for (offset, address) in [
        (32, state.descriptor_table),
        (40, state.available_ring),
        (48, state.used_ring),
    ] {
        write(pci, offset, Dword, address.0 & 0xffff_ffff);
        write(pci, offset + 4, Dword, address.0 >> 32);
    }
    write(pci, 28, Word, 1);
    write(pci, 20, Byte, 15);
    assert_eq!(read(pci, 20, Byte), 15);
}

fn program_msix(pci: &VirtioPci) {
    for vector in 0..pci.msix.vectors() {
        let entry = u64::from(vector) * 16;
        pci.msix
            .write_table(entry, Dword, 0xfee0_0000 + u64::from(vector) * 0x1000);
        pci.msix
            .write_table(entry + 8, Dword, 0x40 + u64::from(vector));
        pci.msix.write_table(entry + 12, Dword, 0);
    }
    pci.msix.set_control(1 << 15);
}

#[test]
fn a_driver_finds_its_way_and_gets_interrupts() {
    let mut rng = RngSpec {}.build().unwrap();
    let features = F_EVENT_IDX | F_INDIRECT_DESC;
    let mut driver = TestDriver::new(&mut rng, ByteCount::mib(2), features);
    let mut queue = driver.queue(0, 8, true, 1 << 16);
    let messages = MsiRecorder::new();
    let pci = VirtioPci::new(
        "rng".into(),
        Box::new(rng),
        driver.memory.clone(),
        messages.clone(),
    )
    .unwrap();
    program_msix(&pci);
    drive(&pci, &queue, features | super::super::device::F_VERSION_1);

    queue.add(&[], &[32]);
    write(&pci, NOTIFY, Word, 0);
    let until = std::time::Instant::now() + PATIENCE;
    let mut sent = messages.take();
    while sent.is_empty() {
        assert!(std::time::Instant::now() < until, "no interrupt");
        std::thread::yield_now();
        sent = messages.take();
    }
    assert_eq!(sent.iter().map(|msi| msi.data).collect::<Vec<_>>(), [0x41]);
    assert_eq!(queue.poll().unwrap().written, 32);
    assert_eq!(read(&pci, ISR, Byte), 1);
    assert_eq!(read(&pci, ISR, Byte), 0);

    // A broken ring is told through the configuration vector.
    pci.resume();
    queue.publish(999);
    write(&pci, NOTIFY, Word, 0);
    while read(&pci, 20, Byte) & 64 == 0 {
        assert!(std::time::Instant::now() < until, "no reset asked for");
        std::thread::yield_now();
    }
    pci.pause();
    assert!(messages.take().iter().any(|msi| msi.data == 0x40));
}

#[test]
fn capabilities_point_into_the_bar() {
    let vsock = Box::new(VsockSpec::new(5).build().unwrap());
    let memory = test_memory(ByteCount::mib(1));
    let pci = VirtioPci::new("vsock".into(), vsock, memory, MsiRecorder::new()).unwrap();
    let spec = pci.spec();
    assert_eq!(spec.identity.device, 0x1053);
    let types: Vec<u8> = spec.capabilities.iter().map(|cap| cap.body[1]).collect();
    assert_eq!(types, [1, 3, 4, 2, 5]);
    for capability in &spec.capabilities {
        assert_eq!(usize::from(capability.body[0]), capability.body.len() + 2);
        let word = |at: usize| {
            u64::from(u32::from_le_bytes(
                capability.body[at..at + 4].try_into().unwrap(),
            ))
        };
        assert!(word(6) + word(10) <= BAR_SIZE);
    }
    assert_eq!(pci.notifications().len(), 3);
    assert_eq!(read(&pci, CONFIG, Qword), 5);
}

#[test]
fn firmware_reaches_the_bar_through_the_configuration_space() {
    let rng = Box::new(RngSpec {}.build().unwrap());
    let memory = test_memory(ByteCount::mib(1));
    let pci = VirtioPci::new("rng".into(), rng, memory, MsiRecorder::new()).unwrap();
    let window = |offset: u32, length: u32| {
        pci.write_capability(PCI_ACCESS_INDEX, WINDOW_BAR, Byte, 0);
        pci.write_capability(PCI_ACCESS_INDEX, WINDOW_OFFSET, Dword, offset);
        pci.write_capability(PCI_ACCESS_INDEX, WINDOW_LENGTH, Dword, length);
    };
    window(20, 1);
    pci.write_capability(PCI_ACCESS_INDEX, WINDOW_DATA, Byte, 3);
    assert_eq!(pci.read_capability(PCI_ACCESS_INDEX, WINDOW_DATA, Byte), 3);
    assert_eq!(read(&pci, 20, Byte), 3);
    assert_eq!(
        pci.read_capability(PCI_ACCESS_INDEX, WINDOW_OFFSET, Dword),
        20
    );
    // Not aligned, not a width, not ours, not existing.
    for (offset, length) in [(21, 2), (20, 3), (MSIX_TABLE, 4), (u32::MAX, 1)] {
        window(offset, length);
        pci.write_capability(PCI_ACCESS_INDEX, WINDOW_DATA, Dword, u32::MAX);
        assert_eq!(pci.read_capability(PCI_ACCESS_INDEX, WINDOW_DATA, Dword), 0);
    }
}

fn access_size() -> impl Strategy<Value = AccessSize> {
    prop::sample::select(vec![Byte, Word, Dword, Qword])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Whatever is written to the registers: no panic, and the device stops.
    #[test]
    fn garbage_registers_are_survived(
        accesses in prop::collection::vec(
            (0u64..0x3040, access_size(), any::<u64>(), 0u8..8), 1..200),
    ) {
        let rng = Box::new(RngSpec {}.build().unwrap());
        let memory = test_memory(ByteCount::mib(1));
        let pci = VirtioPci::new("rng".into(), rng, memory, MsiRecorder::new()).unwrap();
        pci.set_bus_master(true);
        for (offset, size, value, what) in accesses {
            match what {
                // Mostly the common configuration, with values that mean something.
                0..=3 => {
                    let fields = [0, 8, 12, 16, 20, 20, 22, 24, 26, 28, 32, 40, 48, 58];
                    let field = fields[offset as usize % fields.len()];
                    let width = match field {
                        0 | 8 | 12 => Dword,
                        20 => Byte,
                        32 | 40 | 48 => Qword,
                        _ => Word,
                    };
                    let value = match field {
                        0 | 8 => value & 1,
                        12 => if value & 2 == 0 { 1 } else { TRANSPORT_FEATURES & 0xffff_ffff },
                        20 if value & 7 != 0 => [3, 11, 15][value as usize % 3],
                        22 => 0,
                        24 => 1 << (value % 8),
                        28 | 58 => 1,
                        32 | 40 | 48 => (value & 0x000f_ffff) << 4,
                        _ => value & 3,
                    };
                    write(&pci, field, width, value);
                }
                4 => { read(&pci, offset, size); }
                5 => pci.write_capability(4, offset as u16 % 18, size, value as u32),
                6 => { pci.read_capability(4, offset as u16 % 18, size); }
                _ => write(&pci, offset, size, value),
            }
        }
        pci.pause();
        let state = pci.save().unwrap();
        pci.restore(&state).unwrap();
        pci.reset();
    }
}

/// As firmware and a driver find it: through the configuration space.
#[test]
fn on_the_bus_it_is_found_mapped_and_works() {
    const ECAM: u64 = 0xe000_0000;
    let mmio = Arc::new(Bus::mmio());
    let windows = PciWindows {
        low: (GuestAddress(0xc000_0000), ByteCount::mib(64)),
        high: (GuestAddress(1 << 40), ByteCount::gib(1)),
    };
    let root = PciRoot::new(&mmio, windows);
    mmio.insert("ECAM", ECAM, 1 << 20, root.clone()).unwrap();
    let vsock = Box::new(VsockSpec::new(5).build().unwrap());
    let memory = test_memory(ByteCount::mib(1));
    let pci = VirtioPci::new("vsock".into(), vsock, memory, MsiRecorder::new()).unwrap();
    root.attach(PciSlot::new(3), pci.clone()).unwrap();

    let config = ECAM + (3 << 15);
    let get = |offset: u64, size| mmio.read(config + offset, size);
    assert_eq!(get(0, Dword), 0x1053_1af4);
    // Memory and bus mastering on.
    mmio.write(config + 4, Word, 6);
    let base = get(0x10, Dword) & !0xf;

    let mut found = Vec::new();
    let mut at = get(0x34, Byte);
    while at != 0 {
        if get(at, Byte) == u64::from(CAPABILITY_ID) {
            let part = (get(at + 3, Byte), get(at + 8, Dword), get(at + 12, Dword));
            found.push(part);
            if part.0 == u64::from(TYPE_NOTIFY) {
                assert_eq!(get(at + 16, Dword), u64::from(NOTIFY_MULTIPLIER));
            }
            if part.0 == u64::from(TYPE_PCI) {
                // BAR 0, offset of num_queues, two bytes.
                mmio.write(config + at + 4, Byte, 0);
                mmio.write(config + at + 8, Dword, 18);
                mmio.write(config + at + 12, Dword, 2);
                assert_eq!(get(at + 16, Word), 3);
            }
        }
        at = get(at + 1, Byte);
    }
    let types: Vec<u64> = found.iter().map(|part| part.0).collect();
    assert_eq!(types, [1, 3, 4, 2, 5]);
    let (_, device_config, length) = found[2];
    assert!(length >= 8);
    assert_eq!(mmio.read(base + device_config, Qword), 5);
    assert_eq!(mmio.read(base + 18, Word), 3);

    // MSI-X lies where its capability says and not in ours.
    mmio.write(base + u64::from(MSIX_TABLE) + 8, Dword, 0x77);
    assert_eq!(mmio.read(base + u64::from(MSIX_TABLE) + 8, Dword), 0x77);

    // A machine reset brings the transport back, too.
    mmio.write(base + 20, Byte, 3);
    assert_eq!(mmio.read(base + 20, Byte), 3);
    root.reset();
    assert_eq!(pci.read_bar(bar(), 20, Byte), 0);
}
