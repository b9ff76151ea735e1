//! What a network card leaves undone, done in software: checksums and the
//! cutting of large TCP and UDP frames.
//!
//! Called where a frame reaches someone who does not take unfinished ones: a
//! guest's driver without the feature, a capture, a host socket. Pure: bytes
//! in, bytes out. Frames come from guests, so every offset is checked; what
//! does not fit gives `None`, never a panic.
//!
//! Internet checksum: RFC 1071; IPv4 header: RFC 791; TCP: RFC 9293, 3.1; UDP:
//! RFC 768; pseudo header of IPv6: RFC 8200, 8.1.

use crate::link::{PartialChecksum, SegmentKind, Segmentation};

const ETHERNET_HEADER: usize = 14;
const VLAN_TAG: usize = 4;
const MAX_VLAN_TAGS: usize = 2;
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPES_VLAN: [u16; 2] = [0x8100, 0x88a8];

const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
const TCP_HEADER: usize = 20;
const UDP_HEADER: usize = 8;
const TCP: u8 = 6;
const UDP: u8 = 17;
/// Where the checksum stands in the transport's header.
const TCP_CHECKSUM: usize = 16;
const UDP_CHECKSUM: usize = 6;

const TCP_FLAGS: usize = 13;
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;

/// Adds `bytes` to a one's complement sum, as big-endian words. An odd last
/// byte counts as the upper half of a word, so only the last part of a sum may
/// be odd.
pub fn add(sum: u64, bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<4>();
    let mut sum = words.iter().fold(sum, |sum, word| {
        sum.wrapping_add(u64::from(u32::from_be_bytes(*word)))
    });
    let (pairs, odd) = rest.as_chunks::<2>();
    for pair in pairs {
        sum += u64::from(u16::from_be_bytes(*pair));
    }
    if let [last] = odd {
        sum += u64::from(*last) << 8;
    }
    sum
}

/// The sum in 16 bits, not complemented.
pub fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Computes the checksum that was left out and stores it. `None`, and an
/// unchanged frame, if it does not lie in the frame.
pub fn finish_checksum(frame: &mut [u8], partial: PartialChecksum) -> Option<()> {
    let start = usize::from(partial.start);
    let sum = !fold(add(0, frame.get(start..)?));
    let offset = usize::from(partial.offset);
    let field = frame.get_mut(start + offset..start + offset + 2)?;
    // In UDP a zero says that there is no checksum.
    let sum = if sum == 0 && offset == UDP_CHECKSUM {
        0xffff
    } else {
        sum
    };
    field.copy_from_slice(&sum.to_be_bytes());
    Some(())
}

/// Where the network header starts, and its EtherType, behind VLAN tags.
pub fn network_header(frame: &[u8]) -> Option<(usize, u16)> {
    let mut at = ETHERNET_HEADER;
    for _ in 0..=MAX_VLAN_TAGS {
        let ethertype = u16::from_be_bytes(*frame.get(at - 2..)?.first_chunk()?);
        if !ETHERTYPES_VLAN.contains(&ethertype) {
            return Some((at, ethertype));
        }
        at += VLAN_TAG;
    }
    None
}

/// Length of all headers of a frame that is to be cut, with its transport
/// header at `transport`; `None` if the frame is not what `kind` says.
pub fn header_length(frame: &[u8], kind: SegmentKind, transport: usize) -> Option<usize> {
    let (network, ethertype) = network_header(frame)?;
    let packet = frame.get(network..)?;
    let protocol = match kind {
        SegmentKind::Tcp4 | SegmentKind::Tcp6 => TCP,
        SegmentKind::Udp => UDP,
    };
    match (ethertype, kind) {
        (ETHERTYPE_IPV4, SegmentKind::Tcp4 | SegmentKind::Udp) => {
            let header = packet.get(..IPV4_HEADER)?;
            let length = usize::from(header[0] & 0x0f) * 4;
            // A fragment can't be cut: its pieces would overlap others'.
            let fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0;
            let fits = header[0] >> 4 == 4
                && length >= IPV4_HEADER
                && network + length == transport
                && header[9] == protocol
                && !fragment;
            fits.then_some(())?;
        }
        (ETHERTYPE_IPV6, SegmentKind::Tcp6 | SegmentKind::Udp) => {
            let header = packet.get(..IPV6_HEADER)?;
            // Extension headers may lie between.
            let direct = transport == network + IPV6_HEADER;
            let fits = header[0] >> 4 == 6
                && transport >= network + IPV6_HEADER
                && (!direct || header[6] == protocol);
            fits.then_some(())?;
        }
        _ => return None,
    }
    let length = match protocol {
        TCP => {
            let length = usize::from(*frame.get(transport + 12)? >> 4) * 4;
            (length >= TCP_HEADER).then_some(length)?
        }
        _ => UDP_HEADER,
    };
    let end = transport + length;
    (end <= frame.len()).then_some(end)
}

