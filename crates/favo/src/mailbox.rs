//! What can happen while a machine runs, in one place to wait for.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use favo_sandbox::violation;
use favo_thread::{ThreadKind, spawn};
use favo_vmm::outcome::Outcome;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGWINCH};

use crate::{exit, terminal};

/// How long stopping may take before the program simply ends. A machine has
/// nothing outside its process but nameless files, so nothing stays behind.
const PATIENCE: Duration = Duration::from_secs(15);

/// Something the user, the guest or the host did.
#[derive(Debug)]
pub enum Event {
    /// A signal arrived: SIGINT, SIGTERM, SIGHUP or SIGWINCH.
    Signal(i32),
    /// The machine came to its end.
    Ended(Outcome),
    /// The guest's agent connected.
    Agent(UnixStream),
}

enum Item {
    Event(Event),
    /// What the thread that takes events is to do, because no other may.
    Task(Box<dyn FnOnce() + Send>),
}

/// Events in the order they happened.
pub struct Mailbox {
    items: Mutex<VecDeque<Item>>,
    wake: UnixStream,
    woken: UnixStream,
}

impl Mailbox {
    /// An empty one, which signals go to from now on.
    pub fn with_signals() -> io::Result<Arc<Self>> {
        let (wake, woken) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        woken.set_nonblocking(true)?;
        let mailbox = Arc::new(Self {
            items: Mutex::default(),
            wake,
            woken,
        });
        let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP, SIGWINCH])?;
        let receiver = mailbox.clone();
        spawn(ThreadKind::Signals, "signals", move || {
            let mut interrupts = 0;
            for signal in signals.forever() {
                interrupts += u32::from(signal == SIGINT);
                if matches!(signal, SIGTERM | SIGHUP) || interrupts == 2 {
                    end_in_time(signal);
                }
                receiver.push(Event::Signal(signal));
            }
        })?;
        violation::watch(mailbox.wake.try_clone()?.into(), terminal::restore);
        Ok(mailbox)
    }

    /// Has the thread that takes events do something, which is the main one,
    /// and waits for the result; None if it is gone.
    pub fn on_main<R: Send + 'static>(
        &self,
        function: impl FnOnce() -> R + Send + 'static,
    ) -> Option<R> {
        let (reply, result) = channel();
        self.add(Item::Task(Box::new(move || {
            let _ = reply.send(function());
        })));
        result.recv().ok()
    }

    /// Adds an event.
    pub fn push(&self, event: Event) {
        self.add(Item::Event(event));
    }

    fn add(&self, item: Item) {
        self.lock().push_back(item);
        // A full socket is readable, which is all it is for.
        let _ = (&self.wake).write(&[1]);
    }

    /// The oldest event.
    pub fn take(&self) -> Option<Event> {
        let mut drained = [0; 64];
        while matches!((&self.woken).read(&mut drained), Ok(count) if count > 0) {}
        if violation::happened() {
            terminal::restore();
            std::process::exit(exit::SANDBOX.into());
        }
        let mut items = self.lock();
        let item = items.pop_front();
        if !items.is_empty() {
            let _ = (&self.wake).write(&[1]);
        }
        drop(items);
        match item? {
            Item::Event(event) => Some(event),
            Item::Task(task) => {
                task();
                None
            }
        }
    }

    /// The oldest event, waited for until `deadline`.
    pub fn wait(&self, deadline: Option<Instant>) -> Option<Event> {
        loop {
            if let Some(event) = self.take() {
                return Some(event);
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return None;
            }
            let timeout = left.and_then(|left| Timespec::try_from(left).ok());
            let mut fds = [PollFd::new(&self.woken, PollFlags::IN)];
            match poll(&mut fds, timeout.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => {
                    tracing::error!(%error, "waiting for events");
                    return None;
                }
            }
        }
    }

    /// Readable when there is an event.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.woken.as_fd()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<Item>> {
        self.items.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends the program if it does not end by itself: something may block it, for
/// instance a reader of its output that does not read.
fn end_in_time(signal: i32) {
    let started = spawn(ThreadKind::Timer, "timer", move || {
        std::thread::sleep(PATIENCE);
        terminal::restore();
        std::process::exit(128 + signal);
    });
    if let Err(error) = started {
        tracing::warn!(%error, "nobody ends favo if the machine does not stop");
    }
}
