//! The internet checksum (RFC 1071).

use std::net::IpAddr;

/// A sum in the making. Sixteen-bit one's complement addition, done wide and
/// folded at the end.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum(u64);

impl Sum {
    /// Adds bytes, as if they began at an even offset.
    #[must_use]
    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        let mut words = bytes.chunks_exact(4);
        for word in &mut words {
            self.0 += u64::from(u32::from_be_bytes([word[0], word[1], word[2], word[3]]));
        }
        match *words.remainder() {
            [] => {}
            [a] => self.0 += u64::from(a) << 8,
            [a, b] => self.0 += u64::from(u16::from_be_bytes([a, b])),
            [a, b, c, ..] => {
                self.0 += u64::from(u16::from_be_bytes([a, b])) + (u64::from(c) << 8);
            }
        }
        self
    }

    /// Adds the pseudo header of a transport segment of `length` bytes
    /// (RFC 9293, section 3.1; RFC 8200, section 8.1).
    #[must_use]
    pub fn pseudo_header(
        self,
        source: IpAddr,
        destination: IpAddr,
        protocol: u8,
        length: usize,
    ) -> Self {
        let sum = match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                self.bytes(&source.octets()).bytes(&destination.octets())
            }
            (source, destination) => [source, destination].iter().fold(self, |sum, ip| match ip {
                IpAddr::V4(ip) => sum.bytes(&ip.octets()),
                IpAddr::V6(ip) => sum.bytes(&ip.octets()),
            }),
        };
        Self(sum.0 + u64::from(protocol) + length as u64)
    }

    /// The sum in 16 bits, not complemented: 0xffff if a checksum was in the
    /// sum and is right.
    pub fn fold(self) -> u16 {
        let mut sum = self.0;
        while sum > 0xffff {
            sum = (sum >> 16) + (sum & 0xffff);
        }
        sum as u16
    }

    /// The checksum of what was summed.
    pub fn checksum(self) -> u16 {
        !self.fold()
    }
}

/// The folded sum over a transport segment with its pseudo header: 0xffff if
/// the checksum in it is right.
pub fn transport_sum(source: IpAddr, destination: IpAddr, protocol: u8, segment: &[u8]) -> u16 {
    Sum::default()
        .pseudo_header(source, destination, protocol, segment.len())
        .bytes(segment)
        .fold()
}
