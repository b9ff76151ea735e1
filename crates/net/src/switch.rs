//! The switch: the ports of one network in this process, and what passes
//! between them, their peers in other processes, and the uplink.
//!
//! It decides and forwards; it does no I/O. Where things go is behind
//! [`Outlets`]. One thread calls it.

mod counters;
mod trace;

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use crate::answer;
use crate::link::{Offload, PartialChecksum, Segmentation};
use crate::model::{Direction, GATEWAY_MAC, MacAddress, Network, Port, PortId};
use crate::packet::{ETHERNET_LENGTH, Ethernet, ethertype};
use crate::program::compile::{compile, own_addresses};
use crate::program::executor::Executor;
use crate::program::flow::Milliseconds;
use crate::program::{DropReason, Neighbours, Origin, Service, Verdict};

pub use counters::Counters;

/// Where a switch's packets go.
pub trait Outlets {
    /// A frame for the guest of a port, in two parts. Offsets in `offload`
    /// count from the Ethernet header.
    fn guest(
        &mut self,
        port: PortId,
        header: [u8; ETHERNET_LENGTH],
        packet: &[u8],
        offload: Offload,
    );
    /// An IP packet leaves. Offsets in `offload` count from the IP header.
    fn uplink(&mut self, port: PortId, packet: &[u8], offload: Offload);
    /// A frame a service of the plane takes; whether it does, or has too much
    /// to do.
    fn service(&mut self, port: PortId, service: Service, frame: &[u8], offload: Offload) -> bool;
    /// A frame for ports of another process: one process, or all; whether all
    /// of them will get it if they read.
    fn peer(&mut self, to: Option<PeerId>, frame: &[u8], offload: Offload) -> bool;
}

/// Names another process with ports on this network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId(pub u32);

/// A port of another process.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PeerPort {
    /// The instance's name.
    pub name: String,
    /// The card's address.
    pub mac: MacAddress,
    /// Its addresses on the network.
    pub addresses: Vec<IpAddr>,
}

/// The ports of a network in this process.
pub struct Switch {
    network: Network,
    ports: BTreeMap<PortId, SwitchPort>,
    peers: BTreeMap<PeerId, Vec<PeerPort>>,
    /// Where each card is.
    places: HashMap<MacAddress, Place>,
    epoch: u64,
    answer: Vec<u8>,
}

struct SwitchPort {
    executor: Executor,
    counters: Counters,
}

#[derive(Clone, Copy)]
enum Place {
    Here(PortId),
    There(PeerId),
}

/// What can't be plugged in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SwitchError {
    /// Somebody has the address.
    #[error("'{1}' can't be on network '{0}': '{3}' already has the address {2}")]
    Taken(String, String, String, String),
    /// The address isn't on the network.
    #[error("'{1}' can't be on network '{0}': {2} is not an address for it there")]
    NotOnNetwork(String, String, IpAddr),
    /// There is no such port.
    #[error("network '{0}' has no {1}")]
    NoPort(String, PortId),
}

impl Switch {
    /// A switch without ports.
    pub fn new(network: Network) -> Self {
        Self {
            network,
            ports: BTreeMap::new(),
            peers: BTreeMap::new(),
            places: HashMap::new(),
            epoch: 0,
            answer: Vec::new(),
        }
    }

    /// The network.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// The ports of this process.
    pub fn ports(&self) -> impl Iterator<Item = &Port> {
        self.ports
            .values()
            .map(|port| &port.executor.program().port)
    }

    /// The ports of other processes.
    pub fn peer_ports(&self) -> impl Iterator<Item = &PeerPort> {
        self.peers.values().flatten()
    }

    /// What a port has seen.
    pub fn counters(&self, port: PortId) -> Option<&Counters> {
        self.ports.get(&port).map(|port| &port.counters)
    }

    /// How many conversations a port has.
    pub fn flows(&self, port: PortId) -> usize {
        self.ports
            .get(&port)
            .map_or(0, |port| port.executor.flows())
    }

