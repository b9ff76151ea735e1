//! A command in the guest: its standard streams joined to ours.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};

use favo_agent::client::{Control, ExecIo, ExecOutcome, Input, OutputStream, ProcessIo};
use favo_agent::{AgentClient, ClientError, Exec};

use super::Event;
use crate::exit;
use crate::terminal::{ESCAPE, RawMode, window_size};

/// How a session came to its end.
pub(super) enum SessionEnd {
    /// The command is done; its status as a shell reports it.
    Exited(u8),
    /// The user typed the escape key.
    Left,
    /// It could not be run, or the connection broke.
    Failed { status: u8, message: String },
}

/// A running session, for the thread that watches it.
pub(super) struct Session {
    controls: Arc<Mutex<VecDeque<Control>>>,
    wake: UnixStream,
}

impl Session {
    /// Starts the command, an empty one is a login shell, on a thread of its
    /// own. The terminal, if there is one, is in raw mode while the second
    /// value lives.
    pub(super) fn start(
        stream: UnixStream,
        command: &[OsString],
        events: Sender<Event>,
    ) -> io::Result<(Self, Option<RawMode>)> {
        let terminal = io::stdin().is_terminal() && io::stdout().is_terminal();
        let exec = Exec {
            argv: command.iter().cloned().map(Into::into).collect(),
            env: std::env::var("TERM").ok().map(|term| format!("TERM={term}").into()).into_iter().collect(),
            cwd: None,
            tty: if terminal { window_size() } else { None },
        };
        let (wake, woken) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        woken.set_nonblocking(true)?;
        let controls = Arc::new(Mutex::new(VecDeque::new()));
        let raw = if exec.tty.is_some() { RawMode::enter()? } else { None };
        let mut io = SessionIo {
            controls: controls.clone(),
            woken,
            escape: raw.is_some(),
            process: ProcessIo,
        };
        std::thread::Builder::new().name("session".into()).spawn(move || {
            let end = serve(stream, &exec, &mut io);
            // Nobody listens any more if the machine was stopped.
            let _ = events.send(Event::Session(end));
        })?;
        Ok((Self { controls, wake }, raw))
    }

    /// The terminal has another size.
    pub(super) fn resize(&self) {
        if let Some(size) = window_size() {
            self.control(Control::Resize(size));
        }
    }

    /// Sends the command a signal.
    pub(super) fn signal(&self, signal: i32) {
        self.control(Control::Signal(signal));
    }

    fn control(&self, control: Control) {
        self.controls.lock().unwrap_or_else(PoisonError::into_inner).push_back(control);
        // A full socket wakes as well.
        let _ = (&self.wake).write(&[0]);
    }
}

fn serve(stream: UnixStream, exec: &Exec, io: &mut SessionIo) -> SessionEnd {
    let failed = |error: ClientError| match error {
        ClientError::ExecFailed { status, message } => SessionEnd::Failed { status, message },
        other => SessionEnd::Failed { status: exit::RUN_FAILED, message: other.to_string() },
    };
    let mut client = match AgentClient::connect(stream) {
        Ok(client) => client,
        Err(error) => return failed(error),
    };
    let end = match client.exec(exec, io) {
        Ok(ExecOutcome::Exited(exit)) => SessionEnd::Exited(exit.shell_status()),
        Ok(ExecOutcome::Left) => return SessionEnd::Left,
        Err(error) => failed(error),
    };
    // A guest that does not hear this is stopped.
    if let Err(error) = client.power_off() {
        tracing::debug!(%error, "asking the guest to power off");
    }
    end
}

/// Our ends of the command's streams.
struct SessionIo {
    controls: Arc<Mutex<VecDeque<Control>>>,
    woken: UnixStream,
    /// On a terminal, the escape key leaves.
    escape: bool,
    process: ProcessIo,
}

impl ExecIo for SessionIo {
    fn input_fd(&self) -> Option<BorrowedFd<'_>> {
        self.process.input_fd()
    }

    fn read_input(&mut self, buffer: &mut [u8]) -> io::Result<Input> {
        let input = self.process.read_input(buffer)?;
        match input {
            Input::Bytes(count) if self.escape && buffer[..count].contains(&ESCAPE) => {
                Ok(Input::Leave)
            }
            other => Ok(other),
        }
    }

    fn control_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.woken.as_fd())
    }

    fn take_control(&mut self) -> io::Result<Option<Control>> {
        let mut controls = self.controls.lock().unwrap_or_else(PoisonError::into_inner);
        let next = controls.pop_front();
        if controls.is_empty() {
            let mut drained = [0; 64];
            while matches!(self.woken.read(&mut drained), Ok(count) if count > 0) {}
        }
        Ok(next)
    }

    fn write_output(&mut self, stream: OutputStream, bytes: &[u8]) -> io::Result<()> {
        self.process.write_output(stream, bytes)
    }
}
