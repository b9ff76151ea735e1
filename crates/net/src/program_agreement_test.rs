//! The property: executor and oracle agree on generated traffic, under rules
//! that change and time that passes.

use proptest::prelude::*;

use super::*;

/// What can happen to a port, drawn small enough that things meet.
#[derive(Clone, Debug)]
enum Event {
    Packet {
        origin: Origin,
        macs: (usize, usize),
        ips: (usize, usize),
        v6: bool,
        segment: Segment,
        damage: Option<(usize, u8)>,
        cut: Option<usize>,
        offload: usize,
    },
    Time(Milliseconds),
    Rules(usize),
    Expire,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let number = || prop::sample::select(vec![25u16, 53, 80, 443, 4000]);
    let segment = prop_oneof![
        4 => (number(), number(), any::<u8>()).prop_map(|(a, b, f)| Segment::Tcp(a, b, f & 0x17)),
        3 => (number(), number()).prop_map(|(a, b)| Segment::Udp(a, b)),
        1 => any::<bool>().prop_map(Segment::Echo),
        1 => (130u8..145).prop_map(Segment::Icmp6),
    ];
    let origin = prop::sample::select(vec![
        Origin::Guest,
        Origin::Guest,
        Origin::Network,
        Origin::Uplink,
        Origin::Uplink,
    ]);
    let macs = (0usize..8, 0usize..8);
    let ips = (0usize..10, 0usize..10);
    let damage = prop::option::weighted(0.1, (0usize..80, any::<u8>()));
    let cut = prop::option::weighted(0.05, 0usize..80);
    let packet = (
        origin,
        macs,
        ips,
        any::<bool>(),
        segment,
        damage,
        cut,
        0usize..12,
    )
        .prop_map(
            |(origin, macs, ips, v6, segment, damage, cut, offload)| Event::Packet {
                origin,
                macs,
                ips,
                v6,
                segment,
                damage,
                cut,
                offload,
            },
        );
    let event = prop_oneof![
        30 => packet,
        2 => prop::sample::select(vec![1, 1000, 59_999, 240_000]).prop_map(Event::Time),
        1 => (0usize..4).prop_map(Event::Rules),
        1 => Just(Event::Expire),
    ];
    prop::collection::vec(event, 1..80)
}

