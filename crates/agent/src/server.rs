//! The agent's side of a connection: runs commands for the host, one after another.
//!
//! One thread, one poll loop. What it waits for says what it may do next: the connection is
//! read while there is room for answers, a command's output is read while the connection
//! takes it. In the guest it runs as process 1 and also collects orphans; in tests it runs in
//! a thread over a Unix socket. It must never block on anything but `poll`, and never buffer
//! more than [`OUT_HIGH`] and a window of input.

mod command;

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{WaitOptions, WaitStatus, wait, waitpid};

use crate::frame::{FrameDecoder, FrameError, encode};
use crate::protocol::{CHUNK, Event, Exit, MAGIC, PROTOCOL_VERSION, Request, STDIN_WINDOW};
use command::{Command, Output};

/// Output waiting for the connection, above which nothing more is read from a command.
const OUT_HIGH: usize = 2 * CHUNK;

/// Why a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The host asked for power-off, and was told that it comes.
    PowerOff,
    /// The host closed the connection. A command that ran was sent SIGHUP.
    Disconnected,
}

/// Why serving a connection failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// A system call on the connection failed.
    #[error("connection to the host: {0}")]
    Connection(#[from] Errno),
    /// The host sent something that is not this protocol.
    #[error("the host sent {0}")]
    Frame(#[from] FrameError),
    /// The host broke a rule of the protocol.
    #[error("the host broke the protocol: {0}")]
    Protocol(&'static str),
}

/// How to serve.
#[derive(Debug, Default)]
pub struct ServeOptions {
    /// In process 1: a signalfd for SIGCHLD. Every child that ends is then collected, the
    /// command's orphans included.
    pub reap_all: Option<OwnedFd>,
}

/// Serves one host over `connection` until it asks for power-off or goes away.
pub fn serve(connection: OwnedFd, options: ServeOptions) -> Result<Outcome, ServeError> {
    rustix::io::ioctl_fionbio(&connection, true)?;
    let mut server = Server {
        connection,
        reap_all: options.reap_all,
        decoder: FrameDecoder::default(),
        out: VecDeque::new(),
        greeted: false,
        command: None,
        outcome: None,
    };
    server.send(&Event::Hello {
        magic: MAGIC,
        version: PROTOCOL_VERSION,
    })?;
    let result = server.run();
    if let Some(command) = server.command.take() {
        command.hang_up();
    }
    result
}

struct Server {
    connection: OwnedFd,
    reap_all: Option<OwnedFd>,
    decoder: FrameDecoder,
    out: VecDeque<u8>,
    greeted: bool,
    command: Option<Command>,
    /// Set when the end is decided; the loop only flushes after that.
    outcome: Option<Outcome>,
}

/// What one descriptor of the poll set stands for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    Connection,
    ChildSignal,
    ChildExit,
    Input,
    Output(Output),
}

impl Server {
    fn run(&mut self) -> Result<Outcome, ServeError> {
        loop {
            if let (Some(outcome), true) = (self.outcome, self.out.is_empty()) {
                return Ok(outcome);
            }
            for (source, ready) in self.wait()? {
                match source {
                    Source::Connection => self.on_connection(ready)?,
                    Source::ChildSignal => self.on_child_signal(),
                    Source::ChildExit => self.reap(),
                    Source::Input => self.on_input_ready(ready)?,
                    Source::Output(output) => {
                        self.on_output_ready(output)?;
                    }
                }
                if self.outcome == Some(Outcome::Disconnected) {
                    return Ok(Outcome::Disconnected);
                }
            }
            self.finish_command()?;
        }
    }

    /// Waits for something to do.
    fn wait(&self) -> Result<Vec<(Source, PollFlags)>, ServeError> {
        let mut sources = Vec::with_capacity(6);
        let mut fds = Vec::with_capacity(6);
        let mut connection = PollFlags::empty();
        if self.out.len() < OUT_HIGH {
            connection |= PollFlags::IN;
        }
        if !self.out.is_empty() {
            connection |= PollFlags::OUT;
        }
        sources.push(Source::Connection);
        fds.push(PollFd::new(&self.connection, connection));
        if let Some(fd) = &self.reap_all {
            sources.push(Source::ChildSignal);
            fds.push(PollFd::new(fd, PollFlags::IN));
        }
        if let Some(command) = &self.command {
            if command.exit.is_none() {
                sources.push(Source::ChildExit);
                fds.push(PollFd::new(&command.pidfd, PollFlags::IN));
            }
            if let Some(fd) = command.input_waiting() {
                sources.push(Source::Input);
                fds.push(PollFd::from_borrowed_fd(fd, PollFlags::OUT));
            }
            if self.out.len() < OUT_HIGH {
                for (output, fd) in command.outputs() {
                    sources.push(Source::Output(output));
                    fds.push(PollFd::from_borrowed_fd(fd, PollFlags::IN));
                }
            }
        }
        // A command that has ended only has to be drained: don't sleep over that.
        let drain = rustix::event::Timespec::default();
        let ended =
            self.command.as_ref().is_some_and(|c| c.exit.is_some()) && self.out.len() < OUT_HIGH;
        loop {
            match poll(&mut fds, ended.then_some(&drain)) {
                Ok(_) => break,
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(sources
            .into_iter()
            .zip(fds.iter().map(PollFd::revents))
            .filter(|(_, ready)| !ready.is_empty())
            .collect())
    }

    fn on_connection(&mut self, ready: PollFlags) -> Result<(), ServeError> {
        if ready.contains(PollFlags::OUT) {
            self.flush()?;
        }
        if ready.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
            let mut buffer = [0; 16 * 1024];
            match rustix::io::read(&self.connection, &mut buffer) {
                Ok(0) | Err(Errno::CONNRESET | Errno::PIPE | Errno::NOTCONN) => {
                    self.outcome = Some(Outcome::Disconnected);
                    return Ok(());
                }
                Ok(count) => self.decoder.push(&buffer[..count]),
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
            while self.outcome.is_none() {
                let Some(request) = self.decoder.next_message()? else {
                    break;
                };
                self.on_request(request)?;
            }
        }
        Ok(())
    }

    fn on_request(&mut self, request: Request) -> Result<(), ServeError> {
        if !self.greeted {
            return match request {
                Request::Hello {
                    magic: MAGIC,
                    version: PROTOCOL_VERSION,
                } => {
                    self.greeted = true;
                    Ok(())
                }
                _ => Err(ServeError::Protocol(
                    "its first message is not a greeting of this version",
                )),
            };
        }
        match request {
            Request::Hello { .. } => Err(ServeError::Protocol("a second greeting")),
            Request::Exec(_) if self.command.is_some() => self.send(&Event::Refused {
                message: "a command is already running on this connection".into(),
            }),
            Request::Exec(exec) => match Command::spawn(&exec) {
                Ok(command) => {
                    self.command = Some(command);
                    Ok(())
                }
                Err(failure) => self.send(&Event::ExecFailed {
                    status: failure.status,
                    message: failure.message,
                }),
            },
            Request::Stdin(bytes) => {
                // Input that crosses the command's end on the way is nobody's fault.
                if let Some(command) = &mut self.command {
                    if bytes.len() + command.input.len() > STDIN_WINDOW {
                        return Err(ServeError::Protocol("more input than its window"));
                    }
                    command.input.extend(bytes);
                }
                Ok(())
            }
            Request::StdinClosed => {
                if let Some(command) = &mut self.command {
                    command.end_input();
                }
                Ok(())
            }
            Request::Resize(size) => {
                if let Some(command) = &self.command {
                    command.resize(size);
                }
                Ok(())
            }
            Request::Signal(signal) => match &self.command {
                Some(command) => match command.signal(signal) {
                    Ok(()) => Ok(()),
                    Err(message) => self.send(&Event::Refused { message }),
                },
                None => Ok(()),
            },
            Request::PowerOff => {
                self.send(&Event::PoweringOff)?;
                self.outcome = Some(Outcome::PowerOff);
                Ok(())
            }
        }
    }

    fn on_child_signal(&mut self) {
        if let Some(fd) = &self.reap_all {
            // One record per signal, however many children; what matters is waitpid.
            let mut record = [0; 128];
            let _ = rustix::io::read(fd, &mut record);
        }
        self.reap();
    }

    /// Collects the command if it has ended, and in process 1 every other child.
    fn reap(&mut self) {
        let own = self.command.as_ref().map(|c| c.pid);
        loop {
            // `wait` is any child; waitpid without a pid would be this process group's only.
            let collected = match (&self.reap_all, own) {
                (Some(_), _) => wait(WaitOptions::NOHANG),
                (None, Some(pid)) => waitpid(Some(pid), WaitOptions::NOHANG),
                (None, None) => return,
            };
            let Ok(Some((pid, status))) = collected else {
                return;
            };
            if let Some(command) = &mut self.command
                && command.pid == pid
            {
                command.exit = Some(exit_of(status));
            }
        }
    }

    fn on_input_ready(&mut self, ready: PollFlags) -> Result<(), ServeError> {
        let Some(command) = &mut self.command else {
            return Ok(());
        };
        let consumed = command.feed(ready);
        if consumed > 0 {
            self.send(&Event::StdinConsumed(consumed as u32))?;
        }
        Ok(())
    }

    /// Sends on one chunk of output; says whether there was any.
    fn on_output_ready(&mut self, output: Output) -> Result<bool, ServeError> {
        let Some(bytes) = self.command.as_mut().and_then(|c| c.read(output)) else {
            return Ok(false);
        };
        self.send(&match output {
            Output::Stderr => Event::Stderr(bytes),
            Output::Stdout | Output::Terminal => Event::Stdout(bytes),
        })?;
        Ok(true)
    }

    /// Reports the command's end, once it has ended and all it wrote before is on its way.
    ///
    /// What it wrote is in the pipes or the terminal by then; what its orphans may still
    /// write later is not waited for.
    fn finish_command(&mut self) -> Result<(), ServeError> {
        while let Some(command) = &mut self.command
            && let Some(exit) = command.exit
            && self.out.len() < OUT_HIGH
        {
            let outputs: Vec<Output> = command.outputs().map(|(output, _)| output).collect();
            let mut any = false;
            for output in outputs {
                any |= self.on_output_ready(output)?;
            }
            if !any {
                self.command = None;
                self.send(&Event::Exited(exit))?;
            }
        }
        Ok(())
    }

    fn send(&mut self, event: &Event) -> Result<(), ServeError> {
        let mut frame = Vec::new();
        encode(event, &mut frame)?;
        self.out.extend(frame);
        self.flush()
    }

    /// Gives the connection what it takes now.
    fn flush(&mut self) -> Result<(), ServeError> {
        while !self.out.is_empty() {
            match rustix::io::write(self.connection.as_fd(), self.out.as_slices().0) {
                Ok(count) => {
                    self.out.drain(..count);
                }
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN) => {
                    self.out.clear();
                    self.outcome = Some(Outcome::Disconnected);
                }
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }
}

fn exit_of(status: WaitStatus) -> Exit {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => Exit::Code(code as u8),
        (None, Some(signal)) => Exit::Signal(signal as u8),
        // Neither: stopped or continued, which waitpid reports only on request.
        (None, None) => Exit::Code(255),
    }
}

#[cfg(test)]
#[path = "server_test.rs"]
mod test;
