//! The way out of a network through the host's own sockets, as the calling
//! user, and the way in by published ports.
//!
//! The plane's thread calls [`Nat`] as its [`Uplink`]. Each TCP connection and
//! each conversation of datagrams is one host socket ([`tcp`], [`datagram`]);
//! nothing here needs a privilege, and no rule of the host is touched.
//!
//! Who may be reached: everything the host reaches, its own addresses on real
//! networks as any other machine's, but never its loopback, link-local and
//! multicast addresses. With [`NatOptions::host_loopback`] the gateway's
//! addresses lead to the host's loopback.
//!
//! A guest is hostile: all that is kept for it is bounded (flows by number,
//! data from a guest by the window it is told, data for it by the socket's
//! own buffer). A full table refuses, or forgets the datagrams used last.

mod datagram;
mod flow;
mod listener;
mod publish;
mod tcp;
mod wire;

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, Protocol, SocketFlags, SocketType, connect, ipproto, socket_with, sockopt,
};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

use crate::link::{Offload, SegmentKind};
use crate::model::{MINIMUM_MTU, Network, PortId};
use crate::packet::{Ip, protocol};
use crate::uplink::Uplink;
use datagram::Socket;
use flow::{Flow, Key, Kind, datagrams};
use listener::Listener;
pub use publish::{PublishError, Published};
use tcp::{Fate, Segment, Tcp};
use wire::{ACK, Header, Out, RST, Unreachable};

/// The most packets that wait for guests.
const OUT_LIMIT: usize = 4096;
/// Tokens of what isn't a flow.
const WAKE: u64 = 0;
const TIMER: u64 = 1;

/// How a network's way out behaves.
#[derive(Clone, Copy, Debug)]
pub struct NatOptions {
    /// Largest IP packet in the network, in bytes.
    pub mtu: u16,
    /// The gateway's IPv4 address; clients on the host appear to come from it.
    pub gateway4: Option<Ipv4Addr>,
    /// The gateway's IPv6 address.
    pub gateway6: Option<Ipv6Addr>,
    /// Whether the gateway's addresses lead to the host's loopback.
    pub host_loopback: bool,
    /// The most descriptors held for all flows together.
    pub descriptors: usize,
}

impl NatOptions {
    /// What suits `network`: at most half of the process's descriptors.
    pub fn of(network: &Network) -> Self {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        Self {
            mtu: network.mtu,
            gateway4: network.v4.map(|v4| v4.gateway),
            gateway6: network.v6.map(|v6| v6.gateway),
            host_loopback: network.host_loopback,
            descriptors: limit.map_or(8192, |limit| (limit / 2).min(8192) as usize),
        }
    }
}

/// What has happened, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// TCP connections begun, either way.
    pub tcp_opened: u64,
    /// TCP connections ended by a reset to the guest.
    pub tcp_resets: u64,
    /// TCP segments sent to guests again.
    pub tcp_retransmissions: u64,
    /// Conversations of datagrams begun, either way.
    pub datagrams_opened: u64,
    /// Dropped: can't be read, or its checksum is wrong.
    pub malformed: u64,
    /// Dropped: a protocol or message no host socket sends.
    pub unsupported: u64,
    /// Refused: an address guests don't reach.
    pub refused_address: u64,
    /// Refused: the table of flows is full.
    pub table_full: u64,
    /// The host refused to send, or has no socket.
    pub refused_by_host: u64,
    /// Refused: the host allows this user neither ping sockets
    /// (`net.ipv4.ping_group_range`) nor raw ones. The guest is told
    /// "administratively prohibited".
    pub ping_forbidden: u64,
    /// Dropped: too much waits for guests.
    pub overflow: u64,
}

