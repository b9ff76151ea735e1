//! The other end of a control socket.

use std::io::{self, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

use super::{
    AnswerBody, AnswerLine, ControlError, MOST_BYTES, Reply, Request, RequestLine, VERSION,
};

/// Why a VM process can't be asked, or did not do it.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// It can't be reached.
    #[error("{action} the control socket {}: {source}", .path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// The socket.
        path: PathBuf,
        /// The host's answer.
        source: io::Error,
    },
    /// What it said is no answer.
    #[error("the process behind {} says what is no answer: {reason}", .path.display())]
    Protocol {
        /// The socket.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// It refused.
    #[error(transparent)]
    Refused(#[from] ControlError),
}

/// A connection to a VM process.
pub struct Client {
    stream: UnixStream,
    path: PathBuf,
}

impl Client {
    /// Connects to the socket at `path`.
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        match UnixStream::connect(path) {
            Ok(stream) => Ok(Self {
                stream,
                path: path.to_owned(),
            }),
            Err(source) => Err(ClientError::Io {
                action: "connecting to",
                path: path.to_owned(),
                source,
            }),
        }
    }

    /// Asks, and waits until it is done.
    pub fn ask(&mut self, request: &Request) -> Result<Reply, ClientError> {
        let io = |action| {
            let path = self.path.clone();
            move |source| ClientError::Io {
                action,
                path,
                source,
            }
        };
        let protocol = |reason: String| ClientError::Protocol {
            path: self.path.clone(),
            reason,
        };
        let line = RequestLine {
            version: VERSION,
            request: request.clone(),
        };
        let mut bytes = serde_json::to_vec(&line).map_err(|error| protocol(error.to_string()))?;
        bytes.push(b'\n');
        (&self.stream).write_all(&bytes).map_err(io("writing to"))?;
        let (line, descriptor) = receive(&self.stream).map_err(io("reading from"))?;
        let line: AnswerLine =
            serde_json::from_slice(&line).map_err(|error| protocol(error.to_string()))?;
        if line.version != VERSION {
            return Err(protocol(format!("it has version {}", line.version)));
        }
        match line.answer {
            AnswerBody::Ok(answer) => Ok(Reply { answer, descriptor }),
            AnswerBody::Error(error) => Err(error.into()),
        }
    }
}

/// One line, and the descriptor that came with it.
fn receive(stream: &UnixStream) -> io::Result<(Vec<u8>, Option<OwnedFd>)> {
    let mut line = Vec::new();
    let mut descriptor = None;
    let mut buffer = [0; 4096];
    while line.last() != Some(&b'\n') {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = rustix::net::recvmsg(
            stream,
            &mut [IoSliceMut::new(&mut buffer)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(mut fds) = message {
                descriptor = fds.next().or(descriptor);
            }
        }
        if received.bytes == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        line.extend(&buffer[..received.bytes]);
        if line.len() as u64 > MOST_BYTES {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
    Ok((line, descriptor))
}
