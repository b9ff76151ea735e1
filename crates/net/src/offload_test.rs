use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use proptest::prelude::*;

use super::*;

/// A frame as a guest with offloads sends it: whole, the checksum field
/// holding the pseudo header's sum.
fn large_frame(kind: SegmentKind, ipv6: bool, payload: &[u8]) -> (Vec<u8>, PartialChecksum) {
    let ethernet = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    let ip = if ipv6 {
        ethernet.ipv6([0xfd; 16], [0xfe; 16], 64)
    } else {
        ethernet.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
    };
    let mut frame = Vec::new();
    let offset = match kind {
        SegmentKind::Udp => {
            ip.udp(1000, 53).write(&mut frame, payload).unwrap();
            6
        }
        _ => {
            let tcp = ip.tcp(1000, 80, u32::MAX - 20_000, 8192).psh().fin().cwr();
            let tcp = tcp
                .options(&[
                    etherparse::TcpOptionElement::Timestamp(1, 2),
                    etherparse::TcpOptionElement::Noop,
                ])
                .unwrap();
            tcp.write(&mut frame, payload).unwrap();
            16
        }
    };
    let start = if ipv6 { 54 } else { 34 };
    put(&mut frame, start + offset, 0);
    let checksum = PartialChecksum {
        start: start as u16,
        offset: offset as u16,
    };
    (frame, checksum)
}

/// Panics unless every checksum in the frame is right; its payload.
fn verified_payload(frame: &[u8]) -> Vec<u8> {
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    let transport = packet.transport.unwrap();
    match (packet.net.unwrap(), &transport) {
        (NetSlice::Ipv4(ip), TransportSlice::Tcp(tcp)) => {
            assert_eq!(
                ip.header().header_checksum(),
                ip.header().to_header().calc_header_checksum()
            );
            let computed = tcp.calc_checksum_ipv4(ip.header().source(), ip.header().destination());
            assert_eq!(computed.unwrap(), tcp.checksum());
            tcp.payload().to_vec()
        }
        (NetSlice::Ipv6(ip), TransportSlice::Tcp(tcp)) => {
            let computed = tcp.calc_checksum_ipv6(ip.header().source(), ip.header().destination());
            assert_eq!(computed.unwrap(), tcp.checksum());
            tcp.payload().to_vec()
        }
        (net, TransportSlice::Udp(udp)) => {
            let computed = match net {
                NetSlice::Ipv4(ip) => udp.to_header().calc_checksum_ipv4_raw(
                    ip.header().source(),
                    ip.header().destination(),
                    udp.payload(),
                ),
                NetSlice::Ipv6(ip) => udp.to_header().calc_checksum_ipv6_raw(
                    ip.header().source(),
                    ip.header().destination(),
                    udp.payload(),
                ),
                NetSlice::Arp(_) => panic!("not ARP"),
            };
            assert_eq!(computed.unwrap(), udp.checksum());
            udp.payload().to_vec()
        }
        _ => panic!("neither TCP nor UDP"),
    }
}

fn kind() -> impl Strategy<Value = (SegmentKind, bool)> {
    prop_oneof![
        Just((SegmentKind::Tcp4, false)),
        Just((SegmentKind::Tcp6, true)),
        Just((SegmentKind::Udp, false)),
        Just((SegmentKind::Udp, true)),
    ]
}

