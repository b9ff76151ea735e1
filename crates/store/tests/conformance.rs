//! What every provider must do, one case each, on fresh stores.

mod common;

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{Embedded, Etcd, PATIENCE, key, prefix, put, soon};
use favo_store::{
    Batch, Condition, Entry, Error, Event, InvalidTransaction, LeaseId, Operand, Operation,
    OperationResult, Prefix, Range, Relation, Revision, Store, Transaction,
};

type Case = fn(Arc<dyn Store>) -> Pin<Box<dyn Future<Output = ()> + Send>>;

macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        const CASES: &[(&str, Case)] = &[$((stringify!($name), |store| Box::pin($name(store)))),*];
    };
}

cases![
    revisions_and_versions_count_changes,
    what_changes_nothing_takes_no_revision,
    conditions_choose_the_list,
    conditions_compare_what_is_stored,
    reads_in_a_transaction_see_its_writes,
    prefixes_are_deleted_in_one_step,
    ranges_come_in_pages,
    the_past_can_be_read,
    what_is_long_or_large_fits,
    invalid_transactions_are_refused,
    a_watch_gives_the_past_then_the_present,
    a_watch_sees_only_its_prefix,
    a_watch_may_begin_in_the_future,
    a_dropped_wait_loses_nothing,
    a_watch_goes_on_where_another_ended,
    compaction_forgets_the_past_only,
    writers_in_competition_lose_no_change,
    keys_follow_their_lease,
    a_lease_ends_unless_kept_alive,
    unknown_leases_are_refused,
];

