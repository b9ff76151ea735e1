//! Leases: keys that go when their owner does.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The name of a lease, given by the store; never zero, never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LeaseId(pub u64);

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

/// A promise of the store: not to delete the attached keys for some time, and
/// to delete them soon after it, unless it is kept alive.
///
/// A lease is no mutual exclusion by itself: its owner may sleep past its end
/// and not know. Who writes in its name makes the attached key a condition of
/// each transaction, or carries its revision along as a generation that the
/// other side checks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lease {
    /// Its name.
    pub id: LeaseId,
    /// How long it holds from when it was asked for or kept alive: whole
    /// seconds, at least as long as was wanted.
    pub ttl: Duration,
}

/// The whole seconds a store is asked for when someone wants `ttl`.
pub(crate) fn whole_seconds(ttl: Duration) -> u64 {
    let rounded = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
    // Leases of centuries are a mistake; etcd refuses more than 9 × 10⁹ s.
    rounded.clamp(1, 1 << 32)
}
