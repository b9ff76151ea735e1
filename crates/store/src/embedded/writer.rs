//! The one thread that writes.
//!
//! It takes the requests that wait, does them in order inside one redb
//! transaction, commits it, tells the watches, and only then answers. So an
//! answer means the disk has it, and callers that come together share one
//! fsync. Between requests it ends the leases that are due.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use std::{io, thread};

use tokio::sync::watch::{Receiver, Sender};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};

use super::commit::Commit;
use super::leases::Leases;
use super::{HistoryLimit, Shared};
use crate::{Error, Lease, LeaseId, Outcome, Revision, Transaction};

/// Requests that wait at most; further callers wait to be let in.
const WAITING: usize = 1024;
/// Transactions that share a commit at most, and their bytes.
const GROUP: usize = 256;
const GROUP_BYTES: usize = 8 << 20;
/// How long a lease that could not be ended is left alone.
const RETRY: Duration = Duration::from_secs(1);

type Reply<T> = oneshot::Sender<Result<T, Error>>;

enum Request {
    Transact(Transaction, Reply<Outcome>),
    Grant(u64, Reply<Lease>),
    KeepAlive(LeaseId, Reply<()>),
    Revoke(LeaseId, Reply<()>),
    Compact(Revision, Reply<()>),
}

/// The way to the writer's thread. Its drop waits until what was asked is
/// done.
pub struct Writer {
    // `None` only while it is dropped.
    requests: Option<mpsc::Sender<(Request, OwnedSemaphorePermit)>>,
    room: Arc<Semaphore>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Writer {
    /// Starts the thread; the receiver tells what revision is on disk.
    pub fn start(
        shared: Arc<Shared>,
        revision: Revision,
        leases: Vec<(LeaseId, u64)>,
        history: HistoryLimit,
    ) -> io::Result<(Self, Receiver<Revision>)> {
        let (requests, incoming) = mpsc::channel();
        let (latest, receiver) = watch::channel(revision);
        let now = Instant::now();
        let mut table = Leases::default();
        for (lease, seconds) in leases {
            table.insert(lease, seconds, now);
        }
        let worker = Worker {
            shared,
            latest,
            leases: table,
            history,
            incoming,
            retry: None,
        };
        let thread = thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || worker.run())?;
        let writer = Self {
            requests: Some(requests),
            room: Arc::new(Semaphore::new(WAITING)),
            thread: Mutex::new(Some(thread)),
        };
        Ok((writer, receiver))
    }

    pub async fn transact(&self, transaction: Transaction) -> Result<Outcome, Error> {
        self.ask(|reply| Request::Transact(transaction, reply))
            .await
    }

    pub async fn grant(&self, seconds: u64) -> Result<Lease, Error> {
        self.ask(|reply| Request::Grant(seconds, reply)).await
    }

    pub async fn keep_alive(&self, lease: LeaseId) -> Result<(), Error> {
        self.ask(|reply| Request::KeepAlive(lease, reply)).await
    }

    pub async fn revoke(&self, lease: LeaseId) -> Result<(), Error> {
        self.ask(|reply| Request::Revoke(lease, reply)).await
    }

    pub async fn compact(&self, through: Revision) -> Result<(), Error> {
        self.ask(|reply| Request::Compact(through, reply)).await
    }

    async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, Error> {
        let permit = Arc::clone(&self.room)
            .acquire_owned()
            .await
            .map_err(|_| Error::Closed)?;
        let (reply, answer) = oneshot::channel();
        self.requests
            .as_ref()
            .and_then(|requests| requests.send((request(reply), permit)).ok())
            .ok_or(Error::Closed)?;
        answer.await.map_err(|_| Error::Closed)?
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.requests = None;
        let thread = self
            .thread
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(thread) = thread {
            // It panicked if this fails; its message was printed.
            let _ = thread.join();
        }
    }
}

struct Worker {
    shared: Arc<Shared>,
    latest: Sender<Revision>,
    leases: Leases,
    history: HistoryLimit,
    incoming: mpsc::Receiver<(Request, OwnedSemaphorePermit)>,
    /// Until when leases that are due are left alone.
    retry: Option<Instant>,
}

impl Worker {
    fn run(mut self) {
        let mut left_over = None;
        loop {
            self.end_due_leases();
            let (request, permit) = match left_over.take() {
                Some(request) => request,
                None => match self.wait() {
                    Ok(request) => request,
                    Err(RecvTimeoutError::Timeout) => continue,
                    Err(RecvTimeoutError::Disconnected) => return,
                },
            };
            match request {
                Request::Transact(transaction, reply) => {
                    left_over = self.transact((transaction, reply, permit));
                }
                Request::Grant(seconds, reply) => {
                    let granted = self.commit(|commit| commit.grant(seconds));
                    // Counted from after the commit: never shorter than said.
                    let granted = granted.map(|id| self.leases.insert(id, seconds, Instant::now()));
                    let _ = reply.send(granted);
                }
                Request::KeepAlive(lease, reply) => {
                    let kept = match self.leases.keep_alive(lease, Instant::now()) {
                        true => Ok(()),
                        false => Err(Error::LeaseNotFound { lease }),
                    };
                    let _ = reply.send(kept);
                }
                Request::Revoke(lease, reply) => {
                    let _ = reply.send(self.revoke(lease));
                }
                Request::Compact(through, reply) => {
                    let _ = reply.send(self.compact(through));
                }
            }
        }
    }

