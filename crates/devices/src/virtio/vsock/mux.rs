//! All connections of one socket device, and the packets between them and the
//! guest. Runs on the device's thread.
//!
//! Nothing is queued without bound: there are at most `max_connections`
//! connections, each waits at most once in `ready`, and while too many resets
//! wait for buffers of the guest, no more of its packets are taken.

use std::collections::{HashMap, VecDeque};
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use favo_accel::GuestMemory;
use zerocopy::{FromZeros, IntoBytes};

use super::super::queue::{Chain, QueueCounters, Virtqueue, read_segments, write_segments};
use super::super::worker::{Context, Handler, Interest, Readiness};
use super::connection::{Connection, State};
use super::host::{Listeners, SocketFile, read_greeting};
use super::packet::{HEADER_SIZE, HOST_CID, Header, Operation, Ports, TYPE_STREAM};
use super::send::{count, reset_header, send_next, send_packet};

/// The queue towards the guest.
pub const RX: u16 = 0;
/// The queue from the guest.
pub const TX: u16 = 1;
/// The queue of events.
pub const EVENT: u16 = 2;

/// How long the guest may take to answer a connection request, and a host
/// client to say what it wants.
const PATIENCE: Duration = Duration::from_secs(10);
/// Packets handled before anything else has its turn.
const PACKETS_PER_STEP: usize = 64;
/// Resets that may wait before no more packets are taken from the guest.
const MAX_RESETS: usize = 256;
/// Clients that may be in the middle of their greeting.
const MAX_GREETINGS: usize = 64;
/// Where the host's own port numbers begin.
const FIRST_HOST_PORT: u32 = 1 << 30;
const LISTENER: u64 = 0;

/// What a socket device counts.
#[derive(Debug, Default)]
pub struct VsockCounters {
    /// Connections that were made, either way.
    pub connections: AtomicU64,
    /// Connections ended or refused with a reset.
    pub resets_sent: AtomicU64,
    /// Bytes of data taken from the guest.
    pub bytes_from_guest: AtomicU64,
    /// Bytes of data given to the guest.
    pub bytes_to_guest: AtomicU64,
    /// What went wrong on the rings.
    pub queues: Arc<QueueCounters>,
}

/// Who is told how a connection request of the host went.
enum Asker {
    /// A caller of the API.
    Api(Sender<io::Result<()>>),
    /// A client of the Unix socket, which is answered in the stream itself.
    Client,
}

/// See the module.
pub struct Mux {
    guest_cid: u64,
    max_connections: usize,
    listeners: Arc<Listeners>,
    counters: Arc<VsockCounters>,
    socket: Option<SocketFile>,
    connections: HashMap<u64, Connection>,
    by_ports: HashMap<Ports, u64>,
    /// Connections with something to send to the guest, each once.
    ready: VecDeque<u64>,
    resets: VecDeque<Ports>,
    askers: HashMap<u64, Asker>,
    greetings: HashMap<u64, UnixStream>,
    /// All have the same patience, so they are in order.
    timers: VecDeque<(Instant, u64)>,
    next_token: u64,
    next_host_port: u32,
    /// The guest must be told that its connections are gone.
    transport_reset: bool,
}

impl Mux {
    /// Without connections.
    pub fn new(
        guest_cid: u64,
        max_connections: usize,
        listeners: Arc<Listeners>,
        counters: Arc<VsockCounters>,
        socket: Option<SocketFile>,
    ) -> Self {
        Self {
            guest_cid,
            max_connections,
            listeners,
            counters,
            socket,
            connections: HashMap::new(),
            by_ports: HashMap::new(),
            ready: VecDeque::new(),
            resets: VecDeque::new(),
            askers: HashMap::new(),
            greetings: HashMap::new(),
            timers: VecDeque::new(),
            next_token: LISTENER + 1,
            next_host_port: FIRST_HOST_PORT,
            transport_reset: false,
        }
    }

    /// Begins to accept clients of the Unix socket.
    pub fn watch_socket(&self, context: &Context) -> io::Result<()> {
        match &self.socket {
            Some(socket) => context.watch(&socket.listener, LISTENER, Interest::READ),
            None => Ok(()),
        }
    }

    /// How many connections there are.
    pub fn connection_count(&self) -> usize {
        self.connections.len()
    }

