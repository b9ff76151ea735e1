//! A lease that is kept alive while someone holds it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch::{self, Receiver, Sender};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use crate::{Error, Lease, LeaseId, Store};

/// A lease and the task that keeps it alive. Dropping it ends the task, not
/// the lease: that ends on its own; [`HeldLease::release`] ends both.
///
/// [`HeldLease::deadline`] is on the safe side: it counts from before each
/// request, so it passes before the store deletes anything.
pub struct HeldLease {
    id: LeaseId,
    store: Arc<dyn Store>,
    deadline: Receiver<Option<Instant>>,
    task: JoinHandle<()>,
}

impl HeldLease {
    /// Takes a lease for `ttl` and keeps it alive three times in that time.
    ///
    /// # Errors
    /// The store gives none.
    pub async fn take(store: Arc<dyn Store>, ttl: Duration) -> Result<Self, Error> {
        let asked = Instant::now();
        let lease = store.grant(ttl).await?;
        let (sender, deadline) = watch::channel(Some(asked + lease.ttl));
        let task = tokio::spawn(keep(Arc::clone(&store), lease, asked + lease.ttl, sender));
        Ok(Self {
            id: lease.id,
            store,
            deadline,
            task,
        })
    }

    /// Its name, to attach keys to.
    pub fn id(&self) -> LeaseId {
        self.id
    }

    /// Until when it surely holds, unless it is kept alive once more; `None`
    /// once it is lost.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
            .borrow()
            .filter(|deadline| Instant::now() < *deadline)
    }

    /// Waits until it is lost: the store ended it, or could not be reached
    /// before the deadline.
    pub async fn lost(&self) {
        let mut deadline = self.deadline.clone();
        // An error means that the task is gone, and the lease with it.
        let _ = deadline.wait_for(Option::is_none).await;
    }

    /// Gives it back; its keys are deleted.
    ///
    /// # Errors
    /// [`Error::LeaseNotFound`] if it was lost already.
    pub async fn release(self) -> Result<(), Error> {
        self.task.abort();
        self.store.revoke(self.id).await
    }
}

impl Drop for HeldLease {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn keep(
    store: Arc<dyn Store>,
    lease: Lease,
    mut deadline: Instant,
    sender: Sender<Option<Instant>>,
) {
    let mut next = deadline - lease.ttl + lease.ttl / 3;
    loop {
        sleep_until(next).await;
        let asked = Instant::now();
        if asked >= deadline {
            break;
        }
        // An answer after the deadline comes too late.
        match tokio::time::timeout_at(deadline, store.keep_alive(lease.id)).await {
            Ok(Ok(())) => {
                deadline = asked + lease.ttl;
                next = asked + lease.ttl / 3;
                sender.send_replace(Some(deadline));
            }
            Ok(Err(error @ (Error::LeaseNotFound { .. } | Error::Closed))) => {
                tracing::warn!(lease = %lease.id, "{error}");
                break;
            }
            Ok(Err(error)) => {
                tracing::warn!(lease = %lease.id, "can't be kept alive, trying again: {error}");
                next = Instant::now() + lease.ttl / 10;
            }
            Err(_) => break,
        }
    }
    sender.send_replace(None);
}

impl fmt::Debug for HeldLease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HeldLease")
            .field("id", &self.id)
            .field("holds", &self.deadline().is_some())
            .finish_non_exhaustive()
    }
}
