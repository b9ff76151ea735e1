//! The executor: runs a program on packets, quickly.
//!
//! The first packets of a conversation go the oracle's way; what came of them
//! stays beside the conversation, so that the next packet costs one look into
//! a hash table. A cached decision counts only as long as the program's epoch
//! is the same, and only for a frame whose Ethernet header is the same: all
//! that rules look at is then in the key.

use std::collections::HashMap;

use super::flow::{Flow, MAXIMUM_FLOWS, Milliseconds};
use super::oracle::{self, FlowChange, Flows};
use super::rule::ip_offset;
use super::{Decision, DropReason, Origin, Program, Verdict};
use crate::link::Offload;
use crate::model::Direction;
use crate::packet::{ETHERNET_LENGTH, FlowKey, Ip};

/// A port that runs.
#[derive(Debug)]
pub struct Executor {
    program: Program,
    table: Table,
    /// When a full table was last looked through in vain.
    swept: Option<Milliseconds>,
}

/// How often a full table is looked through for what can go.
const SWEEP_INTERVAL: Milliseconds = 1000;

#[derive(Debug)]
struct Table {
    entries: HashMap<FlowKey, Entry>,
    limit: usize,
}

/// A conversation with what is done with its packets.
#[derive(Clone, Copy, Debug)]
struct Entry {
    flow: Flow,
    out: Option<Cached>,
    incoming: Option<Cached>,
}

/// A decision for every further packet of one direction.
#[derive(Clone, Copy, Debug)]
struct Cached {
    /// The Ethernet header it was made for; zeroes for packets without.
    header: [u8; ETHERNET_LENGTH],
    origin: Origin,
    decision: Decision,
}

impl Flows for Table {
    fn get(&self, key: &FlowKey) -> Option<Flow> {
        self.entries.get(key).map(|entry| entry.flow)
    }

    fn has_room(&self, _now: Milliseconds) -> bool {
        self.entries.len() < self.limit
    }
}

fn header_of(origin: Origin, frame: &[u8]) -> Option<[u8; ETHERNET_LENGTH]> {
    match origin {
        Origin::Guest | Origin::Network => frame.first_chunk().copied(),
        Origin::Uplink => Some([0; ETHERNET_LENGTH]),
    }
}

impl Executor {
    /// Starts a program with no conversations.
    pub fn new(program: Program) -> Self {
        Self::with_limit(program, MAXIMUM_FLOWS)
    }

    /// The same, with room for so many conversations.
    pub fn with_limit(program: Program, limit: usize) -> Self {
        let entries = HashMap::new();
        Self {
            program,
            table: Table { entries, limit },
            swept: None,
        }
    }

    /// The program it runs.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// Runs another program from now on. Conversations stay, as far as the new
    /// rules allow them.
    ///
    /// The new program's epoch must be higher than the old one's.
    pub fn replace(&mut self, program: Program) {
        debug_assert!(program.epoch > self.program.epoch);
        self.program = program;
    }

    /// How many conversations it remembers.
    pub fn flows(&self) -> usize {
        self.table.entries.len()
    }

    /// Forgets conversations that are over. To be called now and then.
    pub fn expire(&mut self, now: Milliseconds) {
        self.table.entries.retain(|_, entry| entry.flow.lives(now));
        if self.table.entries.len() * 4 < self.table.entries.capacity() {
            self.table.entries.shrink_to(1024);
        }
    }

    /// Decides about one packet; see [`oracle::decide`].
    pub fn decide(
        &mut self,
        now: Milliseconds,
        origin: Origin,
        frame: &[u8],
        offload: &Offload,
    ) -> Decision {
        if let Some(decision) = self.cached(now, origin, frame, offload) {
            return decision;
        }
        if self.table.entries.len() >= self.table.limit
            && self.swept.is_none_or(|swept| now >= swept + SWEEP_INTERVAL)
        {
            self.expire(now);
            self.swept = Some(now);
        }
        let (decision, change) = oracle::decide(
            &self.program,
            &self.table,
            now,
            origin,
            frame,
            offload,
            &mut |_| {},
        );
        match change {
            FlowChange::None => {}
            FlowChange::Remove(key) => {
                self.table.entries.remove(&key);
            }
            FlowChange::Open(key, flow) => {
                // What decided about this packet is not what decides about
                // the next: that one belongs to a conversation.
                self.table.entries.insert(
                    key,
                    Entry {
                        flow,
                        out: None,
                        incoming: None,
                    },
                );
            }
            FlowChange::Continue(key, flow) => self.remember(key, flow, origin, frame, decision),
        }
        decision
    }

    fn remember(
        &mut self,
        key: FlowKey,
        flow: Flow,
        origin: Origin,
        frame: &[u8],
        decision: Decision,
    ) {
        let Some(header) = header_of(origin, frame) else {
            return;
        };
        let cached = Some(Cached {
            header,
            origin,
            decision,
        });
        let entry = self.table.entries.entry(key).or_insert(Entry {
            flow,
            out: None,
            incoming: None,
        });
        if entry.flow.epoch != flow.epoch {
            (entry.out, entry.incoming) = (None, None);
        }
        entry.flow = flow;
        match origin {
            Origin::Guest => entry.out = cached,
            Origin::Network | Origin::Uplink => entry.incoming = cached,
        }
    }

    /// The decision about a packet of a conversation that is known.
    fn cached(
        &mut self,
        now: Milliseconds,
        origin: Origin,
        frame: &[u8],
        offload: &Offload,
    ) -> Option<Decision> {
        let base = ip_offset(origin);
        let header = header_of(origin, frame)?;
        let packet = frame.get(base..)?;
        let ip = Ip::parse(packet).ok()?;
        if ip.icmp.is_some() && ip.ports == (0, 0) {
            return None;
        }
        let direction = match origin {
            Origin::Guest => Direction::Out,
            Origin::Network | Origin::Uplink => Direction::In,
        };
        let entry = self.table.entries.get_mut(&FlowKey::of(&ip, direction))?;
        let cached = match direction {
            Direction::Out => entry.out,
            Direction::In => entry.incoming,
        }?;
        let mtu = usize::from(self.program.network.mtu);
        let usable = entry.flow.epoch == self.program.epoch
            && entry.flow.lives(now)
            && cached.origin == origin
            && cached.header == header
            && ip.check_offload(offload, base).is_ok()
            && (offload.segmentation.is_some() || ip.length <= mtu);
        if !usable {
            return None;
        }
        let mut decision = Decision {
            length: ip.length,
            ..cached.decision
        };
        if decision.verdict == Verdict::Uplink && !ip.transport_checksum_holds(packet, offload) {
            decision.verdict = Verdict::Drop(DropReason::BadChecksum);
            return Some(decision);
        }
        entry.flow.advance(ip.protocol, ip.flags, direction, now);
        Some(decision)
    }
}

#[cfg(test)]
impl Executor {
    pub(super) fn live_flows(&self, now: Milliseconds) -> Vec<(FlowKey, Flow)> {
        let flows = self
            .table
            .entries
            .iter()
            .map(|(key, entry)| (*key, entry.flow));
        let mut flows: Vec<_> = flows.filter(|(_, flow)| flow.lives(now)).collect();
        flows.sort_by_key(|(key, _)| *key);
        flows
    }
}
