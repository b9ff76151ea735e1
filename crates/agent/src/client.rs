//! The host's side of a connection: runs commands in the guest.
//!
//! Called by whoever holds the stream the agent's connection ends in (the Unix socket behind
//! virtio-vsock or virtio-console). Blocking, one thread: writing cannot deadlock, because the
//! agent always takes what its window allows, and reading waits together with the input and
//! the control descriptor of [`ExecIo`].

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::frame::{FrameDecoder, FrameError, encode};
use crate::protocol::{
    CHUNK, Event, Exec, Exit, MAGIC, PROTOCOL_VERSION, Request, STDIN_WINDOW, WindowSize,
};

/// Why a command could not be run to its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// Reading or writing the connection failed.
    #[error("connection to the guest's agent: {0}")]
    Connection(#[source] io::Error),
    /// The agent closed the connection: the guest went down, or its agent did.
    #[error("the guest's agent closed the connection {during}")]
    Closed {
        /// What was going on.
        during: &'static str,
    },
    /// Who answered is not favo's agent, or one of another version.
    #[error("the guest did not greet as favo's agent of protocol {PROTOCOL_VERSION}: {got}")]
    Greeting {
        /// What it said instead.
        got: String,
    },
    /// The agent sent something that is not this protocol.
    #[error("the guest's agent sent {0}")]
    Frame(#[from] FrameError),
    /// The agent sent a message that has no place here.
    #[error("the guest's agent broke the protocol: {0}")]
    Protocol(String),
    /// The command line does not fit a message.
    #[error("the command and its environment are too long for the guest's agent: {0}")]
    TooLong(#[source] FrameError),
    /// The command could not be started.
    #[error("{message}")]
    ExecFailed {
        /// What a shell would return: 127 not found, 126 cannot be executed.
        status: u8,
        /// What failed, on what, and why.
        message: String,
    },
    /// The caller's own input or output failed.
    #[error("{what}: {source}")]
    Io {
        /// Which: standard input or output.
        what: &'static str,
        /// How.
        #[source]
        source: io::Error,
    },
}

/// How [`AgentClient::exec`] came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExecOutcome {
    /// The command ended.
    Exited(Exit),
    /// [`ExecIo`] said to leave; the command may still run, and the connection is in use by it.
    Left,
}

/// What [`ExecIo::read_input`] got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// So many bytes are in the buffer. Zero: none for now.
    Bytes(usize),
    /// There will be no more.
    End,
    /// The user typed the escape key: leave.
    Leave,
}

/// Something for the command that is not input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// The terminal has a new size.
    Resize(WindowSize),
    /// Send the command this signal.
    Signal(i32),
    /// Leave.
    Leave,
}

/// Which output bytes belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputStream {
    /// Standard output, or the terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

/// The caller's ends of a command's standard input and output.
pub trait ExecIo {
    /// Readable when [`ExecIo::read_input`] has something. `None`: there is no input.
    fn input_fd(&self) -> Option<BorrowedFd<'_>>;
    /// Reads input; called when the descriptor is readable.
    fn read_input(&mut self, buffer: &mut [u8]) -> io::Result<Input>;
    /// Readable when [`ExecIo::take_control`] has something, for example the read end of a
    /// pipe a signal handler writes to. `None`: there is no control.
    fn control_fd(&self) -> Option<BorrowedFd<'_>>;
    /// What to do, one at a time; `None` when all is taken, the descriptor then drained.
    fn take_control(&mut self) -> io::Result<Option<Control>>;
    /// Takes output. All of it, blocking as long as it must: that is the flow control.
    fn write_output(&mut self, stream: OutputStream, bytes: &[u8]) -> io::Result<()>;
}

/// This process's own standard input, output and error, without control.
#[derive(Debug, Default)]
pub struct ProcessIo;

