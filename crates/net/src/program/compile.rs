//! Makes a port's program of the model.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::rule::host;
use super::{
    Action, Answer, DropReason, Layer, LayerName, Match, Neighbours, Program, Rule, Service,
};
use crate::model::{Access, Direction, ForwardProtocol, GATEWAY_LINK_LOCAL, GATEWAY_MAC};
use crate::model::{METADATA_V4, METADATA_V6, Network, Port, PortRange, Protocol, Remote};
use crate::packet::{ethertype, icmp, protocol};

/// UDP port of DHCP servers (RFC 2131), and of clients.
const DHCP4: (u16, u16) = (67, 68);
/// UDP port of DHCPv6 servers (RFC 8415), and of clients.
const DHCP6: (u16, u16) = (547, 546);
const DNS: u16 = 53;
const HTTP: u16 = 80;

/// All DHCPv6 servers of a link (RFC 8415, section 7.1).
const ALL_DHCP_SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
const LINK_LOCAL_4: IpNet = IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16));
const LINK_LOCAL_6: IpNet = IpNet::V6(Ipv6Net::new_assert(
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0),
    10,
));
const MULTICAST_4: IpNet = IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 4));
const MULTICAST_6: IpNet = IpNet::V6(Ipv6Net::new_assert(
    Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0),
    8,
));

/// Compiles a port.
pub fn compile(network: &Network, port: &Port, neighbours: &Neighbours, epoch: u64) -> Program {
    Program {
        outgoing: vec![
            source(network, port),
            local(network),
            firewall(network, port, Direction::Out),
            route(network, port),
        ],
        incoming: vec![
            destination(network, port),
            firewall(network, port, Direction::In),
        ],
        port: port.clone(),
        network: network.clone(),
        neighbours: neighbours.clone(),
        epoch,
    }
}

/// The addresses a port may send from.
pub(crate) fn own_addresses(port: &Port) -> Vec<IpNet> {
    let link_local = port.mac.eui64(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0));
    let mut own: Vec<IpNet> = port.v4.map(IpAddr::V4).map(host).into_iter().collect();
    if let Some(v6) = port.v6 {
        own.extend([host(v6.into()), host(link_local.into())]);
    }
    own.extend(&port.transit);
    own
}

/// The gateway's addresses.
fn gateway_addresses(network: &Network) -> Vec<IpNet> {
    let v4 = network.v4.map(|v4| host(v4.gateway.into()));
    let v6 = network
        .v6
        .map(|v6| [host(v6.gateway.into()), host(GATEWAY_LINK_LOCAL.into())]);
    v4.into_iter().chain(v6.into_iter().flatten()).collect()
}

fn metadata_addresses(network: &Network) -> Vec<IpNet> {
    let v4 = network.v4.map(|_| host(METADATA_V4.into()));
    let v6 = network.v6.map(|_| host(METADATA_V6.into()));
    v4.into_iter().chain(v6).collect()
}

fn subnets(network: &Network) -> Vec<IpNet> {
    let v4 = network.v4.map(|v4| IpNet::V4(v4.prefix));
    let v6 = network.v6.map(|v6| IpNet::V6(v6.prefix));
    v4.into_iter().chain(v6).collect()
}

fn rule(name: &str, when: Vec<Match>, then: Action) -> Rule {
    Rule {
        name: name.to_owned(),
        when,
        then,
    }
}

fn not(condition: Match) -> Match {
    Match::Not(Box::new(condition))
}

fn source_in(nets: &[IpNet]) -> Match {
    Match::AnyOf(nets.iter().copied().map(Match::Source).collect())
}

fn destination_in(nets: &[IpNet]) -> Match {
    Match::AnyOf(nets.iter().copied().map(Match::Destination).collect())
}

fn icmp6(kinds: &[u8]) -> Match {
    Match::AnyOf(kinds.iter().copied().map(Match::IcmpType).collect())
}

fn port(number: u16) -> Match {
    Match::DestinationPort(PortRange {
        first: number,
        last: number,
    })
}

