//! One TCP connection: the guest's sequence numbers and windows mirrored onto
//! a host socket.
//!
//! There is no second TCP stack. What the guest sends goes into the socket;
//! what the socket can't take at once waits in `pending`, and the window told
//! to the guest shrinks by it. What the host sends stays in the socket's
//! receive buffer, is peeked at to be sent (and sent again), and leaves the
//! socket when the guest acknowledges it: byte `una` is always the first one
//! in the socket. (RFC 9293; fast retransmit as RFC 6582.)

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown, sockopt};
use smoltcp::wire::TcpOption;

use super::wire::{ACK, FIN, Header, Out, PSH, RST, SYN};
use crate::model::PortId;
use crate::packet::TcpFlags;

/// The most a guest may have under way to a socket that takes nothing, bytes.
const WINDOW: usize = 256 << 10;
/// Our windows are told in units of this power of two (RFC 7323).
const SCALE: u8 = 3;
/// The most that is under way to a guest, bytes.
pub(super) const IN_FLIGHT: usize = 512 << 10;
/// The longest payload of one packet to a guest, whatever its options are.
const MAX_PAYLOAD: usize = 65_535 - 60 - 20;
const RTO_MIN: Duration = Duration::from_millis(200);
const RTO_MAX: Duration = Duration::from_secs(60);
/// How often something is sent again before the guest is given up.
const RETRIES: u32 = 12;
const HANDSHAKE_RETRIES: u32 = 6;
/// When an idle guest is asked whether it is still there (RFC 9293, 3.8.4).
const IDLE: Duration = Duration::from_secs(7200);
const KEEPALIVE: Duration = Duration::from_secs(75);
const KEEPALIVES: u32 = 9;

/// What is to become of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Keep,
    /// It is over; its socket is closed.
    Gone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The host's socket connects; the guest has sent its SYN.
    Connecting,
    /// The guest has our SYN and ACK.
    SynReceived,
    /// The guest has our SYN.
    SynSent,
    Open,
}

/// A segment from the guest.
pub(super) struct Segment<'a> {
    pub(super) seq: u32,
    pub(super) ack: u32,
    pub(super) flags: TcpFlags,
    pub(super) window: u16,
    pub(super) options: &'a [u8],
    pub(super) payload: &'a [u8],
}

impl<'a> Segment<'a> {
    /// Reads what `Ip::parse` has found to be a TCP segment.
    pub(super) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let header: &[u8; 20] = bytes.first_chunk()?;
        let word = |at: usize| {
            u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let data = usize::from(header[12] >> 4) * 4;
        Some(Self {
            seq: word(4),
            ack: word(8),
            flags: TcpFlags(header[13]),
            window: u16::from_be_bytes([header[14], header[15]]),
            options: bytes.get(20..data)?,
            payload: bytes.get(data..)?,
        })
    }

    /// Sequence numbers it takes.
    fn length(&self) -> u32 {
        let flags = u32::from(self.flags.syn()) + u32::from(self.flags.fin());
        self.payload.len() as u32 + flags
    }
}

/// A connection. `guest` and `peer` are as the guest sees them.
pub(super) struct Tcp {
    port: PortId,
    guest: SocketAddr,
    peer: SocketAddr,
    pub(super) socket: OwnedFd,
    state: State,
    /// The next byte from the guest.
    nxt_in: u32,
    /// From the guest, not yet in the socket.
    pending: VecDeque<u8>,
    guest_fin: bool,
    /// The socket is told that the guest is done.
    shut: bool,
    /// The window last told, bytes.
    told: u32,
    /// The first byte the guest hasn't acknowledged; the first in the socket.
    una: u32,
    /// The next byte to send.
    nxt: u32,
    /// The byte after the last that was ever sent.
    max: u32,
    /// The guest's window from `una` on, bytes.
    window: u32,
    /// The guest scales; its windows' unit.
    scale: Option<u8>,
    mss: u16,
    offer_mss: u16,
    host_eof: bool,
    /// Where our FIN is in the sequence.
    fin_at: Option<u32>,
    dup_acks: u32,
    /// Until this is acknowledged, losses are of the same burst.
    recover: u32,
    recovering: bool,
    rto: Duration,
    retries: u32,
    /// There is more in the socket than the guest's window lets through.
    blocked: bool,
    retransmit_at: Option<Instant>,
    idle_at: Instant,
    probes: u32,
}

