//! Packets of the socket device (virtio 1.2, 5.10.6).

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The host's context id.
pub const HOST_CID: u64 = 2;

/// `VIRTIO_VSOCK_TYPE_STREAM`.
pub const TYPE_STREAM: u16 = 1;

/// `VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE`: the sender will receive no more.
pub const SHUTDOWN_RECEIVE: u32 = 1;
/// `VIRTIO_VSOCK_SHUTDOWN_F_SEND`: the sender will send no more.
pub const SHUTDOWN_SEND: u32 = 2;

/// What a packet does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub enum Operation {
    /// Asks for a connection.
    Request = 1,
    /// Accepts one.
    Response = 2,
    /// Ends one, or refuses one.
    Reset = 3,
    /// Ends one or both directions.
    Shutdown = 4,
    /// Carries data.
    Data = 5,
    /// Tells the sender's buffer space.
    CreditUpdate = 6,
    /// Asks for a credit update.
    CreditRequest = 7,
}

impl Operation {
    /// The operation of this number.
    pub fn from_number(number: u16) -> Option<Self> {
        Some(match number {
            1 => Self::Request,
            2 => Self::Response,
            3 => Self::Reset,
            4 => Self::Shutdown,
            5 => Self::Data,
            6 => Self::CreditUpdate,
            7 => Self::CreditRequest,
            _ => return None,
        })
    }
}

/// The header of every packet: 44 bytes, `struct virtio_vsock_hdr`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Header {
    /// Context id of the sender.
    pub source_cid: U64,
    /// Context id of the receiver.
    pub destination_cid: U64,
    /// Port of the sender.
    pub source_port: U32,
    /// Port of the receiver.
    pub destination_port: U32,
    /// Bytes of data behind the header.
    pub length: U32,
    /// [`TYPE_STREAM`].
    pub socket_type: U16,
    /// An [`Operation`].
    pub operation: U16,
    /// Depends on the operation.
    pub flags: U32,
    /// The sender's receive buffer for this connection, in bytes.
    pub buffer_size: U32,
    /// Bytes the sender has taken out of that buffer, modulo 2³².
    pub forwarded: U32,
}

/// Bytes in a [`Header`].
pub const HEADER_SIZE: usize = size_of::<Header>();
const _: () = assert!(HEADER_SIZE == 44);

/// One connection: the pair of ports. The context ids are always the host's
/// and the guest's.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Ports {
    /// The port on the host.
    pub host: u32,
    /// The port in the guest.
    pub guest: u32,
}
