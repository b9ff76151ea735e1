//! The user's terminal while a guest has it: raw mode, and back again however
//! the program ends.

use std::io::{self, IsTerminal};
use std::sync::{Mutex, PoisonError};

use favo_agent::WindowSize;
use rustix::termios::{self, OptionalActions, Termios};

/// The key that gets out of a guest: Ctrl-], as in telnet and virsh.
pub const ESCAPE: u8 = 0x1d;

/// The settings from before raw mode, while it lasts.
static SAVED: Mutex<Option<Termios>> = Mutex::new(None);

/// Standard input in raw mode; the old settings return when this is dropped.
pub struct RawMode(());

impl RawMode {
    /// Switches to raw mode if standard input is a terminal.
    pub fn enter() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let saved = termios::tcgetattr(&stdin)?;
        let mut raw = saved.clone();
        raw.make_raw();
        *SAVED.lock().unwrap_or_else(PoisonError::into_inner) = Some(saved);
        termios::tcsetattr(&stdin, OptionalActions::Now, &raw)?;
        Ok(Some(Self(())))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

/// Gives the terminal its old settings back, from any thread.
pub fn restore() {
    // Whoever has it locked restores, or ends here by a refused call.
    let saved = SAVED.try_lock().ok().and_then(|mut saved| saved.take());
    if let Some(saved) = saved {
        // A terminal that is gone needs no restoring.
        let _ = termios::tcsetattr(io::stdin(), OptionalActions::Flush, &saved);
    }
}

/// Whether a shell can be interactive here.
pub fn is_interactive() -> bool {
    io::stdin().is_terminal() && io::stdout().is_terminal()
}

/// The size of the terminal on standard output or input, if there is one.
pub fn window_size() -> Option<WindowSize> {
    let size = termios::tcgetwinsize(io::stdout())
        .or_else(|_| termios::tcgetwinsize(io::stdin()))
        .ok()?;
    (size.ws_row > 0 && size.ws_col > 0).then_some(WindowSize {
        rows: size.ws_row,
        columns: size.ws_col,
    })
}
