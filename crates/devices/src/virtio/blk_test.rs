use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::sync::Mutex;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use favo_types::ByteCount;
use proptest::prelude::*;

use super::super::device::{F_EVENT_IDX, F_INDIRECT_DESC};
use super::super::event::EventFd;
use super::super::testing::{Completion, DriverQueue, TestDriver};
use super::backend::{BlockCompletion, BlockOperation, BlockQueue, RawBuffer};
use super::*;

const SIZE: u64 = 8 << 20;

/// A raw file, each queue served by a thread that may take its time.
struct FileDisk {
    file: Arc<File>,
    info: BlockInfo,
    delay: Duration,
    fail: bool,
    log: Arc<Mutex<Vec<String>>>,
}

impl FileDisk {
    fn new() -> Self {
        let file = tempfile::tempfile().unwrap();
        file.set_len(SIZE).unwrap();
        Self {
            file: Arc::new(file),
            info: BlockInfo {
                capacity: SIZE,
                logical_block_size: 512,
                physical_block_size: 4096,
                read_only: false,
                discard: true,
                write_zeroes: true,
            },
            delay: Duration::ZERO,
            fail: false,
            log: Arc::default(),
        }
    }
}

enum Owned {
    Transfer(bool, u64, Vec<RawBuffer>),
    Flush,
    Zero(u64, u64),
}

struct FileQueue {
    batch: Vec<(u64, Owned)>,
    work: Sender<Vec<(u64, Owned)>>,
    done: Arc<(Mutex<Vec<BlockCompletion>>, EventFd)>,
    log: Arc<Mutex<Vec<String>>>,
}

impl BlockDevice for FileDisk {
    fn info(&self) -> BlockInfo {
        self.info
    }

    fn queue(&self, _depth: u16) -> io::Result<Box<dyn BlockQueue>> {
        let (work, batches) = channel::<Vec<(u64, Owned)>>();
        let done = Arc::new((Mutex::new(Vec::new()), EventFd::new()?));
        let (file, delay, fail) = (self.file.clone(), self.delay, self.fail);
        let results = done.clone();
        std::thread::spawn(move || {
            for batch in batches {
                for (token, operation) in batch {
                    std::thread::sleep(delay);
                    let result = if fail {
                        Err(io::ErrorKind::StorageFull.into())
                    } else {
                        perform(&file, operation)
                    };
                    results
                        .0
                        .lock()
                        .unwrap()
                        .push(BlockCompletion { token, result });
                    results.1.signal();
                }
            }
        });
        Ok(Box::new(FileQueue {
            batch: Vec::new(),
            work,
            done,
            log: self.log.clone(),
        }))
    }
}

fn perform(file: &File, operation: Owned) -> io::Result<()> {
    match operation {
        Owned::Transfer(write, mut offset, buffers) => {
            for RawBuffer { pointer, length } in buffers {
                // SAFETY: the device vouches for the buffers (`submit`).
                let result = unsafe {
                    if write {
                        libc::pwrite(file.as_raw_fd(), pointer.cast(), length, offset as i64)
                    } else {
                        libc::pread(file.as_raw_fd(), pointer.cast(), length, offset as i64)
                    }
                };
                assert_eq!(result, length as isize);
                offset += length as u64;
            }
            Ok(())
        }
        Owned::Flush => file.sync_data(),
        Owned::Zero(offset, length) => file.write_all_at(&vec![0; length as usize], offset),
    }
}

impl BlockQueue for FileQueue {
    unsafe fn submit(&mut self, token: u64, operation: BlockOperation<'_>) {
        let (text, owned) = match operation {
            BlockOperation::Read { offset, buffers } => {
                ("read", Owned::Transfer(false, offset, buffers.to_vec()))
            }
            BlockOperation::Write { offset, buffers } => {
                ("write", Owned::Transfer(true, offset, buffers.to_vec()))
            }
            BlockOperation::Flush => ("flush", Owned::Flush),
            BlockOperation::Discard { offset, length } => ("discard", Owned::Zero(offset, length)),
            BlockOperation::WriteZeroes {
                offset,
                length,
                may_unmap,
            } => (
                if may_unmap { "unmap" } else { "zero" },
                Owned::Zero(offset, length),
            ),
        };
        self.log.lock().unwrap().push(text.into());
        self.batch.push((token, owned));
    }

