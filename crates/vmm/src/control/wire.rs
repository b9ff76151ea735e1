//! Lines with descriptors, over a Unix socket.

use std::io::{self, IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

/// The most descriptors that go with a line (Linux, `SCM_MAX_FD`).
pub const MOST_DESCRIPTORS: usize = 253;

/// One end of a connection. Descriptors travel with the line they are sent
/// with.
pub struct Wire {
    stream: UnixStream,
    /// What was received behind the last line that was returned.
    received: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

/// A line with its line feed, and what came with it.
pub struct Line {
    pub bytes: Vec<u8>,
    pub descriptors: Vec<OwnedFd>,
}

impl Wire {
    pub fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            received: Vec::new(),
            descriptors: Vec::new(),
        }
    }

    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// The next line; `None` at the end.
    ///
    /// # Errors
    ///
    /// `InvalidData` for one longer than `most` bytes, or without an end.
    pub fn read(&mut self, most: usize) -> io::Result<Option<Line>> {
        let mut buffer = [0; 16 << 10];
        let mut searched = 0;
        loop {
            let rest = &self.received[searched..];
            if let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let behind = self.received.split_off(searched + end + 1);
                return Ok(Some(Line {
                    bytes: std::mem::replace(&mut self.received, behind),
                    descriptors: std::mem::take(&mut self.descriptors),
                }));
            }
            searched = self.received.len();
            if searched > most {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let mut space =
                [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let received = rustix::net::recvmsg(
                &self.stream,
                &mut [IoSliceMut::new(&mut buffer)],
                &mut control,
                RecvFlags::CMSG_CLOEXEC,
            );
            let received = match received {
                Err(rustix::io::Errno::INTR) => continue,
                received => received?,
            };
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                    self.descriptors.extend(descriptors);
                }
            }
            if self.descriptors.len() > MOST_DESCRIPTORS {
                return Err(io::ErrorKind::InvalidData.into());
            }
            match received.bytes {
                0 if searched == 0 => return Ok(None),
                0 => return Err(io::ErrorKind::InvalidData.into()),
                count => self.received.extend(&buffer[..count]),
            }
        }
    }

    /// Sends a line, which ends with a line feed.
    pub fn write(&self, line: &[u8], descriptors: &[OwnedFd]) -> io::Result<()> {
        let mut sent = 0;
        if !descriptors.is_empty() {
            let descriptors: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
            let mut space =
                [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    format!("{} descriptors are too many", descriptors.len()),
                ));
            }
            let line = [IoSlice::new(line)];
            sent = rustix::net::sendmsg(&self.stream, &line, &mut control, SendFlags::NOSIGNAL)?;
        }
        (&self.stream).write_all(&line[sent..])
    }
}
