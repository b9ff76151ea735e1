//! Flows: what there is, by name and by deadline, and how many there may be.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::Nat;
use super::datagram::{Datagrams, Socket};
use super::tcp::{Fate, Tcp};
use crate::model::PortId;
use crate::packet::protocol;

/// The most TCP connections of one port.
const TCP_LIMIT: usize = 4096;
/// The most conversations of datagrams of one port.
const DATAGRAM_LIMIT: usize = 512;

/// Names a flow as the guest sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) port: PortId,
    pub(super) protocol: u8,
    pub(super) guest: SocketAddr,
    pub(super) peer: SocketAddr,
}

pub(super) enum Kind {
    Tcp(Box<Tcp>),
    Datagrams(Datagrams),
}

pub(super) struct Flow {
    pub(super) key: Key,
    pub(super) kind: Kind,
    /// Its entry in the timers.
    pub(super) armed: Instant,
}

impl Nat {
    pub(super) fn has_room(&mut self, key: &Key) -> bool {
        let (tcp, datagrams) = self.counts.get(&key.port).copied().unwrap_or_default();
        if key.protocol != protocol::TCP && datagrams >= DATAGRAM_LIMIT {
            let oldest = self
                .flows
                .iter()
                .filter(|(_, flow)| flow.key.port == key.port)
                .filter_map(|(token, flow)| match &flow.kind {
                    Kind::Datagrams(datagrams) => Some((datagrams.used, *token)),
                    Kind::Tcp(_) => None,
                })
                .min();
            if let Some((_, token)) = oldest {
                self.remove(token);
            }
        }
        let full = key.protocol == protocol::TCP && tcp >= TCP_LIMIT;
        if full || self.flows.len() >= self.options.descriptors {
            self.out.counters.table_full += 1;
            return false;
        }
        true
    }

    pub(super) fn insert(&mut self, token: u64, key: Key, kind: Kind) {
        let armed = deadline(&kind);
        let count = self.counts.entry(key.port).or_default();
        match kind {
            Kind::Tcp(_) => {
                count.0 += 1;
                self.out.counters.tcp_opened += 1;
            }
            Kind::Datagrams(_) => {
                count.1 += 1;
                self.out.counters.datagrams_opened += 1;
            }
        }
        self.timers.insert((armed, token));
        self.by_key.insert(key, token);
        self.flows.insert(token, Flow { key, kind, armed });
    }

    pub(super) fn remove(&mut self, token: u64) {
        let Some(flow) = self.flows.remove(&token) else {
            return;
        };
        if let Kind::Tcp(tcp) = &flow.kind {
            tcp.forget(&mut self.out);
        }
        self.by_key.remove(&flow.key);
        self.timers.remove(&(flow.armed, token));
        if let Some(count) = self.counts.get_mut(&flow.key.port) {
            match flow.kind {
                Kind::Tcp(_) => count.0 -= 1,
                Kind::Datagrams(_) => count.1 -= 1,
            }
            if *count == (0, 0) {
                self.counts.remove(&flow.key.port);
            }
        }
    }

    /// After a flow did something: it may be over, or be due earlier.
    pub(super) fn settle(&mut self, token: u64, fate: Fate) {
        if fate == Fate::Gone {
            return self.remove(token);
        }
        if let Some(flow) = self.flows.get_mut(&token) {
            let due = deadline(&flow.kind);
            // One that is due later is looked at again when its entry is up.
            if due < flow.armed {
                self.timers.remove(&(flow.armed, token));
                flow.armed = due;
                self.timers.insert((due, token));
            }
        }
    }

    pub(super) fn serve_timers(&mut self, now: Instant) {
        while let Some(&(at, token)) = self.timers.first() {
            if at > now {
                break;
            }
            self.timers.pop_first();
            let Some(flow) = self.flows.get_mut(&token) else {
                continue;
            };
            let mut fate = Fate::Keep;
            if deadline(&flow.kind) <= now {
                fate = match &mut flow.kind {
                    Kind::Tcp(tcp) => tcp.timer(&mut self.out, &mut self.scratch, now),
                    Kind::Datagrams(_) => Fate::Gone,
                };
            }
            if fate == Fate::Gone {
                self.remove(token);
            } else if let Some(flow) = self.flows.get_mut(&token) {
                flow.armed = deadline(&flow.kind).max(now + Duration::from_millis(1));
                self.timers.insert((flow.armed, token));
            }
        }
    }
}

fn deadline(kind: &Kind) -> Instant {
    match kind {
        Kind::Tcp(tcp) => tcp.deadline(),
        Kind::Datagrams(datagrams) => datagrams.deadline(),
    }
}

pub(super) fn datagrams(key: Key, socket: Socket, now: Instant) -> Datagrams {
    Datagrams {
        port: key.port,
        guest: key.guest,
        peer: key.peer,
        socket,
        used: now,
        answered: false,
    }
}
