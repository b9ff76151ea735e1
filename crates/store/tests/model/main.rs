//! Random steps on a provider and on a model of a few lines: both must agree
//! on every answer, every state that can still be read, and every event.

#[path = "../common/mod.rs"]
mod common;
mod state;
mod steps;

use std::sync::Arc;
use std::time::Duration;

use common::{Etcd, key, prefix, soon};
use favo_store::{
    Batch, Condition, EmbeddedOptions, EmbeddedStore, Entry, Error, Event, LeaseId, Operand,
    Operation, OperationResult, Outcome, Page, Range, Relation, Revision, Store, Transaction,
    Watch,
};
use proptest::prelude::*;
use state::{Model, State, Stored, found};
use steps::{Do, If, KEYS, LEASES, PREFIXES, Step, What, When, range, step};
use tempfile::TempDir;

/// A watch, and where the model says it is.
struct Watching {
    prefix: &'static str,
    next: u64,
    watch: Box<dyn Watch>,
}

/// The store under test.
enum Provider {
    Embedded(TempDir),
    Etcd,
}

struct Case {
    provider: Provider,
    /// `None` only while it is closed.
    handle: Option<Arc<dyn Store>>,
    /// The store's revision when the case began; the model's is zero.
    base: u64,
    model: Model,
    watches: Vec<Watching>,
}

impl Case {
    async fn new(provider: Provider, store: Arc<dyn Store>) -> Self {
        Self {
            provider,
            base: store.revision().await.unwrap().0,
            handle: Some(store),
            model: Model {
                states: vec![State::new()],
                changes: vec![vec![]],
                compacted: 0,
                leases: vec![None; LEASES],
            },
            watches: Vec::new(),
        }
    }

    fn store(&self) -> &Arc<dyn Store> {
        self.handle.as_ref().unwrap()
    }

    fn absolute(&self, revision: u64) -> Revision {
        Revision(self.base + revision)
    }

    /// The revision someone means, counted from the case's beginning; `None`
    /// is zero.
    fn when(&self, when: When) -> Option<u64> {
        let now = self.model.revision();
        let of = |key: usize| self.model.state().get(KEYS[key]);
        match when {
            When::Zero => None,
            When::Back(n) => Some(now.saturating_sub(n)),
            When::Ahead(n) => Some(now + n),
            When::Modified(key) => of(key).map(|stored| stored.modified),
            When::Created(key) => of(key).map(|stored| stored.created),
        }
    }

    fn entry(&self, name: &str, stored: &Stored) -> Entry {
        Entry {
            key: key(name),
            value: vec![stored.value],
            created: self.absolute(stored.created),
            modified: self.absolute(stored.modified),
            version: stored.version,
            lease: stored.lease,
        }
    }

    fn page(&self, state: &State, range: &Range, revision: u64) -> Page {
        let (entries, more) = found(state, range);
        Page {
            entries: entries
                .iter()
                .map(|(key, stored)| self.entry(key, stored))
                .collect(),
            more,
            revision: self.absolute(revision),
        }
    }

    fn condition(&self, If(name, relation, what): &If) -> (Condition, bool) {
        let stored = self.model.state().get(KEYS[*name]);
        let number = |when| {
            self.when(when)
                .map_or(0, |revision| self.absolute(revision).0)
        };
        let of = |number: Option<u64>| number.map_or(0, |number| self.absolute(number).0);
        let (operand, left, right) = match what {
            What::Created(at) => (
                Operand::Created(Revision(number(*at))),
                of(stored.map(|stored| stored.created)),
                number(*at),
            ),
            What::Modified(at) => (
                Operand::Modified(Revision(number(*at))),
                of(stored.map(|stored| stored.modified)),
                number(*at),
            ),
            What::Version(n) => (Operand::Version(*n), stored.map_or(0, |s| s.version), *n),
            What::Value(value) => (
                Operand::Value(vec![*value]),
                stored.map_or(0, |s| u64::from(s.value)),
                u64::from(*value),
            ),
        };
        let holds = match relation {
            Relation::Equal => left == right,
            Relation::NotEqual => left != right,
            Relation::Less => left < right,
            Relation::Greater => left > right,
        };
        let comparable = stored.is_some() || !matches!(what, What::Value(_));
        let condition = Condition {
            key: key(KEYS[*name]),
            relation: *relation,
            operand,
        };
        (condition, holds && comparable)
    }

