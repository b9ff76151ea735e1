//! Connections to the other processes of a network: Unix sockets that keep
//! messages apart (`SOCK_SEQPACKET`).
//!
//! A message is one byte that says what it is, and
//! * `PORTS`: the sender's ports, all of them, as postcard writes
//!   `Vec<PeerPort>`; said at the beginning and whenever they change;
//! * `FRAME`: an [`Offload`] in 12 bytes, and an Ethernet frame.
//!
//! A peer that doesn't read is no reason to wait: what doesn't fit into its
//! socket waits in a bounded queue, then it is dropped and counted.

use std::collections::{BTreeMap, VecDeque};
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SendAncillaryBuffer, SendFlags, SocketAddrUnix, SocketFlags};
use rustix::net::{SocketType, accept_with, bind, connect, listen, sendmsg, socket_with};

use crate::link::{MAX_FRAME_LENGTH, Offload, PartialChecksum, SegmentKind, Segmentation};
use crate::switch::{PeerId, PeerPort};

const PORTS: u8 = 1;
const FRAME: u8 = 2;

/// Bytes before the frame in a `FRAME` message.
const PREFIX: usize = 1 + 12;

/// The longest message.
const MAXIMUM_MESSAGE: usize = PREFIX + MAX_FRAME_LENGTH;

/// How many bytes may wait for a peer beside its socket.
const MAXIMUM_WAITING: usize = 4 << 20;

/// How many messages are taken from a peer in a round.
const BUDGET: usize = 128;

/// How many processes may be on a network.
const MAXIMUM_PEERS: usize = 256;

/// What the listening socket is called among the connections.
const LISTENER: u64 = u64::MAX;

/// The other processes of a network.
#[derive(Debug)]
pub struct Peers {
    listener: OwnedFd,
    path: PathBuf,
    epoll: OwnedFd,
    connections: BTreeMap<PeerId, Connection>,
    next: u32,
    /// The last `PORTS` message, for those that come.
    greeting: Vec<u8>,
    buffer: Vec<u8>,
    dropped: u64,
}

#[derive(Debug)]
struct Connection {
    socket: OwnedFd,
    waiting: VecDeque<Vec<u8>>,
    waiting_bytes: usize,
}

/// What came from a peer.
#[derive(Debug, PartialEq, Eq)]
pub enum PeerEvent<'a> {
    /// It has these ports now; none, if it is gone.
    Ports(Vec<PeerPort>),
    /// A frame from one of its ports.
    Frame(&'a [u8], Offload),
}

/// A path that is short enough for a socket's address, whatever the
/// directory's is: through an open descriptor of the directory.
fn address(directory: &OwnedFd, name: &str) -> rustix::io::Result<SocketAddrUnix> {
    SocketAddrUnix::new(format!("/proc/self/fd/{}/{name}", directory.as_raw_fd()))
}

fn new_socket() -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
}

impl Peers {
    /// Makes a socket in a network's directory and connects to all that are
    /// there. The caller holds the directory's lock.
    pub(super) fn join(path: &Path) -> std::io::Result<Self> {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let directory = rustix::fs::open(
            path,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}-{number}.sock", std::process::id());
        let mut others = Vec::new();
        for entry in std::fs::read_dir(path)? {
            let other = entry?.file_name();
            match other.to_str() {
                Some(other) if other.ends_with(".sock") => others.push(other.to_owned()),
                _ => {}
            }
        }
        let mut connected = Vec::new();
        for other in others {
            let socket = new_socket()?;
            match connect(&socket, &address(&directory, &other)?) {
                Ok(()) => connected.push(socket),
                // Whoever listened is dead: a live one holds the lock until it
                // listens.
                Err(Errno::CONNREFUSED) => {
                    let _ = std::fs::remove_file(path.join(&other));
                }
                Err(Errno::NOENT) => {}
                Err(error) => {
                    tracing::warn!(%error, socket = other, "a peer doesn't take connections");
                }
            }
        }
        let listener = new_socket()?;
        bind(&listener, &address(&directory, &name)?)?;
        listen(&listener, MAXIMUM_PEERS as i32)?;
        let mut peers = Self {
            listener,
            path: path.join(name),
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            connections: BTreeMap::new(),
            next: 0,
            greeting: Vec::new(),
            buffer: vec![0; MAXIMUM_MESSAGE + 1],
            dropped: 0,
        };
        let data = EventData::new_u64(LISTENER);
        epoll::add(&peers.epoll, &peers.listener, data, EventFlags::IN)?;
        for socket in connected {
            peers.add(socket)?;
        }
        Ok(peers)
    }

