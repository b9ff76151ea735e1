//! The other end of a control socket.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use super::wire::Wire;
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
    wire: Wire,
    path: PathBuf,
}

impl Client {
    /// Connects to the socket at `path`.
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        match UnixStream::connect(path) {
            Ok(stream) => Ok(Self {
                wire: Wire::new(stream),
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
        self.ask_with(request, &[])
    }

    /// Asks, with descriptors that go along.
    pub fn ask_with(
        &mut self,
        request: &Request,
        descriptors: &[OwnedFd],
    ) -> Result<Reply, ClientError> {
        let path = self.path.clone();
        let io = |action| {
            let path = path.clone();
            move |source| ClientError::Io {
                action,
                path,
                source,
            }
        };
        let protocol = |reason: String| ClientError::Protocol {
            path: path.clone(),
            reason,
        };
        let line = RequestLine {
            version: VERSION,
            request: request.clone(),
        };
        let mut bytes = serde_json::to_vec(&line).map_err(|error| protocol(error.to_string()))?;
        bytes.push(b'\n');
        self.wire
            .write(&bytes, descriptors)
            .map_err(io("writing to"))?;
        let line = self.wire.read(MOST_BYTES).map_err(io("reading from"))?;
        let line = line.ok_or_else(|| protocol("it closed the connection".to_owned()))?;
        let descriptors = line.descriptors;
        let line: AnswerLine =
            serde_json::from_slice(&line.bytes).map_err(|error| protocol(error.to_string()))?;
        if line.version != VERSION {
            return Err(protocol(format!("it has version {}", line.version)));
        }
        match line.answer {
            AnswerBody::Ok(answer) => Ok(Reply {
                answer,
                descriptors,
            }),
            AnswerBody::Error(error) => Err(error.into()),
        }
    }
}
