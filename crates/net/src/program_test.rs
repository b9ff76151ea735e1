//! Every packet here runs on the oracle and on the executor.

use proptest::prelude::*;

use super::executor::Executor;
use super::flow::Milliseconds;
use super::oracle::{self, FlowMap};
use super::*;
use crate::link::{Offload, PartialChecksum, SegmentKind, Segmentation};
use crate::model::{Access, Direction, Forward, ForwardProtocol, GATEWAY_MAC, PortId, PortRange};
use crate::model::{Protocol, Remote, SecurityGroup, SecurityRule};
use crate::packet::build::{self, Envelope};
use crate::packet::{ETHERNET_LENGTH, Sum};

const MAC: MacAddress = MacAddress([0x52, 0x54, 0, 0, 0, 1]);
const PEER: MacAddress = MacAddress([0x52, 0x54, 0, 0, 0, 2]);
const STRANGER: MacAddress = MacAddress([0x52, 0x54, 0, 0, 0, 9]);
const GROUP: MacAddress = MacAddress([0x01, 0, 0x5e, 0, 0, 0xfb]);

/// The network of the table: 10.0.0.0/24 and fd00:1::/64, gateway .1; the port
/// is .2, its peer .3.
fn network() -> Network {
    let mut network = Network::named("table", 1500);
    let (v4, v6) = (network.v4.as_mut().unwrap(), network.v6.as_mut().unwrap());
    v4.prefix = "10.0.0.0/24".parse().unwrap();
    v4.gateway = "10.0.0.1".parse().unwrap();
    v6.prefix = "fd00:1::/64".parse().unwrap();
    v6.gateway = "fd00:1::1".parse().unwrap();
    network
}

fn port() -> Port {
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

fn program_of(port: &Port, epoch: u64) -> Program {
    let mut neighbours = Neighbours::default();
    neighbours.insert("10.0.0.3".parse().unwrap(), PEER);
    neighbours.insert("fd00:1::3".parse().unwrap(), PEER);
    compile::compile(&network(), port, &neighbours, epoch)
}

/// A transport segment in a test's words.
#[derive(Clone, Copy, Debug)]
enum Segment {
    Tcp(u16, u16, u8),
    Udp(u16, u16),
    Echo(bool),
    Icmp6(u8),
}

const SYN: u8 = 2;
const ACK: u8 = 16;

fn frame(macs: (MacAddress, MacAddress), ips: (&str, &str), segment: Segment) -> Vec<u8> {
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
fn sign(frame: &mut [u8]) {
    frame[24..26].fill(0);
    let sum = Sum::default().bytes(&frame[14..34]).checksum();
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
}

fn arp(operation: u8, sender: (MacAddress, [u8; 4]), target: [u8; 4]) -> Vec<u8> {
    let mut frame = [MacAddress::BROADCAST.0, MAC.0].concat();
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, operation]);
    frame.extend(sender.0.0);
    frame.extend(sender.1);
    frame.extend([0; 6]);
    frame.extend(target);
    frame
}

/// One line of the conformance table.
struct Case {
    name: &'static str,
    origin: Origin,
    frame: Vec<u8>,
    offload: Offload,
    verdict: Verdict,
}

fn case(name: &'static str, origin: Origin, frame: Vec<u8>, verdict: Verdict) -> Case {
    Case {
        name,
        origin,
        frame,
        offload: Offload::default(),
        verdict,
    }
}

fn changed(mut frame: Vec<u8>, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    change(&mut frame);
    frame
}

