//! Snapshots of guests of a few instructions, on every engine of this host.

use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

use favo_accel::Accelerator;
use favo_block::{BlockImage, Format, OpenOptions};
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::machine::config::{DiskConfig, DiskFormat, DiskSource};
use crate::machine::test::{alphabet, engines, follows, kernel, said, spec, start, tail};
use crate::machine::{EndReport, Machine, MachineError, MachineSpec, RunState};
use crate::outcome::Outcome;
use crate::serial_io::ConsoleTail;

/// A machine that says the alphabet, with a throw-away disk.
fn running(
    accelerator: &dyn Accelerator,
    place: &TempDir,
) -> (Machine, Receiver<Outcome>, ConsoleTail) {
    let mut spec = spec(kernel(&[&alphabet()]));
    spec.disks.push(disk(place).into());
    let (io, tail) = tail();
    let (machine, ended) = start(spec, accelerator, io).unwrap();
    (machine, ended, tail)
}

pub(crate) fn disk(place: &TempDir) -> DiskSource {
    let path = place.path().join("base");
    if !path.exists() {
        let bytes: Vec<u8> = (0..1 << 20).map(|at: u32| (at >> 9) as u8).collect();
        std::fs::write(&path, bytes).unwrap();
    }
    let options = OpenOptions::new(Format::Raw).read_only(true);
    let base = BlockImage::open(&path, &options).unwrap();
    let image = base.overlay(place.path()).unwrap();
    image.write_at(7000, b"written").unwrap();
    DiskSource {
        image,
        config: DiskConfig {
            path,
            format: DiskFormat::Raw,
            backing: Vec::new(),
            read_only: false,
            throw_away: true,
            serial: "root".into(),
        },
    }
}

fn parts(place: &TempDir) -> RestoreParts {
    RestoreParts {
        scratch: place.path().to_owned(),
        ..RestoreParts::default()
    }
}

fn open(place: &TempDir, directory: &Path) -> Result<MachineSpec, SnapshotError> {
    Snapshot::open(directory)?.into_spec(parts(place))
}

fn restore(
    place: &TempDir,
    directory: &Path,
    accelerator: &dyn Accelerator,
) -> Result<(Machine, ConsoleTail), MachineError> {
    let (io, tail) = tail();
    let (sender, _) = channel();
    let report: EndReport = Arc::new(move |outcome| {
        let _ = sender.send(outcome);
    });
    let spec = open(place, directory).unwrap();
    Ok((Machine::start(spec, accelerator, io, report)?, tail))
}

