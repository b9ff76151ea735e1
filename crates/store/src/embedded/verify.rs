//! Whether the tables agree with each other.

use std::collections::{BTreeMap, BTreeSet};

use redb::{ReadTransaction, ReadableTable};

use super::tables::{
    COMPACTED, HISTORY_BYTES, LEASE_KEYS, LEASES, LOG, META, REVISION, VERSIONS, number,
};

/// Everything that does not agree, one sentence each.
pub fn verify(transaction: &ReadTransaction) -> Result<Vec<String>, redb::Error> {
    let mut wrong = Vec::new();
    let meta = transaction.open_table(META)?;
    let (revision, compacted) = (number(&meta, REVISION)?, number(&meta, COMPACTED)?);

    let mut logged = BTreeSet::new();
    let (mut bytes, mut expected) = (0, (compacted + 1).max(2));
    let mut next_index = 0;
    for row in transaction.open_table(LOG)?.iter()? {
        let (name, row) = row?;
        let (at, index) = name.value();
        let (counts, key) = row.value();
        if index == 0 && at != expected {
            wrong.push(format!(
                "the log goes on with revision {at}, not {expected}"
            ));
        }
        if index != 0 && index != next_index {
            wrong.push(format!(
                "revision {at} of the log lacks change {next_index}"
            ));
        }
        next_index = index + 1;
        expected = at + 1;
        bytes += counts;
        if !logged.insert((key.to_vec(), at)) {
            wrong.push(format!("revision {at} changes {} twice", text(key)));
        }
    }
    if revision + 1 != expected {
        wrong.push(format!(
            "the log ends before revision {expected}, the store is at {revision}"
        ));
    }
    if bytes != number(&meta, HISTORY_BYTES)? {
        wrong.push(format!(
            "the history has {bytes} bytes, another number is noted"
        ));
    }

    let mut attached: BTreeMap<Vec<u8>, u64> = BTreeMap::new();
    let mut newest: BTreeMap<Vec<u8>, (u64, u64, u64)> = BTreeMap::new();
    for row in transaction.open_table(VERSIONS)?.iter()? {
        let (name, row) = row?;
        let (key, at) = name.value();
        let (created, version, lease, value) = row.value();
        let before = newest.insert(key.to_vec(), (at, version, created));
        if at > compacted && !logged.remove(&(key.to_vec(), at)) {
            wrong.push(format!("{} at {at} is not in the log", text(key)));
        }
        if at <= compacted && (value.is_none() || before.is_some()) {
            wrong.push(format!("{} at {at} should be forgotten", text(key)));
        }
        let follows = match (before, value) {
            (Some((_, 0, _)) | None, None) => at <= compacted,
            (_, None) => true,
            (Some((_, 0, _)), Some(_)) => (created, version) == (at, 1),
            (Some((_, last, since)), Some(_)) => (created, version) == (since, last + 1),
            // What came before may be forgotten.
            (None, Some(_)) => match version {
                1 => created == at,
                _ => at <= compacted && created < at,
            },
        };
        if !follows {
            wrong.push(format!(
                "{} at {at} is version {version}, created at {created}, which does not follow",
                text(key)
            ));
        }
        if lease != 0 && value.is_some() {
            attached.insert(key.to_vec(), lease);
        } else {
            attached.remove(key);
        }
    }
    for (key, at) in logged {
        wrong.push(format!(
            "the log has {} at {at}, which is not stored",
            text(&key)
        ));
    }

    let leases = transaction.open_table(LEASES)?;
    for row in transaction.open_table(LEASE_KEYS)?.iter()? {
        let (name, _) = row?;
        let (lease, key) = name.value();
        if attached.remove(key) != Some(lease) {
            wrong.push(format!(
                "lease {lease} claims {}, which is not attached",
                text(key)
            ));
        }
        if leases.get(lease)?.is_none() {
            wrong.push(format!(
                "lease {lease} is gone and still claims {}",
                text(key)
            ));
        }
    }
    for (key, lease) in attached {
        wrong.push(format!(
            "{} is attached to lease {lease}, which does not know",
            text(&key)
        ));
    }
    Ok(wrong)
}

fn text(key: &[u8]) -> String {
    format!("{:?}", String::from_utf8_lossy(key))
}