proptest! {
    #[test]
    fn pieces_make_the_original(
        (kind, ipv6) in kind(),
        payload in prop::collection::vec(any::<u8>(), 0..40_000),
        size in 1u16..9000,
    ) {
        let size = size.max((payload.len() / 200) as u16).max(1);
        let (frame, checksum) = large_frame(kind, ipv6, &payload);
        let segmentation = Segmentation { kind, size, header: 0 };
        let cutter = Cutter::new(&frame, checksum, segmentation).unwrap();
        let (mut joined, mut piece) = (Vec::new(), Vec::new());
        for index in 0..cutter.pieces() {
            cutter.cut(&frame, index, &mut piece).unwrap();
            finish_checksum(&mut piece, cutter.checksum()).unwrap();
            let part = verified_payload(&piece);
            prop_assert!(part.len() <= usize::from(size));
            if let Some(TransportSlice::Tcp(tcp)) =
                SlicedPacket::from_ethernet(&piece).unwrap().transport
            {
                let expected = (u32::MAX - 20_000).wrapping_add(joined.len() as u32);
                prop_assert_eq!(tcp.sequence_number(), expected);
                let last = index + 1 == cutter.pieces();
                prop_assert_eq!((tcp.fin(), tcp.psh(), tcp.cwr()), (last, last, index == 0));
            }
            joined.extend(part);
        }
        prop_assert!(cutter.cut(&frame, cutter.pieces(), &mut piece).is_none());
        prop_assert!(joined == payload);
    }

    #[test]
    fn any_frame_is_cut_or_refused(
        mut frame in prop::collection::vec(any::<u8>(), 0..200),
        start in 0u16..220, offset in any::<u16>(), size in any::<u16>(),
        (kind, ipv6) in kind(), plausible in any::<bool>(),
    ) {
        if plausible && frame.len() > 24 {
            let (ethertype, version, protocol) =
                if ipv6 { (0x86ddu16, 0x60, 20) } else { (0x0800, 0x45, 23) };
            frame[12..14].copy_from_slice(&ethertype.to_be_bytes());
            frame[14] = version;
            frame[20] = if ipv6 { 6 } else { 0 };
            frame[protocol] = if kind == SegmentKind::Udp { 17 } else { 6 };
        }
        let start = if plausible { if ipv6 { 54 } else { 34 } } else { start };
        let checksum = PartialChecksum { start, offset };
        let segmentation = Segmentation { kind, size, header: 0 };
        if let Some(cutter) = Cutter::new(&frame, checksum, segmentation) {
            let mut piece = Vec::new();
            for index in 0..cutter.pieces().min(100) {
                prop_assert!(cutter.cut(&frame, index, &mut piece).is_some());
                prop_assert!(finish_checksum(&mut piece, cutter.checksum()).is_some());
            }
        }
        let before = frame.clone();
        if finish_checksum(&mut frame, checksum).is_none() {
            prop_assert_eq!(frame, before);
        }
    }
}

#[test]
fn a_partial_checksum_is_finished_as_the_sender_would() {
    for (kind, ipv6) in [(SegmentKind::Tcp4, false), (SegmentKind::Udp, true)] {
        let (mut frame, checksum) = large_frame(kind, ipv6, b"hello");
        let segmentation = Segmentation {
            kind,
            size: 1000,
            header: 0,
        };
        let cutter = Cutter::new(&frame, checksum, segmentation).unwrap();
        let sum = cutter.pseudo_header(&frame);
        let at = usize::from(checksum.start + checksum.offset);
        put(&mut frame, at, sum);
        finish_checksum(&mut frame, checksum).unwrap();
        assert_eq!(verified_payload(&frame), b"hello");
    }
}

#[test]
fn a_udp_checksum_of_zero_is_sent_as_ones() {
    // Start at the UDP header; its words sum to 0xffff.
    let mut frame = vec![0; 14 + 8];
    put(&mut frame, 14, 0xffff);
    let checksum = PartialChecksum {
        start: 14,
        offset: 6,
    };
    finish_checksum(&mut frame, checksum).unwrap();
    assert_eq!(&frame[20..], [0xff, 0xff]);
}

#[test]
fn vlan_tags_are_looked_behind() {
    let mut frame = vec![0; 30];
    put(&mut frame, 12, 0x88a8);
    put(&mut frame, 16, 0x8100);
    put(&mut frame, 20, 0x86dd);
    assert_eq!(network_header(&frame), Some((22, 0x86dd)));
    put(&mut frame, 20, 0x8100);
    assert_eq!(network_header(&frame), None);
    assert_eq!(network_header(&frame[..13]), None);
}

#[test]
fn fragments_are_not_cut() {
    let (mut frame, checksum) = large_frame(SegmentKind::Tcp4, false, &[0; 5000]);
    frame[20] = 0x20; // more fragments
    let segmentation = Segmentation {
        kind: SegmentKind::Tcp4,
        size: 1000,
        header: 0,
    };
    assert!(Cutter::new(&frame, checksum, segmentation).is_none());
}
