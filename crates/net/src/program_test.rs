//! Every packet here runs on the oracle and on the executor.

use super::executor::Executor;
use super::flow::Milliseconds;
use super::oracle::{self, FlowMap};
use super::*;
use crate::link::{Offload, PartialChecksum, SegmentKind, Segmentation};
use crate::model::{Access, Direction, Forward, ForwardProtocol, GATEWAY_MAC, PortId, PortRange};
use crate::model::{Protocol, Remote, SecurityGroup, SecurityRule};
use crate::packet::build::{self, Envelope};
use crate::packet::{ETHERNET_LENGTH, Sum};

#[path = "program_agreement_test.rs"]
mod agreement;
#[path = "program_table_test.rs"]
mod table;

use table::*;

#[test]
fn the_conformance_table_holds_on_oracle_and_executor() {
    for case in table() {
        let program = program_of(&port(), 1);
        let Case {
            name,
            origin,
            ref frame,
            offload,
            verdict,
        } = case;
        let flows = FlowMap::default();
        let (oracle, _) = oracle::decide(&program, &flows, 5, origin, frame, &offload, &mut |_| {});
        assert_eq!(oracle.verdict, verdict, "{name}, by the oracle");
        let mut executor = Executor::new(program);
        for round in 0..3 {
            let decision = executor.decide(5, origin, frame, &offload);
            // From the second packet on, that the conversation is established
            // may decide instead.
            assert_eq!(
                decision.verdict, verdict,
                "{name}, by the executor, time {round}"
            );
            assert!(
                round > 0 || decision == oracle,
                "{name}: {decision:?}, {oracle:?}"
            );
        }
    }
}

#[test]
fn every_reason_a_program_has_is_in_the_table() {
    let seen: Vec<DropReason> = table()
        .iter()
        .filter_map(|case| match case.verdict {
            Verdict::Drop(reason) => Some(reason),
            _ => None,
        })
        .collect();
    // These come from elsewhere, or from a port unlike the table's.
    let elsewhere = [
        // In `networks_of_other_kinds_hold_their_promises`.
        DropReason::NotRouted,
        DropReason::GatewayPort,
        DropReason::TooManyFlows,
        DropReason::BadRequest,
        DropReason::QueueFull,
        DropReason::LinkDown,
        DropReason::GatewayBusy,
    ];
    for reason in DropReason::ALL {
        assert!(
            seen.contains(reason) || elsewhere.contains(reason),
            "{reason:?}"
        );
    }
}

