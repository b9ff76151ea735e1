//! A TCP segment as a guest sends it (RFC 9293, section 3.1).

use crate::packet::TcpFlags;

/// A segment from the guest.
pub(in crate::nat) struct Segment<'a> {
    pub(in crate::nat) seq: u32,
    pub(in crate::nat) ack: u32,
    pub(in crate::nat) flags: TcpFlags,
    pub(in crate::nat) window: u16,
    pub(in crate::nat) options: &'a [u8],
    pub(in crate::nat) payload: &'a [u8],
}

impl<'a> Segment<'a> {
    /// Reads what `Ip::parse` has found to be a TCP segment.
    pub(in crate::nat) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let header: &[u8; 20] = bytes.first_chunk()?;
        let word = |at: usize| {
            u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let data = usize::from(header[12] >> 4) * 4;
        Some(Self {
            seq: word(4),
            ack: word(8),
            flags: TcpFlags(header[13]),
            window: u16::from_be_bytes([header[14], header[15]]),
            options: bytes.get(20..data)?,
            payload: bytes.get(data..)?,
        })
    }

    /// Sequence numbers it takes.
    pub(in crate::nat) fn length(&self) -> u32 {
        let flags = u32::from(self.flags.syn()) + u32::from(self.flags.fin());
        self.payload.len() as u32 + flags
    }
}