impl Tcp {
    fn new(
        port: PortId,
        guest: SocketAddr,
        peer: SocketAddr,
        socket: OwnedFd,
        mtu: u16,
        iss: u32,
        now: Instant,
    ) -> Self {
        let offer_mss = mtu - if guest.is_ipv4() { 40 } else { 60 };
        Self {
            port,
            guest,
            peer,
            socket,
            state: State::Connecting,
            nxt_in: 0,
            pending: VecDeque::new(),
            guest_fin: false,
            shut: false,
            told: 0,
            una: iss,
            nxt: iss,
            max: iss,
            window: 0,
            scale: None,
            mss: 536,
            offer_mss,
            host_eof: false,
            fin_at: None,
            dup_acks: 0,
            recover: iss,
            recovering: false,
            rto: RTO_MIN,
            retries: 0,
            blocked: false,
            retransmit_at: None,
            idle_at: now + IDLE,
            probes: 0,
        }
    }

    /// The guest opens a connection; `socket` connects.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn outbound(
        port: PortId,
        guest: SocketAddr,
        peer: SocketAddr,
        socket: OwnedFd,
        mtu: u16,
        iss: u32,
        syn: &Segment<'_>,
        now: Instant,
    ) -> Self {
        let mut tcp = Self::new(port, guest, peer, socket, mtu, iss, now);
        tcp.nxt_in = syn.seq.wrapping_add(1);
        tcp.take_options(syn);
        tcp
    }

    /// A host's client has connected to a published port.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn inbound(
        port: PortId,
        guest: SocketAddr,
        peer: SocketAddr,
        socket: OwnedFd,
        mtu: u16,
        iss: u32,
        out: &mut Out,
        now: Instant,
    ) -> Self {
        let mut tcp = Self::new(port, guest, peer, socket, mtu, iss, now);
        tcp.state = State::SynSent;
        tcp.max = iss.wrapping_add(1);
        tcp.nxt = tcp.max;
        tcp.send_syn(out, now);
        tcp
    }

    /// When [`Tcp::timer`] wants to be called.
    pub(super) fn deadline(&self) -> Instant {
        self.retransmit_at
            .map_or(self.idle_at, |at| at.min(self.idle_at))
    }

    fn take_options(&mut self, syn: &Segment<'_>) {
        let mut options = syn.options;
        self.window = u32::from(syn.window);
        while !options.is_empty() {
            let Ok((rest, option)) = TcpOption::parse(options) else {
                return;
            };
            match option {
                TcpOption::EndOfList => return,
                TcpOption::MaxSegmentSize(mss) => self.mss = mss.clamp(64, self.offer_mss),
                TcpOption::WindowScale(scale) => self.scale = Some(scale.min(14)),
                _ => {}
            }
            options = rest;
        }
    }

    fn send_syn(&mut self, out: &mut Out, now: Instant) {
        let [high, low] = self.offer_mss.to_be_bytes();
        let options = [2, 4, high, low, 3, 3, SCALE, 1];
        let scales = self.scale.is_some() || self.state == State::SynSent;
        let (flags, ack) = match self.state {
            State::SynSent => (SYN, 0),
            _ => (SYN | ACK, self.nxt_in),
        };
        let header = Header {
            seq: self.una,
            ack,
            flags,
            window: u16::MAX,
        };
        self.told = u32::from(u16::MAX);
        let options = &options[..if scales { 8 } else { 4 }];
        out.tcp(self.port, self.peer, self.guest, &header, options, &[], 0);
        self.retransmit_at = Some(now + self.rto.max(Duration::from_secs(1)));
    }

    /// A header that acknowledges all that came, with the window there is.
    fn header(&mut self, seq: u32, flags: u8) -> Header {
        let free = WINDOW.saturating_sub(self.pending.len());
        let scale = if self.scale.is_some() { SCALE } else { 0 };
        let window = (free >> scale).min(0xffff) as u16;
        self.told = u32::from(window) << scale;
        Header {
            seq,
            ack: self.nxt_in,
            flags: flags | ACK,
            window,
        }
    }

    fn send_ack(&mut self, out: &mut Out) {
        let header = self.header(self.max, 0);
        out.tcp(self.port, self.peer, self.guest, &header, &[], &[], 0);
    }

    /// Ends the connection for both.
    pub(super) fn abort(&mut self, out: &mut Out) -> Fate {
        out.counters.tcp_resets += 1;
        let header = match self.state {
            State::Connecting => self.header(0, RST),
            State::SynSent => Header {
                seq: self.max,
                ack: 0,
                flags: RST,
                window: 0,
            },
            _ => self.header(self.max, RST),
        };
        out.tcp(self.port, self.peer, self.guest, &header, &[], &[], 0);
        self.reset_host()
    }

    /// Ends the connection for the host's end only: a close that resets.
    fn reset_host(&mut self) -> Fate {
        let _ = sockopt::set_socket_linger(&self.socket, Some(Duration::ZERO));
        Fate::Gone
    }

    /// The guest has sent something.
    pub(super) fn guest_sent(
        &mut self,
        segment: &Segment<'_>,
        out: &mut Out,
        scratch: &mut [u8],
        now: Instant,
    ) -> Fate {
        self.idle_at = now + IDLE;
        self.probes = 0;
        match self.state {
            State::Connecting => {
                let reset = segment.flags.rst() && segment.seq == self.nxt_in;
                return if reset { self.reset_host() } else { Fate::Keep };
            }
            State::SynSent => return self.answer_to_syn(segment, out, scratch, now),
            State::SynReceived | State::Open => {}
        }
        // RFC 9293, section 3.10.7.4; RFC 5961, sections 3 and 4.
        let ahead = segment.seq.wrapping_sub(self.nxt_in) as i32;
        if segment.flags.rst() {
            if ahead == 0 {
                return self.reset_host();
            }
            if ahead > 0 && (ahead as u32) < self.told {
                self.send_ack(out);
            }
            return Fate::Keep;
        }
        if segment.flags.syn() {
            if self.state == State::SynReceived {
                self.send_syn(out, now);
            } else {
                self.send_ack(out);
            }
            return Fate::Keep;
        }
        if !segment.flags.ack() {
            return Fate::Keep;
        }
        let beyond = segment.ack.wrapping_sub(self.max) as i32;
        if self.state == State::SynReceived {
            if segment.ack != self.max {
                return self.abort(out);
            }
            self.opened(now);
        } else if beyond > 0 {
            self.send_ack(out);
            return Fate::Keep;
        }
        if ahead > 0 {
            // Something is missing; say so. Its acknowledgment counts, though.
            self.take_ack(segment, out, scratch, now);
            self.send_ack(out);
        } else {
            if ahead < 0 || segment.length() > 0 {
                if self.take_data(segment, ahead.unsigned_abs()) == Fate::Gone {
                    return self.abort(out);
                }
                self.send_ack(out);
            }
            self.take_ack(segment, out, scratch, now);
        }
        self.pump(out, scratch, now, false)
    }

    fn answer_to_syn(
        &mut self,
        segment: &Segment<'_>,
        out: &mut Out,
        scratch: &mut [u8],
        now: Instant,
    ) -> Fate {
        let flags = segment.flags;
        if !flags.ack() || segment.ack != self.max {
            return Fate::Keep;
        }
        if flags.rst() {
            return self.reset_host();
        }
        if !flags.syn() {
            return Fate::Keep;
        }
        self.nxt_in = segment.seq.wrapping_add(1);
        self.take_options(segment);
        self.opened(now);
        self.send_ack(out);
        self.pump(out, scratch, now, false)
    }

    fn opened(&mut self, _now: Instant) {
        self.state = State::Open;
        self.una = self.max;
        self.nxt = self.max;
        self.recover = self.max;
        self.retransmit_at = None;
        self.retries = 0;
        self.rto = RTO_MIN;
    }

    /// Takes data of which the first `old` bytes were there before.
    fn take_data(&mut self, segment: &Segment<'_>, old: u32) -> Fate {
        let old = old as usize;
        if self.guest_fin || old > segment.payload.len() {
            return Fate::Keep;
        }
        let new = &segment.payload[old..];
        let room = WINDOW.saturating_sub(self.pending.len());
        let mut fits = &new[..new.len().min(room)];
        self.nxt_in = self.nxt_in.wrapping_add(fits.len() as u32);
        let all = fits.len() == new.len();
        while self.pending.is_empty() && !fits.is_empty() {
            match send(
                &self.socket,
                fits,
                SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
            ) {
                Ok(n) => fits = &fits[n..],
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(_) => return Fate::Gone,
            }
        }
        self.pending.extend(fits);
        if segment.flags.fin() && all {
            self.guest_fin = true;
            self.nxt_in = self.nxt_in.wrapping_add(1);
        }
        Fate::Keep
    }

    /// Bytes of data, without SYN and FIN, from `una` to `to`.
    fn data_until(&self, to: u32) -> usize {
        let end = match self.fin_at {
            Some(fin) if (to.wrapping_sub(fin) as i32) > 0 => fin,
            _ => to,
        };
        (end.wrapping_sub(self.una) as i32).max(0) as usize
    }

    fn take_ack(&mut self, segment: &Segment<'_>, out: &mut Out, scratch: &mut [u8], now: Instant) {
        let acked = segment.ack.wrapping_sub(self.una) as i32;
        if acked < 0 {
            return;
        }
        self.retries = 0;
        let window = u32::from(segment.window) << self.scale.unwrap_or(0);
        if acked == 0 {
            let duplicate = window == self.window && segment.length() == 0 && self.max != self.una;
            self.window = window;
            if !duplicate {
                return;
            }
            self.dup_acks += 1;
            if self.dup_acks == 3 && !self.recovering {
                self.recovering = true;
                self.recover = self.max;
                self.resend(out, scratch);
            }
            return;
        }
        self.drop_acked(self.data_until(segment.ack), scratch);
        self.una = segment.ack;
        self.window = window;
        if (self.una.wrapping_sub(self.nxt) as i32) > 0 {
            self.nxt = self.una;
        }
        self.dup_acks = 0;
        self.rto = RTO_MIN;
        if self.recovering {
            self.recovering = (self.recover.wrapping_sub(self.una) as i32) > 0;
            if self.recovering {
                self.resend(out, scratch);
            }
        }
        self.retransmit_at = (self.max != self.una).then(|| now + self.rto);
    }

    /// Takes what the guest has from the socket.
    fn drop_acked(&mut self, mut length: usize, scratch: &mut [u8]) {
        while length > 0 {
            let part = length.min(scratch.len());
            // TRUNC: thrown away, not copied (tcp(7)).
            match recv(
                &self.socket,
                &mut scratch[..part],
                RecvFlags::TRUNC | RecvFlags::DONTWAIT,
            ) {
                Ok((_, n)) if n > 0 => length -= n.min(length),
                Err(Errno::INTR) => {}
                // Reset meanwhile; the event says so.
                _ => return,
            }
        }
    }

    /// Sends one segment again: the first that isn't acknowledged.
    fn resend(&mut self, out: &mut Out, scratch: &mut [u8]) {
        let wanted = self.data_until(self.max).min(usize::from(self.mss));
        out.counters.tcp_retransmissions += 1;
        if wanted == 0 {
            if self.fin_at == Some(self.una) {
                let header = self.header(self.una, FIN);
                out.tcp(self.port, self.peer, self.guest, &header, &[], &[], 0);
            }
            return;
        }
        if let Ok((_, n)) = recv(
            &self.socket,
            &mut scratch[..wanted],
            RecvFlags::PEEK | RecvFlags::DONTWAIT,
        ) {
            let header = self.header(self.una, PSH);
            let data = &scratch[..n.min(wanted)];
            out.tcp(
                self.port,
                self.peer,
                self.guest,
                &header,
                &[],
                data,
                self.mss,
            );
        }
    }

    /// Moves what can be moved, both ways. `probe`: one byte more than the
    /// guest's window, if it is closed.
    pub(super) fn pump(
        &mut self,
        out: &mut Out,
        scratch: &mut [u8],
        now: Instant,
        probe: bool,
    ) -> Fate {
        if self.state != State::Open {
            return Fate::Keep;
        }
        if self.pump_to_host(out) == Fate::Gone
            || self.pump_to_guest(out, scratch, now, probe) == Fate::Gone
        {
            return self.abort(out);
        }
        let heard = self
            .fin_at
            .is_some_and(|fin| self.una == fin.wrapping_add(1));
        if heard && self.shut {
            return Fate::Gone;
        }
        Fate::Keep
    }

    fn pump_to_host(&mut self, out: &mut Out) -> Fate {
        while !self.pending.is_empty() {
            let (first, _) = self.pending.as_slices();
            match send(
                &self.socket,
                first,
                SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
            ) {
                Ok(n) => drop(self.pending.drain(..n)),
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(_) => return Fate::Gone,
            }
        }
        if self.pending.is_empty() {
            if self.pending.capacity() > 0 {
                self.pending = VecDeque::new();
            }
            if self.guest_fin && !self.shut {
                self.shut = true;
                let _ = shutdown(&self.socket, Shutdown::Write);
            }
        }
        let scale = if self.scale.is_some() { SCALE } else { 0 };
        let most = (0xffff_usize << scale).min(WINDOW);
        let free = WINDOW - self.pending.len().min(WINDOW);
        if !self.guest_fin && (self.told as usize) < most / 2 && free >= most / 2 {
            self.send_ack(out);
        }
        Fate::Keep
    }

    fn pump_to_guest(
        &mut self,
        out: &mut Out,
        scratch: &mut [u8],
        now: Instant,
        probe: bool,
    ) -> Fate {
        self.blocked = false;
        if self.fin_at.is_some() && self.nxt == self.max {
            return Fate::Keep;
        }
        let sent = self.data_until(self.nxt);
        let window = (self.window as usize).max(usize::from(probe));
        // One byte more than fits tells whether there is more.
        let limit = window.min(scratch.len() - 1);
        let peek = (limit.max(sent) + 1).min(scratch.len());
        let there = loop {
            match recv(
                &self.socket,
                &mut scratch[..peek],
                RecvFlags::PEEK | RecvFlags::DONTWAIT,
            ) {
                Ok((_, 0)) => {
                    self.host_eof = true;
                    break 0;
                }
                Ok((_, n)) => break n.min(peek),
                Err(Errno::AGAIN) => break 0,
                Err(Errno::INTR) => {}
                Err(_) => return Fate::Gone,
            }
        };
        self.blocked = there > limit;
        let end = there.min(limit);
        let mut at = sent;
        while at < end && (out.has_room() || probe) {
            let n = (end - at).min(self.payload());
            let header = self.header(self.nxt, if at + n == end { PSH } else { 0 });
            let data = &scratch[at..at + n];
            out.tcp(
                self.port,
                self.peer,
                self.guest,
                &header,
                &[],
                data,
                self.mss,
            );
            self.advance(n as u32);
            at += n;
        }
        self.blocked |= at < end;
        let fin_due = self.fin_at.is_none_or(|fin| self.nxt == fin);
        if self.host_eof && !self.blocked && at >= there && fin_due {
            let header = self.header(self.nxt, FIN);
            self.fin_at = Some(self.nxt);
            out.tcp(self.port, self.peer, self.guest, &header, &[], &[], 0);
            self.advance(1);
        }
        if (self.max != self.una || self.blocked) && self.retransmit_at.is_none() {
            self.retransmit_at = Some(now + self.rto);
        }
        Fate::Keep
    }

    /// Whole segments, as many as fit in a packet.
    fn payload(&self) -> usize {
        let mss = usize::from(self.mss);
        (MAX_PAYLOAD / mss).max(1) * mss
    }

    fn advance(&mut self, by: u32) {
        self.nxt = self.nxt.wrapping_add(by);
        if (self.nxt.wrapping_sub(self.max) as i32) > 0 {
            self.max = self.nxt;
        }
    }

    /// Something is due.
    pub(super) fn timer(&mut self, out: &mut Out, scratch: &mut [u8], now: Instant) -> Fate {
        if self.retransmit_at.is_some_and(|at| at <= now) {
            self.retransmit_at = None;
            self.retries += 1;
            self.rto = (self.rto * 2).min(RTO_MAX);
            if self.state != State::Open {
                if self.retries > HANDSHAKE_RETRIES {
                    return self.abort(out);
                }
                self.send_syn(out, now);
                return Fate::Keep;
            }
            if self.retries > RETRIES {
                return self.abort(out);
            }
            if self.max != self.una {
                // All of it again, from the first that is missing.
                out.counters.tcp_retransmissions += 1;
                self.nxt = self.una;
                self.recovering = false;
                self.dup_acks = 0;
            }
            return self.pump(out, scratch, now, true);
        }
        if self.idle_at <= now {
            self.probes += 1;
            if self.probes > KEEPALIVES {
                return self.abort(out);
            }
            self.idle_at = now + KEEPALIVE;
            if self.state == State::Open {
                let header = self.header(self.una.wrapping_sub(1), 0);
                out.tcp(self.port, self.peer, self.guest, &header, &[], &[], 0);
            }
        }
        Fate::Keep
    }

    /// The socket has something to say: `end`: its peer is done; `error`: it
    /// is broken.
    pub(super) fn host_ready(
        &mut self,
        end: bool,
        error: bool,
        out: &mut Out,
        scratch: &mut [u8],
        now: Instant,
    ) -> Fate {
        if error && !matches!(sockopt::socket_error(&self.socket), Ok(Ok(()))) {
            return self.abort(out);
        }
        if self.state == State::Connecting
            && rustix::net::getpeername(&self.socket).is_ok_and(|peer| peer.is_some())
        {
            self.state = State::SynReceived;
            self.max = self.una.wrapping_add(1);
            self.nxt = self.max;
            self.send_syn(out, now);
        }
        self.host_eof |= end;
        self.pump(out, scratch, now, false)
    }
}