    /// Forgets every connection. The guest learns of it only through
    /// [`Mux::announce_transport_reset`].
    pub fn reset(&mut self) {
        for (_, asker) in self.askers.drain() {
            if let Asker::Api(reply) = asker {
                let _ = reply.send(Err(io::ErrorKind::ConnectionReset.into()));
            }
        }
        // Closing a stream also takes it out of the epoll set.
        self.connections.clear();
        self.by_ports.clear();
        self.ready.clear();
        self.resets.clear();
        self.transport_reset = false;
    }

    /// Tells the guest, as soon as its event queue runs, that all of its
    /// connections are gone (virtio 1.2, 5.10.6.7).
    pub fn announce_transport_reset(&mut self) {
        self.transport_reset = true;
    }

    /// Connects `stream` to a port of the guest; `reply` learns the outcome.
    pub fn connect(
        &mut self,
        guest_port: u32,
        stream: UnixStream,
        reply: Sender<io::Result<()>>,
        context: &mut Context,
    ) {
        self.open(guest_port, stream, Asker::Api(reply), context);
        self.pump(context);
    }

    fn open(&mut self, guest: u32, stream: UnixStream, asker: Asker, context: &Context) {
        let host = loop {
            let port = self.next_host_port;
            self.next_host_port = port.checked_add(1).unwrap_or(FIRST_HOST_PORT);
            if !self.by_ports.contains_key(&Ports { host: port, guest }) {
                break port;
            }
        };
        let ports = Ports { host, guest };
        let mut connection = Connection::new(ports, State::Requested, stream);
        connection.pending.request = true;
        match self.insert(connection, context) {
            Ok(token) => {
                self.askers.insert(token, asker);
                self.timers.push_back((Instant::now() + PATIENCE, token));
                self.list(token);
            }
            Err(error) => {
                if let Asker::Api(reply) = asker {
                    let _ = reply.send(Err(error));
                }
            }
        }
    }

    fn insert(&mut self, connection: Connection, context: &Context) -> io::Result<u64> {
        if self.connections.len() >= self.max_connections {
            return Err(io::Error::other("the guest has too many connections"));
        }
        let token = self.next_token;
        self.next_token += 1;
        context.watch(&connection.stream, token, Interest::CHANGES)?;
        self.by_ports.insert(connection.ports, token);
        count(&self.counters.connections, 1);
        self.connections.insert(token, connection);
        Ok(token)
    }

    /// Drops a connection, and tells the guest if `tell`.
    fn remove(&mut self, token: u64, tell: bool, context: &Context) {
        let Some(connection) = self.connections.remove(&token) else {
            return;
        };
        context.unwatch(&connection.stream);
        if connection.state != State::Draining {
            self.by_ports.remove(&connection.ports);
        }
        if tell {
            self.resets.push_back(connection.ports);
        }
        if let Some(Asker::Api(reply)) = self.askers.remove(&token) {
            let _ = reply.send(Err(io::ErrorKind::ConnectionRefused.into()));
        }
    }

    fn list(&mut self, token: u64) {
        if let Some(connection) = self.connections.get_mut(&token)
            && connection.has_work()
            && !std::mem::replace(&mut connection.listed, true)
        {
            self.ready.push_back(token);
        }
    }

    /// After anything happened to a connection: is it over, has it work?
    fn settle(&mut self, token: u64, context: &Context) {
        let Some(connection) = self.connections.get_mut(&token) else {
            return;
        };
        match connection.state {
            State::Draining if connection.is_drained() => self.remove(token, false, context),
            State::Established if connection.is_finished() => self.remove(token, true, context),
            _ => self.list(token),
        }
    }
}

/// From the guest.
impl Mux {
    fn receive(&mut self, context: &mut Context) {
        let Some(memory) = context.queue(TX).map(|queue| queue.memory().clone()) else {
            return;
        };
        let mut more = true;
        for _ in 0..PACKETS_PER_STEP {
            if self.resets.len() >= MAX_RESETS {
                // Goes on when `pump` has sent them.
                more = false;
                break;
            }
            let Some(chain) = context.queue(TX).and_then(Virtqueue::pop) else {
                more = false;
                break;
            };
            self.receive_packet(&memory, &chain, context);
            if let Some(queue) = context.queue(TX) {
                queue.add_used(chain, 0);
            }
        }
        if let Some(queue) = context.queue(TX) {
            queue.signal();
        }
        if more {
            context.request(TX);
        }
        self.pump(context);
    }