#[test]
fn a_machine_goes_on_twice_from_where_it_was() {
    for accelerator in engines() {
        let place = tempfile::tempdir().unwrap();
        let directory = place.path().join("snapshot");
        let (machine, ended, tail) = running(accelerator.as_ref(), &place);
        said(&tail, 3);
        let report = write(&machine.handle(), &directory, SnapshotOptions::default()).unwrap();
        assert!(report.memory_bytes > 0 && report.paused <= report.took);
        // It runs on.
        assert_eq!(machine.handle().run_state(), RunState::Running);
        let before = tail.lines(1).len();
        assert!(follows(&said(&tail, before + 3)));
        assert!(ended.try_recv().is_err());
        drop(machine);

        let verified = verify(&directory).unwrap();
        assert_eq!((verified.id, verified.parents), (report.id, 0));
        let mut first = None;
        for _ in 0..2 {
            let (machine, tail) = restore(&place, &directory, accelerator.as_ref()).unwrap();
            let now = said(&tail, 3);
            assert!(now.len() >= 3 && follows(&now), "{now}");
            // Each begins at the same letter, in its own memory.
            let begins = now.as_bytes()[0];
            assert_eq!(*first.get_or_insert(begins), begins);
            let source = machine.body_for_tests().disks[0].clone().unwrap();
            let mut bytes = [0; 7];
            source.image.read_at(7000, &mut bytes).unwrap();
            assert_eq!(&bytes, b"written");
            source.image.write_at(7000, b"changed").unwrap();
            drop(machine);
        }
        // Nothing but the snapshot and the base is left.
        let mut left: Vec<_> = std::fs::read_dir(place.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        left.sort();
        assert_eq!(left, ["base", "snapshot"]);
    }
}

#[test]
fn a_restored_machine_is_saved_again_and_added_to() {
    for accelerator in engines() {
        let place = tempfile::tempdir().unwrap();
        let name = |name: &str| place.path().join(name);
        let (machine, _ended, tail) = running(accelerator.as_ref(), &place);
        said(&tail, 3);
        let handle = machine.handle();
        let incremental = || SnapshotOptions {
            incremental: true,
            ..SnapshotOptions::default()
        };
        let none = write(&handle, &name("none"), incremental());
        assert!(matches!(none, Err(SnapshotError::NoParent)));
        let whole = write(&handle, &name("a"), SnapshotOptions::default()).unwrap();
        let count = tail.lines(1).len();
        said(&tail, count + 2);
        let second = write(&handle, &name("b"), incremental()).unwrap();
        assert!(
            second.memory_bytes < whole.memory_bytes,
            "{second:?} {whole:?}"
        );
        let count = tail.lines(1).len();
        said(&tail, count + 2);
        handle.pause().unwrap();
        write(&handle, &name("c"), incremental()).unwrap();
        assert_eq!(handle.run_state(), RunState::Paused);
        // All it had said by then is in there, written or not.
        let text = tail.lines(1);
        drop(machine);
        assert_eq!(verify(&name("c")).unwrap().parents, 2);

        // Moved together they are found.
        let moved = name("moved");
        std::fs::create_dir(&moved).unwrap();
        for each in ["a", "b", "c"] {
            std::fs::rename(name(each), moved.join(each)).unwrap();
        }
        let (machine, tail) = restore(&place, &moved.join("c"), accelerator.as_ref()).unwrap();
        let now = said(&tail, 3);
        let joined = text + &now;
        assert!(now.len() >= 3 && follows(&joined), "{joined}");
        write(&machine.handle(), &name("d"), SnapshotOptions::default()).unwrap();
        drop(machine);
        let (machine, tail) = restore(&place, &name("d"), accelerator.as_ref()).unwrap();
        assert!(follows(&said(&tail, 3)));
        drop(machine);

        std::fs::rename(moved.join("b"), moved.join("x")).unwrap();
        let error = open(&place, &moved.join("c")).map(|_| ()).unwrap_err();
        assert!(error.to_string().contains("/b"), "{error}");
    }
}

#[test]
fn a_guest_moves_between_engines_by_snapshots() {
    let engines = engines();
    let [soft, kvm] = engines.as_slice() else {
        println!("skipped: there is one engine only");
        return;
    };
    let place = tempfile::tempdir().unwrap();
    let mut spec = spec(kernel(&[&alphabet()]));
    spec.disks.push(disk(&place).into());
    spec.features = Some(kvm.supported_cpuid().clone());
    let (io, tail) = tail();
    let (machine, _ended) = start(spec, soft.as_ref(), io).unwrap();
    said(&tail, 3);
    let mut directory = place.path().join("0");
    write(&machine.handle(), &directory, SnapshotOptions::default()).unwrap();
    drop(machine);
    for step in 1..=10 {
        let engine = [soft, kvm][step % 2];
        let (machine, tail) = restore(&place, &directory, engine.as_ref()).unwrap();
        let now = said(&tail, 3);
        assert!(now.len() >= 3 && follows(&now), "{step}: {now}");
        directory = place.path().join(step.to_string());
        let handle = machine.handle();
        handle.pause().unwrap();
        write(&handle, &directory, SnapshotOptions::default()).unwrap();
    }
}

#[test]
fn features_the_engine_lacks_are_refused_before_anything_runs() {
    let accelerator = engines().remove(0);
    let place = tempfile::tempdir().unwrap();
    let directory = place.path().join("snapshot");
    let (machine, _ended, tail) = running(accelerator.as_ref(), &place);
    said(&tail, 1);
    write(&machine.handle(), &directory, SnapshotOptions::default()).unwrap();
    drop(machine);
    let mut manifest = Manifest::read(&directory).unwrap();
    let cpuid = &mut manifest.state.processors[0].cpuid;
    // Leaf 7, EDX bit 31: SSBD, which neither engine has.
    cpuid.update(7, Some(0), |leaf| leaf.edx |= 1 << 31);
    std::fs::write(directory.join("manifest"), manifest.encode().unwrap()).unwrap();
    let error = restore(&place, &directory, accelerator.as_ref());
    let error = error.map(|_| ()).unwrap_err();
    assert!(
        error.to_string().contains("CPUID 7:0 EDX bit 31"),
        "{error}"
    );
}

/// A snapshot, made once for a test.
fn snapshot(place: &TempDir) -> PathBuf {
    let accelerator = engines().remove(0);
    let directory = place.path().join("snapshot");
    let (machine, _ended, tail) = running(accelerator.as_ref(), place);
    said(&tail, 2);
    write(&machine.handle(), &directory, SnapshotOptions::default()).unwrap();
    drop(machine);
    for entry in std::fs::read_dir(&directory).unwrap() {
        let path = entry.unwrap().path();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(path, mode).unwrap();
    }
    directory
}

#[test]
fn damaged_truncated_and_foreign_files_are_named() {
    let place = tempfile::tempdir().unwrap();
    let directory = snapshot(&place);
    let other = tempfile::tempdir().unwrap();
    let foreign = snapshot(&other);
    let refused = |what: &str, name: &str| {
        let error = open(&place, &directory).map(|_| ()).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(name), "{what}: {text}");
        assert!(
            matches!(
                error,
                SnapshotError::Damaged { .. } | SnapshotError::Io { .. }
            ),
            "{what}: {error:?}"
        );
        assert!(verify(&directory).is_err());
    };
    for name in ["manifest", "memory", "disk0.overlay", "disk0.bitmap"] {
        let path = directory.join(name);
        let whole = std::fs::read(&path).unwrap();
        // Truncated, by a byte and to nothing.
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        for length in [whole.len() as u64 - 1, whole.len() as u64 / 2] {
            file.set_len(length).unwrap();
            refused("truncated", name);
        }
        // Of another snapshot; a manifest is one, and then the rest is not.
        let strange = std::fs::read(foreign.join(name)).unwrap();
        std::fs::write(&path, &strange).unwrap();
        if strange != whole {
            refused("foreign", if name == "manifest" { "memory" } else { name });
        }
        std::fs::remove_file(&path).unwrap();
        if name != "manifest" {
            refused("missing", name);
        }
        std::fs::write(&path, &whole).unwrap();
        open(&place, &directory).unwrap();
        verify(&directory).unwrap();
    }
    // Flipped bits in data: found by reading it all.
    for name in ["memory", "disk0.overlay"] {
        let mut options = std::fs::File::options();
        let options = options.read(true).write(true);
        let file = options.open(directory.join(name)).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, 7003).unwrap();
        file.write_all_at(&[byte[0] ^ 4], 7003).unwrap();
        let error = verify(&directory).unwrap_err().to_string();
        assert!(
            error.contains(name) && error.contains("from byte 0"),
            "{error}"
        );
        file.write_all_at(&byte, 7003).unwrap();
        verify(&directory).unwrap();
    }
    let nothing = tempfile::tempdir().unwrap();
    let error = open(&place, nothing.path()).map(|_| ()).unwrap_err();
    assert!(matches!(error, SnapshotError::Foreign { .. }), "{error}");
}

