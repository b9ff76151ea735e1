//! Resources and held leases, on both providers.

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{Embedded, Etcd, key, put, soon};
use favo_store::{
    Change, Collection, CollectionError, Condition, Error, HeldLease, ModifyError, Operation,
    Prefix, Revision, Store, Transaction,
};
use serde::{Deserialize, Serialize};

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
struct Pool {
    devices: Vec<String>,
    #[serde(default)]
    quota: u64,
}

fn pool(quota: u64) -> Pool {
    Pool {
        devices: vec!["/dev/sdb".to_owned()],
        quota,
    }
}

async fn resources(store: Arc<dyn Store>) {
    let pools = Collection::<Pool>::new(Arc::clone(&store), "pool").unwrap();
    put(&*store, "pools", "no pool: there is no slash").await;
    assert_eq!(pools.get("fast").await.unwrap(), None);
    let created = pools.create("fast", pool(1)).await.unwrap();
    assert_eq!(pools.get("fast").await.unwrap(), Some(created.clone()));
    let again = pools.create("fast", pool(2)).await;
    assert!(matches!(again, Err(CollectionError::Exists { .. })));

    let revision = pools
        .replace("fast", created.revision, &pool(3))
        .await
        .unwrap();
    assert!(revision > created.revision);
    let stale = pools.replace("fast", created.revision, &pool(4)).await;
    assert!(
        matches!(stale, Err(CollectionError::Conflict { expected, found: Some(found), .. })
            if expected == created.revision && found == revision),
        "{stale:?}"
    );
    for missing in [Revision::ZERO, revision] {
        let missing = pools.replace("slow", missing, &pool(4)).await;
        assert!(
            matches!(missing, Err(CollectionError::NotFound { .. })),
            "{missing:?}"
        );
    }

    let same = pools.modify("fast", |_| Ok::<_, ()>(())).await.unwrap();
    assert_eq!(
        same.revision, revision,
        "who changes nothing writes nothing"
    );
    let refused = pools.modify("fast", |_| Err("no")).await;
    assert!(matches!(refused, Err(ModifyError::Change("no"))));
    let rivals = (0..10).map(|_| {
        let pools = pools.clone();
        tokio::spawn(async move {
            let change = |pool: &mut Pool| {
                pool.quota += 10;
                Ok::<_, ()>(())
            };
            pools.modify("fast", change).await.unwrap();
        })
    });
    for rival in rivals.collect::<Vec<_>>() {
        rival.await.unwrap();
    }
    let now = pools.get("fast").await.unwrap().unwrap();
    assert_eq!((now.value.quota, now.created), (103, created.created));

    pools.create("slow", pool(0)).await.unwrap();
    let (all, at) = pools.list().await.unwrap();
    let names: Vec<_> = all.iter().map(|pool| pool.name.as_str()).collect();
    assert_eq!(names, ["fast", "slow"]);
    let mut watch = pools.watch(at.next()).await.unwrap();
    // One transaction over several, and something of another kind among it.
    let both = Transaction::always([
        pools.put("new", &pool(7)).unwrap(),
        Operation::put(&pools.key("odd").unwrap(), r#"{"devices": 3}"#),
    ])
    .when(Condition::unchanged(
        &pools.key("fast").unwrap(),
        now.revision,
    ));
    assert!(store.transact(both).await.unwrap().succeeded);
    let deleted = pools.delete("slow", all[1].revision).await.unwrap();
    let (_, changes) = watch.next().await.unwrap();
    match &changes[..] {
        [
            Change::Put(new),
            Change::Unreadable(CollectionError::Decode { key, .. }),
        ] => {
            assert_eq!((new.name.as_str(), &new.value), ("new", &pool(7)));
            assert_eq!(key.as_str(), "pool/odd");
        }
        other => panic!("{other:?}"),
    }
    let (revision, changes) = watch.next().await.unwrap();
    assert!(matches!(&changes[..], [Change::Delete(name)] if name == "slow"));
    assert_eq!((revision, watch.position()), (deleted, deleted));
    let error = pools.list().await.unwrap_err();
    assert!(error.to_string().contains("pool/odd"), "{error}");
    let error = pools.get("bad\nname").await.unwrap_err();
    assert!(matches!(error, CollectionError::Name(_)));
}

async fn held_leases(store: Arc<dyn Store>) {
    let held = HeldLease::take(Arc::clone(&store), Duration::from_secs(3))
        .await
        .unwrap();
    let owned = Transaction::always([Operation::Put {
        key: key("owner"),
        value: b"me".to_vec(),
        lease: Some(held.id()),
    }]);
    store.transact(owned).await.unwrap();
    // Longer than one of its lives.
    for _ in 0..16 {
        tokio::time::sleep(Duration::from_millis(250)).await;
        assert!(held.deadline().is_some());
        assert!(store.get(&key("owner")).await.unwrap().is_some());
    }
    held.release().await.unwrap();
    assert_eq!(store.get(&key("owner")).await.unwrap(), None);

    // Who loses it is told.
    let held = HeldLease::take(Arc::clone(&store), Duration::from_secs(1))
        .await
        .unwrap();
    store.revoke(held.id()).await.unwrap();
    soon(held.lost()).await;
    assert_eq!(held.deadline(), None);
    let late = held.release().await;
    assert!(matches!(late, Err(Error::LeaseNotFound { .. })));

    // Who only lets it fall loses it in the end.
    let held = HeldLease::take(Arc::clone(&store), Duration::from_secs(1))
        .await
        .unwrap();
    let from = store.revision().await.unwrap().next();
    let mut watch = store.watch(&Prefix::ALL, from).await.unwrap();
    let owned = Transaction::always([Operation::Put {
        key: key("owner"),
        value: b"me".to_vec(),
        lease: Some(held.id()),
    }]);
    store.transact(owned).await.unwrap();
    drop(held);
    watch.next().await.unwrap();
    soon(watch.next()).await.unwrap();
    assert_eq!(store.get(&key("owner")).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn embedded() {
    let embedded = Embedded::open();
    soon(resources(Arc::clone(&embedded.store))).await;
    let embedded = Embedded::open();
    soon(held_leases(Arc::clone(&embedded.store))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd() {
    let Some(etcd) = Etcd::start() else {
        return;
    };
    soon(resources(Arc::new(etcd.store().await))).await;
    soon(held_leases(Arc::new(etcd.store().await))).await;
}

/// A lease in a store that goes away ends at its deadline, not later.
#[tokio::test(flavor = "multi_thread")]
async fn a_lease_is_lost_with_its_store() {
    let Some(mut etcd) = Etcd::start() else {
        return;
    };
    let store = Arc::new(etcd.store().await);
    let held = HeldLease::take(store, Duration::from_secs(2))
        .await
        .unwrap();
    etcd.kill();
    soon(held.lost()).await;
    assert_eq!(held.deadline(), None);
}
