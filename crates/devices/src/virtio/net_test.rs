use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use favo_net::link::{Offload, PartialChecksum, SegmentKind, Segmentation};
use favo_types::ByteCount;

use super::super::device::{F_EVENT_IDX, F_INDIRECT_DESC};
use super::super::event::EventFd;
use super::super::testing::{Completion, DriverQueue, PATIENCE, TestDriver};
use super::limit::Rate;
use super::*;

const MAC: Mac = [2, 0, 0, 0, 0, 1];
const HEADER: usize = header::HEADER_SIZE;

/// The network's end of a cable.
#[derive(Clone)]
struct Network(Arc<Wire>);

struct Wire {
    to_guest: Mutex<VecDeque<(Vec<u8>, Offload)>>,
    from_guest: Mutex<Vec<(Vec<u8>, Offload)>>,
    flushes: AtomicU16,
    active: AtomicBool,
    ready: EventFd,
}

impl Network {
    fn new() -> Self {
        Self(Arc::new(Wire {
            to_guest: Mutex::default(),
            from_guest: Mutex::default(),
            flushes: AtomicU16::new(0),
            active: AtomicBool::new(true),
            ready: EventFd::new().unwrap(),
        }))
    }

    fn send(&self, frame: &[u8], offload: Offload) {
        let mut queue = self.0.to_guest.lock().unwrap();
        queue.push_back((frame.to_vec(), offload));
        self.0.ready.signal();
    }

    fn taken(&self) -> Vec<(Vec<u8>, Offload)> {
        std::mem::take(&mut self.0.from_guest.lock().unwrap())
    }
}

impl Link for Network {
    fn send(&mut self, frame: &[u8], offload: Offload) {
        let mut frames = self.0.from_guest.lock().unwrap();
        frames.push((frame.to_vec(), offload));
    }

    fn flush(&mut self) {
        self.0.flushes.fetch_add(1, Ordering::SeqCst);
    }

    fn receive(&mut self, frame: &mut Vec<u8>) -> Option<Offload> {
        let mut queue = self.0.to_guest.lock().unwrap();
        let Some((next, offload)) = queue.pop_front() else {
            self.0.ready.take();
            return None;
        };
        frame.extend(next);
        Some(offload)
    }

    fn ready(&self) -> BorrowedFd<'_> {
        self.0.ready.as_fd()
    }

    fn set_active(&mut self, active: bool) {
        self.0.active.store(active, Ordering::SeqCst);
    }
}

struct Guest {
    device: Net,
    driver: TestDriver,
    rx: DriverQueue,
    tx: DriverQueue,
    networks: Vec<Network>,
}

impl Guest {
    fn new(spec: &NetSpec, pairs: usize, without: u64) -> Self {
        let networks: Vec<_> = (0..pairs).map(|_| Network::new()).collect();
        let links = networks
            .iter()
            .map(|network| Box::new(network.clone()) as Box<dyn Link>)
            .collect();
        let mut device = spec.build(links).unwrap();
        let transport = F_EVENT_IDX | F_INDIRECT_DESC;
        let mut driver = TestDriver::new(&mut device, ByteCount::mib(32), transport);
        device.set_features(driver.features & !without);
        let rx = driver.queue(0, 64, false, 8 << 20);
        let tx = driver.queue(1, 64, true, 8 << 20);
        rx.start(&mut device);
        tx.start(&mut device);
        Self {
            device,
            driver,
            rx,
            tx,
            networks,
        }
    }

    fn plain() -> Self {
        Self::new(&NetSpec::new(MAC), 1, 0)
    }

    fn network(&self) -> &Network {
        &self.networks[0]
    }

    fn count(&self, name: &str, detail: Option<&str>) -> u64 {
        let counters = self.device.counters();
        let found = counters
            .iter()
            .find(|counter| counter.name == name && counter.detail.as_deref() == detail);
        found.expect("such a counter").count
    }

    fn control(&mut self) -> DriverQueue {
        let index = self.device.control_queue();
        let queue = self.driver.queue(index, 8, false, 1 << 16);
        queue.start(&mut self.device);
        queue
    }

