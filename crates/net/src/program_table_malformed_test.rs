//! What a guest sends that is no proper packet.

use super::*;

/// An IPv4 frame with a changed header, its checksum right again.
fn resigned(frame: Vec<u8>, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    changed(frame, |f| {
        change(f);
        sign(f);
    })
}

/// The frame with an IPv6 extension header of eight bytes before the
/// transport's.
fn extended(frame: Vec<u8>, kind: u8, header: [u8; 8]) -> Vec<u8> {
    changed(frame, |f| {
        let next = std::mem::replace(&mut f[20], kind);
        let length = u16::from_be_bytes([f[18], f[19]]) + 8;
        f[18..20].copy_from_slice(&length.to_be_bytes());
        f.splice(54..54, header);
        f[54] = next;
    })
}

/// The frame with four bytes of IPv4 options.
fn with_options(frame: Vec<u8>, options: [u8; 4]) -> Vec<u8> {
    changed(frame, |f| {
        f[14] = 0x46;
        let length = u16::from_be_bytes([f[16], f[17]]) + 4;
        f[16..18].copy_from_slice(&length.to_be_bytes());
        f.splice(34..34, options);
        f[24..26].fill(0);
        let sum = Sum::default().bytes(&f[14..38]).checksum();
        f[24..26].copy_from_slice(&sum.to_be_bytes());
    })
}

/// The frame with another EtherType.
fn carrying(ethertype: u16) -> Vec<u8> {
    changed(web(TO_GATEWAY, OUT_4), |f| {
        f[12..14].copy_from_slice(&ethertype.to_be_bytes())
    })
}