/// Nothing leaves in another's name.
fn source(network: &Network, port_: &Port) -> Layer {
    use Action::{Drop, Pass};
    use Match::{ArpSender, EtherType, Protocol, Source, SourceMac};
    let own = own_addresses(port_);
    let unspecified_6 = Source(host(Ipv6Addr::UNSPECIFIED.into()));
    let neighbour_discovery = [
        icmp::ROUTER_SOLICITATION,
        icmp::ROUTER_ADVERTISEMENT,
        icmp::NEIGHBOUR_SOLICITATION,
        icmp::NEIGHBOUR_ADVERTISEMENT,
        icmp::REDIRECT,
    ];
    let mut rules = vec![rule(
        "a source MAC address that is not the port's",
        vec![not(SourceMac(port_.mac))],
        Drop(DropReason::SpoofedMac),
    )];
    let gateway = gateway_addresses(network);
    let dhcp_server = |ports: (u16, u16)| {
        vec![
            Protocol(protocol::UDP),
            Match::SourcePort(ports.0),
            port(ports.1),
        ]
    };
    rules.extend([
        // Sent to everyone, neighbours would take it for the gateway's.
        rule(
            "a DHCP server that is a guest",
            dhcp_server(DHCP4),
            Drop(DropReason::SpoofedDhcp),
        ),
        rule(
            "a DHCPv6 server that is a guest",
            dhcp_server(DHCP6),
            Drop(DropReason::SpoofedDhcp),
        ),
        rule(
            "IPv4 from the gateway's address",
            vec![EtherType(ethertype::IPV4), source_in(&gateway)],
            Drop(DropReason::SpoofedIpv4),
        ),
        rule(
            "IPv6 from the gateway's address",
            vec![EtherType(ethertype::IPV6), source_in(&gateway)],
            Drop(DropReason::SpoofedIpv6),
        ),
    ]);
    if network.v4.is_some() {
        rules.extend([
            rule(
                "ARP in the port's name",
                vec![EtherType(ethertype::ARP), ArpSender(port_.mac, own.clone())],
                Pass,
            ),
            rule(
                "ARP in another's name",
                vec![EtherType(ethertype::ARP)],
                Drop(DropReason::SpoofedArp),
            ),
            rule(
                "a DHCP client without an address",
                vec![
                    EtherType(ethertype::IPV4),
                    Source(host(Ipv4Addr::UNSPECIFIED.into())),
                    Protocol(protocol::UDP),
                    Match::SourcePort(DHCP4.1),
                    port(DHCP4.0),
                ],
                Pass,
            ),
            rule(
                "IPv4 from the port's address",
                vec![EtherType(ethertype::IPV4), source_in(&own)],
                Pass,
            ),
            rule(
                "IPv4 from another's address",
                vec![EtherType(ethertype::IPV4)],
                Drop(DropReason::SpoofedIpv4),
            ),
        ]);
    }
    if network.v6.is_some() {
        rules.extend([
            rule(
                "neighbour discovery in another's name",
                vec![
                    Protocol(protocol::ICMPV6),
                    icmp6(&neighbour_discovery),
                    not(Match::NeighbourIsPort(port_.mac, own.clone())),
                ],
                Drop(DropReason::SpoofedNeighbour),
            ),
            rule(
                "a guest that looks whether its address is free, or for a router",
                vec![
                    unspecified_6,
                    Protocol(protocol::ICMPV6),
                    icmp6(&[
                        icmp::NEIGHBOUR_SOLICITATION,
                        icmp::ROUTER_SOLICITATION,
                        icmp::LISTENER_REPORT,
                        icmp::LISTENER_REPORT_V2,
                    ]),
                ],
                Pass,
            ),
            rule(
                "IPv6 from the port's address",
                vec![EtherType(ethertype::IPV6), source_in(&own)],
                Pass,
            ),
            rule(
                "IPv6 from another's address",
                vec![EtherType(ethertype::IPV6)],
                Drop(DropReason::SpoofedIpv6),
            ),
        ]);
    }
    Layer {
        name: LayerName::Source,
        rules,
        otherwise: Drop(DropReason::UnknownProtocol),
    }
}

