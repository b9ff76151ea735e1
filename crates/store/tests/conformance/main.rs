//! What every provider must do, one case each, on fresh stores.

#[path = "../common/mod.rs"]
mod common;
mod entries;
mod leases;
mod watches;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use common::{Embedded, Etcd, soon};
use favo_store::{Entry, Event, Revision, Store};

type Case = fn(Arc<dyn Store>) -> Pin<Box<dyn Future<Output = ()> + Send>>;

macro_rules! cases {
    ($($file:ident::$name:ident),* $(,)?) => {
        const CASES: &[(&str, Case)] =
            &[$((stringify!($name), |store| Box::pin($file::$name(store)))),*];
    };
}

cases![
    entries::revisions_and_versions_count_changes,
    entries::what_changes_nothing_takes_no_revision,
    entries::conditions_choose_the_list,
    entries::conditions_compare_what_is_stored,
    entries::reads_in_a_transaction_see_its_writes,
    entries::prefixes_are_deleted_in_one_step,
    entries::ranges_come_in_pages,
    entries::the_past_can_be_read,
    entries::what_is_long_or_large_fits,
    entries::invalid_transactions_are_refused,
    watches::a_watch_gives_the_past_then_the_present,
    watches::a_watch_sees_only_its_prefix,
    watches::a_watch_may_begin_in_the_future,
    watches::a_dropped_wait_loses_nothing,
    watches::a_watch_goes_on_where_another_ended,
    watches::compaction_forgets_the_past_only,
    entries::writers_in_competition_lose_no_change,
    leases::keys_follow_their_lease,
    leases::a_lease_ends_unless_kept_alive,
    leases::unknown_leases_are_refused,
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