/// What a network's kind changes.
#[test]
fn networks_of_other_kinds_hold_their_promises() {
    use Segment::Tcp;
    let verdict = |network: &Network, origin: Origin, ips: (&str, &str), segment: Segment| {
        let program = compile::compile(network, &port(), &Neighbours::default(), 1);
        let macs = if origin == Origin::Guest {
            (MAC, GATEWAY_MAC)
        } else {
            (GATEWAY_MAC, MAC)
        };
        let mut bytes = frame(macs, ips, segment);
        if origin == Origin::Uplink {
            bytes.drain(..ETHERNET_LENGTH);
        }
        let mut pair = Pair {
            executor: Executor::new(program),
            flows: FlowMap::default(),
        };
        pair.decide(0, origin, &bytes, &Offload::default())
    };
    let (guest, syn) = (Origin::Guest, Tcp(4000, 443, SYN));
    let drop = Verdict::Drop;

    let closed = Network {
        routed: false,
        ..network()
    };
    assert_eq!(
        verdict(&closed, guest, OUT, syn),
        drop(DropReason::NotRouted)
    );
    let gateway = ("10.0.0.2", "10.0.0.1");
    assert_eq!(
        verdict(&closed, guest, gateway, Segment::Udp(1, 53)),
        Verdict::Service(Service::Dns)
    );

    let open = Network {
        host_loopback: true,
        ..network()
    };
    assert_eq!(verdict(&open, guest, gateway, syn), Verdict::Uplink);
    assert_eq!(
        verdict(&open, guest, ("fd00:1::2", "fd00:1::1"), syn),
        Verdict::Uplink
    );
    assert_eq!(
        verdict(&open, guest, ("10.0.0.2", "127.0.0.1"), syn),
        drop(DropReason::Martian)
    );
    assert_eq!(
        verdict(&open, guest, gateway, Segment::Udp(1, 53)),
        Verdict::Service(Service::Dns)
    );
    let metadata = ("10.0.0.2", "169.254.169.254");
    let refusal = Verdict::Answer(Answer::Refusal);
    assert_eq!(
        verdict(&open, guest, metadata, syn),
        refusal,
        "never the host's own"
    );
    assert_eq!(verdict(&network(), guest, gateway, syn), refusal);
    let reply = ("10.0.0.2", "10.0.0.1");
    assert_eq!(
        verdict(&network(), guest, reply, Segment::Echo(false)),
        drop(DropReason::GatewayPort)
    );

    let only_v6 = Network {
        v4: None,
        ..network()
    };
    assert_eq!(
        verdict(&only_v6, guest, OUT, syn),
        drop(DropReason::UnknownProtocol)
    );
    assert_eq!(
        verdict(&only_v6, guest, ("fd00:1::2", "2600::1"), syn),
        Verdict::Uplink
    );
    let only_v4 = Network {
        v6: None,
        ..network()
    };
    assert_eq!(
        verdict(&only_v4, guest, ("fd00:1::2", "2600::1"), syn),
        drop(DropReason::UnknownProtocol)
    );
    assert_eq!(verdict(&only_v4, guest, OUT, syn), Verdict::Uplink);
}

/// Both at once; panics where they differ.
struct Pair {
    executor: Executor,
    flows: FlowMap,
}

impl Pair {
    fn new(port: &Port) -> Self {
        let executor = Executor::new(program_of(port, 1));
        Self {
            executor,
            flows: FlowMap::default(),
        }
    }

    fn decide(
        &mut self,
        now: Milliseconds,
        origin: Origin,
        frame: &[u8],
        offload: &Offload,
    ) -> Verdict {
        let program = self.executor.program().clone();
        let (decision, change) = oracle::decide(
            &program,
            &self.flows,
            now,
            origin,
            frame,
            offload,
            &mut |_| {},
        );
        self.flows.apply(change, now);
        assert_eq!(self.executor.decide(now, origin, frame, offload), decision);
        decision.verdict
    }

    fn out(&mut self, now: Milliseconds, ips: (&str, &str), segment: Segment) -> Verdict {
        let frame = frame((MAC, GATEWAY_MAC), ips, segment);
        self.decide(now, Origin::Guest, &frame, &Offload::default())
    }

    fn beyond(&mut self, now: Milliseconds, ips: (&str, &str), segment: Segment) -> Verdict {
        let frame = frame((GATEWAY_MAC, MAC), ips, segment);
        self.decide(
            now,
            Origin::Uplink,
            &frame[ETHERNET_LENGTH..],
            &Offload::default(),
        )
    }

    fn replace(&mut self, port: &Port) {
        let epoch = self.executor.program().epoch + 1;
        self.executor.replace(program_of(port, epoch));
    }
}

const OUT: (&str, &str) = ("10.0.0.2", "9.9.9.9");
const BACK: (&str, &str) = ("9.9.9.9", "10.0.0.2");