/// What each packet meets on a port that has seen nothing yet.
fn table() -> Vec<Case> {
    use DropReason as R;
    use Origin::{Guest, Network, Uplink};
    use Segment::{Echo, Icmp6, Tcp, Udp};
    use Verdict::{Answer as A, Deliver, Drop, Flood, Neighbour, Service as S};
    let gw = (MAC, GATEWAY_MAC);
    let peer = (MAC, PEER);
    let from_peer = (PEER, MAC);
    let to_port = (GATEWAY_MAC, MAC);
    let web = |macs, ips| frame(macs, ips, Tcp(4000, 443, SYN));
    let out4 = ("10.0.0.2", "93.184.216.34");
    let out6 = ("fd00:1::2", "2600::1");
    let mut table = vec![
        // The way out.
        case("tcp4 out", Guest, web(gw, out4), Verdict::Uplink),
        case("tcp6 out", Guest, web(gw, out6), Verdict::Uplink),
        case(
            "udp4 out",
            Guest,
            frame(gw, out4, Udp(5000, 123)),
            Verdict::Uplink,
        ),
        case(
            "udp6 out",
            Guest,
            frame(gw, out6, Udp(5000, 123)),
            Verdict::Uplink,
        ),
        case(
            "ping4 out",
            Guest,
            frame(gw, out4, Echo(true)),
            Verdict::Uplink,
        ),
        case(
            "ping6 out",
            Guest,
            frame(gw, out6, Echo(true)),
            Verdict::Uplink,
        ),
        case(
            "smtp denied",
            Guest,
            frame(gw, out4, Tcp(4000, 25, SYN)),
            Drop(R::DeniedByRule),
        ),
        case(
            "out past the gateway",
            Guest,
            web(peer, out4),
            Drop(R::WrongMac),
        ),
        // In another's name.
        case(
            "spoofed mac",
            Guest,
            web((STRANGER, GATEWAY_MAC), out4),
            Drop(R::SpoofedMac),
        ),
        case(
            "peer's mac",
            Guest,
            web((PEER, GATEWAY_MAC), out4),
            Drop(R::SpoofedMac),
        ),
        case(
            "spoofed v4",
            Guest,
            web(gw, ("10.0.0.3", "1.1.1.1")),
            Drop(R::SpoofedIpv4),
        ),
        case(
            "gateway's v4",
            Guest,
            web(gw, ("10.0.0.1", "1.1.1.1")),
            Drop(R::SpoofedIpv4),
        ),
        case(
            "spoofed v6",
            Guest,
            web(gw, ("fd00:1::3", "2600::1")),
            Drop(R::SpoofedIpv6),
        ),
        case(
            "no v4 source",
            Guest,
            web(gw, ("0.0.0.0", "1.1.1.1")),
            Drop(R::SpoofedIpv4),
        ),
        case(
            "no v6 source",
            Guest,
            web(gw, ("::", "2600::1")),
            Drop(R::SpoofedIpv6),
        ),
        case(
            "arp in the peer's name",
            Guest,
            arp(1, (MAC, [10, 0, 0, 3]), [10, 0, 0, 1]),
            Drop(R::SpoofedArp),
        ),
        case(
            "arp reply in the gateway's name",
            Guest,
            arp(2, (MAC, [10, 0, 0, 1]), [10, 0, 0, 3]),
            Drop(R::SpoofedArp),
        ),
        case(
            "arp with another's mac",
            Guest,
            arp(1, (PEER, [10, 0, 0, 2]), [10, 0, 0, 1]),
            Drop(R::SpoofedArp),
        ),
        case(
            "rogue router",
            Guest,
            frame(gw, ("fd00:1::2", "ff02::1"), Icmp6(134)),
            Drop(R::SpoofedNeighbour),
        ),
        case(
            "redirect",
            Guest,
            frame(gw, ("fd00:1::2", "fd00:1::3"), Icmp6(137)),
            Drop(R::SpoofedNeighbour),
        ),
        case(
            "advertised neighbour that is another",
            Guest,
            frame(gw, ("fd00:1::2", "ff02::1"), Icmp6(136)),
            Drop(R::SpoofedNeighbour),
        ),
        case(
            "neighbour solicitation by a router",
            Guest,
            changed(frame(gw, ("fd00:1::2", "fd00:1::1"), Icmp6(135)), |f| {
                f[21] = 64
            }),
            Drop(R::SpoofedNeighbour),
        ),
        // What the port answers.
        case(
            "arp",
            Guest,
            arp(1, (MAC, [10, 0, 0, 2]), [10, 0, 0, 1]),
            A(Answer::Arp),
        ),
        case(
            "arp probe",
            Guest,
            arp(1, (MAC, [0; 4]), [10, 0, 0, 2]),
            A(Answer::Arp),
        ),
        case(
            "arp announcement",
            Guest,
            arp(2, (MAC, [10, 0, 0, 2]), [10, 0, 0, 2]),
            Drop(R::Ignored),
        ),
        case(
            "neighbour solicitation",
            Guest,
            frame(gw, ("fd00:1::2", "fd00:1::1"), Icmp6(135)),
            A(Answer::Neighbour),
        ),
        case(
            "router solicitation",
            Guest,
            {
                let to = Envelope {
                    ethernet: (MAC, MacAddress([0x33, 0x33, 0, 0, 0, 2])),
                    ip: ("::".parse().unwrap(), "ff02::2".parse().unwrap()),
                };
                let mut frame = Vec::new();
                build::icmpv6(&mut frame, to, 255, &[133, 0, 0, 0, 0, 0, 0, 0]);
                frame
            },
            A(Answer::Router),
        ),
        case(
            "router solicitation, an option that does not end",
            Guest,
            frame(gw, ("::", "ff02::2"), Icmp6(133)),
            Drop(R::SpoofedNeighbour),
        ),
        case(
            "dhcp",
            Guest,
            frame(
                (MAC, MacAddress::BROADCAST),
                ("0.0.0.0", "255.255.255.255"),
                Udp(68, 67),
            ),
            A(Answer::Dhcp4),
        ),
        case(
            "ping gateway",
            Guest,
            frame(gw, ("10.0.0.2", "10.0.0.1"), Echo(true)),
            A(Answer::Echo),
        ),
        case(
            "ping gateway 6",
            Guest,
            frame(gw, ("fd00:1::2", "fd00:1::1"), Echo(true)),
            A(Answer::Echo),
        ),
        case(
            "ssh to the gateway",
            Guest,
            frame(gw, ("10.0.0.2", "10.0.0.1"), Tcp(1, 22, SYN)),
            A(Answer::Refusal),
        ),
        case(
            "dns",
            Guest,
            frame(gw, ("10.0.0.2", "10.0.0.1"), Udp(5000, 53)),
            S(Service::Dns),
        ),
        case(
            "dns 6",
            Guest,
            frame(gw, ("fd00:1::2", "fd00:1::1"), Udp(5000, 53)),
            S(Service::Dns),
        ),
        case(
            "dns over tcp",
            Guest,
            frame(gw, ("10.0.0.2", "10.0.0.1"), Tcp(1, 53, SYN)),
            S(Service::Tcp),
        ),
        case(
            "metadata",
            Guest,
            frame(gw, ("10.0.0.2", "169.254.169.254"), Tcp(1, 80, SYN)),
            S(Service::Tcp),
        ),
        case(
            "metadata 6",
            Guest,
            frame(gw, ("fd00:1::2", "fd00:ec2::254"), Tcp(1, 80, SYN)),
            S(Service::Tcp),
        ),
        case(
            "metadata, udp",
            Guest,
            frame(gw, ("10.0.0.2", "169.254.169.254"), Udp(1, 80)),
            A(Answer::Refusal),
        ),
        // Addresses that are nobody's.
        case(
            "the host's loopback",
            Guest,
            web(gw, ("10.0.0.2", "127.0.0.1")),
            Drop(R::Martian),
        ),
        case(
            "the host's loopback 6",
            Guest,
            web(gw, ("fd00:1::2", "::1")),
            Drop(R::Martian),
        ),
        case(
            "mapped loopback",
            Guest,
            web(gw, ("fd00:1::2", "::ffff:127.0.0.1")),
            Drop(R::Martian),
        ),
        case(
            "the host's cloud",
            Guest,
            web(gw, ("10.0.0.2", "169.254.170.2")),
            Drop(R::Martian),
        ),
        case(
            "zero",
            Guest,
            web(gw, ("10.0.0.2", "0.0.0.0")),
            Drop(R::Martian),
        ),
        case(
            "class e",
            Guest,
            web(gw, ("10.0.0.2", "240.0.0.1")),
            Drop(R::Martian),
        ),
        case(
            "land attack",
            Guest,
            web(gw, ("10.0.0.2", "10.0.0.2")),
            Drop(R::Martian),
        ),
        // Neighbours.
        case(
            "tcp to peer",
            Guest,
            web(peer, ("10.0.0.2", "10.0.0.3")),
            Neighbour(PEER),
        ),
        case(
            "tcp to peer 6",
            Guest,
            web(peer, ("fd00:1::2", "fd00:1::3")),
            Neighbour(PEER),
        ),
        case(
            "to peer by the gateway",
            Guest,
            web(gw, ("10.0.0.2", "10.0.0.3")),
            Neighbour(PEER),
        ),
        case(
            "to peer, wrong mac",
            Guest,
            web((MAC, STRANGER), ("10.0.0.2", "10.0.0.3")),
            Drop(R::WrongMac),
        ),
        case(
            "nobody's address",
            Guest,
            web(gw, ("10.0.0.2", "10.0.0.77")),
            Drop(R::UnknownNeighbour),
        ),
        case(
            "mdns",
            Guest,
            frame((MAC, GROUP), ("10.0.0.2", "224.0.0.251"), Udp(5353, 5353)),
            Flood,
        ),
        case(
            "broadcast",
            Guest,
            frame(
                (MAC, MacAddress::BROADCAST),
                ("10.0.0.2", "10.0.0.255"),
                Udp(9, 9),
            ),
            Flood,
        ),
        case(
            "group ip to one mac",
            Guest,
            frame(gw, ("10.0.0.2", "224.0.0.251"), Udp(9, 9)),
            Drop(R::WrongMac),
        ),
        case(
            "one ip to group mac",
            Guest,
            web((MAC, GROUP), out4),
            Drop(R::WrongMac),
        ),
        // Malformed.
        case("empty", Guest, vec![], Drop(R::Truncated)),
        case(
            "half an ethernet header",
            Guest,
            vec![0; 13],
            Drop(R::Truncated),
        ),
        case(
            "no packet",
            Guest,
            changed(web(gw, out4), |f| f.truncate(14)),
            Drop(R::Truncated),
        ),
        case(
            "cut short",
            Guest,
            changed(web(gw, out4), |f| f.truncate(40)),
            Drop(R::Truncated),
        ),
        case(
            "v6 cut short",
            Guest,
            changed(web(gw, out6), |f| f.truncate(60)),
            Drop(R::Truncated),
        ),
        case(
            "vlan tag",
            Guest,
            changed(web(gw, out4), |f| f[12..14].copy_from_slice(&[0x81, 0])),
            Drop(R::UnknownProtocol),
        ),
        case(
            "v6 in a v4 frame",
            Guest,
            changed(web(gw, out6), |f| f[12..14].copy_from_slice(&[8, 0])),
            Drop(R::BadVersion),
        ),
        case(
            "header checksum",
            Guest,
            changed(web(gw, out4), |f| f[24] ^= 1),
            Drop(R::BadHeaderChecksum),
        ),
        case(
            "tcp checksum",
            Guest,
            changed(web(gw, out4), |f| f[50] ^= 1),
            Drop(R::BadChecksum),
        ),
        case(
            "tcp6 checksum",
            Guest,
            changed(web(gw, out6), |f| f[70] ^= 1),
            Drop(R::BadChecksum),
        ),
        case(
            "udp checksum",
            Guest,
            changed(frame(gw, out4, Udp(1, 2)), |f| f[40] ^= 1),
            Drop(R::BadChecksum),
        ),
        case(
            "ping checksum",
            Guest,
            changed(frame(gw, out4, Echo(true)), |f| f[36] ^= 1),
            Drop(R::BadChecksum),
        ),
        case(
            "no udp checksum",
            Guest,
            changed(frame(gw, out4, Udp(1, 2)), |f| f[40..42].fill(0)),
            Verdict::Uplink,
        ),
        case(
            "no udp6 checksum",
            Guest,
            changed(frame(gw, out6, Udp(1, 2)), |f| f[60..62].fill(0)),
            Drop(R::BadChecksum),
        ),
        case(
            "dns checksum",
            Guest,
            changed(frame(gw, ("10.0.0.2", "10.0.0.1"), Udp(1, 53)), |f| {
                f[40] ^= 1
            }),
            Drop(R::BadChecksum),
        ),
        case(
            "tcp offset",
            Guest,
            changed(web(gw, out4), |f| f[46] = 0x40),
            Drop(R::BadTransport),
        ),
        case(
            "tcp options beyond",
            Guest,
            changed(web(gw, out4), |f| f[46] = 0xf0),
            Drop(R::BadTransport),
        ),
        case(
            "first fragment",
            Guest,
            changed(web(gw, out4), |f| {
                f[20] = 0x20;
                sign(f)
            }),
            Drop(R::Fragment),
        ),
        case(
            "last fragment",
            Guest,
            changed(web(gw, out4), |f| {
                f[21] = 9;
                sign(f)
            }),
            Drop(R::Fragment),
        ),
        case(
            "v6 fragment",
            Guest,
            changed(web(gw, out6), |f| f[20] = 44),
            Drop(R::Fragment),
        ),
        case(
            "v6 routing header",
            Guest,
            changed(web(gw, out6), |f| f[20] = 43),
            Drop(R::BadExtension),
        ),
        case(
            "too long",
            Guest,
            {
                let mut frame = Vec::new();
                let to = Envelope {
                    ethernet: gw,
                    ip: (out4.0.parse().unwrap(), out4.1.parse().unwrap()),
                };
                build::udp(&mut frame, to, (1, 2), &[0; 1473]);
                frame
            },
            Drop(R::TooLong),
        ),
        // To the guest, from the network.
        case(
            "peer's syn",
            Network,
            web(from_peer, ("10.0.0.3", "10.0.0.2")),
            Deliver,
        ),
        case(
            "peer's syn 6",
            Network,
            web(from_peer, ("fd00:1::3", "fd00:1::2")),
            Deliver,
        ),
        case(
            "peer's mdns",
            Network,
            frame((PEER, GROUP), ("10.0.0.3", "224.0.0.251"), Udp(5353, 5353)),
            Deliver,
        ),
        case(
            "peer in another's name",
            Network,
            web(from_peer, ("10.0.0.4", "10.0.0.2")),
            Drop(R::NotFromNetwork),
        ),
        case(
            "peer as the internet",
            Network,
            web(from_peer, ("1.1.1.1", "10.0.0.2")),
            Drop(R::NotFromNetwork),
        ),
        case(
            "peer as the gateway",
            Network,
            web(from_peer, ("10.0.0.1", "10.0.0.2")),
            Drop(R::NotFromNetwork),
        ),
        case(
            "stranger as peer",
            Network,
            web((STRANGER, MAC), ("10.0.0.3", "10.0.0.2")),
            Drop(R::NotFromNetwork),
        ),
        case(
            "peer's router advertisement",
            Network,
            frame(from_peer, ("fd00:1::3", "fd00:1::2"), Icmp6(134)),
            Drop(R::Ignored),
        ),
        case(
            "peer's arp",
            Network,
            arp(1, (PEER, [10, 0, 0, 3]), [10, 0, 0, 2]),
            Drop(R::UnknownProtocol),
        ),
        case(
            "for another port",
            Network,
            web((PEER, STRANGER), ("10.0.0.3", "10.0.0.2")),
            Drop(R::WrongMac),
        ),
        case(
            "for another address",
            Network,
            web(from_peer, ("10.0.0.3", "10.0.0.9")),
            Drop(R::NotForPort),
        ),
    ];
    // From beyond: IP packets without an Ethernet header.
    let beyond = |name, ips, segment, verdict| {
        case(
            name,
            Uplink,
            frame(to_port, ips, segment)[ETHERNET_LENGTH..].to_vec(),
            verdict,
        )
    };
    table.extend([
        beyond(
            "forwarded",
            ("9.9.9.9", "10.0.0.2"),
            Tcp(7777, 80, SYN),
            Deliver,
        ),
        beyond(
            "forwarded 6",
            ("2600::9", "fd00:1::2"),
            Tcp(7777, 80, SYN),
            Deliver,
        ),
        beyond(
            "forwarded, by the host",
            ("10.0.0.1", "10.0.0.2"),
            Tcp(7777, 80, SYN),
            Deliver,
        ),
        beyond(
            "not forwarded",
            ("9.9.9.9", "10.0.0.2"),
            Tcp(7777, 81, SYN),
            Drop(R::Denied),
        ),
        beyond(
            "not forwarded: udp",
            ("9.9.9.9", "10.0.0.2"),
            Udp(7777, 80),
            Drop(R::Denied),
        ),
        beyond(
            "unasked answer",
            ("9.9.9.9", "10.0.0.2"),
            Tcp(443, 4000, SYN | ACK),
            Drop(R::Denied),
        ),
        beyond(
            "unasked ping",
            ("9.9.9.9", "10.0.0.2"),
            Echo(true),
            Drop(R::Denied),
        ),
        beyond(
            "a peer from beyond",
            ("10.0.0.3", "10.0.0.2"),
            Tcp(7777, 80, SYN),
            Drop(R::Martian),
        ),
        beyond(
            "for nobody",
            ("9.9.9.9", "10.0.0.3"),
            Tcp(7777, 80, SYN),
            Drop(R::NotForPort),
        ),
        beyond(
            "from a group",
            ("224.0.0.1", "10.0.0.2"),
            Tcp(7777, 80, SYN),
            Drop(R::Martian),
        ),
        beyond(
            "from loopback",
            ("127.0.0.1", "10.0.0.2"),
            Tcp(7777, 80, SYN),
            Drop(R::Martian),
        ),
        beyond(
            "to a group",
            ("9.9.9.9", "224.0.0.251"),
            Udp(5353, 5353),
            Drop(R::NotForPort),
        ),
    ]);
    // What virtio-net's header promises.
    let promise = |start, offset, segmentation| Offload {
        checksum: Some(PartialChecksum { start, offset }),
        segmentation,
        checked: false,
    };
    let cut = |kind| {
        Some(Segmentation {
            kind,
            size: 1448,
            header: 54,
        })
    };
    let large = changed(web(gw, out4), |f| {
        f.resize(60_000, 0);
        f[16..18].copy_from_slice(&(60_000u16 - 14).to_be_bytes());
        sign(f);
    });
    let offloaded = |name, frame: &Vec<u8>, offload, verdict| Case {
        name,
        origin: Guest,
        frame: frame.clone(),
        offload,
        verdict,
    };
    let wrong = changed(web(gw, out4), |f| f[50] ^= 1);
    table.extend([
        offloaded(
            "partial checksum",
            &wrong,
            promise(34, 16, None),
            Verdict::Uplink,
        ),
        offloaded(
            "partial checksum elsewhere",
            &wrong,
            promise(35, 16, None),
            Drop(R::BadOffload),
        ),
        offloaded(
            "partial checksum of udp",
            &wrong,
            promise(34, 6, None),
            Drop(R::BadOffload),
        ),
        offloaded(
            "to be cut",
            &large,
            promise(34, 16, cut(SegmentKind::Tcp4)),
            Verdict::Uplink,
        ),
        offloaded(
            "to be cut as v6",
            &large,
            promise(34, 16, cut(SegmentKind::Tcp6)),
            Drop(R::BadOffload),
        ),
        offloaded(
            "to be cut as udp",
            &large,
            promise(34, 16, cut(SegmentKind::Udp)),
            Drop(R::BadOffload),
        ),
        offloaded(
            "not to be cut",
            &large,
            promise(34, 16, None),
            Drop(R::TooLong),
        ),
    ]);
    table
}

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

