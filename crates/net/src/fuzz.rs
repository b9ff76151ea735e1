//! What the fuzz targets call: everything hostile bytes can reach, with the
//! properties that must hold for any of them.

use std::net::IpAddr;

use crate::answer;
use crate::link::{Offload, PartialChecksum, SegmentKind, Segmentation};
use crate::model::{Forward, ForwardProtocol, MacAddress, Network, Port, PortId};
use crate::packet::{ETHERNET_LENGTH, Ip};
use crate::program::compile::compile;
use crate::program::executor::Executor;
use crate::program::oracle::{self, FlowMap};
use crate::program::{Neighbours, Origin, Verdict};
use crate::service::metadata::{Metadata, MetadataServer};
use crate::service::names::Names;

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

/// Messages to the services.
pub fn services(bytes: &[u8]) {
    let (network, port, _) = port();
    let names = Names::new(
        &network,
        [("guest", vec![IpAddr::from([10, 0, 0, 2])])].into_iter(),
    );
    let _ = names.answer(bytes);
    let _ = MetadataServer::new(&network, &port, &Metadata::default()).respond(bytes, 0);
}