#[test]
fn answers_come_in_until_the_conversation_is_over() {
    use Segment::{Echo, Udp};
    let mut pair = Pair::new(&port());
    let denied = Verdict::Drop(DropReason::Denied);
    assert_eq!(pair.beyond(0, BACK, Udp(53, 5000)), denied);
    assert_eq!(pair.out(0, OUT, Udp(5000, 53)), Verdict::Uplink);
    assert_eq!(pair.beyond(10, BACK, Udp(53, 5000)), Verdict::Deliver);
    assert_eq!(pair.beyond(10, BACK, Udp(54, 5000)), denied, "another port");
    assert_eq!(pair.beyond(300_000, BACK, Udp(53, 5000)), Verdict::Deliver);
    assert_eq!(
        pair.beyond(600_001, BACK, Udp(53, 5000)),
        denied,
        "long after"
    );

    assert_eq!(pair.beyond(0, BACK, Echo(false)), denied);
    assert_eq!(pair.out(0, OUT, Echo(true)), Verdict::Uplink);
    assert_eq!(pair.beyond(10, BACK, Echo(false)), Verdict::Deliver);
    assert_eq!(
        pair.beyond(10, BACK, Echo(true)),
        denied,
        "an echo request is no answer"
    );
}

#[test]
fn an_error_about_a_conversation_comes_in_and_no_other() {
    let mut pair = Pair::new(&port());
    let error = |ports: (u16, u16)| {
        let quoted = frame((MAC, GATEWAY_MAC), OUT, Segment::Udp(ports.0, ports.1));
        let mut message = vec![3, 4, 0, 0, 0, 0, 5, 0];
        message.extend(&quoted[ETHERNET_LENGTH..]);
        let mut frame = Vec::new();
        let ip = ("8.8.8.8".parse().unwrap(), "10.0.0.2".parse().unwrap());
        build::icmpv4(
            &mut frame,
            Envelope {
                ethernet: (GATEWAY_MAC, MAC),
                ip,
            },
            &message,
        );
        frame.split_off(ETHERNET_LENGTH)
    };
    let none = Offload::default();
    let denied = Verdict::Drop(DropReason::Denied);
    assert_eq!(
        pair.decide(0, Origin::Uplink, &error((5000, 53)), &none),
        denied
    );
    pair.out(0, OUT, Segment::Udp(5000, 53));
    for _ in 0..2 {
        assert_eq!(
            pair.decide(1, Origin::Uplink, &error((5000, 53)), &none),
            Verdict::Deliver
        );
        assert_eq!(
            pair.decide(1, Origin::Uplink, &error((5001, 53)), &none),
            denied
        );
    }
}

#[test]
fn a_rule_change_meets_conversations_that_run() {
    use Segment::Tcp;
    let mut pair = Pair::new(&port());
    assert_eq!(pair.out(0, OUT, Tcp(4000, 443, SYN)), Verdict::Uplink);
    assert_eq!(pair.out(0, OUT, Tcp(4001, 22, SYN)), Verdict::Uplink);
    assert_eq!(
        pair.beyond(1, BACK, Tcp(443, 4000, SYN | ACK)),
        Verdict::Deliver
    );
    assert_eq!(
        pair.beyond(1, BACK, Tcp(22, 4001, SYN | ACK)),
        Verdict::Deliver
    );

    let mut stricter = port();
    let rule = stricter.groups[0].rules.last_mut().unwrap();
    rule.ports = Some(PortRange {
        first: 443,
        last: 443,
    });
    pair.replace(&stricter);
    assert_eq!(
        pair.out(2, OUT, Tcp(4000, 443, ACK)),
        Verdict::Drop(DropReason::DeniedByRule)
    );
    assert_eq!(
        pair.beyond(2, BACK, Tcp(443, 4000, ACK)),
        Verdict::Drop(DropReason::Denied)
    );
    assert_eq!(pair.beyond(2, BACK, Tcp(22, 4001, ACK)), Verdict::Deliver);
    assert_eq!(pair.out(2, OUT, Tcp(4001, 22, ACK)), Verdict::Uplink);

    let mut closed = port();
    closed.groups = vec![SecurityGroup {
        name: "none".into(),
        rules: vec![],
    }];
    pair.replace(&closed);
    assert_eq!(
        pair.beyond(3, BACK, Tcp(22, 4001, ACK)),
        Verdict::Drop(DropReason::Denied)
    );
}