    /// A lease by its place; one that never was stands for an empty place.
    fn lease(&self, place: usize) -> LeaseId {
        self.model.leases[place].unwrap_or(LeaseId(0x7000 + place as u64))
    }

    fn operation(&self, operation: &Do) -> Operation {
        match operation {
            Do::Put(name, value, lease) => Operation::Put {
                key: key(KEYS[*name]),
                value: vec![*value],
                lease: lease.map(|place| self.lease(place)),
            },
            Do::Delete(name) => Operation::Delete(key(KEYS[*name])),
            Do::DeletePrefix(name) => Operation::DeletePrefix(prefix(PREFIXES[*name])),
            Do::Get(name) => Operation::Get(key(KEYS[*name])),
            Do::Range(name, after, limit) => Operation::Range(range(*name, *after, *limit)),
        }
    }

    /// What a transaction must answer, and how it changes the model.
    fn transact(&mut self, transaction: &Transaction, succeeded: bool) -> Result<Outcome, LeaseId> {
        let list = match succeeded {
            true => &transaction.then,
            false => &transaction.otherwise,
        };
        for operation in list {
            if let Operation::Put {
                lease: Some(lease), ..
            } = operation
                && !self.model.leases.contains(&Some(*lease))
            {
                return Err(*lease);
            }
        }
        let mut state = self.model.state().clone();
        let mut changes = Vec::new();
        let mut results = Vec::new();
        for operation in list {
            results.push(match operation {
                Operation::Put { key, value, lease } => {
                    let stored = self.model.write(&mut state, key.as_str(), value[0], *lease);
                    changes.push((key.as_str().to_owned(), Some(stored)));
                    OperationResult::Put
                }
                Operation::Delete(key) => {
                    let gone = state.remove(key.as_str());
                    changes.extend(gone.iter().map(|_| (key.as_str().to_owned(), None)));
                    OperationResult::Deleted(gone.iter().count() as u64)
                }
                Operation::DeletePrefix(prefix) => {
                    let (gone, _) = found(&state, &Range::prefix(prefix));
                    for (key, _) in &gone {
                        state.remove(key);
                        changes.push((key.clone(), None));
                    }
                    OperationResult::Deleted(gone.len() as u64)
                }
                Operation::Get(key) => {
                    let stored = state.get(key.as_str());
                    OperationResult::Got(stored.map(|stored| self.entry(key.as_str(), stored)))
                }
                Operation::Range(range) => OperationResult::Range(self.page(&state, range, 0)),
            });
        }
        self.model.advance(state, changes);
        let revision = self.absolute(self.model.revision());
        for result in &mut results {
            if let OperationResult::Range(page) = result {
                page.revision = revision;
            }
        }
        Ok(Outcome {
            succeeded,
            revision,
            results,
        })
    }

