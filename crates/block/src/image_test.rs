//! Every kind of image against a vector of bytes, and the rules of opening.

use std::fs;
use std::path::PathBuf;

use proptest::prelude::*;
use rustix::event::{PollFd, PollFlags, poll};
use tempfile::TempDir;

use super::*;
use crate::{BlockOperation, RawBuffer};

/// One thing done to a disk.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Read(u64, u64),
    Write(u64, u64, u8),
    Zero(u64, u64, bool),
    Discard(u64, u64),
    Flush,
    Reopen,
}

/// Steps on a disk of `capacity` bytes, in units of `unit`.
pub(crate) fn steps(capacity: u64, unit: u64) -> impl Strategy<Value = Vec<Step>> {
    let blocks = capacity / unit;
    let range = (0..blocks, 1..=64u64)
        .prop_map(move |(start, count)| (start * unit, count.min(blocks - start) * unit));
    let step = prop_oneof![
        3 => range.clone().prop_map(|(at, length)| Step::Read(at, length)),
        5 => (range.clone(), 1..=255u8).prop_map(|((at, length), byte)| Step::Write(at, length, byte)),
        2 => (range.clone(), any::<bool>()).prop_map(|((at, length), unmap)| Step::Zero(at, length, unmap)),
        2 => range.prop_map(|(at, length)| Step::Discard(at, length)),
        1 => Just(Step::Flush),
        1 => Just(Step::Reopen),
    ];
    prop::collection::vec(step, 1..40)
}

/// Bytes that differ from place to place.
pub(crate) fn pattern(offset: u64, length: u64, seed: u8) -> Vec<u8> {
    (offset..offset + length)
        .map(|at| ((at / 512) as u8).wrapping_mul(31).wrapping_add(seed))
        .collect()
}

/// Runs the steps on a disk and a vector. Discarded bytes are looked up, as
/// they may be anything (but not something else later).
pub(crate) fn compare(
    mut image: BlockImage,
    model: &mut [u8],
    steps: &[Step],
    reopen: impl Fn(BlockImage) -> BlockImage,
) -> BlockImage {
    for step in steps {
        match *step {
            Step::Read(at, length) => {
                let mut bytes = vec![0xEE; length as usize];
                image.read_at(at, &mut bytes).unwrap();
                assert!(
                    bytes == model[at as usize..(at + length) as usize],
                    "{step:?} reads something else"
                );
            }
            Step::Write(at, length, seed) => {
                let bytes = pattern(at, length, seed);
                image.write_at(at, &bytes).unwrap();
                model[at as usize..(at + length) as usize].copy_from_slice(&bytes);
            }
            Step::Zero(at, length, unmap) => {
                image.write_zeroes(at, length, unmap).unwrap();
                model[at as usize..(at + length) as usize].fill(0);
            }
            Step::Discard(at, length) => {
                image.discard(at, length).unwrap();
                let part = &mut model[at as usize..(at + length) as usize];
                image.read_at(at, part).unwrap();
            }
            Step::Flush => image.flush().unwrap(),
            Step::Reopen => image = reopen(image),
        }
    }
    let mut all = vec![0; model.len()];
    image.read_at(0, &mut all).unwrap();
    assert!(all == *model, "the disk differs in the end");
    image
}

fn raw_file(directory: &TempDir, bytes: &[u8]) -> PathBuf {
    let path = directory.path().join("disk.raw");
    fs::write(&path, bytes).unwrap();
    path
}

fn raw() -> OpenOptions {
    OpenOptions::new(Format::Raw)
}

const CAPACITY: u64 = 300 * 512;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn raw_is_a_vector(steps in steps(CAPACITY, 512)) {
        let directory = TempDir::new().unwrap();
        let path = raw_file(&directory, &vec![0; CAPACITY as usize]);
        let image = BlockImage::open(&path, &raw()).unwrap();
        let mut model = vec![0; CAPACITY as usize];
        compare(image, &mut model, &steps, |image| {
            drop(image);
            BlockImage::open(&path, &raw()).unwrap()
        });
        prop_assert!(fs::read(&path).unwrap() == model);
    }

    #[test]
    fn overlay_is_a_vector_over_its_base(steps in steps(CAPACITY, 512)) {
        let directory = TempDir::new().unwrap();
        let mut model = pattern(0, CAPACITY, 7);
        let path = raw_file(&directory, &model);
        let base = BlockImage::open(&path, &raw().read_only(true)).unwrap();
        let before = model.clone();
        let image = base.overlay(directory.path()).unwrap();
        compare(image, &mut model, &steps, |image| image);
        prop_assert!(fs::read(&path).unwrap() == before);
        prop_assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}

