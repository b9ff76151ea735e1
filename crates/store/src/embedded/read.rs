//! Reading `versions`: the newest version of keys at some revision.
//!
//! The same functions read snapshots and the tables of a transaction under
//! way; `at` is then past every revision.

use std::ops::Bound;

use redb::ReadableTable;

use super::tables::{VersionKey, VersionValue};
use crate::{Entry, Key, LeaseId, Page, Range, Revision};

/// A row of `versions` that has a value.
pub struct Version {
    pub created: u64,
    pub modified: u64,
    pub version: u64,
    pub lease: Option<LeaseId>,
    pub value: Vec<u8>,
}

/// What is stored under `key` at revision `at`.
pub fn version(
    versions: &impl ReadableTable<VersionKey, VersionValue>,
    key: &[u8],
    at: u64,
) -> Result<Option<Version>, redb::Error> {
    let mut rows = versions.range::<(&[u8], u64)>((key, 0)..=(key, at))?;
    let Some(row) = rows.next_back() else {
        return Ok(None);
    };
    let (name, row) = row?;
    let (_, modified) = name.value();
    let (created, version, lease, value) = row.value();
    Ok(value.map(|value| Version {
        created,
        modified,
        version,
        lease: (lease != 0).then_some(LeaseId(lease)),
        value: value.to_vec(),
    }))
}

/// The entry of `key` at revision `at`.
pub fn entry(
    versions: &impl ReadableTable<VersionKey, VersionValue>,
    key: &Key,
    at: u64,
) -> Result<Option<Entry>, redb::Error> {
    let found = version(versions, key.as_str().as_bytes(), at)?;
    Ok(found.map(|found| found.into_entry(key.clone())))
}

impl Version {
    pub fn into_entry(self, key: Key) -> Entry {
        Entry {
            key,
            value: self.value,
            created: Revision(self.created),
            modified: Revision(self.modified),
            version: self.version,
            lease: self.lease,
        }
    }
}

/// A key as it is stored. Only keys are stored as keys, so what is not one
/// means the file is damaged.
pub fn key(bytes: &[u8]) -> Result<Key, redb::Error> {
    std::str::from_utf8(bytes)
        .ok()
        .and_then(|text| Key::new(text).ok())
        .ok_or_else(|| redb::Error::Corrupted(format!("{bytes:?} is stored as a key and is none")))
}

/// Calls `visit` with each key that begins with `prefix`, lies behind `after`
/// and has versions (a deletion may be the newest), in order, until it says
/// to stop.
pub fn keys(
    versions: &impl ReadableTable<VersionKey, VersionValue>,
    prefix: &[u8],
    after: Option<&[u8]>,
    mut visit: impl FnMut(&[u8]) -> Result<bool, redb::Error>,
) -> Result<(), redb::Error> {
    let mut last: Option<Vec<u8>> = after.filter(|after| *after >= prefix).map(<[u8]>::to_vec);
    loop {
        // Past all versions of the key before: revisions end below 2⁶⁴ − 1.
        let start = match &last {
            Some(key) => Bound::Excluded((key.as_slice(), u64::MAX)),
            None => Bound::Included((prefix, 0)),
        };
        let mut rows = versions.range::<(&[u8], u64)>((start, Bound::Unbounded))?;
        let Some(row) = rows.next() else {
            return Ok(());
        };
        let (name, _) = row?;
        let (found, _) = name.value();
        if !found.starts_with(prefix) || !visit(found)? {
            return Ok(());
        }
        last = Some(found.to_vec());
    }
}

/// The entries of `range` at `revision`.
pub fn page(
    versions: &impl ReadableTable<VersionKey, VersionValue>,
    range: &Range,
    revision: Revision,
) -> Result<Page, redb::Error> {
    let prefix = range.prefix.as_str().as_bytes();
    let after = range.after.as_ref().map(|key| key.as_str().as_bytes());
    let limit = range.limit.map_or(usize::MAX, usize::from);
    let mut entries = Vec::new();
    let mut more = false;
    keys(versions, prefix, after, |bytes| {
        if let Some(found) = version(versions, bytes, revision.0)? {
            if entries.len() == limit {
                more = true;
                return Ok(false);
            }
            entries.push(found.into_entry(key(bytes)?));
        }
        Ok(true)
    })?;
    Ok(Page {
        entries,
        more,
        revision,
    })
}
