//! Writes the packets the way out gives to guests, from the IP header on.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::{Counters, OUT_LIMIT};
use crate::link::{Offload, PartialChecksum, SegmentKind, Segmentation};
use crate::model::PortId;
use crate::packet::{Sum, protocol, transport_sum};

/// What all connections may hold before each has to make do with little,
/// bytes.
const HELD_LIMIT: usize = 64 << 20;
/// What may be under way to a port before its connections have to take care,
/// bytes: half of what its queue takes.
const CROWDED: usize = crate::queue::MAXIMUM_BYTES / 2;

/// What waits for guests, and what is counted on the way.
#[derive(Default)]
pub(super) struct Out {
    pub(super) packets: VecDeque<(PortId, Vec<u8>, Offload)>,
    /// Buffers to write packets in, used before.
    spare: Vec<Vec<u8>>,
    pub(super) counters: Counters,
    /// Bytes all connections hold.
    held: usize,
    /// Bytes under way to each port that has any.
    under_way: HashMap<PortId, usize>,
}

/// A TCP segment's header.
pub(super) struct Header {
    pub(super) seq: u32,
    pub(super) ack: u32,
    pub(super) flags: u8,
    pub(super) window: u16,
}

pub(super) const FIN: u8 = 1;
pub(super) const SYN: u8 = 2;
pub(super) const RST: u8 = 4;
pub(super) const PSH: u8 = 8;
pub(super) const ACK: u8 = 16;

impl Out {
    /// Whether there is room for more; whoever can wait asks first.
    pub(super) fn has_room(&self) -> bool {
        self.packets.len() < OUT_LIMIT / 2
    }

    /// The next packet, exchanged for `packet`.
    pub(super) fn pop(&mut self, packet: &mut Vec<u8>) -> Option<(PortId, Offload)> {
        let (port, mut bytes, offload) = self.packets.pop_front()?;
        std::mem::swap(packet, &mut bytes);
        if self.spare.len() < 16 {
            bytes.clear();
            self.spare.push(bytes);
        }
        Some((port, offload))
    }

    /// Whether so much is held that every connection makes do with little.
    pub(super) fn is_short(&self) -> bool {
        self.held > HELD_LIMIT
    }

    /// Whether so much is under way to a port that its queue may overflow.
    pub(super) fn is_crowded(&self, port: PortId) -> bool {
        self.under_way.get(&port).is_some_and(|n| *n > CROWDED)
    }

    /// Whether no connection holds anything, or has anything under way.
    #[cfg(test)]
    pub(super) fn holds_nothing(&self) -> bool {
        self.held == 0 && self.under_way.is_empty()
    }

    /// A connection of `port` held, and had under way, `before`; now `after`.
    pub(super) fn account(&mut self, port: PortId, before: (usize, usize), after: (usize, usize)) {
        self.held = self.held + after.0 - before.0;
        if before.1 != after.1 {
            let under_way = self.under_way.entry(port).or_default();
            *under_way = *under_way + after.1 - before.1;
            if *under_way == 0 {
                self.under_way.remove(&port);
            }
        }
    }

    fn push(&mut self, port: PortId, packet: Vec<u8>, offload: Offload) {
        if self.packets.len() >= OUT_LIMIT {
            self.counters.overflow += 1;
        } else {
            self.packets.push_back((port, packet, offload));
        }
    }