/// What can happen to a port, drawn small enough that things meet.
#[derive(Clone, Debug)]
enum Event {
    Packet {
        origin: Origin,
        macs: (usize, usize),
        ips: (usize, usize),
        v6: bool,
        segment: Segment,
        damage: Option<(usize, u8)>,
        cut: Option<usize>,
        offload: usize,
    },
    Time(Milliseconds),
    Rules(usize),
    Expire,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let number = || prop::sample::select(vec![25u16, 53, 80, 443, 4000]);
    let segment = prop_oneof![
        4 => (number(), number(), any::<u8>()).prop_map(|(a, b, f)| Segment::Tcp(a, b, f & 0x17)),
        3 => (number(), number()).prop_map(|(a, b)| Segment::Udp(a, b)),
        1 => any::<bool>().prop_map(Segment::Echo),
        1 => (130u8..145).prop_map(Segment::Icmp6),
    ];
    let origin = prop::sample::select(vec![
        Origin::Guest,
        Origin::Guest,
        Origin::Network,
        Origin::Uplink,
        Origin::Uplink,
    ]);
    let macs = (0usize..8, 0usize..8);
    let ips = (0usize..10, 0usize..10);
    let damage = prop::option::weighted(0.1, (0usize..80, any::<u8>()));
    let cut = prop::option::weighted(0.05, 0usize..80);
    let packet = (
        origin,
        macs,
        ips,
        any::<bool>(),
        segment,
        damage,
        cut,
        0usize..12,
    )
        .prop_map(
            |(origin, macs, ips, v6, segment, damage, cut, offload)| Event::Packet {
                origin,
                macs,
                ips,
                v6,
                segment,
                damage,
                cut,
                offload,
            },
        );
    let event = prop_oneof![
        30 => packet,
        2 => prop::sample::select(vec![1, 1000, 59_999, 240_000]).prop_map(Event::Time),
        1 => (0usize..4).prop_map(Event::Rules),
        1 => Just(Event::Expire),
    ];
    prop::collection::vec(event, 1..80)
}

