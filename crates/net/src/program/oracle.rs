//! The oracle: what a program means.
//!
//! A pure function that reads a program's rules in order. It is what the
//! executor is tested against, what a trace shows, and what the executor asks
//! about a packet it doesn't know; it is written to be read, not to be fast.

use std::collections::BTreeMap;

use super::flow::{Flow, MAXIMUM_FLOWS, Milliseconds};
use super::rule::{ip_offset, opening_view};
use super::{
    Action, Decision, DropReason, Layer, LayerName, Origin, Program, RuleId, Verdict, View,
};
use crate::link::Offload;
use crate::model::Direction;
use crate::packet::{Ethernet, FlowKey, Ip, ethertype};

/// A port's conversations, as far as a decision needs them.
pub trait Flows {
    /// A conversation, be it alive or not.
    fn get(&self, key: &FlowKey) -> Option<Flow>;
    /// Whether there is room for one more at this time.
    fn has_room(&self, now: Milliseconds) -> bool;
}

/// What a decision changes about a port's conversations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowChange {
    /// Nothing.
    None,
    /// A conversation was opened, or opened anew.
    Open(FlowKey, Flow),
    /// A conversation goes on, and is now this.
    Continue(FlowKey, Flow),
    /// The conversation isn't allowed any more.
    Remove(FlowKey),
}

/// A step on the way to a decision: a layer, the place of the rule that
/// decided, and what it did.
pub type Step = (RuleId, Action);

/// Decides about one packet. For [`Origin::Uplink`], `frame` begins at the IP
/// header. `steps` is told of every layer the packet passes.
pub fn decide(
    program: &Program,
    flows: &dyn Flows,
    now: Milliseconds,
    origin: Origin,
    frame: &[u8],
    offload: &Offload,
    steps: &mut dyn FnMut(Step),
) -> (Decision, FlowChange) {
    match read(program, origin, frame, offload) {
        Ok(view) => run(program, flows, now, &view, offload, steps),
        Err(reason) => (Decision::drop(reason), FlowChange::None),
    }
}

/// Reads what the rules look at.
fn read<'a>(
    program: &'a Program,
    origin: Origin,
    frame: &'a [u8],
    offload: &Offload,
) -> Result<View<'a>, DropReason> {
    let base = ip_offset(origin);
    let ethernet = match origin {
        Origin::Guest | Origin::Network => {
            Some(Ethernet::parse(frame).ok_or(DropReason::Truncated)?)
        }
        Origin::Uplink => None,
    };
    let packet = frame.get(base..).ok_or(DropReason::Truncated)?;
    let ip = match ethernet.map(|ethernet| ethernet.ethertype) {
        None | Some(ethertype::IPV4 | ethertype::IPV6) => {
            let ip = Ip::parse(packet)?;
            let expected = ethernet.map(|ethernet| ethernet.ethertype == ethertype::IPV4);
            if expected.is_some_and(|v4| v4 != ip.source.is_ipv4()) {
                return Err(DropReason::BadVersion);
            }
            ip.check_offload(offload, base)?;
            if offload.segmentation.is_none() && ip.length > usize::from(program.network.mtu) {
                return Err(DropReason::TooLong);
            }
            Some(ip)
        }
        Some(_) => None,
    };
    Ok(View {
        origin,
        ethernet,
        ip,
        packet,
        established: false,
        neighbours: &program.neighbours,
    })
}

/// Runs the layers.
fn run(
    program: &Program,
    flows: &dyn Flows,
    now: Milliseconds,
    view: &View<'_>,
    offload: &Offload,
    steps: &mut dyn FnMut(Step),
) -> (Decision, FlowChange) {
    let (direction, layers) = match view.origin {
        Origin::Guest => (Direction::Out, &program.outgoing),
        Origin::Network | Origin::Uplink => (Direction::In, &program.incoming),
    };
    let key = view.ip.as_ref().map(|ip| FlowKey::of(ip, direction));
    let known = key
        .and_then(|key| flows.get(&key))
        .filter(|flow| flow.lives(now));
    let flow = match key {
        Some(key) => known.filter(|flow| still_allowed(program, &key, flow)),
        None => None,
    };
    let related = view.ip.as_ref().is_some_and(|ip| {
        let Some(quoted) = ip.quoted(view.packet) else {
            return false;
        };
        // The quoted packet went the other way.
        let key = FlowKey::of(&quoted, opposite(direction));
        flows
            .get(&key)
            .is_some_and(|flow| flow.lives(now) && still_allowed(program, &key, &flow))
    });
    let view = View {
        established: flow.is_some() || related,
        ..*view
    };
    let length = view.ip.map_or(0, |ip| ip.length);

    let mut last = None;
    let mut action = Action::Pass;
    for layer in layers {
        let (index, then) = layer.decide(&view);
        let rule = RuleId {
            direction,
            layer: layer.name,
            index,
        };
        steps((rule, then));
        (last, action) = (Some(rule), then);
        if then != Action::Pass {
            break;
        }
    }
    let removal = match (key, known, flow) {
        (Some(key), Some(_), None) => FlowChange::Remove(key),
        _ => FlowChange::None,
    };
    let verdict = match verdict(program, &view, offload, action) {
        Ok(verdict) => verdict,
        Err(reason) => Verdict::Drop(reason),
    };
    let decision = Decision {
        verdict,
        rule: last,
        length,
    };
    let opens = matches!(
        verdict,
        Verdict::Uplink | Verdict::Neighbour(_) | Verdict::Deliver
    );
    let (Some(ip), Some(key), true) = (&view.ip, key, opens && is_tracked(&view)) else {
        return (decision, removal);
    };
    match flow {
        Some(mut flow) => {
            flow.epoch = program.epoch;
            flow.advance(ip.protocol, ip.flags, direction, now);
            (decision, FlowChange::Continue(key, flow))
        }
        None if known.is_some() || flows.has_room(now) => {
            let origin = if verdict == Verdict::Uplink {
                Origin::Uplink
            } else {
                view.origin
            };
            let origin = if origin == Origin::Guest {
                Origin::Network
            } else {
                origin
            };
            let flow = Flow::open(ip, direction, origin, program.epoch, now);
            (decision, FlowChange::Open(key, flow))
        }
        None => {
            let verdict = Verdict::Drop(DropReason::TooManyFlows);
            (
                Decision {
                    verdict,
                    ..decision
                },
                FlowChange::None,
            )
        }
    }
}

