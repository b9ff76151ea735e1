//! Reads and writes between host descriptors and guest RAM without a copy.
//!
//! The one place where a device hands guest memory to the kernel by address.
//! The guest may change the bytes at any moment, so they are never seen as
//! Rust slices.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use favo_accel::GuestMemory;

use super::queue::Segment;

/// The most buffers one call passes to the kernel; what lies beyond is left
/// for the next call.
const MAX_IOVECS: usize = 64;

/// Receives from a socket into guest memory, without blocking. 0 means that
/// the other end sends nothing more, or that `segments` is empty.
pub fn receive(
    socket: impl AsFd,
    memory: &GuestMemory,
    segments: impl Iterator<Item = Segment>,
) -> io::Result<usize> {
    let mut list = IoList::new(memory, segments);
    if list.count == 0 {
        return Ok(0);
    }
    let mut message = list.message();
    // SAFETY: every iovec covers RAM that `memory`, which is borrowed for the
    // whole call, keeps mapped; the kernel writes there as the guest could.
    let result =
        unsafe { libc::recvmsg(socket.as_fd().as_raw_fd(), &mut message, libc::MSG_DONTWAIT) };
    let received = usize::try_from(result).map_err(|_| io::Error::last_os_error())?;
    let mut left = received as u64;
    for segment in &list.segments[..list.count] {
        let here = left.min(segment.length.into());
        if here == 0 {
            break;
        }
        memory.mark_written(segment.address, here);
        left -= here;
    }
    Ok(received)
}

/// Sends guest memory to a socket, without blocking and without SIGPIPE.
pub fn send(
    socket: impl AsFd,
    memory: &GuestMemory,
    segments: impl Iterator<Item = Segment>,
) -> io::Result<usize> {
    let mut list = IoList::new(memory, segments);
    if list.count == 0 {
        return Ok(0);
    }
    let message = list.message();
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: as in `receive`; the kernel only reads.
    let result = unsafe { libc::sendmsg(socket.as_fd().as_raw_fd(), &message, flags) };
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

struct IoList {
    iovecs: [libc::iovec; MAX_IOVECS],
    segments: [Segment; MAX_IOVECS],
    count: usize,
}

impl IoList {
    fn new(memory: &GuestMemory, segments: impl Iterator<Item = Segment>) -> Self {
        let empty = Segment {
            address: favo_types::GuestAddress(0),
            length: 0,
        };
        let mut list = Self {
            iovecs: [libc::iovec {
                iov_base: std::ptr::null_mut(),
                iov_len: 0,
            }; MAX_IOVECS],
            segments: [empty; MAX_IOVECS],
            count: 0,
        };
        for segment in segments.take(MAX_IOVECS) {
            let Some((region, offset)) = memory.find(segment.address, segment.length.into()) else {
                break;
            };
            list.iovecs[list.count] = libc::iovec {
                iov_base: region.host_address.0.wrapping_add(offset as usize).cast(),
                iov_len: segment.length as usize,
            };
            list.segments[list.count] = segment;
            list.count += 1;
        }
        list
    }

    fn message(&mut self) -> libc::msghdr {
        // SAFETY: a msghdr of zeroes is valid: no name, no buffers, no control.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = self.iovecs.as_mut_ptr();
        message.msg_iovlen = self.count;
        message
    }
}
