use proptest::prelude::*;

use super::*;
use crate::model::{GATEWAY_MAC, MacAddress};
use crate::packet::build::{self, Envelope};
use crate::packet::{ETHERNET_LENGTH, FlowKey};

fn udp(ip: (&str, &str)) -> Vec<u8> {
    let mut frame = Vec::new();
    let to = Envelope {
        ethernet: (MacAddress([2; 6]), GATEWAY_MAC),
        ip: (ip.0.parse().unwrap(), ip.1.parse().unwrap()),
    };
    build::udp(&mut frame, to, (1000, 2000), b"hello");
    frame.split_off(ETHERNET_LENGTH)
}

/// Rewrites an IPv4 header's checksum.
fn sign(packet: &mut [u8]) {
    let header = usize::from(packet[0] & 15) * 4;
    packet[10..12].fill(0);
    let sum = Sum::default().bytes(&packet[..header]).checksum();
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
}

#[test]
fn both_families_are_read() {
    for addresses in [("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")] {
        let packet = udp(addresses);
        let ip = Ip::parse(&packet).unwrap();
        assert_eq!(ip.source, addresses.0.parse::<IpAddr>().unwrap());
        assert_eq!(ip.ports, (1000, 2000));
        assert_eq!(ip.length, packet.len());
        assert!(ip.transport_checksum_holds(&packet, &Offload::default()));
        let mut wrong = packet;
        *wrong.last_mut().unwrap() ^= 1;
        assert!(!ip.transport_checksum_holds(&wrong, &Offload::default()));
    }
}

#[test]
fn padding_is_not_part_of_the_packet() {
    let mut packet = udp(("10.0.0.1", "10.0.0.2"));
    let length = packet.len();
    packet.extend([0; 18]);
    assert_eq!(Ip::parse(&packet).unwrap().length, length);
}

#[test]
fn each_malformation_has_its_name() {
    let good = udp(("10.0.0.1", "10.0.0.2"));
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut packet = good.clone();
        change(&mut packet);
        Ip::parse(&packet).unwrap_err()
    };
    assert_eq!(with(&|p| p.truncate(0)), Malformed::Length);
    assert_eq!(with(&|p| p.truncate(19)), Malformed::Length);
    assert_eq!(with(&|p| p[0] = 0x55), Malformed::Version);
    assert_eq!(with(&|p| p[0] = 0x44), Malformed::Length);
    assert_eq!(with(&|p| p[0] = 0x4f), Malformed::Length);
    assert_eq!(with(&|p| p[3] = 200), Malformed::Length);
    assert_eq!(with(&|p| p[8] ^= 1), Malformed::HeaderChecksum);
    for fragment in [[0x20, 0], [0, 1], [0x1f, 0xff]] {
        let change = |p: &mut Vec<u8>| {
            p[6..8].copy_from_slice(&fragment);
            sign(p);
        };
        assert_eq!(with(&change), Malformed::Fragment);
    }
    assert_eq!(with(&|p| p[25] = 7), Malformed::Transport);
    assert_eq!(with(&|p| p[25] = 100), Malformed::Transport);
    let tcp = |p: &mut Vec<u8>| {
        p[9] = protocol::TCP;
        sign(p);
    };
    assert_eq!(with(&tcp), Malformed::Transport, "a TCP header cut off");
}

#[test]
fn source_routes_are_refused() {
    let good = udp(("10.0.0.1", "10.0.0.2"));
    let with_options = |options: [u8; 4]| {
        let mut packet = good[..20].to_vec();
        packet.extend(options);
        packet.extend(&good[20..]);
        packet[0] = 0x46;
        packet[3] += 4;
        sign(&mut packet);
        Ip::parse(&packet).map(|ip| ip.ports)
    };
    assert_eq!(with_options([1, 1, 1, 0]), Ok((1000, 2000)));
    assert_eq!(
        with_options([148, 4, 0, 0]),
        Ok((1000, 2000)),
        "router alert"
    );
    assert_eq!(with_options([131, 3, 4, 0]), Err(Malformed::Extension));
    assert_eq!(with_options([137, 3, 4, 0]), Err(Malformed::Extension));
    assert_eq!(
        with_options([7, 0, 0, 0]),
        Err(Malformed::Extension),
        "an option that doesn't end"
    );
    assert_eq!(with_options([7, 9, 0, 0]), Err(Malformed::Extension));
}