#[test]
fn a_disk_that_changed_is_refused() {
    let place = tempfile::tempdir().unwrap();
    let directory = snapshot(&place);
    let base = place.path().join("base");
    let bytes = std::fs::read(&base).unwrap();
    // The same again at another time: a copy.
    std::fs::write(&base, &bytes).unwrap();
    open(&place, &directory).unwrap();
    let mut changed = bytes.clone();
    changed[100] ^= 1;
    std::fs::write(&base, &changed).unwrap();
    let error = open(&place, &directory).map(|_| ()).unwrap_err();
    assert!(
        matches!(error, SnapshotError::DiskChanged { .. }),
        "{error}"
    );
    std::fs::write(&base, &bytes[..bytes.len() / 2]).unwrap();
    let error = open(&place, &directory).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("bytes"), "{error}");
}

#[test]
fn a_disk_outside_is_referenced_and_must_not_be_written_since() {
    let accelerator = engines().remove(0);
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("disk");
    std::fs::write(&path, vec![1; 1 << 20]).unwrap();
    let config = DiskConfig {
        path: path.clone(),
        format: DiskFormat::Raw,
        backing: Vec::new(),
        read_only: false,
        throw_away: false,
        serial: "data".into(),
    };
    let image = BlockImage::open(&path, &config.options()).unwrap();
    let mut spec = spec(kernel(&[&alphabet()]));
    spec.disks.push(DiskSource { image, config }.into());
    let (io, tail) = tail();
    let (machine, _ended) = start(spec, accelerator.as_ref(), io).unwrap();
    said(&tail, 1);
    let directory = place.path().join("snapshot");
    write(&machine.handle(), &directory, SnapshotOptions::default()).unwrap();
    // The machine has it still.
    let error = open(&place, &directory).map(|_| ()).unwrap_err();
    assert!(matches!(error, SnapshotError::Disk(_)), "{error}");
    drop(machine);
    open(&place, &directory).unwrap();
    let now = std::fs::read(&path).unwrap();
    std::fs::write(&path, now).unwrap();
    let error = open(&place, &directory).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("written since"), "{error}");
}

