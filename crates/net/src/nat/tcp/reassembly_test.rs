use proptest::prelude::*;

use super::*;

proptest! {
    /// Whatever order and overlap pieces come in, what goes out is the
    /// stream, it never runs past what came, and no more is held than told.
    #[test]
    fn pieces_in_any_order_are_the_stream(
        start in any::<u32>(),
        pieces in prop::collection::vec((0..2000_usize, 1..300_usize), 1..200),
        room in 1..1500_usize,
    ) {
        let stream: Vec<u8> = (0..4000_usize).map(|i| ((i * 31) >> 2) as u8).collect();
        let mut kept = Reassembly::default();
        let mut came = vec![false; stream.len()];
        let mut out = Vec::new();
        for (at, length) in pieces {
            let bytes = &stream[at..at + length];
            came[at..at + length].fill(true);
            let next = start.wrapping_add(out.len() as u32);
            if at > out.len() {
                kept.keep(next, start.wrapping_add(at as u32), bytes, room);
                prop_assert!(kept.len() <= room);
                prop_assert!(kept.parts.len() <= PARTS);
                prop_assert!(kept.parts.is_sorted_by_key(|part| part.at.wrapping_sub(next)));
            } else {
                if at + length > out.len() {
                    out.extend_from_slice(&bytes[out.len() - at..]);
                }
                while let Some(more) = kept.take(start.wrapping_add(out.len() as u32)) {
                    prop_assert!(!more.is_empty());
                    out.extend(more);
                }
            }
            prop_assert!(out == stream[..out.len()]);
            prop_assert!(came[..out.len()].iter().all(|came| *came));
        }
    }
}

#[test]
fn one_hole_filled_gives_all_that_follows() {
    let mut kept = Reassembly::default();
    for at in 1..1000_u32 {
        kept.keep(0, at * 10, &[at as u8; 10], 1 << 20);
    }
    assert_eq!(kept.take(0), None);
    assert_eq!(kept.take(10).map(|bytes| bytes.len()), Some(9990));
    assert_eq!(kept.len(), 0);
}

#[test]
fn confetti_is_bounded() {
    let mut kept = Reassembly::default();
    for at in 0..10_000_u32 {
        kept.keep(0, 2 * at + 1, &[1], 1 << 20);
    }
    assert_eq!(kept.parts.len(), PARTS);
}