    fn add(&mut self, socket: OwnedFd) -> rustix::io::Result<()> {
        if self.connections.len() >= MAXIMUM_PEERS {
            return Err(Errno::MFILE);
        }
        // More room means fewer waits; the host's limit caps it.
        let _ = rustix::net::sockopt::set_socket_send_buffer_size(&socket, MAXIMUM_WAITING);
        let id = PeerId(self.next);
        self.next += 1;
        epoll::add(
            &self.epoll,
            &socket,
            EventData::new_u64(u64::from(id.0)),
            EventFlags::IN,
        )?;
        let mut connection = Connection {
            socket,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
        };
        if !self.greeting.is_empty() {
            connection.send(&self.epoll, id, [&self.greeting, &[]]);
        }
        self.connections.insert(id, connection);
        Ok(())
    }

    /// Readable while anything is to be done.
    pub fn ready(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// Frames dropped because a peer didn't read.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Tells all others which ports this process has.
    pub fn announce(&mut self, ports: &[PeerPort]) {
        let mut greeting = vec![PORTS];
        match postcard::to_extend(ports, Vec::new()) {
            Ok(bytes) => greeting.extend(bytes),
            Err(error) => {
                tracing::error!(%error, "the ports can't be announced");
                return;
            }
        }
        self.greeting = greeting;
        for (id, connection) in &mut self.connections {
            connection.send(&self.epoll, *id, [&self.greeting, &[]]);
        }
    }

    /// Sends a frame to one peer, or to all; whether all of them will get it if
    /// they read.
    pub fn send(&mut self, to: Option<PeerId>, frame: &[u8], offload: Offload) -> bool {
        let prefix = encode(offload);
        let mut dropped = 0;
        let mut send = |id: PeerId, connection: &mut Connection| {
            if !connection.send(&self.epoll, id, [&prefix, frame]) {
                dropped += 1;
            }
        };
        match to {
            Some(id) => {
                if let Some(connection) = self.connections.get_mut(&id) {
                    send(id, connection);
                }
            }
            None => self
                .connections
                .iter_mut()
                .for_each(|(id, peer)| send(*id, peer)),
        }
        self.dropped += dropped;
        dropped == 0
    }

    /// Does what is to be done, and tells what came.
    pub fn serve(&mut self, mut tell: impl FnMut(PeerId, PeerEvent<'_>)) {
        let mut events: Vec<epoll::Event> = Vec::with_capacity(64);
        let zero = rustix::time::Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let spare = rustix::buffer::spare_capacity(&mut events);
        if epoll::wait(&self.epoll, spare, Some(&zero)).is_err() {
            return;
        }
        for event in events {
            let number = event.data.u64();
            if number == LISTENER {
                self.accept();
                continue;
            }
            let Ok(number) = u32::try_from(number) else {
                continue;
            };
            let id = PeerId(number);
            let Some(connection) = self.connections.get_mut(&id) else {
                continue;
            };
            let flags = event.flags;
            if flags.contains(EventFlags::OUT) {
                connection.drain(&self.epoll, id);
            }
            let alive = connection.receive(&mut self.buffer, |event| tell(id, event));
            if !alive {
                self.connections.remove(&id);
                tell(id, PeerEvent::Ports(Vec::new()));
            }
        }
    }

    fn accept(&mut self) {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        while let Ok(socket) = accept_with(&self.listener, flags) {
            if let Err(error) = self.add(socket) {
                tracing::warn!(%error, "a peer can't be taken");
            }
        }
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Connection {
    /// Sends a message, now or later; whether it will arrive if the peer reads.
    fn send(&mut self, epoll: &OwnedFd, id: PeerId, parts: [&[u8]; 2]) -> bool {
        if self.waiting.is_empty() {
            match send_now(&self.socket, parts) {
                Ok(()) => return true,
                Err(Errno::AGAIN | Errno::NOBUFS | Errno::INTR) => {}
                // It is gone; reading will tell.
                Err(_) => return false,
            }
            let data = EventData::new_u64(u64::from(id.0));
            let _ = epoll::modify(epoll, &self.socket, data, EventFlags::IN | EventFlags::OUT);
        }
        let length = parts[0].len() + parts[1].len();
        // What ports there are is never dropped: peers would disagree for ever.
        let must = parts[0].first() == Some(&PORTS);
        if self.waiting_bytes + length > MAXIMUM_WAITING && !must {
            return false;
        }
        self.waiting_bytes += length;
        self.waiting.push_back(parts.concat());
        true
    }

    /// Sends what waits.
    fn drain(&mut self, epoll: &OwnedFd, id: PeerId) {
        while let Some(message) = self.waiting.front() {
            match send_now(&self.socket, [message, &[]]) {
                Err(Errno::AGAIN | Errno::NOBUFS | Errno::INTR) => return,
                Ok(()) | Err(_) => {
                    self.waiting_bytes -= message.len();
                    self.waiting.pop_front();
                }
            }
        }
        let data = EventData::new_u64(u64::from(id.0));
        let _ = epoll::modify(epoll, &self.socket, data, EventFlags::IN);
    }

    /// Takes what has come; whether the peer is still there.
    fn receive(&self, buffer: &mut [u8], mut tell: impl FnMut(PeerEvent<'_>)) -> bool {
        for _ in 0..BUDGET {
            let length = match rustix::io::read(&self.socket, &mut *buffer) {
                Ok(0) => return false,
                Ok(length) => length,
                Err(Errno::AGAIN | Errno::INTR) => return true,
                Err(_) => return false,
            };
            match decode(&buffer[..length]) {
                Some(event) => tell(event),
                None => {
                    tracing::warn!("a peer speaks another language; it is left alone");
                    return false;
                }
            }
        }
        true
    }
}

fn send_now(socket: &OwnedFd, parts: [&[u8]; 2]) -> rustix::io::Result<()> {
    let parts = parts.map(IoSlice::new);
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    sendmsg(socket, &parts, &mut SendAncillaryBuffer::default(), flags).map(drop)
}

/// The bytes before a frame: kind; flags (1 checksum, 2 segmentation, 4
/// checked); the kind of segmentation; then five numbers of two bytes, least
/// first: checksum start and offset, size and header of segmentation, zero.
fn encode(offload: Offload) -> [u8; PREFIX] {
    let mut bytes = [0; PREFIX];
    bytes[0] = FRAME;
    bytes[1] = u8::from(offload.checked) << 2;
    let mut word = |index: usize, value: u16| {
        bytes[3 + 2 * index..5 + 2 * index].copy_from_slice(&value.to_le_bytes());
    };
    if let Some(checksum) = offload.checksum {
        word(0, checksum.start);
        word(1, checksum.offset);
        bytes[1] |= 1;
    }
    let mut word = |index: usize, value: u16| {
        bytes[3 + 2 * index..5 + 2 * index].copy_from_slice(&value.to_le_bytes());
    };
    if let Some(segmentation) = offload.segmentation {
        word(2, segmentation.size);
        word(3, segmentation.header);
        bytes[1] |= 2;
        bytes[2] = match segmentation.kind {
            SegmentKind::Tcp4 => 0,
            SegmentKind::Tcp6 => 1,
            SegmentKind::Udp => 2,
        };
    }
    bytes
}

fn decode(message: &[u8]) -> Option<PeerEvent<'_>> {
    match *message.first()? {
        PORTS => postcard::from_bytes(&message[1..])
            .ok()
            .map(PeerEvent::Ports),
        FRAME => {
            let (prefix, frame) = message.split_first_chunk::<PREFIX>()?;
            if frame.len() > MAX_FRAME_LENGTH {
                return None;
            }
            let word =
                |index: usize| u16::from_le_bytes([prefix[3 + 2 * index], prefix[4 + 2 * index]]);
            let offload = Offload {
                checksum: (prefix[1] & 1 != 0).then(|| PartialChecksum {
                    start: word(0),
                    offset: word(1),
                }),
                segmentation: match (prefix[1] & 2 != 0, prefix[2]) {
                    (false, _) => None,
                    (true, kind) => Some(Segmentation {
                        kind: match kind {
                            0 => SegmentKind::Tcp4,
                            1 => SegmentKind::Tcp6,
                            2 => SegmentKind::Udp,
                            _ => return None,
                        },
                        size: word(2),
                        header: word(3),
                    }),
                },
                checked: prefix[1] & 4 != 0,
            };
            Some(PeerEvent::Frame(frame, offload))
        }
        _ => None,
    }
}

/// Takes everything.
#[cfg(any(test, feature = "fuzzing"))]
struct Nowhere;

#[cfg(any(test, feature = "fuzzing"))]
impl crate::switch::Outlets for Nowhere {
    fn guest(&mut self, _: crate::model::PortId, _: [u8; 14], _: &[u8], _: Offload) {}
    fn uplink(&mut self, _: crate::model::PortId, _: &[u8], _: Offload) {}
    fn service(
        &mut self,
        _: crate::model::PortId,
        _: crate::program::Service,
        _: &[u8],
        _: Offload,
    ) -> bool {
        true
    }
    fn peer(&mut self, _: Option<PeerId>, _: &[u8], _: Offload) -> bool {
        true
    }
}

/// What a message says, said again, is the same message, and a switch that is
/// told of it stands.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn fuzz_message(bytes: &[u8]) {
    use crate::model::Network;
    use crate::switch::Switch;
    let mut switch = Switch::new(Network::named("fuzz", 1500));
    let peer = PeerId(1);
    match decode(bytes) {
        Some(PeerEvent::Frame(frame, offload)) => {
            let again = [&encode(offload)[..], frame].concat();
            assert_eq!(decode(&again), Some(PeerEvent::Frame(frame, offload)));
            switch.from_peer(0, peer, frame, offload, &mut Nowhere);
        }
        Some(PeerEvent::Ports(ports)) => {
            switch.set_peer(peer, ports);
            switch.set_peer(peer, Vec::new());
            assert_eq!(switch.peer_ports().count(), 0);
        }
        None => {}
    }
}

#[cfg(test)]
#[path = "peers_test.rs"]
mod test;