/// A large frame and the way to cut it.
#[derive(Clone, Copy, Debug)]
pub struct Cutter {
    kind: SegmentKind,
    /// Where the headers start and end.
    network: usize,
    transport: usize,
    header: usize,
    size: usize,
    pieces: usize,
}

impl Cutter {
    /// Checks that `frame` can be cut as asked. `None` if it can't.
    pub fn new(
        frame: &[u8],
        checksum: PartialChecksum,
        segmentation: Segmentation,
    ) -> Option<Self> {
        let Segmentation { kind, size, .. } = segmentation;
        let (network, _) = network_header(frame)?;
        let transport = usize::from(checksum.start);
        let header = header_length(frame, kind, transport)?;
        let size = usize::from(size);
        if size == 0 || header - network + size > 65_535 {
            return None;
        }
        Some(Self {
            kind,
            network,
            transport,
            header,
            size,
            pieces: (frame.len() - header).div_ceil(size).max(1),
        })
    }

    /// How many frames it makes; at least 1.
    pub fn pieces(&self) -> usize {
        self.pieces
    }

    /// The partial checksum every piece comes with.
    pub fn checksum(&self) -> PartialChecksum {
        let offset = match self.kind {
            SegmentKind::Udp => UDP_CHECKSUM,
            SegmentKind::Tcp4 | SegmentKind::Tcp6 => TCP_CHECKSUM,
        };
        PartialChecksum {
            // It was a u16 when it came.
            start: self.transport as u16,
            offset: offset as u16,
        }
    }

    /// Writes piece `index` of `frame`, the frame this was made for, into
    /// `piece`. Its transport checksum is left to be finished
    /// ([`Cutter::checksum`]). `None` if there is no such piece.
    pub fn cut(&self, frame: &[u8], index: usize, piece: &mut Vec<u8>) -> Option<()> {
        piece.clear();
        if index >= self.pieces {
            return None;
        }
        let start = self.header + index * self.size;
        let end = frame.len().min(start + self.size);
        piece.extend_from_slice(frame.get(..self.header)?);
        piece.extend_from_slice(frame.get(start..end)?);
        self.fix_network(piece, index);
        match self.kind {
            SegmentKind::Udp => self.fix_udp(piece),
            SegmentKind::Tcp4 | SegmentKind::Tcp6 => self.fix_tcp(piece, index),
        }
        let sum = self.pseudo_header(piece);
        let at = self.transport + usize::from(self.checksum().offset);
        put(piece, at, sum);
        Some(())
    }

    fn is_ipv4(&self, piece: &[u8]) -> bool {
        piece[self.network] >> 4 == 4
    }

    fn fix_network(&self, piece: &mut [u8], index: usize) {
        let length = (piece.len() - self.network) as u16;
        let at = self.network;
        if self.is_ipv4(piece) {
            put(piece, at + 2, length);
            let identification = u16::from_be_bytes([piece[at + 4], piece[at + 5]]);
            put(piece, at + 4, identification.wrapping_add(index as u16));
            put(piece, at + 10, 0);
            let sum = !fold(add(0, &piece[at..self.transport]));
            put(piece, at + 10, sum);
        } else {
            put(piece, at + 4, length - IPV6_HEADER as u16);
        }
    }

    fn fix_tcp(&self, piece: &mut [u8], index: usize) {
        let header = &mut piece[self.transport..];
        let sequence = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
        let sequence = sequence.wrapping_add((index * self.size) as u32);
        header[4..8].copy_from_slice(&sequence.to_be_bytes());
        if index + 1 < self.pieces {
            header[TCP_FLAGS] &= !(FIN | PSH);
        }
        if index > 0 {
            header[TCP_FLAGS] &= !CWR;
        }
    }

    fn fix_udp(&self, piece: &mut [u8]) {
        let length = (piece.len() - self.transport) as u16;
        put(piece, self.transport + 4, length);
    }

    fn pseudo_header(&self, piece: &[u8]) -> u16 {
        let at = self.network;
        let addresses = if self.is_ipv4(piece) {
            &piece[at + 12..at + 20]
        } else {
            &piece[at + 8..at + 40]
        };
        let protocol = match self.kind {
            SegmentKind::Udp => UDP,
            SegmentKind::Tcp4 | SegmentKind::Tcp6 => TCP,
        };
        let length = (piece.len() - self.transport) as u64;
        fold(add(u64::from(protocol) + length, addresses))
    }
}

fn put(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

#[cfg(test)]
#[path = "offload_test.rs"]
mod test;
