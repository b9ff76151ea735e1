//! What a console port is connected to on the host.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, OFlags};
use rustix::net::{RecvFlags, SendFlags};

/// The host's end of a port. Used by the device's thread only; nothing in it
/// may block.
pub trait PortBackend: Send {
    /// Reads what is there. `WouldBlock` if nothing is, 0 at the end.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Writes what finds room. `WouldBlock` if nothing does.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize>;

    /// Becomes readable when [`PortBackend::read`] is worth a call. `None` if
    /// there is never anything to read.
    fn input(&self) -> Option<BorrowedFd<'_>>;

    /// Becomes writable when [`PortBackend::write`] is worth a call after it
    /// said `WouldBlock`. Another descriptor than the input's.
    fn output(&self) -> Option<BorrowedFd<'_>>;

    /// A program in the guest opened or closed the port.
    fn guest_open(&mut self, open: bool) {
        let _ = open;
    }
}

/// A port on file descriptors: a terminal, pipes, files, or a socket.
pub struct FdPort {
    input: Option<Channel>,
    output: Option<Channel>,
}

struct Channel {
    fd: OwnedFd,
    kind: Kind,
}

enum Kind {
    Socket,
    /// Can be read and written without blocking.
    NonBlocking,
    /// Shares its file status flags with somebody else, so it stays blocking;
    /// asked for readiness before every use.
    Shared,
}

/// Bytes written at once to a descriptor that may block: what a pipe that is
/// writable always has room for.
const PIPE_BUF: usize = 4096;

impl FdPort {
    /// Bytes for the guest come from `input`, bytes of the guest go to
    /// `output`. Without one of them that direction is silent.
    ///
    /// The file status flags of the descriptors are left alone, since others
    /// (a shell) may share them.
    pub fn new(input: Option<OwnedFd>, output: Option<OwnedFd>) -> io::Result<Self> {
        Ok(Self {
            input: input
                .map(|fd| Channel::new(fd, OFlags::RDONLY))
                .transpose()?,
            output: output
                .map(|fd| Channel::new(fd, OFlags::WRONLY))
                .transpose()?,
        })
    }

    /// Both directions over one socket or terminal.
    pub fn duplex(fd: OwnedFd) -> io::Result<Self> {
        let other = fd.try_clone()?;
        Self::new(Some(fd), Some(other))
    }
}

impl Channel {
    fn new(fd: OwnedFd, access: OFlags) -> io::Result<Self> {
        let file_type = FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode);
        let nonblocking = rustix::fs::fcntl_getfl(&fd)?.contains(OFlags::NONBLOCK);
        let kind = match file_type {
            FileType::Socket => Kind::Socket,
            FileType::RegularFile => Kind::NonBlocking,
            _ if nonblocking => Kind::NonBlocking,
            _ => match reopen(&fd, access) {
                // A description of our own, so the flag disturbs nobody.
                Ok(fd) => {
                    return Ok(Self {
                        fd,
                        kind: Kind::NonBlocking,
                    });
                }
                Err(_) => Kind::Shared,
            },
        };
        Ok(Self { fd, kind })
    }

    fn check_ready(&self, wanted: PollFlags) -> io::Result<()> {
        let mut fds = [PollFd::new(&self.fd, wanted)];
        match poll(&mut fds, Some(&Timespec::default()))? {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            _ => Ok(()),
        }
    }
}

fn reopen(fd: &OwnedFd, access: OFlags) -> io::Result<OwnedFd> {
    let write = access == OFlags::WRONLY;
    OpenOptions::new()
        .read(!write)
        .write(write)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC)
        .open(format!("/proc/self/fd/{}", fd.as_raw_fd()))
        .map(OwnedFd::from)
}

impl PortBackend for FdPort {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(channel) = &self.input else {
            return Ok(0);
        };
        Ok(match channel.kind {
            Kind::Socket => rustix::net::recv(&channel.fd, buffer, RecvFlags::DONTWAIT)?.0,
            Kind::NonBlocking => rustix::io::read(&channel.fd, buffer)?,
            Kind::Shared => {
                channel.check_ready(PollFlags::IN)?;
                rustix::io::read(&channel.fd, buffer)?
            }
        })
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(channel) = &self.output else {
            return Ok(bytes.len());
        };
        Ok(match channel.kind {
            Kind::Socket => {
                let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
                rustix::net::send(&channel.fd, bytes, flags)?
            }
            Kind::NonBlocking => rustix::io::write(&channel.fd, bytes)?,
            Kind::Shared => {
                channel.check_ready(PollFlags::OUT)?;
                rustix::io::write(&channel.fd, &bytes[..bytes.len().min(PIPE_BUF)])?
            }
        })
    }

    fn input(&self) -> Option<BorrowedFd<'_>> {
        self.input.as_ref().map(|channel| channel.fd.as_fd())
    }

    fn output(&self) -> Option<BorrowedFd<'_>> {
        self.output.as_ref().map(|channel| channel.fd.as_fd())
    }
}
