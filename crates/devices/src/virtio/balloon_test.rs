use favo_accel::MemoryBacking;

use super::super::device::F_EVENT_IDX;
use super::super::testing::{PATIENCE, TestDriver};
use super::*;

fn page_list(pages: &[u32]) -> Vec<u8> {
    pages.iter().flat_map(|page| page.to_le_bytes()).collect()
}

fn counter(device: &Balloon, name: &str) -> u64 {
    device
        .counters()
        .iter()
        .find(|counter| counter.name == name)
        .unwrap()
        .count
}

#[test]
fn inflated_pages_are_given_back_and_nothing_else() {
    for backing in [MemoryBacking::Anonymous, MemoryBacking::Memfd] {
        let mut device = BalloonSpec::default().build().unwrap();
        let mut driver = TestDriver::new(&mut device, ByteCount::mib(4), F_EVENT_IDX);
        let half = ByteCount::mib(2);
        driver.memory = GuestMemory::new(
            &[(GuestAddress(0), half), (GuestAddress(16 << 20), half)],
            backing,
        )
        .unwrap();
        let mut inflate = driver.queue(0, 8, false, 1 << 12);
        inflate.start(&mut device);
        // Pages of the second region: 0x1000 is its first.
        let first = GuestAddress(16 << 20);
        let kept = GuestAddress(first.0 + 2 * PAGE_SIZE);
        for page in 0..4 {
            driver
                .memory
                .write(GuestAddress(first.0 + page * PAGE_SIZE), &[7; 4096])
                .unwrap();
        }
        let region = driver.memory.regions()[1].clone();
        let (version, _) = region.pages.arm_code(0);
        let low = GuestAddress(0x1f_f000);
        driver.memory.write(low, &[5; 4096]).unwrap();

        inflate.request(&[&page_list(&[0x1000, 0x1001, 0x1003])], &[]);
        let mut bytes = [1; 4096];
        for page in [0, 1, 3] {
            let address = GuestAddress(first.0 + page * PAGE_SIZE);
            driver.memory.read(address, &mut bytes).unwrap();
            assert_eq!(bytes, [0; 4096], "{backing:?} page {page}");
        }
        driver.memory.read(kept, &mut bytes).unwrap();
        assert_eq!(bytes, [7; 4096]);
        driver.memory.read(low, &mut bytes).unwrap();
        assert_eq!(bytes, [5; 4096]);
        assert_eq!(counter(&device, "discarded-bytes"), 3 * PAGE_SIZE);
        // Whoever cached code of the page hears of it.
        assert_ne!(
            region.pages.versions()[0].load(Ordering::SeqCst),
            version,
            "{backing:?}"
        );
    }
}

#[test]
fn pages_outside_ram_are_counted_and_harmless() {
    let mut device = BalloonSpec::default().build().unwrap();
    let mut driver = TestDriver::new(&mut device, ByteCount::mib(2), F_EVENT_IDX);
    let mut inflate = driver.queue(0, 8, false, 1 << 17);
    inflate.start(&mut device);
    // The last page of RAM, two behind it, and the highest number there is.
    let last = (2 << 20) / 4096 - 1;
    inflate.request(&[&page_list(&[last, last + 1, last + 2, u32::MAX])], &[]);
    assert_eq!(counter(&device, "pages-outside-ram"), 3);
    assert_eq!(counter(&device, "discarded-bytes"), 4096);
    // Too long a list.
    inflate.request(&[&vec![0; (64 << 10) + 4]], &[]);
    assert_eq!(counter(&device, "malformed-chains"), 1);
    // Not a whole number.
    inflate.request(&[&[1, 2, 3]], &[]);
}

#[test]
fn reported_free_pages_are_given_back() {
    for statistics in [true, false] {
        let mut device = BalloonSpec {
            statistics,
            ..BalloonSpec::default()
        }
        .build()
        .unwrap();
        let mut driver = TestDriver::new(&mut device, ByteCount::mib(8), F_EVENT_IDX);
        let index = if statistics { 3 } else { 2 };
        let mut reporting = driver.queue(index, 32, false, 4096);
        reporting.start(&mut device);
        let block = GuestAddress(4 << 20);
        driver.memory.write(block, &vec![9; 2 << 20]).unwrap();
        reporting.add_raw(&[(block, 1 << 20, true)], vec![]);
        reporting.notify();
        reporting.wait();
        let mut byte = [1];
        driver.memory.read(block, &mut byte).unwrap();
        assert_eq!(byte, [0]);
        let behind = GuestAddress(block.0 + (1 << 20));
        driver.memory.read(behind, &mut byte).unwrap();
        assert_eq!(byte, [9]);
        assert_eq!(counter(&device, "reported-free-bytes"), 1 << 20);
    }
}

