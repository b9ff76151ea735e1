//! Conversations of datagrams: UDP, and ICMP echo through the host's
//! unprivileged ping sockets. Each that a guest starts has a connected socket
//! of its own, so that the host tells which one an error is for.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::wire::{Out, Unreachable, quote};
use crate::model::PortId;
use crate::packet::protocol;

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
            (Socket::Echo(_), _) => ECHO,
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
        if matches!(self.socket, Socket::Echo(_)) {
            return;
        }
        let quote = quote(protocol::UDP, self.guest, self.peer, length);
        out.unreachable(self.port, self.peer.ip(), self.guest.ip(), why, &quote);
    }

    /// Takes what waits in the conversation's own socket.
    pub(super) fn host_ready(&mut self, out: &mut Out, scratch: &mut [u8], now: Instant) {
        let (Socket::Udp(socket) | Socket::Echo(socket)) = &self.socket else {
            return;
        };
        for _ in 0..BUDGET {
            match recv(socket, &mut scratch[..65_535], RecvFlags::DONTWAIT) {
                Ok((_, n)) => {
                    self.used = now;
                    self.answered = true;
                    if matches!(self.socket, Socket::Udp(_)) {
                        out.udp(self.port, self.peer, self.guest, &scratch[..n]);
                    } else if n >= 8 {
                        scratch[4..6].copy_from_slice(&self.guest.port().to_be_bytes());
                        out.icmp(self.port, self.peer.ip(), self.guest.ip(), &scratch[..n]);
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(error) => return self.tell(error, 0, out),
            }
        }
    }
}
