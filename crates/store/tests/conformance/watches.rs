//! Watches, and what compaction does to them.

use std::sync::Arc;
use std::time::Duration;

use favo_store::{Batch, Error, Event, Operation, Prefix, Range, Revision, Store, Transaction};

use crate::common::{key, prefix, put};
use crate::{names, put_event};

pub async fn a_watch_gives_the_past_then_the_present(store: Arc<dyn Store>) {
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

pub async fn a_watch_sees_only_its_prefix(store: Arc<dyn Store>) {
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

pub async fn a_watch_may_begin_in_the_future(store: Arc<dyn Store>) {
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

pub async fn a_dropped_wait_loses_nothing(store: Arc<dyn Store>) {
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

pub async fn a_watch_goes_on_where_another_ended(store: Arc<dyn Store>) {
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

pub async fn compaction_forgets_the_past_only(store: Arc<dyn Store>) {
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
