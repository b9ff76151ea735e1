//! The control plane's memory: desired state, status, tasks and events.
//!
//! The daemon's resources live here, and only here; every reconciler is a
//! watch on a part of it. So the [`Store`] must never lose what it
//! acknowledged, never show half a transaction, and never skip a change to a
//! watcher without saying so. It is small on purpose: what etcd and an
//! embedded database can both do exactly alike.
//!
//! [`EmbeddedStore`] is a file on this host, for one daemon; [`EtcdStore`] is
//! an etcd that the daemons of several hosts share. Above the trait,
//! [`Collection`] keeps serde types under names, [`HeldLease`] keeps a lease alive.
//!
//! What this crate must never do: know what is stored in it, or let a
//! provider's types out.
#![forbid(unsafe_code)]

mod collection;
mod embedded;
mod entry;
mod error;
mod etcd;
mod held_lease;
mod key;
mod lease;
mod revision;
mod store;
mod transaction;
mod watch;

pub use collection::{
    Change, Collection, CollectionError, CollectionWatch, ModifyError, Versioned,
};
pub use embedded::{EmbeddedOptions, EmbeddedStore, HistoryLimit, OpenError};
pub use entry::{Entry, Page, Range};
pub use error::{Cause, Error};
pub use etcd::{EtcdOptions, EtcdStore, EtcdTls};
pub use held_lease::HeldLease;
pub use key::{Key, KeyError, Prefix};
pub use lease::{Lease, LeaseId};
pub use revision::Revision;
pub use store::Store;
pub use transaction::{
    Condition, InvalidTransaction, Operand, Operation, OperationResult, Outcome, Relation,
    Transaction,
};
pub use watch::{Batch, Event, Watch};
