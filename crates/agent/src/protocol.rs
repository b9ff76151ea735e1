//! The messages between the host and the agent.
//!
//! One connection carries one conversation: the agent opens it, says [`Event::Hello`], and the
//! host answers [`Request::Hello`]. From then on the host runs one command after another, and
//! at the end asks for power-off. Encoding: postcard, inside the frames of [`crate::frame`].
//!
//! Flow control. Output: the agent reads a command's output only while the connection takes
//! it, so a host that stops reading stops the command, and nothing is buffered without bound.
//! Input: the host may have at most [`STDIN_WINDOW`] bytes under way; the agent returns credit
//! with [`Event::StdinConsumed`] as the command takes them. So a command that does not read
//! its input never blocks a resize, a signal or the power-off behind it.

use serde::{Deserialize, Serialize};

/// The version of this protocol. Both sides must have the same one: the host brings its own
/// agent into every guest it boots, so there is nothing older to talk to.
pub const PROTOCOL_VERSION: u32 = 1;

/// The number both greetings carry ("favo", little-endian), to tell a stranger from the agent.
pub const MAGIC: u32 = u32::from_le_bytes(*b"favo");

/// The most bytes of standard input that may be on the way to a command.
pub const STDIN_WINDOW: usize = 64 * 1024;

/// The most bytes one [`Request::Stdin`], [`Event::Stdout`] or [`Event::Stderr`] carries.
pub const CHUNK: usize = 32 * 1024;

/// The port on which the host listens for the agent over AF_VSOCK, unless told otherwise.
pub const DEFAULT_VSOCK_PORT: u32 = 1024;

/// The virtio-console port the agent uses where there is no vsock.
pub const CONSOLE_PORT_NAME: &str = "org.favo.agent.0";

/// From the host to the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Request {
    /// The host's greeting, and its consent to the agent's version.
    Hello {
        /// [`MAGIC`].
        magic: u32,
        /// [`PROTOCOL_VERSION`] of the host.
        version: u32,
    },
    /// Run a command. Only when none is running.
    Exec(Exec),
    /// Bytes for the command's standard input, at most [`CHUNK`].
    Stdin(#[serde(with = "serde_bytes")] Vec<u8>),
    /// No more standard input.
    StdinClosed,
    /// The terminal has a new size.
    Resize(WindowSize),
    /// Send the command's process group this signal (Linux x86-64 number).
    Signal(i32),
    /// Stop what runs, flush the disks and power the machine off. The agent answers
    /// [`Event::PoweringOff`] before it does.
    PowerOff,
}

/// From the agent to the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Event {
    /// The first message on a connection.
    Hello {
        /// [`MAGIC`].
        magic: u32,
        /// [`PROTOCOL_VERSION`] of the agent.
        version: u32,
    },
    /// The command's standard output, or, with a terminal, all it writes to that.
    Stdout(#[serde(with = "serde_bytes")] Vec<u8>),
    /// The command's standard error; never with a terminal.
    Stderr(#[serde(with = "serde_bytes")] Vec<u8>),
    /// The command took this many bytes of input: the host may send as many more.
    StdinConsumed(u32),
    /// The command has ended, and all its output was sent before this.
    Exited(Exit),
    /// The command could not be started.
    ExecFailed {
        /// The status a shell would return: 127 not found, 126 cannot be executed.
        status: u8,
        /// What failed, on what, and why.
        message: String,
    },
    /// The answer to a request that makes no sense now, such as a second command.
    Refused {
        /// Why.
        message: String,
    },
    /// The machine goes down now; nothing follows.
    PoweringOff,
}

/// A command to run.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Exec {
    /// The program and its arguments, as bytes: what Linux takes. A program without a slash is
    /// searched in PATH. Empty: root's login shell.
    pub argv: Vec<ByteString>,
    /// Environment variables, `NAME=value`, over the agent's own PATH, HOME, USER, LANG.
    pub env: Vec<ByteString>,
    /// The working directory. `None`: root's home, or `/` where there is none.
    pub cwd: Option<ByteString>,
    /// Run it on a terminal of this size; `None`: on three pipes.
    pub tty: Option<WindowSize>,
}

/// A string of bytes without meaning to the protocol: an argument, a path.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ByteString(#[serde(with = "serde_bytes")] pub Vec<u8>);

impl std::fmt::Debug for ByteString {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.0))
    }
}

impl From<&str> for ByteString {
    fn from(text: &str) -> Self {
        Self(text.as_bytes().to_vec())
    }
}

impl From<String> for ByteString {
    fn from(text: String) -> Self {
        Self(text.into_bytes())
    }
}

impl From<std::ffi::OsString> for ByteString {
    fn from(text: std::ffi::OsString) -> Self {
        Self(std::os::unix::ffi::OsStringExt::into_vec(text))
    }
}

/// The size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Columns.
    pub columns: u16,
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exit {
    /// It returned this status, 0 to 255.
    Code(u8),
    /// This signal killed it (Linux x86-64 number).
    Signal(u8),
}

impl Exit {
    /// The status a shell reports: the command's own, or 128 + the signal.
    pub fn shell_status(self) -> u8 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => signal.saturating_add(128),
        }
    }
}
