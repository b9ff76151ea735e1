//! A watch on etcd that outlives its connections.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use etcd_client::{EventType, WatchClient, WatchOptions, WatchResponse, WatchStream};

use super::error::Kind;
use super::{Site, signed, unsigned};
use crate::{Batch, Error, Event, Prefix, Revision, Watch};

/// How long a watch that could not connect waits before it says so.
const PAUSE: Duration = Duration::from_millis(250);

pub struct EtcdWatch {
    client: WatchClient,
    site: Arc<Site>,
    start: Vec<u8>,
    end: Vec<u8>,
    /// The first revision that was not received yet.
    next: Revision,
    /// What was received and not given out.
    ready: VecDeque<Batch>,
    stream: Option<WatchStream>,
}

impl EtcdWatch {
    pub fn new(client: WatchClient, site: Arc<Site>, prefix: &Prefix, from: Revision) -> Self {
        let (start, end) = site.prefix(prefix);
        Self {
            client,
            site,
            start,
            end,
            next: from,
            ready: VecDeque::new(),
            stream: None,
        }
    }

    /// Opens a stream from where this watch is.
    pub async fn connect(&mut self) -> Result<(), Error> {
        // etcd lets a watch begin at the very revision that was compacted,
        // with its deletions missing. One revision earlier it refuses, so that
        // is where streams begin; what was not asked for is left out.
        let from = self.next.previous().max(Revision::FIRST);
        let options = WatchOptions::new()
            .with_range(self.end.clone())
            .with_start_revision(signed(from.0))
            .with_progress_notify();
        let request = self.client.watch(self.start.clone(), Some(options));
        self.stream = Some(self.site.ask(Kind::ReadAt(self.next), request).await?);
        Ok(())
    }

    /// Takes one answer in.
    fn take(&mut self, response: &WatchResponse) -> Result<(), Error> {
        if response.canceled() {
            self.stream = None;
            if response.compact_revision() > 0 {
                return Err(Error::Compacted { asked: self.next });
            }
            let reason = response.cancel_reason().to_owned();
            let store = self.site.name.clone();
            let cause = reason.clone().into();
            return Err(if reason.contains("permission denied") {
                Error::Denied { store, cause }
            } else {
                Error::Unavailable { store, cause }
            });
        }
        let mut next = self.next;
        for event in response.events() {
            let kv = event
                .kv()
                .ok_or_else(|| self.site.nonsense("an event of no key"))?;
            let revision = Revision(unsigned(kv.mod_revision()));
            if revision < self.next {
                continue;
            }
            let event = match event.event_type() {
                EventType::Put => Event::Put(self.site.entry(kv.clone())?),
                EventType::Delete => Event::Delete(self.site.key(kv.key())?),
            };
            match self.ready.back_mut() {
                // Revisions are never split over answers.
                Some(batch) if batch.revision == revision => batch.events.push(event),
                _ => self.ready.push_back(Batch {
                    revision,
                    events: vec![event],
                }),
            }
            next = revision.next();
        }
        // An answer without events says that there were none.
        if response.events().is_empty() && !response.created() {
            let header = self.site.revision(response.header())?;
            next = next.max(header.next());
        }
        self.next = next;
        Ok(())
    }
}

#[async_trait]
impl Watch for EtcdWatch {
    async fn next(&mut self) -> Result<Batch, Error> {
        loop {
            if let Some(batch) = self.ready.pop_front() {
                return Ok(batch);
            }
            let Some(stream) = &mut self.stream else {
                if let Err(error) = self.connect().await {
                    // Who calls again at once still does not spin.
                    tokio::time::sleep(PAUSE).await;
                    return Err(error);
                }
                continue;
            };
            match stream.message().await {
                Ok(Some(response)) => self.take(&response)?,
                Ok(None) => self.stream = None,
                Err(error) => {
                    tracing::debug!("the watch on {} was cut: {error}", self.site.name);
                    self.stream = None;
                }
            }
        }
    }

    fn position(&self) -> Revision {
        match self.ready.front() {
            Some(batch) => batch.revision.previous(),
            None => self.next.previous(),
        }
    }
}

impl fmt::Debug for EtcdWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdWatch")
            .field("start", &String::from_utf8_lossy(&self.start))
            .field("next", &self.next)
            .finish_non_exhaustive()
    }
}