/// Mostly what is right from this origin.
fn build_packet(
    origin: Origin,
    macs: (usize, usize),
    ips: (usize, usize),
    v6: bool,
    segment: Segment,
) -> Vec<u8> {
    let pick = |list: [MacAddress; 4], index: usize| list[index.saturating_sub(4)];
    let (source, destination) = match origin {
        Origin::Guest => (
            [MAC, PEER, STRANGER, GATEWAY_MAC],
            [GATEWAY_MAC, PEER, GROUP, STRANGER],
        ),
        Origin::Network => (
            [PEER, MAC, STRANGER, GATEWAY_MAC],
            [MAC, GROUP, STRANGER, PEER],
        ),
        Origin::Uplink => ([GATEWAY_MAC; 4], [MAC; 4]),
    };
    let v4s = [
        "10.0.0.2",
        "9.9.9.9",
        "10.0.0.3",
        "10.0.0.1",
        "10.0.0.9",
        "224.0.0.251",
        "127.0.0.1",
    ];
    let v6s = [
        "fd00:1::2",
        "2600::9",
        "fd00:1::3",
        "fd00:1::1",
        "fe80::1",
        "ff02::fb",
        "::1",
    ];
    let list = if v6 { v6s } else { v4s };
    // The port's own address where it belongs, nearly always.
    let (own, other) = (
        list[ips.0.saturating_sub(6)],
        list[1 + ips.1.saturating_sub(4).min(5)],
    );
    let addresses = match origin {
        Origin::Guest => (own, other),
        Origin::Network if ips.1 < 5 => (list[2], own),
        Origin::Network | Origin::Uplink => (other, own),
    };
    frame(
        (pick(source, macs.0), pick(destination, macs.1)),
        addresses,
        segment,
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// The executor does what the oracle says, whatever comes in whatever
    /// order, under rules that change and time that passes.
    #[test]
    fn executor_and_oracle_agree(events in events()) {
        let mut pair = Pair::new(&port());
        let mut now = 0;
        for event in events {
            match event {
                Event::Time(by) => now += by,
                Event::Expire => pair.executor.expire(now),
                Event::Rules(which) => {
                    let mut port = port();
                    match which {
                        0 => {}
                        1 => port.groups[0].rules.clear(),
                        2 => port.forwards.clear(),
                        _ => port.groups[0].rules[1].remote = Remote::Any,
                    }
                    pair.replace(&port);
                }
                Event::Packet { origin, macs, ips, v6, segment, damage, cut, offload } => {
                    let mut bytes = build_packet(origin, macs, ips, v6, segment);
                    let base = if origin == Origin::Uplink {
                        bytes.drain(..ETHERNET_LENGTH);
                        0
                    } else {
                        ETHERNET_LENGTH
                    };
                    if let Some((at, byte)) = damage
                        && let Some(place) = bytes.get_mut(at)
                    {
                        *place = byte;
                    }
                    if let Some(cut) = cut {
                        bytes.truncate(cut);
                    }
                    let start = (base + if v6 { 40 } else { 20 }) as u16;
                    let offload = match offload {
                        0 => Offload { checksum: Some(PartialChecksum { start, offset: 16 }), ..Offload::default() },
                        1 => Offload { checksum: Some(PartialChecksum { start, offset: 6 }), ..Offload::default() },
                        2 => Offload { checked: true, ..Offload::default() },
                        3 => Offload {
                            checksum: Some(PartialChecksum { start, offset: 16 }),
                            segmentation: Some(Segmentation { kind: SegmentKind::Tcp4, size: 1000, header: start + 20 }),
                            checked: false,
                        },
                        _ => Offload::default(),
                    };
                    pair.decide(now, origin, &bytes, &offload);
                }
            }
            // The conversations are the same, too.
            let keys = pair.executor.live_flows(now);
            prop_assert_eq!(keys, pair.flows.live_flows(now));
        }
    }
}

#[test]
fn generated_traffic_reaches_every_kind_of_verdict() {
    // Guards the property above against a generator that only makes drops.
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let mut seen = std::collections::BTreeMap::new();
    for _ in 0..200 {
        let mut pair = Pair::new(&port());
        for event in events().new_tree(&mut runner).unwrap().current() {
            if let Event::Packet {
                origin,
                macs,
                ips,
                v6,
                segment,
                ..
            } = event
            {
                let mut bytes = build_packet(origin, macs, ips, v6, segment);
                if origin == Origin::Uplink {
                    bytes.drain(..ETHERNET_LENGTH);
                }
                let verdict = pair.decide(0, origin, &bytes, &Offload::default());
                let kind = format!("{verdict:?}").split('(').next().unwrap().to_owned();
                *seen.entry(kind).or_insert(0) += 1;
            }
        }
    }
    for kind in [
        "Uplink",
        "Neighbour",
        "Flood",
        "Deliver",
        "Answer",
        "Service",
        "Drop",
    ] {
        assert!(
            seen.get(kind).copied().unwrap_or(0) >= 10,
            "{kind}: {seen:?}"
        );
    }
}
