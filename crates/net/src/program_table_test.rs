//! The conformance table: packets, good, malformed, spoofed, and what becomes
//! of each on a port that has seen nothing yet.

use super::*;

pub(super) const MAC: MacAddress = MacAddress([0x52, 0x54, 0, 0, 0, 1]);
pub(super) const PEER: MacAddress = MacAddress([0x52, 0x54, 0, 0, 0, 2]);
pub(super) const STRANGER: MacAddress = MacAddress([0x52, 0x54, 0, 0, 0, 9]);
pub(super) const GROUP: MacAddress = MacAddress([0x01, 0, 0x5e, 0, 0, 0xfb]);

/// The network of the table: 10.0.0.0/24 and fd00:1::/64, gateway .1; the port
/// is .2, its peer .3.
pub(super) fn network() -> Network {
    let mut network = Network::named("table", 1500);
    let (v4, v6) = (network.v4.as_mut().unwrap(), network.v6.as_mut().unwrap());
    v4.prefix = "10.0.0.0/24".parse().unwrap();
    v4.gateway = "10.0.0.1".parse().unwrap();
    v6.prefix = "fd00:1::/64".parse().unwrap();
    v6.gateway = "fd00:1::1".parse().unwrap();
    network
}

pub(super) fn port() -> Port {
    let mut port = Port::new(
        &network(),
        PortId(1),
        "guest",
        MAC,
        Some("10.0.0.2".parse().unwrap()),
    );
    port.v6 = Some("fd00:1::2".parse().unwrap());
    port.forwards = vec![Forward {
        protocol: ForwardProtocol::Tcp,
        guest_port: 80,
    }];
    port.groups[0].rules.push(SecurityRule {
        priority: 10,
        direction: Direction::Out,
        protocol: Protocol::Tcp,
        ports: Some(PortRange {
            first: 25,
            last: 25,
        }),
        remote: Remote::Any,
        access: Access::Deny,
    });
    port
}

pub(super) fn program_of(port: &Port, epoch: u64) -> Program {
    let mut neighbours = Neighbours::default();
    neighbours.insert("10.0.0.3".parse().unwrap(), PEER);
    neighbours.insert("fd00:1::3".parse().unwrap(), PEER);
    compile::compile(&network(), port, &neighbours, epoch)
}

/// A transport segment in a test's words.
#[derive(Clone, Copy, Debug)]
pub(super) enum Segment {
    Tcp(u16, u16, u8),
    Udp(u16, u16),
    Echo(bool),
    Icmp6(u8),
}

pub(super) const SYN: u8 = 2;
pub(super) const ACK: u8 = 16;

pub(super) fn frame(
    macs: (MacAddress, MacAddress),
    ips: (&str, &str),
    segment: Segment,
) -> Vec<u8> {
    let ip: (IpAddr, IpAddr) = (ips.0.parse().unwrap(), ips.1.parse().unwrap());
    let to = Envelope { ethernet: macs, ip };
    let mut frame = Vec::new();
    match segment {
        Segment::Tcp(from, port, flags) => {
            build::tcp_control(&mut frame, to, (from, port), (1, 1), flags);
        }
        Segment::Udp(from, port) => build::udp(&mut frame, to, (from, port), b"payload"),
        Segment::Echo(request) => {
            let kinds = if ip.0.is_ipv4() { [8, 0] } else { [128, 129] };
            let kind = kinds[usize::from(!request)];
            let message = [kind, 0, 0, 0, 0, 7, 0, 1];
            if ip.0.is_ipv4() {
                build::icmpv4(&mut frame, to, &message);
            } else {
                build::icmpv6(&mut frame, to, 64, &message);
            }
        }
        Segment::Icmp6(kind) => {
            let mut message = vec![kind, 0, 0, 0, 0, 0, 0, 0];
            message.extend([0; 16]);
            build::icmpv6(&mut frame, to, 255, &message);
        }
    }
    frame
}

/// Rewrites an IPv4 frame's header checksum.
pub(super) fn sign(frame: &mut [u8]) {
    frame[24..26].fill(0);
    let sum = Sum::default().bytes(&frame[14..34]).checksum();
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
}

pub(super) fn arp(operation: u8, sender: (MacAddress, [u8; 4]), target: [u8; 4]) -> Vec<u8> {
    let mut frame = [MacAddress::BROADCAST.0, MAC.0].concat();
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, operation]);
    frame.extend(sender.0.0);
    frame.extend(sender.1);
    frame.extend([0; 6]);
    frame.extend(target);
    frame
}

/// A neighbour solicitation (135) or advertisement (136) with a link-layer
/// option.
fn discovery(
    kind: u8,
    ips: (&str, &str),
    target: &str,
    option: Option<(u8, MacAddress)>,
) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0, 0, 0, 0, 0];
    message.extend(target.parse::<std::net::Ipv6Addr>().unwrap().octets());
    if let Some((option, mac)) = option {
        message.extend([option, 1]);
        message.extend(mac.0);
    }
    let to = Envelope {
        ethernet: (MAC, MacAddress([0x33, 0x33, 0, 0, 0, 1])),
        ip: (ips.0.parse().unwrap(), ips.1.parse().unwrap()),
    };
    let mut frame = Vec::new();
    build::icmpv6(&mut frame, to, 255, &message);
    frame
}

/// One line of the conformance table.
pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) origin: Origin,
    pub(super) frame: Vec<u8>,
    pub(super) offload: Offload,
    pub(super) verdict: Verdict,
}

pub(super) fn case(name: &'static str, origin: Origin, frame: Vec<u8>, verdict: Verdict) -> Case {
    Case {
        name,
        origin,
        frame,
        offload: Offload::default(),
        verdict,
    }
}

pub(super) fn changed(mut frame: Vec<u8>, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    change(&mut frame);
    frame
}

/// What each packet meets on a port that has seen nothing yet.
pub(super) fn table() -> Vec<Case> {
    [
        outgoing::cases(),
        spoofed::cases(),
        malformed::cases(),
        offloaded::cases(),
        incoming::cases(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// A TCP segment that opens a connection to port 443.
fn web(macs: (MacAddress, MacAddress), ips: (&str, &str)) -> Vec<u8> {
    frame(macs, ips, Segment::Tcp(4000, 443, SYN))
}

/// From the port to the gateway.
const TO_GATEWAY: (MacAddress, MacAddress) = (MAC, GATEWAY_MAC);
/// The port's link-local address.
const LINK_LOCAL: &str = "fe80::5054:ff:fe00:1";
/// From the port's addresses to beyond the network.
const OUT_4: (&str, &str) = ("10.0.0.2", "93.184.216.34");
const OUT_6: (&str, &str) = ("fd00:1::2", "2600::1");

#[path = "program_table_incoming_test.rs"]
mod incoming;
#[path = "program_table_malformed_test.rs"]
mod malformed;
#[path = "program_table_offloaded_test.rs"]
mod offloaded;
#[path = "program_table_outgoing_test.rs"]
mod outgoing;
#[path = "program_table_spoofed_test.rs"]
mod spoofed;