/// What the port answers itself.
fn local(network: &Network) -> Layer {
    use Action::{Drop, Pass};
    use Match::{EchoRequest, EtherType, Protocol};
    let gateway = gateway_addresses(network);
    let metadata = metadata_addresses(network);
    let both: Vec<IpNet> = gateway.iter().chain(&metadata).copied().collect();
    let udp = || Protocol(protocol::UDP);
    let tcp = || Protocol(protocol::TCP);
    let icmpv6 = || Protocol(protocol::ICMPV6);
    let mut rules = vec![
        rule(
            "ARP asks for an address",
            vec![EtherType(ethertype::ARP), Match::ArpRequest],
            Action::Answer(Answer::Arp),
        ),
        rule(
            "ARP announces",
            vec![EtherType(ethertype::ARP)],
            Drop(DropReason::Ignored),
        ),
        rule(
            "neighbour solicitation",
            vec![icmpv6(), icmp6(&[icmp::NEIGHBOUR_SOLICITATION])],
            Action::Answer(Answer::Neighbour),
        ),
        rule(
            "router solicitation",
            vec![icmpv6(), icmp6(&[icmp::ROUTER_SOLICITATION])],
            Action::Answer(Answer::Router),
        ),
        rule(
            "announcements of neighbours and listeners",
            vec![
                icmpv6(),
                icmp6(&[
                    icmp::NEIGHBOUR_ADVERTISEMENT,
                    icmp::LISTENER_REPORT,
                    icmp::LISTENER_DONE,
                    icmp::LISTENER_REPORT_V2,
                ]),
            ],
            Drop(DropReason::Ignored),
        ),
    ];
    if let Some(v4) = network.v4 {
        rules.push(rule(
            "DHCP",
            vec![
                udp(),
                port(DHCP4.0),
                destination_in(&[host(Ipv4Addr::BROADCAST.into()), host(v4.gateway.into())]),
            ],
            Action::Answer(Answer::Dhcp4),
        ));
    }
    if network.v6.is_some() {
        rules.push(rule(
            "DHCPv6",
            vec![
                udp(),
                port(DHCP6.0),
                destination_in(&[host(ALL_DHCP_SERVERS.into())]),
            ],
            Action::Answer(Answer::Dhcp6),
        ));
    }
    // A client of a forward that is the host itself has the gateway's address.
    rules.push(rule(
        "an answer to a forwarded client that is the host",
        vec![Match::Established, destination_in(&gateway)],
        Pass,
    ));
    rules.extend([
        rule(
            "echo of the gateway",
            vec![EchoRequest, destination_in(&both)],
            Action::Answer(Answer::Echo),
        ),
        rule(
            "DNS",
            vec![udp(), port(DNS), destination_in(&gateway)],
            Action::Service(Service::Dns),
        ),
        rule(
            "DNS over TCP",
            vec![tcp(), port(DNS), destination_in(&gateway)],
            Action::Service(Service::Tcp),
        ),
        rule(
            "metadata",
            vec![tcp(), port(HTTP), destination_in(&metadata)],
            Action::Service(Service::Tcp),
        ),
    ]);
    if network.host_loopback {
        let routed: Vec<IpNet> = gateway
            .iter()
            .copied()
            .filter(|net| *net != host(GATEWAY_LINK_LOCAL.into()))
            .collect();
        rules.push(rule(
            "the host's loopback",
            vec![destination_in(&routed)],
            Pass,
        ));
    }
    rules.extend([
        rule(
            "a closed port of the gateway",
            vec![Match::AnyOf(vec![tcp(), udp()]), destination_in(&both)],
            Action::Answer(Answer::Refusal),
        ),
        rule(
            "what the gateway does not serve",
            vec![destination_in(&both)],
            Drop(DropReason::GatewayPort),
        ),
    ]);
    Layer {
        name: LayerName::Local,
        rules,
        otherwise: Pass,
    }
}