/// Mostly what is right from this origin.
fn build_packet(
    origin: Origin,
    macs: (usize, usize),
    ips: (usize, usize),
    v6: bool,
    segment: Segment,
) -> Vec<u8> {
    let pick = |list: [MacAddress; 4], index: usize| list[index.saturating_sub(4)];
    let (source, destination) = match origin {
        Origin::Guest => (
            [MAC, PEER, STRANGER, GATEWAY_MAC],
            [GATEWAY_MAC, PEER, GROUP, STRANGER],
        ),
        Origin::Network => (
            [PEER, MAC, STRANGER, GATEWAY_MAC],
            [MAC, GROUP, STRANGER, PEER],
        ),
        Origin::Uplink => ([GATEWAY_MAC; 4], [MAC; 4]),
    };
    let v4s = [
        "10.0.0.2",
        "9.9.9.9",
        "10.0.0.3",
        "10.0.0.1",
        "10.0.0.9",
        "224.0.0.251",
        "127.0.0.1",
    ];
    let v6s = [
        "fd00:1::2",
        "2600::9",
        "fd00:1::3",
        "fd00:1::1",
        "fe80::1",
        "ff02::fb",
        "::1",
    ];
    let list = if v6 { v6s } else { v4s };
    // The port's own address where it belongs, nearly always.
    let (own, other) = (
        list[ips.0.saturating_sub(6)],
        list[1 + ips.1.saturating_sub(4).min(5)],
    );
    let addresses = match origin {
        Origin::Guest => (own, other),
        Origin::Network if ips.1 < 5 => (list[2], own),
        Origin::Network | Origin::Uplink => (other, own),
    };
    frame(
        (pick(source, macs.0), pick(destination, macs.1)),
        addresses,
        segment,
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// The executor does what the oracle says, whatever comes in whatever
    /// order, under rules that change and time that passes.
    #[test]
    fn executor_and_oracle_agree(events in events()) {
        run(Pair::new(&port()), events, 1);
    }

    /// Also where there is room for few conversations, so that the table is
    /// full, and swept, all the time. The executor looks for what is over once
    /// a second.
    #[test]
    fn they_agree_when_the_table_is_full(events in events(), limit in 1usize..6) {
        let program = program_of(&port(), 1);
        let pair = Pair {
            executor: Executor::with_limit(program, limit),
            flows: FlowMap::with_limit(limit),
        };
        run(pair, events, 1000);
    }
}

/// Lets all that happen to both; time passes in steps of at least `tick`.
fn run(mut pair: Pair, events: Vec<Event>, tick: Milliseconds) {
    let mut now = 0;
    for event in events {
        match event {
            Event::Time(by) => now += by.max(tick),
            Event::Expire => pair.executor.expire(now),
            Event::Rules(which) => {
                let mut port = port();
                match which {
                    0 => {}
                    1 => port.groups[0].rules.clear(),
                    2 => port.forwards.clear(),
                    _ => port.groups[0].rules[1].remote = Remote::Any,
                }
                pair.replace(&port);
            }
            Event::Packet {
                origin,
                macs,
                ips,
                v6,
                segment,
                damage,
                cut,
                offload,
            } => {
                let mut bytes = build_packet(origin, macs, ips, v6, segment);
                let base = if origin == Origin::Uplink {
                    bytes.drain(..ETHERNET_LENGTH);
                    0
                } else {
                    ETHERNET_LENGTH
                };
                if let Some((at, byte)) = damage
                    && let Some(place) = bytes.get_mut(at)
                {
                    *place = byte;
                }
                if let Some(cut) = cut {
                    bytes.truncate(cut);
                }
                let start = (base + if v6 { 40 } else { 20 }) as u16;
                let offload = match offload {
                    0 => Offload {
                        checksum: Some(PartialChecksum { start, offset: 16 }),
                        ..Offload::default()
                    },
                    1 => Offload {
                        checksum: Some(PartialChecksum { start, offset: 6 }),
                        ..Offload::default()
                    },
                    2 => Offload {
                        checked: true,
                        ..Offload::default()
                    },
                    3 => Offload {
                        checksum: Some(PartialChecksum { start, offset: 16 }),
                        segmentation: Some(Segmentation {
                            kind: SegmentKind::Tcp4,
                            size: 1000,
                            header: start + 20,
                        }),
                        checked: false,
                    },
                    _ => Offload::default(),
                };
                pair.decide(now, origin, &bytes, &offload);
            }
        }
        // The conversations are the same, too.
        let keys = pair.executor.live_flows(now);
        assert_eq!(keys, pair.flows.live_flows(now));
    }
}

#[test]
fn generated_traffic_reaches_every_kind_of_verdict() {
    // Guards the property above against a generator that only makes drops.
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let mut seen = std::collections::BTreeMap::new();
    for _ in 0..200 {
        let mut pair = Pair::new(&port());
        for event in events().new_tree(&mut runner).unwrap().current() {
            if let Event::Packet {
                origin,
                macs,
                ips,
                v6,
                segment,
                ..
            } = event
            {
                let mut bytes = build_packet(origin, macs, ips, v6, segment);
                if origin == Origin::Uplink {
                    bytes.drain(..ETHERNET_LENGTH);
                }
                let verdict = pair.decide(0, origin, &bytes, &Offload::default());
                let kind = format!("{verdict:?}").split('(').next().unwrap().to_owned();
                *seen.entry(kind).or_insert(0) += 1;
            }
        }
    }
    for kind in [
        "Uplink",
        "Neighbour",
        "Flood",
        "Deliver",
        "Answer",
        "Service",
        "Drop",
    ] {
        assert!(
            seen.get(kind).copied().unwrap_or(0) >= 10,
            "{kind}: {seen:?}"
        );
    }
}
