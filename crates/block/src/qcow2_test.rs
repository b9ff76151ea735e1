//! qcow2 beside a vector of bytes, and beside `qemu-img`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use proptest::prelude::*;
use tempfile::TempDir;

use crate::image::test::{compare, pattern, steps};
use crate::{Backing, BlockDevice, BlockError, BlockImage, Format, OpenOptions};

const MIB: u64 = 1 << 20;
const CAPACITY: u64 = 1500 * 512;

fn qcow2() -> OpenOptions {
    OpenOptions::new(Format::Qcow2)
}

fn within(directory: &Path) -> OpenOptions {
    qcow2().backing(Backing::Within(vec![directory.into()]))
}

fn has_qemu_img() -> bool {
    let found = Command::new("qemu-img").arg("--version").output().is_ok();
    if !found {
        println!("SKIP: qemu-img is not installed");
    }
    found
}

/// Runs qemu-img in `directory`, and wants it to succeed.
fn qemu_img(directory: &Path, arguments: &[&str]) {
    let output = Command::new("qemu-img")
        .current_dir(directory)
        .args(arguments)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "qemu-img {arguments:?}: {output:?}"
    );
}

fn read_all(image: &BlockImage) -> Vec<u8> {
    let mut bytes = vec![0xEE; image.info().capacity as usize];
    image.read_at(0, &mut bytes).unwrap();
    bytes
}

