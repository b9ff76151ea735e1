//! What the fuzz targets call: everything hostile bytes can reach, with the
//! properties that must hold for any of them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::answer;
use crate::link::{Offload, PartialChecksum, SegmentKind, Segmentation};
use crate::model::{Forward, ForwardProtocol, GATEWAY_MAC, MacAddress, Network, Port, PortId};
use crate::packet::build::{self, Envelope};
use crate::packet::{ETHERNET_LENGTH, Ip};
use crate::program::compile::compile;
use crate::program::executor::Executor;
use crate::program::oracle::{self, FlowMap};
use crate::program::{Neighbours, Origin, Verdict};
use crate::service::Stack;
use crate::service::metadata::{Metadata, MetadataServer};
use crate::service::names::{Answered, Names};

/// A network of a port and a neighbour.
fn port() -> (Network, Port, Neighbours) {
    let network = Network::named("fuzz", 1500);
    let gateway = network.v4.map_or(0, |v4| u32::from(v4.gateway));
    let mac = MacAddress([0x52, 0x54, 0, 0, 0, 1]);
    let mut port = Port::new(
        &network,
        PortId(1),
        "guest",
        mac,
        Some((gateway + 1).into()),
    );
    port.forwards = vec![Forward {
        protocol: ForwardProtocol::Tcp,
        guest_port: 80,
    }];
    let mut neighbours = Neighbours::default();
    neighbours.insert(
        IpAddr::V4((gateway + 2).into()),
        MacAddress([0x52, 0x54, 0, 0, 0, 2]),
    );
    (network, port, neighbours)
}

/// Cuts bytes into packets: two bytes of length, one that says where from and
/// what offload, then the packet.
fn packets(mut bytes: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    std::iter::from_fn(move || {
        let [low, high, flags, rest @ ..] = bytes else {
            return None;
        };
        let length = usize::from(u16::from_le_bytes([*low, *high])).min(rest.len());
        let (packet, tail) = rest.split_at(length);
        bytes = tail;
        Some((*flags, packet))
    })
}

/// Packets in any order at a port: the executor does what the oracle says,
/// answers are whole, verdicts stay within the packet.
pub fn program(bytes: &[u8]) {
    let (network, port, neighbours) = port();
    let mut executor = Executor::new(compile(&network, &port, &neighbours, 1));
    let mut flows = FlowMap::default();
    for (now, (flags, packet)) in packets(bytes).enumerate() {
        let origin = [Origin::Guest, Origin::Network, Origin::Uplink][usize::from(flags & 3) % 3];
        let base = if origin == Origin::Uplink {
            0
        } else {
            ETHERNET_LENGTH as u16
        };
        let start = base + if flags & 4 == 0 { 20 } else { 40 };
        let checksum = PartialChecksum {
            start,
            offset: if flags & 8 == 0 { 16 } else { 6 },
        };
        let kinds = [
            SegmentKind::Tcp4,
            SegmentKind::Tcp6,
            SegmentKind::Udp,
            SegmentKind::Udp,
        ];
        let kind = kinds[usize::from(flags >> 6)];
        let offload = Offload {
            checksum: (flags & 16 != 0).then_some(checksum),
            segmentation: (flags & 48 == 48).then_some(Segmentation {
                kind,
                size: 1000,
                header: start + 20,
            }),
            checked: flags & 48 == 32,
        };
        let now = now as u64;
        let (expected, change) = oracle::decide(
            executor.program(),
            &flows,
            now,
            origin,
            packet,
            &offload,
            &mut |_| {},
        );
        flows.apply(change, now);
        let decision = executor.decide(now, origin, packet, &offload);
        assert_eq!(decision, expected);
        assert!(usize::from(base) + decision.length <= packet.len() || decision.length == 0);
        if let Verdict::Answer(kind) = decision.verdict {
            let mut reply = Vec::new();
            match answer::answer(executor.program(), kind, packet, &mut reply) {
                Ok(()) if reply[12..14] != [8, 6] => {
                    let ip = Ip::parse(&reply[ETHERNET_LENGTH..]);
                    let packet = &reply[ETHERNET_LENGTH..];
                    assert!(ip.is_ok_and(|ip| {
                        ip.transport_checksum_holds(packet, &Offload::default())
                    }));
                }
                Ok(()) => {}
                Err(_) => assert!(reply.is_empty()),
            }
        }
    }
}