#[test]
fn a_forwarded_client_that_is_the_host_is_answered() {
    use Segment::Tcp;
    for (out, back) in [
        (("10.0.0.2", "10.0.0.1"), ("10.0.0.1", "10.0.0.2")),
        (("fd00:1::2", "fd00:1::1"), ("fd00:1::1", "fd00:1::2")),
    ] {
        let mut pair = Pair::new(&port());
        let refused = Verdict::Answer(Answer::Refusal);
        assert_eq!(pair.out(0, out, Tcp(80, 7777, SYN | ACK)), refused);
        // Whatever port the client has, be it a service's.
        for client in [7777, 53] {
            assert_eq!(pair.beyond(0, back, Tcp(client, 80, SYN)), Verdict::Deliver);
            for _ in 0..3 {
                assert_eq!(
                    pair.out(0, out, Tcp(80, client, SYN | ACK)),
                    Verdict::Uplink
                );
                assert_eq!(pair.beyond(0, back, Tcp(client, 80, ACK)), Verdict::Deliver);
            }
        }
    }
}

#[test]
fn a_forward_that_is_taken_away_ends_its_connections() {
    use Segment::Tcp;
    let mut pair = Pair::new(&port());
    assert_eq!(pair.beyond(0, BACK, Tcp(7777, 80, SYN)), Verdict::Deliver);
    assert_eq!(pair.out(0, OUT, Tcp(80, 7777, SYN | ACK)), Verdict::Uplink);
    let mut without = port();
    without.forwards.clear();
    pair.replace(&without);
    assert_eq!(
        pair.beyond(1, BACK, Tcp(7777, 80, ACK)),
        Verdict::Drop(DropReason::Denied)
    );
}

#[test]
fn a_flood_of_conversations_has_an_end() {
    let mut executor = Executor::new(program_of(&port(), 1));
    let mut full = 0;
    for number in 0..=flow::MAXIMUM_FLOWS as u32 + 10 {
        let target = format!(
            "20.{}.{}.{}",
            number >> 16,
            (number >> 8) & 255,
            number & 255
        );
        let frame = frame(
            (MAC, GATEWAY_MAC),
            ("10.0.0.2", &target),
            Segment::Udp(9, 9),
        );
        let decision = executor.decide(0, Origin::Guest, &frame, &Offload::default());
        full += usize::from(decision.verdict == Verdict::Drop(DropReason::TooManyFlows));
    }
    assert_eq!((full, executor.flows()), (11, flow::MAXIMUM_FLOWS));
    // A minute later they are over, and there is room again.
    let frame = frame((MAC, GATEWAY_MAC), OUT, Segment::Udp(9, 9));
    let decision = executor.decide(60_000, Origin::Guest, &frame, &Offload::default());
    assert_eq!(decision.verdict, Verdict::Uplink);
    assert_eq!(executor.flows(), 1);
}

#[test]
fn a_trace_names_the_rule_that_decides() {
    let program = program_of(&port(), 1);
    let explain = |frame: &[u8]| {
        let flows = FlowMap::default();
        trace::trace(
            &program,
            &flows,
            0,
            Origin::Guest,
            frame,
            &Offload::default(),
        )
        .to_string()
    };
    let text = explain(&frame((MAC, GATEWAY_MAC), OUT, Segment::Tcp(4000, 25, SYN)));
    assert!(text.contains("group 'default', priority 10"), "{text}");
    assert!(
        text.ends_with("dropped: a rule of a security group denies it"),
        "{text}"
    );
    let text = explain(&frame(
        (MAC, GATEWAY_MAC),
        OUT,
        Segment::Tcp(4000, 443, SYN),
    ));
    assert!(
        text.contains("beyond the network, by the gateway"),
        "{text}"
    );
    assert!(text.ends_with("leaves the network"), "{text}");
}