impl ExecIo for ProcessIo {
    fn input_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(rustix::stdio::stdin())
    }

    fn read_input(&mut self, buffer: &mut [u8]) -> io::Result<Input> {
        match rustix::io::read(rustix::stdio::stdin(), buffer) {
            Ok(0) => Ok(Input::End),
            Ok(count) => Ok(Input::Bytes(count)),
            Err(Errno::AGAIN | Errno::INTR) => Ok(Input::Bytes(0)),
            Err(e) => Err(e.into()),
        }
    }

    fn control_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn take_control(&mut self) -> io::Result<Option<Control>> {
        Ok(None)
    }

    fn write_output(&mut self, stream: OutputStream, bytes: &[u8]) -> io::Result<()> {
        match stream {
            OutputStream::Stdout => {
                let mut stdout = io::stdout().lock();
                stdout.write_all(bytes)?;
                stdout.flush()
            }
            OutputStream::Stderr => io::stderr().lock().write_all(bytes),
        }
    }
}

/// A connection to the agent of one guest.
#[derive(Debug)]
pub struct AgentClient<S> {
    stream: S,
    decoder: FrameDecoder,
}

impl<S: Read + Write + AsFd> AgentClient<S> {
    /// Greets the agent at the other end of `stream`, which must be blocking. Waits for its
    /// greeting as long as the stream's read timeout allows.
    pub fn connect(stream: S) -> Result<Self, ClientError> {
        let mut client = Self {
            stream,
            decoder: FrameDecoder::default(),
        };
        match client.receive("before its greeting")? {
            Event::Hello {
                magic: MAGIC,
                version: PROTOCOL_VERSION,
            } => {}
            other => {
                return Err(ClientError::Greeting {
                    got: format!("{other:?}"),
                });
            }
        }
        client.send(&Request::Hello {
            magic: MAGIC,
            version: PROTOCOL_VERSION,
        })?;
        Ok(client)
    }

    /// The stream, for example to shut it down from another thread's clone.
    pub fn stream(&self) -> &S {
        &self.stream
    }

    /// Runs a command to its end, its input and output joined to `io`.
    pub fn exec(&mut self, exec: &Exec, io: &mut dyn ExecIo) -> Result<ExecOutcome, ClientError> {
        let mut frame = Vec::new();
        encode(&Request::Exec(exec.clone()), &mut frame).map_err(ClientError::TooLong)?;
        self.write(&frame)?;
        let mut window = STDIN_WINDOW;
        let mut input_open = true;
        loop {
            let ready = self.wait(io, input_open && window > 0)?;
            if ready.control {
                while let Some(control) = io.take_control().map_err(|source| ClientError::Io {
                    what: "control",
                    source,
                })? {
                    match control {
                        Control::Resize(size) => self.send(&Request::Resize(size))?,
                        Control::Signal(signal) => self.send(&Request::Signal(signal))?,
                        Control::Leave => return Ok(ExecOutcome::Left),
                    }
                }
            }
            if ready.connection
                && let Some(exit) = self.take_events(io, &mut window)?
            {
                return Ok(ExecOutcome::Exited(exit));
            }
            if ready.input {
                match self.pass_input(io, &mut window)? {
                    Input::Bytes(_) => {}
                    Input::End => input_open = false,
                    Input::Leave => return Ok(ExecOutcome::Left),
                }
            }
        }
    }

    /// Asks the agent to stop everything, flush the disks and power the machine off; returns
    /// when the agent has said that it does.
    pub fn power_off(&mut self) -> Result<(), ClientError> {
        self.send(&Request::PowerOff)?;
        loop {
            match self.receive("before it powered off") {
                Ok(Event::PoweringOff) => return Ok(()),
                // The tail of a command that was left.
                Ok(_) => {}
                Err(e) => return Err(e),
            }
        }
    }