#[test]
fn a_name_is_taken_once_and_rests_are_removed() {
    let accelerator = engines().remove(0);
    let place = tempfile::tempdir().unwrap();
    let directory = place.path().join("snapshot");
    let (machine, _ended, tail) = running(accelerator.as_ref(), &place);
    said(&tail, 1);
    // What a killed process leaves.
    let rest = place.path().join(".snapshot.partial");
    std::fs::create_dir(&rest).unwrap();
    std::fs::write(rest.join("memory"), b"half").unwrap();
    let handle = machine.handle();
    write(&handle, &directory, SnapshotOptions::default()).unwrap();
    assert!(!rest.exists());
    let error = write(&handle, &directory, SnapshotOptions::default()).unwrap_err();
    assert!(matches!(error, SnapshotError::Exists(_)), "{error}");
    let error = write(
        &handle,
        Path::new("/no/such/place"),
        SnapshotOptions::default(),
    );
    assert!(matches!(error, Err(SnapshotError::Io { .. })));
    // Somebody else at work.
    std::fs::create_dir(place.path().join(".other.partial")).unwrap();
    let held = std::fs::File::open(place.path().join(".other.partial")).unwrap();
    rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let error = write(
        &handle,
        &place.path().join("other"),
        SnapshotOptions::default(),
    );
    assert!(matches!(error, Err(SnapshotError::Busy(_))));
    assert_eq!(handle.run_state(), RunState::Running);
}

type Files = Vec<(String, Vec<u8>)>;

/// The files of one snapshot; its base stays where it is.
fn template() -> &'static [(String, Vec<u8>)] {
    use std::sync::OnceLock;
    static TEMPLATE: OnceLock<(TempDir, Files)> = OnceLock::new();
    let (_, files) = TEMPLATE.get_or_init(|| {
        let place = tempfile::tempdir().unwrap();
        let directory = snapshot(&place);
        let files = std::fs::read_dir(&directory).unwrap().map(|entry| {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            (name, std::fs::read(&path).unwrap())
        });
        let files = files.collect();
        std::fs::remove_dir_all(directory).unwrap();
        (place, files)
    });
    files
}

