use std::sync::Arc;

use favo_types::ByteCount;
use proptest::prelude::*;

use super::super::device::{F_EVENT_IDX, F_INDIRECT_DESC, VirtioDevice};
use super::super::rng::RngSpec;
use super::super::testing::{DriverQueue, TestDriver};
use super::*;

fn driver(features: u64) -> TestDriver {
    let mut device = RngSpec {}.build().unwrap();
    TestDriver::new(&mut device, ByteCount::mib(4), features)
}

fn virtqueue(queue: &DriverQueue) -> Virtqueue {
    Virtqueue::new(0, 64, queue.resources(queue.state()), Arc::default()).unwrap()
}

#[test]
fn a_chain_is_taken_whole_and_in_order() {
    for indirect in [false, true] {
        let mut driver = driver(F_EVENT_IDX | F_INDIRECT_DESC);
        let mut ring = driver.queue(0, 8, indirect, 1 << 16);
        let mut device = virtqueue(&ring);
        assert!(device.pop().is_none());
        ring.add(&[b"abc", b"defg"], &[10, 20]);
        let chain = device.pop().unwrap();
        assert_eq!((chain.readable_bytes(), chain.writable_bytes()), (7, 30));
        let mut text = [0; 5];
        assert_eq!(
            read_segments(device.memory(), chain.readable(), 1, &mut text),
            5
        );
        assert_eq!(&text, b"bcdef");
        assert_eq!(
            write_segments(device.memory(), chain.writable(), 8, b"wxyz"),
            4
        );
        device.add_used(chain, 12);
        let completion = ring.poll().unwrap();
        assert_eq!(completion.written, 12);
        assert_eq!(&completion.data[8..12], b"wxyz");
    }
}

#[test]
fn slices_stop_at_both_ends() {
    let segments = [(0x1000, 4), (0x2000, 4)].map(|(address, length)| Segment {
        address: GuestAddress(address),
        length,
    });
    let slice: Vec<_> = slice_segments(&segments, 3, 100)
        .map(|s| (s.address.0, s.length))
        .collect();
    assert_eq!(slice, [(0x1003, 1), (0x2000, 4)]);
    assert_eq!(slice_segments(&segments, 8, 1).count(), 0);
}

#[test]
fn malformed_chains_come_back_unused_and_are_counted() {
    let ram = ByteCount::mib(4).bytes();
    let broken: [&[(u64, u32, bool)]; 4] = [
        // outside RAM; across its end; wrapping; readable after writable
        &[(ram, 1, true)],
        &[(ram - 1, 2, false)],
        &[(u64::MAX, 2, false)],
        &[(0x100, 8, true), (0x200, 8, false)],
    ];
    for buffers in broken {
        let mut driver = driver(0);
        let mut ring = driver.queue(0, 8, false, 1 << 12);
        let mut device = virtqueue(&ring);
        let buffers: Vec<_> = buffers
            .iter()
            .map(|&(address, length, writable)| (GuestAddress(address), length, writable))
            .collect();
        ring.add_raw(&buffers, vec![]);
        ring.add(&[b"good"], &[]);
        assert_eq!(device.pop().unwrap().readable_bytes(), 4);
        assert_eq!(ring.poll().unwrap().written, 0);
        assert_eq!(device.counters.malformed_chains.load(Ordering::Relaxed), 1);
        assert!(!device.is_broken());
    }
}

#[test]
fn a_looping_chain_is_malformed() {
    let mut driver = driver(0);
    let mut ring = driver.queue(0, 8, false, 1 << 12);
    let mut device = virtqueue(&ring);
    // Descriptor 0 points at itself.
    let mut descriptor = [0; 16];
    descriptor[8] = 4;
    descriptor[12] = 1;
    driver
        .memory
        .write(ring.state().descriptor_table, &descriptor)
        .unwrap();
    ring.publish(0);
    assert!(device.pop().is_none());
    assert_eq!(device.counters.malformed_chains.load(Ordering::Relaxed), 1);
}

#[test]
fn a_broken_ring_asks_for_a_reset() {
    // A head that is no descriptor.
    let mut driver1 = driver(0);
    let mut ring = driver1.queue(0, 8, false, 1 << 12);
    let mut device = virtqueue(&ring);
    ring.publish(8);
    assert!(device.pop().is_none());
    assert!(device.is_broken() && driver1.interrupt.reset_needed());

    // An index further ahead than the ring is long.
    let mut driver2 = driver(0);
    let ring = driver2.queue(0, 8, false, 1 << 12);
    let mut device = virtqueue(&ring);
    let index = GuestAddress(ring.state().available_ring.0 + 2);
    driver2.memory.write(index, &9u16.to_le_bytes()).unwrap();
    assert!(device.pop().is_none());
    assert!(device.is_broken() && driver2.interrupt.reset_needed());
}