    fn wait(&self) -> Result<(Request, OwnedSemaphorePermit), RecvTimeoutError> {
        match self.leases.next().max(self.retry) {
            Some(due) => self
                .incoming
                .recv_timeout(due.saturating_duration_since(Instant::now())),
            None => self
                .incoming
                .recv()
                .map_err(|_| RecvTimeoutError::Disconnected),
        }
    }

    /// Does a transaction and those that wait behind it, then answers all.
    /// Returns the request that ended the group, if one did.
    fn transact(
        &mut self,
        first: (Transaction, Reply<Outcome>, OwnedSemaphorePermit),
    ) -> Option<(Request, OwnedSemaphorePermit)> {
        let mut bytes = first.0.bytes();
        let mut group = vec![first];
        let mut left_over = None;
        while group.len() < GROUP && bytes < GROUP_BYTES {
            match self.incoming.try_recv() {
                Ok((Request::Transact(transaction, reply), permit)) => {
                    bytes += transaction.bytes();
                    group.push((transaction, reply, permit));
                }
                Ok(other) => {
                    left_over = Some(other);
                    break;
                }
                Err(_) => break,
            }
        }
        let now = Instant::now();
        let outcomes = self.commit(|commit| {
            group
                .iter()
                .map(|(transaction, ..)| {
                    commit.transact(transaction, |lease| self.leases.lives(lease, now))
                })
                .collect::<Result<Vec<_>, _>>()
        });
        match outcomes {
            Ok(outcomes) => {
                for ((_, reply, _), outcome) in group.into_iter().zip(outcomes) {
                    // Who no longer waits does not care.
                    let _ = reply.send(outcome);
                }
            }
            Err(error) => {
                // One cause, many callers: the first gets it, the others its text.
                let text = describe(&error);
                let mut error = Some(error);
                for (_, reply, _) in group {
                    let error = error.take().unwrap_or_else(|| Error::Storage {
                        store: self.shared.path.display().to_string(),
                        cause: text.clone().into(),
                    });
                    let _ = reply.send(Err(error));
                }
            }
        }
        left_over
    }

    /// Runs `change` in a redb transaction and commits it, if it changed
    /// anything. If it fails, nothing of it is on disk, unless the commit
    /// itself failed: then only the next start can tell.
    fn commit<T>(
        &self,
        change: impl FnOnce(&mut Commit<'_>) -> Result<T, redb::Error>,
    ) -> Result<T, Error> {
        let shared = &self.shared;
        let (result, revision) = (|| {
            let transaction = shared.database.begin_write()?;
            let mut commit = Commit::begin(&transaction)?;
            let result = change(&mut commit)?;
            let revision = commit.revision;
            if commit.finish(self.history)? {
                transaction.commit()?;
            } else {
                transaction.abort()?;
            }
            Ok::<_, redb::Error>((result, revision))
        })()
        .map_err(|error| shared.error(error))?;
        self.latest.send_if_modified(|latest| {
            let moved = *latest != revision;
            *latest = revision;
            moved
        });
        Ok(result)
    }

    fn revoke(&mut self, lease: LeaseId) -> Result<(), Error> {
        if !self.leases.lives(lease, Instant::now()) {
            return Err(Error::LeaseNotFound { lease });
        }
        self.commit(|commit| commit.end_lease(lease))?;
        self.leases.remove(lease);
        Ok(())
    }

    fn compact(&mut self, through: Revision) -> Result<(), Error> {
        if through > *self.latest.borrow() {
            return Err(Error::FutureRevision { asked: through });
        }
        self.commit(|commit| commit.compact(through))
    }

    fn end_due_leases(&mut self) {
        let now = Instant::now();
        if self.retry.is_some_and(|retry| now < retry) {
            return;
        }
        self.retry = None;
        for lease in self.leases.due(now) {
            match self.commit(|commit| commit.end_lease(lease)) {
                Ok(()) => self.leases.remove(lease),
                Err(error) => {
                    tracing::error!(%lease, "can't delete the keys of a lease that ended: {}", describe(&error));
                    self.retry = Some(now + RETRY);
                    return;
                }
            }
        }
    }
}

/// An error and what caused it, in one line.
fn describe(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
