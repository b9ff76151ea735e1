//! Ports that are described, not running: what a person asks about before
//! there is a machine, or without one (`favo net trace`).
//!
//! Only for explanations; packets of running guests are the switch's.

use super::compile::compile;
use super::oracle::FlowMap;
use super::trace::{Part, Trace, next_hop, packet, trace_change};
use super::{Neighbours, Origin, Program, Verdict};
use crate::link::Offload;
use crate::model::{MacAddress, Network, Port, PortId};
use crate::packet::ETHERNET_LENGTH;
use crate::packet::build::Envelope;
use crate::switch::addresses;
use std::net::IpAddr;

/// The ports of a network, each with a program and the conversations that
/// followed packets opened.
#[derive(Clone, Debug)]
pub struct Scene {
    ports: Vec<(Program, FlowMap)>,
}

/// A packet someone asks about.
#[derive(Clone, Copy, Debug)]
pub struct Question {
    /// From where it comes to the port.
    pub origin: Origin,
    /// The Ethernet source address; what it should be, if left out.
    pub source_mac: Option<MacAddress>,
    /// The Ethernet destination address; what it should be, if left out.
    pub destination_mac: Option<MacAddress>,
    /// IP source and destination; both of one family.
    pub ip: (IpAddr, IpAddr),
    /// The protocol: 6 TCP, 17 UDP, else ICMP echo.
    pub protocol: u8,
    /// Source and destination port.
    pub ports: (u16, u16),
}

/// What happens to a packet at one port.
#[derive(Clone, Debug)]
pub struct Stop {
    /// The port.
    pub port: PortId,
    /// From where the packet comes to it.
    pub origin: Origin,
    /// The packet is the answer.
    pub part: Part,
    /// Its Ethernet source and destination; meaningless from beyond.
    pub ethernet: (MacAddress, MacAddress),
    /// What the port does with it.
    pub trace: Trace,
}

impl Scene {
    /// A network with these ports on it.
    pub fn new(network: &Network, ports: &[Port]) -> Self {
        let compiled = ports.iter().map(|port| {
            let mut neighbours = Neighbours::default();
            for other in ports.iter().filter(|other| other.id != port.id) {
                for address in addresses(other) {
                    neighbours.insert(address, other.mac);
                }
            }
            let program = compile(network, port, &neighbours, 1);
            (program, FlowMap::default())
        });
        Self {
            ports: compiled.collect(),
        }
    }

    /// Follows a packet from `port` on, to the other port it goes to if it
    /// does, and with `answered` its answer back. Empty, if there is no such
    /// port.
    pub fn follow(&mut self, port: PortId, question: &Question, answered: bool) -> Vec<Stop> {
        let mut stops = Vec::new();
        self.walk(port, question, Part::First, &mut stops);
        let arrived = stops
            .last()
            .map(|stop| (stop.port, stop.trace.decision.verdict));
        let Some((last, verdict)) = arrived.filter(|_| answered) else {
            return stops;
        };
        let (from, origin) = match (verdict, question.origin) {
            (Verdict::Uplink, _) => (last, Origin::Uplink),
            (Verdict::Deliver, _) => (last, Origin::Guest),
            _ => return stops,
        };
        let back = Question {
            origin,
            source_mac: None,
            destination_mac: None,
            ip: (question.ip.1, question.ip.0),
            protocol: question.protocol,
            ports: (question.ports.1, question.ports.0),
        };
        self.walk(from, &back, Part::Answer, &mut stops);
        stops
    }

    fn walk(&mut self, id: PortId, question: &Question, part: Part, stops: &mut Vec<Stop>) {
        let Some(verdict) = self.step(id, question, part, stops) else {
            return;
        };
        if let Verdict::Neighbour(mac) = verdict
            && let Some(next) = self.port_of(mac)
        {
            let source_mac = self.program(id).map(|program| program.port.mac);
            let there = Question {
                origin: Origin::Network,
                source_mac,
                destination_mac: Some(mac),
                ..*question
            };
            self.step(next, &there, part, stops);
        }
    }

    fn program(&self, id: PortId) -> Option<&Program> {
        let mut programs = self.ports.iter().map(|(program, _)| program);
        programs.find(|program| program.port.id == id)
    }

    fn port_of(&self, mac: MacAddress) -> Option<PortId> {
        let mut ports = self.ports.iter().map(|(program, _)| &program.port);
        ports.find(|port| port.mac == mac).map(|port| port.id)
    }

    /// One port.
    fn step(
        &mut self,
        id: PortId,
        question: &Question,
        part: Part,
        stops: &mut Vec<Stop>,
    ) -> Option<Verdict> {
        let (program, flows) = self
            .ports
            .iter_mut()
            .find(|(program, _)| program.port.id == id)?;
        let (source, destination) = question.ip;
        let usual = match question.origin {
            Origin::Guest => (program.port.mac, next_hop(program, destination)),
            Origin::Network => {
                let source = program.neighbours.get(source);
                (
                    source.unwrap_or(crate::model::GATEWAY_MAC),
                    program.port.mac,
                )
            }
            Origin::Uplink => (crate::model::GATEWAY_MAC, program.port.mac),
        };
        let ethernet = (
            question.source_mac.unwrap_or(usual.0),
            question.destination_mac.unwrap_or(usual.1),
        );
        let to = Envelope {
            ethernet,
            ip: question.ip,
        };
        let frame = packet(to, question.protocol, question.ports, part);
        let bytes = match question.origin {
            Origin::Uplink => frame.get(ETHERNET_LENGTH..).unwrap_or_default(),
            Origin::Guest | Origin::Network => &frame,
        };
        let (trace, change) = trace_change(
            program,
            flows,
            0,
            question.origin,
            bytes,
            &Offload::default(),
        );
        flows.apply(change, 0);
        let verdict = trace.decision.verdict;
        stops.push(Stop {
            port: id,
            origin: question.origin,
            part,
            ethernet,
            trace,
        });
        Some(verdict)
    }
}

#[cfg(test)]
#[path = "scene_test.rs"]
mod test;
