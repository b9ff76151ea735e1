//! The store's clock: one number that grows with every change.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A state of the whole store, and the name of the transaction that led to it.
///
/// Every transaction that changes something takes the next revision; all its
/// changes share it. An empty store is at [`Revision::FIRST`]. Revisions never
/// repeat and never go back, but they may skip: another user of the same etcd
/// takes some.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Revision(pub u64);

impl Revision {
    /// Before every change: the revision of a key that does not exist.
    pub const ZERO: Self = Self(0);
    /// What an empty store is at; the first change takes the one after it.
    pub const FIRST: Self = Self(1);

    /// The revision after this one.
    ///
    /// Saturates: 2⁶⁴ changes at a million a second take half a million years.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// The revision before this one, or zero.
    #[must_use]
    pub const fn previous(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