/// Host sockets as a network's way out and in.
pub struct Nat {
    options: NatOptions,
    epoll: OwnedFd,
    /// Readable while `out` isn't empty.
    wake: OwnedFd,
    awake: bool,
    timer: OwnedFd,
    timers: BTreeSet<(Instant, u64)>,
    timer_at: Option<Instant>,
    flows: HashMap<u64, Flow>,
    by_key: HashMap<Key, u64>,
    /// TCP connections and conversations of datagrams of each port.
    counts: HashMap<PortId, (usize, usize)>,
    listeners: HashMap<u64, Listener>,
    next_token: u64,
    /// Connections that have something to answer, at the end of the batch.
    awaited: Vec<u64>,
    out: Out,
    scratch: Vec<u8>,
}

impl Nat {
    /// A way out; no flow yet.
    ///
    /// # Errors
    /// The host has no descriptors left.
    pub fn new(mut options: NatOptions) -> io::Result<Self> {
        options.mtu = options.mtu.max(MINIMUM_MTU);
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let wake = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        epoll::add(&epoll, &wake, EventData::new_u64(WAKE), EventFlags::IN)?;
        epoll::add(&epoll, &timer, EventData::new_u64(TIMER), EventFlags::IN)?;
        Ok(Self {
            options,
            epoll,
            wake,
            awake: false,
            timer,
            timers: BTreeSet::new(),
            timer_at: None,
            flows: HashMap::new(),
            by_key: HashMap::new(),
            counts: HashMap::new(),
            listeners: HashMap::new(),
            next_token: 2,
            awaited: Vec::new(),
            out: Out::default(),
            scratch: vec![0; tcp::MAX_PAYLOAD.max(65_535)],
        })
    }

    /// How many flows there are.
    pub fn flows(&self) -> usize {
        self.flows.len()
    }

    /// What has happened.
    pub fn counters(&self) -> Counters {
        self.out.counters
    }

    fn token(&mut self) -> u64 {
        self.next_token += 1;
        self.next_token
    }

    /// Where on the host `address` leads, if guests may reach it.
    fn target(&self, address: IpAddr) -> Option<IpAddr> {
        let gateway = match address {
            IpAddr::V4(v4) => self.options.gateway4 == Some(v4),
            IpAddr::V6(v6) => self.options.gateway6 == Some(v6),
        };
        if gateway {
            let loopback = match address {
                IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
                IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
            };
            return self.options.host_loopback.then_some(loopback);
        }
        let reachable = match address {
            IpAddr::V4(v4) => is_reachable(v4),
            IpAddr::V6(v6) => {
                // IPv4 in IPv6's clothes would reach what IPv4 may not.
                let embedded = v6.to_ipv4_mapped().is_some() || v6.to_ipv4().is_some();
                let local = matches!(v6.segments()[0] & 0xffc0, 0xfe80 | 0xfec0);
                !(v6.is_multicast() || v6.is_loopback() || v6.is_unspecified() || embedded || local)
            }
        };
        reachable.then_some(address)
    }

    /// The client as the guest sees it: itself, or the gateway if the guest
    /// can't answer to it.
    fn client(&self, client: SocketAddr, guest: IpAddr) -> Option<SocketAddr> {
        let same = client.is_ipv4() == guest.is_ipv4();
        if same && client.ip() != guest && self.target(client.ip()) == Some(client.ip()) {
            return Some(client);
        }
        let gateway = match guest {
            IpAddr::V4(_) => self.options.gateway4.map(IpAddr::V4),
            IpAddr::V6(_) => self.options.gateway6.map(IpAddr::V6),
        };
        Some(SocketAddr::new(gateway?, client.port()))
    }

