//! The cable between a virtual machine's network card and its network.
//!
//! The card's device calls a [`Link`]; whatever a network is made of (a port
//! of the user-space plane, a wrapper that captures, a test's end of a pipe)
//! implements it. A link carries whole Ethernet frames, and beside each frame
//! what the sender left undone ([`Offload`]), so that a frame crosses from one
//! machine to another, or into a host socket, without a checksum or a cut
//! anyone would only undo.
//!
//! A link must never block: it runs on the thread that serves a guest's queue.

use std::os::fd::BorrowedFd;

/// The longest frame a link carries, in bytes: an Ethernet header, one VLAN
/// tag and a 65,535 byte packet.
pub const MAX_FRAME_LENGTH: usize = 14 + 4 + 65_535;

/// What a frame still needs, from virtio-net's header (virtio 1.2, 5.1.6).
///
/// The default is a finished frame whose checksums nobody has verified.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// A checksum left to whoever needs it (`VIRTIO_NET_HDR_F_NEEDS_CSUM`).
    pub checksum: Option<PartialChecksum>,
    /// The frame is to be cut into smaller ones (`gso_type`). Always with
    /// `checksum`.
    pub segmentation: Option<Segmentation>,
    /// The transport checksum is known to be right
    /// (`VIRTIO_NET_HDR_F_DATA_VALID`).
    pub checked: bool,
}

/// Where a checksum is computed and stored. The field holds the pseudo
/// header's sum, not complemented.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartialChecksum {
    /// First byte summed, from the start of the frame; the sum runs to its end.
    pub start: u16,
    /// Where the sum is stored, from `start`.
    pub offset: u16,
}

/// How a large frame is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segmentation {
    /// What is in the frame.
    pub kind: SegmentKind,
    /// Payload bytes in each piece, never 0: TCP's maximum segment size.
    pub size: u16,
    /// Bytes of headers that every piece repeats, from the start of the frame
    /// to the end of the transport's header; at most the frame's length.
    pub header: u16,
}

/// The transport of a frame that is to be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentKind {
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP over IPv4 or IPv6: every piece is a datagram of its own.
    Udp,
}

/// One queue pair's end of the cable between a virtual machine's network card
/// and the plane.
pub trait Link: Send {
    /// A whole Ethernet frame from the guest (no virtio header; may be a
    /// 64 KiB frame to be cut). The plane takes it, or drops and counts it; it
    /// never blocks. Whoever calls has checked that `offload` lies within the
    /// frame.
    fn send(&mut self, frame: &[u8], offload: Offload);

    /// The batch ends: what was held back goes out now.
    fn flush(&mut self);

    /// The next frame for the guest, appended to the cleared `frame`; `None`
    /// when none waits.
    fn receive(&mut self, frame: &mut Vec<u8>) -> Option<Offload>;

    /// Readable while frames may wait. May be watched edge triggered: after a
    /// [`Link::receive`] that returned `None` the next frame makes it readable
    /// anew.
    fn ready(&self) -> BorrowedFd<'_>;

    /// Whether the guest receives on this queue pair. A link starts active; an
    /// inactive one should get no frames, for they are dropped.
    fn set_active(&mut self, active: bool) {
        let _ = active;
    }
}
