use super::*;
use crate::Condition;
use crate::Operation;

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

async fn verified(store: &EmbeddedStore) {
    assert_eq!(store.verify().await.unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn what_was_stored_is_there_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let options = EmbeddedOptions::default();
    let (lease, revision) = {
        let store = EmbeddedStore::open(directory.path(), &options).unwrap();
        assert_eq!(store.revision().await.unwrap(), Revision::FIRST);
        let lease = store.grant(Duration::from_secs(60)).await.unwrap().id;
        let put = Operation::Put {
            key: key("owned"),
            value: b"by a lease".to_vec(),
            lease: Some(lease),
        };
        store.transact(Transaction::always([put])).await.unwrap();
        (lease, store.put(&key("k"), b"v".to_vec()).await.unwrap())
    };
    let store = EmbeddedStore::open(directory.path(), &options).unwrap();
    assert_eq!(store.revision().await.unwrap(), revision);
    let entry = store.get(&key("owned")).await.unwrap().unwrap();
    assert_eq!(
        (entry.value, entry.lease),
        (b"by a lease".to_vec(), Some(lease))
    );
    // The lease is known, and its name is not given again.
    store.keep_alive(lease).await.unwrap();
    assert_ne!(
        store.grant(Duration::from_secs(60)).await.unwrap().id,
        lease
    );
    store.revoke(lease).await.unwrap();
    assert_eq!(store.get(&key("owned")).await.unwrap(), None);
    verified(&store).await;
}

#[tokio::test]
async fn a_second_process_is_told_who_has_it() {
    let directory = tempfile::tempdir().unwrap();
    let options = EmbeddedOptions::default();
    let store = EmbeddedStore::open(directory.path(), &options).unwrap();
    let error = EmbeddedStore::open(directory.path(), &options).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, OpenError::InUse { .. }), "{text}");
    assert!(
        text.contains(&format!("process {} (", std::process::id())),
        "{text}"
    );
    // A watch keeps it open, too.
    let watch = store.watch(&Prefix::ALL, Revision(2)).await.unwrap();
    drop(store);
    assert!(EmbeddedStore::open(directory.path(), &options).is_err());
    drop(watch);
    EmbeddedStore::open(directory.path(), &options).unwrap();
}

#[tokio::test]
async fn a_file_that_is_no_store_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.redb");
    let text = "a letter, not a database. ".repeat(1000);
    fs::write(&path, &text).unwrap();
    let error = EmbeddedStore::open(directory.path(), &EmbeddedOptions::default()).unwrap_err();
    assert!(matches!(error, OpenError::Database { .. }), "{error}");
    assert_eq!(fs::read_to_string(&path).unwrap(), text);
}

#[tokio::test]
async fn a_store_that_was_never_finished_is_begun_anew() {
    let directory = tempfile::tempdir().unwrap();
    let new = directory.path().join("store.redb.new");
    fs::write(&new, "half a data").unwrap();
    let store = EmbeddedStore::open(directory.path(), &EmbeddedOptions::default()).unwrap();
    assert!(!new.exists());
    let file = fs::metadata(directory.path().join("store.redb")).unwrap();
    assert_eq!(file.permissions().mode() & 0o777, 0o600);
    verified(&store).await;
}

#[tokio::test]
async fn a_watch_ends_when_the_store_is_closed() {
    let directory = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(directory.path(), &EmbeddedOptions::default()).unwrap();
    let mut watch = store.watch(&Prefix::ALL, Revision(2)).await.unwrap();
    store.put(&key("k"), vec![]).await.unwrap();
    drop(store);
    // What was acknowledged is still given out.
    assert_eq!(watch.next().await.unwrap().revision, Revision(2));
    assert!(matches!(watch.next().await, Err(Error::Closed)));
}

#[tokio::test]
async fn history_stays_within_its_limit_and_a_slow_watch_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let options = EmbeddedOptions {
        history: HistoryLimit {
            revisions: 100,
            bytes: ByteCount::mib(1),
        },
        ..EmbeddedOptions::default()
    };
    let store = EmbeddedStore::open(directory.path(), &options).unwrap();
    let mut slow = store.watch(&Prefix::ALL, Revision(2)).await.unwrap();
    store
        .put(&key("kept"), b"since the beginning".to_vec())
        .await
        .unwrap();
    for n in 0..300 {
        store
            .put(&key(&format!("hot/{}", n % 3)), vec![0; 10])
            .await
            .unwrap();
    }
    let error = slow.next().await.unwrap_err();
    assert!(
        matches!(error, Error::Compacted { asked: Revision(2) }),
        "{error}"
    );
    verified(&store).await;
    let now = store.revision().await.unwrap();
    // A hundred are kept, and an eighth more at most.
    let at = |back: u64| Some(Revision(now.0 - back));
    store.range(&Range::default(), at(100)).await.unwrap();
    assert!(store.range(&Range::default(), at(114)).await.is_err());
    assert!(store.get(&key("kept")).await.unwrap().is_some());

    // Large values: the bytes are what counts. An up-to-date watch never ends.
    let mut quick = store.watch(&Prefix::ALL, now.next()).await.unwrap();
    for n in 0..20 {
        let revision = store.put(&key("large"), vec![n; 300_000]).await.unwrap();
        assert_eq!(quick.next().await.unwrap().revision, revision);
    }
    verified(&store).await;
    let now = store.revision().await.unwrap();
    let at = |back: u64| Some(Revision(now.0 - back));
    store.range(&Range::default(), at(2)).await.unwrap();
    assert!(store.range(&Range::default(), at(4)).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn many_callers_at_once_each_get_their_own_answer() {
    let directory = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(directory.path(), &EmbeddedOptions::default()).unwrap();
    let counter = key("counter");
    let tasks = (0..50).map(|_| {
        let (store, counter) = (store.clone(), counter.clone());
        tokio::spawn(async move {
            loop {
                let before = store.get(&counter).await.unwrap();
                let (revision, count) = match &before {
                    Some(entry) => (entry.modified, entry.value.len()),
                    None => (Revision::ZERO, 0),
                };
                let transaction =
                    Transaction::always([Operation::put(&counter, vec![0; count + 1])])
                        .when(Condition::unchanged(&counter, revision));
                if store.transact(transaction).await.unwrap().succeeded {
                    break;
                }
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    let entry = store.get(&counter).await.unwrap().unwrap();
    assert_eq!((entry.value.len(), entry.version), (50, 50));
    verified(&store).await;
}

#[tokio::test]
async fn a_watch_that_compaction_just_reached_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(directory.path(), &EmbeddedOptions::default()).unwrap();
    let first = store.put(&key("k"), vec![1]).await.unwrap();
    let second = store.delete(&key("k")).await.unwrap();
    let mut late = store.watch(&Prefix::ALL, first).await.unwrap();
    let mut behind = store.watch(&Prefix::ALL, second).await.unwrap();
    let mut ahead = store.watch(&Prefix::ALL, second.next()).await.unwrap();
    store.compact(second).await.unwrap();
    for watch in [&mut late, &mut behind] {
        let error = watch.next().await.unwrap_err();
        assert!(matches!(error, Error::Compacted { .. }), "{error}");
    }
    let third = store.put(&key("k"), vec![3]).await.unwrap();
    assert_eq!(ahead.next().await.unwrap().revision, third);
}