    fn connect(
        &mut self,
        token: u64,
        to: SocketAddr,
        kind: SocketType,
        protocol: Option<Protocol>,
    ) -> Result<OwnedFd, Errno> {
        let family = match to {
            SocketAddr::V4(_) => AddressFamily::INET,
            SocketAddr::V6(_) => AddressFamily::INET6,
        };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = socket_with(family, kind, flags, protocol)?;
        let mut events = EventFlags::IN;
        if kind == SocketType::STREAM {
            events |= EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
            let _ = sockopt::set_tcp_nodelay(&socket, true);
            let _ = sockopt::set_socket_keepalive(&socket, true);
        }
        match connect(&socket, &to) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(error) => return Err(error),
        }
        epoll::add(&self.epoll, &socket, EventData::new_u64(token), events)?;
        Ok(socket)
    }

    /// A socket for echoes: a ping socket, or a raw one where this user may
    /// have no ping socket but is privileged.
    fn connect_echo(&mut self, token: u64, to: SocketAddr) -> Result<Socket, Errno> {
        let protocol = Some(match to {
            SocketAddr::V4(_) => ipproto::ICMP,
            SocketAddr::V6(_) => ipproto::ICMPV6,
        });
        match self.connect(token, to, SocketType::DGRAM, protocol) {
            Ok(socket) => Ok(Socket::Echo(socket)),
            Err(Errno::ACCESS | Errno::PERM) => {
                let socket = self.connect(token, to, SocketType::RAW, protocol)?;
                Ok(Socket::RawEcho(socket, (initial_sequence() >> 8) as u16))
            }
            Err(error) => Err(error),
        }
    }

    /// Says once what to do about it.
    fn ping_is_forbidden(&mut self) {
        if self.out.counters.ping_forbidden == 0 {
            tracing::warn!(
                "guests can't ping: the host allows this user no ping sockets; \
                 root can allow them: sysctl net.ipv4.ping_group_range='0 2147483647'"
            );
        }
        self.out.counters.ping_forbidden += 1;
    }

    fn tcp_from_guest(&mut self, key: Key, bytes: &[u8], now: Instant) {
        let Some(segment) = Segment::parse(bytes) else {
            self.out.counters.malformed += 1;
            return;
        };
        if let Some(&token) = self.by_key.get(&key) {
            let Some(Flow {
                kind: Kind::Tcp(tcp),
                ..
            }) = self.flows.get_mut(&token)
            else {
                return;
            };
            let fate = tcp.guest_sent(&segment, &mut self.out, now);
            if fate == Fate::Gone {
                return self.remove(token);
            }
            if !tcp.awaited {
                tcp.awaited = true;
                self.awaited.push(token);
            }
            return;
        }
        if segment.flags.rst() {
            return;
        }
        if !segment.flags.syn() || segment.flags.ack() {
            return self.refuse(&key, &segment);
        }
        let Some(address) = self.target(key.peer.ip()) else {
            self.out.counters.refused_address += 1;
            return self.refuse(&key, &segment);
        };
        if !self.has_room(&key) {
            return self.refuse(&key, &segment);
        }
        let token = self.token();
        let to = SocketAddr::new(address, key.peer.port());
        match self.connect(token, to, SocketType::STREAM, None) {
            Ok(socket) => {
                let (port, mtu) = (key.port, self.options.mtu);
                let iss = initial_sequence();
                let tcp = Tcp::outbound(port, key.guest, key.peer, socket, mtu, iss, &segment, now);
                self.insert(token, key, Kind::Tcp(Box::new(tcp)));
            }
            Err(_) => {
                self.out.counters.refused_by_host += 1;
                self.refuse(&key, &segment);
            }
        }
    }

    /// A reset for what belongs to no connection (RFC 9293, section 3.10.7.1).
    fn refuse(&mut self, key: &Key, segment: &Segment<'_>) {
        let syn = u32::from(segment.flags.syn()) + u32::from(segment.flags.fin());
        let end = segment.seq.wrapping_add(segment.payload.len() as u32 + syn);
        let header = if segment.flags.ack() {
            Header {
                seq: segment.ack,
                ack: 0,
                flags: RST,
                window: 0,
            }
        } else {
            Header {
                seq: 0,
                ack: end,
                flags: RST | ACK,
                window: 0,
            }
        };
        self.out.counters.tcp_resets += 1;
        self.out
            .tcp(key.port, key.peer, key.guest, &header, &[], [&[]; 2], 0);
    }

    /// A datagram's payload, or an echo's message; `packet` it was in.
    fn datagram_from_guest(&mut self, key: Key, payload: &[u8], packet: &[u8], now: Instant) {
        let token = match self.by_key.get(&key) {
            Some(&token) => token,
            None => {
                let Some(address) = self.target(key.peer.ip()) else {
                    self.out.counters.refused_address += 1;
                    let (peer, guest) = (key.peer.ip(), key.guest.ip());
                    if !peer.is_multicast() && peer != IpAddr::V4(Ipv4Addr::BROADCAST) {
                        let why = Unreachable::Prohibited;
                        self.out.unreachable(key.port, peer, guest, why, packet);
                    }
                    return;
                };
                if !self.has_room(&key) {
                    return;
                }
                let token = self.token();
                let to = SocketAddr::new(address, key.peer.port());
                let echo = key.protocol != protocol::UDP;
                let opened = if echo {
                    self.connect_echo(token, to)
                } else {
                    let socket = self.connect(token, to, SocketType::DGRAM, None);
                    socket.map(Socket::Udp)
                };
                let socket = match opened {
                    Ok(socket) => socket,
                    Err(error) => {
                        let why = if echo && matches!(error, Errno::ACCESS | Errno::PERM) {
                            self.ping_is_forbidden();
                            Unreachable::Prohibited
                        } else {
                            self.out.counters.refused_by_host += 1;
                            Unreachable::Host
                        };
                        let (peer, guest) = (key.peer.ip(), key.guest.ip());
                        self.out.unreachable(key.port, peer, guest, why, packet);
                        return;
                    }
                };
                self.insert(token, key, Kind::Datagrams(datagrams(key, socket, now)));
                token
            }
        };
        if let Some(Flow {
            kind: Kind::Datagrams(flow),
            ..
        }) = self.flows.get_mut(&token)
        {
            let published = match &flow.socket {
                Socket::Published(listener, _) => self.listeners.get(listener).map(|l| &l.socket),
                _ => None,
            };
            flow.guest_sent(payload, published, &mut self.out, now);
        }
    }

    fn take(&mut self, port: PortId, packet: &[u8], offload: Offload) {
        let Ok(ip) = Ip::parse(packet) else {
            self.out.counters.malformed += 1;
            return;
        };
        let packet = &packet[..ip.length];
        if ip.check_offload(&offload, 0).is_err() || !ip.transport_checksum_holds(packet, &offload)
        {
            self.out.counters.malformed += 1;
            return;
        }
        let now = Instant::now();
        let bytes = &packet[ip.transport..];
        let key = Key {
            port,
            protocol: ip.protocol,
            guest: SocketAddr::new(ip.source, ip.ports.0),
            peer: SocketAddr::new(ip.destination, ip.ports.1),
        };
        match ip.protocol {
            protocol::TCP => self.tcp_from_guest(key, bytes, now),
            protocol::UDP if key.peer.port() == 0 => self.out.counters.malformed += 1,
            protocol::UDP => {
                let length = usize::from(u16::from_be_bytes([bytes[4], bytes[5]]));
                let payload = &bytes[8..length.clamp(8, bytes.len())];
                match offload.segmentation {
                    Some(cut) if cut.kind == SegmentKind::Udp => {
                        for payload in payload.chunks(usize::from(cut.size.max(1))) {
                            self.datagram_from_guest(key, payload, packet, now);
                        }
                    }
                    _ => self.datagram_from_guest(key, payload, packet, now),
                }
            }
            _ if ip.is_echo_request() => self.datagram_from_guest(key, bytes, packet, now),
            _ => self.out.counters.unsupported += 1,
        }
    }

    /// Has connections answer what guests sent in this batch.
    fn finish(&mut self) {
        if self.awaited.is_empty() {
            return;
        }
        let now = Instant::now();
        let mut awaited = std::mem::take(&mut self.awaited);
        for token in awaited.drain(..) {
            let flow = self.flows.get_mut(&token).map(|flow| &mut flow.kind);
            if let Some(Kind::Tcp(tcp)) = flow {
                let fate = tcp.finish(&mut self.out, &mut self.scratch, now);
                self.settle(token, fate);
            }
        }
        self.awaited = awaited;
    }

    /// Takes what the host has, once.
    fn poll(&mut self) {
        let mut events: Vec<epoll::Event> = Vec::with_capacity(64);
        let none = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let spare = rustix::buffer::spare_capacity(&mut events);
        if epoll::wait(&self.epoll, spare, Some(&none)).is_err() {
            return;
        }
        let now = Instant::now();
        for event in &events {
            let (token, flags) = (event.data.u64(), event.flags);
            match token {
                WAKE => {}
                TIMER => {
                    let _ = rustix::io::read(&self.timer, &mut [0; 8]);
                    self.timer_at = None;
                }
                _ if self.listeners.contains_key(&token) => self.serve_listener(token, now),
                _ => {
                    let Some(flow) = self.flows.get_mut(&token) else {
                        continue;
                    };
                    let fate = match &mut flow.kind {
                        Kind::Tcp(tcp) => tcp.host_ready(
                            flags.contains(EventFlags::RDHUP),
                            flags.contains(EventFlags::ERR),
                            &mut self.out,
                            &mut self.scratch,
                            now,
                        ),
                        Kind::Datagrams(datagrams) => {
                            datagrams.host_ready(&mut self.out, &mut self.scratch, now);
                            Fate::Keep
                        }
                    };
                    self.settle(token, fate);
                }
            }
        }
        self.serve_timers(now);
    }

    /// Makes [`Uplink::ready`] true when it is.
    fn arm(&mut self) {
        let waits = !self.out.packets.is_empty();
        if waits && !self.awake {
            self.awake = rustix::io::write(&self.wake, &1_u64.to_ne_bytes()).is_ok();
        } else if !waits && self.awake {
            self.awake = rustix::io::read(&self.wake, &mut [0; 8]).is_err();
        }
        let Some(&(first, _)) = self.timers.first() else {
            return;
        };
        if self.timer_at.is_some_and(|at| at <= first) {
            return;
        }
        let wait = first
            .saturating_duration_since(Instant::now())
            .max(Duration::from_millis(1));
        let value = Itimerspec {
            it_interval: Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            },
            it_value: Timespec {
                tv_sec: wait.as_secs() as i64,
                tv_nsec: i64::from(wait.subsec_nanos()),
            },
        };
        if timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &value).is_ok() {
            self.timer_at = Some(first);
        }
    }
}

impl Uplink for Nat {
    fn send(&mut self, port: PortId, packet: &[u8], offload: Offload) {
        self.take(port, packet, offload);
    }

    fn flush(&mut self) {
        self.finish();
        self.arm();
    }

    fn receive(&mut self, packet: &mut Vec<u8>) -> Option<(PortId, Offload)> {
        self.finish();
        if self.out.packets.is_empty() {
            self.poll();
        }
        let next = self.out.pop(packet);
        if self.out.packets.is_empty() {
            self.arm();
        }
        next
    }

    fn ready(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

fn is_reachable(v4: Ipv4Addr) -> bool {
    let [first, ..] = v4.octets();
    !(v4.is_loopback() || v4.is_link_local() || first == 0 || first >= 224)
}

/// Nobody may guess where a connection's sequence begins (RFC 6528).
fn initial_sequence() -> u32 {
    let mut bytes = [0; 4];
    let _ = rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty());
    u32::from_ne_bytes(bytes)
}

#[cfg(test)]
#[path = "nat_test.rs"]
mod test;