pub(super) fn cases() -> Vec<Case> {
    use DropReason as R;
    use Origin::Guest;
    use Segment::{Echo, Icmp6, Tcp, Udp};
    use Verdict::Drop;
    let w4 = || web(TO_GATEWAY, OUT_4);
    let w6 = || web(TO_GATEWAY, OUT_6);
    let udp = || frame(TO_GATEWAY, OUT_4, Udp(1, 2));
    let udp6 = || frame(TO_GATEWAY, OUT_6, Udp(1, 2));
    let mut cases = vec![
        // Malformed.
        case("empty", Guest, vec![], Drop(R::Truncated)),
        case(
            "half an ethernet header",
            Guest,
            vec![0; 13],
            Drop(R::Truncated),
        ),
        case(
            "no packet",
            Guest,
            changed(web(TO_GATEWAY, OUT_4), |f| f.truncate(14)),
            Drop(R::Truncated),
        ),
        case(
            "cut short",
            Guest,
            changed(web(TO_GATEWAY, OUT_4), |f| f.truncate(40)),
            Drop(R::Truncated),
        ),
        case(
            "v6 cut short",
            Guest,
            changed(web(TO_GATEWAY, OUT_6), |f| f.truncate(60)),
            Drop(R::Truncated),
        ),
        case(
            "vlan tag",
            Guest,
            changed(web(TO_GATEWAY, OUT_4), |f| {
                f[12..14].copy_from_slice(&[0x81, 0])
            }),
            Drop(R::UnknownProtocol),
        ),
        case(
            "v6 in a v4 frame",
            Guest,
            changed(web(TO_GATEWAY, OUT_6), |f| {
                f[12..14].copy_from_slice(&[8, 0])
            }),
            Drop(R::BadVersion),
        ),
        case(
            "header checksum",
            Guest,
            changed(web(TO_GATEWAY, OUT_4), |f| f[24] ^= 1),
            Drop(R::BadHeaderChecksum),
        ),
        case(
            "tcp checksum",
            Guest,
            changed(web(TO_GATEWAY, OUT_4), |f| f[50] ^= 1),
            Drop(R::BadChecksum),
        ),
        case(
            "tcp6 checksum",
            Guest,
            changed(web(TO_GATEWAY, OUT_6), |f| f[70] ^= 1),
            Drop(R::BadChecksum),
        ),
        case(
            "udp checksum",
            Guest,
            changed(frame(TO_GATEWAY, OUT_4, Udp(1, 2)), |f| f[40] ^= 1),
            Drop(R::BadChecksum),
        ),
        case(
            "ping checksum",
            Guest,
            changed(frame(TO_GATEWAY, OUT_4, Echo(true)), |f| f[36] ^= 1),
            Drop(R::BadChecksum),
        ),
        case(
            "no udp checksum",
            Guest,
            changed(frame(TO_GATEWAY, OUT_4, Udp(1, 2)), |f| f[40..42].fill(0)),
            Verdict::Uplink,
        ),
        case(
            "no udp6 checksum",
            Guest,
            changed(frame(TO_GATEWAY, OUT_6, Udp(1, 2)), |f| f[60..62].fill(0)),
            Drop(R::BadChecksum),
        ),
        case(
            "dns checksum",
            Guest,
            changed(
                frame(TO_GATEWAY, ("10.0.0.2", "10.0.0.1"), Udp(1, 53)),
                |f| f[40] ^= 1,
            ),
            Drop(R::BadChecksum),
        ),
        case(
            "tcp offset",
            Guest,
            changed(web(TO_GATEWAY, OUT_4), |f| f[46] = 0x40),
            Drop(R::BadTransport),
        ),
        case(
            "tcp options beyond",
            Guest,
            changed(web(TO_GATEWAY, OUT_4), |f| f[46] = 0xf0),
            Drop(R::BadTransport),
        ),
        case(
            "first fragment",
            Guest,
            changed(web(TO_GATEWAY, OUT_4), |f| {
                f[20] = 0x20;
                sign(f)
            }),
            Drop(R::Fragment),
        ),
        case(
            "last fragment",
            Guest,
            changed(web(TO_GATEWAY, OUT_4), |f| {
                f[21] = 9;
                sign(f)
            }),
            Drop(R::Fragment),
        ),
        case(
            "v6 fragment",
            Guest,
            changed(web(TO_GATEWAY, OUT_6), |f| f[20] = 44),
            Drop(R::Fragment),
        ),
        case(
            "v6 routing header",
            Guest,
            changed(web(TO_GATEWAY, OUT_6), |f| f[20] = 43),
            Drop(R::BadExtension),
        ),
        case(
            "too long",
            Guest,
            {
                let mut frame = Vec::new();
                let to = Envelope {
                    ethernet: TO_GATEWAY,
                    ip: (OUT_4.0.parse().unwrap(), OUT_4.1.parse().unwrap()),
                };
                build::udp(&mut frame, to, (1, 2), &[0; 1473]);
                frame
            },
            Drop(R::TooLong),
        ),
        case(
            "too long 6",
            Guest,
            {
                let mut frame = Vec::new();
                let to = Envelope {
                    ethernet: TO_GATEWAY,
                    ip: (OUT_6.0.parse().unwrap(), OUT_6.1.parse().unwrap()),
                };
                build::udp(&mut frame, to, (1, 2), &[0; 1453]);
                frame
            },
            Drop(R::TooLong),
        ),
        case(
            "version 5",
            Guest,
            resigned(w4(), |f| f[14] = 0x55),
            Drop(R::BadVersion),
        ),
        case(
            "v4 in a v6 frame",
            Guest,
            carrying(0x86dd),
            Drop(R::BadVersion),
        ),
        case(
            "header of 16 bytes",
            Guest,
            resigned(w4(), |f| f[14] = 0x44),
            Drop(R::Truncated),
        ),
        case(
            "header longer than the packet",
            Guest,
            changed(w4(), |f| {
                f[14] = 0x4f;
                f.truncate(14 + 24)
            }),
            Drop(R::Truncated),
        ),
        case(
            "shorter than its own header",
            Guest,
            resigned(w4(), |f| f[16..18].copy_from_slice(&[0, 19])),
            Drop(R::Truncated),
        ),
        case(
            "says more than there is",
            Guest,
            resigned(w4(), |f| f[17] += 1),
            Drop(R::Truncated),
        ),
        case(
            "v6 says more than there is",
            Guest,
            changed(w6(), |f| f[19] += 1),
            Drop(R::Truncated),
        ),
        case(
            "padding behind the packet",
            Guest,
            changed(w4(), |f| f.resize(100, 0xaa)),
            Verdict::Uplink,
        ),
        case(
            "no room for tcp",
            Guest,
            resigned(w4(), |f| f[17] = 39),
            Drop(R::BadTransport),
        ),
        case(
            "no room for udp",
            Guest,
            resigned(udp(), |f| f[17] = 27),
            Drop(R::BadTransport),
        ),
        case(
            "no room for icmp",
            Guest,
            resigned(frame(TO_GATEWAY, OUT_4, Echo(true)), |f| f[17] = 27),
            Drop(R::BadTransport),
        ),
        case(
            "udp longer than its packet",
            Guest,
            changed(udp(), |f| f[39] += 1),
            Drop(R::BadTransport),
        ),
        case(
            "udp shorter than its header",
            Guest,
            changed(udp(), |f| f[39] = 7),
            Drop(R::BadTransport),
        ),
        case(
            "udp6 without a length",
            Guest,
            changed(udp6(), |f| f[59] = 0),
            Drop(R::BadTransport),
        ),
        case(
            "udp6 checksum",
            Guest,
            changed(udp6(), |f| f[60] ^= 1),
            Drop(R::BadChecksum),
        ),
        case(
            "ping6 checksum",
            Guest,
            changed(frame(TO_GATEWAY, OUT_6, Echo(true)), |f| f[56] ^= 1),
            Drop(R::BadChecksum),
        ),
        case(
            "neighbour solicitation, wrong checksum",
            Guest,
            changed(
                discovery(135, ("fd00:1::2", "fd00:1::1"), "fd00:1::1", Some((1, MAC))),
                |f| f[56] ^= 1,
            ),
            Drop(R::BadChecksum),
        ),
        case(
            "neighbour solicitation from afar",
            Guest,
            changed(
                discovery(135, ("fd00:1::2", "fd00:1::1"), "fd00:1::1", Some((1, MAC))),
                |f| f[21] = 254,
            ),
            Drop(R::SpoofedNeighbour),
        ),
        case(
            "icmpv6 over v4",
            Guest,
            resigned(frame(TO_GATEWAY, OUT_4, Echo(true)), |f| f[23] = 58),
            Drop(R::BadTransport),
        ),
        case(
            "icmp over v6",
            Guest,
            changed(frame(TO_GATEWAY, OUT_6, Icmp6(128)), |f| f[20] = 1),
            Drop(R::BadTransport),
        ),
        case(
            "options of nothing",
            Guest,
            with_options(w4(), [1, 1, 1, 0]),
            Verdict::Uplink,
        ),
        case(
            "router alert",
            Guest,
            with_options(w4(), [148, 4, 0, 0]),
            Verdict::Uplink,
        ),
        case(
            "strict source route",
            Guest,
            with_options(w4(), [137, 3, 4, 0]),
            Drop(R::BadExtension),
        ),
        case(
            "loose source route",
            Guest,
            with_options(w4(), [1, 131, 3, 4]),
            Drop(R::BadExtension),
        ),
        case(
            "an option that does not end",
            Guest,
            with_options(w4(), [7, 9, 0, 0]),
            Drop(R::BadExtension),
        ),
        case(
            "an option of no length",
            Guest,
            with_options(w4(), [7, 0, 0, 0]),
            Drop(R::BadExtension),
        ),
        case(
            "a middle fragment",
            Guest,
            resigned(w4(), |f| f[20..22].copy_from_slice(&[0x20, 9])),
            Drop(R::Fragment),
        ),
        case(
            "not to be fragmented",
            Guest,
            resigned(w4(), |f| f[20] = 0x40),
            Verdict::Uplink,
        ),
        case(
            "a fragment for dhcp",
            Guest,
            resigned(
                frame(
                    (MAC, MacAddress::BROADCAST),
                    ("0.0.0.0", "255.255.255.255"),
                    Udp(68, 67),
                ),
                |f| f[20] = 0x20,
            ),
            Drop(R::Fragment),
        ),
        case(
            "an atomic v6 fragment",
            Guest,
            extended(w6(), 44, [0; 8]),
            Drop(R::Fragment),
        ),
        case(
            "a v6 fragment behind options",
            Guest,
            extended(
                extended(w6(), 44, [0, 0, 0, 8, 0, 0, 0, 1]),
                60,
                [0, 0, 1, 4, 0, 0, 0, 0],
            ),
            Drop(R::Fragment),
        ),
        case(
            "v6 hop-by-hop options",
            Guest,
            extended(w6(), 0, [0, 0, 1, 4, 0, 0, 0, 0]),
            Verdict::Uplink,
        ),
        case(
            "v6 hop-by-hop options in the second place",
            Guest,
            extended(
                extended(w6(), 0, [0, 0, 1, 4, 0, 0, 0, 0]),
                60,
                [0, 0, 1, 4, 0, 0, 0, 0],
            ),
            Drop(R::BadExtension),
        ),
        case(
            "v6 options longer than the packet",
            Guest,
            extended(w6(), 60, [0, 200, 1, 4, 0, 0, 0, 0]),
            Drop(R::Truncated),
        ),
        case(
            "v6 options without end",
            Guest,
            (0..20).fold(w6(), |f, _| extended(f, 60, [0, 0, 1, 4, 0, 0, 0, 0])),
            Drop(R::BadExtension),
        ),
        case(
            "no next header",
            Guest,
            changed(w6(), |f| f[20] = 59),
            Verdict::Uplink,
        ),
        case(
            "tcp with all flags",
            Guest,
            frame(TO_GATEWAY, OUT_4, Tcp(4000, 443, 0xff)),
            Verdict::Uplink,
        ),
        case(
            "tcp port 0",
            Guest,
            frame(TO_GATEWAY, OUT_4, Tcp(0, 0, SYN)),
            Verdict::Uplink,
        ),
        case(
            "arp of another hardware",
            Guest,
            changed(arp(1, (MAC, [10, 0, 0, 2]), [10, 0, 0, 1]), |f| f[15] = 6),
            Drop(R::SpoofedArp),
        ),
        case(
            "arp with long addresses",
            Guest,
            changed(arp(1, (MAC, [10, 0, 0, 2]), [10, 0, 0, 1]), |f| f[18] = 8),
            Drop(R::SpoofedArp),
        ),
        case(
            "arp cut short",
            Guest,
            changed(arp(1, (MAC, [10, 0, 0, 2]), [10, 0, 0, 1]), |f| {
                f.truncate(41)
            }),
            Drop(R::SpoofedArp),
        ),
    ];
    // Spanning tree, QinQ, RARP, MPLS, PPPoE, EAPOL, LLDP, and a length.
    for ethertype in [0x26, 0x88a8, 0x8035, 0x8847, 0x8863, 0x888e, 0x88cc, 0xffff] {
        let dropped = Drop(R::UnknownProtocol);
        cases.push(case(
            "another ethertype",
            Guest,
            carrying(ethertype),
            dropped,
        ));
    }
    cases
}
