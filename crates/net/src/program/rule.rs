//! Rules: what they look at and what they do.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use super::{DropReason, Neighbours, Origin};
use crate::answer::neighbour;
use crate::model::{Direction, MacAddress, PortRange};
use crate::packet::{ETHERNET_LENGTH, Ethernet, FlowKey, Ip, ethertype};

/// Rules of one purpose. The first that matches decides; if none does,
/// `otherwise`.
#[derive(Clone, Debug)]
pub struct Layer {
    /// What it is for.
    pub name: LayerName,
    /// Its rules, in order.
    pub rules: Vec<Rule>,
    /// What is done if no rule matches.
    pub otherwise: Action,
}

/// What a layer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LayerName {
    /// From the guest: nothing in another's name.
    Source,
    /// From the guest: what the port answers itself.
    Local,
    /// Both ways: security groups.
    Firewall,
    /// From the guest: where it goes.
    Route,
    /// To the guest: only what is for it, from whom it may be.
    Destination,
}

impl fmt::Display for LayerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Source => "source",
            Self::Local => "local",
            Self::Firewall => "firewall",
            Self::Route => "route",
            Self::Destination => "destination",
        })
    }
}

/// Names a rule within a program: the layer, and the rule's place in it. The
/// place behind the last rule is the layer's `otherwise`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RuleId {
    /// The packet's direction.
    pub direction: Direction,
    /// The layer.
    pub layer: LayerName,
    /// The rule's place, from 0.
    pub index: usize,
}

/// One rule.
#[derive(Clone, Debug)]
pub struct Rule {
    /// What a person reads in a trace.
    pub name: String,
    /// All of these must hold.
    pub when: Vec<Match>,
    /// What is done then.
    pub then: Action,
}

/// What a rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The packet passes to the next layer.
    Pass,
    /// The packet is dropped.
    Drop(DropReason),
    /// The guest gets an answer.
    Answer(Answer),
    /// A service of the plane takes the packet.
    Service(Service),
    /// To the port that has the destination address.
    Neighbour,
    /// To every other port.
    Flood,
    /// Out of the network.
    Uplink,
    /// To the guest.
    Deliver,
}

/// Answers made from the packet and the program alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// ARP: who has an address.
    Arp,
    /// Neighbour discovery: who has an address.
    Neighbour,
    /// A router advertisement.
    Router,
    /// DHCP.
    Dhcp4,
    /// DHCPv6.
    Dhcp6,
    /// The echo of an echo request.
    Echo,
    /// A TCP reset, or that a UDP port is closed.
    Refusal,
}

/// Services of the plane that need more than the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// DNS over UDP.
    Dns,
    /// What is served over TCP: the metadata, and DNS.
    Tcp,
}

/// What a rule looks at.
#[derive(Clone, Debug)]
pub enum Match {
    /// The opposite.
    Not(Box<Match>),
    /// Any of these.
    AnyOf(Vec<Match>),
    /// What the frame carries.
    EtherType(u16),
    /// Who the frame says it is from.
    SourceMac(MacAddress),
    /// Who the frame is for.
    DestinationMac(MacAddress),
    /// The frame is for more than one station.
    MulticastMac,
    /// ARP, and both sender addresses are these.
    ArpSender(MacAddress, Vec<IpNet>),
    /// ARP, and it asks for an address.
    ArpRequest,
    /// Neighbour discovery that speaks for itself only: link-layer options are
    /// the port's, announced targets are among these.
    NeighbourIsPort(MacAddress, Vec<IpNet>),
    /// The source address.
    Source(IpNet),
    /// The destination address.
    Destination(IpNet),
    /// The other end's address, whichever way the packet goes.
    Remote(IpNet),
    /// The source address is multicast, unspecified, loopback, or otherwise
    /// none a packet comes from.
    SourceImpossible,
    /// The frame's source is the port of the network that has the packet's
    /// source address.
    SourceIsNeighbour,
    /// The protocol above IP.
    Protocol(u8),
    /// The destination port of TCP and UDP.
    DestinationPort(PortRange),
    /// The source port of TCP and UDP.
    SourcePort(u16),
    /// The type of ICMP or ICMPv6.
    IcmpType(u8),
    /// An ICMP or ICMPv6 echo request.
    EchoRequest,
    /// It belongs to a conversation that was allowed.
    Established,
    /// It came from the network, not from beyond.
    FromNetwork,
    /// It came from beyond the network.
    FromUplink,
}

/// What rules look at.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// Where it came from.
    pub origin: Origin,
    /// The Ethernet header; none from the uplink.
    pub ethernet: Option<Ethernet>,
    /// The IP header; none for ARP.
    pub ip: Option<Ip>,
    /// What follows the Ethernet header.
    pub packet: &'a [u8],
    /// Whether it belongs to a conversation that was allowed.
    pub established: bool,
    /// Who is on the network.
    pub neighbours: &'a Neighbours,
}