#[test]
fn extension_headers_are_walked_to_an_end() {
    let good = udp(("fd00::1", "fd00::2"));
    let with_headers = |headers: &[u8]| {
        let mut packet = good[..40].to_vec();
        let mut kinds = headers.to_vec();
        packet[6] = kinds.first().copied().unwrap_or(protocol::UDP);
        kinds.push(protocol::UDP);
        for next in &kinds[1..] {
            packet.extend([*next, 0, 1, 4, 0, 0, 0, 0]);
        }
        packet.extend(&good[40..]);
        let length = (packet.len() - 40) as u16;
        packet[4..6].copy_from_slice(&length.to_be_bytes());
        Ip::parse(&packet).map(|ip| (ip.transport, ip.ports))
    };
    assert_eq!(with_headers(&[0]), Ok((48, (1000, 2000))));
    assert_eq!(with_headers(&[0, 60]), Ok((56, (1000, 2000))));
    assert_eq!(
        with_headers(&[60, 0]),
        Err(Malformed::Extension),
        "hop-by-hop comes first"
    );
    assert_eq!(with_headers(&[43]), Err(Malformed::Extension));
    assert_eq!(with_headers(&[44]), Err(Malformed::Fragment));
    assert_eq!(with_headers(&[60; 6]), Err(Malformed::Extension));
}

#[test]
fn a_promise_that_does_not_fit_is_refused() {
    use crate::link::{PartialChecksum, Segmentation};
    let packet = udp(("10.0.0.1", "10.0.0.2"));
    let ip = Ip::parse(&packet).unwrap();
    let checksum = Some(PartialChecksum {
        start: 34,
        offset: 6,
    });
    let good = Offload {
        checksum,
        ..Offload::default()
    };
    assert_eq!(ip.check_offload(&good, 14), Ok(()));
    assert_eq!(ip.check_offload(&good, 0), Err(Malformed::Offload));
    let wrong_place = Some(PartialChecksum {
        start: 34,
        offset: 16,
    });
    assert!(
        ip.check_offload(
            &Offload {
                checksum: wrong_place,
                ..good
            },
            14
        )
        .is_err()
    );
    let cut = |kind, size| {
        let segmentation = Some(Segmentation {
            kind,
            size,
            header: 42,
        });
        ip.check_offload(
            &Offload {
                segmentation,
                ..good
            },
            14,
        )
    };
    assert_eq!(cut(SegmentKind::Udp, 100), Ok(()));
    assert!(cut(SegmentKind::Udp, 0).is_err());
    assert!(cut(SegmentKind::Tcp4, 100).is_err());
}

#[test]
fn an_answer_belongs_to_the_same_conversation() {
    use crate::model::Direction;
    for pair in [("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")] {
        let out = Ip::parse(&udp(pair)).unwrap();
        let mut back = Ip::parse(&udp((pair.1, pair.0))).unwrap();
        back.ports = (2000, 1000);
        assert_eq!(
            FlowKey::of(&out, Direction::Out),
            FlowKey::of(&back, Direction::In)
        );
    }
}

proptest! {
    #[test]
    fn no_bytes_break_the_reader(mut bytes in prop::collection::vec(any::<u8>(), 0..200), sane in 0..4) {
        if let Some(first) = bytes.first_mut() {
            match sane {
                0 => *first = 0x45,
                1 => *first = 0x60,
                _ => {}
            }
        }
        if sane == 0 && bytes.len() >= 20 {
            let length = bytes.len() as u16;
            bytes[2..4].copy_from_slice(&length.to_be_bytes());
            bytes[6..8].fill(0);
            sign(&mut bytes);
        }
        if let Ok(ip) = Ip::parse(&bytes) {
            prop_assert!(ip.length <= bytes.len() && ip.transport <= ip.length);
            let _ = ip.quoted(&bytes);
            let _ = ip.transport_checksum_holds(&bytes, &Offload::default());
        }
    }

    /// A sum over many words at once is the sum over each.
    #[test]
    fn the_checksum_is_rfc_1071s(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        prop_assert_eq!(Sum::default().bytes(&bytes).fold(), sum as u16);
    }
}
