//! A watch: a position in the history on disk.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::watch::Receiver;

use super::tables::Snapshot;
use super::{Shared, read, read_blocking};
use crate::{Batch, Error, Event, Prefix, Revision, Watch};

/// A read of the history ends with the revision that brings it to so many
/// rows, or so many bytes for the watcher: all it ever holds in memory, if no
/// single revision is larger.
const ROWS: usize = 4096;
const BYTES: u64 = 1 << 20;

pub struct EmbeddedWatch {
    shared: Arc<Shared>,
    latest: Receiver<Revision>,
    prefix: Prefix,
    /// The first revision that was not read yet.
    next: Revision,
    /// What was read and not given out.
    ready: VecDeque<Batch>,
}

impl EmbeddedWatch {
    pub fn new(
        shared: Arc<Shared>,
        latest: Receiver<Revision>,
        prefix: Prefix,
        from: Revision,
    ) -> Self {
        Self {
            shared,
            latest,
            prefix,
            next: from,
            ready: VecDeque::new(),
        }
    }
}

#[async_trait]
impl Watch for EmbeddedWatch {
    async fn next(&mut self) -> Result<Batch, Error> {
        loop {
            if let Some(batch) = self.ready.pop_front() {
                return Ok(batch);
            }
            // The writer tells of a revision after it is on disk, so a
            // snapshot taken now has it. Its end drops the sender.
            let next = self.next;
            self.latest
                .wait_for(|latest| *latest >= next)
                .await
                .map_err(|_| Error::Closed)?;
            let prefix = self.prefix.clone();
            let (batches, through) = read_blocking(&self.shared, move |shared| {
                let snapshot = shared.snapshot()?;
                if next <= snapshot.compacted {
                    return Err(Error::Compacted { asked: next });
                }
                batches(&snapshot, &prefix, next).map_err(|e| shared.error(e))
            })
            .await?;
            // Nothing waits between here and the return: a dropped future has
            // moved nothing.
            self.ready = batches;
            self.next = through.next();
        }
    }

    fn position(&self) -> Revision {
        match self.ready.front() {
            Some(batch) => batch.revision.previous(),
            None => self.next.previous(),
        }
    }
}

/// The batches from revision `from`, and the last revision that was looked at.
fn batches(
    snapshot: &Snapshot,
    prefix: &Prefix,
    from: Revision,
) -> Result<(VecDeque<Batch>, Revision), redb::Error> {
    let mut batches: VecDeque<Batch> = VecDeque::new();
    let mut through = from.previous();
    let (mut rows, mut bytes) = (0, 0);
    for row in snapshot.log.range((from.0, 0)..)? {
        let (name, row) = row?;
        let revision = Revision(name.value().0);
        if revision != through && (rows >= ROWS || bytes >= BYTES) {
            return Ok((batches, through));
        }
        through = revision;
        rows += 1;
        let (counts, key) = row.value();
        if !key.starts_with(prefix.as_str().as_bytes()) {
            continue;
        }
        bytes += counts;
        let name = read::key(key)?;
        let event = match read::version(&snapshot.versions, key, revision.0)? {
            Some(version) => Event::Put(version.into_entry(name)),
            None => Event::Delete(name),
        };
        match batches.back_mut() {
            Some(batch) if batch.revision == revision => batch.events.push(event),
            _ => batches.push_back(Batch {
                revision,
                events: vec![event],
            }),
        }
    }
    Ok((batches, snapshot.revision))
}

impl fmt::Debug for EmbeddedWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmbeddedWatch")
            .field("prefix", &self.prefix)
            .field("next", &self.next)
            .finish_non_exhaustive()
    }
}