/// Submits one operation and waits for it.
pub(crate) fn request(queue: &mut dyn BlockQueue, operation: BlockOperation<'_>) -> io::Result<()> {
    // SAFETY: waits for the completion before the caller's buffers are gone.
    unsafe { queue.submit(42, operation) };
    queue.commit().unwrap();
    let mut done = Vec::new();
    while done.is_empty() {
        let event = queue.event();
        poll(&mut [PollFd::new(&event, PollFlags::IN)], None).unwrap();
        queue.complete(&mut done);
    }
    assert_eq!((done.len(), done[0].token), (1, 42));
    done.remove(0).result
}

pub(crate) fn buffers(bytes: &mut [u8], piece: usize) -> Vec<RawBuffer> {
    bytes
        .chunks_mut(piece)
        .map(|chunk| RawBuffer {
            pointer: chunk.as_mut_ptr(),
            length: chunk.len(),
        })
        .collect()
}

/// What every queue must do.
fn exercise(image: &BlockImage) {
    let capacity = image.info().capacity;
    let mut queue = image.queue(128).unwrap();
    // More pieces than one call of the kernel takes.
    let mut written = pattern(0, 600 * 1024, 3);
    let pieces = buffers(&mut written, 512);
    assert!(pieces.len() > 1024);
    let (offset, buffers_) = (512, &pieces[..]);
    let write = BlockOperation::Write {
        offset,
        buffers: buffers_,
    };
    request(&mut *queue, write).unwrap();
    request(&mut *queue, BlockOperation::Flush).unwrap();
    let mut read = vec![0; written.len()];
    let pieces = buffers(&mut read, 700);
    let buffers_ = &pieces[..];
    request(
        &mut *queue,
        BlockOperation::Read {
            offset,
            buffers: buffers_,
        },
    )
    .unwrap();
    assert!(read == written);

    for may_unmap in [false, true] {
        let (offset, length) = (4096, 300 * 1024);
        image.write_at(offset, &pattern(0, length, 9)).unwrap();
        let zero = BlockOperation::WriteZeroes {
            offset,
            length,
            may_unmap,
        };
        request(&mut *queue, zero).unwrap();
        let mut bytes = vec![1; length as usize];
        image.read_at(offset, &mut bytes).unwrap();
        assert!(bytes.iter().all(|&byte| byte == 0));
    }
    let discard = BlockOperation::Discard {
        offset: 0,
        length: 8192,
    };
    request(&mut *queue, discard).unwrap();

    let mut sector = [0; 512];
    let pieces = buffers(&mut sector, 512);
    for offset in [capacity, capacity - 511, u64::MAX, u64::MAX - 511] {
        let buffers = &pieces[..];
        for operation in [
            BlockOperation::Read { offset, buffers },
            BlockOperation::Write { offset, buffers },
            BlockOperation::Discard {
                offset,
                length: 512,
            },
            BlockOperation::WriteZeroes {
                offset,
                length: u64::MAX,
                may_unmap: true,
            },
        ] {
            let error = request(&mut *queue, operation).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{operation:?}");
        }
    }
    let empty = BlockOperation::Read {
        offset: capacity,
        buffers: &[],
    };
    request(&mut *queue, empty).unwrap();
    many_at_once(image);
}

/// A batch larger than rings and threads, then a queue that is dropped busy.
fn many_at_once(image: &BlockImage) {
    let mut queue = image.queue(16).unwrap();
    let mut bytes = pattern(0, 1000 * 512, 77);
    let pieces = buffers(&mut bytes, 512);
    let mut expected = std::collections::BTreeSet::new();
    for (number, piece) in pieces.iter().enumerate() {
        let offset = number as u64 * 512;
        let buffers = std::slice::from_ref(piece);
        // SAFETY: `bytes` outlives the queue.
        unsafe { queue.submit(number as u64, BlockOperation::Write { offset, buffers }) };
        expected.insert(number as u64);
    }
    queue.commit().unwrap();
    let mut done = Vec::new();
    while !expected.is_empty() {
        let event = queue.event();
        poll(&mut [PollFd::new(&event, PollFlags::IN)], None).unwrap();
        queue.complete(&mut done);
        for completion in done.drain(..) {
            completion.result.unwrap();
            assert!(expected.remove(&completion.token), "told twice");
        }
    }
    let mut read = vec![0; bytes.len()];
    image.read_at(0, &mut read).unwrap();
    assert!(read == bytes);
    let pieces = buffers(&mut read, 512);
    for (number, piece) in pieces.iter().enumerate() {
        let offset = number as u64 * 512;
        let buffers = std::slice::from_ref(piece);
        // SAFETY: `read` outlives the queue.
        unsafe { queue.submit(0, BlockOperation::Read { offset, buffers }) };
    }
    queue.commit().unwrap();
    drop(queue);
}

#[test]
fn queues_of_raw_images_work_with_both_engines() {
    let directory = TempDir::new().unwrap();
    let path = raw_file(&directory, &vec![0; 1 << 20]);
    for engine in [IoEngine::Threads, IoEngine::Auto] {
        exercise(&BlockImage::open(&path, &raw().engine(engine)).unwrap());
    }
    let image = BlockImage::open(&path, &raw().engine(IoEngine::Uring)).unwrap();
    match image.queue(8) {
        Ok(_) => exercise(&image),
        Err(error) => println!("SKIP: this host refuses io_uring ({error})"),
    }
}