/// Some data, some zeroes, some that doesn't compress.
fn content() -> Vec<u8> {
    let mut bytes = pattern(0, 3 * MIB, 5);
    bytes[MIB as usize..MIB as usize + 300_000].fill(0);
    let mut state = 88172645463325252u64;
    for byte in &mut bytes[2 * MIB as usize..2 * MIB as usize + 200_000] {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        *byte = state as u8;
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn an_image_is_a_vector(steps in steps(CAPACITY, 512)) {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("disk.qcow2");
        BlockImage::create(&path, Format::Qcow2, CAPACITY, None).unwrap();
        let mut model = vec![0; CAPACITY as usize];
        let image = BlockImage::open(&path, &qcow2()).unwrap();
        let image = compare(image, &mut model, &steps, |image| {
            drop(image);
            BlockImage::open(&path, &qcow2()).unwrap()
        });
        drop(image);
        if has_qemu_img() {
            fs::write(directory.path().join("model.raw"), &model).unwrap();
            qemu_img(directory.path(), &["check", "-f", "qcow2", "disk.qcow2"]);
            qemu_img(directory.path(), &["compare", "-F", "raw", "disk.qcow2", "model.raw"]);
        }
    }

    #[test]
    fn an_image_over_another_is_a_vector(steps in steps(CAPACITY, 512)) {
        let directory = TempDir::new().unwrap();
        let (base, path) = (directory.path().join("base.raw"), directory.path().join("disk.qcow2"));
        let mut model = pattern(0, CAPACITY, 3);
        fs::write(&base, &model).unwrap();
        BlockImage::create(&path, Format::Qcow2, CAPACITY, Some(("base.raw", Format::Raw))).unwrap();
        let options = within(directory.path());
        let image = BlockImage::open(&path, &options).unwrap();
        let image = compare(image, &mut model, &steps, |image| {
            drop(image);
            BlockImage::open(&path, &options).unwrap()
        });
        drop(image);
        prop_assert!(fs::read(&base).unwrap() == pattern(0, CAPACITY, 3));
        if has_qemu_img() {
            fs::write(directory.path().join("model.raw"), &model).unwrap();
            qemu_img(directory.path(), &["check", "-f", "qcow2", "disk.qcow2"]);
            qemu_img(directory.path(), &["compare", "-F", "raw", "disk.qcow2", "model.raw"]);
        }
    }
}

#[test]
fn images_of_qemu_img_read_as_they_should() {
    if !has_qemu_img() {
        return;
    }
    let directory = TempDir::new().unwrap();
    let here = directory.path();
    fs::write(here.join("content.raw"), content()).unwrap();
    for (name, options) in [
        ("v2", vec!["-o", "compat=0.10"]),
        ("v3", vec!["-o", "compat=1.1"]),
        ("small", vec!["-o", "cluster_size=512"]),
        ("large", vec!["-o", "cluster_size=2M,refcount_bits=1"]),
        ("zlib", vec!["-c"]),
        ("zlib2", vec!["-c", "-o", "compat=0.10"]),
    ] {
        let mut arguments = vec!["convert", "-f", "raw", "-O", "qcow2"];
        arguments.extend(options);
        arguments.extend(["content.raw", name]);
        qemu_img(here, &arguments);
        let image = BlockImage::open(&here.join(name), &qcow2().read_only(true)).unwrap();
        assert!(read_all(&image) == content(), "{name}");
        drop(image);
        // Written, in the middle of clusters, and checked by the peer.
        let image = BlockImage::open(&here.join(name), &qcow2()).unwrap();
        let mut model = content();
        for at in [512, MIB + 1024, 2 * MIB + 4096] {
            let bytes = pattern(at, 70_000, 99);
            image.write_at(at, &bytes).unwrap();
            model[at as usize..at as usize + bytes.len()].copy_from_slice(&bytes);
        }
        image.write_zeroes(700 * 512, 200 * 512, true).unwrap();
        model[700 * 512..900 * 512].fill(0);
        image.flush().unwrap();
        assert!(read_all(&image) == model, "{name}");
        drop(image);
        fs::write(here.join("model.raw"), &model).unwrap();
        qemu_img(here, &["check", "-f", "qcow2", name]);
        qemu_img(
            here,
            &["compare", "-f", "qcow2", "-F", "raw", name, "model.raw"],
        );
    }
}

#[test]
fn what_is_not_supported_is_said() {
    if !has_qemu_img() {
        return;
    }
    let directory = TempDir::new().unwrap();
    let here = directory.path();
    let zstd = [
        "create",
        "-f",
        "qcow2",
        "-o",
        "compression_type=zstd",
        "zstd",
        "1M",
    ];
    qemu_img(here, &zstd);
    qemu_img(
        here,
        &[
            "create",
            "-f",
            "qcow2",
            "-o",
            "data_file=bytes",
            "data",
            "1M",
        ],
    );
    qemu_img(here, &["create", "-f", "qcow2", "snap", "1M"]);
    qemu_img(here, &["snapshot", "-c", "one", "snap"]);
    for (name, word) in [
        ("zstd", "zstd"),
        ("data", "another file"),
        ("snap", "snapshots"),
    ] {
        let error = BlockImage::open(&here.join(name), &qcow2()).unwrap_err();
        assert!(error.to_string().contains(word), "{error}");
    }
    BlockImage::open(&here.join("snap"), &qcow2().read_only(true)).unwrap();
}

#[test]
fn backing_chains_read_as_they_should() {
    if !has_qemu_img() {
        return;
    }
    let directory = TempDir::new().unwrap();
    let here = directory.path();
    fs::write(here.join("base.raw"), content()).unwrap();
    let create = |name: &str, base: &str, format: &str, compat: &str| {
        let compat = format!("compat={compat}");
        let head = ["create", "-f", "qcow2", "-o", &compat];
        qemu_img(
            here,
            &[&head[..], &["-b", base, "-F", format, name]].concat(),
        );
    };
    create("one", "base.raw", "raw", "0.10");
    create("two", "one", "qcow2", "1.1");
    create("three", "two", "qcow2", "1.1");
    let mut model = content();
    for (name, at) in [("one", 512), ("two", MIB), ("three", MIB + 65536)] {
        let image = BlockImage::open(&here.join(name), &within(here)).unwrap();
        assert!(read_all(&image) == model, "{name}");
        let bytes = pattern(at, 100_352, at as u8);
        image.write_at(at, &bytes).unwrap();
        model[at as usize..at as usize + bytes.len()].copy_from_slice(&bytes);
        drop(image);
        qemu_img(here, &["check", name]);
    }
    fs::write(here.join("model.raw"), &model).unwrap();
    qemu_img(here, &["compare", "-F", "raw", "three", "model.raw"]);
    // A throw-away disk over all of it.
    let options = within(here).read_only(true);
    let image = BlockImage::open(&here.join("three"), &options).unwrap();
    let overlay = image.overlay(here).unwrap();
    overlay.write_at(512, &[1; 512]).unwrap();
    model[512..1024].fill(1);
    assert!(read_all(&overlay) == model);
}

#[test]
fn a_backing_file_needs_permission() {
    let directory = TempDir::new().unwrap();
    let (inside, outside) = (directory.path().join("in"), directory.path().join("out"));
    fs::create_dir(&inside).unwrap();
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("secret"), [7; 4096]).unwrap();
    std::os::unix::fs::symlink(outside.join("secret"), inside.join("link")).unwrap();
    let absolute = outside.join("secret");
    for name in [
        "../out/secret",
        "link",
        absolute.to_str().unwrap(),
        "json:{}",
        "missing",
    ] {
        let path = inside.join("disk.qcow2");
        BlockImage::create(&path, Format::Qcow2, 4096, Some((name, Format::Raw))).unwrap();
        for options in [qcow2(), within(&inside)] {
            let error = BlockImage::open(&path, &options).unwrap_err();
            assert!(matches!(error, BlockError::Refused { .. }), "{error}");
            assert!(error.to_string().contains(name), "{error}");
        }
        fs::remove_file(&path).unwrap();
    }
}

