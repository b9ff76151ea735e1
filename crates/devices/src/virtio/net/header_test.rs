use proptest::prelude::*;

use super::*;

const ALL: u64 = feature::CSUM | feature::HOST_TSO4 | feature::HOST_TSO6;

fn header(flags: u8, gso: u8, words: [u16; 4]) -> [u8; HEADER_SIZE] {
    let mut header = [0; HEADER_SIZE];
    (header[0], header[1]) = (flags, gso);
    for (at, word) in words.into_iter().enumerate() {
        header[2 + 2 * at..4 + 2 * at].copy_from_slice(&word.to_le_bytes());
    }
    header
}

/// A TCP frame of `payload` bytes.
fn tcp4(payload: usize) -> Vec<u8> {
    let mut frame = vec![0; 54 + payload];
    frame[12..16].copy_from_slice(&[8, 0, 0x45, 0]);
    frame[23] = 6;
    frame[46] = 0x50;
    frame
}

fn tcp6(payload: usize) -> Vec<u8> {
    let mut frame = vec![0; 74 + payload];
    frame[12..15].copy_from_slice(&[0x86, 0xdd, 0x60]);
    frame[20] = 6;
    frame[66] = 0x50;
    frame
}

#[test]
fn a_plain_frame_may_be_as_long_as_the_mtu_allows() {
    let plain = header(0, 0, [0; 4]);
    let parse = |length| parse(&plain, &vec![0; length], 0, 1500);
    assert_eq!(parse(13), Err(Refusal::TooShort));
    assert_eq!(parse(14), Ok(Offload::default()));
    assert_eq!(parse(1518), Ok(Offload::default()));
    assert_eq!(parse(1519), Err(Refusal::TooLong));
}

#[test]
fn a_checksum_lies_in_the_frame_and_was_negotiated() {
    let frame = vec![0; 60];
    let with = |start, offset| header(NEEDS_CSUM, 0, [0, 0, start, offset]);
    for (start, offset, right) in [
        (34, 6, true),
        (14, 44, true),
        (14, 45, false),
        (13, 6, false),
        (60, 0, false),
        (u16::MAX, u16::MAX, false),
    ] {
        let result = parse(&with(start, offset), &frame, ALL, 1500);
        let expected = Offload {
            checksum: Some(PartialChecksum { start, offset }),
            ..Offload::default()
        };
        let expected = if right {
            Ok(expected)
        } else {
            Err(Refusal::Checksum)
        };
        assert_eq!(result, expected, "{start} {offset}");
        assert_eq!(
            parse(&with(start, offset), &frame, 0, 1500),
            Err(Refusal::Checksum)
        );
    }
}

#[test]
fn a_large_frame_is_measured_by_its_own_headers() {
    // hdr_len is a lie: it is not looked at.
    let large = header(NEEDS_CSUM, GSO_TCPV4, [9, 1448, 34, 16]);
    let offload = parse(&large, &tcp4(60_000), ALL, 1500).unwrap();
    let expected = Segmentation {
        kind: SegmentKind::Tcp4,
        size: 1448,
        header: 54,
    };
    assert_eq!(offload.segmentation, Some(expected));
    let large = header(NEEDS_CSUM, GSO_TCPV6, [0, 1428, 54, 16]);
    let offload = parse(&large, &tcp6(3000), ALL, 1500).unwrap();
    assert_eq!(offload.segmentation.unwrap().header, 74);
}

#[test]
fn a_segmentation_that_does_not_fit_is_refused() {
    let frame = tcp4(3000);
    let refused = |header: [u8; 12], frame: &[u8], features| {
        assert_eq!(
            parse(&header, frame, features, 1500),
            Err(Refusal::Segmentation)
        );
    };
    // No checksum; size 0; the wrong family; no such type; ECN not negotiated.
    refused(header(0, GSO_TCPV4, [54, 1448, 34, 16]), &frame, ALL);
    refused(header(NEEDS_CSUM, GSO_TCPV4, [54, 0, 34, 16]), &frame, ALL);
    for gso in [GSO_TCPV6, 2, 3, 5, 0x80 | GSO_TCPV4, 0xff] {
        refused(header(NEEDS_CSUM, gso, [54, 1448, 34, 16]), &frame, ALL);
    }
    let right = header(NEEDS_CSUM, GSO_TCPV4, [54, 1448, 34, 16]);
    refused(right, &frame, feature::CSUM);
    // Headers that end behind the frame, or that are no TCP headers.
    refused(right, &frame[..53], ALL);
    let mut short = frame.clone();
    short[46] = 0x40;
    refused(right, &short, ALL);
    // The checksum elsewhere than TCP has it.
    refused(
        header(NEEDS_CSUM, GSO_TCPV4, [54, 1448, 34, 6]),
        &frame,
        ALL,
    );
    assert!(parse(&right, &frame, ALL, 1500).is_ok());
}

#[test]
fn what_is_encoded_is_what_the_guest_would_send() {
    let frame = tcp4(9000);
    let offload = Offload {
        checksum: Some(PartialChecksum {
            start: 34,
            offset: 16,
        }),
        segmentation: Some(Segmentation {
            kind: SegmentKind::Tcp4,
            size: 1000,
            header: 54,
        }),
        checked: false,
    };
    let header = encode(&offload, ALL);
    assert_eq!(parse(&header, &frame, ALL, 1500), Ok(offload));
    assert_eq!(header[10..], [1, 0]);

    let checked = Offload {
        checked: true,
        ..Offload::default()
    };
    assert_eq!(encode(&checked, feature::GUEST_CSUM)[0], DATA_VALID);
    assert_eq!(encode(&checked, 0)[0], 0);
}

proptest! {
    #[test]
    fn whatever_is_accepted_lies_in_the_frame(
        header in any::<[u8; HEADER_SIZE]>(),
        gso in prop_oneof![Just(0u8), Just(1), Just(4), any::<u8>()],
        frame in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..200),
            (0usize..9000).prop_map(tcp4),
            (0usize..9000).prop_map(tcp6),
        ],
        start in prop_oneof![Just(34u16), Just(54), any::<u16>()],
        offset in prop_oneof![Just(16u16), any::<u16>()],
    ) {
        let mut header = header;
        header[1] = gso;
        header[6..8].copy_from_slice(&start.to_le_bytes());
        header[8..10].copy_from_slice(&offset.to_le_bytes());
        if let Ok(offload) = parse(&header, &frame, ALL, 1500) {
            if let Some(checksum) = offload.checksum {
                let end = usize::from(checksum.start) + usize::from(checksum.offset) + 2;
                prop_assert!(end <= frame.len());
            }
            if let Some(segmentation) = offload.segmentation {
                prop_assert!(segmentation.size > 0 && offload.checksum.is_some());
                prop_assert!(usize::from(segmentation.header) <= frame.len());
            } else {
                prop_assert!(frame.len() <= 1500 + FRAME_OVERHEAD);
            }
        }
    }
}