    fn commit(&mut self) -> io::Result<()> {
        self.log.lock().unwrap().push("commit".into());
        self.work
            .send(std::mem::take(&mut self.batch))
            .map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    fn complete(&mut self, completions: &mut Vec<BlockCompletion>) {
        self.done.1.take();
        completions.append(&mut self.done.0.lock().unwrap());
    }

    fn event(&self) -> BorrowedFd<'_> {
        self.done.1.as_fd()
    }
}

fn header(kind: u32, sector: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&kind.to_le_bytes());
    bytes[8..].copy_from_slice(&sector.to_le_bytes());
    bytes
}

fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    let mut bytes = sector.to_le_bytes().to_vec();
    bytes.extend(sectors.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes
}

fn status(completion: &Completion) -> u8 {
    *completion.data.last().unwrap()
}

struct Guest {
    device: Blk,
    driver: TestDriver,
    queue: DriverQueue,
}

fn guest_with(disk: FileDisk, features: u64, indirect: bool) -> Guest {
    let spec = BlkSpec {
        queues: 2,
        serial: "favo-test".into(),
    };
    let mut device = spec.build(Arc::new(disk)).unwrap();
    let mut driver = TestDriver::new(&mut device, ByteCount::mib(16), features);
    let queue = driver.queue(0, 128, indirect, 4 << 20);
    queue.start(&mut device);
    Guest {
        device,
        driver,
        queue,
    }
}

fn guest(disk: FileDisk) -> Guest {
    guest_with(disk, F_EVENT_IDX | F_INDIRECT_DESC, true)
}

fn write(queue: &mut DriverQueue, sector: u64, data: &[u8]) -> u8 {
    status(&queue.request(&[&header(1, sector), data], &[1]))
}

fn read(queue: &mut DriverQueue, sector: u64, length: u32) -> Vec<u8> {
    let mut completion = queue.request(&[&header(0, sector)], &[length, 1]);
    assert_eq!(completion.data.pop(), Some(0));
    assert_eq!(completion.written, length + 1);
    completion.data
}

#[test]
fn what_is_written_is_read_back_in_every_ring_format() {
    for features in [
        0,
        F_EVENT_IDX,
        F_INDIRECT_DESC,
        F_EVENT_IDX | F_INDIRECT_DESC,
    ] {
        let indirect = features & F_INDIRECT_DESC != 0;
        let mut guest = guest_with(FileDisk::new(), features, indirect);
        let queue = &mut guest.queue;
        for round in 0..50u64 {
            let data: Vec<u8> = (0..8192u64).map(|i| (i * 31 + round) as u8).collect();
            assert_eq!(write(queue, round * 16, &data), 0);
            assert!(read(queue, round * 16, 8192) == data);
            assert!(read(queue, round * 16 + 3, 512) == data[1536..2048]);
        }
        // Buffers in many odd pieces, the status in the middle of nowhere.
        let completion = queue.request(&[&header(0, 0)], &[1, 511, 1000, 24, 1]);
        assert_eq!(status(&completion), 0);
        assert_eq!(completion.data[600], (600u64 * 31) as u8);
    }
}

#[test]
fn many_requests_at_once_are_one_batch() {
    let disk = FileDisk::new();
    let log = disk.log.clone();
    let mut guest = guest_with(disk, F_EVENT_IDX, false);
    let state = guest.device.stop_queue(0).unwrap().unwrap();
    for i in 0..32u64 {
        guest.queue.add(&[&header(1, i), &[i as u8; 512]], &[1]);
    }
    let resources = guest.queue.resources(state);
    guest.device.start_queue(0, resources).unwrap();
    for _ in 0..32 {
        assert_eq!(status(&guest.queue.wait()), 0);
    }
    let log = log.lock().unwrap();
    let commit = log.iter().position(|entry| entry == "commit").unwrap();
    assert_eq!(commit, 32, "{log:?}");
}

