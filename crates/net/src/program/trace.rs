//! Tells a person what happens to a packet, and which rule says so.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use super::oracle::{self, Flows};
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
    let mut steps = Vec::new();
    let (decision, _) = oracle::decide(program, flows, now, origin, frame, offload, &mut |(
        rule,
        action,
    )| {
        steps.push(TraceStep {
            rule,
            name: rule_name(program, rule),
            action,
        });
    });
    Trace { steps, decision }
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
        .map_or_else(|| "nothing else".to_owned(), |rule| rule.name.clone())
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
                Text(*action)
            )?;
        }
        match self.decision.verdict {
            Verdict::Drop(reason) => write!(f, "dropped: {reason}"),
            Verdict::Answer(answer) => write!(f, "answered by the port: {answer:?}"),
            Verdict::Service(service) => write!(f, "taken by the gateway: {service:?}"),
            Verdict::Uplink => write!(f, "leaves the network"),
            Verdict::Neighbour(mac) => write!(f, "to the port with {mac}"),
            Verdict::Flood => write!(f, "to every other port of the network"),
            Verdict::Deliver => write!(f, "to the guest"),
        }
    }
}

struct Text(Action);

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Action::Pass => "pass",
            Action::Drop(_) => "drop",
            Action::Answer(_) => "answer",
            Action::Service(_) => "gateway",
            Action::Neighbour => "to a neighbour",
            Action::Flood => "to everyone",
            Action::Uplink => "leave",
            Action::Deliver => "deliver",
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
    let next_hop = match target {
        _ if target.is_multicast() => MacAddress::BROADCAST,
        _ => program.neighbours.get(target).unwrap_or(GATEWAY_MAC),
    };
    let to = Envelope {
        ethernet: (program.port.mac, next_hop),
        ip: (source, target),
    };
    /// The first of the ports systems choose themselves (RFC 6335).
    const SOURCE_PORT: u16 = 49_152;
    const SYN: u8 = 2;
    let mut frame = Vec::new();
    match (protocol, source) {
        (protocol::TCP, _) => {
            build::tcp_control(
                &mut frame,
                to,
                (SOURCE_PORT, destination.port()),
                (0, 0),
                SYN,
            );
        }
        (protocol::UDP, _) => build::udp(&mut frame, to, (SOURCE_PORT, destination.port()), &[]),
        (_, IpAddr::V4(_)) => {
            build::icmpv4(&mut frame, to, &[icmp::ECHO_REQUEST_4, 0, 0, 0, 0, 1, 0, 1]);
        }
        (_, IpAddr::V6(_)) => {
            build::icmpv6(
                &mut frame,
                to,
                64,
                &[icmp::ECHO_REQUEST_6, 0, 0, 0, 0, 1, 0, 1],
            );
        }
    }
    Some(frame)
}