    fn wait_count(&self, name: &str, detail: Option<&str>, least: u64) {
        let until = Instant::now() + PATIENCE;
        while self.count(name, detail) < least {
            assert!(
                Instant::now() < until,
                "{name} {detail:?} stays below {least}"
            );
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// A frame for the guest, of any kind.
fn frame(length: usize) -> Vec<u8> {
    let mut frame: Vec<u8> = (0..length).map(|at| (at * 7 / 3) as u8).collect();
    frame[..6].copy_from_slice(&MAC);
    frame
}

/// A TCP frame whose checksum and cutting are left to others.
fn tcp4(payload: usize) -> (Vec<u8>, Offload) {
    let mut frame = frame(54 + payload);
    frame[12..34].fill(0);
    frame[12..16].copy_from_slice(&[8, 0, 0x45, 0]);
    frame[23] = 6;
    frame[34..54].fill(0);
    frame[46] = 0x50;
    let offload = Offload {
        checksum: Some(PartialChecksum {
            start: 34,
            offset: 16,
        }),
        segmentation: Some(Segmentation {
            kind: SegmentKind::Tcp4,
            size: 1000,
            header: 54,
        }),
        checked: false,
    };
    (frame, offload)
}

fn command(queue: &mut DriverQueue, bytes: &[u8]) -> u8 {
    let completion = queue.request(&[&bytes[..2], &bytes[2..]], &[1]);
    assert_eq!(completion.written, 1);
    completion.data[0]
}

/// The frame that lies in these buffers, with its header.
fn merge(completions: &[Completion]) -> Vec<u8> {
    completions
        .iter()
        .flat_map(|completion| completion.data[..completion.written as usize].to_vec())
        .collect()
}

#[test]
fn frames_cross_both_ways() {
    let mut guest = Guest::plain();
    let sent = frame(1514);
    guest.tx.request(&[&[0; HEADER], &sent], &[]);
    guest
        .tx
        .request(&[&[&[0; HEADER][..], &sent[..60]].concat()], &[]);
    let taken = guest.network().taken();
    assert_eq!(taken[0], (sent.clone(), Offload::default()));
    assert_eq!(taken[1].0, sent[..60]);
    assert!(guest.network().0.flushes.load(Ordering::SeqCst) > 0);

    // Before the guest has a buffer, and after.
    guest.network().send(&sent, Offload::default());
    let got = guest.rx.request(&[], &[2048]);
    assert_eq!(got.written as usize, HEADER + sent.len());
    assert_eq!(got.data[..HEADER], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    assert_eq!(got.data[HEADER..got.written as usize], sent);
    guest.rx.submit(&[], &[HEADER as u32, 2048]);
    guest.network().send(&sent[..100], Offload::default());
    let got = guest.rx.wait();
    assert_eq!(got.data[HEADER..got.written as usize], sent[..100]);
    assert_eq!(guest.count("frames-from-guest", None), 2);
    assert_eq!(guest.count("bytes-to-guest", None), 1614);
}

#[test]
fn many_frames_keep_their_order() {
    let mut guest = Guest::plain();
    for round in 0u16..40 {
        for number in 0u16..32 {
            let mut frame = frame(64);
            frame[20..22].copy_from_slice(&(32 * round + number).to_le_bytes());
            guest.tx.add(&[&[0; HEADER], &frame], &[]);
            guest.network().send(&frame, Offload::default());
            guest.rx.add(&[], &[1526]);
        }
        guest.tx.notify();
        guest.rx.notify();
        for number in 0u16..32 {
            guest.tx.wait();
            let got = guest.rx.wait();
            let at = HEADER + 20;
            assert_eq!(got.data[at..at + 2], (32 * round + number).to_le_bytes());
        }
    }
    let order: Vec<u16> = guest
        .network()
        .taken()
        .iter()
        .map(|(frame, _)| u16::from_le_bytes([frame[20], frame[21]]))
        .collect();
    assert_eq!(order, (0..1280).collect::<Vec<_>>());
}

#[test]
fn a_large_frame_fills_several_buffers_at_once() {
    let mut guest = Guest::plain();
    let (large, offload) = tcp4(60_000);
    guest.network().send(&large, offload);
    // Not enough buffers yet: none is used.
    for _ in 0..20 {
        guest.rx.add(&[], &[1536]);
    }
    guest.rx.notify();
    assert!(guest.rx.wait_for(Duration::from_millis(30)).is_none());
    for _ in 0..30 {
        guest.rx.add(&[], &[1536]);
    }
    guest.rx.notify();
    let mut parts = vec![guest.rx.wait()];
    let count = u16::from_le_bytes([parts[0].data[10], parts[0].data[11]]);
    assert_eq!(usize::from(count), (large.len() + HEADER).div_ceil(1536));
    for _ in 1..count {
        // All at once: the driver need not wait for the others.
        parts.push(guest.rx.poll().expect("the whole frame"));
    }
    let merged = merge(&parts);
    assert!(merged[HEADER..] == large);
    // Partial checksum, TCP over IPv4, 54 bytes of headers, pieces of 1,000.
    assert_eq!(merged[..10], [1, 1, 54, 0, 0xe8, 3, 34, 0, 16, 0]);
    assert_eq!(
        guest.device.stop_queue(0).unwrap().unwrap().next_avail,
        count
    );
}

#[test]
fn a_driver_that_takes_no_large_frames_gets_small_ones() {
    for without in [feature::GUEST_TSO4, feature::GUEST_CSUM] {
        let mut guest = Guest::new(&NetSpec::new(MAC), 1, without);
        let (large, offload) = tcp4(2500);
        for _ in 0..4 {
            guest.rx.add(&[], &[1536]);
        }
        guest.rx.notify();
        guest.network().send(&large, offload);
        let mut payload = Vec::<u8>::new();
        for length in [1000, 1000, 500] {
            let got = guest.rx.wait();
            assert_eq!(got.written as usize, HEADER + 54 + length);
            // Unfinished only for one that takes that.
            assert_eq!(got.data[0], u8::from(without != feature::GUEST_CSUM));
            assert_eq!(got.data[1], 0);
            payload.extend(&got.data[HEADER + 54..got.written as usize]);
        }
        assert!(payload == large[54..]);
    }
}

#[test]
fn a_driver_without_checksums_gets_finished_ones() {
    let mut guest = Guest::new(&NetSpec::new(MAC), 1, feature::GUEST_CSUM);
    let (frame, offload) = tcp4(100);
    let offload = Offload {
        segmentation: None,
        ..offload
    };
    guest.network().send(&frame, offload);
    let got = guest.rx.request(&[], &[1536]);
    assert_eq!(got.data[0], 0);
    let mut expected = frame;
    favo_net::offload::finish_checksum(&mut expected, offload.checksum.unwrap()).unwrap();
    assert_eq!(got.data[HEADER..got.written as usize], expected);
}

#[test]
fn what_a_guest_leaves_undone_is_passed_on() {
    let mut guest = Guest::plain();
    let (large, offload) = tcp4(64_000);
    let header = header::encode(&offload, u64::MAX);
    guest
        .tx
        .request(&[&header, &large[..54], &large[54..]], &[]);
    assert!(guest.network().taken() == [(large, offload)]);
}

#[test]
fn nonsense_from_a_guest_is_dropped_counted_and_returned() {
    let mut guest = Guest::plain();
    let (large, offload) = tcp4(9000);
    let good = header::encode(&offload, u64::MAX);
    let mut bad = good;
    bad[1] = 3;
    guest.tx.request(&[&bad, &large], &[]);
    guest.tx.request(&[&[0; HEADER], &large], &[]);
    guest.tx.request(&[&[0; 5]], &[]);
    guest.tx.request(&[], &[100]);
    guest.tx.request(&[&[0; HEADER], &[0; 13]], &[]);
    guest.tx.request(&[&good, &large[..53]], &[]);
    guest.tx.request(&[&good, &vec![0; 70_000]], &[]);
    let mut bad = good;
    bad[7] = 0xff;
    guest.tx.request(&[&bad, &large], &[]);
    assert!(guest.network().taken().is_empty());
    let dropped = |reason| guest.count("dropped-from-guest", Some(reason));
    assert_eq!(dropped("too-short"), 3);
    assert_eq!(dropped("too-long"), 2);
    assert_eq!(dropped("segmentation"), 2);
    assert_eq!(dropped("checksum"), 1);
    // And the card goes on.
    guest.tx.request(&[&good, &large], &[]);
    assert_eq!(guest.network().taken().len(), 1);
}

#[test]
fn buffers_too_small_for_a_frame_cost_only_that_frame() {
    for without in [0, feature::MRG_RXBUF] {
        let mut guest = Guest::new(&NetSpec::new(MAC), 1, without);
        for _ in 0..64 {
            guest.rx.add(&[], &[20]);
        }
        guest.rx.notify();
        guest.network().send(&frame(1514), Offload::default());
        guest.wait_count("dropped-to-guest", Some("no-room"), 1);
        let returned = if without == 0 { 64 } else { 1 };
        for _ in 0..returned {
            assert_eq!(guest.rx.wait().written, 0);
        }
        // The next one fits.
        guest.network().send(&frame(14), Offload::default());
        if without == 0 {
            guest.rx.submit(&[], &[20]);
            guest.rx.submit(&[], &[20]);
            assert_eq!(merge(&[guest.rx.wait(), guest.rx.wait()]).len(), 26);
        } else {
            guest.wait_count("dropped-to-guest", Some("no-room"), 2);
        }
    }
}

#[test]
fn the_configuration_space_says_what_the_card_is() {
    let spec = NetSpec {
        mtu: 9000,
        ..NetSpec::new(MAC)
    };
    let mut guest = Guest::new(&spec, 3, 0);
    let mut config = [0xff; 14];
    guest.device.read_config(0, &mut config);
    assert_eq!(config, [2, 0, 0, 0, 0, 1, 1, 0, 3, 0, 0x28, 0x23, 0, 0]);
    guest.device.handle().set_link_up(false).unwrap();
    guest.device.handle().announce().unwrap();
    let mut control = guest.control();
    // A command behind them: both were done.
    assert_eq!(command(&mut control, &[9, 9, 9]), 1);
    guest.device.read_config(0, &mut config);
    assert_eq!(config[6], 2);
    assert_eq!(guest.driver.interrupt.config_count(), 2);
    assert_eq!(control.request(&[&[3, 0]], &[1]).data, [0]);
    guest.device.read_config(0, &mut config);
    assert_eq!(config[6], 0);
}

#[test]
fn the_control_queue_sets_filters() {
    let mut guest = Guest::plain();
    let mut control = guest.control();
    assert_eq!(command(&mut control, &[0, 0, 0]), 0);
    let mut other = frame(60);
    other[5] = 9;
    guest.network().send(&other, Offload::default());
    guest.network().send(&frame(60), Offload::default());
    let got = guest.rx.request(&[], &[1536]);
    assert_eq!(got.data[HEADER..HEADER + 6], MAC);
    assert_eq!(guest.count("dropped-to-guest", Some("filtered")), 1);

    assert_eq!(command(&mut control, &[1, 1, 2, 0, 0, 0, 0, 9]), 0);
    let mut mac = [0; 6];
    guest.device.read_config(0, &mut mac);
    assert_eq!(mac, [2, 0, 0, 0, 0, 9]);
    // Not with one queue pair; nonsense; no room for an answer.
    assert_eq!(command(&mut control, &[4, 0, 1, 0]), 1);
    assert_eq!(command(&mut control, &[1, 0, 0xff, 0xff, 0xff, 0xff]), 1);
    assert_eq!(control.request(&[&[0, 0, 0]], &[]).written, 0);
    assert_eq!(control.request(&[&[0; 20_000]], &[1]).data, [1]);
    guest.device.reset();
    guest.device.read_config(0, &mut mac);
    assert_eq!(mac, MAC);
}

#[test]
fn queue_pairs_are_used_once_the_driver_says_so() {
    let mut guest = Guest::new(&NetSpec::new(MAC), 2, 0);
    let mut rx = guest.driver.queue(2, 16, false, 1 << 16);
    let mut tx = guest.driver.queue(3, 16, false, 1 << 16);
    rx.start(&mut guest.device);
    tx.start(&mut guest.device);
    rx.submit(&[], &[1536]);
    let second = guest.networks[1].clone();
    assert!(!second.0.active.load(Ordering::SeqCst));
    second.send(&frame(60), Offload::default());
    guest.wait_count("dropped-to-guest", Some("inactive-queue"), 1);

    assert_eq!(guest.device.control_queue(), 4);
    let mut control = guest.control();
    assert_eq!(command(&mut control, &[4, 0, 3, 0]), 1);
    assert_eq!(command(&mut control, &[4, 0, 2, 0]), 0);
    second.send(&frame(61), Offload::default());
    assert_eq!(rx.wait().written as usize, HEADER + 61);
    assert!(second.0.active.load(Ordering::SeqCst));
    tx.request(&[&[0; HEADER], &frame(60)], &[]);
    assert_eq!(second.taken().len(), 1);
    assert!(guest.network().taken().is_empty());
}

#[test]
fn a_pair_nobody_uses_any_more_is_told_before_a_frame_comes() {
    let mut guest = Guest::new(&NetSpec::new(MAC), 2, 0);
    let second = guest.networks[1].clone();
    let mut control = guest.control();
    let wait = |active: bool| {
        let until = Instant::now() + PATIENCE;
        while second.0.active.load(Ordering::SeqCst) != active {
            assert!(Instant::now() < until, "never {active}");
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    wait(false);
    assert_eq!(command(&mut control, &[4, 0, 2, 0]), 0);
    wait(true);
    assert_eq!(command(&mut control, &[4, 0, 1, 0]), 0);
    wait(false);
    assert!(guest.network().0.active.load(Ordering::SeqCst));
}

#[test]
fn nothing_crosses_a_link_that_is_down_and_all_of_it_is_counted() {
    let mut guest = Guest::plain();
    let handle = guest.device.handle();
    let status = |guest: &Guest| {
        let mut status = [0; 2];
        guest.device.read_config(6, &mut status);
        u16::from_le_bytes(status)
    };
    assert_eq!(status(&guest) & STATUS_LINK_UP, STATUS_LINK_UP);
    guest.rx.submit(&[], &[1536]);
    handle.set_link_up(false).unwrap();
    assert_eq!(status(&guest) & STATUS_LINK_UP, 0);
    let until = Instant::now() + PATIENCE;
    while guest.network().0.active.load(Ordering::SeqCst) {
        assert!(Instant::now() < until, "the network was not told");
        std::thread::sleep(Duration::from_millis(1));
    }
    guest.network().send(&frame(60), Offload::default());
    guest.wait_count("dropped-to-guest", Some("link-down"), 1);
    guest.tx.request(&[&[0; HEADER], &frame(60)], &[]);
    assert_eq!(guest.count("dropped-from-guest", Some("link-down")), 1);
    assert!(guest.network().taken().is_empty());
    assert_eq!(guest.count("frames-to-guest", None), 0);

    // The same buffer takes the first frame once it is up again.
    handle.set_link_up(true).unwrap();
    assert_eq!(status(&guest) & STATUS_LINK_UP, STATUS_LINK_UP);
    guest.network().send(&frame(61), Offload::default());
    assert_eq!(guest.rx.wait().written as usize, HEADER + 61);
    guest.tx.request(&[&[0; HEADER], &frame(62)], &[]);
    assert_eq!(guest.network().taken().len(), 1);
}

#[test]
fn without_several_pairs_the_control_queue_is_the_third() {
    let mut guest = Guest::new(&NetSpec::new(MAC), 4, feature::MQ);
    assert_eq!(guest.device.control_queue(), 2);
    let mut control = guest.control();
    assert_eq!(command(&mut control, &[0, 0, 0]), 0);
    assert!(guest.device.stop_queue(2).unwrap().is_some());
}

#[test]
fn a_stopped_card_resumes_where_it_was() {
    let mut guest = Guest::plain();
    let mut control = guest.control();
    assert_eq!(command(&mut control, &[0, 0, 0]), 0);
    guest.rx.submit(&[], &[1536]);
    guest.tx.request(&[&[0; HEADER], &frame(60)], &[]);
    let states = [0, 1, 2].map(|index| guest.device.stop_queue(index).unwrap().unwrap());
    assert_eq!(states.map(|state| state.next_avail), [0, 1, 1]);
    let saved = guest.device.save().unwrap();

    // Into another card, with other cables.
    let network = Network::new();
    let links = |network: &Network| vec![Box::new(network.clone()) as Box<dyn Link>];
    let mut device = NetSpec::new(MAC).build(links(&network)).unwrap();
    device.restore(&saved).unwrap();
    device.set_features(guest.driver.features);
    guest.tx.add(&[&[0; HEADER], &frame(61)], &[]);
    let mut other = frame(70);
    other[5] = 9;
    network.send(&other, Offload::default());
    network.send(&frame(62), Offload::default());
    for (queue, state) in [&guest.rx, &guest.tx].into_iter().zip(states) {
        let index = u16::from(std::ptr::eq(queue, &raw const guest.tx));
        device.start_queue(index, queue.resources(state)).unwrap();
    }
    guest.tx.wait();
    assert_eq!(network.taken()[0].0.len(), 61);
    // The filter came along.
    assert_eq!(guest.rx.wait().written as usize, HEADER + 62);

    let jumbo = NetSpec {
        mtu: 9000,
        ..NetSpec::new(MAC)
    };
    let mut different = jumbo.build(links(&network)).unwrap();
    assert!(different.restore(&saved).is_err());
}

#[test]
fn rates_hold_in_both_directions() {
    let packets = |per_second, burst| RateLimit {
        packets: Some(Rate { per_second, burst }),
        bytes: None,
    };
    let spec = NetSpec {
        from_guest: packets(20, 2),
        to_guest: packets(20, 2),
        ..NetSpec::new(MAC)
    };
    let mut guest = Guest::new(&spec, 1, 0);
    let start = Instant::now();
    for _ in 0..6 {
        guest.tx.add(&[&[0; HEADER], &frame(60)], &[]);
        guest.rx.add(&[], &[1536]);
        guest.network().send(&frame(60), Offload::default());
    }
    guest.tx.notify();
    guest.rx.notify();
    for _ in 0..6 {
        guest.tx.wait();
        guest.rx.wait();
    }
    // Two at once, four more at 20 a second; later is possible, earlier not.
    assert!(start.elapsed() >= Duration::from_millis(195));

    let handle = guest.device.handle();
    assert!(handle.set_limits(packets(0, 1), packets(1, 1)).is_err());
    let (slow, none) = (packets(1, 1), RateLimit::default());
    handle.set_limits(slow, slow).unwrap();
    guest.tx.request(&[&[0; HEADER], &frame(60)], &[]);
    guest.tx.submit(&[&[0; HEADER], &frame(60)], &[]);
    handle.set_limits(none, none).unwrap();
    guest.tx.wait();
}

#[test]
fn a_wrong_description_is_refused() {
    let build = |spec: NetSpec, pairs: usize| {
        let links = (0..pairs).map(|_| Box::new(Network::new()) as Box<dyn Link>);
        spec.build(links.collect())
    };
    let right = NetSpec::new(MAC);
    assert!(build(right.clone(), 0).is_err());
    assert!(build(right.clone(), 17).is_err());
    for mtu in [0, 67, 65_521] {
        let spec = NetSpec {
            mtu,
            ..right.clone()
        };
        assert!(build(spec, 1).is_err());
    }
    assert!(build(NetSpec::new([1, 0, 0, 0, 0, 1]), 1).is_err());
    assert!(build(NetSpec::new([0; 6]), 1).is_err());
    assert!(build(right, 16).is_ok());
}
