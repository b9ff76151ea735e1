//! Requests of the block device (virtio 1.2, 5.2.6): from a descriptor chain
//! to something that has been checked against the disk.

use favo_accel::GuestMemory;

use super::super::queue::{Chain, read_segments};

/// Bytes in a sector, the unit of every field of the protocol.
pub const SECTOR_SIZE: u64 = 512;
/// Bytes of `struct virtio_blk_req` before the data.
pub const HEADER_SIZE: u64 = 16;
/// Bytes of the answer to [`Request::GetId`].
pub const ID_SIZE: usize = 20;
/// Ranges in one discard or write-zeroes request.
pub const MAX_RANGES: usize = 32;

const TYPE_IN: u32 = 0;
const TYPE_OUT: u32 = 1;
const TYPE_FLUSH: u32 = 4;
const TYPE_GET_ID: u32 = 8;
const TYPE_DISCARD: u32 = 11;
const TYPE_WRITE_ZEROES: u32 = 13;

/// `VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP`.
const FLAG_UNMAP: u32 = 1;
const RANGE_SIZE: usize = 16;

/// The last byte of every request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Status {
    /// `VIRTIO_BLK_S_OK`.
    Ok = 0,
    /// `VIRTIO_BLK_S_IOERR`.
    IoError = 1,
    /// `VIRTIO_BLK_S_UNSUPP`.
    Unsupported = 2,
}

/// Bytes of the disk: all of them exist.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Range {
    /// The first byte.
    pub offset: u64,
    /// How many.
    pub length: u64,
    /// Write-zeroes only: the space may be given back.
    pub may_unmap: bool,
}

/// A request that makes sense.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Request {
    /// Disk to guest: the writable part of the chain, but for its last byte.
    Read(Range),
    /// Guest to disk: the readable part of the chain behind the header.
    Write(Range),
    /// Make everything that was written durable.
    Flush,
    /// Tell the disk's name.
    GetId,
    /// The content of these ranges does not matter any more.
    Discard(Vec<Range>),
    /// These ranges become zero.
    WriteZeroes(Vec<Range>),
}

/// What a disk allows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Bytes of the disk.
    pub capacity: u64,
    /// Nothing may change it.
    pub read_only: bool,
    /// `VIRTIO_BLK_F_DISCARD` was negotiated.
    pub discard: bool,
    /// `VIRTIO_BLK_F_WRITE_ZEROES` was negotiated.
    pub write_zeroes: bool,
}

/// What is wrong with a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// It has no room for a status, or no header: it can't even be answered.
    Malformed,
    /// It is answered with this status.
    Status(Status),
}

impl Request {
    /// Reads and checks the request in `chain`.
    pub fn parse(memory: &GuestMemory, chain: &Chain, limits: &Limits) -> Result<Self, Refusal> {
        let mut header = [0; HEADER_SIZE as usize];
        let got = read_segments(memory, chain.readable(), 0, &mut header);
        if got < header.len() || chain.writable_bytes() == 0 {
            return Err(Refusal::Malformed);
        }
        let (kind, rest) = header.split_at(4);
        let kind = kind.try_into().map_or(0, u32::from_le_bytes);
        let sector = rest[4..].try_into().map_or(0, u64::from_le_bytes);
        let data_out = chain.readable_bytes() - HEADER_SIZE;
        let data_in = chain.writable_bytes() - 1;
        match kind {
            TYPE_IN => range(sector, data_in, limits).map(Self::Read),
            TYPE_OUT => {
                writable(limits)?;
                range(sector, data_out, limits).map(Self::Write)
            }
            TYPE_FLUSH => Ok(Self::Flush),
            TYPE_GET_ID => Ok(Self::GetId),
            TYPE_DISCARD if limits.discard => {
                ranges(memory, chain, data_out, limits, 0).map(Self::Discard)
            }
            TYPE_WRITE_ZEROES if limits.write_zeroes => {
                ranges(memory, chain, data_out, limits, FLAG_UNMAP).map(Self::WriteZeroes)
            }
            _ => Err(Refusal::Status(Status::Unsupported)),
        }
    }
}

const IO_ERROR: Refusal = Refusal::Status(Status::IoError);

fn writable(limits: &Limits) -> Result<(), Refusal> {
    if limits.read_only {
        Err(IO_ERROR)
    } else {
        Ok(())
    }
}

fn range(sector: u64, length: u64, limits: &Limits) -> Result<Range, Refusal> {
    let offset = sector.checked_mul(SECTOR_SIZE).ok_or(IO_ERROR)?;
    let end = offset.checked_add(length).ok_or(IO_ERROR)?;
    if !length.is_multiple_of(SECTOR_SIZE) || end > limits.capacity {
        return Err(IO_ERROR);
    }
    Ok(Range {
        offset,
        length,
        may_unmap: false,
    })
}

fn ranges(
    memory: &GuestMemory,
    chain: &Chain,
    length: u64,
    limits: &Limits,
    known_flags: u32,
) -> Result<Vec<Range>, Refusal> {
    writable(limits)?;
    let mut bytes = [0; MAX_RANGES * RANGE_SIZE];
    let length = usize::try_from(length).map_err(|_| IO_ERROR)?;
    let bytes = bytes.get_mut(..length).ok_or(IO_ERROR)?;
    if length == 0 || !length.is_multiple_of(RANGE_SIZE) {
        return Err(IO_ERROR);
    }
    read_segments(memory, chain.readable(), HEADER_SIZE, bytes);
    bytes
        .chunks_exact(RANGE_SIZE)
        .map(|entry| {
            let word = |at: usize| entry[at..at + 4].try_into().map_or(0, u32::from_le_bytes);
            let sector = u64::from(word(4)) << 32 | u64::from(word(0));
            let flags = word(12);
            if flags & !known_flags != 0 {
                return Err(Refusal::Status(Status::Unsupported));
            }
            let range = range(sector, u64::from(word(8)) * SECTOR_SIZE, limits)?;
            Ok(Range {
                may_unmap: flags & FLAG_UNMAP != 0,
                ..range
            })
        })
        .collect()
}
