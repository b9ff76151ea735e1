//! The etcd provider: one store for the daemons of several hosts.
//!
//! etcd's v3 API is what the trait is made after, so most calls are one call.
//! What is done here: keys are kept below a namespace, so that an etcd can
//! have other users; reads of any length go in pages of one revision; a watch
//! connects again where it left off; and etcd's errors are sorted by what the
//! caller can do about them.
//!
//! Revisions and compaction are the whole etcd's: others' changes take
//! revisions too, and compacting forgets their history with ours.
//!
//! etcd-client compiles etcd's protocol files when it is built and needs
//! `protoc` for it (Debian: protobuf-compiler). *Rejected:* clients with
//! compiled files in them (not kept up), and etcd's JSON gateway (watches by
//! long polling, and it can be switched off).

mod convert;
mod error;
mod watch;

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use etcd_client::{
    Certificate, Client, ConnectOptions, GetOptions, Identity, KvClient, LeaseClient, TlsOptions,
    WatchClient,
};

use crate::{
    Entry, Error, Key, Lease, LeaseId, Operation, Outcome, Page, Prefix, Range, Revision, Store,
    Transaction, Watch, lease::whole_seconds,
};
use error::Kind;

/// Entries that are read with one request.
const PAGE: usize = 512;

/// Where an etcd is, and as whom to use it.
#[derive(Clone)]
pub struct EtcdOptions {
    /// Its members, as URLs: `http://host:2379`, or `https://…` with `tls`.
    pub endpoints: Vec<String>,
    /// What all keys begin with in etcd; not empty. Stores with different
    /// namespaces don't see each other.
    pub namespace: Prefix,
    /// User and password, where etcd wants them.
    pub user: Option<(String, String)>,
    /// How TLS connections are made.
    pub tls: Option<EtcdTls>,
    /// How long one request may take, the time to connect included.
    pub timeout: Duration,
}

/// Certificates for an etcd, all in PEM.
#[derive(Clone)]
pub struct EtcdTls {
    /// Who signed the members' certificates.
    pub authority: Vec<u8>,
    /// Our certificate and its key, where etcd asks for one.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
    /// The name in the members' certificates, if it is not the one in their
    /// URLs.
    pub server_name: Option<String>,
}

impl EtcdOptions {
    /// An etcd at these URLs, without user and TLS.
    pub fn new(endpoints: impl IntoIterator<Item = String>) -> Self {
        Self {
            endpoints: endpoints.into_iter().collect(),
            namespace: Prefix::new("favo/").unwrap_or_default(),
            user: None,
            tls: None,
            timeout: Duration::from_secs(5),
        }
    }

    fn connect_options(&self) -> ConnectOptions {
        // etcd cuts connections that ping more often than every 5 s, or while
        // nothing is asked.
        let mut options = ConnectOptions::new()
            .with_connect_timeout(self.timeout)
            .with_keep_alive(Duration::from_secs(10), Duration::from_secs(5))
            .with_keep_alive_while_idle(false)
            .with_require_leader(true)
            .with_auto_token_refresh(true);
        if let Some((user, password)) = &self.user {
            options = options.with_user(user, password);
        }
        if let Some(tls) = &self.tls {
            let mut client =
                TlsOptions::new().ca_certificate(Certificate::from_pem(&tls.authority));
            if let Some((certificate, key)) = &tls.identity {
                client = client.identity(Identity::from_pem(certificate, key));
            }
            if let Some(name) = &tls.server_name {
                client = client.domain_name(name);
            }
            options = options.with_tls(client);
        }
        options
    }
}

/// A store in an etcd. Clones share the connection.
#[derive(Clone)]
pub struct EtcdStore {
    kv: KvClient,
    watch: WatchClient,
    lease: LeaseClient,
    site: Arc<Site>,
}

/// What every part of the provider needs to know.
struct Site {
    /// The etcd, for people.
    name: String,
    namespace: Prefix,
    timeout: Duration,
}

