//! What a guest sends in another's name.

use super::*;

pub(super) fn cases() -> Vec<Case> {
    use DropReason as R;
    use Origin::Guest;
    use Segment::{Icmp6, Tcp, Udp};
    use Verdict::Drop;
    let from = |mac| web((mac, GATEWAY_MAC), OUT_4);
    let link_local_of_peer = "fe80::5054:ff:fe00:2";
    vec![
        // In another's name.
        case(
            "spoofed mac",
            Guest,
            web((STRANGER, GATEWAY_MAC), OUT_4),
            Drop(R::SpoofedMac),
        ),
        case(
            "peer's mac",
            Guest,
            web((PEER, GATEWAY_MAC), OUT_4),
            Drop(R::SpoofedMac),
        ),
        case(
            "spoofed v4",
            Guest,
            web(TO_GATEWAY, ("10.0.0.3", "1.1.1.1")),
            Drop(R::SpoofedIpv4),
        ),
        case(
            "gateway's v4",
            Guest,
            web(TO_GATEWAY, ("10.0.0.1", "1.1.1.1")),
            Drop(R::SpoofedIpv4),
        ),
        case(
            "spoofed v6",
            Guest,
            web(TO_GATEWAY, ("fd00:1::3", "2600::1")),
            Drop(R::SpoofedIpv6),
        ),
        case(
            "no v4 source",
            Guest,
            web(TO_GATEWAY, ("0.0.0.0", "1.1.1.1")),
            Drop(R::SpoofedIpv4),
        ),
        case(
            "no v6 source",
            Guest,
            web(TO_GATEWAY, ("::", "2600::1")),
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
            frame(TO_GATEWAY, ("fd00:1::2", "ff02::1"), Icmp6(134)),
            Drop(R::SpoofedNeighbour),
        ),
        case(
            "redirect",
            Guest,
            frame(TO_GATEWAY, ("fd00:1::2", "fd00:1::3"), Icmp6(137)),
            Drop(R::SpoofedNeighbour),
        ),
        case(
            "advertised neighbour that is another",
            Guest,
            frame(TO_GATEWAY, ("fd00:1::2", "ff02::1"), Icmp6(136)),
            Drop(R::SpoofedNeighbour),
        ),
        case(
            "neighbour solicitation by a router",
            Guest,
            changed(
                frame(TO_GATEWAY, ("fd00:1::2", "fd00:1::1"), Icmp6(135)),
                |f| f[21] = 64,
            ),
            Drop(R::SpoofedNeighbour),
        ),
        case(
            "gateway's mac",
            Guest,
            from(GATEWAY_MAC),
            Drop(R::SpoofedMac),
        ),
        case(
            "everyone's mac",
            Guest,
            from(MacAddress::BROADCAST),
            Drop(R::SpoofedMac),
        ),
        case(
            "nobody's mac",
            Guest,
            from(MacAddress([0; 6])),
            Drop(R::SpoofedMac),
        ),
        case(
            "arp in a frame of the peer's",
            Guest,
            changed(arp(1, (MAC, [10, 0, 0, 2]), [10, 0, 0, 1]), |f| {
                f[6..12].copy_from_slice(&PEER.0)
            }),
            Drop(R::SpoofedMac),
        ),
        case(
            "gratuitous arp of the gateway's address",
            Guest,
            arp(1, (MAC, [10, 0, 0, 1]), [10, 0, 0, 1]),
            Drop(R::SpoofedArp),
        ),
        case(
            "arp probe with another's mac",
            Guest,
            arp(1, (PEER, [0; 4]), [10, 0, 0, 3]),
            Drop(R::SpoofedArp),
        ),
        case(
            "arp of the metadata address",
            Guest,
            arp(2, (MAC, [169, 254, 169, 254]), [10, 0, 0, 3]),
            Drop(R::SpoofedArp),
        ),
        case(
            "the peer's link-local address",
            Guest,
            web((MAC, PEER), (link_local_of_peer, "fd00:1::3")),
            Drop(R::SpoofedIpv6),
        ),
        case(
            "the gateway's v6",
            Guest,
            web(TO_GATEWAY, ("fd00:1::1", "2600::1")),
            Drop(R::SpoofedIpv6),
        ),
        case(
            "the gateway's link-local address",
            Guest,
            web((MAC, PEER), ("fe80::1", "fd00:1::3")),
            Drop(R::SpoofedIpv6),
        ),
        case(
            "its v4 as v6",
            Guest,
            web(TO_GATEWAY, ("::ffff:10.0.0.2", "2600::1")),
            Drop(R::SpoofedIpv6),
        ),
        case(
            "a group's v4",
            Guest,
            web(TO_GATEWAY, ("224.0.0.1", "1.1.1.1")),
            Drop(R::SpoofedIpv4),
        ),
        case(
            "loopback as source",
            Guest,
            web(TO_GATEWAY, ("127.0.0.1", "1.1.1.1")),
            Drop(R::SpoofedIpv4),
        ),
        case(
            "dhcp client with another's address",
            Guest,
            frame(
                (MAC, MacAddress::BROADCAST),
                ("10.0.0.3", "255.255.255.255"),
                Udp(68, 67),
            ),
            Drop(R::SpoofedIpv4),
        ),
        case(
            "no address, but no dhcp client",
            Guest,
            frame(
                (MAC, MacAddress::BROADCAST),
                ("0.0.0.0", "255.255.255.255"),
                Udp(68, 69),
            ),
            Drop(R::SpoofedIpv4),
        ),
        case(
            "rogue dhcp server",
            Guest,
            frame(
                (MAC, MacAddress::BROADCAST),
                ("10.0.0.2", "255.255.255.255"),
                Udp(67, 68),
            ),
            Drop(R::SpoofedDhcp),
        ),
        case(
            "rogue dhcp server, to one",
            Guest,
            frame((MAC, PEER), ("10.0.0.2", "10.0.0.3"), Udp(67, 68)),
            Drop(R::SpoofedDhcp),
        ),
        case(
            "rogue dhcp 6 server",
            Guest,
            frame((MAC, PEER), ("fd00:1::2", "fd00:1::3"), Udp(547, 546)),
            Drop(R::SpoofedDhcp),
        ),
        case(
            "solicits with the peer's mac",
            Guest,
            discovery(
                135,
                ("fd00:1::2", "fd00:1::1"),
                "fd00:1::1",
                Some((1, PEER)),
            ),
            Drop(R::SpoofedNeighbour),
        ),
        case(
            "solicits in the peer's name",
            Guest,
            discovery(135, ("fd00:1::3", "fd00:1::1"), "fd00:1::1", Some((1, MAC))),
            Drop(R::SpoofedIpv6),
        ),
        case(
            "advertises itself with the peer's mac",
            Guest,
            discovery(136, ("fd00:1::2", "ff02::1"), "fd00:1::2", Some((2, PEER))),
            Drop(R::SpoofedNeighbour),
        ),
        case(
            "advertises the peer",
            Guest,
            discovery(136, ("fd00:1::2", "ff02::1"), "fd00:1::3", Some((2, MAC))),
            Drop(R::SpoofedNeighbour),
        ),
        case(
            "advertises the gateway",
            Guest,
            discovery(136, ("fd00:1::2", "ff02::1"), "fe80::1", Some((2, MAC))),
            Drop(R::SpoofedNeighbour),
        ),
        case(
            "advertises with a solicitation's option",
            Guest,
            discovery(136, ("fd00:1::2", "ff02::1"), "fd00:1::2", Some((1, MAC))),
            Drop(R::SpoofedNeighbour),
        ),
        case(
            "tcp in the metadata service's name",
            Guest,
            frame(
                (MAC, PEER),
                ("169.254.169.254", "10.0.0.3"),
                Tcp(80, 4000, SYN | ACK),
            ),
            Drop(R::SpoofedIpv4),
        ),
    ]
}
