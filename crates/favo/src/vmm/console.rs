//! The console of an instance: what its guest says goes to a bounded log and
//! to everybody who is attached; what they type goes to the guest.
//!
//! One thread, which the machine's serial port talks to by a socket. All it
//! needs is open before it is confined; who attaches comes as a descriptor.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use favo_daemon::place::Place;
use favo_thread::{ThreadKind, spawn};
use favo_vmm::serial_io::{SerialInput, SerialIo, SerialOutput};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

/// The log's two files take turns: the younger one grows to this.
const LOG_BYTES: u64 = 1 << 20;
/// What somebody who attaches is shown of what was said before.
const SCROLLBACK: usize = 64 << 10;
/// More may not be attached at once.
const MOST_CLIENTS: usize = 16;
/// What was typed and the guest has not taken.
const MOST_TYPED: usize = 64 << 10;

/// Where one attaches.
#[derive(Clone)]
pub struct Console {
    arrived: Arc<Mutex<Vec<UnixStream>>>,
    wake: Arc<UnixStream>,
}

impl Console {
    /// Opens the log of an instance and starts the thread. Returns the
    /// machine's end, too.
    pub fn start(place: &Place) -> io::Result<(Self, SerialIo)> {
        let (guest, machine) = UnixStream::pair()?;
        guest.set_nonblocking(true)?;
        let (wake, woken) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        woken.set_nonblocking(true)?;
        let console = Self {
            arrived: Arc::default(),
            wake: Arc::new(wake),
        };
        let hub = Hub {
            guest,
            woken,
            arrived: console.arrived.clone(),
            clients: Vec::new(),
            typed: VecDeque::new(),
            scrollback: VecDeque::new(),
            log: Log::open(&place.console_logs())?,
        };
        spawn(ThreadKind::Serial, "serial-hub", move || {
            if let Err(error) = hub.run() {
                tracing::warn!(%error, "the console is served no longer");
            }
        })?;
        let io = SerialIo {
            input: Some(SerialInput {
                fd: machine.as_fd().try_clone_to_owned()?,
                escape: None,
            }),
            output: SerialOutput::Fd(machine.into()),
        };
        Ok((console, io))
    }

    /// A connection to the console. It begins with the end of what was said.
    pub fn attach(&self) -> io::Result<OwnedFd> {
        let (own, other) = UnixStream::pair()?;
        own.set_nonblocking(true)?;
        lock(&self.arrived).push(own);
        // A full socket is readable, which is all it is for.
        let _ = rustix::io::write(&*self.wake, &[1]);
        Ok(other.into())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Hub {
    guest: UnixStream,
    woken: UnixStream,
    arrived: Arc<Mutex<Vec<UnixStream>>>,
    clients: Vec<UnixStream>,
    typed: VecDeque<u8>,
    scrollback: VecDeque<u8>,
    log: Log,
}

impl Hub {
    /// Until the machine is gone.
    fn run(mut self) -> io::Result<()> {
        loop {
            let ready = self.wait()?;
            if ready.woken {
                self.admit();
            }
            if ready.guest && !self.hear()? {
                return Ok(());
            }
            self.listen(&ready.clients);
            self.type_on();
        }
    }

    fn wait(&self) -> io::Result<Ready> {
        let mut guest = PollFlags::IN;
        if !self.typed.is_empty() {
            guest |= PollFlags::OUT;
        }
        let mut fds = vec![
            PollFd::new(&self.guest, guest),
            PollFd::new(&self.woken, PollFlags::IN),
        ];
        // Nobody is heard while the guest has not taken what was typed.
        if self.typed.len() < MOST_TYPED {
            let clients = self.clients.iter();
            fds.extend(clients.map(|client| PollFd::new(client, PollFlags::IN)));
        }
        while let Err(error) = poll(&mut fds, None) {
            if error != Errno::INTR {
                return Err(error.into());
            }
        }
        let is_ready = |fd: &PollFd<'_>| !fd.revents().is_empty();
        Ok(Ready {
            guest: fds[0]
                .revents()
                .intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR),
            woken: is_ready(&fds[1]),
            clients: fds[2..].iter().map(is_ready).collect(),
        })
    }

    fn admit(&mut self) {
        let mut drained = [0; 64];
        let _ = rustix::io::read(&self.woken, &mut drained);
        for client in std::mem::take(&mut *lock(&self.arrived)) {
            let before: Vec<u8> = self.scrollback.iter().copied().collect();
            let room = self.clients.len() < MOST_CLIENTS;
            if room && (before.is_empty() || write_all(&client, &before)) {
                self.clients.push(client);
            }
        }
    }

    /// Passes on what the guest says; false if it is gone.
    fn hear(&mut self) -> io::Result<bool> {
        let mut buffer = [0; 4096];
        let said = match rustix::io::read(&self.guest, &mut buffer) {
            Ok(0) => return Ok(false),
            Ok(count) => &buffer[..count],
            Err(Errno::AGAIN | Errno::INTR) => return Ok(true),
            Err(error) => return Err(error.into()),
        };
        self.log.write(said);
        self.scrollback.extend(said);
        let surplus = self.scrollback.len().saturating_sub(SCROLLBACK);
        self.scrollback.drain(..surplus);
        // One who doesn't read is let go; others are not kept waiting.
        self.clients.retain(|client| write_all(client, said));
        Ok(true)
    }

    fn listen(&mut self, ready: &[bool]) {
        let mut ready = ready.iter();
        let typed = &mut self.typed;
        self.clients.retain(|client| {
            if ready.next() != Some(&true) {
                return true;
            }
            let mut buffer = [0; 1024];
            match rustix::io::read(client, &mut buffer) {
                Ok(0) => false,
                Ok(count) => {
                    typed.extend(&buffer[..count]);
                    true
                }
                Err(error) => matches!(error, Errno::AGAIN | Errno::INTR),
            }
        });
    }

    fn type_on(&mut self) {
        while !self.typed.is_empty() {
            match rustix::io::write(&self.guest, self.typed.as_slices().0) {
                Ok(count) => drop(self.typed.drain(..count)),
                Err(_) => return,
            }
        }
    }
}

struct Ready {
    guest: bool,
    woken: bool,
    clients: Vec<bool>,
}

/// Whether a socket that doesn't block took all.
fn write_all(stream: &UnixStream, bytes: &[u8]) -> bool {
    rustix::io::write(stream, bytes) == Ok(bytes.len())
}

/// Two files of which the one that was written last is the younger.
struct Log {
    files: [File; 2],
    current: usize,
    length: u64,
}

impl Log {
    fn open([first, second]: &[PathBuf; 2]) -> io::Result<Self> {
        let open = |path| File::options().create(true).append(true).open(path);
        let files = [open(first)?, open(second)?];
        let about = [files[0].metadata()?, files[1].metadata()?];
        let current = usize::from(about[1].modified()? > about[0].modified()?);
        let length = about[current].len();
        Ok(Self {
            files,
            current,
            length,
        })
    }

    /// A host whose disk is full loses the log, not the machine.
    fn write(&mut self, bytes: &[u8]) {
        if self.length + bytes.len() as u64 > LOG_BYTES {
            self.current = 1 - self.current;
            self.length = 0;
            if rustix::fs::ftruncate(&self.files[self.current], 0).is_err() {
                return;
            }
        }
        if let Ok(count) = rustix::io::write(&self.files[self.current], bytes) {
            self.length += count as u64;
        }
    }
}
