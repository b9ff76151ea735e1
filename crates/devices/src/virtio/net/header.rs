//! The header before every frame on a virtio-net queue (virtio 1.2, 5.1.6).
//!
//! ```text
//!  0 flags u8        4 gso_size u16       8 csum_offset u16
//!  1 gso_type u8     6 csum_start u16    10 num_buffers u16
//!  2 hdr_len u16     all little-endian
//! ```
//!
//! A guest writes it, so all of it is checked against the frame and against
//! what was negotiated, here and nowhere else. `hdr_len` is only a hint unless
//! negotiated otherwise: the length of the headers is read from the headers.

use favo_net::link::{MAX_FRAME_LENGTH, Offload, PartialChecksum, SegmentKind, Segmentation};
use favo_net::offload;

use super::feature;

/// Bytes of the header.
pub const HEADER_SIZE: usize = 12;
/// The shortest frame: an Ethernet header alone.
pub const MIN_FRAME_LENGTH: usize = 14;
/// What a frame may be longer than the MTU: an Ethernet header and a VLAN tag.
pub const FRAME_OVERHEAD: usize = 18;

const NEEDS_CSUM: u8 = 1;
const DATA_VALID: u8 = 2;

const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;

/// Why a frame from the guest is dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// No header, or less than an Ethernet header behind it.
    TooShort,
    /// Longer than the MTU allows, or, if it is to be cut, than any packet.
    TooLong,
    /// A checksum that was not negotiated, or that lies outside the frame.
    Checksum,
    /// A segmentation that was not negotiated, or that does not fit the frame.
    Segmentation,
    /// The link is down.
    LinkDown,
}

impl Refusal {
    /// All of them, in the order they are counted in.
    pub const ALL: [Self; 5] = [
        Self::TooShort,
        Self::TooLong,
        Self::Checksum,
        Self::Segmentation,
        Self::LinkDown,
    ];

    /// In kebab-case, for counters.
    pub const fn name(self) -> &'static str {
        match self {
            Self::TooShort => "too-short",
            Self::TooLong => "too-long",
            Self::Checksum => "checksum",
            Self::Segmentation => "segmentation",
            Self::LinkDown => "link-down",
        }
    }
}

/// Checks the header of a frame from the guest.
pub fn parse(
    header: &[u8; HEADER_SIZE],
    frame: &[u8],
    features: u64,
    mtu: u16,
) -> Result<Offload, Refusal> {
    let word = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    if frame.len() < MIN_FRAME_LENGTH {
        return Err(Refusal::TooShort);
    }
    let mut offload = Offload::default();
    if header[0] & NEEDS_CSUM != 0 {
        let partial = PartialChecksum {
            start: word(6),
            offset: word(8),
        };
        let start = usize::from(partial.start);
        let end = start + usize::from(partial.offset) + 2;
        let fits = start >= MIN_FRAME_LENGTH && end <= frame.len();
        if features & feature::CSUM == 0 || !fits {
            return Err(Refusal::Checksum);
        }
        offload.checksum = Some(partial);
    }
    let (kind, needed) = match header[1] {
        GSO_NONE => {
            let longest = usize::from(mtu) + FRAME_OVERHEAD;
            return if frame.len() > longest {
                Err(Refusal::TooLong)
            } else {
                Ok(offload)
            };
        }
        GSO_TCPV4 => (SegmentKind::Tcp4, feature::HOST_TSO4),
        GSO_TCPV6 => (SegmentKind::Tcp6, feature::HOST_TSO6),
        _ => return Err(Refusal::Segmentation),
    };
    if frame.len() > MAX_FRAME_LENGTH {
        return Err(Refusal::TooLong);
    }
    let size = word(4);
    let checksum = offload.checksum.ok_or(Refusal::Segmentation)?;
    let segmentation = Segmentation {
        kind,
        size,
        header: 0,
    };
    let fits = features & needed != 0
        && checksum.offset == 16
        && offload::Cutter::new(frame, checksum, segmentation).is_some();
    let length = offload::header_length(frame, kind, checksum.start.into())
        .filter(|_| fits)
        .and_then(|length| u16::try_from(length).ok())
        .ok_or(Refusal::Segmentation)?;
    offload.segmentation = Some(Segmentation {
        header: length,
        ..segmentation
    });
    Ok(offload)
}

/// The header of a frame for the guest, which takes what `offload` leaves
/// undone. `num_buffers` is 1.
pub fn encode(offload: &Offload, features: u64) -> [u8; HEADER_SIZE] {
    let mut header = [0; HEADER_SIZE];
    let mut put = |at: usize, value: u16| {
        header[at..at + 2].copy_from_slice(&value.to_le_bytes());
    };
    put(10, 1);
    let mut flags = 0;
    if let Some(partial) = offload.checksum {
        flags = NEEDS_CSUM;
        put(6, partial.start);
        put(8, partial.offset);
    } else if offload.checked && features & feature::GUEST_CSUM != 0 {
        flags = DATA_VALID;
    }
    let mut gso = GSO_NONE;
    if let Some(segmentation) = offload.segmentation {
        gso = match segmentation.kind {
            SegmentKind::Tcp4 => GSO_TCPV4,
            SegmentKind::Tcp6 => GSO_TCPV6,
            // Cut before it comes here.
            SegmentKind::Udp => GSO_NONE,
        };
        put(2, segmentation.header);
        put(4, segmentation.size);
    }
    (header[0], header[1]) = (flags, gso);
    header
}

/// Says in how many buffers the frame lies.
pub fn set_buffers(header: &mut [u8; HEADER_SIZE], count: u16) {
    header[10..].copy_from_slice(&count.to_le_bytes());
}

#[cfg(test)]
#[path = "header_test.rs"]
mod test;
