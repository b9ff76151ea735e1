//! Asks the host's resolvers on behalf of guests.
//!
//! Each question goes out on a socket of its own: the port number is the
//! kernel's choice, the identifier ours, so an answer can't be guessed from
//! outside, and one guest's questions can't be confused with another's. What
//! guests ask over TCP is asked over TCP, so that long answers arrive whole.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::model::PortId;

/// How many questions of a port may be open.
const MAXIMUM_PER_PORT: usize = 128;

/// How long one resolver has.
const PATIENCE: Duration = Duration::from_secs(3);

/// How many resolvers are tried for a question.
const MAXIMUM_TRIES: usize = 3;

/// How often the list of resolvers is looked at for changes.
const RELOAD_INTERVAL: Duration = Duration::from_secs(5);

/// The longest message DNS can carry over TCP.
const MAXIMUM_MESSAGE: usize = 65_535;

/// Which resolvers are asked.
#[derive(Clone, Debug)]
pub enum Resolvers {
    /// Those of a resolv.conf(5), read again when it changes.
    File(PathBuf),
    /// These.
    Fixed(Vec<SocketAddr>),
}

impl Resolvers {
    /// The host's.
    pub fn of_host() -> Self {
        Self::File(PathBuf::from("/etc/resolv.conf"))
    }
}

/// Questions that wait for the host's resolvers. `C` is what finds the asker
/// again.
#[derive(Debug)]
pub struct Resolver<C> {
    source: Resolvers,
    servers: Vec<SocketAddr>,
    loaded: Option<(Instant, Option<SystemTime>)>,
    epoll: OwnedFd,
    open: BTreeMap<u64, Open<C>>,
    next: u64,
}

#[derive(Debug)]
struct Open<C> {
    port: PortId,
    client: C,
    /// The question as the guest sent it.
    query: Vec<u8>,
    /// Where its question section ends.
    question_end: usize,
    identifier: [u8; 2],
    tries: usize,
    deadline: Instant,
    socket: Socket,
}

#[derive(Debug)]
enum Socket {
    Udp(UdpSocket),
    /// A stream, what is still to be written, and what was read.
    Tcp(TcpStream, Vec<u8>, Vec<u8>),
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Udp(socket) => socket.as_fd(),
            Self::Tcp(stream, ..) => stream.as_fd(),
        }
    }
}

/// What became of a question.
#[derive(Debug)]
pub struct Resolved<C> {
    /// Who asked.
    pub client: C,
    /// The port it asked on.
    pub port: PortId,
    /// The answer as the resolver gave it, with the asker's identifier; or a
    /// failure of our making.
    pub answer: Vec<u8>,
}

impl<C> Resolver<C> {
    /// Nothing asked yet.
    ///
    /// # Errors
    /// The host has no descriptors left.
    pub fn new(source: Resolvers) -> std::io::Result<Self> {
        Ok(Self {
            source,
            servers: Vec::new(),
            loaded: None,
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            open: BTreeMap::new(),
            next: 0,
        })
    }

    /// Asks; `None` if the question waits now, or the failure to tell the
    /// client at once.
    pub fn ask(
        &mut self,
        now: Instant,
        port: PortId,
        client: C,
        query: &[u8],
        over_tcp: bool,
    ) -> Option<Resolved<C>> {
        let question_end = question_end(query);
        let room = self.open.values().filter(|open| open.port == port).count() < MAXIMUM_PER_PORT;
        let Some(question_end) = question_end.filter(|_| query.len() <= MAXIMUM_MESSAGE) else {
            return Some(Resolved {
                client,
                port,
                answer: failure(query),
            });
        };
        self.load(now);
        let mut identifier = [0; 2];
        let random =
            rustix::rand::getrandom(&mut identifier, rustix::rand::GetRandomFlags::empty());
        if !room || random.is_err() {
            return Some(Resolved {
                client,
                port,
                answer: failure(query),
            });
        }
        match self.dial(0, query, identifier, over_tcp) {
            Some(socket) => {
                let open = Open {
                    port,
                    client,
                    query: query.to_vec(),
                    question_end,
                    identifier,
                    tries: 1,
                    deadline: now + PATIENCE,
                    socket,
                };
                self.watch(open);
                None
            }
            None => Some(Resolved {
                client,
                port,
                answer: failure(query),
            }),
        }
    }