    /// Plugs a port in, or changes one; conversations its rules still allow go
    /// on.
    ///
    /// # Errors
    /// An address is taken, or isn't of this network.
    pub fn set_port(&mut self, port: Port) -> Result<(), SwitchError> {
        self.check(&port)?;
        let id = port.id;
        let program = compile(&self.network, &port, &Neighbours::default(), self.epoch);
        match self.ports.get_mut(&id) {
            Some(existing) => {
                self.epoch += 1;
                let program = crate::program::Program {
                    epoch: self.epoch,
                    ..program
                };
                existing.executor.replace(program);
            }
            None => {
                let executor = Executor::new(program);
                self.ports.insert(
                    id,
                    SwitchPort {
                        executor,
                        counters: Counters::default(),
                    },
                );
            }
        }
        self.recompile();
        Ok(())
    }

    /// Unplugs a port.
    pub fn remove_port(&mut self, id: PortId) {
        if self.ports.remove(&id).is_some() {
            self.recompile();
        }
    }

    /// Says which ports another process has; none, if it is gone. A port with
    /// an address somebody has, or that isn't on the network, is left out.
    pub fn set_peer(&mut self, peer: PeerId, ports: Vec<PeerPort>) {
        self.peers.remove(&peer);
        self.recompile();
        let mut accepted: Vec<PeerPort> = Vec::new();
        for port in ports {
            let free = port.mac != GATEWAY_MAC
                && !port.mac.is_multicast()
                && !self.places.contains_key(&port.mac)
                && accepted.iter().all(|other| other.mac != port.mac)
                && port.addresses.iter().all(|address| {
                    self.is_station(*address)
                        && self.holder(*address, None).is_none()
                        && accepted
                            .iter()
                            .all(|other| !other.addresses.contains(address))
                });
            if free {
                accepted.push(port);
            } else {
                tracing::warn!(
                    ?port,
                    "a peer's port was left out: its addresses aren't free"
                );
            }
        }
        if !accepted.is_empty() {
            self.peers.insert(peer, accepted);
            self.recompile();
        }
    }

