//! The contract every provider keeps; `tests/` holds them to it.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;

use crate::{
    Entry, Error, Key, Lease, LeaseId, Operation, Outcome, Page, Prefix, Range, Revision,
    Transaction, Watch,
};

/// A revisioned key-value store.
///
/// All calls are linearizable: what was acknowledged is durable and seen by
/// every later read. Dropping a future of a change does not take the change
/// back.
#[async_trait]
pub trait Store: Send + Sync + fmt::Debug {
    /// The present revision.
    async fn revision(&self) -> Result<Revision, Error>;

    /// What is stored under `key`.
    async fn get(&self, key: &Key) -> Result<Option<Entry>, Error>;

    /// The entries in `range`, now or at an earlier revision.
    ///
    /// # Errors
    /// [`Error::Compacted`] if `at` is zero or lies before the compacted
    /// revision, [`Error::FutureRevision`] if it lies ahead.
    async fn range(&self, range: &Range, at: Option<Revision>) -> Result<Page, Error>;

    /// Does a transaction.
    ///
    /// # Errors
    /// [`Error::Invalid`] before anything is looked at;
    /// [`Error::LeaseNotFound`] if the list that is to be done attaches a key
    /// to a lease that is not there, and then nothing of it is done.
    async fn transact(&self, transaction: Transaction) -> Result<Outcome, Error>;

    /// Watches keys with a prefix, beginning with the changes of revision
    /// `from`, which may lie ahead.
    ///
    /// # Errors
    /// [`Error::Compacted`], here or from [`Watch::next`], if `from` is zero or
    /// lies at or before the compacted revision.
    async fn watch(&self, prefix: &Prefix, from: Revision) -> Result<Box<dyn Watch>, Error>;

    /// Takes a lease for `ttl`, rounded up to whole seconds, or longer if the
    /// store has a minimum.
    async fn grant(&self, ttl: Duration) -> Result<Lease, Error>;

    /// Begins a lease's time anew. The time counts from some moment between
    /// the call and its answer, so an owner counts from before the call.
    ///
    /// # Errors
    /// [`Error::LeaseNotFound`] if it has ended.
    async fn keep_alive(&self, lease: LeaseId) -> Result<(), Error>;

    /// Ends a lease; its keys are deleted in one step.
    ///
    /// # Errors
    /// [`Error::LeaseNotFound`] if it has ended.
    async fn revoke(&self, lease: LeaseId) -> Result<(), Error>;

    /// Forgets the history up to and including `through`: watches from there
    /// and reads before it end in [`Error::Compacted`]. Does nothing if that
    /// is forgotten already.
    ///
    /// # Errors
    /// [`Error::FutureRevision`] if it lies ahead.
    async fn compact(&self, through: Revision) -> Result<(), Error>;

    /// Stores one value, whatever was there, without a lease.
    async fn put(&self, key: &Key, value: Vec<u8>) -> Result<Revision, Error> {
        let outcome = self
            .transact(Transaction::always([Operation::put(key, value)]))
            .await?;
        Ok(outcome.revision)
    }

    /// Deletes one key, if it is there.
    async fn delete(&self, key: &Key) -> Result<Revision, Error> {
        let outcome = self
            .transact(Transaction::always([Operation::Delete(key.clone())]))
            .await?;
        Ok(outcome.revision)
    }
}
