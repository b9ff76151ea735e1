//! What comes for a guest: from its network, and from beyond.

use super::*;

pub(super) fn cases() -> Vec<Case> {
    use DropReason as R;
    use Origin::{Network, Uplink};
    use Segment::{Echo, Icmp6, Tcp, Udp};
    use Verdict::{Deliver, Drop};
    let from_peer = (PEER, MAC);
    let to_port = (GATEWAY_MAC, MAC);
    let mut table = vec![
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
        case(
            "peer's wrong checksum",
            Network,
            // The guest checks what its neighbours send.
            changed(web(from_peer, ("10.0.0.3", "10.0.0.2")), |f| f[50] ^= 1),
            Deliver,
        ),
        case(
            "peer's fragment",
            Network,
            changed(web(from_peer, ("10.0.0.3", "10.0.0.2")), |f| {
                f[20] = 0x20;
                sign(f)
            }),
            Drop(R::Fragment),
        ),
        case(
            "peer from a group",
            Network,
            web(from_peer, ("224.0.0.1", "10.0.0.2")),
            Drop(R::Martian),
        ),
        case(
            "peer's neighbour solicitation",
            Network,
            frame(from_peer, ("fd00:1::3", "fd00:1::2"), Icmp6(135)),
            Drop(R::Ignored),
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
    table.extend([
        beyond(
            "nothing",
            ("9.9.9.9", "10.0.0.2"),
            Udp(1, 1),
            Drop(R::Denied),
        ),
        case("no bytes from beyond", Uplink, vec![], Drop(R::Truncated)),
        case(
            "a fragment from beyond",
            Uplink,
            changed(
                frame(to_port, ("9.9.9.9", "10.0.0.2"), Tcp(7777, 80, SYN)),
                |f| {
                    f[20] = 0x20;
                    sign(f);
                    f.drain(..ETHERNET_LENGTH);
                },
            ),
            Drop(R::Fragment),
        ),
    ]);
    table
}
