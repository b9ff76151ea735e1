//! Router advertisements (RFC 4861, section 4.2; RFC 8106 for DNS).
//!
//! They ask guests both to configure themselves and to ask DHCPv6: the address
//! is the same either way.

use std::net::{IpAddr, Ipv6Addr};

use super::Question;
use crate::model::{GATEWAY_LINK_LOCAL, GATEWAY_MAC, MacAddress};
use crate::packet::build::{self, Envelope, NEIGHBOUR_HOP_LIMIT};
use crate::packet::{Ip, icmp};
use crate::program::{DropReason, Program};

/// Seconds a guest believes an advertisement; RFC 4861 allows 9,000. The plane
/// sends one well before that.
const LIFETIME: u16 = 9000;

/// Seconds an address made of the prefix lasts.
const PREFIX_LIFETIME: u32 = 86_400;

const HOP_LIMIT: u8 = 64;
/// Flags: ask DHCPv6 for an address, and for the rest.
const MANAGED_AND_OTHER: u8 = 0xc0;
/// Flags of the prefix: on the link, and good for configuring oneself.
const ON_LINK_AND_AUTONOMOUS: u8 = 0xc0;

const OPTION_SOURCE: u8 = 1;
const OPTION_PREFIX: u8 = 3;
const OPTION_MTU: u8 = 5;
const OPTION_DNS: u8 = 25;
const OPTION_SEARCH: u8 = 31;

/// Answers a router solicitation.
pub(crate) fn solicited(
    question: &Question<'_>,
    ip: &Ip,
    answer: &mut Vec<u8>,
) -> Result<(), DropReason> {
    let _ = ip;
    advertisement(question.program, answer).ok_or(DropReason::Ignored)
}

/// Appends the advertisement for everyone at a port; nothing on a network
/// without IPv6.
pub fn advertisement(program: &Program, frame: &mut Vec<u8>) -> Option<()> {
    let subnet = program.network.v6?;
    let mut message = vec![
        icmp::ROUTER_ADVERTISEMENT,
        0,
        0,
        0,
        HOP_LIMIT,
        MANAGED_AND_OTHER,
    ];
    let lifetime = if subnet.default_route { LIFETIME } else { 0 };
    message.extend(lifetime.to_be_bytes());
    // Reachable time and retransmission timer: as the guest likes.
    message.extend([0; 8]);

    message.extend([OPTION_SOURCE, 1]);
    message.extend(GATEWAY_MAC.0);

    message.extend([OPTION_MTU, 1, 0, 0]);
    message.extend(u32::from(program.network.mtu).to_be_bytes());

    message.extend([
        OPTION_PREFIX,
        4,
        subnet.prefix.prefix_len(),
        ON_LINK_AND_AUTONOMOUS,
    ]);
    message.extend(PREFIX_LIFETIME.to_be_bytes());
    message.extend(PREFIX_LIFETIME.to_be_bytes());
    message.extend([0; 4]);
    message.extend(subnet.prefix.network().octets());

    message.extend([OPTION_DNS, 3, 0, 0]);
    message.extend(u32::from(LIFETIME).to_be_bytes());
    message.extend(subnet.gateway.octets());

    if let Some(search) = encoded_domain(&program.network.domain) {
        let length = (8 + search.len()).next_multiple_of(8);
        message.extend([OPTION_SEARCH, (length / 8) as u8, 0, 0]);
        message.extend(u32::from(LIFETIME).to_be_bytes());
        message.extend_from_slice(&search);
        message.resize(message.len() + length - 8 - search.len(), 0);
    }

    let to = Envelope {
        ethernet: (GATEWAY_MAC, MacAddress([0x33, 0x33, 0, 0, 0, 1])),
        ip: (
            IpAddr::V6(GATEWAY_LINK_LOCAL),
            IpAddr::V6(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1)),
        ),
    };
    build::icmpv6(frame, to, NEIGHBOUR_HOP_LIMIT, &message);
    Some(())
}

/// A domain name as DNS writes it (RFC 1035, section 3.1); none, if it is
/// none.
fn encoded_domain(domain: &str) -> Option<Vec<u8>> {
    let mut encoded = Vec::new();
    for label in domain.trim_end_matches('.').split('.') {
        let length = u8::try_from(label.len())
            .ok()
            .filter(|length| (1..64).contains(length))?;
        encoded.push(length);
        encoded.extend_from_slice(label.as_bytes());
    }
    encoded.push(0);
    (encoded.len() <= 255).then_some(encoded)
}
