//! The small TCP stack behind the gateway's addresses, one per port, made when
//! a guest first knocks. It serves the metadata and DNS; nothing else is ever
//! carried by it.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium};
use smoltcp::socket::tcp;
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{HardwareAddress, IpCidr, IpListenEndpoint};

use super::metadata::{MAXIMUM_REQUEST, MetadataServer, Response};
use crate::model::{
    GATEWAY_LINK_LOCAL, GATEWAY_MAC, METADATA_V4, METADATA_V6, MacAddress, Network,
};
use crate::packet::{Ethernet, ethertype};
use crate::program::flow::Milliseconds;

/// How many connections a guest may have to each service.
const CONNECTIONS: usize = 8;

const RECEIVE_BUFFER: usize = 4096;
const SEND_BUFFER: usize = 16_384;

/// A connection that does nothing for so long is over.
const IDLE: Duration = Duration::from_secs(10);

/// How many packets may wait on their way in.
const MAXIMUM_PENDING: usize = 256;

const HTTP: u16 = 80;
const DNS: u16 = 53;

/// Finds a connection again, if it is still the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ConnectionId {
    index: usize,
    generation: u64,
}

/// A DNS question that came over TCP.
pub(crate) struct Question {
    pub(crate) connection: ConnectionId,
    pub(crate) query: Vec<u8>,
}

/// One port's stack.
pub(crate) struct Stack {
    interface: Interface,
    cable: Cable,
    sockets: SocketSet<'static>,
    connections: Vec<Connection>,
    mac: MacAddress,
    generation: u64,
}

struct Connection {
    handle: SocketHandle,
    port: u16,
    received: Vec<u8>,
    /// What is still to be sent.
    unsent: VecDeque<u8>,
    /// The last of it is on its way, or there is no more to say.
    closing: bool,
    /// DNS: questions not answered yet.
    unanswered: usize,
    generation: u64,
}

/// Packets between smoltcp and the plane.
struct Cable {
    mtu: usize,
    to_stack: VecDeque<Vec<u8>>,
    from_stack: Vec<Vec<u8>>,
}

struct Received(Vec<u8>);
struct Sender<'a>(&'a mut Vec<Vec<u8>>);

impl smoltcp::phy::RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl smoltcp::phy::TxToken for Sender<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut packet = vec![0; len];
        let result = f(&mut packet);
        self.0.push(packet);
        result
    }
}

impl Device for Cable {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sender<'a>;

    fn receive(&mut self, _now: Instant) -> Option<(Received, Sender<'_>)> {
        let packet = self.to_stack.pop_front()?;
        Some((Received(packet), Sender(&mut self.from_stack)))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Sender<'_>> {
        Some(Sender(&mut self.from_stack))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.mtu;
        // The port's program has looked at what comes in.
        let mut checksum = ChecksumCapabilities::default();
        checksum.tcp = Checksum::Tx;
        checksum.ipv4 = Checksum::Tx;
        capabilities.checksum = checksum;
        capabilities
    }
}

fn instant(now: Milliseconds) -> Instant {
    Instant::from_millis(i64::try_from(now).unwrap_or(i64::MAX))
}

