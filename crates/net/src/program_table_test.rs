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