/// A one-address prefix.
pub fn host(address: IpAddr) -> IpNet {
    IpNet::from(address)
}

impl Match {
    /// Whether it holds for a packet.
    pub fn holds(&self, view: &View<'_>) -> bool {
        let ip = view.ip.as_ref();
        let ethernet = view.ethernet.as_ref();
        match self {
            Self::Not(other) => !other.holds(view),
            Self::AnyOf(others) => others.iter().any(|other| other.holds(view)),
            Self::EtherType(kind) => match ethernet {
                Some(ethernet) => ethernet.ethertype == *kind,
                None => ip.is_some_and(|ip| {
                    *kind
                        == if ip.source.is_ipv4() {
                            ethertype::IPV4
                        } else {
                            ethertype::IPV6
                        }
                }),
            },
            Self::SourceMac(mac) => ethernet.is_some_and(|e| e.source == *mac),
            Self::DestinationMac(mac) => ethernet.is_some_and(|e| e.destination == *mac),
            Self::MulticastMac => ethernet.is_some_and(|e| e.destination.is_multicast()),
            Self::ArpSender(mac, addresses) => {
                neighbour::arp_sender_is(view.packet, *mac, addresses)
            }
            Self::ArpRequest => neighbour::is_arp_request(view.packet),
            Self::NeighbourIsPort(mac, addresses) => {
                ip.is_some_and(|ip| neighbour::speaks_for_itself(ip, view.packet, *mac, addresses))
            }
            Self::Source(net) => ip.is_some_and(|ip| net.contains(&ip.source)),
            Self::Destination(net) => ip.is_some_and(|ip| net.contains(&ip.destination)),
            Self::Remote(net) => ip.is_some_and(|ip| {
                net.contains(match view.origin {
                    Origin::Guest => &ip.destination,
                    Origin::Network | Origin::Uplink => &ip.source,
                })
            }),
            Self::SourceImpossible => ip.is_some_and(|ip| is_impossible_source(ip.source)),
            Self::SourceIsNeighbour => match (ip, ethernet) {
                (Some(ip), Some(ethernet)) => {
                    view.neighbours.get(ip.source) == Some(ethernet.source)
                }
                _ => false,
            },
            Self::Protocol(protocol) => ip.is_some_and(|ip| ip.protocol == *protocol),
            Self::DestinationPort(range) => {
                ip.is_some_and(|ip| (range.first..=range.last).contains(&ip.ports.1))
            }
            Self::SourcePort(port) => ip.is_some_and(|ip| ip.ports.0 == *port),
            Self::IcmpType(kind) => ip.is_some_and(|ip| ip.icmp.is_some_and(|(k, _)| k == *kind)),
            Self::EchoRequest => ip.is_some_and(Ip::is_echo_request),
            Self::Established => view.established,
            Self::FromNetwork => view.origin == Origin::Network,
            Self::FromUplink => view.origin == Origin::Uplink,
        }
    }
}

impl Layer {
    /// Which rule decides, and how.
    pub fn decide(&self, view: &View<'_>) -> (usize, Action) {
        self.rules
            .iter()
            .enumerate()
            .find(|(_, rule)| rule.when.iter().all(|condition| condition.holds(view)))
            .map_or((self.rules.len(), self.otherwise), |(index, rule)| {
                (index, rule.then)
            })
    }
}

fn is_impossible_source(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            v4.is_unspecified() || v4.is_multicast() || v4.is_broadcast() || v4.is_loopback()
        }
        IpAddr::V6(v6) => v6.is_unspecified() || v6.is_multicast() || v6.is_loopback(),
    }
}

pub(crate) fn ip_offset(origin: Origin) -> usize {
    match origin {
        Origin::Guest | Origin::Network => ETHERNET_LENGTH,
        Origin::Uplink => 0,
    }
}

/// What a firewall's rules see of a conversation when it is opened: enough to
/// ask them again after they changed.
pub(crate) fn opening_view<'a>(
    key: &FlowKey,
    direction: Direction,
    origin: Origin,
    neighbours: &'a Neighbours,
) -> View<'a> {
    let (source, destination, ports) = match direction {
        Direction::Out => (key.local, key.remote, (key.local_port, key.remote_port)),
        Direction::In => (key.remote, key.local, (key.remote_port, key.local_port)),
    };
    View {
        origin,
        ethernet: None,
        ip: Some(Ip {
            source,
            destination,
            hop_limit: 64,
            protocol: key.protocol,
            transport: 0,
            length: 0,
            ports,
            icmp: None,
            flags: Default::default(),
        }),
        packet: &[],
        established: false,
        neighbours,
    }
}
