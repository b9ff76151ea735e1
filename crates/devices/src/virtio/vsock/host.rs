//! The host's side of the socket device: who answers when the guest connects,
//! and the two ways to connect to the guest.

use std::collections::HashMap;
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::net::{AddressFamily, RecvFlags, SocketAddrUnix, SocketFlags, SocketType};

/// Takes the host's end of a connection the guest made. Called on the device's
/// thread: it must hand the stream on and return at once.
pub type Accept = Arc<dyn Fn(UnixStream) + Send + Sync>;

/// Who listens on which port of the host.
#[derive(Default)]
pub struct Listeners {
    registered: Mutex<HashMap<u32, Accept>>,
    /// Sockets named `<path>_<port>` listen on every other port.
    socket: Option<PathBuf>,
}

impl Listeners {
    /// Listeners of which those not registered are sockets beside `socket`.
    pub fn new(socket: Option<PathBuf>) -> Self {
        Self {
            registered: Mutex::default(),
            socket,
        }
    }

    /// Registers `accept` for a port, in place of what was there.
    pub fn register(&self, port: u32, accept: Accept) {
        let mut registered = self
            .registered
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        registered.insert(port, accept);
    }

    /// Removes a registration.
    pub fn unregister(&self, port: u32) {
        let mut registered = self
            .registered
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        registered.remove(&port);
    }

    /// Connects to whoever listens on `port`. Never blocks: a listener whose
    /// backlog is full counts as absent.
    pub fn connect(&self, port: u32) -> io::Result<UnixStream> {
        let accept = {
            let registered = self
                .registered
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            registered.get(&port).cloned()
        };
        if let Some(accept) = accept {
            let (ours, theirs) = UnixStream::pair()?;
            accept(theirs);
            return Ok(ours);
        }
        match &self.socket {
            Some(path) => connect_socket(&port_path(path, port)),
            None => Err(io::ErrorKind::ConnectionRefused.into()),
        }
    }
}

/// Where the host's socket for `port` is.
pub fn port_path(socket: &Path, port: u32) -> PathBuf {
    let mut name = socket.as_os_str().to_owned();
    name.push(format!("_{port}"));
    name.into()
}

fn connect_socket(path: &Path) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket.into())
}

/// A listening socket that is removed when the device goes.
pub struct SocketFile {
    path: PathBuf,
    /// The socket itself; non-blocking.
    pub listener: UnixListener,
}

impl SocketFile {
    /// Listens on `path`. A socket left behind by a process that is gone is
    /// replaced; one that somebody listens on is an error.
    pub fn bind(path: &Path) -> io::Result<Self> {
        let listener = match UnixListener::bind(path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                match UnixStream::connect(path) {
                    Err(dead) if dead.kind() == io::ErrorKind::ConnectionRefused => {
                        std::fs::remove_file(path)?;
                        UnixListener::bind(path)?
                    }
                    _ => return Err(error),
                }
            }
            result => result?,
        };
        listener.set_nonblocking(true)?;
        Ok(Self {
            path: path.to_owned(),
            listener,
        })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// The longest greeting: `CONNECT 4294967295\n`.
const MAX_GREETING: usize = 19;

/// Reads `CONNECT <port>\n` from the front of a stream and nothing behind it.
/// `Ok(None)` if it is not all there yet.
pub fn read_greeting(stream: &UnixStream) -> io::Result<Option<u32>> {
    let refused = || io::Error::new(io::ErrorKind::InvalidData, "expected 'CONNECT <port>'");
    let mut bytes = [0; MAX_GREETING];
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    let peeked = match rustix::net::recv(stream, &mut bytes[..], flags) {
        Ok((0, _)) => return Err(io::ErrorKind::UnexpectedEof.into()),
        Ok((count, _)) => count,
        Err(rustix::io::Errno::AGAIN) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let Some(end) = bytes[..peeked].iter().position(|&byte| byte == b'\n') else {
        return if peeked < MAX_GREETING {
            Ok(None)
        } else {
            Err(refused())
        };
    };
    rustix::net::recv(stream, &mut bytes[..=end], RecvFlags::DONTWAIT)?;
    std::str::from_utf8(&bytes[..end])
        .ok()
        .and_then(|line| line.strip_prefix("CONNECT "))
        .and_then(|port| port.parse().ok())
        .map(Some)
        .ok_or_else(refused)
}