/// Security groups and forwards.
fn firewall(network: &Network, port_: &Port, direction: Direction) -> Layer {
    let mut rules = vec![rule("established", vec![Match::Established], Action::Pass)];
    let mut groups: Vec<_> = port_
        .groups
        .iter()
        .flat_map(|group| group.rules.iter().map(move |rule| (group, rule)))
        .filter(|(_, rule)| rule.direction == direction)
        .collect();
    groups.sort_by_key(|(_, rule)| (rule.priority, rule.access));
    for (group, security) in groups {
        let mut when = Vec::new();
        match security.protocol {
            Protocol::Any => {}
            Protocol::Tcp => when.push(Match::Protocol(protocol::TCP)),
            Protocol::Udp => when.push(Match::Protocol(protocol::UDP)),
            Protocol::Icmp => when.push(Match::AnyOf(vec![
                Match::Protocol(protocol::ICMP),
                Match::Protocol(protocol::ICMPV6),
            ])),
        }
        if let Some(ports) = security.ports {
            // Ports mean nothing to other protocols.
            when.push(Match::AnyOf(vec![
                Match::Protocol(protocol::TCP),
                Match::Protocol(protocol::UDP),
            ]));
            when.push(Match::DestinationPort(ports));
        }
        match security.remote {
            Remote::Any => {}
            Remote::Network if direction == Direction::In => when.push(Match::FromNetwork),
            Remote::Network => when.push(Match::AnyOf(
                subnets(network)
                    .into_iter()
                    .chain([LINK_LOCAL_6])
                    .map(Match::Remote)
                    .collect(),
            )),
            Remote::Prefix(net) => when.push(Match::Remote(net)),
        }
        rules.push(Rule {
            name: format!("group '{}', priority {}", group.name, security.priority),
            when,
            then: match security.access {
                Access::Allow => Action::Pass,
                Access::Deny => Action::Drop(DropReason::DeniedByRule),
            },
        });
    }
    // Behind the groups, so that a rule can close a forward to some.
    if direction == Direction::In {
        for forward in &port_.forwards {
            let (name, number) = match forward.protocol {
                ForwardProtocol::Tcp => ("TCP", protocol::TCP),
                ForwardProtocol::Udp => ("UDP", protocol::UDP),
            };
            rules.push(Rule {
                name: format!("forward to {name} port {}", forward.guest_port),
                when: vec![
                    Match::FromUplink,
                    Match::Protocol(number),
                    port(forward.guest_port),
                ],
                then: Action::Pass,
            });
        }
    }
    Layer {
        name: LayerName::Firewall,
        rules,
        otherwise: Action::Drop(DropReason::Denied),
    }
}

/// Where a packet from the guest goes.
fn route(network: &Network, port_: &Port) -> Layer {
    use Action::Drop;
    let mut broadcasts = vec![MULTICAST_4, MULTICAST_6, host(Ipv4Addr::BROADCAST.into())];
    broadcasts.extend(network.v4.map(|v4| host(v4.prefix.broadcast().into())));
    let mut on_link = subnets(network);
    on_link.push(LINK_LOCAL_6);
    let own = own_addresses(&Port {
        transit: Vec::new(),
        ..port_.clone()
    });
    let mut rules = vec![
        rule(
            "to itself",
            vec![destination_in(&own)],
            Drop(DropReason::Martian),
        ),
        rule(
            "to everyone on the network",
            vec![destination_in(&broadcasts), Match::MulticastMac],
            Action::Flood,
        ),
        rule(
            "a group address in a frame for one station, or the reverse",
            vec![Match::AnyOf(vec![
                destination_in(&broadcasts),
                Match::MulticastMac,
            ])],
            Drop(DropReason::WrongMac),
        ),
    ];
    // The local layer lets nothing else for the gateway come here.
    rules.push(rule(
        "the host itself, in the gateway's name",
        vec![
            destination_in(&gateway_addresses(network)),
            Match::DestinationMac(GATEWAY_MAC),
        ],
        Action::Uplink,
    ));
    rules.push(rule(
        "on the network",
        vec![destination_in(&on_link)],
        Action::Neighbour,
    ));
    rules.push(rule(
        "addresses that are nobody's beyond the network",
        vec![destination_in(&martians())],
        Drop(DropReason::Martian),
    ));
    if network.routed {
        rules.push(rule(
            "beyond the network, by the gateway",
            vec![Match::DestinationMac(GATEWAY_MAC)],
            Action::Uplink,
        ));
    } else {
        rules.push(rule(
            "beyond the network",
            vec![],
            Drop(DropReason::NotRouted),
        ));
    }
    Layer {
        name: LayerName::Route,
        rules,
        otherwise: Drop(DropReason::WrongMac),
    }
}