#[test]
fn flush_discard_and_write_zeroes_reach_the_disk() {
    let disk = FileDisk::new();
    let log = disk.log.clone();
    let mut guest = guest(disk);
    let queue = &mut guest.queue;
    assert_eq!(write(queue, 0, &[7; 4096]), 0);
    assert_eq!(status(&queue.request(&[&header(4, 0)], &[1])), 0);
    let ranges = [range(1, 2, 0), range(5, 1, 1)].concat();
    assert_eq!(status(&queue.request(&[&header(13, 0), &ranges], &[1])), 0);
    let data = read(queue, 0, 4096);
    for sector in 0..8 {
        let expected = if [1, 2, 5].contains(&sector) { 0 } else { 7 };
        assert_eq!(data[sector * 512], expected, "sector {sector}");
    }
    let discard = range(0, 1, 0);
    assert_eq!(status(&queue.request(&[&header(11, 0), &discard], &[1])), 0);
    let log: Vec<_> = log
        .lock()
        .unwrap()
        .iter()
        .filter(|entry| *entry != "commit")
        .cloned()
        .collect();
    assert_eq!(log, ["write", "flush", "zero", "unmap", "read", "discard"]);
}

#[test]
fn a_driver_that_can_not_flush_is_written_through() {
    let disk = FileDisk::new();
    let log = disk.log.clone();
    let mut guest = guest(disk);
    let state = guest.device.stop_queue(0).unwrap().unwrap();
    guest.device.set_features(0);
    let resources = guest.queue.resources(state);
    guest.device.start_queue(0, resources).unwrap();
    assert_eq!(write(&mut guest.queue, 0, &[7; 512]), 0);
    assert_eq!(*log.lock().unwrap(), ["write", "commit", "flush", "commit"]);
}

#[test]
fn wrong_requests_are_answered_with_errors() {
    let mut guest = guest(FileDisk::new());
    let queue = &mut guest.queue;
    let end = SIZE / 512;
    // Behind the end, across it, overflowing, not whole sectors.
    for sector in [end, u64::MAX, u64::MAX / 512 + 1] {
        assert_eq!(write(queue, sector, &[0; 512]), 1, "{sector}");
    }
    assert_eq!(write(queue, end - 1, &[0; 1024]), 1);
    assert_eq!(write(queue, 0, &[0; 100]), 1);
    let completion = queue.request(&[&header(0, end)], &[512, 1]);
    assert_eq!(status(&completion), 1);
    // Unknown types, unknown flags, ranges outside, too many, in pieces.
    assert_eq!(status(&queue.request(&[&header(99, 0)], &[1])), 2);
    let mut discard = |ranges: &[u8]| status(&queue.request(&[&header(11, 0), ranges], &[1]));
    assert_eq!(discard(&range(0, 1, 1)), 2);
    assert_eq!(discard(&range(end, 1, 0)), 1);
    assert_eq!(discard(&range(u64::MAX, u32::MAX, 0)), 1);
    assert_eq!(discard(&range(0, 1, 0)[..15]), 1);
    assert_eq!(discard(&vec![0; 16 * (MAX_RANGES + 1)]), 1);
    // No room for an answer, no header: returned unserved.
    assert_eq!(queue.request(&[&header(0, 0)], &[]).written, 0);
    assert_eq!(queue.request(&[&[0; 15]], &[1]).written, 0);
    // And it still works.
    assert_eq!(write(queue, end - 1, &[1; 512]), 0);
}

