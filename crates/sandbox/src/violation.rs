//! What happens when a thread makes a call its list doesn't have.
//!
//! The call is not made. The thread says so on standard error, which tells
//! the call to whoever adds it to a list or looks into an attack; then the
//! process ends with [`STATUS`]. The main thread gets a moment to put the
//! terminal in order, if it still listens.

use std::fmt::{self, Write};
use std::os::fd::{AsFd, IntoRawFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use favo_thread as thread;

use crate::{SandboxError, handler};

/// The exit status of a process that was stopped for a refused call.
pub const STATUS: u8 = 94;

/// How long the main thread may take to end the process, in seconds.
const PATIENCE: u64 = 2;

static HAPPENED: AtomicBool = AtomicBool::new(false);
static NEVER: AtomicU32 = AtomicU32::new(0);
static WATCH: OnceLock<Watch> = OnceLock::new();

/// How the main thread hears of a refused call.
#[derive(Debug)]
struct Watch {
    wake: std::os::fd::RawFd,
    last: fn(),
}

/// Whether a call was refused: the process must end with [`STATUS`].
pub fn happened() -> bool {
    HAPPENED.load(Ordering::SeqCst)
}

/// Has a byte written to `wake` when a call is refused, after which the main
/// thread looks at [`happened`]. For a call of the main thread itself `last`
/// is called instead, from a signal handler: it must not wait for anything.
pub fn watch(wake: OwnedFd, last: fn()) {
    let _ = WATCH.set(Watch {
        // Open until the process ends.
        wake: wake.into_raw_fd(),
        last,
    });
}

/// Has refused calls reported.
pub(crate) fn handle() -> Result<(), SandboxError> {
    handler::install().map_err(|error| SandboxError::new("handling refused calls", error))
}

/// Called in the handler, with the number of the call. Allocates nothing, and
/// makes no call that some list lacks.
pub(crate) fn end(call: i32) -> ! {
    let kind = thread::current();
    let mut text = Text::default();
    let name = crate::table::name(call as u64);
    let _ = writeln!(
        text,
        "favo: a {} thread called {name} ({call}), which the sandbox refuses: a defect of favo or \
         an attack of the guest; the machine is stopped (--sandbox off runs without)",
        kind.map_or("nameless", thread::ThreadKind::name),
    );
    let _ = rustix::io::write(rustix::stdio::stderr(), text.bytes());
    HAPPENED.store(true, Ordering::SeqCst);
    if let Some(watch) = WATCH.get() {
        if kind == Some(thread::ThreadKind::Main) {
            (watch.last)();
        } else {
            let _ = rustix::io::write(handler::borrow(watch.wake).as_fd(), &[1]);
            handler::sleep(&NEVER, PATIENCE);
        }
    }
    handler::exit(STATUS)
}

/// A line on the stack.
struct Text {
    bytes: [u8; 320],
    length: usize,
}

impl Default for Text {
    fn default() -> Self {
        Self {
            bytes: [0; 320],
            length: 0,
        }
    }
}

impl Text {
    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = &mut self.bytes[self.length..];
        let count = text.len().min(room.len());
        room[..count].copy_from_slice(&text.as_bytes()[..count]);
        self.length += count;
        Ok(())
    }
}