    fn receive_packet(&mut self, memory: &GuestMemory, chain: &Chain, context: &Context) {
        let mut header = Header::new_zeroed();
        let got = read_segments(memory, chain.readable(), 0, header.as_mut_bytes());
        let payload = chain.readable_bytes().saturating_sub(HEADER_SIZE as u64);
        let ours =
            header.source_cid.get() == self.guest_cid && header.destination_cid.get() == HOST_CID;
        if got < HEADER_SIZE || u64::from(header.length.get()) > payload || !ours {
            self.counters.queues.count_malformed();
            return;
        }
        let ports = Ports {
            host: header.destination_port.get(),
            guest: header.source_port.get(),
        };
        let operation = Operation::from_number(header.operation.get());
        if header.socket_type.get() != TYPE_STREAM {
            if operation != Some(Operation::Reset) {
                self.resets.push_back(ports);
            }
            return;
        }
        match (self.by_ports.get(&ports).copied(), operation) {
            (None, Some(Operation::Request)) => self.accept(ports, &header, context),
            (None, Some(Operation::Reset)) => {}
            (None, _) => self.resets.push_back(ports),
            (Some(token), Some(operation)) => {
                self.receive_on(token, operation, &header, memory, chain, context);
            }
            (Some(token), None) => self.remove(token, true, context),
        }
    }

    fn accept(&mut self, ports: Ports, header: &Header, context: &Context) {
        let full = self.connections.len() >= self.max_connections;
        let result = if full {
            Err(io::Error::other("too many connections"))
        } else {
            self.listeners.connect(ports.host)
        };
        let result = result.and_then(|stream| {
            let mut connection = Connection::new(ports, State::Established, stream);
            connection.update_credit(header);
            connection.pending.response = true;
            self.insert(connection, context)
        });
        match result {
            Ok(token) => self.list(token),
            Err(error) => {
                tracing::debug!(port = ports.host, %error, "refusing a guest's connection");
                self.resets.push_back(ports);
            }
        }
    }

    fn receive_on(
        &mut self,
        token: u64,
        operation: Operation,
        header: &Header,
        memory: &GuestMemory,
        chain: &Chain,
        context: &Context,
    ) {
        let Some(connection) = self.connections.get_mut(&token) else {
            return;
        };
        connection.update_credit(header);
        let established = connection.state == State::Established;
        let legal = match operation {
            Operation::Reset => {
                if connection.must_drain() {
                    connection.state = State::Draining;
                    let ports = connection.ports;
                    self.by_ports.remove(&ports);
                } else {
                    self.remove(token, false, context);
                }
                return;
            }
            Operation::Response if !established => {
                self.answered(token);
                true
            }
            Operation::Data if established => {
                count(&self.counters.bytes_from_guest, header.length.get());
                connection
                    .receive(
                        memory,
                        chain.readable(),
                        HEADER_SIZE as u64,
                        header.length.get(),
                    )
                    .is_ok()
            }
            Operation::Shutdown if established => {
                connection.guest_shuts_down(header.flags.get());
                true
            }
            Operation::CreditUpdate => true,
            Operation::CreditRequest => {
                connection.pending.credit_update = established;
                true
            }
            Operation::Request | Operation::Response | Operation::Data | Operation::Shutdown => {
                false
            }
        };
        if legal {
            self.settle(token, context);
        } else {
            self.remove(token, true, context);
        }
    }

    /// The guest accepted a connection of the host.
    fn answered(&mut self, token: u64) {
        let Some(connection) = self.connections.get_mut(&token) else {
            return;
        };
        connection.establish();
        match self.askers.remove(&token) {
            Some(Asker::Api(reply)) => {
                let _ = reply.send(Ok(()));
            }
            Some(Asker::Client) => {
                // The stream is empty: a line always fits.
                let _ = writeln!(connection.stream, "OK {}", connection.ports.host);
            }
            None => {}
        }
    }
}

