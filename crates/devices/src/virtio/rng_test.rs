use favo_types::ByteCount;

use super::super::device::{F_EVENT_IDX, F_INDIRECT_DESC};
use super::super::testing::TestDriver;
use super::*;

#[test]
fn fills_buffers_with_different_bytes() {
    let mut rng = RngSpec {}.build().unwrap();
    let mut driver = TestDriver::new(&mut rng, ByteCount::mib(2), F_EVENT_IDX | F_INDIRECT_DESC);
    let mut queue = driver.queue(0, 8, true, 1 << 16);
    queue.start(&mut rng);
    let first = queue.request(&[], &[16, 48]);
    assert_eq!(first.written, 64);
    let second = queue.request(&[], &[64]);
    assert_ne!(first.data, second.data);
    assert_ne!(second.data, vec![0; 64]);
}

#[test]
fn one_chain_gets_a_bounded_answer() {
    let mut rng = RngSpec {}.build().unwrap();
    let mut driver = TestDriver::new(&mut rng, ByteCount::mib(2), 0);
    let mut queue = driver.queue(0, 8, false, 1 << 17);
    queue.start(&mut rng);
    let completion = queue.request(&[], &[1 << 16]);
    assert_eq!(completion.written as usize, MAX_CHAIN_BYTES);
    assert!(completion.data[MAX_CHAIN_BYTES..].iter().all(|&b| b == 0));
}

#[test]
fn more_chains_than_one_step_serves_all_come_back() {
    let mut rng = RngSpec {}.build().unwrap();
    let mut driver = TestDriver::new(&mut rng, ByteCount::mib(4), F_EVENT_IDX);
    let mut queue = driver.queue(0, 64, false, 1 << 20);
    queue.start(&mut rng);
    for _ in 0..20 {
        for _ in 0..64 {
            queue.add(&[], &[32]);
        }
        queue.notify();
        for _ in 0..64 {
            assert_eq!(queue.wait().written, 32);
        }
    }
}

#[test]
fn a_stopped_queue_resumes_where_it_was() {
    let mut rng = RngSpec {}.build().unwrap();
    let mut driver = TestDriver::new(&mut rng, ByteCount::mib(2), F_EVENT_IDX);
    let mut queue = driver.queue(0, 8, false, 1 << 16);
    queue.start(&mut rng);
    queue.request(&[], &[32]);
    let state = rng.stop_queue(0).unwrap().unwrap();
    assert_eq!((state.next_avail, state.next_used), (1, 1));
    assert_eq!(rng.stop_queue(0).unwrap(), None);

    // Added while nobody serves: found at the next start, without a kick.
    queue.add(&[], &[32]);
    rng.start_queue(0, queue.resources(state)).unwrap();
    assert_eq!(queue.wait().written, 32);
}