/// What a port answers itself: the bytes, in an envelope that gets them there
/// (a right checksum is nothing a fuzzer finds). The first byte says to whom.
pub fn answers(bytes: &[u8]) {
    let Some((kind, message)) = bytes.split_first() else {
        return;
    };
    let (network, port, neighbours) = port();
    let program = compile(&network, &port, &neighbours, 1);
    let own = port.v4.unwrap_or(Ipv4Addr::UNSPECIFIED);
    let gateway = network.v4.map_or(own, |v4| v4.gateway);
    let link_local = port.mac.eui64(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0));
    let group: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
    let ethernet = (port.mac, GATEWAY_MAC);
    let to4 = |source: Ipv4Addr, destination: Ipv4Addr| Envelope {
        ethernet,
        ip: (source.into(), destination.into()),
    };
    let to6 = Envelope {
        ethernet: (port.mac, MacAddress([0x33, 0x33, 0, 1, 0, 2])),
        ip: (link_local.into(), group.into()),
    };
    let mut frame = Vec::new();
    match kind % 7 {
        0 => build::udp(
            &mut frame,
            to4(Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST),
            (68, 67),
            message,
        ),
        1 => build::udp(&mut frame, to4(own, gateway), (68, 67), message),
        2 => build::udp(&mut frame, to6, (546, 547), message),
        3 if message.len() >= 4 => build::icmpv6(&mut frame, to6, 255, message),
        4 if message.len() >= 4 => build::icmpv4(&mut frame, to4(own, gateway), message),
        5 => build::udp(&mut frame, to4(own, gateway), (5000, 9), message),
        6 => {
            frame.extend(GATEWAY_MAC.0);
            frame.extend(port.mac.0);
            frame.extend([8, 6]);
            frame.extend_from_slice(message);
        }
        _ => return,
    }
    let mut executor = Executor::new(program);
    let decision = executor.decide(0, Origin::Guest, &frame, &Offload::default());
    if let Verdict::Answer(kind) = decision.verdict {
        let mut reply = Vec::new();
        match answer::answer(executor.program(), kind, &frame, &mut reply) {
            Ok(()) => assert_is_whole(&reply, port.mac, &network),
            Err(_) => assert!(reply.is_empty()),
        }
    }
}

/// An answer is a frame the guest can read, no longer than the MTU.
fn assert_is_whole(reply: &[u8], mac: MacAddress, network: &Network) {
    assert!(reply.len() <= ETHERNET_LENGTH + usize::from(network.mtu));
    assert_eq!(reply[6..12], GATEWAY_MAC.0);
    let broadcast = reply[0] & 1 != 0;
    assert!(broadcast || reply[..6] == mac.0);
    if reply[12..14] != [8, 6] {
        let packet = &reply[ETHERNET_LENGTH..];
        let ip = Ip::parse(packet).expect("an answer that can be read");
        assert!(ip.transport_checksum_holds(packet, &Offload::default()));
    }
}

/// TCP segments to the gateway's services, each with a right checksum: 12
/// bytes of ports, sequence numbers and flags, then data.
pub fn gateway_tcp(bytes: &[u8]) {
    let (network, port, _) = port();
    let own = port.v4.unwrap_or(Ipv4Addr::UNSPECIFIED);
    let gateway = network.v4.map_or(own, |v4| v4.gateway);
    let mut stack = Stack::new(&network, port.mac, 0);
    let mut metadata = MetadataServer::new(&network, &port, &Metadata::default());
    let mut out = Vec::new();
    for (now, (flags, packet)) in packets(bytes).enumerate() {
        let Some((head, data)) = packet.split_first_chunk::<12>() else {
            continue;
        };
        let (target, service) = match flags & 1 {
            0 => (gateway, 53),
            _ => (crate::model::METADATA_V4, 80),
        };
        let word =
            |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let to = Envelope {
            ethernet: (port.mac, GATEWAY_MAC),
            ip: (own.into(), target.into()),
        };
        let ports = (1024 + u16::from(head[0] & 15), service);
        let mut frame = Vec::new();
        build::tcp_control(&mut frame, to, ports, (word(2), word(6)), head[1]);
        // The stack believes the program, which has looked at the checksum.
        let length = 40 + data.len() as u16;
        frame.extend_from_slice(data);
        frame[16..18].copy_from_slice(&length.to_be_bytes());
        stack.receive(&frame[ETHERNET_LENGTH..]);
        let now = now as u64 * u64::from(head[10]);
        let _ = stack.poll(now, &mut metadata, &mut out);
        for frame in out.drain(..) {
            assert!(frame.len() <= ETHERNET_LENGTH + usize::from(network.mtu));
        }
    }
}

/// A message from another process of a network, into a switch.
pub fn peer(bytes: &[u8]) {
    crate::segment::fuzz_message(bytes);
}

/// Messages to the services.
pub fn services(bytes: &[u8]) {
    let (network, port, _) = port();
    let names = Names::new(
        &network,
        [("guest", vec![IpAddr::from([10, 0, 0, 2])])].into_iter(),
    );
    if let Answered::Here(answer) = names.answer(bytes) {
        // An answer is to this question, and no amplifier.
        assert_eq!(answer.get(..2), bytes.get(..2));
        assert!(answer.len() <= bytes.len() + 512);
    }
    let _ = MetadataServer::new(&network, &port, &Metadata::default()).respond(bytes, 0);
}
