//! A port's program: what happens to each packet a guest sends, and to each
//! that is sent to it.
//!
//! [`compile`] makes it of the model: layers of rules, as data. Packets from
//! the guest pass the layers source (no packet in another's name), local (what
//! the port answers itself: ARP, neighbour discovery, DHCP, the gateway),
//! firewall, route; packets to it pass destination and firewall. The first
//! rule of a layer that matches decides.
//!
//! Two things run a program and must agree on every packet: [`oracle`], a pure
//! function that reads the rules in order, and [`executor`], which remembers
//! what it did with a conversation's packets. [`trace`] tells a person what the
//! oracle does.
//!
//! Nothing here does I/O, reads a clock or allocates for a packet of a
//! conversation it knows.

pub mod compile;
pub mod executor;
pub mod flow;
pub mod oracle;
mod reason;
mod rule;
pub mod scene;
pub mod trace;

pub use reason::DropReason;
pub use rule::{Action, Answer, Layer, LayerName, Match, Rule, RuleId, Service, View};

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::model::{MacAddress, Network, Port};

/// A compiled port. It changes only by being compiled again, with a higher
/// epoch.
#[derive(Clone, Debug)]
pub struct Program {
    /// The port it was made of.
    pub port: Port,
    /// The port's network.
    pub network: Network,
    /// Who else is on the network.
    pub neighbours: Neighbours,
    /// The layers a packet from the guest passes.
    pub outgoing: Vec<Layer>,
    /// The layers a packet to the guest passes.
    pub incoming: Vec<Layer>,
    /// Raised whenever anything above changes.
    pub epoch: u64,
}

/// The addresses on a network, beside those of the port and the gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Neighbours {
    addresses: BTreeMap<IpAddr, MacAddress>,
}

impl Neighbours {
    /// Says who has an address.
    pub fn insert(&mut self, address: IpAddr, mac: MacAddress) {
        self.addresses.insert(address, mac);
    }

    /// Who has an address.
    pub fn get(&self, address: IpAddr) -> Option<MacAddress> {
        self.addresses.get(&address).copied()
    }
}

/// Where a packet came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The port's guest: an Ethernet frame.
    Guest,
    /// Another port of the network: an Ethernet frame.
    Network,
    /// The uplink: an IP packet.
    Uplink,
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing; counted.
    Drop(DropReason),
    /// The guest gets an answer made from the packet and the program alone.
    Answer(Answer),
    /// A service of the plane takes it.
    Service(Service),
    /// The IP packet leaves the network.
    Uplink,
    /// The frame goes to the port with this address, which is written into it.
    Neighbour(MacAddress),
    /// The frame goes to every other port of the network.
    Flood,
    /// The guest gets it.
    Deliver,
}

/// A verdict with the rule it comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What becomes of the packet.
    pub verdict: Verdict,
    /// Which rule says so; none, if the packet couldn't be read.
    pub rule: Option<RuleId>,
    /// Length of the IP packet, in bytes: padding behind it is cut off. 0 if
    /// there is none.
    pub length: usize,
}

impl Decision {
    pub(crate) const fn drop(reason: DropReason) -> Self {
        Self {
            verdict: Verdict::Drop(reason),
            rule: None,
            length: 0,
        }
    }
}

#[cfg(test)]
#[path = "program_test.rs"]
mod test;
