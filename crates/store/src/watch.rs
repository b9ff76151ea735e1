//! Watches: what changed, in order, from a revision on.

use std::fmt;

use async_trait::async_trait;

use crate::{Entry, Error, Key, Revision};

/// One key's change.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// It was written; this is what is stored since.
    Put(Entry),
    /// It was deleted, by a transaction or its lease's end.
    Delete(Key),
}

impl Event {
    /// The key that changed.
    pub fn key(&self) -> &Key {
        match self {
            Self::Put(entry) => &entry.key,
            Self::Delete(key) => key,
        }
    }
}

/// All changes of one transaction to the keys that are watched, in the order
/// they were made. A transaction is never split over batches.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Batch {
    /// The transaction's revision.
    pub revision: Revision,
    /// At least one event.
    pub events: Vec<Event>,
}

/// The changes of keys with a prefix, from a revision on, without gap or
/// repetition.
///
/// A watch holds no queue that grows: a slow reader falls behind in the
/// store's history, and is told [`Error::Compacted`] when that part of the
/// history is gone. Then it must read the present state and watch from there.
#[async_trait]
pub trait Watch: Send + fmt::Debug {
    /// Waits for the next batch.
    ///
    /// Dropping the future loses nothing: the next call gives what this one
    /// would have.
    ///
    /// # Errors
    /// - [`Error::Compacted`]: the history up to here is gone; this watch is at
    ///   its end.
    /// - [`Error::Unavailable`] and [`Error::Storage`]: it could not be asked
    ///   now; calling again goes on where this left off.
    /// - [`Error::Closed`]: the store was closed.
    async fn next(&mut self) -> Result<Batch, Error>;

    /// Everything up to and including this revision was given out, or did not
    /// touch the keys that are watched. A later watch goes on from the
    /// revision after it.
    fn position(&self) -> Revision;
}
