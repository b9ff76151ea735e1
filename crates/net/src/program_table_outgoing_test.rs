//! What a guest sends that is as it should be: where it goes, and what the
//! port answers itself.

use super::*;

pub(super) fn cases() -> Vec<Case> {
    use DropReason as R;
    use Origin::Guest;
    use Segment::{Echo, Icmp6, Tcp, Udp};
    use Verdict::{Answer as A, Drop, Flood, Neighbour, Service as S};
    let peer = (MAC, PEER);
    vec![
        // The way out.
        case("tcp4 out", Guest, web(TO_GATEWAY, OUT_4), Verdict::Uplink),
        case("tcp6 out", Guest, web(TO_GATEWAY, OUT_6), Verdict::Uplink),
        case(
            "udp4 out",
            Guest,
            frame(TO_GATEWAY, OUT_4, Udp(5000, 123)),
            Verdict::Uplink,
        ),
        case(
            "udp6 out",
            Guest,
            frame(TO_GATEWAY, OUT_6, Udp(5000, 123)),
            Verdict::Uplink,
        ),
        case(
            "ping4 out",
            Guest,
            frame(TO_GATEWAY, OUT_4, Echo(true)),
            Verdict::Uplink,
        ),
        case(
            "ping6 out",
            Guest,
            frame(TO_GATEWAY, OUT_6, Echo(true)),
            Verdict::Uplink,
        ),
        case(
            "smtp denied",
            Guest,
            frame(TO_GATEWAY, OUT_4, Tcp(4000, 25, SYN)),
            Drop(R::DeniedByRule),
        ),
        case(
            "out past the gateway",
            Guest,
            web(peer, OUT_4),
            Drop(R::WrongMac),
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
            frame(TO_GATEWAY, ("fd00:1::2", "fd00:1::1"), Icmp6(135)),
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
            frame(TO_GATEWAY, ("::", "ff02::2"), Icmp6(133)),
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
            frame(TO_GATEWAY, ("10.0.0.2", "10.0.0.1"), Echo(true)),
            A(Answer::Echo),
        ),
        case(
            "ping gateway 6",
            Guest,
            frame(TO_GATEWAY, ("fd00:1::2", "fd00:1::1"), Echo(true)),
            A(Answer::Echo),
        ),
        case(
            "ssh to the gateway",
            Guest,
            frame(TO_GATEWAY, ("10.0.0.2", "10.0.0.1"), Tcp(1, 22, SYN)),
            A(Answer::Refusal),
        ),
        case(
            "dns",
            Guest,
            frame(TO_GATEWAY, ("10.0.0.2", "10.0.0.1"), Udp(5000, 53)),
            S(Service::Dns),
        ),
        case(
            "dns 6",
            Guest,
            frame(TO_GATEWAY, ("fd00:1::2", "fd00:1::1"), Udp(5000, 53)),
            S(Service::Dns),
        ),
        case(
            "dns over tcp",
            Guest,
            frame(TO_GATEWAY, ("10.0.0.2", "10.0.0.1"), Tcp(1, 53, SYN)),
            S(Service::Tcp),
        ),
        case(
            "metadata",
            Guest,
            frame(TO_GATEWAY, ("10.0.0.2", "169.254.169.254"), Tcp(1, 80, SYN)),
            S(Service::Tcp),
        ),
        case(
            "metadata 6",
            Guest,
            frame(TO_GATEWAY, ("fd00:1::2", "fd00:ec2::254"), Tcp(1, 80, SYN)),
            S(Service::Tcp),
        ),
        case(
            "metadata, udp",
            Guest,
            frame(TO_GATEWAY, ("10.0.0.2", "169.254.169.254"), Udp(1, 80)),
            A(Answer::Refusal),
        ),
        // Addresses that are nobody's.
        case(
            "the host's loopback",
            Guest,
            web(TO_GATEWAY, ("10.0.0.2", "127.0.0.1")),
            Drop(R::Martian),
        ),
        case(
            "the host's loopback 6",
            Guest,
            web(TO_GATEWAY, ("fd00:1::2", "::1")),
            Drop(R::Martian),
        ),
        case(
            "mapped loopback",
            Guest,
            web(TO_GATEWAY, ("fd00:1::2", "::ffff:127.0.0.1")),
            Drop(R::Martian),
        ),
        case(
            "the host's cloud",
            Guest,
            web(TO_GATEWAY, ("10.0.0.2", "169.254.170.2")),
            Drop(R::Martian),
        ),
        case(
            "zero",
            Guest,
            web(TO_GATEWAY, ("10.0.0.2", "0.0.0.0")),
            Drop(R::Martian),
        ),
        case(
            "class e",
            Guest,
            web(TO_GATEWAY, ("10.0.0.2", "240.0.0.1")),
            Drop(R::Martian),
        ),
        case(
            "land attack",
            Guest,
            web(TO_GATEWAY, ("10.0.0.2", "10.0.0.2")),
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
            web(TO_GATEWAY, ("10.0.0.2", "10.0.0.3")),
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
            web(TO_GATEWAY, ("10.0.0.2", "10.0.0.77")),
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
            frame(TO_GATEWAY, ("10.0.0.2", "224.0.0.251"), Udp(9, 9)),
            Drop(R::WrongMac),
        ),
        case(
            "one ip to group mac",
            Guest,
            web((MAC, GROUP), OUT_4),
            Drop(R::WrongMac),
        ),
        case(
            "advertises itself",
            Guest,
            discovery(136, ("fd00:1::2", "ff02::1"), "fd00:1::2", Some((2, MAC))),
            Drop(R::Ignored),
        ),
        case(
            "looks whether its address is free",
            Guest,
            discovery(135, ("::", "ff02::1:ff00:2"), "fd00:1::2", None),
            A(Answer::Neighbour),
        ),
        case(
            "asks for its peer",
            Guest,
            discovery(
                135,
                ("fd00:1::2", "ff02::1:ff00:3"),
                "fd00:1::3",
                Some((1, MAC)),
            ),
            A(Answer::Neighbour),
        ),
        case(
            "dhcp, renewed",
            Guest,
            frame(TO_GATEWAY, ("10.0.0.2", "10.0.0.1"), Udp(68, 67)),
            A(Answer::Dhcp4),
        ),
        case(
            "dhcp 6",
            Guest,
            frame(
                (MAC, MacAddress([0x33, 0x33, 0, 1, 0, 2])),
                (LINK_LOCAL, "ff02::1:2"),
                Udp(546, 547),
            ),
            A(Answer::Dhcp6),
        ),
        case(
            "another protocol out",
            Guest,
            changed(web(TO_GATEWAY, OUT_4), |f| {
                f[23] = 47;
                sign(f)
            }),
            Verdict::Uplink,
        ),
    ]
}