impl EtcdStore {
    /// Connects, and asks something, so that wrong options show at once.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if no member answers or the options don't fit
    /// together, [`Error::Denied`] if etcd does not accept the user.
    pub async fn connect(options: &EtcdOptions) -> Result<Self, Error> {
        let site = Arc::new(Site {
            name: format!("etcd at {}", options.endpoints.join(", ")),
            namespace: options.namespace.clone(),
            timeout: options.timeout,
        });
        if options.namespace.as_str().is_empty() {
            return Err(Error::Unavailable {
                store: site.name.clone(),
                cause: "the namespace is empty; every key needs one, like 'favo/'".into(),
            });
        }
        let client = site
            .ask(Kind::Read, async {
                Client::connect(&options.endpoints, Some(options.connect_options())).await
            })
            .await?;
        let store = Self {
            kv: client
                .kv_client()
                .max_decoding_message_size(usize::MAX)
                .max_encoding_message_size(usize::MAX),
            watch: client.watch_client().max_decoding_message_size(usize::MAX),
            lease: client.lease_client(),
            site,
        };
        store.revision().await?;
        Ok(store)
    }

    /// One request for at most [`PAGE`] entries.
    async fn page(&self, range: &Range, limit: usize, at: Option<Revision>) -> Result<Page, Error> {
        let (start, end) = self.site.bounds(range);
        let mut options = GetOptions::new()
            .with_range(end)
            .with_limit(limit.min(PAGE) as i64);
        if let Some(at) = at {
            options = options.with_revision(signed(at.0));
        }
        let kind = Kind::ReadAt(at.unwrap_or_default());
        let response = self
            .site
            .ask(kind, self.kv.clone().get(start, Some(options)))
            .await?;
        let revision = at.unwrap_or(self.site.revision(response.header())?);
        self.site.page(response, revision)
    }

    async fn pages(
        &self,
        range: &Range,
        limit: usize,
        at: Option<Revision>,
    ) -> Result<Page, Error> {
        let mut all = self.page(range, limit, at).await?;
        while all.more && all.entries.len() < limit {
            let Some(last) = all.entries.last() else {
                break;
            };
            let rest = range.clone().after(&last.key);
            let limit = limit - all.entries.len();
            let next = self.page(&rest, limit, Some(all.revision)).await?;
            all.entries.extend(next.entries);
            all.more = next.more;
        }
        Ok(all)
    }

    /// Which of a transaction's leases etcd did not find; it does not say.
    async fn missing_lease(&self, transaction: &Transaction, first: LeaseId) -> LeaseId {
        for operation in transaction.then.iter().chain(&transaction.otherwise) {
            if let Operation::Put {
                lease: Some(lease), ..
            } = operation
            {
                let mut client = self.lease.clone();
                let answer = self
                    .site
                    .ask(Kind::Read, client.time_to_live(signed(lease.0), None));
                if matches!(answer.await, Ok(answer) if answer.ttl() < 0) {
                    return *lease;
                }
            }
        }
        first
    }
}

impl Site {
    /// Waits for one request's answer, for as long as one may take.
    async fn ask<T>(
        &self,
        kind: Kind,
        request: impl Future<Output = Result<T, etcd_client::Error>>,
    ) -> Result<T, Error> {
        match tokio::time::timeout(self.timeout, request).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(error::sort(&self.name, kind, error)),
            Err(elapsed) => Err(error::lost(&self.name, kind, elapsed.into())),
        }
    }

    /// Something etcd should not have said.
    fn nonsense(&self, what: impl Into<String>) -> Error {
        Error::Storage {
            store: self.name.clone(),
            cause: what.into().into(),
        }
    }
}

/// etcd's numbers are signed and never negative.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

#[async_trait]
impl Store for EtcdStore {
    async fn revision(&self) -> Result<Revision, Error> {
        let key = self.site.namespace.as_str();
        let options = GetOptions::new().with_count_only();
        let response = self
            .site
            .ask(Kind::Read, self.kv.clone().get(key, Some(options)))
            .await?;
        self.site.revision(response.header())
    }