#[test]
fn queues_of_overlays_work() {
    let directory = TempDir::new().unwrap();
    let path = raw_file(&directory, &pattern(0, 1 << 20, 1));
    let base = BlockImage::open(&path, &raw().read_only(true)).unwrap();
    exercise(&base.overlay(directory.path()).unwrap());
    assert!(fs::read(&path).unwrap() == pattern(0, 1 << 20, 1));
}

#[test]
fn a_read_only_disk_is_not_changed() {
    let directory = TempDir::new().unwrap();
    let path = raw_file(&directory, &[5; 1024]);
    let image = BlockImage::open(&path, &raw().read_only(true)).unwrap();
    assert!(image.write_at(0, &[1; 512]).is_err());
    assert!(image.discard(0, 512).is_err());
    assert!(image.write_zeroes(0, 512, false).is_err());
    image.flush().unwrap();
    let mut queue = image.queue(4).unwrap();
    let zero = BlockOperation::WriteZeroes {
        offset: 0,
        length: 512,
        may_unmap: false,
    };
    let error = request(&mut *queue, zero).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
    request(&mut *queue, BlockOperation::Flush).unwrap();
    drop(queue);
    assert_eq!(fs::read(&path).unwrap(), [5; 1024]);
}

#[test]
fn the_last_sector_may_be_short() {
    let directory = TempDir::new().unwrap();
    let path = raw_file(&directory, &[5; 700]);
    for engine in [IoEngine::Threads, IoEngine::Auto] {
        let image = BlockImage::open(&path, &raw().read_only(true).engine(engine)).unwrap();
        assert_eq!(image.info().capacity, 1024);
        let mut bytes = vec![9; 1024];
        let pieces = buffers(&mut bytes, 100);
        let read = BlockOperation::Read {
            offset: 0,
            buffers: &pieces,
        };
        request(&mut *image.queue(1).unwrap(), read).unwrap();
        assert!(bytes[..700].iter().all(|&byte| byte == 5));
        assert!(bytes[700..].iter().all(|&byte| byte == 0));
    }
    let image = BlockImage::open(&path, &raw()).unwrap();
    image.write_at(512, &[6; 512]).unwrap();
    assert_eq!(fs::read(&path).unwrap().len(), 1024);
}

#[test]
fn a_file_that_shrinks_is_an_error() {
    let directory = TempDir::new().unwrap();
    let path = raw_file(&directory, &[5; 4096]);
    let image = BlockImage::open(&path, &raw()).unwrap();
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(512)
        .unwrap();
    assert!(image.read_at(0, &mut [0; 4096]).is_err());
    image.read_at(0, &mut [0; 512]).unwrap();
}

#[test]
fn a_writer_is_alone() {
    let directory = TempDir::new().unwrap();
    let path = raw_file(&directory, &[0; 512]);
    let reader = raw().read_only(true);
    let one = BlockImage::open(&path, &raw()).unwrap();
    for options in [raw(), reader.clone()] {
        let error = BlockImage::open(&path, &options).unwrap_err();
        assert!(matches!(error, BlockError::InUse { .. }), "{error}");
        assert!(
            error
                .to_string()
                .contains("disk.raw is in use by another machine")
        );
    }
    drop(one);
    let first = BlockImage::open(&path, &reader).unwrap();
    let second = BlockImage::open(&path, &reader).unwrap();
    assert!(matches!(
        BlockImage::open(&path, &raw()),
        Err(BlockError::InUse { .. })
    ));
    drop(first);
    let overlay = second.overlay(directory.path()).unwrap();
    drop(second);
    assert!(matches!(
        BlockImage::open(&path, &raw()),
        Err(BlockError::InUse { .. })
    ));
    drop(overlay);
    BlockImage::open(&path, &raw()).unwrap();
}

#[test]
fn only_files_and_block_devices_are_disks() {
    let directory = TempDir::new().unwrap();
    let null = Path::new("/dev/null");
    for path in [directory.path(), null] {
        let error = BlockImage::open(path, &raw().read_only(true)).unwrap_err();
        assert!(matches!(error, BlockError::NotADisk { .. }), "{error}");
    }
    let missing = directory.path().join("missing");
    let error = BlockImage::open(&missing, &raw()).unwrap_err();
    assert!(error.to_string().contains("can't open") && error.to_string().contains("missing"));
}

#[test]
fn a_full_disk_is_an_error() {
    let full = Path::new("/dev/full");
    let file = File::options().read(true).write(true).open(full).unwrap();
    let error = crate::raw::write_all(&file, 0, &Scatter::of_const(&[1; 512])).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
}
