//! A process that is killed at any moment, over and over: what it was told is
//! done is there, and nothing is half done.
//!
//! `CRASHES` says how often; 120 unless said. What a power cut does on top is
//! in the embedded provider's own tests.

mod common;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use common::{key, prefix, soon};
use favo_store::{
    Condition, EmbeddedOptions, EmbeddedStore, HistoryLimit, Operation, Range, Revision, Store,
    Transaction,
};
use favo_types::ByteCount;

const DIRECTORY: &str = "STORE_CRASH_DIRECTORY";
const WORKERS: u64 = 6;
const ACCOUNTS: u64 = 5;
/// What each account begins with.
const BALANCE: u64 = 1000;
/// How many pairs of a worker are kept.
const KEPT: u64 = 40;

fn open(directory: &Path) -> EmbeddedStore {
    let options = EmbeddedOptions {
        // Small, so that history is forgotten all the time, too.
        history: HistoryLimit {
            revisions: 300,
            bytes: ByteCount::mib(1),
        },
        ..EmbeddedOptions::default()
    };
    EmbeddedStore::open(directory, &options).unwrap()
}

async fn number(store: &EmbeddedStore, name: &str) -> (u64, Revision) {
    match store.get(&key(name)).await.unwrap() {
        Some(entry) => (
            String::from_utf8(entry.value).unwrap().parse().unwrap(),
            entry.modified,
        ),
        None => (0, Revision::ZERO),
    }
}

fn put(name: &str, number: u64) -> Operation {
    Operation::put(&key(name), number.to_string())
}

/// Not a test: the process that the test kills. It works until then, and says
/// on its standard output what is done.
#[test]
#[ignore = "the test below runs it"]
fn victim() {
    let Some(directory) = std::env::var_os(DIRECTORY).map(PathBuf::from) else {
        eprintln!("skipped: {DIRECTORY} is not set");
        return;
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let store = Arc::new(open(&directory));
        let open_accounts = (0..ACCOUNTS).map(|n| put(&format!("account/{n}"), BALANCE));
        let open_accounts = Transaction::always(open_accounts.collect::<Vec<_>>())
            .when(Condition::absent(&key("account/0")));
        store.transact(open_accounts).await.unwrap();
        let workers = (0..WORKERS).map(|worker| tokio::spawn(work(Arc::clone(&store), worker)));
        for worker in workers.collect::<Vec<_>>() {
            worker.await.unwrap();
        }
    });
}

/// Transfers between two accounts and writes a pair of keys, again and again.
async fn work(store: Arc<EmbeddedStore>, worker: u64) {
    let counter = format!("next/{worker}");
    loop {
        let (n, counted) = number(&store, &counter).await;
        let from = format!("account/{}", (worker + n) % ACCOUNTS);
        let to = format!("account/{}", (worker + 3 * n + 1) % ACCOUNTS);
        let (left, right) = (
            format!("left/{worker}/{n:06}"),
            format!("right/{worker}/{n:06}"),
        );
        let mut transaction =
            Transaction::always([put(&counter, n + 1), put(&left, n), put(&right, n)])
                .when(Condition::unchanged(&key(&counter), counted));
        if from != to {
            let (has, has_at) = number(&store, &from).await;
            let (gets, gets_at) = number(&store, &to).await;
            if has > 0 {
                transaction = transaction
                    .when(Condition::unchanged(&key(&from), has_at))
                    .when(Condition::unchanged(&key(&to), gets_at))
                    .then(put(&from, has - 1))
                    .then(put(&to, gets + 1));
            }
        }
        if let Some(old) = n.checked_sub(KEPT) {
            for side in ["left", "right"] {
                let old = key(&format!("{side}/{worker}/{old:06}"));
                transaction = transaction.then(Operation::Delete(old));
            }
        }
        let outcome = store.transact(transaction).await.unwrap();
        if outcome.succeeded {
            println!("\ndone {worker} {n} {}", outcome.revision);
        }
        if n % 32 == 31 {
            let lease = store.grant(Duration::from_secs(1)).await.unwrap();
            let leased = Operation::Put {
                key: key(&format!("leased/{worker}")),
                value: vec![],
                lease: Some(lease.id),
            };
            store.transact(Transaction::always([leased])).await.unwrap();
        }
    }
}

