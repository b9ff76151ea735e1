//! Scatter lists over memory that may be guest RAM: the only place where this
//! crate reads or writes memory by address, and moves it to and from files.
//!
//! Guest RAM changes at any moment, so no slice of it is ever made: bytes are
//! copied by address, or by the kernel.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Most pieces one `preadv` or `pwritev` takes (`IOV_MAX` of Linux).
pub(crate) const MOST_PIECES: usize = 1024;

/// Host memory that a request reads or writes: a piece of guest RAM. The guest
/// may change it at any moment, so it is never made a slice.
///
/// Its layout is that of `struct iovec`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct RawBuffer {
    /// Where it starts.
    pub pointer: *mut u8,
    /// Its length in bytes.
    pub length: usize,
}

const _: () = assert!(
    size_of::<RawBuffer>() == size_of::<libc::iovec>()
        && std::mem::offset_of!(RawBuffer, pointer) == std::mem::offset_of!(libc::iovec, iov_base)
        && std::mem::offset_of!(RawBuffer, length) == std::mem::offset_of!(libc::iovec, iov_len)
);

// SAFETY: it is an address; whoever accesses it needs `unsafe` on its own.
unsafe impl Send for RawBuffer {}
// SAFETY: as above.
unsafe impl Sync for RawBuffer {}

/// Buffers that are valid for `'a`. Invariant: every piece is memory that may
/// be read for `'a`, and, unless it was made by [`Scatter::of_const`], written.
#[derive(Debug)]
pub(crate) struct Scatter<'a> {
    pieces: Vec<RawBuffer>,
    length: u64,
    memory: PhantomData<&'a mut [u8]>,
}

impl<'a> Scatter<'a> {
    /// # Safety
    ///
    /// The pieces must be valid memory for `'a`, to be read and written.
    pub unsafe fn new(pieces: Vec<RawBuffer>) -> Self {
        let length = pieces.iter().map(|piece| piece.length as u64).sum();
        Self {
            pieces,
            length,
            memory: PhantomData,
        }
    }

    /// One piece.
    pub fn of(bytes: &'a mut [u8]) -> Self {
        let piece = RawBuffer {
            pointer: bytes.as_mut_ptr(),
            length: bytes.len(),
        };
        // SAFETY: borrowed for 'a.
        unsafe { Self::new(vec![piece]) }
    }

    /// One piece that is only read: a [`Source`] writes nothing.
    pub fn of_const(bytes: &'a [u8]) -> Source<'a> {
        let piece = RawBuffer {
            pointer: bytes.as_ptr().cast_mut(),
            length: bytes.len(),
        };
        // SAFETY: borrowed for 'a, and a `Source` only reads it.
        Source(unsafe { Self::new(vec![piece]) })
    }

    /// As something to read only.
    pub fn into_source(self) -> Source<'a> {
        Source(self)
    }

    /// Bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Leaves the first `count` bytes out.
    pub fn advance(&mut self, count: u64) {
        let rest = self.part(count, self.length.saturating_sub(count));
        *self = rest;
    }

    /// `length` bytes from `start`, clipped to what there is.
    pub fn part(&self, start: u64, length: u64) -> Self {
        let (mut skip, mut left) = (start, length);
        let mut pieces = Vec::new();
        for piece in &self.pieces {
            let size = piece.length as u64;
            if left == 0 {
                break;
            }
            if skip >= size {
                skip -= size;
                continue;
            }
            let take = (size - skip).min(left);
            pieces.push(RawBuffer {
                // SAFETY: `skip` is less than the length of the piece.
                pointer: unsafe { piece.pointer.add(skip as usize) },
                length: take as usize,
            });
            left -= take;
            skip = 0;
        }
        // SAFETY: parts of our own pieces.
        unsafe { Self::new(pieces) }
    }

    /// Makes it all zero.
    pub fn zero(&self) {
        for piece in &self.pieces {
            // SAFETY: valid memory by the invariant.
            unsafe { std::ptr::write_bytes(piece.pointer, 0, piece.length) }
        }
    }

    /// One `preadv` at `offset`: the bytes read, 0 at the end of the file.
    pub fn read_some(&self, file: BorrowedFd<'_>, offset: u64) -> io::Result<u64> {
        let (pointer, count) = self.pieces();
        // SAFETY: valid memory by the invariant; the layout is that of iovec.
        let result = unsafe {
            libc::preadv(
                file.as_raw_fd(),
                pointer.cast(),
                count,
                offset.cast_signed(),
            )
        };
        u64::try_from(result).map_err(|_| io::Error::last_os_error())
    }

    /// The pieces that one call takes, as an `iovec` array and its length.
    pub fn pieces(&self) -> (*const RawBuffer, i32) {
        let count = self.pieces.len().min(MOST_PIECES);
        (self.pieces.as_ptr(), count as i32)
    }
}

/// A [`Scatter`] to read from only.
#[derive(Debug)]
pub(crate) struct Source<'a>(Scatter<'a>);

impl Source<'_> {
    /// Bytes.
    pub fn length(&self) -> u64 {
        self.0.length
    }

    /// See [`Scatter::part`].
    pub fn part(&self, start: u64, length: u64) -> Self {
        Self(self.0.part(start, length))
    }

    /// A copy of it all.
    pub fn copy_to(&self, bytes: &mut [u8]) {
        let mut rest = bytes;
        for piece in &self.0.pieces {
            let (now, later) = rest.split_at_mut(piece.length.min(rest.len()));
            // SAFETY: valid memory by the invariant of `Scatter`.
            unsafe { std::ptr::copy_nonoverlapping(piece.pointer, now.as_mut_ptr(), now.len()) }
            rest = later;
        }
    }

    /// One `pwritev` at `offset`: the bytes written.
    pub fn write_some(&self, file: BorrowedFd<'_>, offset: u64) -> io::Result<u64> {
        let (pointer, count) = self.0.pieces();
        // SAFETY: valid memory by the invariant; the layout is that of iovec.
        let result = unsafe {
            libc::pwritev(
                file.as_raw_fd(),
                pointer.cast(),
                count,
                offset.cast_signed(),
            )
        };
        u64::try_from(result).map_err(|_| io::Error::last_os_error())
    }
}
