//! What the threads of a machine's process are for, and how they are started.
//!
//! Every crate that runs a thread while a guest runs starts it with [`spawn`],
//! which says what it is for. So the sandbox (`favo-sandbox`, of which the
//! crates here know nothing) can confine it before it runs anything of its
//! own.
//!
//! A thread that is confined itself can't make threads; the *launcher*
//! makes them for it: a thread that does nothing else, and knows no guest. So
//! what it starts is confined twice, by the launcher's list and its own.
//!
//! Without a sandbox (`--sandbox off`, tests, other programs) all of this is
//! [`std::thread`].
#![forbid(unsafe_code)]

use std::cell::Cell;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel};
use std::thread::{Builder, JoinHandle};

/// What a thread is for, which says what it may call.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum ThreadKind {
    /// The program's first: waits for the end, relays a command's streams.
    Main,
    /// Waits for signals.
    Signals,
    /// Starts threads for the others, and opens queues of disks.
    Launcher,
    /// Ends a program that does not end.
    Timer,
    /// Joins the serial port to descriptors.
    Serial,
    /// Runs a virtual processor: the software CPU or KVM.
    Vcpu,
    /// Tells the software CPU of timers.
    Alarm,
    /// Serves the queues of a virtio device.
    Device,
    /// Reads and writes an image for a queue.
    Disk,
    /// Runs a network's plane and its sockets.
    Network,
    /// Serves the control socket: does for its owner what the others can't.
    Control,
}

impl ThreadKind {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Main,
        Self::Signals,
        Self::Launcher,
        Self::Timer,
        Self::Serial,
        Self::Vcpu,
        Self::Alarm,
        Self::Device,
        Self::Disk,
        Self::Network,
        Self::Control,
    ];

    /// Its name in messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Main => "main",
            Self::Signals => "signals",
            Self::Launcher => "launcher",
            Self::Timer => "timer",
            Self::Serial => "serial",
            Self::Vcpu => "vcpu",
            Self::Alarm => "alarm",
            Self::Device => "device",
            Self::Disk => "disk",
            Self::Network => "network",
            Self::Control => "control",
        }
    }
}

thread_local! {
    static KIND: Cell<Option<ThreadKind>> = const { Cell::new(None) };
}

/// What the calling thread is confined to.
pub fn current() -> Option<ThreadKind> {
    KIND.get()
}

type Task = Box<dyn FnOnce() + Send>;

static LAUNCHER: OnceLock<Sender<Task>> = OnceLock::new();

/// Confines the calling thread. It ends the process if it can't.
type Confiner = Box<dyn Fn(ThreadKind) + Send + Sync>;

static CONFINER: OnceLock<Confiner> = OnceLock::new();

/// Has threads confined from now on, and starts the launcher, which lives as
/// long as the process. False if somebody else did that.
///
/// # Errors
/// The host has no thread left.
pub fn set_confiner(confiner: impl Fn(ThreadKind) + Send + Sync + 'static) -> io::Result<bool> {
    if CONFINER.set(Box::new(confiner)).is_err() {
        return Ok(false);
    }
    start_launcher()?;
    Ok(true)
}

/// Starts a thread of a kind. What it inherits from the caller is not more
/// than its kind may do, in a process that is confined.
///
/// # Errors
/// The host has no thread left.
pub fn spawn<T: Send + 'static>(
    kind: ThreadKind,
    name: impl Into<String>,
    body: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    let builder = Builder::new().name(name.into());
    // Confined as its maker is: twice is once.
    if (current(), kind) == (Some(ThreadKind::Control), ThreadKind::Control) {
        return builder.spawn(move || {
            KIND.set(Some(kind));
            body()
        });
    }
    on_launcher(move || {
        builder.spawn(move || {
            confine(kind);
            body()
        })
    })?
}

/// Runs a function where it may open what a confined thread may not: a disk's
/// queue on io_uring. Waits for its result. In a thread that is not confined
/// it runs at once.
///
/// # Errors
/// The function panicked.
pub fn on_launcher<R: Send + 'static>(
    function: impl FnOnce() -> R + Send + 'static,
) -> io::Result<R> {
    let launcher = match (current(), LAUNCHER.get()) {
        (Some(kind), Some(launcher)) if kind != ThreadKind::Launcher => launcher,
        _ => return Ok(function()),
    };
    let gone = || io::Error::other("the thread that starts threads is gone");
    let (reply, result) = channel();
    let task = move || {
        let _ = reply.send(function());
    };
    launcher.send(Box::new(task)).map_err(|_| gone())?;
    result.recv().map_err(|_| gone())
}

fn start_launcher() -> io::Result<()> {
    let (sender, tasks) = channel::<Task>();
    spawn(ThreadKind::Launcher, "launcher", move || {
        for task in tasks {
            // Who waits for the result hears that there is none.
            let _ = catch_unwind(AssertUnwindSafe(task));
        }
    })?;
    let _ = LAUNCHER.set(sender);
    Ok(())
}

/// Confines the calling thread, if threads are confined.
pub fn confine(kind: ThreadKind) {
    if let Some(confiner) = CONFINER.get() {
        KIND.set(Some(kind));
        confiner(kind);
    }
}