fn opposite(direction: Direction) -> Direction {
    match direction {
        Direction::Out => Direction::In,
        Direction::In => Direction::Out,
    }
}

/// Packets to groups, and errors, open no conversation.
fn is_tracked(view: &View<'_>) -> bool {
    let multicast = view
        .ethernet
        .is_some_and(|ethernet| ethernet.destination.is_multicast());
    !multicast && view.ip.is_some_and(|ip| !ip.is_icmp_error())
}

/// Whether the rules still let a conversation be opened. Only asked when they
/// changed since.
pub(super) fn still_allowed(program: &Program, key: &FlowKey, flow: &Flow) -> bool {
    if flow.epoch == program.epoch {
        return true;
    }
    let layers = match flow.opened {
        Direction::Out => &program.outgoing,
        Direction::In => &program.incoming,
    };
    let view = opening_view(key, flow.opened, flow.origin, &program.neighbours);
    layers
        .iter()
        .filter(|layer: &&Layer| layer.name == LayerName::Firewall)
        .all(|layer| layer.decide(&view).1 == Action::Pass)
}

/// What comes of the last layer's action.
fn verdict(
    program: &Program,
    view: &View<'_>,
    offload: &Offload,
    action: Action,
) -> Result<Verdict, DropReason> {
    // What ends here or leaves is looked into by somebody who believes it.
    let checked = || match view.ip {
        Some(ip) if !ip.transport_checksum_holds(view.packet, offload) => {
            Err(DropReason::BadChecksum)
        }
        _ => Ok(()),
    };
    Ok(match action {
        Action::Drop(reason) => Verdict::Drop(reason),
        Action::Answer(answer) => {
            checked()?;
            Verdict::Answer(answer)
        }
        Action::Service(service) => {
            checked()?;
            Verdict::Service(service)
        }
        Action::Uplink => {
            checked()?;
            Verdict::Uplink
        }
        Action::Flood => Verdict::Flood,
        // Only the firewall ends the way in.
        Action::Deliver | Action::Pass => Verdict::Deliver,
        Action::Neighbour => {
            let ip = view.ip.ok_or(DropReason::UnknownNeighbour)?;
            let mac = program
                .neighbours
                .get(ip.destination)
                .ok_or(DropReason::UnknownNeighbour)?;
            let to = view.ethernet.map(|ethernet| ethernet.destination);
            if to != Some(mac) && to != Some(crate::model::GATEWAY_MAC) {
                return Err(DropReason::WrongMac);
            }
            Verdict::Neighbour(mac)
        }
    })
}

/// Conversations in the plainest form there is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowMap {
    flows: BTreeMap<FlowKey, Flow>,
    limit: usize,
}

impl Default for FlowMap {
    fn default() -> Self {
        Self::with_limit(MAXIMUM_FLOWS)
    }
}

impl FlowMap {
    /// None yet, with room for so many.
    pub fn with_limit(limit: usize) -> Self {
        Self {
            flows: BTreeMap::new(),
            limit,
        }
    }

    /// Does what a decision says.
    pub fn apply(&mut self, change: FlowChange, now: Milliseconds) {
        match change {
            FlowChange::None => {}
            FlowChange::Open(key, flow) | FlowChange::Continue(key, flow) => {
                if self.flows.len() >= self.limit {
                    self.flows.retain(|_, flow| flow.lives(now));
                }
                self.flows.insert(key, flow);
            }
            FlowChange::Remove(key) => {
                self.flows.remove(&key);
            }
        }
    }
}

#[cfg(test)]
impl FlowMap {
    pub(super) fn live_flows(&self, now: Milliseconds) -> Vec<(FlowKey, Flow)> {
        self.flows
            .iter()
            .map(|(key, flow)| (*key, *flow))
            .filter(|(_, flow)| flow.lives(now))
            .collect()
    }
}

impl Flows for FlowMap {
    fn get(&self, key: &FlowKey) -> Option<Flow> {
        self.flows.get(key).copied()
    }

    fn has_room(&self, now: Milliseconds) -> bool {
        self.flows.len() < self.limit || self.flows.values().any(|flow| !flow.lives(now))
    }
}