fn manifest_bytes() -> &'static [u8] {
    let manifest = template().iter().find(|(name, _)| name == "manifest");
    &manifest.unwrap().1
}

/// The manifest with a value somewhere in it replaced, under a right checksum.
fn with_other_value(pick: usize, value: serde_json::Value) -> Option<Vec<u8>> {
    fn places(value: &mut serde_json::Value) -> Vec<&mut serde_json::Value> {
        match value {
            serde_json::Value::Array(items) => items.iter_mut().flat_map(places).collect(),
            serde_json::Value::Object(map) => map.values_mut().flat_map(places).collect(),
            leaf => vec![leaf],
        }
    }
    let bytes = manifest_bytes();
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    let mut json: serde_json::Value = serde_json::from_slice(&bytes[end + 1..]).ok()?;
    let mut leaves = places(&mut json);
    let count = leaves.len();
    *leaves[pick % count] = value;
    let body = serde_json::to_vec(&json).ok()?;
    let mut bytes = format!("favo-snapshot 1 sha256:{}\n", manifest::Sum::of(&body)).into_bytes();
    bytes.extend(body);
    Some(bytes)
}

fn any_value() -> impl Strategy<Value = serde_json::Value> {
    prop_oneof![
        any::<u64>().prop_map(Into::into),
        (0..300u64).prop_map(Into::into),
        any::<i32>().prop_map(Into::into),
        ".{0,8}".prop_map(Into::into),
        Just(serde_json::Value::Null),
        Just(serde_json::json!([])),
        Just(serde_json::json!([u64::MAX, 0])),
        any::<bool>().prop_map(Into::into),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn any_changed_byte_of_a_manifest_is_refused(at in any::<prop::sample::Index>(), flip in 1..=255u8) {
        let mut bytes = manifest_bytes().to_vec();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        prop_assert!(Manifest::decode(&bytes, Path::new("m")).is_err());
    }

    #[test]
    fn junk_is_no_manifest(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(Manifest::decode(&bytes, Path::new("m")).is_err());
        let mut dressed = format!("favo-snapshot 1 sha256:{}\n", manifest::Sum::of(&bytes)).into_bytes();
        dressed.extend(bytes);
        prop_assert!(Manifest::decode(&dressed, Path::new("m")).is_err());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    /// A manifest that somebody forged: it is refused with a reason, or runs;
    /// nothing panics.
    #[test]
    fn forged_states_are_refused_or_run(pick in any::<usize>(), value in any_value()) {
        let Some(bytes) = with_other_value(pick, value) else {
            return Ok(());
        };
        let Ok(manifest) = Manifest::decode(&bytes, Path::new("m")) else {
            return Ok(());
        };
        if manifest.config.memory > 64 << 20 || manifest.config.cpus > 4 {
            return Ok(());
        }
        let place = tempfile::tempdir().unwrap();
        let directory = copy_of_template(&place);
        std::fs::write(directory.join("manifest"), bytes).unwrap();
        let Ok(spec) = open(&place, &directory) else {
            return Ok(());
        };
        let (io, _tail) = tail();
        let accelerator = soft();
        let machine = Machine::start(spec, accelerator.as_ref(), io, Arc::new(|_| {}));
        if let Ok(machine) = machine {
            let _ = machine.handle().pause();
        }
    }
}

fn soft() -> Arc<dyn Accelerator> {
    let choice = crate::engine::EngineChoice::Only(favo_accel::EngineKind::Soft);
    crate::engine::open(choice).unwrap().accelerator
}

fn copy_of_template(place: &TempDir) -> PathBuf {
    let directory = place.path().join("forged");
    std::fs::create_dir(&directory).unwrap();
    for (name, bytes) in template() {
        std::fs::write(directory.join(name), bytes).unwrap();
    }
    directory
}