impl Stack {
    /// A stack with the gateway's and the metadata's addresses.
    pub(crate) fn new(network: &Network, mac: MacAddress, now: Milliseconds) -> Self {
        let mut cable = Cable {
            mtu: usize::from(network.mtu),
            to_stack: VecDeque::new(),
            from_stack: Vec::new(),
        };
        let mut config = Config::new(HardwareAddress::Ip);
        let mut seed = [0; 8];
        // Without randomness sequence numbers are guessable, by a guest that
        // is at the other end anyway.
        let _ = rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty());
        config.random_seed = u64::from_ne_bytes(seed);
        let mut interface = Interface::new(config, &mut cable, instant(now));
        let mut addresses: Vec<(IpAddr, u8)> = Vec::new();
        if let Some(v4) = network.v4 {
            addresses.extend([
                (v4.gateway.into(), v4.prefix.prefix_len()),
                (METADATA_V4.into(), 32),
            ]);
            let _ = interface.routes_mut().add_default_ipv4_route(v4.gateway);
        }
        if let Some(v6) = network.v6 {
            addresses.extend([
                (v6.gateway.into(), v6.prefix.prefix_len()),
                (METADATA_V6.into(), 128),
                (GATEWAY_LINK_LOCAL.into(), 64),
            ]);
            let _ = interface.routes_mut().add_default_ipv6_route(v6.gateway);
        }
        interface.update_ip_addrs(|list| {
            for (address, length) in addresses {
                // There is room for eight.
                let _ = list.push(IpCidr::new(address.into(), length));
            }
        });
        let mut stack = Self {
            interface,
            cable,
            sockets: SocketSet::new(Vec::new()),
            connections: Vec::new(),
            mac,
            generation: 0,
        };
        for port in [HTTP, DNS] {
            for _ in 0..CONNECTIONS {
                stack.add_connection(port);
            }
        }
        stack
    }

    fn add_connection(&mut self, port: u16) {
        let mut socket = new_socket();
        // Refused only for port 0.
        let _ = socket.listen(IpListenEndpoint { addr: None, port });
        let handle = self.sockets.add(socket);
        self.connections.push(Connection {
            handle,
            port,
            received: Vec::new(),
            unsent: VecDeque::new(),
            closing: false,
            unanswered: 0,
            generation: 0,
        });
    }

    /// Takes a packet from the guest, from the IP header on.
    pub(crate) fn receive(&mut self, packet: &[u8]) {
        if self.cable.to_stack.len() < MAXIMUM_PENDING {
            self.cable.to_stack.push_back(packet.to_vec());
        }
    }

    /// Answers a DNS question, if its connection is still there.
    pub(crate) fn answer(&mut self, connection: ConnectionId, answer: &[u8]) {
        let Some(found) = self.connections.get_mut(connection.index) else {
            return;
        };
        if found.generation != connection.generation {
            return;
        }
        found.unanswered = found.unanswered.saturating_sub(1);
        if let (Ok(length), false) = (u16::try_from(answer.len()), answer.is_empty()) {
            found.unsent.extend(length.to_be_bytes());
            found.unsent.extend(answer);
        }
    }

    /// Does what is to be done now; gives DNS questions, and frames for the
    /// guest.
    pub(crate) fn poll(
        &mut self,
        now: Milliseconds,
        metadata: &mut MetadataServer,
        frames: &mut Vec<Vec<u8>>,
    ) -> Vec<Question> {
        let mut questions = Vec::new();
        // Twice: what is written after the first pass goes out by the second.
        for _ in 0..2 {
            self.interface
                .poll(instant(now), &mut self.cable, &mut self.sockets);
            for index in 0..self.connections.len() {
                self.serve(index, now, metadata, &mut questions);
            }
        }
        self.interface
            .poll(instant(now), &mut self.cable, &mut self.sockets);
        for packet in self.cable.from_stack.drain(..) {
            let ethertype = match packet.first().map(|byte| byte >> 4) {
                Some(4) => ethertype::IPV4,
                _ => ethertype::IPV6,
            };
            let header = Ethernet {
                destination: self.mac,
                source: GATEWAY_MAC,
                ethertype,
            };
            let mut frame = header.bytes().to_vec();
            frame.extend(packet);
            frames.push(frame);
        }
        questions
    }

    /// When to call [`Self::poll`] at the latest, in milliseconds from now.
    pub(crate) fn delay(&mut self, now: Milliseconds) -> Option<u64> {
        self.interface
            .poll_delay(instant(now), &self.sockets)
            .map(|delay| delay.total_millis())
    }

    fn serve(
        &mut self,
        index: usize,
        now: Milliseconds,
        metadata: &mut MetadataServer,
        questions: &mut Vec<Question>,
    ) {
        let connection = &mut self.connections[index];
        let mut socket = self.sockets.get_mut::<tcp::Socket<'_>>(connection.handle);
        // The guest can't confuse itself with its own old segments for long
        // enough to be worth a socket that waits.
        if !socket.is_open() || socket.state() == tcp::State::TimeWait {
            self.generation += 1;
            connection.generation = self.generation;
            connection.received.clear();
            connection.unsent.clear();
            connection.closing = false;
            connection.unanswered = 0;
            if socket.state() == tcp::State::TimeWait {
                self.sockets.remove(connection.handle);
                connection.handle = self.sockets.add(new_socket());
                socket = self.sockets.get_mut(connection.handle);
            }
            let any = IpListenEndpoint {
                addr: None,
                port: connection.port,
            };
            // Refused only for port 0.
            let _ = socket.listen(any);
            return;
        }
        if !socket.is_active() {
            return;
        }
        if let Some(endpoint) = socket.local_endpoint() {
            // Each service has addresses of its own.
            let address = SocketAddr::new(endpoint.addr.into(), endpoint.port);
            let metadata_address = address.ip() == METADATA_V4 || address.ip() == METADATA_V6;
            if metadata_address != (connection.port == HTTP) {
                socket.abort();
                return;
            }
        }
        let limit = if connection.closing {
            0
        } else {
            MAXIMUM_REQUEST
        };
        while socket.can_recv() && connection.received.len() < limit {
            let room = limit - connection.received.len();
            let took = socket.recv(|data| {
                let length = data.len().min(room);
                connection.received.extend_from_slice(&data[..length]);
                (length, length)
            });
            if took.is_err() {
                break;
            }
        }
        match connection.port {
            HTTP if !connection.closing => {
                if let Response::Whole(bytes) = metadata.respond(&connection.received, now) {
                    connection.unsent.extend(bytes);
                    connection.closing = true;
                }
            }
            DNS => {
                let id = ConnectionId {
                    index,
                    generation: connection.generation,
                };
                connection.take_questions(id, questions);
            }
            _ => {}
        }
        while socket.can_send() && !connection.unsent.is_empty() {
            let (front, _) = connection.unsent.as_slices();
            match socket.send_slice(front) {
                Ok(0) | Err(_) => break,
                Ok(sent) => drop(connection.unsent.drain(..sent)),
            }
        }
        let said_all = connection.unsent.is_empty() && connection.unanswered == 0;
        let heard_all = socket.state() == tcp::State::CloseWait && !socket.can_recv();
        if said_all && (connection.closing || heard_all) {
            socket.close();
        }
    }
}

fn new_socket() -> tcp::Socket<'static> {
    let mut socket = tcp::Socket::new(
        tcp::SocketBuffer::new(vec![0; RECEIVE_BUFFER]),
        tcp::SocketBuffer::new(vec![0; SEND_BUFFER]),
    );
    socket.set_timeout(Some(IDLE));
    socket.set_nagle_enabled(false);
    socket
}

impl Connection {
    /// Cuts what was received into questions (RFC 1035, section 4.2.2).
    fn take_questions(&mut self, connection: ConnectionId, questions: &mut Vec<Question>) {
        while self.unanswered < CONNECTIONS {
            let [high, low, rest @ ..] = self.received.as_slice() else {
                return;
            };
            let length = usize::from(u16::from_be_bytes([*high, *low]));
            if length > MAXIMUM_REQUEST - 2 {
                self.received.clear();
                self.closing = true;
                return;
            }
            let Some(query) = rest.get(..length) else {
                return;
            };
            questions.push(Question {
                connection,
                query: query.to_vec(),
            });
            self.unanswered += 1;
            self.received.drain(..2 + length);
        }
    }
}