    async fn get(&self, key: &Key) -> Result<Option<Entry>, Error> {
        let mut response = self
            .site
            .ask(Kind::Read, self.kv.clone().get(self.site.full(key), None))
            .await?;
        response
            .take_kvs()
            .pop()
            .map(|kv| self.site.entry(kv))
            .transpose()
    }

    async fn range(&self, range: &Range, at: Option<Revision>) -> Result<Page, Error> {
        if at == Some(Revision::ZERO) {
            return Err(Error::Compacted {
                asked: Revision::ZERO,
            });
        }
        let limit = range.limit.map_or(usize::MAX, usize::from);
        // The present may be compacted away between two of its pages: then it
        // is read again, as it is by then.
        let mut attempts = 3;
        loop {
            attempts -= 1;
            match self.pages(range, limit, at).await {
                Err(Error::Compacted { .. }) if at.is_none() && attempts > 0 => {}
                result => return result,
            }
        }
    }

    async fn transact(&self, transaction: Transaction) -> Result<Outcome, Error> {
        transaction.check()?;
        let request = self.site.transaction(&transaction);
        let response = self
            .site
            .ask(Kind::Write, self.kv.clone().txn(request))
            .await;
        match response {
            Ok(response) => self.site.outcome(&transaction, response),
            Err(Error::LeaseNotFound { lease }) => Err(Error::LeaseNotFound {
                lease: self.missing_lease(&transaction, lease).await,
            }),
            Err(other) => Err(other),
        }
    }

    async fn watch(&self, prefix: &Prefix, from: Revision) -> Result<Box<dyn Watch>, Error> {
        if from == Revision::ZERO {
            return Err(Error::Compacted { asked: from });
        }
        let mut watch =
            watch::EtcdWatch::new(self.watch.clone(), Arc::clone(&self.site), prefix, from);
        watch.connect().await?;
        Ok(Box::new(watch))
    }

    async fn grant(&self, ttl: Duration) -> Result<Lease, Error> {
        let seconds = signed(whole_seconds(ttl));
        // A grant that was lost is a lease that nobody keeps: it ends.
        let response = self
            .site
            .ask(Kind::Read, self.lease.clone().grant(seconds, None))
            .await?;
        Ok(Lease {
            id: LeaseId(unsigned(response.id())),
            ttl: Duration::from_secs(unsigned(response.ttl())),
        })
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), Error> {
        // Doing it twice is doing it once, so a lost answer is no doubt.
        let mut client = self.lease.clone();
        self.site
            .ask(Kind::Lease(lease), client.keep_alive(signed(lease.0)))
            .await?;
        Ok(())
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), Error> {
        let mut client = self.lease.clone();
        self.site
            .ask(Kind::EndLease(lease), client.revoke(signed(lease.0)))
            .await?;
        Ok(())
    }

    async fn compact(&self, through: Revision) -> Result<(), Error> {
        let mut client = self.kv.clone();
        let request = client.compact(signed(through.0), None);
        match self.site.ask(Kind::ReadAt(through), request).await {
            // It is compacted that far already.
            Ok(_) | Err(Error::Compacted { .. }) => Ok(()),
            Err(other) => Err(other),
        }
    }
}

impl fmt::Debug for EtcdStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdStore")
            .field("site", &self.site.name)
            .field("namespace", &self.site.namespace)
            .finish_non_exhaustive()
    }
}

/// Without passwords and keys: options end up in logs.
impl fmt::Debug for EtcdOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdOptions")
            .field("endpoints", &self.endpoints)
            .field("namespace", &self.namespace)
            .field("user", &self.user.as_ref().map(|(user, _)| user))
            .field("tls", &self.tls)
            .field("timeout", &self.timeout)
            .finish()
    }
}

impl fmt::Debug for EtcdTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdTls")
            .field("identity", &self.identity.is_some())
            .field("server_name", &self.server_name)
            .finish_non_exhaustive()
    }
}
