//! The VM process's end of the control socket.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use favo_devices::virtio::event::EventFd;
use favo_thread::ThreadKind;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::wire::{Line, Wire};
use super::{
    AnswerBody, AnswerLine, ControlError, Handler, MOST_BYTES, Reply, RequestLine, VERSION,
};

/// More connections at a time are closed at once.
const MOST_CONNECTIONS: usize = 64;

/// A control socket that is served. Dropping it removes the socket, closes the
/// connections, and waits for what is being done.
pub struct Server {
    stop: Arc<EventFd>,
    connections: Connections,
    listener: Option<JoinHandle<()>>,
}

type Connections = Arc<Mutex<Vec<Connection>>>;

struct Connection {
    stream: UnixStream,
    thread: JoinHandle<()>,
}

impl Server {
    /// Serves `path`. A socket left by a process that is gone is replaced; one
    /// that somebody serves is an error.
    pub fn start(path: &Path, handler: Arc<dyn Handler>) -> io::Result<Self> {
        let listener = bind(path)?;
        let stop = Arc::new(EventFd::new()?);
        let connections = Connections::default();
        let own_path = path.to_owned();
        let mut server = Self {
            stop: stop.clone(),
            connections: connections.clone(),
            listener: None,
        };
        let thread = favo_thread::spawn(ThreadKind::Control, "control", move || {
            if let Err(error) = accept(&listener, &stop, &connections, &handler) {
                tracing::error!(%error, "the control socket is no longer served");
            }
            // Here, because other threads may be confined to fewer files.
            let _ = std::fs::remove_file(&own_path);
        })?;
        server.listener = Some(thread);
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.signal();
        if let Some(listener) = self.listener.take() {
            let _ = listener.join();
        }
        let connections = std::mem::take(&mut *lock(&self.connections));
        for connection in connections {
            // Reading ends; an answer under way is still written.
            let _ = connection.stream.shutdown(std::net::Shutdown::Read);
            let _ = connection.thread.join();
        }
    }
}

/// A listening socket that only its owner can connect to.
fn bind(path: &Path) -> io::Result<UnixListener> {
    let address = SocketAddrUnix::new(path)?;
    let socket = || -> io::Result<OwnedFd> {
        let socket = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )?;
        // Before it has a name: there is no moment at which others may use it.
        rustix::fs::fchmod(&socket, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR)?;
        Ok(socket)
    };
    let fd = socket()?;
    match rustix::net::bind(&fd, &address) {
        Ok(()) => {}
        Err(rustix::io::Errno::ADDRINUSE) => {
            match UnixStream::connect(path) {
                Err(dead) if dead.kind() == io::ErrorKind::ConnectionRefused => {
                    std::fs::remove_file(path)?;
                }
                _ => return Err(rustix::io::Errno::ADDRINUSE.into()),
            }
            rustix::net::bind(&fd, &address)?;
        }
        Err(error) => return Err(error.into()),
    }
    rustix::net::listen(&fd, 16)?;
    Ok(fd.into())
}

fn lock(connections: &Connections) -> std::sync::MutexGuard<'_, Vec<Connection>> {
    connections.lock().unwrap_or_else(PoisonError::into_inner)
}

fn accept(
    listener: &UnixListener,
    stop: &EventFd,
    connections: &Connections,
    handler: &Arc<dyn Handler>,
) -> io::Result<()> {
    loop {
        let mut fds = [
            PollFd::new(listener, PollFlags::IN),
            PollFd::from_borrowed_fd(stop.as_fd(), PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        if !fds[1].revents().is_empty() {
            return Ok(());
        }
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) => {
                if error.kind() != io::ErrorKind::WouldBlock {
                    tracing::warn!(%error, "accepting a control connection");
                    std::thread::sleep(std::time::Duration::from_millis(10));
                }
                continue;
            }
        };
        stream.set_nonblocking(false)?;
        let mut open = lock(connections);
        open.retain(|connection| !connection.thread.is_finished());
        if open.len() >= MOST_CONNECTIONS {
            tracing::warn!("too many control connections; one is refused");
            continue;
        }
        let own = stream.try_clone()?;
        let handler = handler.clone();
        let thread = favo_thread::spawn(ThreadKind::Control, "control-peer", move || {
            serve(own, handler.as_ref())
        })?;
        open.push(Connection { stream, thread });
    }
}

fn serve(stream: UnixStream, handler: &dyn Handler) {
    let mut wire = Wire::new(stream);
    loop {
        let (result, last) = match wire.read(MOST_BYTES) {
            Ok(Some(line)) => (answer(line, handler), false),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => (
                Err(ControlError::new(
                    "bad-request",
                    "the line is too long, or ends without a line feed",
                    "send each request as one line",
                )),
                true,
            ),
            Ok(None) | Err(_) => break,
        };
        if send(&wire, result).is_err() || last {
            break;
        }
    }
    let _ = wire.stream().shutdown(std::net::Shutdown::Both);
}

fn answer(line: Line, handler: &dyn Handler) -> Result<Reply, ControlError> {
    #[derive(serde::Deserialize)]
    struct Version {
        version: u32,
    }
    let malformed = |error: serde_json::Error| {
        ControlError::new(
            "bad-request",
            format!("the request is not understood: {error}"),
            "see 'favo vmm --help' for the verbs",
        )
    };
    let Version { version } = serde_json::from_slice(&line.bytes).map_err(malformed)?;
    if version != VERSION {
        return Err(ControlError::new(
            "unsupported-version",
            format!("the request has version {version}, this favo speaks {VERSION}"),
            "use the favo that started the machine",
        ));
    }
    let request: RequestLine = serde_json::from_slice(&line.bytes).map_err(malformed)?;
    handler.handle(request.request, line.descriptors)
}

fn send(wire: &Wire, result: Result<Reply, ControlError>) -> io::Result<()> {
    let (answer, descriptors) = match result {
        Ok(reply) => (AnswerBody::Ok(reply.answer), reply.descriptors),
        Err(error) => (AnswerBody::Error(error), Vec::new()),
    };
    let mut line = serde_json::to_vec(&AnswerLine {
        version: VERSION,
        answer,
    })?;
    line.push(b'\n');
    wire.write(&line, &descriptors)
}