    fn pass_input(
        &mut self,
        io: &mut dyn ExecIo,
        window: &mut usize,
    ) -> Result<Input, ClientError> {
        let mut buffer = [0; CHUNK];
        let room = (*window).min(CHUNK);
        let input = io
            .read_input(&mut buffer[..room])
            .map_err(|source| ClientError::Io {
                what: "standard input",
                source,
            })?;
        match input {
            Input::Bytes(0) | Input::Leave => {}
            Input::Bytes(count) => {
                let count = count.min(room);
                self.send(&Request::Stdin(buffer[..count].to_vec()))?;
                *window -= count;
            }
            Input::End => self.send(&Request::StdinClosed)?,
        }
        Ok(input)
    }

    /// Reads once and handles what is complete; the exit if that was among it.
    fn take_events(
        &mut self,
        io: &mut dyn ExecIo,
        window: &mut usize,
    ) -> Result<Option<Exit>, ClientError> {
        self.read_once("while a command ran")?;
        while let Some(event) = self.decoder.next_message()? {
            let (stream, bytes) = match event {
                Event::Stdout(bytes) => (OutputStream::Stdout, bytes),
                Event::Stderr(bytes) => (OutputStream::Stderr, bytes),
                Event::StdinConsumed(count) => {
                    // A guest may lie; it gains nothing beyond the window.
                    *window = window.saturating_add(count as usize).min(STDIN_WINDOW);
                    continue;
                }
                Event::Exited(exit) => return Ok(Some(exit)),
                Event::ExecFailed { status, message } => {
                    return Err(ClientError::ExecFailed { status, message });
                }
                Event::Refused { message } => return Err(ClientError::Protocol(message)),
                Event::PoweringOff => {
                    return Err(ClientError::Closed {
                        during: "to power off while a command ran",
                    });
                }
                Event::Hello { .. } => {
                    return Err(ClientError::Protocol("a second greeting".into()));
                }
            };
            io.write_output(stream, &bytes)
                .map_err(|source| ClientError::Io {
                    what: "standard output",
                    source,
                })?;
        }
        Ok(None)
    }

    fn wait(&self, io: &dyn ExecIo, want_input: bool) -> Result<Ready, ClientError> {
        let input = io.input_fd().filter(|_| want_input);
        let control = io.control_fd();
        let mut fds = vec![PollFd::new(&self.stream, PollFlags::IN)];
        let (has_input, has_control) = (input.is_some(), control.is_some());
        for fd in [input, control].into_iter().flatten() {
            fds.push(PollFd::from_borrowed_fd(fd, PollFlags::IN));
        }
        loop {
            match poll(&mut fds, None) {
                Ok(_) => break,
                Err(Errno::INTR) => {}
                Err(e) => return Err(ClientError::Connection(e.into())),
            }
        }
        let mut rest = fds.iter().map(|fd| !fd.revents().is_empty());
        let mut next = |present: bool| present && rest.next().unwrap_or(false);
        Ok(Ready {
            connection: next(true),
            input: next(has_input),
            control: next(has_control),
        })
    }

    fn receive(&mut self, during: &'static str) -> Result<Event, ClientError> {
        loop {
            if let Some(event) = self.decoder.next_message()? {
                return Ok(event);
            }
            self.read_once(during)?;
        }
    }

    fn read_once(&mut self, during: &'static str) -> Result<(), ClientError> {
        let mut buffer = [0; 16 * 1024];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(ClientError::Closed { during }),
                Ok(count) => {
                    self.decoder.push(&buffer[..count]);
                    return Ok(());
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::ConnectionReset => {
                    return Err(ClientError::Closed { during });
                }
                Err(e) => return Err(ClientError::Connection(e)),
            }
        }
    }

    fn send(&mut self, request: &Request) -> Result<(), ClientError> {
        let mut frame = Vec::new();
        encode(request, &mut frame)?;
        self.write(&frame)
    }

    fn write(&mut self, frame: &[u8]) -> Result<(), ClientError> {
        self.stream
            .write_all(frame)
            .and_then(|()| self.stream.flush())
            .map_err(ClientError::Connection)
    }
}

/// What is ready after a wait.
struct Ready {
    connection: bool,
    input: bool,
    control: bool,
}
