//! The user's terminal while a guest has it: raw mode, and back again however
//! the program ends.

use std::io::{self, IsTerminal};

use favo_agent::WindowSize;
use rustix::termios::{self, OptionalActions, Termios};

/// The key that gets out of a guest: Ctrl-], as in telnet and virsh.
pub const ESCAPE: u8 = 0x1d;

/// Standard input in raw mode; the old settings return when this is dropped.
pub struct RawMode {
    saved: Termios,
}

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
        termios::tcsetattr(&stdin, OptionalActions::Now, &raw)?;
        Ok(Some(Self { saved }))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // A terminal that is gone needs no restoring.
        let _ = termios::tcsetattr(io::stdin(), OptionalActions::Flush, &self.saved);
    }
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