#[test]
fn a_read_only_disk_is_not_changed() {
    let mut disk = FileDisk::new();
    disk.info.read_only = true;
    let log = disk.log.clone();
    let mut guest = guest(disk);
    assert_eq!(guest.device.features() & (F_RO | F_DISCARD), F_RO);
    guest
        .device
        .set_features(guest.device.features() | F_DISCARD);
    let queue = &mut guest.queue;
    assert_eq!(write(queue, 0, &[1; 512]), 1);
    let discard = range(0, 1, 0);
    assert_ne!(status(&queue.request(&[&header(11, 0), &discard], &[1])), 0);
    assert!(log.lock().unwrap().is_empty());
    read(queue, 0, 512);
}

#[test]
fn an_error_of_the_disk_reaches_the_driver() {
    let mut disk = FileDisk::new();
    disk.fail = true;
    let mut guest = guest(disk);
    assert_eq!(write(&mut guest.queue, 0, &[1; 512]), 1);
    assert_eq!(guest.device.counters()[5].count, 1);
}

#[test]
fn the_disk_says_who_and_how_it_is() {
    let mut guest = guest(FileDisk::new());
    let completion = guest.queue.request(&[&header(8, 0)], &[20, 1]);
    assert_eq!(&completion.data[..10], b"favo-test\0");
    assert_eq!((completion.data[20], completion.written), (0, 21));
    let mut config = [0; 60];
    guest.device.read_config(0, &mut config);
    let word = |at: usize| u32::from_le_bytes(config[at..at + 4].try_into().unwrap());
    assert_eq!(u64::from(word(0)) * 512, SIZE);
    assert_eq!((word(12), word(20)), (254, 512));
    assert_eq!((config[24], config[34]), (3, 2));
    assert_eq!((word(40), word(44)), (32, 8));
}

#[test]
fn a_read_tells_code_caches_and_dirty_logs() {
    let mut guest = guest(FileDisk::new());
    let region = guest.driver.memory.regions()[0].clone();
    region.pages.start_log();
    read(&mut guest.queue, 0, 512);
    let before = region.pages.take_log();
    read(&mut guest.queue, 0, 64 << 10);
    let after = region.pages.take_log();
    assert!(after.len() >= before.len() + 15, "{before:?} {after:?}");
}

#[test]
fn several_queues_work_at_the_same_time() {
    let mut guest = guest(FileDisk::new());
    let mut other = guest.driver.queue(1, 64, false, 1 << 20);
    other.start(&mut guest.device);
    let mut first = guest.queue;
    std::thread::scope(|scope| {
        for (lane, queue) in [&mut first, &mut other].into_iter().enumerate() {
            scope.spawn(move || {
                for round in 0..200u64 {
                    let sector = lane as u64 * 4096 + round * 8;
                    assert_eq!(write(queue, sector, &[round as u8; 4096]), 0);
                    assert_eq!(read(queue, sector, 4096), [round as u8; 4096]);
                }
            });
        }
    });
}

#[test]
fn stopping_waits_for_the_disk_and_loses_nothing() {
    let mut disk = FileDisk::new();
    disk.delay = Duration::from_millis(2);
    let file = disk.file.clone();
    let mut guest = guest(disk);
    let mut written = 0u64;
    for round in 0..10u64 {
        for _ in 0..12 {
            let data = [written as u8 ^ 0x55; 512];
            guest.queue.add(&[&header(1, written), &data], &[1]);
            written += 1;
        }
        guest.queue.notify();
        std::thread::sleep(Duration::from_millis(round % 4 * 2));
        let state = guest.device.stop_queue(0).unwrap().unwrap();
        // All that was taken has been returned.
        assert_eq!(state.next_avail, state.next_used);
        let resources = guest.queue.resources(state);
        guest.device.start_queue(0, resources).unwrap();
        for _ in 0..12 {
            assert_eq!(status(&guest.queue.wait()), 0);
        }
    }
    for sector in 0..written {
        let mut byte = [0];
        file.read_exact_at(&mut byte, sector * 512).unwrap();
        assert_eq!(byte[0], sector as u8 ^ 0x55);
    }
}