#[test]
fn a_partly_reported_page_is_kept() {
    let mut device = BalloonSpec::default().build().unwrap();
    let mut driver = TestDriver::new(&mut device, ByteCount::mib(2), 0);
    let mut reporting = driver.queue(3, 8, false, 4096);
    reporting.start(&mut device);
    let page = GuestAddress(1 << 20);
    driver.memory.write(page, &[9; 8192]).unwrap();
    reporting.add_raw(&[(GuestAddress(page.0 + 1), 8191, true)], vec![]);
    reporting.notify();
    reporting.wait();
    let mut bytes = [0; 8192];
    driver.memory.read(page, &mut bytes).unwrap();
    assert_eq!(bytes[..4096], [9; 4096]);
    assert_eq!(bytes[4096..], [0; 4096]);
}

#[test]
fn the_target_reaches_the_driver() {
    let mut device = BalloonSpec {
        target: ByteCount::mib(1),
        ..BalloonSpec::default()
    }
    .build()
    .unwrap();
    let mut driver = TestDriver::new(&mut device, ByteCount::mib(2), 0);
    let inflate = driver.queue(0, 8, false, 4096);
    inflate.start(&mut device);
    let config = |device: &Balloon| {
        let mut bytes = [0; 8];
        device.read_config(0, &mut bytes);
        u32::from_le_bytes(bytes[..4].try_into().unwrap())
    };
    assert_eq!(config(&device), 256);
    let handle = device.handle();
    handle.set_target(ByteCount::mib(64)).unwrap();
    assert_eq!(config(&device), 64 * 256);
    device.stop_queue(0).unwrap();
    assert_eq!(driver.interrupt.config_count(), 1);
    // The driver says what it did; it can't write the target.
    device.write_config(4, &512u32.to_le_bytes());
    device.write_config(0, &1u32.to_le_bytes());
    assert_eq!(handle.actual(), ByteCount::mib(2));
    assert_eq!(config(&device), 64 * 256);

    let state = device.save().unwrap();
    let mut other = BalloonSpec::default().build().unwrap();
    other.restore(&state).unwrap();
    assert_eq!(other.handle().target(), ByteCount::mib(64));
    assert_eq!(other.handle().actual(), ByteCount::mib(2));
}

#[test]
fn statistics_are_asked_for_and_answered_also_across_a_stop() {
    let mut device = BalloonSpec::default().build().unwrap();
    let mut driver = TestDriver::new(&mut device, ByteCount::mib(2), F_EVENT_IDX);
    let mut stats = driver.queue(2, 8, false, 1 << 14);
    stats.start(&mut device);
    let mut entries = Vec::new();
    for (tag, value) in [(4u16, 1000u64), (5, 2000), (99, 1)] {
        entries.extend(tag.to_le_bytes());
        entries.extend(value.to_le_bytes());
    }
    // The driver's first buffer is held until somebody asks.
    stats.submit(&[&[]], &[]);
    let state = device.stop_queue(2).unwrap().unwrap();
    assert_eq!((state.next_avail, state.next_used), (0, 0));
    device.start_queue(2, stats.resources(state)).unwrap();

    let handle = device.handle();
    let asking = std::thread::spawn(move || handle.statistics(PATIENCE));
    stats.wait();
    stats.submit(&[&entries], &[]);
    let statistics = asking.join().unwrap().unwrap();
    assert_eq!(
        (statistics.free, statistics.total),
        (Some(1000), Some(2000))
    );
    assert_eq!(statistics.available, None);

    let none = BalloonSpec::default().build().unwrap();
    let error = none
        .handle()
        .statistics(Duration::from_millis(10))
        .unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
}

#[test]
fn deflating_returns_the_buffers() {
    let mut device = BalloonSpec::default().build().unwrap();
    let mut driver = TestDriver::new(&mut device, ByteCount::mib(2), F_EVENT_IDX);
    let mut deflate = driver.queue(1, 8, false, 4096);
    deflate.start(&mut device);
    for _ in 0..20 {
        deflate.request(&[&page_list(&[1, 2])], &[]);
    }
}