async fn run(fresh: impl AsyncFn() -> Arc<dyn Store>) {
    let only = std::env::var("CONFORMANCE").unwrap_or_default();
    for (name, case) in CASES.iter().filter(|(name, _)| name.contains(&only)) {
        eprintln!("{name}");
        soon(case(fresh().await)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn embedded() {
    let kept = std::sync::Mutex::new(Vec::new());
    run(async || {
        let embedded = Embedded::open();
        let store = Arc::clone(&embedded.store);
        kept.lock().unwrap().push(embedded);
        store
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd() {
    let Some(etcd) = Etcd::start() else {
        return;
    };
    run(async || Arc::new(etcd.store().await) as Arc<dyn Store>).await;
}

fn names(entries: &[Entry]) -> Vec<&str> {
    entries.iter().map(|entry| entry.key.as_str()).collect()
}

fn put_event(key: &str, value: &str, created: Revision, modified: Revision, version: u64) -> Event {
    Event::Put(Entry {
        key: common::key(key),
        value: value.into(),
        created,
        modified,
        version,
        lease: None,
    })
}

async fn revisions_and_versions_count_changes(store: Arc<dyn Store>) {
    let before = store.revision().await.unwrap();
    assert!(before >= Revision::FIRST);
    assert_eq!(store.get(&key("k")).await.unwrap(), None);
    let first = put(&*store, "k", "a").await;
    assert!(first > before);
    let second = put(&*store, "k", "b").await;
    let entry = store.get(&key("k")).await.unwrap().unwrap();
    assert_eq!(Event::Put(entry), put_event("k", "b", first, second, 2));
    let deleted = store.delete(&key("k")).await.unwrap();
    assert!(deleted > second);
    assert_eq!(store.get(&key("k")).await.unwrap(), None);
    // Who comes back begins anew.
    let third = put(&*store, "k", "c").await;
    let entry = store.get(&key("k")).await.unwrap().unwrap();
    assert_eq!(Event::Put(entry), put_event("k", "c", third, third, 1));
    assert_eq!(store.revision().await.unwrap(), third);
}

async fn what_changes_nothing_takes_no_revision(store: Arc<dyn Store>) {
    let before = put(&*store, "k", "v").await;
    assert_eq!(store.delete(&key("other")).await.unwrap(), before);
    let nothing = Transaction::always([
        Operation::DeletePrefix(prefix("none/")),
        Operation::Get(key("k")),
    ]);
    let outcome = store.transact(nothing).await.unwrap();
    assert_eq!(outcome.revision, before);
    assert_eq!(outcome.results[0], OperationResult::Deleted(0));
    let empty = store.transact(Transaction::default()).await.unwrap();
    assert!(empty.succeeded && empty.results.is_empty());
    assert_eq!(store.revision().await.unwrap(), before);
    // The same value again is a change.
    assert!(put(&*store, "k", "v").await > before);
}

async fn conditions_choose_the_list(store: Arc<dyn Store>) {
    let create = Transaction::always([Operation::put(&key("k"), "mine")])
        .when(Condition::absent(&key("k")))
        .otherwise(Operation::Get(key("k")));
    let first = store.transact(create.clone()).await.unwrap();
    assert!(first.succeeded);
    assert_eq!(first.results, [OperationResult::Put]);
    let second = store.transact(create).await.unwrap();
    assert!(!second.succeeded);
    let [OperationResult::Got(Some(found))] = &second.results[..] else {
        panic!("{second:?}");
    };
    assert_eq!(
        (found.value.as_slice(), found.modified),
        (&b"mine"[..], first.revision)
    );
    // All must hold.
    let both = Transaction::always([Operation::Delete(key("k"))])
        .when(Condition::exists(&key("k")))
        .when(Condition::exists(&key("missing")));
    assert!(!store.transact(both).await.unwrap().succeeded);
    assert!(store.get(&key("k")).await.unwrap().is_some());
}

async fn conditions_compare_what_is_stored(store: Arc<dyn Store>) {
    use Operand::{Created, Modified, Value, Version};
    use Relation::{Equal, Greater, Less, NotEqual};
    let created = put(&*store, "k", "m").await;
    let modified = put(&*store, "k", "mm").await;
    let holds = async |name: &str, relation, operand: Operand| {
        let condition = Condition {
            key: key(name),
            relation,
            operand,
        };
        let transaction = Transaction::default().when(condition);
        store.transact(transaction).await.unwrap().succeeded
    };
    let expect = async |name: &str, operand: Operand, which: &[Relation]| {
        for relation in [Equal, NotEqual, Less, Greater] {
            let found = holds(name, relation, operand.clone()).await;
            assert_eq!(
                found,
                which.contains(&relation),
                "{name} {relation:?} {operand:?}"
            );
        }
    };
    expect("k", Created(created), &[Equal]).await;
    expect("k", Created(modified), &[NotEqual, Less]).await;
    expect("k", Modified(modified), &[Equal]).await;
    expect("k", Modified(created), &[NotEqual, Greater]).await;
    expect("k", Version(2), &[Equal]).await;
    expect("k", Version(3), &[NotEqual, Less]).await;
    expect("k", Value(b"mm".into()), &[Equal]).await;
    expect("k", Value(b"m".into()), &[NotEqual, Greater]).await;
    expect("k", Value(b"n".into()), &[NotEqual, Less]).await;
    // What is missing has number zero, and no value at all.
    expect("none", Created(Revision::ZERO), &[Equal]).await;
    expect("none", Modified(Revision(1)), &[NotEqual, Less]).await;
    expect("none", Version(0), &[Equal]).await;
    expect("none", Value(vec![]), &[]).await;
    expect("none", Value(b"x".into()), &[]).await;
}

async fn reads_in_a_transaction_see_its_writes(store: Arc<dyn Store>) {
    let old = put(&*store, "a", "old").await;
    let outcome = store
        .transact(Transaction::always([
            Operation::Get(key("a")),
            Operation::put(&key("a"), "new"),
            Operation::put(&key("b"), "b"),
            Operation::Get(key("a")),
            Operation::Delete(key("c")),
            Operation::Range(Range::prefix(&Prefix::ALL)),
            Operation::Range(Range::default().limit(1)),
        ]))
        .await
        .unwrap();
    let now = outcome.revision;
    let entry = |name: &str, value: &str, created, version| Entry {
        key: key(name),
        value: value.into(),
        created,
        modified: now,
        version,
        lease: None,
    };
    let (a, b) = (entry("a", "new", old, 2), entry("b", "b", now, 1));
    assert_eq!(outcome.results.len(), 7);
    let OperationResult::Got(Some(before)) = &outcome.results[0] else {
        panic!("{outcome:?}")
    };
    assert_eq!(before.value, b"old");
    assert_eq!(outcome.results[3], OperationResult::Got(Some(a.clone())));
    assert_eq!(outcome.results[4], OperationResult::Deleted(0));
    for (result, entries, left_out) in [
        (&outcome.results[5], vec![a.clone(), b], false),
        (&outcome.results[6], vec![a], true),
    ] {
        let OperationResult::Range(page) = result else {
            panic!("{outcome:?}")
        };
        assert_eq!(
            (&page.entries, page.more, page.revision),
            (&entries, left_out, now)
        );
    }
}

async fn prefixes_are_deleted_in_one_step(store: Arc<dyn Store>) {
    for name in ["a/2", "a/1", "a", "b/1", "a/ÿ"] {
        put(&*store, name, "x").await;
    }
    let from = store.revision().await.unwrap().next();
    let delete = Transaction::always([Operation::DeletePrefix(prefix("a/"))]);
    let outcome = store.transact(delete).await.unwrap();
    assert_eq!(outcome.results, [OperationResult::Deleted(3)]);
    let page = store.range(&Range::default(), None).await.unwrap();
    assert_eq!(names(&page.entries), ["a", "b/1"]);
    let mut watch = store.watch(&Prefix::ALL, from).await.unwrap();
    let batch = watch.next().await.unwrap();
    let deleted = ["a/1", "a/2", "a/ÿ"].map(|name| Event::Delete(key(name)));
    assert_eq!(
        (batch.revision, &batch.events[..]),
        (outcome.revision, &deleted[..])
    );
    // The empty prefix is everything that is ours.
    let all = Transaction::always([Operation::DeletePrefix(Prefix::ALL)]);
    let outcome = store.transact(all).await.unwrap();
    assert_eq!(outcome.results, [OperationResult::Deleted(2)]);
}

async fn ranges_come_in_pages(store: Arc<dyn Store>) {
    for name in ["a", "b/", "b/1", "b/2", "b/3", "b0", "c"] {
        put(&*store, name, name).await;
    }
    let b = Range::prefix(&prefix("b/"));
    let page = store.range(&b.clone().limit(2), None).await.unwrap();
    assert_eq!((names(&page.entries), page.more), (vec!["b/", "b/1"], true));
    put(&*store, "b/11", "not on the next page of the same state").await;
    let rest = b.clone().limit(2).after(&key("b/1"));
    let at = Some(page.revision);
    let page = store.range(&rest, at).await.unwrap();
    assert_eq!(
        (names(&page.entries), page.more),
        (vec!["b/2", "b/3"], false)
    );
    assert_eq!(Some(page.revision), at);
    let page = store.range(&rest, None).await.unwrap();
    assert_eq!(
        (names(&page.entries), page.more),
        (vec!["b/11", "b/2"], true)
    );
    // Keys outside of the prefix as the end of the page before.
    for (after, count) in [("a", 5), ("c", 0), ("b/3", 0), ("b0", 0)] {
        let page = store
            .range(&b.clone().after(&key(after)), None)
            .await
            .unwrap();
        assert_eq!(
            (page.entries.len(), page.more),
            (count, false),
            "after {after}"
        );
    }
}

async fn the_past_can_be_read(store: Arc<dyn Store>) {
    let empty = store.revision().await.unwrap();
    let one = put(&*store, "a", "1").await;
    let two = put(&*store, "a", "2").await;
    put(&*store, "b", "3").await;
    let gone = store.delete(&key("a")).await.unwrap();
    let at = async |revision| {
        let page = store
            .range(&Range::default(), Some(revision))
            .await
            .unwrap();
        assert_eq!(page.revision, revision);
        page.entries
            .iter()
            .map(|entry| format!("{}={}", entry.key, String::from_utf8_lossy(&entry.value)))
            .collect::<Vec<_>>()
    };
    assert_eq!(at(empty).await, Vec::<String>::new());
    assert_eq!(at(one).await, ["a=1"]);
    assert_eq!(at(two).await, ["a=2"]);
    assert_eq!(at(gone.previous()).await, ["a=2", "b=3"]);
    assert_eq!(at(gone).await, ["b=3"]);
    let ahead = store.range(&Range::default(), Some(gone.next())).await;
    assert!(matches!(ahead, Err(Error::FutureRevision { asked }) if asked == gone.next()));
    let never = store.range(&Range::default(), Some(Revision::ZERO)).await;
    assert!(matches!(never, Err(Error::Compacted { .. })));
}

async fn what_is_long_or_large_fits(store: Arc<dyn Store>) {
    let large = vec![7; 900 << 10];
    for n in 0..8 {
        store
            .put(&key(&format!("large/{n}")), large.clone())
            .await
            .unwrap();
    }
    let page = store
        .range(&Range::prefix(&prefix("large/")), None)
        .await
        .unwrap();
    assert_eq!(page.entries.len(), 8);
    assert!(page.entries.iter().all(|entry| entry.value == large));
    for chunk in 0..12 {
        let puts =
            (0..100).map(|n| Operation::put(&key(&format!("many/{:04}", 100 * chunk + n)), "x"));
        store
            .transact(Transaction::always(puts.collect::<Vec<_>>()))
            .await
            .unwrap();
    }
    let many = Range::prefix(&prefix("many/"));
    let page = store.range(&many, None).await.unwrap();
    assert_eq!((page.entries.len(), page.more), (1200, false));
    assert_eq!(page.entries[1199].key, key("many/1199"));
    let page = store.range(&many.limit(1100), None).await.unwrap();
    assert_eq!((page.entries.len(), page.more), (1100, true));
    let longest = key(&"l".repeat(512));
    store.put(&longest, vec![]).await.unwrap();
    assert_eq!(store.get(&longest).await.unwrap().unwrap().value, b"");
    // 9 MB of history to a watch that begins at its beginning.
    let first = store.get(&key("large/0")).await.unwrap().unwrap().created;
    let mut watch = store.watch(&prefix("large/"), first).await.unwrap();
    for n in 0..8 {
        let batch = watch.next().await.unwrap();
        assert_eq!(*batch.events[0].key(), key(&format!("large/{n}")));
    }
}

async fn invalid_transactions_are_refused(store: Arc<dyn Store>) {
    let put_k = Operation::put(&key("k"), "");
    let twice = Transaction::always([put_k.clone(), put_k.clone()]);
    let error = store.transact(twice).await.unwrap_err();
    assert!(matches!(
        error,
        Error::Invalid(InvalidTransaction::WrittenTwice(_))
    ));
    let large = Operation::put(&key("k"), vec![0; Transaction::LARGEST]);
    let error = store
        .transact(Transaction::always([large]))
        .await
        .unwrap_err();
    assert!(matches!(
        error,
        Error::Invalid(InvalidTransaction::TooLarge(_))
    ));
    let full: Vec<_> = (0..Transaction::LONGEST)
        .map(|n| Operation::put(&key(&format!("{n}")), ""))
        .collect();
    store
        .transact(Transaction::always(full.clone()))
        .await
        .unwrap();
    let error = store
        .transact(Transaction::always(full).then(put_k))
        .await
        .unwrap_err();
    assert!(matches!(
        error,
        Error::Invalid(InvalidTransaction::TooLong(129))
    ));
    assert_eq!(store.get(&key("k")).await.unwrap(), None);
}

async fn a_watch_gives_the_past_then_the_present(store: Arc<dyn Store>) {
    let one = put(&*store, "a", "1").await;
    let two = put(&*store, "a", "2").await;
    let mut watch = store.watch(&Prefix::ALL, one).await.unwrap();
    let batch = |revision, events| Batch { revision, events };
    assert_eq!(
        watch.next().await.unwrap(),
        batch(one, vec![put_event("a", "1", one, one, 1)])
    );
    assert_eq!(watch.position(), one);
    assert_eq!(
        watch.next().await.unwrap(),
        batch(two, vec![put_event("a", "2", one, two, 2)])
    );
    let outcome = store
        .transact(Transaction::always([
            Operation::put(&key("z"), "z"),
            Operation::Delete(key("a")),
            Operation::put(&key("b"), "b"),
        ]))
        .await
        .unwrap();
    let now = outcome.revision;
    // In the order of the operations, not of the names.
    let events = vec![
        put_event("z", "z", now, now, 1),
        Event::Delete(key("a")),
        put_event("b", "b", now, now, 1),
    ];
    assert_eq!(watch.next().await.unwrap(), batch(now, events));
    assert_eq!(watch.position(), now);
}

async fn a_watch_sees_only_its_prefix(store: Arc<dyn Store>) {
    let from = store.revision().await.unwrap().next();
    let mut watch = store.watch(&prefix("b/"), from).await.unwrap();
    for name in ["a", "b", "b0", "b/1"] {
        put(&*store, name, "").await;
    }
    let outcome = store
        .transact(Transaction::always([
            Operation::put(&key("c"), ""),
            Operation::put(&key("b/2"), ""),
            Operation::Delete(key("b/1")),
        ]))
        .await
        .unwrap();
    let first = watch.next().await.unwrap();
    assert_eq!(
        (first.events.len(), first.events[0].key()),
        (1, &key("b/1"))
    );
    let second = watch.next().await.unwrap();
    assert_eq!(second.revision, outcome.revision);
    let changed: Vec<_> = second
        .events
        .iter()
        .map(|event| event.key().as_str())
        .collect();
    assert_eq!(changed, ["b/2", "b/1"]);
}

async fn a_watch_may_begin_in_the_future(store: Arc<dyn Store>) {
    let now = store.revision().await.unwrap();
    let from = Revision(now.0 + 3);
    let mut watch = store.watch(&Prefix::ALL, from).await.unwrap();
    for n in 0..4 {
        put(&*store, &format!("{n}"), "").await;
    }
    let batch = watch.next().await.unwrap();
    assert!(batch.revision >= from);
    assert_eq!(*batch.events[0].key(), key("2"));
}

async fn a_dropped_wait_loses_nothing(store: Arc<dyn Store>) {
    let from = store.revision().await.unwrap().next();
    let mut watch = store.watch(&Prefix::ALL, from).await.unwrap();
    let writer = tokio::spawn({
        let store = Arc::clone(&store);
        async move {
            for n in 0..50 {
                put(&*store, &format!("{n}"), "").await;
            }
        }
    });
    let mut seen = 0;
    let mut impatience = 0;
    while seen < 50 {
        // Most of these waits end early, at every place they can.
        impatience = (impatience + 37) % 3000;
        let wait = tokio::time::timeout(Duration::from_micros(impatience), watch.next());
        if let Ok(batch) = wait.await {
            assert_eq!(*batch.unwrap().events[0].key(), key(&format!("{seen}")));
            seen += 1;
        }
    }
    writer.await.unwrap();
}

async fn a_watch_goes_on_where_another_ended(store: Arc<dyn Store>) {
    let from = store.revision().await.unwrap().next();
    for n in 0..30 {
        put(&*store, &format!("k/{n}"), "").await;
        put(&*store, "noise", "").await;
    }
    let mut position = from.previous();
    for n in 0..30 {
        let mut watch = store.watch(&prefix("k/"), position.next()).await.unwrap();
        let batch = watch.next().await.unwrap();
        assert_eq!(*batch.events[0].key(), key(&format!("k/{n}")));
        assert!(watch.position() >= batch.revision);
        position = watch.position();
    }
}

async fn compaction_forgets_the_past_only(store: Arc<dyn Store>) {
    let first = put(&*store, "old", "kept").await;
    put(&*store, "k", "1").await;
    let deleted = store.delete(&key("k")).await.unwrap();
    let after = put(&*store, "k", "2").await;
    let mut reader = store.watch(&Prefix::ALL, after).await.unwrap();
    store.compact(deleted).await.unwrap();
    // Again, or less, does nothing.
    store.compact(deleted).await.unwrap();
    store.compact(first).await.unwrap();
    let ahead = store.compact(Revision(after.0 + 1)).await;
    assert!(
        matches!(ahead, Err(Error::FutureRevision { .. })),
        "{ahead:?}"
    );

    for forgotten in [first, deleted] {
        let watched = match store.watch(&Prefix::ALL, forgotten).await {
            Ok(mut watch) => watch.next().await.unwrap_err(),
            Err(error) => error,
        };
        assert!(
            matches!(watched, Error::Compacted { asked } if asked == forgotten),
            "{forgotten}: {watched:?}"
        );
    }
    let past = store
        .range(&Range::default(), Some(deleted.previous()))
        .await;
    assert!(matches!(past, Err(Error::Compacted { .. })), "{past:?}");
    // The compacted revision itself is a state that is still known.
    let page = store.range(&Range::default(), Some(deleted)).await.unwrap();
    assert_eq!(names(&page.entries), ["old"]);
    let mut watch = store.watch(&Prefix::ALL, after).await.unwrap();
    for watch in [&mut watch, &mut reader] {
        assert_eq!(watch.next().await.unwrap().revision, after);
    }
    assert_eq!(
        store.get(&key("old")).await.unwrap().unwrap().created,
        first
    );
}

async fn writers_in_competition_lose_no_change(store: Arc<dyn Store>) {
    let counter = key("counter");
    let tasks: Vec<_> = (0..8)
        .map(|task| {
            let (store, counter) = (Arc::clone(&store), counter.clone());
            tokio::spawn(async move {
                for n in 0..10 {
                    loop {
                        let before = store.get(&counter).await.unwrap();
                        let (at, mut value) = match before {
                            Some(entry) => (entry.modified, entry.value),
                            None => (Revision::ZERO, vec![]),
                        };
                        value.push(10 * task + n);
                        let change = Transaction::always([Operation::put(&counter, value)])
                            .when(Condition::unchanged(&counter, at));
                        if store.transact(change).await.unwrap().succeeded {
                            break;
                        }
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let entry = store.get(&counter).await.unwrap().unwrap();
    assert_eq!((entry.version, entry.value.len()), (80, 80));
    assert_eq!(entry.value.iter().collect::<BTreeSet<_>>().len(), 80);
}

fn leased(name: &str, lease: LeaseId) -> Operation {
    Operation::Put {
        key: key(name),
        value: name.into(),
        lease: Some(lease),
    }
}

async fn keys_follow_their_lease(store: Arc<dyn Store>) {
    let ttl = Duration::from_secs(600);
    let lease = store.grant(ttl).await.unwrap();
    assert!(lease.ttl >= ttl);
    let (one, two) = (lease.id, store.grant(ttl).await.unwrap().id);
    assert_ne!(one, two);
    let puts = ["c", "a", "moves", "leaves", "deleted", "returns"].map(|name| leased(name, one));
    store.transact(Transaction::always(puts)).await.unwrap();
    assert_eq!(
        store.get(&key("a")).await.unwrap().unwrap().lease,
        Some(one)
    );
    // The last write says whose a key is.
    store
        .transact(Transaction::always([leased("moves", two)]))
        .await
        .unwrap();
    put(&*store, "leaves", "").await;
    assert_eq!(
        store.get(&key("leaves")).await.unwrap().unwrap().lease,
        None
    );
    store.delete(&key("deleted")).await.unwrap();
    put(&*store, "deleted", "without a lease").await;
    put(&*store, "returns", "").await;
    store
        .transact(Transaction::always([leased("returns", one)]))
        .await
        .unwrap();

    let before = store.revision().await.unwrap();
    let mut watch = store.watch(&Prefix::ALL, before.next()).await.unwrap();
    store.revoke(one).await.unwrap();
    // In one step, in the order of their names.
    let batch = watch.next().await.unwrap();
    let gone = ["a", "c", "returns"].map(|name| Event::Delete(key(name)));
    assert_eq!(batch.events, gone);
    let page = store.range(&Range::default(), None).await.unwrap();
    assert_eq!(names(&page.entries), ["deleted", "leaves", "moves"]);
    store.revoke(two).await.unwrap();
    assert_eq!(store.get(&key("moves")).await.unwrap(), None);
    // One without keys takes no revision with it.
    let three = store.grant(ttl).await.unwrap().id;
    let before = store.revision().await.unwrap();
    store.revoke(three).await.unwrap();
    assert_eq!(store.revision().await.unwrap(), before);
}

async fn a_lease_ends_unless_kept_alive(store: Arc<dyn Store>) {
    let started = Instant::now();
    let kept = store.grant(Duration::from_millis(2500)).await.unwrap();
    assert!(kept.ttl >= Duration::from_secs(3));
    let mut watch = store
        .watch(&Prefix::ALL, store.revision().await.unwrap().next())
        .await
        .unwrap();
    let put = Transaction::always([leased("b", kept.id), leased("a", kept.id)]);
    let revision = store.transact(put).await.unwrap().revision;
    assert_eq!(watch.next().await.unwrap().revision, revision);
    // Past its first end, and still there. Were this host so slow that a
    // second passes between two of these, nothing could be said.
    let mut kept_at = started;
    while started.elapsed() < kept.ttl + Duration::from_secs(1) {
        tokio::time::sleep(Duration::from_millis(200)).await;
        kept_at = Instant::now();
        store.keep_alive(kept.id).await.unwrap();
    }
    assert!(store.get(&key("a")).await.unwrap().is_some());
    let batch = tokio::time::timeout(PATIENCE, watch.next())
        .await
        .unwrap()
        .unwrap();
    assert!(
        kept_at.elapsed() >= kept.ttl,
        "it ended after {:?}",
        kept_at.elapsed()
    );
    let gone = ["a", "b"].map(|name| Event::Delete(key(name)));
    assert_eq!(batch.events, gone);
    assert_eq!(batch.revision, store.revision().await.unwrap());
    for late in [store.keep_alive(kept.id).await, store.revoke(kept.id).await] {
        assert!(matches!(late, Err(Error::LeaseNotFound { lease }) if lease == kept.id));
    }
}

async fn unknown_leases_are_refused(store: Arc<dyn Store>) {
    let unknown = LeaseId(0x5eed);
    let known = store.grant(Duration::from_secs(600)).await.unwrap().id;
    let before = store.revision().await.unwrap();
    let refused = Transaction::always([
        Operation::put(&key("k"), "not done either"),
        leased("known", known),
        leased("unknown", unknown),
    ]);
    let error = store.transact(refused).await.unwrap_err();
    assert!(
        matches!(error, Error::LeaseNotFound { lease } if lease == unknown),
        "{error:?}"
    );
    assert_eq!(store.revision().await.unwrap(), before);
    assert_eq!(store.get(&key("k")).await.unwrap(), None);
    // In a list that is not done it does not matter.
    let not_done = Transaction::default().otherwise(leased("unknown", unknown));
    assert!(store.transact(not_done).await.unwrap().succeeded);
    let error = store.keep_alive(unknown).await.unwrap_err();
    assert!(
        matches!(error, Error::LeaseNotFound { lease } if lease == unknown),
        "{error:?}"
    );
    let error = store.revoke(unknown).await.unwrap_err();
    assert!(
        matches!(error, Error::LeaseNotFound { lease } if lease == unknown),
        "{error:?}"
    );
}