/// Starts the victim, kills it after `life`, and returns what it said was
/// done: worker, number, revision.
fn live_and_die(directory: &Path, life: Duration) -> Vec<(u64, u64, Revision)> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "victim", "--ignored", "--nocapture"])
        .env(DIRECTORY, directory)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    let reader = std::thread::spawn(move || {
        // The last line may be cut; a whole one ends with its newline.
        output
            .split(b'\n')
            .map(|line| String::from_utf8(line.unwrap()).unwrap())
            .collect::<Vec<_>>()
    });
    std::thread::sleep(life);
    let ended = child.try_wait().unwrap();
    child.kill().unwrap();
    let complaint = std::io::read_to_string(child.stderr.take().unwrap()).unwrap();
    assert!(ended.is_none(), "the victim died on its own: {complaint}");
    child.wait().unwrap();
    let mut lines = reader.join().unwrap();
    // Whatever follows the last newline.
    lines.pop();
    let done = lines.iter().filter_map(|line| line.strip_prefix("done "));
    done.map(|line| {
        let mut numbers = line.split(' ').map(|number| number.parse().unwrap());
        let mut next = || numbers.next().unwrap();
        (next(), next(), Revision(next()))
    })
    .collect()
}

/// Holds what is stored against what was said.
async fn check(store: &EmbeddedStore, done: &[(u64, u64, Revision)]) {
    assert_eq!(store.verify().await.unwrap(), Vec::<String>::new());
    let mut next = BTreeMap::new();
    for worker in 0..WORKERS {
        next.insert(worker, number(store, &format!("next/{worker}")).await.0);
    }
    for (worker, n, revision) in done {
        let count = next[worker];
        assert!(*n < count, "{n} of {worker} is lost: it has {count}");
        assert!(*revision <= store.revision().await.unwrap());
        if *n + KEPT >= count {
            for side in ["left", "right"] {
                let name = format!("{side}/{worker}/{n:06}");
                let entry = store.get(&key(&name)).await.unwrap();
                let entry = entry.unwrap_or_else(|| panic!("{name} is lost"));
                assert_eq!(entry.modified, *revision, "{name}");
            }
        }
    }
    // Both of each pair, or neither, and as many as there must be.
    let side = async |side: &str| {
        let range = Range::prefix(&prefix(&format!("{side}/")));
        let entries = store.range(&range, None).await.unwrap().entries;
        let name = |entry: &favo_store::Entry| {
            let name = entry.key.as_str().strip_prefix(side).unwrap().to_owned();
            (name, entry.modified)
        };
        entries.iter().map(name).collect::<Vec<_>>()
    };
    let left = side("left").await;
    assert_eq!(left, side("right").await);
    let expected: u64 = next.values().map(|next| (*next).min(KEPT)).sum();
    assert_eq!(left.len() as u64, expected);
    let accounts = store
        .range(&Range::prefix(&prefix("account/")), None)
        .await
        .unwrap();
    let mut sum = 0;
    for entry in &accounts.entries {
        sum += number(store, entry.key.as_str()).await.0;
    }
    assert!(
        accounts.entries.is_empty() && next.values().all(|next| *next == 0)
            || sum == ACCOUNTS * BALANCE,
        "the accounts have {sum} together"
    );
}

#[tokio::test]
async fn nothing_acknowledged_is_lost_and_nothing_is_half_done() {
    let crashes: u32 = std::env::var("CRASHES").map_or(120, |n| n.parse().unwrap());
    let seed = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap()
        .as_nanos() as u64;
    let mut random = seed;
    let directory = tempfile::tempdir().unwrap();
    let (mut total, mut fruitful) = (0, 0);
    for crash in 0..crashes {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        // A few die while they start, most while they work.
        let life = Duration::from_micros((random >> 33) % 250_000);
        let path = directory.path().to_owned();
        let done = tokio::task::spawn_blocking(move || live_and_die(&path, life))
            .await
            .unwrap();
        let store = open(directory.path());
        soon(check(&store, &done)).await;
        total += done.len();
        fruitful += u32::from(!done.is_empty());
        if crash % 20 == 19 {
            eprintln!("{} crashes, {total} transactions acknowledged", crash + 1);
        }
    }
    // A host so slow that nothing gets done would prove nothing.
    assert!(
        fruitful * 4 >= crashes,
        "only {fruitful} of {crashes} lives did anything"
    );
}