    async fn take(&mut self, step: &Step) {
        match step {
            Step::Transact(conditions, then, otherwise) => {
                let (conditions, hold): (Vec<_>, Vec<_>) =
                    conditions.iter().map(|c| self.condition(c)).unzip();
                let list = |list: &[Do]| list.iter().map(|op| self.operation(op)).collect();
                let transaction = Transaction {
                    conditions,
                    then: list(then),
                    otherwise: list(otherwise),
                };
                if transaction.check().is_err() {
                    let refused = self.store().transact(transaction).await;
                    assert!(matches!(refused, Err(Error::Invalid(_))));
                    return;
                }
                let expected = self.transact(&transaction, hold.iter().all(|holds| *holds));
                let got = self.store().transact(transaction).await;
                match (expected, got) {
                    (Ok(expected), Ok(got)) => assert_eq!(got, expected),
                    (Err(_), Err(Error::LeaseNotFound { lease })) => {
                        assert!(!self.model.leases.contains(&Some(lease)));
                    }
                    (expected, got) => panic!("{got:?}, not {expected:?}"),
                }
            }
            Step::Get(name) => {
                let stored = self.model.state().get(KEYS[*name]);
                let expected = stored.map(|stored| self.entry(KEYS[*name], stored));
                assert_eq!(self.store().get(&key(KEYS[*name])).await.unwrap(), expected);
            }
            Step::Range(name, after, limit, at) => {
                let range = range(*name, *after, *limit);
                match at {
                    Some(at) => self.read_at(&range, self.when(*at)).await,
                    None => {
                        let now = self.model.revision();
                        let expected = self.page(self.model.state(), &range, now);
                        assert_eq!(self.store().range(&range, None).await.unwrap(), expected);
                    }
                }
            }
            Step::Compact(back) => {
                // An up-to-date watch must survive any compaction; one that
                // lags may or may not, so none does here.
                self.mark().await;
                let through = self
                    .model
                    .revision()
                    .saturating_sub(*back)
                    .max(self.model.compacted);
                self.store().compact(self.absolute(through)).await.unwrap();
                if through > 0 {
                    self.model.compacted = through;
                }
            }
            Step::Watch(name, from) => self.watch(PREFIXES[*name], self.when(*from)).await,
            Step::Drain(place) => {
                if let Some(mut watching) = self.watches.pop() {
                    self.drain(&mut watching).await;
                    let place = place % (self.watches.len() + 1);
                    self.watches.insert(place, watching);
                }
            }
            Step::Grant(place) => {
                if self.model.leases[*place].is_none() {
                    let lease = self.store().grant(Duration::from_secs(600)).await.unwrap();
                    assert!(!self.model.leases.contains(&Some(lease.id)));
                    self.model.leases[*place] = Some(lease.id);
                }
            }
            Step::Revoke(place) => {
                let got = self.store().revoke(self.lease(*place)).await;
                match self.model.leases[*place].take() {
                    Some(lease) => {
                        got.unwrap();
                        self.model.end_lease(lease);
                    }
                    None => assert!(matches!(got, Err(Error::LeaseNotFound { .. }))),
                }
            }
            Step::KeepAlive(place) => {
                let got = self.store().keep_alive(self.lease(*place)).await;
                match self.model.leases[*place] {
                    Some(_) => got.unwrap(),
                    None => assert!(matches!(got, Err(Error::LeaseNotFound { .. }))),
                }
            }
            Step::Expire(names) => self.expire(names).await,
            Step::Reopen => self.reopen().await,
        }
        let expected = self.absolute(self.model.revision());
        assert_eq!(self.store().revision().await.unwrap(), expected);
    }

    async fn read_at(&self, range: &Range, at: Option<u64>) {
        let asked = at.map_or(Revision::ZERO, |at| self.absolute(at));
        let got = self.store().range(range, Some(asked)).await;
        match at {
            Some(at) if at > self.model.revision() => {
                assert!(matches!(got, Err(Error::FutureRevision { asked: a }) if a == asked));
            }
            Some(at) if at >= self.model.compacted => {
                let expected = self.page(&self.model.states[at as usize], range, at);
                assert_eq!(got.unwrap(), expected);
            }
            _ => assert!(
                matches!(got, Err(Error::Compacted { asked: a }) if a == asked),
                "{got:?}"
            ),
        }
    }

    async fn watch(&mut self, name: &'static str, from: Option<u64>) {
        // The case's own beginning is history of the case before.
        let from = from.map(|from| from.max(1));
        let asked = from.map_or(Revision::ZERO, |from| self.absolute(from));
        let opened = self.store().watch(&prefix(name), asked).await;
        match from {
            Some(from) if from > self.model.compacted => self.watches.push(Watching {
                prefix: name,
                next: from,
                watch: opened.unwrap(),
            }),
            _ => {
                let error = match opened {
                    Ok(mut watch) => soon(watch.next()).await.unwrap_err(),
                    Err(error) => error,
                };
                assert!(matches!(error, Error::Compacted { asked: a } if a == asked));
            }
        }
    }

    /// Reads from a watch all that it must give by now, and not more.
    async fn drain(&self, watching: &mut Watching) {
        for revision in watching.next..=self.model.revision() {
            let events: Vec<_> = self.model.changes[revision as usize]
                .iter()
                .filter(|(name, _)| name.starts_with(watching.prefix))
                .map(|(name, stored)| match stored {
                    Some(stored) => Event::Put(self.entry(name, stored)),
                    None => Event::Delete(key(name)),
                })
                .collect();
            if events.is_empty() {
                continue;
            }
            let revision_of = self.absolute(revision);
            let expected = Batch {
                revision: revision_of,
                events,
            };
            assert_eq!(soon(watching.watch.next()).await.unwrap(), expected);
            assert!(watching.watch.position() >= revision_of);
            watching.next = revision + 1;
        }
    }

