//! Tells a person what happens to a packet, and which rule says so.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use super::oracle::{self, FlowChange, Flows};
use super::{Action, Decision, Origin, Program, RuleId, Verdict};
use crate::link::Offload;
use crate::model::{Direction, GATEWAY_MAC, MacAddress};
use crate::packet::build::{self, Envelope};
use crate::packet::{icmp, protocol};

use super::flow::Milliseconds;

/// The way of one packet through a program.
#[derive(Clone, Debug)]
pub struct Trace {
    /// Each layer the packet reached: the rule that matched, by name, and what
    /// it does.
    pub steps: Vec<TraceStep>,
    /// What became of it.
    pub decision: Decision,
}

/// One layer of a trace.
#[derive(Clone, Debug)]
pub struct TraceStep {
    /// Which rule matched.
    pub rule: RuleId,
    /// Its name.
    pub name: String,
    /// What it does.
    pub action: Action,
}

/// Follows a packet; changes nothing.
pub fn trace(
    program: &Program,
    flows: &dyn Flows,
    now: Milliseconds,
    origin: Origin,
    frame: &[u8],
    offload: &Offload,
) -> Trace {
    trace_change(program, flows, now, origin, frame, offload).0
}

/// The same, with what the packet would change about the port's conversations.
pub(super) fn trace_change(
    program: &Program,
    flows: &dyn Flows,
    now: Milliseconds,
    origin: Origin,
    frame: &[u8],
    offload: &Offload,
) -> (Trace, FlowChange) {
    let mut steps = Vec::new();
    let (decision, change) = oracle::decide(
        program,
        flows,
        now,
        origin,
        frame,
        offload,
        &mut |(rule, action)| {
            steps.push(TraceStep {
                rule,
                name: rule_name(program, rule),
                action,
            });
        },
    );
    (Trace { steps, decision }, change)
}

/// What a rule is called.
pub fn rule_name(program: &Program, id: RuleId) -> String {
    let layers = match id.direction {
        Direction::Out => &program.outgoing,
        Direction::In => &program.incoming,
    };
    layers
        .iter()
        .find(|layer| layer.name == id.layer)
        .and_then(|layer| layer.rules.get(id.index))
        .map_or_else(|| "no rule matches".to_owned(), |rule| rule.name.clone())
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for step in &self.steps {
            let TraceStep { rule, name, action } = step;
            writeln!(
                f,
                "{:<12} rule {:<3} {name}: {}",
                rule.layer,
                rule.index + 1,
                action
            )?;
        }
        write!(f, "{}", self.decision.verdict)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Drop(reason) => write!(f, "dropped: {reason}"),
            Self::Answer(answer) => write!(f, "answered by the port: {answer:?}"),
            Self::Service(service) => write!(f, "taken by the gateway: {service:?}"),
            Self::Uplink => write!(f, "leaves the network"),
            Self::Neighbour(mac) => write!(f, "to the port with {mac}"),
            Self::Flood => write!(f, "to every other port of the network"),
            Self::Deliver => write!(f, "to the guest"),
        }
    }
}

impl Verdict {
    /// One word for programs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Drop(_) => "drop",
            Self::Answer(_) => "answer",
            Self::Service(_) => "service",
            Self::Uplink => "uplink",
            Self::Neighbour(_) => "neighbour",
            Self::Flood => "flood",
            Self::Deliver => "deliver",
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pass => "pass",
            Self::Drop(_) => "drop",
            Self::Answer(_) => "answer",
            Self::Service(_) => "gateway",
            Self::Neighbour => "to a neighbour",
            Self::Flood => "to everyone",
            Self::Uplink => "leave",
            Self::Deliver => "deliver",
        })
    }
}

/// The first packet a port's guest would send to `destination`, for a trace:
/// a TCP SYN, a UDP datagram, or for port 0 an echo request. `None`, if the
/// port has no address of that family.
pub fn probe(program: &Program, protocol: u8, destination: SocketAddr) -> Option<Vec<u8>> {
    let source: IpAddr = match destination {
        SocketAddr::V4(_) => program.port.v4?.into(),
        SocketAddr::V6(_) => program.port.v6?.into(),
    };
    let target = destination.ip();
    let to = Envelope {
        ethernet: (program.port.mac, next_hop(program, target)),
        ip: (source, target),
    };
    let ports = (SOURCE_PORT, destination.port());
    Some(packet(to, protocol, ports, Part::First))
}

/// The first of the port numbers systems choose themselves (RFC 6335).
pub const SOURCE_PORT: u16 = 49_152;

/// Whom a guest would send a packet for `target` to.
pub fn next_hop(program: &Program, target: IpAddr) -> MacAddress {
    match target {
        _ if target.is_multicast() => MacAddress::BROADCAST,
        IpAddr::V4(v4) if v4.is_broadcast() => MacAddress::BROADCAST,
        _ => program.neighbours.get(target).unwrap_or(GATEWAY_MAC),
    }
}

/// Where in a conversation a packet stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// It opens it.
    First,
    /// It answers the first.
    Answer,
}

/// A packet of a conversation, as a whole Ethernet frame: of TCP (6) a
/// segment with SYN, of UDP (17) a datagram without data, else an ICMP echo
/// request or reply.
pub fn packet(to: Envelope, protocol: u8, ports: (u16, u16), part: Part) -> Vec<u8> {
    const SYN: u8 = 2;
    const SYN_ACK: u8 = SYN | 16;
    const ECHO_REPLY_4: u8 = 0;
    const ECHO_REPLY_6: u8 = 129;
    let first = part == Part::First;
    let echo = |request, reply| {
        let kind = if first { request } else { reply };
        [kind, 0, 0, 0, 0, 1, 0, 1]
    };
    let mut frame = Vec::new();
    match (protocol, to.ip.0) {
        (protocol::TCP, _) => {
            let flags = if first { SYN } else { SYN_ACK };
            build::tcp_control(&mut frame, to, ports, (0, 0), flags);
        }
        (protocol::UDP, _) => build::udp(&mut frame, to, ports, &[]),
        (_, IpAddr::V4(_)) => {
            build::icmpv4(&mut frame, to, &echo(icmp::ECHO_REQUEST_4, ECHO_REPLY_4));
        }
        (_, IpAddr::V6(_)) => {
            let message = echo(icmp::ECHO_REQUEST_6, ECHO_REPLY_6);
            build::icmpv6(&mut frame, to, 64, &message);
        }
    }
    frame
}