/// Destinations no packet may leave for (RFC 6890), first of all those that
/// mean the host itself or its link: a cloud's metadata service is on it.
fn martians() -> Vec<IpNet> {
    let v4 = |a, b, length| IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, 0, 0), length));
    let v6 = |address, length| IpNet::V6(Ipv6Net::new_assert(address, length));
    vec![
        v4(0, 0, 8),
        v4(127, 0, 8),
        LINK_LOCAL_4,
        v4(240, 0, 4),
        // The unspecified address, the loopback address and IPv4-mapped
        // addresses, which a host's socket would take for IPv4.
        v6(Ipv6Addr::UNSPECIFIED, 80),
        // Other networks' metadata and gateways aren't reached this way.
        host(METADATA_V6.into()),
    ]
}

/// Only what is for the port, from whom it may be.
fn destination(network: &Network, port_: &Port) -> Layer {
    use Action::{Drop, Pass};
    let own = own_addresses(port_);
    let mut groups = vec![MULTICAST_4, MULTICAST_6, host(Ipv4Addr::BROADCAST.into())];
    groups.extend(network.v4.map(|v4| host(v4.prefix.broadcast().into())));
    let not_ip = not(Match::AnyOf(vec![
        Match::EtherType(ethertype::IPV4),
        Match::EtherType(ethertype::IPV6),
    ]));
    let mut inside = subnets(network);
    inside.push(LINK_LOCAL_6);
    let mut rules = vec![
        rule(
            "neither IPv4 nor IPv6",
            vec![not_ip],
            Drop(DropReason::UnknownProtocol),
        ),
        rule(
            "an impossible source",
            vec![Match::SourceImpossible],
            Drop(DropReason::Martian),
        ),
        rule(
            "from the network, by nobody on it",
            vec![Match::FromNetwork, not(Match::SourceIsNeighbour)],
            Drop(DropReason::NotFromNetwork),
        ),
        rule(
            "neighbour discovery; ports answer it themselves",
            vec![
                Match::Protocol(protocol::ICMPV6),
                icmp6(&[133, 134, 135, 136, 137]),
            ],
            Drop(DropReason::Ignored),
        ),
        rule(
            "from the network, to everyone",
            vec![
                Match::FromNetwork,
                Match::MulticastMac,
                destination_in(&groups),
            ],
            Pass,
        ),
        rule(
            "from the network, in a frame for another",
            vec![Match::FromNetwork, not(Match::DestinationMac(port_.mac))],
            Drop(DropReason::WrongMac),
        ),
    ];
    let gateway = gateway_addresses(network);
    rules.extend([
        rule(
            "a forwarded client that is the host",
            vec![Match::FromUplink, source_in(&gateway), destination_in(&own)],
            Pass,
        ),
        rule(
            "from beyond, with an address of the network",
            vec![Match::FromUplink, source_in(&inside)],
            Drop(DropReason::Martian),
        ),
        rule("to the port", vec![destination_in(&own)], Pass),
    ]);
    Layer {
        name: LayerName::Destination,
        rules,
        otherwise: Drop(DropReason::NotForPort),
    }
}
