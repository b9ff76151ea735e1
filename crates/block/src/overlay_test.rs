//! Layers of a throw-away disk.

use std::path::PathBuf;

use proptest::prelude::*;

use super::*;
use crate::{BlockDevice, BlockImage, Format, OpenOptions};

const CAPACITY: u64 = 300 * 1024;

fn base(directory: &tempfile::TempDir) -> (BlockImage, PathBuf) {
    let path = directory.path().join("base");
    let bytes: Vec<u8> = (0..CAPACITY).map(|at| (at / 512) as u8 | 1).collect();
    std::fs::write(&path, bytes).unwrap();
    let options = OpenOptions::new(Format::Raw).read_only(true);
    (BlockImage::open(&path, &options).unwrap(), path)
}

fn all(image: &BlockImage) -> Vec<u8> {
    let mut bytes = vec![0; image.info().capacity as usize];
    image.read_at(0, &mut bytes).unwrap();
    bytes
}

/// A layer written to a file and read back.
fn through_a_file(layers: &[OverlayLayer], directory: &tempfile::TempDir) -> OverlayLayer {
    let file = tempfile::tempfile_in(directory.path()).unwrap();
    let bitmap = OverlayLayer::merge(layers, &file).unwrap();
    OverlayLayer::from_parts(file, &bitmap, CAPACITY).unwrap()
}

#[test]
fn a_frozen_layer_does_not_change_and_the_disk_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let (base, _) = base(&directory);
    let disk = base.overlay(directory.path()).unwrap();
    disk.write_at(5000, b"first").unwrap();
    let then = all(&disk);
    let layers = disk.freeze().unwrap().unwrap();
    assert_eq!(layers.len(), 1);
    disk.write_at(5002, b"SECOND").unwrap();
    disk.write_zeroes(100_000, 50_000, true).unwrap();
    let now = all(&disk);
    assert_ne!(then, now);

    let clone = base.overlay_on(layers.clone(), directory.path()).unwrap();
    assert!(all(&clone) == then);
    clone.write_at(0, b"mine").unwrap();
    assert!(all(&disk) == now);
    let saved = through_a_file(&layers, &directory);
    let restored = base.overlay_on(vec![saved], directory.path()).unwrap();
    assert!(all(&restored) == then);
    // A base of its own is not an overlay.
    assert!(base.freeze().is_none());
}

#[test]
fn many_layers_become_one() {
    let directory = tempfile::tempdir().unwrap();
    let (base, _) = base(&directory);
    let disk = base.overlay(directory.path()).unwrap();
    for round in 0..3 * MOST_LAYERS as u64 {
        disk.write_at(round * 4000, &round.to_le_bytes()).unwrap();
        assert!(disk.freeze().unwrap().unwrap().len() <= MOST_LAYERS + 1);
    }
    for round in 0..3 * MOST_LAYERS as u64 {
        let mut bytes = [0; 8];
        disk.read_at(round * 4000, &mut bytes).unwrap();
        assert_eq!(u64::from_le_bytes(bytes), round);
    }
    // Nothing was written since: no new layer.
    let count = disk.freeze().unwrap().unwrap().len();
    assert_eq!(disk.freeze().unwrap().unwrap().len(), count);
}

#[test]
fn parts_that_do_not_fit_are_refused() {
    let file = || tempfile::tempfile().unwrap();
    let short = OverlayLayer::from_parts(file(), &[], CAPACITY).unwrap_err();
    assert!(short.to_string().contains("0 bytes"), "{short}");
    let whole = file();
    whole.set_len(CAPACITY).unwrap();
    // 75 clusters: bit 75 is none of them.
    let mut bitmap = [0; 10];
    bitmap[9] = 1 << 3;
    assert!(OverlayLayer::from_parts(whole.try_clone().unwrap(), &bitmap, CAPACITY).is_err());
    bitmap[9] = 1 << 2;
    assert!(OverlayLayer::from_parts(whole.try_clone().unwrap(), &bitmap, CAPACITY).is_ok());
    assert!(OverlayLayer::from_parts(whole, &[], u64::MAX).is_err());
    let directory = tempfile::tempdir().unwrap();
    let (base, _) = base(&directory);
    let other = file();
    other.set_len(8192).unwrap();
    let layer = OverlayLayer::from_parts(other, &[], 8192).unwrap();
    assert!(base.overlay_on(vec![layer], directory.path()).is_err());
}

#[derive(Clone, Debug)]
enum Step {
    Write(u64, Vec<u8>),
    Zero(u64, u64),
    Freeze,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (
            0..CAPACITY - 9000,
            prop::collection::vec(any::<u8>(), 1..9000)
        )
            .prop_map(|(at, bytes)| Step::Write(at, bytes)),
        (0..CAPACITY - 20_000, 1..20_000u64).prop_map(|(at, length)| Step::Zero(at, length)),
        Just(Step::Freeze),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Every frozen stack reads as the disk did at that moment, directly and
    /// through a file.
    #[test]
    fn layers_are_what_the_disk_was(steps in prop::collection::vec(step(), 1..24)) {
        let directory = tempfile::tempdir().unwrap();
        let (base, _) = base(&directory);
        let disk = base.overlay(directory.path()).unwrap();
        let mut model = all(&base);
        let mut moments = Vec::new();
        for step in steps {
            match step {
                Step::Write(at, bytes) => {
                    disk.write_at(at, &bytes).unwrap();
                    model[at as usize..][..bytes.len()].copy_from_slice(&bytes);
                }
                Step::Zero(at, length) => {
                    disk.write_zeroes(at, length, true).unwrap();
                    model[at as usize..][..length as usize].fill(0);
                }
                Step::Freeze => moments.push((disk.freeze().unwrap().unwrap(), model.clone())),
            }
            prop_assert!(all(&disk) == model);
        }
        for (layers, model) in moments {
            let direct = base.overlay_on(layers.clone(), directory.path()).unwrap();
            prop_assert!(all(&direct) == model);
            if !layers.is_empty() {
                let saved = through_a_file(&layers, &directory);
                let restored = base.overlay_on(vec![saved], directory.path()).unwrap();
                prop_assert!(all(&restored) == model);
            }
        }
    }
}
