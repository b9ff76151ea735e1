//! Leases and the keys attached to them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use favo_store::{Error, Event, LeaseId, Operation, Prefix, Range, Store, Transaction};

use crate::common::{PATIENCE, key, put};
use crate::names;

fn leased(name: &str, lease: LeaseId) -> Operation {
    Operation::Put {
        key: key(name),
        value: name.into(),
        lease: Some(lease),
    }
}

pub async fn keys_follow_their_lease(store: Arc<dyn Store>) {
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

pub async fn a_lease_ends_unless_kept_alive(store: Arc<dyn Store>) {
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

pub async fn unknown_leases_are_refused(store: Arc<dyn Store>) {
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
