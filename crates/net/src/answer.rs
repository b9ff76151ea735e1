//! What a port answers itself: each answer follows from the packet and the
//! program alone, so asking twice gives the same.
//!
//! Called when a program's verdict is [`Verdict::Answer`]; never for a packet
//! that hasn't passed the program's source layer.
//!
//! [`Verdict::Answer`]: crate::program::Verdict::Answer

mod dhcp4;
mod dhcp6;
mod echo;
pub(crate) mod neighbour;
mod router;

use crate::packet::{ETHERNET_LENGTH, Ethernet, Ip};
use crate::program::{Answer, DropReason, Program};

pub use router::advertisement;

/// Something to answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Question<'a> {
    /// The port that asks.
    program: &'a Program,
    /// The frame's header.
    ethernet: Ethernet,
    /// What follows it, without padding if it is IP.
    packet: &'a [u8],
}

/// Appends the answer to `frame`, a whole Ethernet frame, to `answer`.
///
/// # Errors
/// Says why there is none; nothing was appended then.
pub fn answer(
    program: &Program,
    kind: Answer,
    frame: &[u8],
    answer: &mut Vec<u8>,
) -> Result<(), DropReason> {
    let ethernet = Ethernet::parse(frame).ok_or(DropReason::Truncated)?;
    let packet = frame.get(ETHERNET_LENGTH..).ok_or(DropReason::Truncated)?;
    let mut question = Question {
        program,
        ethernet,
        packet,
    };
    if kind == Answer::Arp {
        return neighbour::arp(&question, answer);
    }
    let ip = Ip::parse(packet)?;
    question.packet = packet.get(..ip.length).ok_or(DropReason::Truncated)?;
    match kind {
        Answer::Arp | Answer::Neighbour => neighbour::discovery(&question, &ip, answer),
        Answer::Router => router::solicited(&question, &ip, answer),
        Answer::Dhcp4 => dhcp4::dhcp4(&question, &ip, answer),
        Answer::Dhcp6 => dhcp6::dhcp6(&question, &ip, answer),
        Answer::Echo => echo::echo(&question, &ip, answer),
        Answer::Refusal => echo::refusal(&question, &ip, answer),
    }
}

impl Question<'_> {
    /// The payload of the UDP datagram that asks.
    fn datagram(&self, ip: &Ip) -> Result<&[u8], DropReason> {
        let segment = self
            .packet
            .get(ip.transport..)
            .ok_or(DropReason::Truncated)?;
        let header: &[u8; 8] = segment.first_chunk().ok_or(DropReason::BadTransport)?;
        let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
        segment.get(8..length).ok_or(DropReason::BadTransport)
    }
}

#[cfg(test)]
#[path = "answer_test.rs"]
mod test;