#[test]
fn bad_rings_are_refused_at_start() {
    let mut driver = driver(0);
    let ring = driver.queue(0, 8, false, 1 << 12);
    let good = ring.state();
    let outside = GuestAddress(ByteCount::mib(4).bytes() - 16);
    for (state, error) in [
        (QueueState { size: 3, ..good }, QueueError::InvalidSize(3)),
        (QueueState { size: 0, ..good }, QueueError::InvalidSize(0)),
        (
            QueueState { size: 128, ..good },
            QueueError::InvalidSize(128),
        ),
        (
            QueueState {
                used_ring: GuestAddress(good.used_ring.0 + 2),
                ..good
            },
            QueueError::Misaligned,
        ),
        (
            QueueState {
                descriptor_table: outside,
                ..good
            },
            QueueError::OutsideRam,
        ),
        (
            QueueState {
                used_ring: outside,
                ..good
            },
            QueueError::OutsideRam,
        ),
        (
            QueueState {
                available_ring: GuestAddress(0),
                ..good
            },
            QueueError::OutsideRam,
        ),
    ] {
        let result = Virtqueue::new(0, 64, ring.resources(state), Arc::default());
        assert_eq!(result.err(), Some(error), "{state:?}");
    }
}

#[test]
fn a_driver_that_wants_no_interrupt_gets_none() {
    let mut driver = driver(0);
    let mut ring = driver.queue(0, 8, false, 1 << 12);
    let mut device = virtqueue(&ring);
    driver
        .memory
        .write(ring.state().available_ring, &1u16.to_le_bytes())
        .unwrap();
    ring.add(&[b"x"], &[]);
    let chain = device.pop().unwrap();
    device.add_used(chain, 0);
    device.signal();
    assert_eq!(driver.interrupt.queue_count(0), 0);
}

#[test]
fn a_batch_is_one_interrupt() {
    let mut driver = driver(F_EVENT_IDX);
    let mut ring = driver.queue(0, 8, false, 1 << 12);
    let mut device = virtqueue(&ring);
    for _ in 0..5 {
        ring.add(&[b"x"], &[]);
    }
    while let Some(chain) = device.pop() {
        device.add_used(chain, 0);
    }
    device.signal();
    device.signal();
    assert_eq!(driver.interrupt.queue_count(0), 1);
    assert_eq!(std::iter::from_fn(|| ring.poll()).count(), 5);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever lies in the rings: popping ends, and every chain is RAM.
    #[test]
    fn garbage_rings_are_survived(
        garbage in prop::collection::vec(any::<u8>(), 0x3000),
        small in any::<bool>(),
        index in any::<u16>(),
        event in any::<bool>(),
    ) {
        let mut driver = driver(if event { F_EVENT_IDX } else { 0 });
        let ring = driver.queue(0, 8, false, 1 << 12);
        let mut garbage = garbage;
        if small {
            // Mostly plausible descriptors: small addresses, lengths, indices.
            for descriptor in garbage.chunks_exact_mut(16) {
                descriptor[3..8].fill(0);
                descriptor[10..12].fill(0);
                descriptor[13] = 0;
                descriptor[14] %= 8;
                descriptor[15] = 0;
            }
        }
        driver.memory.write(GuestAddress(0x1000), &garbage).unwrap();
        driver.memory.write(
            GuestAddress(ring.state().available_ring.0 + 2),
            &(index % 12).to_le_bytes(),
        ).unwrap();
        let mut device = virtqueue(&ring);
        for _ in 0..64 {
            let Some(chain) = device.pop() else { break };
            for segment in chain.readable().iter().chain(chain.writable()) {
                prop_assert!(driver.memory.find(segment.address, segment.length.into()).is_some());
            }
            device.add_used(chain, 0);
            device.signal();
        }
    }
}

#[test]
fn the_device_name_is_in_the_error() {
    let mut device = RngSpec {}.build().unwrap();
    let mut driver = driver(0);
    let ring = driver.queue(0, 8, false, 1 << 12);
    let error = device
        .start_queue(3, ring.resources(ring.state()))
        .unwrap_err();
    assert_eq!(error.to_string(), "virtio-rng has no queue 3");
}
