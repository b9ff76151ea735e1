//! What is stored under a key, and parts of many.

use std::num::NonZeroUsize;

use crate::{Key, LeaseId, Prefix, Revision};

/// One key and what is stored under it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Its name.
    pub key: Key,
    /// What is stored; at most [`crate::Transaction::LARGEST`] bytes.
    pub value: Vec<u8>,
    /// When the key came to be, after it last did not exist.
    pub created: Revision,
    /// When it was last written.
    pub modified: Revision,
    /// How often it was written since it came to be, from 1.
    pub version: u64,
    /// The lease whose end deletes it.
    pub lease: Option<LeaseId>,
}

/// Which entries a read wants: those with a prefix, in the order of their
/// keys.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Range {
    /// How their keys begin.
    pub prefix: Prefix,
    /// Only keys behind this one: the last key of the page before.
    pub after: Option<Key>,
    /// At most so many.
    pub limit: Option<NonZeroUsize>,
}

impl Range {
    /// All entries whose key begins with `prefix`.
    pub fn prefix(prefix: &Prefix) -> Self {
        Self {
            prefix: prefix.clone(),
            ..Self::default()
        }
    }

    /// The same range, behind `key`.
    #[must_use]
    pub fn after(mut self, key: &Key) -> Self {
        self.after = Some(key.clone());
        self
    }

    /// The same range, at most `limit` entries of it. Zero is no limit.
    #[must_use]
    pub fn limit(mut self, limit: usize) -> Self {
        self.limit = NonZeroUsize::new(limit);
        self
    }
}

/// What a read of a [`Range`] found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Page {
    /// The entries, in the order of their keys.
    pub entries: Vec<Entry>,
    /// Whether the limit left some out: read on [`Range::after`] the last.
    pub more: bool,
    /// The state of the store they are part of. Later pages of the same state
    /// are read at this revision; a watch from the one after it misses
    /// nothing and repeats nothing. In a transaction it is that of the outcome.
    pub revision: Revision,
}