    /// Whether a station of the network can have the address.
    fn is_station(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => self
                .network
                .v4
                .is_some_and(|subnet| subnet.hosts_contain(v4) && subnet.gateway != v4),
            IpAddr::V6(v6) => self.network.v6.is_some_and(|subnet| {
                let link_local = v6.segments()[0] == 0xfe80;
                (subnet.prefix.contains(&v6) || link_local)
                    && subnet.gateway != v6
                    && v6 != crate::model::GATEWAY_LINK_LOCAL
            }),
        }
    }

    /// Who has an address, but for one port.
    fn holder(&self, address: IpAddr, except: Option<PortId>) -> Option<&str> {
        let here = self
            .ports()
            .filter(|port| Some(port.id) != except)
            .find(|port| addresses(port).any(|own| own == address))
            .map(|port| port.name.as_str());
        here.or_else(|| {
            self.peer_ports()
                .find(|port| port.addresses.contains(&address))
                .map(|port| port.name.as_str())
        })
    }

    fn check(&self, port: &Port) -> Result<(), SwitchError> {
        let taken = |what: String, by: &str| {
            SwitchError::Taken(
                self.network.name.clone(),
                port.name.clone(),
                what,
                by.to_owned(),
            )
        };
        let mac_holder = match self.places.get(&port.mac) {
            Some(Place::Here(id)) if *id == port.id => None,
            Some(Place::Here(id)) => self
                .ports
                .get(id)
                .map(|port| port.executor.program().port.name.clone()),
            Some(Place::There(_)) => Some("another machine".to_owned()),
            None if port.mac == GATEWAY_MAC || port.mac.is_multicast() => {
                Some("the gateway".to_owned())
            }
            None => None,
        };
        if let Some(by) = mac_holder {
            return Err(taken(port.mac.to_string(), &by));
        }
        for address in addresses(port) {
            if !self.is_station(address) {
                let (network, name) = (self.network.name.clone(), port.name.clone());
                return Err(SwitchError::NotOnNetwork(network, name, address));
            }
            if let Some(by) = self.holder(address, Some(port.id)) {
                return Err(taken(address.to_string(), by));
            }
        }
        Ok(())
    }

    /// Compiles every port again, after the network around it changed.
    fn recompile(&mut self) {
        self.epoch += 1;
        self.places.clear();
        let mut everyone: Vec<(MacAddress, Vec<IpAddr>)> = Vec::new();
        for port in self.ports.values() {
            let port = &port.executor.program().port;
            self.places.insert(port.mac, Place::Here(port.id));
            everyone.push((port.mac, addresses(port).collect()));
        }
        for (peer, ports) in &self.peers {
            for port in ports {
                self.places.insert(port.mac, Place::There(*peer));
                everyone.push((port.mac, port.addresses.clone()));
            }
        }
        for port in self.ports.values_mut() {
            let model = port.executor.program().port.clone();
            let mut neighbours = Neighbours::default();
            for (mac, addresses) in everyone.iter().filter(|(mac, _)| *mac != model.mac) {
                for address in addresses {
                    neighbours.insert(*address, *mac);
                }
            }
            port.executor
                .replace(compile(&self.network, &model, &neighbours, self.epoch));
        }
    }

    /// A frame from a port's guest. Its destination may be rewritten.
    pub fn from_guest(
        &mut self,
        now: Milliseconds,
        id: PortId,
        frame: &mut [u8],
        offload: Offload,
        outlets: &mut dyn Outlets,
    ) {
        let Some(port) = self.ports.get_mut(&id) else {
            return;
        };
        port.counters.sent += 1;
        port.counters.sent_bytes += frame.len() as u64;
        let decision = port.executor.decide(now, Origin::Guest, frame, &offload);
        let end = match decision.length {
            0 => frame.len(),
            length => ETHERNET_LENGTH + length,
        };
        match decision.verdict {
            Verdict::Drop(reason) => port.counters.count(Direction::Out, reason),
            Verdict::Answer(kind) => {
                self.answer.clear();
                match answer::answer(port.executor.program(), kind, frame, &mut self.answer) {
                    Ok(()) => to_guest(port, id, &self.answer, FINISHED, outlets),
                    Err(reason) => port.counters.count(Direction::Out, reason),
                }
            }
            Verdict::Service(service) => {
                if !outlets.service(id, service, &frame[..end], offload) {
                    port.counters.count(Direction::Out, DropReason::GatewayBusy);
                }
            }
            Verdict::Uplink => {
                outlets.uplink(id, &frame[ETHERNET_LENGTH..end], from_frame(offload));
            }
            Verdict::Neighbour(mac) => {
                frame[..6].copy_from_slice(&mac.0);
                match self.places.get(&mac) {
                    Some(Place::Here(to)) => {
                        let to = *to;
                        self.deliver(now, to, Origin::Network, &frame[..end], offload, outlets);
                    }
                    Some(Place::There(peer)) => {
                        if !outlets.peer(Some(*peer), &frame[..end], offload) {
                            port.counters.count(Direction::Out, DropReason::QueueFull);
                        }
                    }
                    None => port
                        .counters
                        .count(Direction::Out, DropReason::UnknownNeighbour),
                }
            }
            Verdict::Flood => {
                if !outlets.peer(None, &frame[..end], offload) {
                    port.counters.count(Direction::Out, DropReason::QueueFull);
                }
                self.deliver_to_all(now, Some(id), &frame[..end], offload, outlets);
            }
            // No outgoing program delivers.
            Verdict::Deliver => {}
        }
    }

    /// A frame from a port of another process. One that no port of that
    /// process can have sent is ignored.
    pub fn from_peer(
        &mut self,
        now: Milliseconds,
        peer: PeerId,
        frame: &[u8],
        offload: Offload,
        outlets: &mut dyn Outlets,
    ) {
        let Some(ethernet) = Ethernet::parse(frame) else {
            return;
        };
        match self.places.get(&ethernet.source) {
            Some(Place::There(owner)) if *owner == peer => {}
            _ => return,
        }
        if ethernet.destination.is_multicast() {
            self.deliver_to_all(now, None, frame, offload, outlets);
        } else if let Some(Place::Here(to)) = self.places.get(&ethernet.destination) {
            let to = *to;
            self.deliver(now, to, Origin::Network, frame, offload, outlets);
        }
    }

    /// A packet from the uplink.
    pub fn from_uplink(
        &mut self,
        now: Milliseconds,
        port: PortId,
        packet: &[u8],
        offload: Offload,
        outlets: &mut dyn Outlets,
    ) {
        self.deliver(now, port, Origin::Uplink, packet, offload, outlets);
    }

    /// A frame from a service of the plane, as it is.
    pub fn from_service(&mut self, id: PortId, frame: &[u8], outlets: &mut dyn Outlets) {
        if let Some(port) = self.ports.get_mut(&id) {
            to_guest(port, id, frame, FINISHED, outlets);
        }
    }

    fn deliver_to_all(
        &mut self,
        now: Milliseconds,
        except: Option<PortId>,
        frame: &[u8],
        offload: Offload,
        outlets: &mut dyn Outlets,
    ) {
        let mut after = None;
        while let Some(id) = self.next_port(after) {
            after = Some(id);
            if Some(id) != except {
                self.deliver(now, id, Origin::Network, frame, offload, outlets);
            }
        }
    }

    fn next_port(&self, after: Option<PortId>) -> Option<PortId> {
        use std::ops::Bound::{Excluded, Unbounded};
        let from = after.map_or(Unbounded, Excluded);
        self.ports
            .range((from, Unbounded))
            .next()
            .map(|(id, _)| *id)
    }

    /// Runs a port's program on what is for it.
    fn deliver(
        &mut self,
        now: Milliseconds,
        id: PortId,
        origin: Origin,
        bytes: &[u8],
        offload: Offload,
        outlets: &mut dyn Outlets,
    ) {
        let Some(port) = self.ports.get_mut(&id) else {
            return;
        };
        let decision = port.executor.decide(now, origin, bytes, &offload);
        match (decision.verdict, origin) {
            (Verdict::Deliver, Origin::Uplink) => {
                let v4 = bytes.first().is_some_and(|byte| byte >> 4 == 4);
                let header = Ethernet {
                    destination: port.executor.program().port.mac,
                    source: GATEWAY_MAC,
                    ethertype: if v4 { ethertype::IPV4 } else { ethertype::IPV6 },
                };
                port.counters.received += 1;
                port.counters.received_bytes += (ETHERNET_LENGTH + decision.length) as u64;
                let packet = &bytes[..decision.length];
                outlets.guest(id, header.bytes(), packet, to_frame(offload));
            }
            (Verdict::Deliver, _) => {
                let end = ETHERNET_LENGTH + decision.length;
                to_guest(port, id, &bytes[..end], offload, outlets);
            }
            (Verdict::Drop(reason), _) => port.counters.count(Direction::In, reason),
            // No incoming program does anything else.
            _ => {}
        }
    }

    /// A router advertisement for a port's guest.
    pub fn advertise(&mut self, id: PortId, outlets: &mut dyn Outlets) {
        let Some(port) = self.ports.get_mut(&id) else {
            return;
        };
        self.answer.clear();
        if answer::advertisement(port.executor.program(), &mut self.answer).is_some() {
            to_guest(port, id, &self.answer, FINISHED, outlets);
        }
    }

    /// Forgets conversations that are over.
    pub fn expire(&mut self, now: Milliseconds) {
        for port in self.ports.values_mut() {
            port.executor.expire(now);
        }
    }
}

