//! Who has an address: ARP (RFC 826) and neighbour discovery (RFC 4861),
//! answered for everyone on the network, so that neither is ever flooded.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::Question;
use crate::model::{GATEWAY_LINK_LOCAL, GATEWAY_MAC, METADATA_V4, MacAddress};
use crate::packet::build::{self, Envelope, NEIGHBOUR_HOP_LIMIT};
use crate::packet::{Ethernet, Ip, ethertype, icmp};
use crate::program::{DropReason, Program};

/// All stations of a link.
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: MacAddress = MacAddress([0x33, 0x33, 0, 0, 0, 1]);

const OPTION_SOURCE: u8 = 1;
const OPTION_TARGET: u8 = 2;

/// Flags of a neighbour advertisement.
const ROUTER: u8 = 0x80;
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;

/// An ARP packet for IPv4 over Ethernet.
struct Arp {
    operation: u16,
    sender: (MacAddress, Ipv4Addr),
    target: Ipv4Addr,
}

impl Arp {
    fn parse(packet: &[u8]) -> Option<Self> {
        let bytes: &[u8; 28] = packet.first_chunk()?;
        if bytes[..6] != [0, 1, 8, 0, 6, 4] {
            return None;
        }
        let v4 = |at: usize| Ipv4Addr::new(bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]);
        Some(Self {
            operation: u16::from_be_bytes([bytes[6], bytes[7]]),
            sender: (MacAddress::read(bytes, 8)?, v4(14)),
            target: v4(24),
        })
    }
}

/// Whether an ARP packet's sender is this port, or nobody yet (RFC 5227).
pub(crate) fn arp_sender_is(packet: &[u8], mac: MacAddress, addresses: &[IpNet]) -> bool {
    Arp::parse(packet).is_some_and(|arp| {
        let (sender_mac, sender) = arp.sender;
        let sender_ip = IpAddr::V4(sender);
        sender_mac == mac
            && (sender.is_unspecified() || addresses.iter().any(|net| net.contains(&sender_ip)))
    })
}

/// Whether an ARP packet asks for an address.
pub(crate) fn is_arp_request(packet: &[u8]) -> bool {
    Arp::parse(packet).is_some_and(|arp| arp.operation == 1)
}

/// Whether a neighbour discovery message says only what the port may say: no
/// router's message, no other's link-layer address, no other's target.
pub(crate) fn speaks_for_itself(ip: &Ip, packet: &[u8], mac: MacAddress, own: &[IpNet]) -> bool {
    let Some((kind, 0)) = ip.icmp else {
        return false;
    };
    let Some(message) = packet.get(ip.transport..ip.length) else {
        return false;
    };
    let (options, wanted) = match kind {
        icmp::ROUTER_SOLICITATION => (8, OPTION_SOURCE),
        icmp::NEIGHBOUR_SOLICITATION => (24, OPTION_SOURCE),
        icmp::NEIGHBOUR_ADVERTISEMENT => (24, OPTION_TARGET),
        _ => return false,
    };
    let Some(mut options) = message.get(options..) else {
        return false;
    };
    if ip.hop_limit != NEIGHBOUR_HOP_LIMIT {
        return false;
    }
    if kind == icmp::NEIGHBOUR_ADVERTISEMENT {
        let own_target = target(message)
            .is_some_and(|target| own.iter().any(|net| net.contains(&IpAddr::V6(target))));
        if !own_target || message[4] & ROUTER != 0 {
            return false;
        }
    }
    while let [option, length, ..] = *options {
        let length = usize::from(length) * 8;
        let Some(rest) = options.get(length..).filter(|_| length > 0) else {
            return false;
        };
        if option == wanted && MacAddress::read(&options[..length], 2) != Some(mac) {
            return false;
        }
        if option != wanted && matches!(option, OPTION_SOURCE | OPTION_TARGET) {
            return false;
        }
        options = rest;
    }
    options.is_empty()
}

fn target(message: &[u8]) -> Option<Ipv6Addr> {
    Some(Ipv6Addr::from(
        <[u8; 16]>::try_from(message.get(8..24)?).ok()?,
    ))
}

/// Whose address it is: the gateway's or a neighbour's, never the port's own.
fn owner(program: &Program, address: IpAddr) -> Option<MacAddress> {
    let gateway = match address {
        IpAddr::V4(v4) => {
            program
                .network
                .v4
                .is_some_and(|subnet| subnet.gateway == v4)
                || v4 == METADATA_V4
        }
        IpAddr::V6(v6) => {
            program
                .network
                .v6
                .is_some_and(|subnet| subnet.gateway == v6)
                || v6 == GATEWAY_LINK_LOCAL
        }
    };
    if gateway {
        Some(GATEWAY_MAC)
    } else {
        program.neighbours.get(address)
    }
}

/// Answers an ARP request.
pub(crate) fn arp(question: &Question<'_>, answer: &mut Vec<u8>) -> Result<(), DropReason> {
    let arp = Arp::parse(question.packet).ok_or(DropReason::Truncated)?;
    let owner = owner(question.program, arp.target.into()).ok_or(DropReason::UnknownNeighbour)?;
    let (mac, address) = arp.sender;
    answer.extend(
        Ethernet {
            destination: mac,
            source: owner,
            ethertype: ethertype::ARP,
        }
        .bytes(),
    );
    answer.extend([0, 1, 8, 0, 6, 4, 0, 2]);
    answer.extend(owner.0);
    answer.extend(arp.target.octets());
    answer.extend(mac.0);
    answer.extend(address.octets());
    Ok(())
}

/// Answers a neighbour solicitation.
pub(crate) fn discovery(
    question: &Question<'_>,
    ip: &Ip,
    answer: &mut Vec<u8>,
) -> Result<(), DropReason> {
    let message = question
        .packet
        .get(ip.transport..ip.length)
        .ok_or(DropReason::Truncated)?;
    let target = target(message).ok_or(DropReason::BadTransport)?;
    let owner = owner(question.program, target.into()).ok_or(DropReason::UnknownNeighbour)?;
    // Who looks whether an address is free has none to be answered at.
    let (to, to_mac, solicited) = match ip.source {
        IpAddr::V6(source) if !source.is_unspecified() => {
            (source, question.ethernet.source, SOLICITED)
        }
        _ => (ALL_NODES, ALL_NODES_MAC, 0),
    };
    let router = if owner == GATEWAY_MAC { ROUTER } else { 0 };
    let mut reply = Vec::with_capacity(32);
    reply.extend([icmp::NEIGHBOUR_ADVERTISEMENT, 0, 0, 0]);
    reply.extend([router | solicited | OVERRIDE, 0, 0, 0]);
    reply.extend(target.octets());
    reply.extend([OPTION_TARGET, 1]);
    reply.extend(owner.0);
    let to = Envelope {
        ethernet: (owner, to_mac),
        ip: (target.into(), to.into()),
    };
    build::icmpv6(answer, to, NEIGHBOUR_HOP_LIMIT, &reply);
    Ok(())
}
