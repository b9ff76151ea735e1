use proptest::prelude::*;

use super::*;

fn offloads() -> impl Strategy<Value = Offload> {
    let kind = prop::sample::select(vec![SegmentKind::Tcp4, SegmentKind::Tcp6, SegmentKind::Udp]);
    let checksum = prop::option::of((any::<u16>(), any::<u16>()));
    let segmentation = prop::option::of((kind, any::<u16>(), any::<u16>()));
    (checksum, segmentation, any::<bool>()).prop_map(|(checksum, segmentation, checked)| Offload {
        checksum: checksum.map(|(start, offset)| PartialChecksum { start, offset }),
        segmentation: segmentation.map(|(kind, size, header)| Segmentation { kind, size, header }),
        checked,
    })
}

proptest! {
    #[test]
    fn frames_cross_with_their_offload(offload in offloads(), frame in prop::collection::vec(any::<u8>(), 0..100)) {
        let message = [&encode(offload)[..], &frame].concat();
        prop_assert_eq!(decode(&message), Some(PeerEvent::Frame(&frame, offload)));
    }

    #[test]
    fn no_bytes_break_the_reader(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
        let _ = decode(&bytes);
    }
}

#[test]
fn a_peer_that_does_not_read_costs_bounded_memory() {
    let directory = tempfile::tempdir().unwrap();
    let mut first = Peers::join(directory.path()).unwrap();
    let second = Peers::join(directory.path()).unwrap();
    first.serve(|_, _| {});
    assert_eq!(first.connections.len(), 1);
    let frame = vec![0; 60_000];
    for _ in 0..1000 {
        first.send(None, &frame, Offload::default());
    }
    let waiting = first.connections.values().next().unwrap().waiting_bytes;
    assert!(waiting <= MAXIMUM_WAITING && first.dropped() > 0);

    // What wasn't dropped arrives, once it is read.
    let mut second = second;
    let mut received = 0;
    for _ in 0..1000 {
        second.serve(|_, event| received += usize::from(matches!(event, PeerEvent::Frame(..))));
        first.serve(|_, _| {});
    }
    assert_eq!(received as u64 + first.dropped(), 1000);

    // And a peer that goes is told of.
    drop(second);
    let mut gone = false;
    first.serve(|_, event| gone |= event == PeerEvent::Ports(Vec::new()));
    assert!(gone && first.connections.is_empty());
}