/// What the plane itself writes is whole and right.
const FINISHED: Offload = Offload {
    checksum: None,
    segmentation: None,
    checked: true,
};

fn to_guest(
    port: &mut SwitchPort,
    id: PortId,
    frame: &[u8],
    offload: Offload,
    outlets: &mut dyn Outlets,
) {
    let Some((header, packet)) = frame.split_first_chunk() else {
        return;
    };
    port.counters.received += 1;
    port.counters.received_bytes += frame.len() as u64;
    outlets.guest(id, *header, packet, offload);
}

/// The addresses others reach a port at.
pub(crate) fn addresses(port: &Port) -> impl Iterator<Item = IpAddr> + use<> {
    let plain = Port {
        transit: Vec::new(),
        ..port.clone()
    };
    own_addresses(&plain).into_iter().map(|net| net.addr())
}

/// The same offload, counted from the IP header. The program has checked that
/// it lies behind the Ethernet header.
fn from_frame(offload: Offload) -> Offload {
    shift(offload, |offset| {
        offset.saturating_sub(ETHERNET_LENGTH as u16)
    })
}

/// The same offload, counted from the Ethernet header.
fn to_frame(offload: Offload) -> Offload {
    shift(offload, |offset| {
        offset.saturating_add(ETHERNET_LENGTH as u16)
    })
}

fn shift(offload: Offload, by: impl Fn(u16) -> u16) -> Offload {
    Offload {
        checksum: offload.checksum.map(|checksum| PartialChecksum {
            start: by(checksum.start),
            ..checksum
        }),
        segmentation: offload.segmentation.map(|segmentation| Segmentation {
            header: by(segmentation.header),
            ..segmentation
        }),
        checked: offload.checked,
    }
}

#[cfg(test)]
#[path = "switch_test.rs"]
mod test;
