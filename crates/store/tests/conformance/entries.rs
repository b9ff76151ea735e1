//! Entries, transactions, ranges and the past.

use std::collections::BTreeSet;
use std::sync::Arc;

use favo_store::{
    Condition, Entry, Error, Event, InvalidTransaction, Operand, Operation, OperationResult,
    Prefix, Range, Relation, Revision, Store, Transaction,
};

use crate::common::{key, prefix, put};
use crate::{names, put_event};

pub async fn revisions_and_versions_count_changes(store: Arc<dyn Store>) {
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

pub async fn what_changes_nothing_takes_no_revision(store: Arc<dyn Store>) {
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

pub async fn conditions_choose_the_list(store: Arc<dyn Store>) {
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

pub async fn conditions_compare_what_is_stored(store: Arc<dyn Store>) {
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

pub async fn reads_in_a_transaction_see_its_writes(store: Arc<dyn Store>) {
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

pub async fn prefixes_are_deleted_in_one_step(store: Arc<dyn Store>) {
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

pub async fn ranges_come_in_pages(store: Arc<dyn Store>) {
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

pub async fn the_past_can_be_read(store: Arc<dyn Store>) {
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

pub async fn what_is_long_or_large_fits(store: Arc<dyn Store>) {
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

pub async fn invalid_transactions_are_refused(store: Arc<dyn Store>) {
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

pub async fn writers_in_competition_lose_no_change(store: Arc<dyn Store>) {
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