#[test]
fn a_chain_that_loops_or_never_ends_is_an_error() {
    let directory = TempDir::new().unwrap();
    let here = directory.path();
    let create = |name: &str, base: &str| {
        let backing = Some((base, Format::Qcow2));
        BlockImage::create(&here.join(name), Format::Qcow2, 4096, backing).unwrap();
    };
    create("a", "b");
    create("b", "a");
    let options = within(here).read_only(true);
    let error = BlockImage::open(&here.join("a"), &options).unwrap_err();
    assert!(error.to_string().contains("loop"), "{error}");
    for number in 0..80 {
        create(&number.to_string(), &(number + 1).to_string());
    }
    let error = BlockImage::open(&here.join("0"), &options).unwrap_err();
    assert!(error.to_string().contains("more than 64"), "{error}");
}

#[test]
fn a_chain_is_locked() {
    let directory = TempDir::new().unwrap();
    let here = directory.path();
    fs::write(here.join("base"), [1; 4096]).unwrap();
    let path = here.join("disk");
    BlockImage::create(&path, Format::Qcow2, 4096, Some(("base", Format::Raw))).unwrap();
    let image = BlockImage::open(&path, &within(here)).unwrap();
    let raw = OpenOptions::new(Format::Raw);
    for name in ["base", "disk"] {
        let error = BlockImage::open(&here.join(name), &raw).unwrap_err();
        assert!(matches!(error, BlockError::InUse { .. }), "{error}");
    }
    if has_qemu_img() {
        let info = Command::new("qemu-img")
            .arg("info")
            .arg(&path)
            .output()
            .unwrap();
        assert!(!info.status.success(), "qemu-img doesn't see our lock");
    }
    drop(image);
    BlockImage::open(&here.join("base"), &raw).unwrap();
}

#[test]
fn threads_share_an_image() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("disk.qcow2");
    let size = 8 * MIB;
    BlockImage::create(&path, Format::Qcow2, size, None).unwrap();
    let image = BlockImage::open(&path, &qcow2()).unwrap();
    // Every thread owns every fourth sector: all of them meet in each cluster.
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let image = image.clone();
            scope.spawn(move || {
                let sectors = (0..size / 512).filter(|sector| sector % 4 == thread);
                for (count, sector) in sectors.step_by(3).enumerate() {
                    let at = sector * 512;
                    let bytes = pattern(at, 512, thread as u8);
                    image.write_at(at, &bytes).unwrap();
                    if count % 7 == 0 {
                        image.write_zeroes(at, 512, count % 2 == 0).unwrap();
                        image.write_at(at, &bytes).unwrap();
                    }
                    let mut read = [0; 512];
                    image.read_at(at, &mut read).unwrap();
                    assert_eq!(read[..], bytes[..]);
                    if count % 100 == 0 {
                        image.flush().unwrap();
                    }
                }
            });
        }
    });
    let before = read_all(&image);
    drop(image);
    let image = BlockImage::open(&path, &qcow2()).unwrap();
    assert!(read_all(&image) == before);
    drop(image);
    if has_qemu_img() {
        fs::write(directory.path().join("model.raw"), &before).unwrap();
        qemu_img(directory.path(), &["check", "disk.qcow2"]);
        qemu_img(
            directory.path(),
            &["compare", "-F", "raw", "disk.qcow2", "model.raw"],
        );
    }
}

/// An image with something of everything, for damage.
fn specimen(here: &Path) -> PathBuf {
    let path = here.join("specimen");
    BlockImage::create(&path, Format::Qcow2, MIB, None).unwrap();
    let image = BlockImage::open(&path, &qcow2()).unwrap();
    image.write_at(0, &pattern(0, 70_144, 1)).unwrap();
    image.write_zeroes(MIB / 2, 131_072, true).unwrap();
    path
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn damage_is_an_error_or_other_bytes(
        flips in prop::collection::vec((prop_oneof![0..112usize, 65536..65552usize, 131072..131080usize, 196608..196616usize, 262144..262272usize], 0..8u8), 1..4),
        cut in prop::option::of(0..400_000u64),
    ) {
        let directory = TempDir::new().unwrap();
        let path = specimen(directory.path());
        let mut bytes = fs::read(&path).unwrap();
        for (at, bit) in flips {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << bit;
            }
        }
        bytes.truncate(cut.unwrap_or(u64::MAX) as usize);
        fs::write(&path, &bytes).unwrap();
        for read_only in [true, false] {
            let Ok(image) = BlockImage::open(&path, &qcow2().read_only(read_only)) else {
                continue;
            };
            let capacity = image.info().capacity;
            let mut sector = [0; 512];
            for at in [0, 65536, MIB / 2, MIB - 512, capacity.saturating_sub(512)] {
                let _ = image.read_at(at, &mut sector);
                let _ = image.write_at(at, &sector);
            }
            let _ = image.discard(0, MIB.min(capacity));
            let _ = image.flush();
        }
    }
}