    /// Sends a question to the resolver whose turn it is.
    fn dial(&self, tried: usize, query: &[u8], id: [u8; 2], over_tcp: bool) -> Option<Socket> {
        let server = *self.servers.get(tried)?;
        let mut message = query.to_vec();
        message.get_mut(..2)?.copy_from_slice(&id);
        let any: IpAddr = match server {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        if over_tcp {
            let mut framed = u16::try_from(message.len()).ok()?.to_be_bytes().to_vec();
            framed.extend(message);
            return Some(Socket::Tcp(connect(server).ok()?, framed, Vec::new()));
        }
        let socket = UdpSocket::bind((any, 0)).ok()?;
        socket.set_nonblocking(true).ok()?;
        socket.connect(server).ok()?;
        socket.send(&message).ok()?;
        Some(Socket::Udp(socket))
    }

    fn watch(&mut self, open: Open<C>) {
        let number = self.next;
        self.next += 1;
        let flags = match open.socket {
            Socket::Udp(_) => EventFlags::IN,
            Socket::Tcp(..) => EventFlags::IN | EventFlags::OUT,
        };
        // If it can't be watched, the question times out.
        let _ = epoll::add(
            &self.epoll,
            open.socket.as_fd(),
            EventData::new_u64(number),
            flags,
        );
        self.open.insert(number, open);
    }

    /// Readable while answers may wait.
    pub fn ready(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// When to call [`Self::collect`] at the latest.
    pub fn deadline(&self) -> Option<Instant> {
        self.open.values().map(|open| open.deadline).min()
    }

    /// Forgets a port's questions.
    pub fn forget(&mut self, port: PortId) {
        self.open.retain(|_, open| open.port != port);
    }

    /// Takes what has come, and gives up on what hasn't in time.
    pub fn collect(&mut self, now: Instant) -> Vec<Resolved<C>> {
        let mut done = Vec::new();
        let mut events: Vec<epoll::Event> = Vec::with_capacity(64);
        let zero = rustix::time::Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let spare = rustix::buffer::spare_capacity(&mut events);
        if epoll::wait(&self.epoll, spare, Some(&zero)).is_err() {
            events.clear();
        }
        for event in events {
            let number = event.data.u64();
            let Some(mut open) = self.open.remove(&number) else {
                continue;
            };
            match open.progress(&self.epoll, number) {
                Progress::Answer(answer) => {
                    done.push(Resolved {
                        client: open.client,
                        port: open.port,
                        answer,
                    });
                }
                Progress::Waiting => {
                    self.open.insert(number, open);
                }
                Progress::Failed => done.extend(self.retry(now, open)),
            }
        }
        let late: Vec<u64> = self
            .open
            .iter()
            .filter(|(_, open)| open.deadline <= now)
            .map(|(number, _)| *number)
            .collect();
        for number in late {
            if let Some(open) = self.open.remove(&number) {
                done.extend(self.retry(now, open));
            }
        }
        done
    }

    /// Asks the next resolver, or gives up.
    fn retry(&mut self, now: Instant, mut open: Open<C>) -> Option<Resolved<C>> {
        let over_tcp = matches!(open.socket, Socket::Tcp(..));
        while open.tries < MAXIMUM_TRIES.min(self.servers.len()) {
            let socket = self.dial(open.tries, &open.query, open.identifier, over_tcp);
            open.tries += 1;
            if let Some(socket) = socket {
                open.socket = socket;
                open.deadline = now + PATIENCE;
                self.watch(open);
                return None;
            }
        }
        let answer = failure(&open.query);
        Some(Resolved {
            client: open.client,
            port: open.port,
            answer,
        })
    }

    /// Looks whether the host's resolvers have changed.
    fn load(&mut self, now: Instant) {
        match &self.source {
            Resolvers::Fixed(servers) => self.servers.clone_from(servers),
            Resolvers::File(path) => {
                if self
                    .loaded
                    .is_some_and(|(when, _)| now < when + RELOAD_INTERVAL)
                {
                    return;
                }
                let changed = std::fs::metadata(path)
                    .and_then(|meta| meta.modified())
                    .ok();
                if self.loaded.is_none_or(|(_, before)| before != changed) {
                    self.servers = match std::fs::read(path) {
                        Ok(bytes) => servers_in(&bytes),
                        // The sandbox may not know a file that took the old
                        // one's place.
                        Err(error)
                            if error.kind() != ErrorKind::NotFound && !self.servers.is_empty() =>
                        {
                            tracing::warn!(
                                %error,
                                "{} has changed and can't be read; its old servers are asked",
                                path.display()
                            );
                            std::mem::take(&mut self.servers)
                        }
                        Err(_) => servers_in(&[]),
                    };
                }
                self.loaded = Some((now, changed));
            }
        }
    }
}

enum Progress {
    Answer(Vec<u8>),
    Waiting,
    Failed,
}

impl<C> Open<C> {
    fn progress(&mut self, epoll: &OwnedFd, number: u64) -> Progress {
        let mut buffer = vec![0; MAXIMUM_MESSAGE];
        match &mut self.socket {
            Socket::Udp(socket) => match socket.recv(&mut buffer) {
                Ok(length) => {
                    buffer.truncate(length);
                    // Anything else is somebody's guess; the answer may come yet.
                    self.accept(buffer)
                        .map_or(Progress::Waiting, Progress::Answer)
                }
                Err(error) if would_block(&error) => Progress::Waiting,
                Err(_) => Progress::Failed,
            },
            Socket::Tcp(stream, unsent, received) => {
                while !unsent.is_empty() {
                    match stream.write(unsent) {
                        Ok(0) => return Progress::Failed,
                        Ok(length) => drop(unsent.drain(..length)),
                        Err(error) if would_block(&error) => return Progress::Waiting,
                        Err(_) => return Progress::Failed,
                    }
                    if unsent.is_empty() {
                        let data = EventData::new_u64(number);
                        let _ = epoll::modify(epoll, stream.as_fd(), data, EventFlags::IN);
                    }
                }
                match stream.read(&mut buffer) {
                    Ok(0) => return Progress::Failed,
                    Ok(length) => received.extend_from_slice(&buffer[..length]),
                    Err(error) if would_block(&error) => return Progress::Waiting,
                    Err(_) => return Progress::Failed,
                }
                let [high, low, message @ ..] = received.as_slice() else {
                    return Progress::Waiting;
                };
                let length = usize::from(u16::from_be_bytes([*high, *low]));
                let Some(message) = message.get(..length) else {
                    return Progress::Waiting;
                };
                let message = message.to_vec();
                self.accept(message)
                    .map_or(Progress::Failed, Progress::Answer)
            }
        }
    }

    /// The answer with the asker's identifier, if it is one to this question.
    fn accept(&self, mut answer: Vec<u8>) -> Option<Vec<u8>> {
        let end = self.question_end;
        let fits = answer.len() >= end
            && answer[..2] == self.identifier
            && answer[2] & 0x80 != 0
            && answer[4..6] == [0, 1]
            && answer[12..end].eq_ignore_ascii_case(&self.query[12..end]);
        if !fits {
            return None;
        }
        answer[..2].copy_from_slice(&self.query[..2]);
        Some(answer)
    }
}

fn would_block(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{Interrupted, NotConnected, WouldBlock};
    matches!(error.kind(), WouldBlock | Interrupted | NotConnected)
}

/// Begins a connection without waiting for it.
fn connect(server: SocketAddr) -> std::io::Result<TcpStream> {
    let family = match server {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&socket, &server) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => Ok(TcpStream::from(socket)),
        Err(error) => Err(error.into()),
    }
}

/// Where the question section of a query with one question ends: a header of
/// 12 bytes, labels, type and class. Names in it aren't compressed.
fn question_end(query: &[u8]) -> Option<usize> {
    if query.get(4..6)? != [0, 1] {
        return None;
    }
    let mut at = 12;
    loop {
        match usize::from(*query.get(at)?) {
            0 => break,
            length @ 1..64 => at += 1 + length,
            _ => return None,
        }
    }
    let end = at + 5;
    (end <= query.len()).then_some(end)
}

/// The answer to a question nobody could answer: SERVFAIL, with the question
/// if it can be read.
fn failure(query: &[u8]) -> Vec<u8> {
    const SERVER_FAILURE: u8 = 2;
    let Some(end) = question_end(query) else {
        return Vec::new();
    };
    let mut answer = query[..end].to_vec();
    answer[2] = 0x80 | (answer[2] & 0x79);
    answer[3] = 0x80 | SERVER_FAILURE;
    answer[6..12].fill(0);
    answer
}

/// A short answer in place of one that doesn't fit: asks to try TCP.
pub(crate) fn truncated(answer: &[u8]) -> Vec<u8> {
    let Some(end) = question_end(answer) else {
        return Vec::new();
    };
    let mut short = answer[..end].to_vec();
    short[2] |= 2;
    short[6..12].fill(0);
    short
}

/// The servers of a resolv.conf(5); the local host's, if it names none, as
/// libc has it.
fn servers_in(bytes: &[u8]) -> Vec<SocketAddr> {
    let (config, _) = resolv_conf::Config::parse_with_errors(bytes);
    let servers: Vec<SocketAddr> = config
        .nameservers
        .iter()
        .filter_map(|server| match server {
            resolv_conf::ScopedIp::V4(v4) => Some(SocketAddr::from((*v4, 53))),
            resolv_conf::ScopedIp::V6(v6, None) => Some(SocketAddr::from((*v6, 53))),
            resolv_conf::ScopedIp::V6(..) => None,
        })
        .collect();
    if servers.is_empty() {
        vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 53))]
    } else {
        servers
    }
}

#[cfg(test)]
#[path = "resolver_test.rs"]
mod test;
