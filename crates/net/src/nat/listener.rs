//! Clients of published ports.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Instant;

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SocketFlags, acceptfrom_with, recvfrom, sockopt};

use super::datagram::{self, Datagrams, Socket};
use super::flow::{Key, Kind, datagrams};
use super::publish::{self, PublishError, Published};
use super::tcp::Tcp;
use super::{Nat, initial_sequence};
use crate::model::ForwardProtocol;
use crate::packet::protocol;

/// Connections taken from a listener before others have their turn.
const ACCEPT_BUDGET: usize = 64;
/// Clients of a published port that may look the same to a guest.
const ALIKE: u16 = 16;

/// A published port's socket.
pub(super) struct Listener {
    pub(super) socket: OwnedFd,
    pub(super) published: Published,
}

impl Nat {
    /// Listens at a port of the host for a guest; gives the addresses.
    ///
    /// # Errors
    /// The port is in use, or the host doesn't allow it.
    pub fn publish(&mut self, published: Published) -> Result<Vec<SocketAddr>, PublishError> {
        let mut addresses = Vec::new();
        let mut sockets = Vec::new();
        for (socket, address) in publish::open(&published)? {
            let token = self.token();
            epoll::add(
                &self.epoll,
                &socket,
                EventData::new_u64(token),
                EventFlags::IN,
            )
            .map_err(|error| PublishError::Host(address, error.into()))?;
            addresses.push(address);
            sockets.push((token, socket));
        }
        for (token, socket) in sockets {
            self.listeners.insert(token, Listener { socket, published });
        }
        Ok(addresses)
    }

    pub(super) fn serve_listener(&mut self, token: u64, now: Instant) {
        let Some(listener) = self.listeners.get(&token) else {
            return;
        };
        match listener.published.protocol {
            ForwardProtocol::Tcp => {
                for _ in 0..ACCEPT_BUDGET {
                    if !self.accept(token, now) {
                        return;
                    }
                }
            }
            ForwardProtocol::Udp => {
                for _ in 0..datagram::BUDGET {
                    if !self.receive_published(token, now) {
                        return;
                    }
                }
            }
        }
    }

    /// The flow's name for a client of a listener, if the guest can be told.
    fn inbound_key(&self, published: &Published, client: SocketAddr) -> Option<Key> {
        let guest = published.guest(client.ip())?;
        Some(Key {
            port: published.port,
            protocol: match published.protocol {
                ForwardProtocol::Tcp => protocol::TCP,
                ForwardProtocol::Udp => protocol::UDP,
            },
            guest,
            peer: self.client(client, guest.ip())?,
        })
    }

    /// Takes one connection; whether there may be more.
    fn accept(&mut self, listener: u64, now: Instant) -> bool {
        let Some(Listener { socket, published }) = self.listeners.get(&listener) else {
            return false;
        };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let (socket, client) = match acceptfrom_with(socket, flags) {
            Ok(accepted) => accepted,
            Err(Errno::INTR | Errno::CONNABORTED) => return true,
            Err(Errno::AGAIN) => return false,
            Err(_) => {
                self.out.counters.refused_by_host += 1;
                return false;
            }
        };
        let published = *published;
        let client = client.and_then(|client| SocketAddr::try_from(client).ok());
        let Some(mut key) = client.and_then(|client| self.inbound_key(&published, client)) else {
            self.out.counters.refused_address += 1;
            return true;
        };
        // Two clients may look the same to the guest, at the gateway's address.
        for _ in 0..ALIKE {
            if !self.by_key.contains_key(&key) {
                break;
            }
            key.peer.set_port(49_152 | (initial_sequence() >> 8) as u16);
        }
        if self.by_key.contains_key(&key) || !self.has_room(&key) {
            return true;
        }
        let token = self.token();
        let events = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        if epoll::add(&self.epoll, &socket, EventData::new_u64(token), events).is_err() {
            self.out.counters.refused_by_host += 1;
            return true;
        }
        let _ = sockopt::set_tcp_nodelay(&socket, true);
        let _ = sockopt::set_socket_keepalive(&socket, true);
        let (mtu, iss) = (self.options.mtu, initial_sequence());
        let (guest, peer) = (key.guest, key.peer);
        let tcp = Tcp::inbound(key.port, guest, peer, socket, mtu, iss, &mut self.out, now);
        self.insert(token, key, Kind::Tcp(Box::new(tcp)));
        true
    }

    /// The name of a published conversation, and whether it goes on already.
    /// Clients that look the same to the guest, at the gateway's address, are
    /// told apart by port numbers that follow the first one's, the same for
    /// each datagram; `None` when too many look the same.
    fn published_key(
        &self,
        mut key: Key,
        listener: u64,
        client: SocketAddr,
    ) -> Option<(Key, bool)> {
        let mut free = None;
        let first = key.peer.port();
        for step in 0..ALIKE {
            key.peer.set_port(first.wrapping_add(step).max(1));
            let Some(flow) = self.by_key.get(&key).and_then(|t| self.flows.get(t)) else {
                free = free.or(Some(key));
                continue;
            };
            if let Kind::Datagrams(Datagrams {
                socket: Socket::Published(from, of),
                ..
            }) = &flow.kind
                && (*from, *of) == (listener, client)
            {
                return Some((key, true));
            }
        }
        free.map(|key| (key, false))
    }

    /// Takes one datagram; whether there may be more.
    fn receive_published(&mut self, listener: u64, now: Instant) -> bool {
        let Some(Listener { socket, published }) = self.listeners.get(&listener) else {
            return false;
        };
        let received = recvfrom(socket, &mut self.scratch[..65_535], RecvFlags::DONTWAIT);
        let (length, client) = match received {
            Ok((_, length, client)) => (length, client),
            Err(Errno::AGAIN) => return false,
            // An error of a datagram sent earlier.
            Err(_) => return true,
        };
        let published = *published;
        let client = client.and_then(|client| SocketAddr::try_from(client).ok());
        let key = client.and_then(|client| Some((client, self.inbound_key(&published, client)?)));
        let Some((client, key)) = key else {
            self.out.counters.refused_address += 1;
            return true;
        };
        let Some((key, known)) = self.published_key(key, listener, client) else {
            self.out.counters.table_full += 1;
            return true;
        };
        if !known {
            if !self.has_room(&key) {
                return true;
            }
            let token = self.token();
            let flow = datagrams(key, Socket::Published(listener, client), now);
            self.insert(token, key, Kind::Datagrams(flow));
        }
        let payload = &self.scratch[..length];
        self.out.udp(key.port, key.peer, key.guest, payload);
        true
    }
}