#[test]
fn a_device_dropped_in_the_middle_waits_for_the_disk() {
    let mut disk = FileDisk::new();
    disk.delay = Duration::from_millis(5);
    let file = disk.file.clone();
    let mut guest = guest(disk);
    for sector in 0..8 {
        guest.queue.add(&[&header(1, sector), &[9; 512]], &[1]);
    }
    guest.queue.notify();
    while guest.queue.poll().is_none() {
        std::thread::yield_now();
    }
    drop(guest.device);
    let mut byte = [0];
    file.read_exact_at(&mut byte, 7 * 512).unwrap();
    assert_eq!(byte, [9]);
}

#[test]
fn more_requests_than_descriptors_wait() {
    // A hostile driver publishes the same chain over and over without waiting.
    let mut disk = FileDisk::new();
    disk.delay = Duration::from_millis(1);
    let mut guest = guest_with(disk, 0, false);
    let head = guest.queue.add(&[&header(0, 0)], &[512, 1]);
    for _ in 0..300 {
        guest.queue.publish(head);
        guest.queue.kick_now();
        std::thread::sleep(Duration::from_micros(300));
    }
    assert!(guest.device.stop_queue(0).unwrap().is_some());
}

#[test]
fn wrong_specs_and_disks_are_refused() {
    let build = |spec: &BlkSpec, info: fn(&mut BlockInfo)| {
        let mut disk = FileDisk::new();
        info(&mut disk.info);
        spec.build(Arc::new(disk)).map(drop)
    };
    let good = BlkSpec::default();
    assert!(build(&good, |_| {}).is_ok());
    for bad in [
        BlkSpec {
            queues: 0,
            ..good.clone()
        },
        BlkSpec {
            queues: 65,
            ..good.clone()
        },
        BlkSpec {
            serial: "x".repeat(21),
            ..good.clone()
        },
    ] {
        assert!(build(&bad, |_| {}).is_err());
    }
    assert!(build(&good, |info| info.capacity = 511).is_err());
    assert!(build(&good, |info| info.logical_block_size = 100).is_err());
    assert!(build(&good, |info| info.physical_block_size = 256).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Whatever the requests say: it stops, no panic, and nothing outside the
    /// named buffers is written.
    #[test]
    fn garbage_is_survived(
        chains in prop::collection::vec(
            (
                prop::collection::vec(any::<u8>(), 0..64),
                0u32..20,
                0u64..20_000,
                prop::collection::vec((0u64..(20 << 20), 0u32..9000, any::<bool>()), 0..6),
            ),
            1..30,
        ),
    ) {
        let mut guest = guest_with(FileDisk::new(), F_EVENT_IDX, false);
        // Nobody below names these pages.
        let canary = favo_types::GuestAddress(11 << 20);
        let pattern = vec![0xc5; 1 << 20];
        guest.driver.memory.write(canary, &pattern).unwrap();
        for (bytes, kind, sector, buffers) in chains {
            if guest.queue.free_descriptors() < 10 {
                break;
            }
            let at = guest.driver.allocate(4096);
            let mut request = header(kind, sector).to_vec();
            request.extend(bytes);
            guest.driver.memory.write(at, &request).unwrap();
            let mut list = vec![(at, request.len() as u32, false)];
            list.extend(
                buffers
                    .iter()
                    .map(|&(address, length, writable)| {
                        (favo_types::GuestAddress((12 << 20) + address), length, writable)
                    }),
            );
            guest.queue.add_raw(&list, vec![]);
        }
        guest.queue.kick_now();
        std::thread::sleep(Duration::from_millis(1));
        prop_assert!(guest.device.stop_queue(0).unwrap().is_some());
        let mut bytes = vec![0; pattern.len()];
        guest.driver.memory.read(canary, &mut bytes).unwrap();
        prop_assert!(bytes == pattern);
    }
}
