//! The host's ends of a machine's serial port, and the threads between.
//!
//! Bytes go through as they are. The output thread writes what the guest says;
//! the input thread offers the guest what the host has. Both end when the
//! machine does, whatever the other side of a descriptor does or doesn't do.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use favo_devices::serial::SerialPort;
use favo_devices::virtio::event::EventFd;
use favo_thread::{ThreadKind, spawn};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// How long a reader of the guest's output is waited for once the machine is
/// to stop.
const GRACE: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};
/// What a pipe that is writable takes without blocking (pipe(7), PIPE_BUF).
const PIPE_BUF: usize = 4096;

/// Where a machine's serial port leads.
pub struct SerialIo {
    /// Bytes for the guest. Without it the guest hears nothing.
    pub input: Option<SerialInput>,
    /// Where the guest's bytes go.
    pub output: SerialOutput,
}

/// Bytes for the guest.
pub struct SerialInput {
    /// Where they come from; its end is not the machine's end.
    pub fd: OwnedFd,
    /// A byte that stops the machine instead of reaching the guest.
    pub escape: Option<u8>,
}

/// Where the guest's bytes go.
pub enum SerialOutput {
    /// To a descriptor, each byte.
    Fd(OwnedFd),
    /// To a tail kept in memory.
    Tail(ConsoleTail),
}

/// The last bytes of a console, for error messages. Clones share them.
#[derive(Clone, Default)]
pub struct ConsoleTail(Arc<Mutex<Vec<u8>>>);

impl ConsoleTail {
    /// How many bytes are kept at least, once there were as many.
    const KEPT: usize = 64 << 10;

    /// The last `lines` lines, control characters left out.
    pub fn lines(&self, lines: usize) -> String {
        let bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let text = String::from_utf8_lossy(&bytes);
        let clean: String = text
            .chars()
            .filter(|c| *c == '\n' || *c == '\t' || !c.is_control())
            .collect();
        let all: Vec<&str> = clean.trim_end().lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }
}

impl Write for ConsoleTail {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend_from_slice(bytes);
        if kept.len() > 2 * Self::KEPT {
            let surplus = kept.len() - Self::KEPT;
            kept.drain(..surplus);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The threads. Dropping ends them; what the guest said before is written.
pub struct SerialThreads {
    port: Arc<SerialPort>,
    stop: Arc<EventFd>,
    threads: Vec<JoinHandle<()>>,
}

impl SerialThreads {
    /// Starts them. `stop` becomes readable when somebody wants the machine
    /// stopped; `escaped` is called when the escape byte was read.
    pub fn start(
        port: Arc<SerialPort>,
        io: SerialIo,
        stop: Arc<EventFd>,
        escaped: impl Fn() + Send + 'static,
    ) -> io::Result<Self> {
        let mut threads = Self {
            port: port.clone(),
            stop: Arc::new(EventFd::new()?),
            threads: Vec::new(),
        };
        let writer: Box<dyn Write + Send> = match io.output {
            SerialOutput::Fd(fd) => Box::new(Unstuck { fd, stop }),
            SerialOutput::Tail(tail) => Box::new(tail),
        };
        threads.spawn("serial-out", {
            let port = port.clone();
            move || write_output(&port, writer)
        })?;
        if let Some(input) = io.input {
            let ended = threads.stop.clone();
            threads.spawn("serial-in", move || {
                if let Err(error) = read_input(&port, &input, &ended, escaped) {
                    tracing::warn!(%error, "reading input for the serial console");
                }
            })?;
        }
        Ok(threads)
    }

    fn spawn(&mut self, name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let thread = spawn(ThreadKind::Serial, name, body)?;
        self.threads.push(thread);
        Ok(())
    }
}

impl Drop for SerialThreads {
    fn drop(&mut self) {
        self.port.close();
        self.stop.signal();
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so.
            let _ = thread.join();
        }
    }
}

fn write_output(port: &SerialPort, mut writer: Box<dyn Write + Send>) {
    match port.pump_output(writer.as_mut()) {
        Ok(()) => {}
        Err(error) => {
            // The reader went away: `favo run … | head`. The guest goes on.
            if error.kind() != io::ErrorKind::BrokenPipe {
                tracing::warn!(%error, "writing the serial console's output");
            }
            // Nothing that is written from here on finds a reader.
            let _ = port.pump_output(&mut io::sink());
        }
    }
}

fn read_input(
    port: &SerialPort,
    input: &SerialInput,
    ended: &EventFd,
    escaped: impl Fn(),
) -> io::Result<()> {
    let mut buffer = [0; 1024];
    loop {
        let ready = wait(&[
            (input.fd.as_fd(), PollFlags::IN),
            (ended.as_fd(), PollFlags::IN),
        ])?;
        if ready[1] {
            return Ok(());
        }
        let count = match rustix::io::read(&input.fd, &mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(Errno::AGAIN | Errno::INTR) => continue,
            // A terminal that was closed.
            Err(Errno::IO) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let bytes = &buffer[..count];
        let escape = input
            .escape
            .and_then(|escape| bytes.iter().position(|byte| *byte == escape));
        if !push(port, &bytes[..escape.unwrap_or(count)], ended) {
            return Ok(());
        }
        if escape.is_some() {
            escaped();
            return Ok(());
        }
    }
}

/// Gives all of `bytes` to the guest; false if the machine ended meanwhile.
fn push(port: &SerialPort, mut bytes: &[u8], ended: &EventFd) -> bool {
    while !bytes.is_empty() {
        let taken = port.push_input(bytes);
        bytes = &bytes[taken..];
        if taken == 0 {
            port.wait_input_room(Duration::from_millis(200));
            let ended = wait_for(
                &[(ended.as_fd(), PollFlags::IN)],
                Some(&Timespec::default()),
            );
            if !matches!(ended.as_deref(), Ok([false])) {
                return false;
            }
        }
    }
    true
}

/// Writes to a descriptor that may block for ever, until a stop is wanted.
struct Unstuck {
    fd: OwnedFd,
    stop: Arc<EventFd>,
}

impl Write for Unstuck {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = &bytes[..bytes.len().min(PIPE_BUF)];
        loop {
            let mut ready = wait(&[
                (self.fd.as_fd(), PollFlags::OUT),
                (self.stop.as_fd(), PollFlags::IN),
            ])?;
            if !ready[0] {
                ready = wait_for(&[(self.fd.as_fd(), PollFlags::OUT)], Some(&GRACE))?;
                if !ready[0] {
                    return Err(io::ErrorKind::TimedOut.into());
                }
            }
            match rustix::io::write(&self.fd, piece) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                result => return Ok(result?),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn wait(wanted: &[(BorrowedFd<'_>, PollFlags)]) -> io::Result<Vec<bool>> {
    wait_for(wanted, None)
}

/// Which of the descriptors are ready, have an error or were closed.
fn wait_for(
    wanted: &[(BorrowedFd<'_>, PollFlags)],
    timeout: Option<&Timespec>,
) -> io::Result<Vec<bool>> {
    let mut fds: Vec<_> = wanted
        .iter()
        .map(|(fd, flags)| PollFd::from_borrowed_fd(*fd, *flags))
        .collect();
    loop {
        match poll(&mut fds, timeout) {
            Ok(_) => return Ok(fds.iter().map(|fd| !fd.revents().is_empty()).collect()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
#[path = "serial_io_test.rs"]
mod test;
