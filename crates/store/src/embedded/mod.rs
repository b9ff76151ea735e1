//! The embedded provider: one directory, one process, one redb database.
//!
//! redb is a copy-on-write B+tree file in pure Rust: a commit is one fsync and
//! a crash leaves the last commit, readers see a snapshot without blocking the
//! writer. *Rejected:* SQLite, because it is a C library and a query language
//! for what are three ordered maps; sled and fjall, because log-structured
//! stores pay off for far more writes than a control plane makes; our own log,
//! because crash safety is what others have tested for years.
//!
//! One thread writes (`writer`): it takes what waits, does it in order, commits
//! once, and then answers all of it, so many callers share one fsync. Reads and
//! watches go to snapshots, on tokio's threads for blocking work. A watch is a
//! position in the history that is on disk; the writer only tells that there
//! is more.

mod commit;
mod history;
mod leases;
mod lock;
mod read;
mod tables;
mod verify;
mod watch;
mod writer;

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use favo_types::ByteCount;
use redb::{Database, ReadableDatabase};
use tokio::sync::watch::Receiver;

use crate::{
    Cause, Entry, Error, Key, Lease, LeaseId, Outcome, Page, Prefix, Range, Revision, Store,
    Transaction, Watch, lease::whole_seconds,
};
use lock::Lock;
use tables::Snapshot;
use writer::Writer;

/// How the embedded store behaves.
#[derive(Clone, Debug)]
pub struct EmbeddedOptions {
    /// How much of the file is kept in memory.
    pub cache: ByteCount,
    /// How much history is kept.
    pub history: HistoryLimit,
}

impl Default for EmbeddedOptions {
    fn default() -> Self {
        Self {
            cache: ByteCount::mib(16),
            history: HistoryLimit::default(),
        }
    }
}

/// How far back watches and reads can reach: what exceeds either bound is
/// forgotten, oldest first, some at a time with each commit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HistoryLimit {
    /// So many revisions.
    pub revisions: u64,
    /// So many bytes of keys and values.
    pub bytes: ByteCount,
}

impl Default for HistoryLimit {
    fn default() -> Self {
        Self {
            revisions: 100_000,
            bytes: ByteCount::mib(128),
        }
    }
}

/// Why a store can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error("the store in {} is in use by {holder}; stop that first, or use another directory", directory.display())]
    InUse {
        /// Where the store is.
        directory: PathBuf,
        /// The other process: its number and command, and since when.
        holder: String,
    },
    /// The directory can't be made or used.
    #[error("can't {what} {}", path.display())]
    Directory {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The file was written by a newer favo.
    #[error("{} has format {found}, this favo knows up to {known}; use the favo that wrote it, or a newer one", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u64,
        /// The newest this program knows.
        known: u64,
    },
    /// The file is no store, or is damaged.
    #[error("{} can't be opened as a store; if the disk is sound, put a backup in its place", path.display())]
    Database {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        cause: Cause,
    },
}

/// A store in a directory of this host. Clones share it; it is closed, and
/// free for another process, when the last clone and watch are dropped.
#[derive(Clone)]
pub struct EmbeddedStore {
    // Before `shared`: when the last clone goes, the writer ends first.
    writer: Arc<Writer>,
    shared: Arc<Shared>,
    latest: Receiver<Revision>,
}

/// What the writer, the readers and the watches share.
struct Shared {
    database: Database,
    path: PathBuf,
    // Dropped after the database.
    _lock: Option<Lock>,
}

impl Shared {
    fn error(&self, cause: impl Into<redb::Error>) -> Error {
        let cause = cause.into();
        let store = self.path.display().to_string();
        match &cause {
            redb::Error::Io(io) if io.kind() == io::ErrorKind::StorageFull => Error::Full {
                store,
                cause: Box::new(cause),
            },
            _ => Error::Storage {
                store,
                cause: Box::new(cause),
            },
        }
    }

    fn snapshot(&self) -> Result<Snapshot, Error> {
        let transaction = self.database.begin_read().map_err(|e| self.error(e))?;
        Snapshot::open(&transaction).map_err(|e| self.error(e))
    }
}

impl EmbeddedStore {
    /// Opens the store in `directory`, making both if they are not there.
    ///
    /// Blocks: after a crash the file is checked through, which takes about a
    /// second per gigabyte. Leases that were held count anew from now.
    ///
    /// # Errors
    /// Another process holds it, or it can't be read.
    pub fn open(directory: &Path, options: &EmbeddedOptions) -> Result<Self, OpenError> {
        let io = |what, path: &Path| {
            let path = path.to_owned();
            move |source| OpenError::Directory { what, path, source }
        };
        if !directory.is_dir() {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(directory)
                .map_err(io("make", directory))?;
            if let Some(parent) = directory.parent() {
                sync(parent).map_err(io("write", parent))?;
            }
        }
        let lock = Lock::take(directory)?;
        let path = directory.join("store.redb");
        let damaged = |path: &Path, cause: redb::Error| OpenError::Database {
            path: path.to_owned(),
            cause: Box::new(cause),
        };
        if !path.exists() {
            // Under another name first: a crash leaves a whole store or none.
            let new = directory.join("store.redb.new");
            if new.exists() {
                fs::remove_file(&new).map_err(io("remove", &new))?;
            }
            let database = Self::builder(options)
                .create(&new)
                .map_err(|e| damaged(&new, e.into()))?;
            tables::create(&database).map_err(|e| damaged(&new, e))?;
            drop(database);
            // Resources hold secrets: nobody else reads them, whatever the
            // directory allows.
            let private = fs::Permissions::from_mode(0o600);
            fs::set_permissions(&new, private).map_err(io("protect", &new))?;
            fs::rename(&new, &path).map_err(io("write", &path))?;
            sync(directory).map_err(io("write", directory))?;
        }
        let database = Self::builder(options)
            .open(&path)
            .map_err(|e| damaged(&path, e.into()))?;
        Self::start(database, path, Some(lock), options)
    }

