//! Conversations of datagrams: UDP, and ICMP echo through the host's
//! unprivileged ping sockets, or a privileged user's raw ones. Each that a guest starts has a connected socket
//! of its own, so that the host tells which one an error is for.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::wire::{Out, Unreachable, quote};
use crate::model::PortId;
use crate::packet::{Sum, protocol};

/// How long a conversation without an answer is kept (RFC 4787, section 4.3).
const ONE_WAY: Duration = Duration::from_secs(120);
const BOTH_WAYS: Duration = Duration::from_secs(300);
const ECHO: Duration = Duration::from_secs(30);
/// Datagrams taken from a socket before others have their turn.
pub(super) const BUDGET: usize = 32;

/// What a conversation goes through.
pub(super) enum Socket {
    /// A connected UDP socket.
    Udp(OwnedFd),
    /// A connected ping socket; its kernel chooses the identifier.
    Echo(OwnedFd),
    /// A connected raw socket of a privileged user, and the identifier of this
    /// conversation's echoes.
    RawEcho(OwnedFd, u16),
    /// A published port's socket, by its token, and its client.
    Published(u64, SocketAddr),
}

/// A conversation. `guest` and `peer` are as the guest sees them; an echo's
/// identifier is the guest's port.
pub(super) struct Datagrams {
    pub(super) port: PortId,
    pub(super) guest: SocketAddr,
    pub(super) peer: SocketAddr,
    pub(super) socket: Socket,
    pub(super) used: Instant,
    pub(super) answered: bool,
}

impl Datagrams {
    pub(super) fn deadline(&self) -> Instant {
        let keep = match (&self.socket, self.answered) {
            (Socket::Echo(_) | Socket::RawEcho(..), _) => ECHO,
            (_, false) => ONE_WAY,
            (_, true) => BOTH_WAYS,
        };
        self.used + keep
    }

    /// Sends what the guest sent: UDP's payload, or the whole echo message.
    /// `socket` is the published one's, if it is that.
    pub(super) fn guest_sent(
        &mut self,
        payload: &[u8],
        published: Option<&OwnedFd>,
        out: &mut Out,
        now: Instant,
    ) {
        self.used = now;
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        // An error of an earlier datagram is told once, then it can be sent.
        for _ in 0..2 {
            let sent = match (&self.socket, published) {
                (Socket::Udp(socket) | Socket::Echo(socket), _) => send(socket, payload, flags),
                (Socket::RawEcho(socket, identifier), _) => {
                    send(socket, &with_identifier(payload, *identifier), flags)
                }
                (Socket::Published(_, client), Some(socket)) => {
                    self.answered = true;
                    rustix::net::sendto(socket, payload, flags, client)
                }
                (Socket::Published(..), None) => return,
            };
            match sent {
                Ok(_) => return,
                Err(Errno::INTR) => {}
                Err(error) => {
                    out.counters.refused_by_host += 1;
                    self.tell(error, payload.len(), out);
                    if error != Errno::CONNREFUSED {
                        return;
                    }
                }
            }
        }
    }

    /// Tells the guest of an error the host told of.
    fn tell(&self, error: Errno, length: usize, out: &mut Out) {
        let why = match error {
            Errno::CONNREFUSED => Unreachable::Port,
            Errno::HOSTUNREACH | Errno::NETUNREACH => Unreachable::Host,
            Errno::ACCESS | Errno::PERM => Unreachable::Prohibited,
            _ => return,
        };
        if matches!(self.socket, Socket::Echo(_) | Socket::RawEcho(..)) {
            return;
        }
        let quote = quote(protocol::UDP, self.guest, self.peer, length);
        out.unreachable(self.port, self.peer.ip(), self.guest.ip(), why, &quote);
    }

    /// Takes what waits in the conversation's own socket.
    pub(super) fn host_ready(&mut self, out: &mut Out, scratch: &mut [u8], now: Instant) {
        let (Socket::Udp(socket) | Socket::Echo(socket) | Socket::RawEcho(socket, _)) =
            &self.socket
        else {
            return;
        };
        for _ in 0..BUDGET {
            match recv(socket, &mut scratch[..65_535], RecvFlags::DONTWAIT) {
                Ok((_, n)) => {
                    let mut message = &mut scratch[..n];
                    if let Socket::RawEcho(_, identifier) = self.socket {
                        // A raw socket sees all its peer says.
                        let v4 = self.peer.is_ipv4();
                        let Some(reply) = echo_reply(message, v4, identifier) else {
                            continue;
                        };
                        message = reply;
                    }
                    self.used = now;
                    self.answered = true;
                    if matches!(self.socket, Socket::Udp(_)) {
                        out.udp(self.port, self.peer, self.guest, message);
                    } else if message.len() >= 8 {
                        message[4..6].copy_from_slice(&self.guest.port().to_be_bytes());
                        out.icmp(self.port, self.peer.ip(), self.guest.ip(), message);
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(error) => return self.tell(error, 0, out),
            }
        }
    }
}

/// An echo request with another identifier (RFC 792). The checksum of ICMPv6
/// is the kernel's work.
fn with_identifier(message: &[u8], identifier: u16) -> Vec<u8> {
    let mut message = message.to_vec();
    if message.len() >= 8 {
        message[4..6].copy_from_slice(&identifier.to_be_bytes());
        message[2..4].fill(0);
        let sum = Sum::default().bytes(&message).checksum();
        message[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    message
}

/// The echo reply with `identifier` in what a raw socket received: behind the
/// IP header, if it is IPv4.
fn echo_reply(received: &mut [u8], v4: bool, identifier: u16) -> Option<&mut [u8]> {
    let (at, kind) = if v4 {
        (usize::from(received.first()? & 0x0f) * 4, 0)
    } else {
        (0, 129)
    };
    let message = received.get_mut(at..)?;
    let matches = message.len() >= 8
        && message[..2] == [kind, 0]
        && message[4..6] == identifier.to_be_bytes();
    matches.then_some(message)
}