    /// Changes something that every watch sees, and reads every watch up to
    /// it: had one given too much before, it would show.
    async fn mark(&mut self) {
        let mark = Transaction::always([
            Operation::put(&key("a/1"), [9]),
            Operation::put(&key("b"), [9]),
        ]);
        let expected = self.transact(&mark, true).unwrap();
        assert_eq!(self.store().transact(mark).await.unwrap(), expected);
        let mut watches = std::mem::take(&mut self.watches);
        for watching in &mut watches {
            self.drain(watching).await;
        }
        self.watches = watches;
    }

    async fn expire(&mut self, names: &[usize]) {
        let lease = self.store().grant(Duration::from_secs(2)).await.unwrap().id;
        self.model.leases.push(Some(lease));
        let mut names = names.to_vec();
        names.sort_unstable();
        names.dedup();
        let puts = names.iter().map(|name| Operation::Put {
            key: key(KEYS[*name]),
            value: vec![8],
            lease: Some(lease),
        });
        let transaction = Transaction::always(puts.collect::<Vec<_>>());
        let expected = self.transact(&transaction, true).unwrap();
        assert_eq!(self.store().transact(transaction).await.unwrap(), expected);
        self.model.leases.pop();
        self.model.end_lease(lease);
        let gone = self.absolute(self.model.revision());
        let store = Arc::clone(self.store());
        soon(async {
            while store.revision().await.unwrap() < gone {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
    }

    async fn reopen(&mut self) {
        let Provider::Embedded(directory) = &self.provider else {
            return;
        };
        let watches: Vec<_> = self.watches.drain(..).map(|w| (w.prefix, w.next)).collect();
        // The only handle of the old one goes before the new one comes.
        self.handle = None;
        self.handle = Some(Arc::new(open(directory).await));
        for (prefix, next) in watches {
            self.watch(prefix, Some(next)).await;
        }
    }

    /// Everything that can still be asked, at the end.
    async fn finish(mut self) {
        self.mark().await;
        for at in 0..=self.model.revision() {
            self.read_at(&Range::default(), Some(at)).await;
        }
        let lease = self
            .model
            .leases
            .iter()
            .flatten()
            .copied()
            .collect::<Vec<_>>();
        for lease in lease {
            self.store().revoke(lease).await.unwrap();
        }
        if let Provider::Embedded(directory) = &self.provider {
            drop(self.watches);
            drop(self.handle);
            let wrong = open(directory).await.verify().await.unwrap();
            assert_eq!(wrong, Vec::<String>::new());
        }
    }
}

async fn open(directory: &TempDir) -> EmbeddedStore {
    // A read that was given up may hold the store a moment longer.
    for _ in 0..1000 {
        match EmbeddedStore::open(directory.path(), &EmbeddedOptions::default()) {
            Ok(store) => return store,
            Err(favo_store::OpenError::InUse { .. }) => {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Err(error) => panic!("{error:?}"),
        }
    }
    panic!("someone holds the store");
}

fn config() -> ProptestConfig {
    let mut config = ProptestConfig {
        max_shrink_iters: 2000,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = 64;
    }
    config
}

fn agree(provider: impl AsyncFn() -> (Provider, Arc<dyn Store>)) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let mut runner = proptest::test_runner::TestRunner::new(config());
    let steps = prop::collection::vec(step(), 1..60);
    let result = runner.run(&steps, |steps| {
        runtime.block_on(async {
            let (provider, store) = provider().await;
            let mut case = Case::new(provider, store).await;
            for step in &steps {
                case.take(step).await;
            }
            case.finish().await;
        });
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}

#[test]
fn embedded_agrees_with_the_model() {
    agree(async || {
        let directory = tempfile::tempdir().unwrap();
        let store = open(&directory).await;
        (
            Provider::Embedded(directory),
            Arc::new(store) as Arc<dyn Store>,
        )
    });
}

#[test]
fn etcd_agrees_with_the_model() {
    let Some(etcd) = Etcd::start() else {
        return;
    };
    agree(async || {
        (
            Provider::Etcd,
            Arc::new(etcd.store().await) as Arc<dyn Store>,
        )
    });
}