    /// Opens a store on something that behaves like a disk.
    #[cfg(test)]
    fn open_backend(
        backend: impl redb::StorageBackend,
        options: &EmbeddedOptions,
    ) -> Result<Self, OpenError> {
        let path = PathBuf::from("(backend)");
        let database = Self::builder(options)
            .create_with_backend(backend)
            .map_err(|cause| OpenError::Database {
                path: path.clone(),
                cause: Box::new(cause),
            })?;
        Self::start(database, path, None, options)
    }

    fn builder(options: &EmbeddedOptions) -> redb::Builder {
        let mut builder = Database::builder();
        builder.set_cache_size(usize::try_from(options.cache.bytes()).unwrap_or(usize::MAX));
        builder
    }

    fn start(
        database: Database,
        path: PathBuf,
        lock: Option<Lock>,
        options: &EmbeddedOptions,
    ) -> Result<Self, OpenError> {
        let database_error = |cause: redb::Error| OpenError::Database {
            path: path.clone(),
            cause: Box::new(cause),
        };
        let format = tables::create(&database).map_err(database_error)?;
        if format > tables::FORMAT {
            return Err(OpenError::Newer {
                path,
                found: format,
                known: tables::FORMAT,
            });
        }
        let (revision, leases) = commit::resume(&database).map_err(database_error)?;
        let shared = Arc::new(Shared {
            database,
            path: path.clone(),
            _lock: lock,
        });
        let (writer, latest) =
            Writer::start(Arc::clone(&shared), revision, leases, options.history).map_err(
                |source| OpenError::Directory {
                    what: "start a thread for",
                    path,
                    source,
                },
            )?;
        Ok(Self {
            writer: Arc::new(writer),
            shared,
            latest,
        })
    }

    /// Compares everything on disk with everything else on disk, and says what
    /// does not agree. Reads the whole store.
    ///
    /// # Errors
    /// It can't be read.
    pub async fn verify(&self) -> Result<Vec<String>, Error> {
        self.read(|shared| {
            let transaction = shared.database.begin_read().map_err(|e| shared.error(e))?;
            verify::verify(&transaction).map_err(|e| shared.error(e))
        })
        .await
    }

    /// Runs `read` where blocking is allowed.
    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Shared) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        read_blocking(&self.shared, read).await
    }
}

/// Writes a directory's names to the disk.
fn sync(directory: &Path) -> io::Result<()> {
    let directory = if directory.as_os_str().is_empty() {
        Path::new(".")
    } else {
        directory
    };
    fs::File::open(directory)?.sync_all()
}

async fn read_blocking<T: Send + 'static>(
    shared: &Arc<Shared>,
    read: impl FnOnce(&Shared) -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let shared = Arc::clone(shared);
    match tokio::task::spawn_blocking(move || read(&shared)).await {
        Ok(result) => result,
        Err(join) if join.is_panic() => std::panic::resume_unwind(join.into_panic()),
        // The runtime is shutting down.
        Err(_) => Err(Error::Closed),
    }
}

#[async_trait]
impl Store for EmbeddedStore {
    async fn revision(&self) -> Result<Revision, Error> {
        Ok(*self.latest.borrow())
    }

    async fn get(&self, key: &Key) -> Result<Option<Entry>, Error> {
        let key = key.clone();
        self.read(move |shared| {
            let snapshot = shared.snapshot()?;
            read::entry(&snapshot.versions, &key, u64::MAX).map_err(|e| shared.error(e))
        })
        .await
    }

    async fn range(&self, range: &Range, at: Option<Revision>) -> Result<Page, Error> {
        let range = range.clone();
        self.read(move |shared| {
            let snapshot = shared.snapshot()?;
            if let Some(asked) = at {
                if asked > snapshot.revision {
                    return Err(Error::FutureRevision { asked });
                }
                if asked < snapshot.compacted || asked == Revision::ZERO {
                    return Err(Error::Compacted { asked });
                }
            }
            let revision = at.unwrap_or(snapshot.revision);
            read::page(&snapshot.versions, &range, revision).map_err(|e| shared.error(e))
        })
        .await
    }

    async fn transact(&self, transaction: Transaction) -> Result<Outcome, Error> {
        transaction.check()?;
        self.writer.transact(transaction).await
    }

    async fn watch(&self, prefix: &Prefix, from: Revision) -> Result<Box<dyn Watch>, Error> {
        let snapshot = self.read(Shared::snapshot).await?;
        if from <= snapshot.compacted {
            return Err(Error::Compacted { asked: from });
        }
        Ok(Box::new(watch::EmbeddedWatch::new(
            Arc::clone(&self.shared),
            self.latest.clone(),
            prefix.clone(),
            from,
        )))
    }

    async fn grant(&self, ttl: Duration) -> Result<Lease, Error> {
        self.writer.grant(whole_seconds(ttl)).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), Error> {
        self.writer.keep_alive(lease).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), Error> {
        self.writer.revoke(lease).await
    }

    async fn compact(&self, through: Revision) -> Result<(), Error> {
        self.writer.compact(through).await
    }
}

impl fmt::Debug for EmbeddedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmbeddedStore")
            .field("path", &self.shared.path)
            .field("revision", &*self.latest.borrow())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "power_cut_test.rs"]
mod power_cut_test;
#[cfg(test)]
#[path = "mod_test.rs"]
mod test;