/// To the guest.
impl Mux {
    fn pump(&mut self, context: &mut Context) {
        let was_stalled = self.resets.len() >= MAX_RESETS;
        let Some(queue) = context.queue(RX) else {
            return;
        };
        let mut more = true;
        for _ in 0..PACKETS_PER_STEP {
            if let Some(&ports) = self.resets.front() {
                let Some(chain) = queue.pop() else {
                    more = false;
                    break;
                };
                let header = reset_header(self.guest_cid, ports);
                send_packet(queue, chain, &header, &self.counters);
                count(&self.counters.resets_sent, 1);
                self.resets.pop_front();
                continue;
            }
            let Some(token) = self.ready.pop_front() else {
                more = false;
                break;
            };
            let Some(connection) = self.connections.get_mut(&token) else {
                continue;
            };
            connection.listed = false;
            let sent = send_next(connection, self.guest_cid, queue, &self.counters);
            if connection.has_work() {
                connection.listed = true;
                if sent {
                    self.ready.push_back(token);
                } else {
                    self.ready.push_front(token);
                    more = false;
                    break;
                }
            }
        }
        queue.signal();
        if more {
            context.request(RX);
        }
        if was_stalled && self.resets.len() < MAX_RESETS {
            context.request(TX);
        }
    }

    fn send_event(&mut self, context: &mut Context) {
        const TRANSPORT_RESET: u32 = 0;
        if !self.transport_reset {
            return;
        }
        if let Some(queue) = context.queue(EVENT)
            && let Some(chain) = queue.pop()
        {
            let event = TRANSPORT_RESET.to_le_bytes();
            let written = write_segments(queue.memory(), chain.writable(), 0, &event);
            queue.add_used(chain, written as u32);
            queue.signal();
            self.transport_reset = false;
        }
    }
}

/// The host's Unix socket.
impl Mux {
    fn accept_clients(&mut self, context: &Context) {
        let Some(socket) = &self.socket else {
            return;
        };
        while self.greetings.len() < MAX_GREETINGS {
            let Ok((stream, _)) = socket.listener.accept() else {
                return;
            };
            let token = self.next_token;
            self.next_token += 1;
            if context.watch(&stream, token, Interest::CHANGES).is_ok() {
                self.greetings.insert(token, stream);
                self.timers.push_back((Instant::now() + PATIENCE, token));
            }
        }
        // Too many at once: the listener is looked at again when one is done.
        context.unwatch(&socket.listener);
    }

    fn greet(&mut self, token: u64, context: &Context) {
        let result = match self.greetings.get(&token) {
            Some(stream) => read_greeting(stream),
            None => return,
        };
        let port = match result {
            Ok(None) => return,
            Ok(Some(port)) => Some(port),
            Err(error) => {
                tracing::debug!(%error, "a client of the vsock socket was turned away");
                None
            }
        };
        self.end_greeting(token, port, context);
    }

    fn end_greeting(&mut self, token: u64, port: Option<u32>, context: &Context) {
        let was_full = self.greetings.len() >= MAX_GREETINGS;
        if let Some(stream) = self.greetings.remove(&token) {
            context.unwatch(&stream);
            if let Some(port) = port {
                self.open(port, stream, Asker::Client, context);
            }
        }
        if was_full {
            let _ = self.watch_socket(context);
        }
    }
}

impl Handler for Mux {
    fn serve(&mut self, index: u16, context: &mut Context) {
        match index {
            RX => self.pump(context),
            TX => self.receive(context),
            _ => self.send_event(context),
        }
    }

    fn ready(&mut self, token: u64, readiness: Readiness, context: &mut Context) {
        if token == LISTENER {
            self.accept_clients(context);
        } else if self.greetings.contains_key(&token) {
            self.greet(token, context);
        } else if let Some(connection) = self.connections.get_mut(&token) {
            if readiness.hangup && connection.state == State::Requested {
                // Nobody waits for the answer any more.
                self.remove(token, true, context);
            } else {
                connection.read_closed |= readiness.read_closed;
                connection.readable |=
                    readiness.readable || readiness.read_closed || readiness.hangup;
                if readiness.hangup {
                    connection.host_receives_no_more();
                }
                if readiness.writable || readiness.hangup {
                    connection.set_writable();
                }
                connection.note_stall();
                self.settle(token, context);
            }
        }
        self.pump(context);
    }

    fn deadline(&self) -> Option<Instant> {
        self.timers.front().map(|&(at, _)| at)
    }

    fn expired(&mut self, context: &mut Context) {
        let now = Instant::now();
        while let Some(&(at, token)) = self.timers.front() {
            if at > now {
                break;
            }
            self.timers.pop_front();
            self.end_greeting(token, None, context);
            let unanswered = self
                .connections
                .get(&token)
                .is_some_and(|connection| connection.state == State::Requested);
            if unanswered {
                self.remove(token, true, context);
            }
        }
        self.pump(context);
    }
}
