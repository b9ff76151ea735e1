//! Writes the packets a port's program and the plane's services answer with.

use std::net::{IpAddr, Ipv6Addr};

use super::checksum::{Sum, transport_sum};
use super::{Ethernet, ethertype, protocol};
use crate::model::MacAddress;

/// Hops an answer may take: as many as there are.
const HOP_LIMIT: u8 = 64;

/// The hop limit of neighbour discovery, which proves that no router has
/// passed it on (RFC 4861, section 11.2).
pub const NEIGHBOUR_HOP_LIMIT: u8 = 255;

/// Where a packet goes.
#[derive(Clone, Copy, Debug)]
pub struct Envelope {
    /// The Ethernet addresses.
    pub ethernet: (MacAddress, MacAddress),
    /// The IP addresses; both of one family.
    pub ip: (IpAddr, IpAddr),
}

/// Appends a whole Ethernet frame with a datagram. A datagram too long for IP
/// is not written.
pub fn udp(frame: &mut Vec<u8>, to: Envelope, ports: (u16, u16), payload: &[u8]) {
    let Ok(length) = u16::try_from(payload.len() + 8) else {
        return;
    };
    transport(frame, to, protocol::UDP, HOP_LIMIT, 6, |frame| {
        frame.extend(ports.0.to_be_bytes());
        frame.extend(ports.1.to_be_bytes());
        frame.extend(length.to_be_bytes());
        frame.extend([0, 0]);
        frame.extend_from_slice(payload);
    });
}

/// Appends a whole Ethernet frame with an ICMPv6 message; its checksum is at
/// byte 2, and zero.
pub fn icmpv6(frame: &mut Vec<u8>, to: Envelope, hop_limit: u8, message: &[u8]) {
    transport(frame, to, protocol::ICMPV6, hop_limit, 2, |frame| {
        frame.extend_from_slice(message)
    });
}

/// Appends a whole Ethernet frame with an ICMP message; its checksum is at
/// byte 2, and zero.
pub fn icmpv4(frame: &mut Vec<u8>, to: Envelope, message: &[u8]) {
    let sum = Sum::default().bytes(message).checksum().to_be_bytes();
    let start = headers(frame, to, protocol::ICMP, HOP_LIMIT);
    let at = frame.len();
    frame.extend_from_slice(message);
    frame[at + 2..at + 4].copy_from_slice(&sum);
    finish(frame, start, to);
}

/// Appends a whole Ethernet frame with a TCP segment of no data.
pub fn tcp_control(
    frame: &mut Vec<u8>,
    to: Envelope,
    ports: (u16, u16),
    sequence: (u32, u32),
    flags: u8,
) {
    transport(frame, to, protocol::TCP, HOP_LIMIT, 16, |frame| {
        frame.extend(ports.0.to_be_bytes());
        frame.extend(ports.1.to_be_bytes());
        frame.extend(sequence.0.to_be_bytes());
        frame.extend(sequence.1.to_be_bytes());
        frame.extend([5 << 4, flags, 0, 0, 0, 0, 0, 0]);
    });
}

/// Headers, what `write` appends, and the checksum over it, stored `checksum`
/// bytes into it.
fn transport(
    frame: &mut Vec<u8>,
    to: Envelope,
    protocol: u8,
    hop_limit: u8,
    checksum: usize,
    write: impl FnOnce(&mut Vec<u8>),
) {
    let start = headers(frame, to, protocol, hop_limit);
    let at = frame.len();
    write(frame);
    let sum = match !transport_sum(to.ip.0, to.ip.1, protocol, &frame[at..]) {
        // Zero would say that there is no checksum (RFC 768).
        0 if protocol == protocol::UDP => 0xffff,
        sum => sum,
    };
    frame[at + checksum..at + checksum + 2].copy_from_slice(&sum.to_be_bytes());
    finish(frame, start, to);
}

/// Appends Ethernet and IP headers without the length; gives where IP's
/// begins.
fn headers(frame: &mut Vec<u8>, to: Envelope, protocol: u8, hop_limit: u8) -> usize {
    let ethertype = if to.ip.0.is_ipv4() {
        ethertype::IPV4
    } else {
        ethertype::IPV6
    };
    let (source, destination) = to.ethernet;
    frame.extend(
        Ethernet {
            destination,
            source,
            ethertype,
        }
        .bytes(),
    );
    let start = frame.len();
    match to.ip {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            frame.extend([0x45, 0, 0, 0, 0, 0, 0x40, 0, hop_limit, protocol, 0, 0]);
            frame.extend(source.octets());
            frame.extend(destination.octets());
        }
        (source, destination) => {
            frame.extend([0x60, 0, 0, 0, 0, 0, protocol, hop_limit]);
            frame.extend(v6(source).octets());
            frame.extend(v6(destination).octets());
        }
    }
    start
}

/// Writes the length, and IPv4's checksum.
fn finish(frame: &mut [u8], start: usize, to: Envelope) {
    let length = frame.len() - start;
    if to.ip.0.is_ipv4() {
        frame[start + 2..start + 4].copy_from_slice(&(length as u16).to_be_bytes());
        let sum = Sum::default().bytes(&frame[start..start + 20]).checksum();
        frame[start + 10..start + 12].copy_from_slice(&sum.to_be_bytes());
    } else {
        frame[start + 4..start + 6].copy_from_slice(&((length - 40) as u16).to_be_bytes());
    }
}

fn v6(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}
