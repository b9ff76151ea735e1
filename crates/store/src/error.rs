//! What can go wrong with a store, by what the caller can do about it.

use std::error::Error as StdError;

use crate::{InvalidTransaction, LeaseId, Revision};

/// A provider's own error, for the log only.
pub type Cause = Box<dyn StdError + Send + Sync>;

/// Why a store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The history no longer reaches back so far.
    #[error(
        "the store no longer knows revision {asked}: its history was compacted; read the present state and go on from there"
    )]
    Compacted {
        /// The revision that was wanted.
        asked: Revision,
    },
    /// The store has not got so far.
    #[error("the store has not reached revision {asked}; was it put back to an older state?")]
    FutureRevision {
        /// The revision that was wanted.
        asked: Revision,
    },
    /// There is no such lease, or it has ended.
    #[error("lease {lease} has ended or never was; take a new one")]
    LeaseNotFound {
        /// The lease.
        lease: LeaseId,
    },
    /// No store takes such a transaction. A mistake of the caller.
    #[error(transparent)]
    Invalid(#[from] InvalidTransaction),
    /// The store could not be asked. Nothing was changed; try again.
    #[error("{store} can't be reached")]
    Unavailable {
        /// Which store: where it is.
        store: String,
        /// What happened.
        #[source]
        cause: Cause,
    },
    /// The connection was lost after a change was sent: it may have been done
    /// or not. Read, then decide.
    #[error("{store} did not answer: the change may have been made or not")]
    Uncertain {
        /// Which store: where it is.
        store: String,
        /// What happened.
        #[source]
        cause: Cause,
    },
    /// The store does not let this user do that.
    #[error("{store} refuses access; check its user, password and certificates")]
    Denied {
        /// Which store: where it is.
        store: String,
        /// What it said.
        #[source]
        cause: Cause,
    },
    /// The store is out of room. Free some, then go on.
    #[error("{store} is full")]
    Full {
        /// Which store: where it is.
        store: String,
        /// What it said.
        #[source]
        cause: Cause,
    },
    /// The disk under the store failed, or what is on it is damaged. If it was
    /// a change, it may have been made or not.
    #[error("{store} can't be read or written; check the disk, then restart")]
    Storage {
        /// Which store: where it is.
        store: String,
        /// What happened.
        #[source]
        cause: Cause,
    },
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
}

impl Error {
    /// Whether the same request may succeed later, and can safely be repeated.
    ///
    /// Every variant is listed: who adds one decides here.
    pub fn retryable(&self) -> bool {
        match self {
            Self::Unavailable { .. } => true,
            Self::Compacted { .. }
            | Self::FutureRevision { .. }
            | Self::LeaseNotFound { .. }
            | Self::Invalid(_)
            | Self::Uncertain { .. }
            | Self::Denied { .. }
            | Self::Full { .. }
            | Self::Storage { .. }
            | Self::Closed => false,
        }
    }
}
