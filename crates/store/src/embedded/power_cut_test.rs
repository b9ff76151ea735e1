//! Power cuts: a disk that, when the power goes, forgets or tears what was
//! written and not synced. Killing a process can't show that.

use std::io;
use std::sync::{Arc, Mutex};

use redb::StorageBackend;

use super::*;
use crate::{Condition, Operation};

/// A small generator, so that a seed names a case.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

#[derive(Clone, Debug)]
enum Change {
    Write(u64, Vec<u8>),
    Length(u64),
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Write(at, data) => {
                let at = *at as usize;
                if bytes.len() < at + data.len() {
                    bytes.resize(at + data.len(), 0);
                }
                bytes[at..at + data.len()].copy_from_slice(data);
            }
            Self::Length(length) => bytes.resize(*length as usize, 0),
        }
    }
}

#[derive(Debug, Default)]
struct State {
    /// What a reader sees.
    present: Vec<u8>,
    /// What a power cut leaves for sure.
    synced: Vec<u8>,
    /// What happened since the last sync.
    pending: Vec<Change>,
    /// Changes and syncs until the power goes; none: never.
    left: Option<u64>,
}

impl State {
    fn spend(&mut self) -> io::Result<()> {
        match &mut self.left {
            Some(0) => Err(io::Error::other("the power is off")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

#[derive(Clone, Debug, Default)]
struct Disk(Arc<Mutex<State>>);

impl Disk {
    fn holding(bytes: Vec<u8>, left: Option<u64>) -> Self {
        Self(Arc::new(Mutex::new(State {
            present: bytes.clone(),
            synced: bytes,
            pending: Vec::new(),
            left,
        })))
    }

    /// What is left after a power cut: what was synced, and of the changes
    /// since then some, in any order, some of them torn at a sector's end.
    fn after_power_cut(&self, random: &mut Random) -> Vec<u8> {
        let state = self.0.lock().unwrap();
        let mut bytes = state.synced.clone();
        let mut pending = state.pending.clone();
        for last in (1..pending.len()).rev() {
            pending.swap(last, random.below(last as u64 + 1) as usize);
        }
        for change in pending {
            match (random.below(3), change) {
                (0, _) => {}
                (1, Change::Write(at, mut data)) => {
                    let sectors = data.len() as u64 / 512;
                    data.truncate(512 * random.below(sectors + 1) as usize);
                    Change::Write(at, data).apply(&mut bytes);
                }
                (_, change) => change.apply(&mut bytes),
            }
        }
        bytes
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().present.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.0.lock().unwrap();
        let end = offset as usize + out.len();
        let from = state.present.get(offset as usize..end);
        out.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(Change::Length(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        state.spend()?;
        state.synced = state.present.clone();
        state.pending.clear();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.change(Change::Write(offset, data.to_vec()))
    }
}

impl Disk {
    fn change(&self, change: Change) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        state.spend()?;
        change.apply(&mut state.present);
        state.pending.push(change);
        Ok(())
    }
}

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

/// The two keys that transaction `n` writes; they must share a fate.
fn pair(n: u64) -> [Key; 2] {
    [key(&format!("left/{n}")), key(&format!("right/{n}"))]
}

/// Does transactions from number `from` on until the power goes; returns the
/// first that was not acknowledged.
async fn work(store: &EmbeddedStore, from: u64, random: &mut Random) -> u64 {
    for n in from.. {
        let [left, right] = pair(n);
        let size = random.below(9000) as usize;
        let mut transaction = Transaction::always([
            Operation::put(&left, n.to_le_bytes()),
            Operation::put(&right, vec![n as u8; size]),
        ])
        .when(Condition::absent(&left))
        .then(Operation::put(&key("last"), n.to_string()));
        if n >= 8 && random.below(3) == 0 {
            transaction = transaction.then(Operation::put(&key("hot"), vec![1; size]));
        }
        match store.transact(transaction).await {
            Ok(outcome) => assert!(outcome.succeeded),
            Err(Error::Storage { .. }) => return n,
            Err(other) => panic!("{other}"),
        }
        if random.below(10) == 0 {
            let now = store.revision().await.unwrap();
            let through = Revision(now.0.saturating_sub(random.below(5)).max(1));
            match store.compact(through).await {
                Ok(()) => {}
                Err(Error::Storage { .. }) => return n + 1,
                Err(other) => panic!("{other}"),
            }
        }
    }
    unreachable!("the power goes")
}

#[tokio::test]
async fn a_power_cut_loses_nothing_acknowledged_and_leaves_nothing_half_done() {
    let cases = std::env::var("POWER_CUTS").map_or(300, |n| n.parse().unwrap());
    let options = EmbeddedOptions::default();
    for seed in 0..cases {
        let random = &mut Random(seed);
        let mut bytes = Vec::new();
        let mut acknowledged = 0;
        // The same disk loses power several times, at times while it opens.
        for life in 0..3 {
            let disk = Disk::holding(bytes, Some(random.below(250)));
            if let Ok(store) = EmbeddedStore::open_backend(disk.clone(), &options) {
                acknowledged = work(&store, acknowledged, random).await;
            }
            bytes = disk.after_power_cut(random);

            let disk = Disk::holding(bytes.clone(), None);
            let store = match EmbeddedStore::open_backend(disk, &options) {
                Ok(store) => store,
                // A file that never became a database holds nothing to lose.
                Err(error) if acknowledged == 0 => {
                    assert!(matches!(error, OpenError::Database { .. }));
                    bytes = Vec::new();
                    continue;
                }
                Err(error) => panic!("seed {seed}, life {life}: {error:?}"),
            };
            let wrong = store.verify().await.unwrap();
            assert!(wrong.is_empty(), "seed {seed}, life {life}: {wrong:?}");
            for n in 0..acknowledged {
                let [left, right] = pair(n);
                for key in [left, right] {
                    let found = store.get(&key).await.unwrap();
                    assert!(
                        found.is_some(),
                        "seed {seed}, life {life}: {key} of {acknowledged} is lost"
                    );
                }
            }
            // One more may have been done: the one that got no answer.
            let [left, right] = pair(acknowledged);
            let left = store.get(&left).await.unwrap().is_some();
            let right = store.get(&right).await.unwrap().is_some();
            assert_eq!(left, right, "seed {seed}, life {life}: half a transaction");
            acknowledged += u64::from(left);
            let [next, _] = pair(acknowledged);
            assert_eq!(store.get(&next).await.unwrap(), None);
            let last = store.get(&key("last")).await.unwrap();
            let last = last.map(|entry| String::from_utf8(entry.value).unwrap());
            let expected = acknowledged.checked_sub(1).map(|n| n.to_string());
            assert_eq!(last, expected, "seed {seed}, life {life}");
        }
    }
}
