use super::*;
use crate::NoProgress;
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// A copy has the same bytes and digest, whatever lies where.
    #[test]
    fn copies_are_equal(
        pieces in proptest::collection::vec((0u64..3_000_000, 1usize..20_000, any::<u8>()), 0..6),
        tail in 0u64..5_000,
    ) {
        let directory = tempfile::tempdir().unwrap();
        let from_path = directory.path().join("from");
        let from = File::create_new(&from_path).unwrap();
        let mut size = tail;
        for (offset, length, byte) in pieces {
            from.write_all_at(&vec![byte; length], offset).unwrap();
            size = size.max(offset + length as u64 + tail);
        }
        from.set_len(size).unwrap();
        let from = File::open(&from_path).unwrap();
        let to_path = directory.path().join("to");
        let to = File::create_new(&to_path).unwrap();
        copy(&from, &from_path, &to, &to_path, &NoProgress).unwrap();
        let bytes = std::fs::read(&from_path).unwrap();
        prop_assert!(bytes == std::fs::read(&to_path).unwrap());
        let digest = Digest::of(&bytes);
        prop_assert_eq!(hash(&from_path, &NoProgress).unwrap(), (digest, size));
        prop_assert_eq!(hash(&to_path, &NoProgress).unwrap(), (digest, size));
    }
}

#[test]
fn a_hole_stays_a_hole() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("sparse");
    let file = File::create_new(&path).unwrap();
    file.set_len(1 << 30).unwrap();
    file.write_all_at(b"x", 1 << 29).unwrap();
    let copy_path = directory.path().join("copy");
    let to = File::create_new(&copy_path).unwrap();
    copy(
        &File::open(&path).unwrap(),
        &path,
        &to,
        &copy_path,
        &NoProgress,
    )
    .unwrap();
    assert!(stored_size(&copy_path).unwrap().bytes() < 1 << 20);
}
