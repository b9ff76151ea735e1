//! The gateway's ICMP, and its closed ports.

use std::net::IpAddr;

use super::Question;
use crate::packet::build::{self, Envelope};
use crate::packet::{Ip, icmp, protocol};
use crate::program::DropReason;

/// Bytes of the offending packet an ICMP error quotes: what RFC 792 asks for
/// at least, with room for options and a little more.
const QUOTE: usize = 128;

const TCP_RST: u8 = 4;
const TCP_ACK: u8 = 16;

impl Question<'_> {
    /// Back to where the packet came from.
    fn back(&self, ip: &Ip) -> Envelope {
        Envelope {
            ethernet: (crate::model::GATEWAY_MAC, self.ethernet.source),
            ip: (ip.destination, ip.source),
        }
    }
}

/// Answers an echo request to the gateway.
pub(crate) fn echo(
    question: &Question<'_>,
    ip: &Ip,
    answer: &mut Vec<u8>,
) -> Result<(), DropReason> {
    let request = question
        .packet
        .get(ip.transport..ip.length)
        .ok_or(DropReason::Truncated)?;
    if request.len() < 8 {
        return Err(DropReason::BadTransport);
    }
    let mut reply = request.to_vec();
    reply[..4].fill(0);
    match ip.source {
        IpAddr::V4(_) => {
            reply[0] = icmp::ECHO_REPLY_4;
            build::icmpv4(answer, question.back(ip), &reply);
        }
        IpAddr::V6(_) => {
            reply[0] = icmp::ECHO_REPLY_6;
            build::icmpv6(answer, question.back(ip), 64, &reply);
        }
    }
    Ok(())
}

/// Tells a guest that a port of the gateway is closed, so that it doesn't
/// wait: a reset for TCP (RFC 9293, section 3.10.7.1), port unreachable for
/// UDP.
pub(crate) fn refusal(
    question: &Question<'_>,
    ip: &Ip,
    answer: &mut Vec<u8>,
) -> Result<(), DropReason> {
    let to = question.back(ip);
    if ip.protocol != protocol::TCP {
        return unreachable(question, ip, to, answer);
    }
    let segment = question
        .packet
        .get(ip.transport..ip.length)
        .ok_or(DropReason::Truncated)?;
    let header: &[u8; 20] = segment.first_chunk().ok_or(DropReason::BadTransport)?;
    if ip.flags.rst() {
        return Err(DropReason::Ignored);
    }
    let word = |at: usize| {
        u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
    };
    let data = segment.len() - usize::from(header[12] >> 4) * 4;
    let length = data as u32 + u32::from(ip.flags.syn()) + u32::from(ip.flags.fin());
    let (sequence, flags) = if ip.flags.ack() {
        ((word(8), 0), TCP_RST)
    } else {
        ((0, word(4).wrapping_add(length)), TCP_RST | TCP_ACK)
    };
    build::tcp_control(answer, to, (ip.ports.1, ip.ports.0), sequence, flags);
    Ok(())
}

fn unreachable(
    question: &Question<'_>,
    ip: &Ip,
    to: Envelope,
    answer: &mut Vec<u8>,
) -> Result<(), DropReason> {
    let quote = &question.packet[..question.packet.len().min(QUOTE)];
    let (kind, code) = match ip.source {
        IpAddr::V4(_) => (icmp::UNREACHABLE_4, 3),
        IpAddr::V6(_) => (icmp::UNREACHABLE_6, 4),
    };
    let mut message = vec![kind, code, 0, 0, 0, 0, 0, 0];
    message.extend_from_slice(quote);
    match ip.source {
        IpAddr::V4(_) => build::icmpv4(answer, to, &message),
        IpAddr::V6(_) => build::icmpv6(answer, to, 64, &message),
    }
    Ok(())
}
