//! One TCP connection: the guest's sequence numbers and windows mirrored onto
//! a host socket.
//!
//! There is no second TCP stack. What the guest sends goes into the socket
//! (`to_host`); what the socket can't take at once waits in `pending`, and the
//! window told to the guest shrinks by it. What comes before its turn waits in
//! `reassembly`. What the host sends is read as far as the guest's window
//! lets it through (`to_guest`), and stays in `sent`, to be sent again, until
//! the guest acknowledges it; the rest stays in the socket. (RFC 9293; fast
//! retransmit as RFC 6582.)
//!
//! A connection answers a batch of segments at once: [`Tcp::guest_sent`] only
//! takes, [`Tcp::finish`] acknowledges and moves.

mod reassembly;
mod segment;
mod to_guest;
mod to_host;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::net::sockopt;
use smoltcp::wire::TcpOption;

use super::wire::{ACK, Header, Out, RST, SYN};
use crate::model::PortId;
use reassembly::Reassembly;
pub(super) use segment::Segment;
pub(super) use to_guest::MAX_PAYLOAD;
use to_host::SCALE;

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
    /// From the guest, before its turn.
    reassembly: Reassembly,
    /// Where a FIN that came before its turn is in the sequence.
    early_fin: Option<u32>,
    guest_fin: bool,
    /// Something came that isn't acknowledged yet.
    ack_due: bool,
    /// It is among those to be finished.
    pub(super) awaited: bool,
    /// The socket is told that the guest is done.
    shut: bool,
    /// The window last told, bytes.
    told: u32,
    /// The first byte the guest hasn't acknowledged; the first of `sent`.
    una: u32,
    /// Data from `una` to `max`.
    sent: VecDeque<u8>,
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
    /// The socket may have more.
    readable: bool,
    /// The socket's peer is done; what it sent may still be in the socket.
    ending: bool,
    /// The socket is read to its end.
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
    /// What is accounted for: bytes held, and bytes under way.
    accounted: (usize, usize),
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
            reassembly: Reassembly::default(),
            early_fin: None,
            guest_fin: false,
            ack_due: false,
            awaited: false,
            shut: false,
            told: 0,
            una: iss,
            sent: VecDeque::new(),
            nxt: iss,
            max: iss,
            window: 0,
            scale: None,
            mss: 536,
            offer_mss,
            readable: false,
            ending: false,
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
            accounted: (0, 0),
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
        out.tcp(
            self.port,
            self.peer,
            self.guest,
            &header,
            options,
            [&[]; 2],
            0,
        );
        self.retransmit_at = Some(now + self.rto.max(Duration::from_secs(1)));
    }

    /// Ends the connection for both.
    pub(super) fn abort(&mut self, out: &mut Out) -> Fate {
        out.counters.tcp_resets += 1;
        let header = match self.state {
            State::Connecting => self.header(0, RST, out),
            State::SynSent => Header {
                seq: self.max,
                ack: 0,
                flags: RST,
                window: 0,
            },
            _ => self.header(self.max, RST, out),
        };
        self.send(&header, &[], out);
        self.reset_host()
    }

    /// Ends the connection for the host's end only: a close that resets.
    fn reset_host(&mut self) -> Fate {
        let _ = sockopt::set_socket_linger(&self.socket, Some(Duration::ZERO));
        Fate::Gone
    }

    /// A segment after the handshake's options.
    fn send(&self, header: &Header, payload: &[u8], out: &mut Out) {
        let (from, to) = (self.peer, self.guest);
        out.tcp(self.port, from, to, header, &[], [payload, &[]], self.mss);
    }

    /// The guest has sent something. [`Tcp::finish`] answers it.
    pub(super) fn guest_sent(
        &mut self,
        segment: &Segment<'_>,
        out: &mut Out,
        now: Instant,
    ) -> Fate {
        self.idle_at = now + IDLE;
        self.probes = 0;
        match self.state {
            State::Connecting => {
                let reset = segment.flags.rst() && segment.seq == self.nxt_in;
                return if reset { self.reset_host() } else { Fate::Keep };
            }
            State::SynSent => return self.answer_to_syn(segment),
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
            self.opened();
        } else if beyond > 0 {
            self.send_ack(out);
            return Fate::Keep;
        }
        self.take_ack(segment, out, now);
        if ahead > 0 {
            // Something is missing; say so, once for each that shows it.
            self.keep_data(segment, out);
            self.send_ack(out);
        } else if ahead < 0 {
            // It was there before: our acknowledgment may be lost.
            if self.take_data(segment, ahead.unsigned_abs(), out) == Fate::Gone {
                return self.abort(out);
            }
            self.send_ack(out);
        } else if segment.length() > 0 {
            if self.take_data(segment, 0, out) == Fate::Gone {
                return self.abort(out);
            }
            self.ack_due = true;
        }
        Fate::Keep
    }

    fn answer_to_syn(&mut self, segment: &Segment<'_>) -> Fate {
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
        self.opened();
        self.ack_due = true;
        Fate::Keep
    }

    /// Answers what came since the last call.
    pub(super) fn finish(&mut self, out: &mut Out, scratch: &mut [u8], now: Instant) -> Fate {
        self.awaited = false;
        self.pump(out, scratch, now, false)
    }

    fn opened(&mut self) {
        self.state = State::Open;
        self.una = self.max;
        self.nxt = self.max;
        self.recover = self.max;
        self.retransmit_at = None;
        self.retries = 0;
        self.rto = RTO_MIN;
    }

    /// Moves what can be moved, both ways. `probe`: one byte more than the
    /// guest's window, if it is closed.
    fn pump(&mut self, out: &mut Out, scratch: &mut [u8], now: Instant, probe: bool) -> Fate {
        if self.state != State::Open {
            return Fate::Keep;
        }
        if self.pump_to_host(out) == Fate::Gone
            || self.pump_to_guest(out, scratch, now, probe) == Fate::Gone
        {
            return self.abort(out);
        }
        if self.ack_due {
            self.send_ack(out);
        }
        self.account(out);
        let heard = self
            .fin_at
            .is_some_and(|fin| self.una == fin.wrapping_add(1));
        if heard && self.shut {
            return Fate::Gone;
        }
        Fate::Keep
    }

    /// Tells `out` what the connection holds and has under way.
    fn account(&mut self, out: &mut Out) {
        let held = self.pending.len() + self.reassembly.len() + self.sent.len();
        let after = (held, self.under_way());
        out.account(self.port, self.accounted, after);
        self.accounted = after;
    }

    /// Nothing is held any more.
    pub(super) fn forget(&self, out: &mut Out) {
        out.account(self.port, self.accounted, (0, 0));
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
                let header = self.header(self.una.wrapping_sub(1), 0, out);
                self.send(&header, &[], out);
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
        self.readable = !self.host_eof;
        self.ending |= end;
        self.pump(out, scratch, now, false)
    }
}
