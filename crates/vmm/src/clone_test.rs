//! Clones of guests of a few instructions, in this process.

use std::sync::Arc;

use super::*;
use crate::machine::test::{alphabet, engines, follows, kernel, said, spec, start, tail};
use crate::machine::{Machine, RunState};
use crate::snapshot::test::disk;
use crate::snapshot::{self, SnapshotOptions};

fn adopt(
    cloned: &Cloned,
    accelerator: &dyn favo_accel::Accelerator,
) -> (Machine, crate::serial_io::ConsoleTail) {
    let descriptors = cloned.descriptors.iter();
    let descriptors = descriptors.map(|fd| fd.try_clone().unwrap()).collect();
    // As it comes through the socket.
    let json = serde_json::to_string(&cloned.machine).unwrap();
    let machine: MachineClone = serde_json::from_str(&json).unwrap();
    let parts = RestoreParts {
        scratch: std::env::temp_dir(),
        ..RestoreParts::default()
    };
    let spec = machine.into_spec(descriptors, parts).unwrap();
    let (io, tail) = tail();
    let machine = Machine::start(spec, accelerator, io, Arc::new(|_| {})).unwrap();
    (machine, tail)
}

#[test]
fn clones_and_clones_of_clones_go_on_on_their_own() {
    for accelerator in engines() {
        for backing in [
            favo_accel::MemoryBacking::Memfd,
            favo_accel::MemoryBacking::Anonymous,
        ] {
            let mut spec = spec(kernel(&[&alphabet()]));
            spec.backing = backing;
            let place = tempfile::tempdir().unwrap();
            spec.disks.push(disk(&place).into());
            let (io, tail) = tail();
            let (original, _ended) = start(spec, accelerator.as_ref(), io).unwrap();
            said(&tail, 3);
            let handle = original.handle();
            let first = fork(&handle, serde_json::Value::Null).unwrap();
            let (a, a_tail) = adopt(&first, accelerator.as_ref());
            let (b, b_tail) = adopt(&first, accelerator.as_ref());
            let count = tail.lines(1).len();
            said(&tail, count + 2);
            let second = fork(&handle, serde_json::Value::Null).unwrap();
            let (c, c_tail) = adopt(&second, accelerator.as_ref());
            said(&a_tail, 2);
            let third = fork(&a.handle(), serde_json::Value::Null).unwrap();
            let (d, d_tail) = adopt(&third, accelerator.as_ref());
            // Each has what was written to the disk before, and its own.
            for (number, machine) in (0..).zip([&a, &b, &c, &d]) {
                let source = machine.body_for_tests().disks[0].clone().unwrap();
                let mut bytes = [0; 7];
                source.image.read_at(7000, &mut bytes).unwrap();
                assert_eq!(&bytes, b"written", "{number}");
                source.image.write_at(7000, &[number; 7]).unwrap();
            }
            // A clone can be in a snapshot.
            let directory = place.path().join("snapshot");
            snapshot::write(&d.handle(), &directory, SnapshotOptions::default()).unwrap();
            snapshot::verify(&directory).unwrap();
            for tail in [&tail, &a_tail, &b_tail, &c_tail, &d_tail] {
                let count = tail.lines(1).len();
                let now = said(tail, count + 3);
                assert!(now.len() >= count + 3 && follows(&now), "{now}");
            }
            assert_eq!(handle.run_state(), RunState::Running);
            drop(original);
            let count = b_tail.lines(1).len();
            assert!(follows(&said(&b_tail, count + 3)));
            drop((a, b, c, d));
        }
    }
}

#[test]
fn what_was_handed_over_can_not_be_changed() {
    use std::os::unix::fs::FileExt;
    let accelerator = engines().remove(0);
    let mut spec = spec(kernel(&[&alphabet()]));
    spec.backing = favo_accel::MemoryBacking::Memfd;
    let (io, tail) = tail();
    let (original, _ended) = start(spec, accelerator.as_ref(), io).unwrap();
    said(&tail, 1);
    let cloned = fork(&original.handle(), serde_json::Value::Null).unwrap();
    for descriptor in &cloned.descriptors {
        let file = File::from(descriptor.try_clone().unwrap());
        assert!(file.write_all_at(b"x", 0).is_err());
        // Nor if it is opened anew.
        let again = format!("/proc/self/fd/{}", file.as_raw_fd());
        let again = File::options().write(true).open(again);
        assert!(again.is_err() || again.unwrap().write_all_at(b"x", 0).is_err());
    }
    let parts = RestoreParts::default();
    let error = cloned.machine.into_spec(Vec::new(), parts).map(|_| ());
    assert!(matches!(error, Err(SnapshotError::Misfit(_))));
}