    /// A TCP segment from `from` to `to`, its payload in two parts; cut every `mss` bytes by whoever
    /// needs it cut.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn tcp(
        &mut self,
        port: PortId,
        from: SocketAddr,
        to: SocketAddr,
        header: &Header,
        options: &[u8],
        payload: [&[u8]; 2],
        mss: u16,
    ) {
        let mut packet = self.spare.pop().unwrap_or_default();
        let data = payload[0].len() + payload[1].len();
        let length = 20 + options.len() + data;
        let at = ip_header(&mut packet, from.ip(), to.ip(), protocol::TCP, length);
        packet.extend(from.port().to_be_bytes());
        packet.extend(to.port().to_be_bytes());
        packet.extend(header.seq.to_be_bytes());
        packet.extend(header.ack.to_be_bytes());
        packet.extend([((20 + options.len()) << 2) as u8, header.flags]);
        packet.extend(header.window.to_be_bytes());
        packet.extend([0; 4]);
        packet.extend_from_slice(options);
        packet.extend_from_slice(payload[0]);
        packet.extend_from_slice(payload[1]);
        let mut offload = Offload::default();
        let sum = if data == 0 {
            !transport_sum(from.ip(), to.ip(), protocol::TCP, &packet[at..])
        } else {
            offload.checksum = Some(PartialChecksum {
                start: at as u16,
                offset: 16,
            });
            if data > usize::from(mss) {
                offload.segmentation = Some(Segmentation {
                    kind: if from.is_ipv4() {
                        SegmentKind::Tcp4
                    } else {
                        SegmentKind::Tcp6
                    },
                    size: mss,
                    header: (at + 20 + options.len()) as u16,
                });
            }
            Sum::default()
                .pseudo_header(from.ip(), to.ip(), protocol::TCP, length)
                .fold()
        };
        packet[at + 16..at + 18].copy_from_slice(&sum.to_be_bytes());
        self.push(port, packet, offload);
    }

    /// A UDP datagram; one too long for IP is dropped.
    pub(super) fn udp(&mut self, port: PortId, from: SocketAddr, to: SocketAddr, payload: &[u8]) {
        if payload.len() > 65_535 - 28 {
            self.counters.overflow += 1;
            return;
        }
        let mut packet = self.spare.pop().unwrap_or_default();
        let length = 8 + payload.len();
        let at = ip_header(&mut packet, from.ip(), to.ip(), protocol::UDP, length);
        packet.extend(from.port().to_be_bytes());
        packet.extend(to.port().to_be_bytes());
        packet.extend((length as u16).to_be_bytes());
        packet.extend([0; 2]);
        packet.extend_from_slice(payload);
        let sum = match !transport_sum(from.ip(), to.ip(), protocol::UDP, &packet[at..]) {
            0 => 0xffff,
            sum => sum,
        };
        packet[at + 6..at + 8].copy_from_slice(&sum.to_be_bytes());
        self.push(port, packet, Offload::default());
    }

    /// An ICMP or ICMPv6 message; its checksum, at byte 2, is computed.
    pub(super) fn icmp(&mut self, port: PortId, from: IpAddr, to: IpAddr, message: &[u8]) {
        if message.len() < 8 || message.len() > 65_535 - 20 {
            return;
        }
        let mut packet = self.spare.pop().unwrap_or_default();
        let protocol = if from.is_ipv4() {
            protocol::ICMP
        } else {
            protocol::ICMPV6
        };
        let at = ip_header(&mut packet, from, to, protocol, message.len());
        packet.extend_from_slice(message);
        packet[at + 2..at + 4].fill(0);
        let sum = if from.is_ipv4() {
            Sum::default().bytes(&packet[at..]).checksum()
        } else {
            !transport_sum(from, to, protocol, &packet[at..])
        };
        packet[at + 2..at + 4].copy_from_slice(&sum.to_be_bytes());
        self.push(port, packet, Offload::default());
    }

    /// Tells the sender of `quote` that it didn't arrive: destination
    /// unreachable (RFC 792; RFC 4443, section 3.1), said by `from`.
    pub(super) fn unreachable(
        &mut self,
        port: PortId,
        from: IpAddr,
        to: IpAddr,
        why: Unreachable,
        quote: &[u8],
    ) {
        let (kind, code) = match (from.is_ipv4(), why) {
            (true, Unreachable::Port) => (3, 3),
            (true, Unreachable::Host) => (3, 1),
            (true, Unreachable::Prohibited) => (3, 13),
            (false, Unreachable::Port) => (1, 4),
            (false, Unreachable::Host) => (1, 3),
            (false, Unreachable::Prohibited) => (1, 1),
        };
        let mut message = vec![kind, code, 0, 0, 0, 0, 0, 0];
        message.extend_from_slice(&quote[..quote.len().min(548)]);
        self.icmp(port, from, to, &message);
    }
}

/// Why a packet didn't arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unreachable {
    /// Nobody listens there.
    Port,
    /// There is no way there.
    Host,
    /// It isn't allowed.
    Prohibited,
}

/// What an ICMP error quotes of a datagram: its headers.
pub(super) fn quote(protocol: u8, from: SocketAddr, to: SocketAddr, length: usize) -> Vec<u8> {
    let mut packet = Vec::new();
    let length = (8 + length).min(65_000);
    ip_header(&mut packet, from.ip(), to.ip(), protocol, length);
    packet.extend(from.port().to_be_bytes());
    packet.extend(to.port().to_be_bytes());
    packet.extend((length as u16).to_be_bytes());
    packet.extend([0; 2]);
    packet
}

/// Appends an IP header before `length` bytes; gives where these begin.
fn ip_header(packet: &mut Vec<u8>, from: IpAddr, to: IpAddr, protocol: u8, length: usize) -> usize {
    packet.clear();
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            packet.extend([0x45, 0]);
            packet.extend(((length + 20) as u16).to_be_bytes());
            packet.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
            packet.extend(from.octets());
            packet.extend(to.octets());
            let sum = Sum::default().bytes(&packet[..20]).checksum();
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        (from, to) => {
            packet.extend([0x60, 0, 0, 0]);
            packet.extend((length as u16).to_be_bytes());
            packet.extend([protocol, 64]);
            packet.extend(v6(from).octets());
            packet.extend(v6(to).octets());
        }
    }
    packet.len()
}

fn v6(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}
