//! When leases end. Pure: who calls says what time it is.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::{Lease, LeaseId};

/// The leases of a store and their ends.
#[derive(Default)]
pub struct Leases {
    ends: BTreeMap<LeaseId, (Duration, Instant)>,
}

impl Leases {
    /// Enters a lease that begins now.
    pub fn insert(&mut self, id: LeaseId, seconds: u64, now: Instant) -> Lease {
        let ttl = Duration::from_secs(seconds);
        self.ends.insert(id, (ttl, now + ttl));
        Lease { id, ttl }
    }

    /// Whether it has not ended. One that is due has ended, even if nobody has
    /// come to delete its keys.
    pub fn lives(&self, id: LeaseId, now: Instant) -> bool {
        self.ends.get(&id).is_some_and(|(_, end)| now < *end)
    }

    /// Begins its time anew, unless it has ended; says whether it lives.
    pub fn keep_alive(&mut self, id: LeaseId, now: Instant) -> bool {
        match self.ends.get_mut(&id) {
            Some((ttl, end)) if now < *end => {
                *end = now + *ttl;
                true
            }
            _ => false,
        }
    }

    /// Takes a lease out.
    pub fn remove(&mut self, id: LeaseId) {
        self.ends.remove(&id);
    }

    /// The leases that are due.
    pub fn due(&self, now: Instant) -> Vec<LeaseId> {
        let due = self.ends.iter().filter(|(_, (_, end))| *end <= now);
        due.map(|(id, _)| *id).collect()
    }

    /// When the next one is due.
    pub fn next(&self) -> Option<Instant> {
        self.ends.values().map(|(_, end)| *end).min()
    }
}

#[cfg(test)]
#[path = "leases_test.rs"]
mod test;
