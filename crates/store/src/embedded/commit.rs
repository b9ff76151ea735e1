//! Changing the tables: one redb transaction with any number of ours in it.
//!
//! Nothing here waits, tells the time or answers anyone; the writer does.

use redb::{Database, ReadableDatabase, ReadableTable, Table, WriteTransaction};

use super::HistoryLimit;
use super::history;
use super::read;
use super::tables::{
    COMPACTED, HISTORY_BYTES, LAST_LEASE, LEASE_KEYS, LEASES, LOG, LogKey, LogValue, META,
    REVISION, VERSIONS, VersionKey, VersionValue, number,
};
use crate::{
    Condition, Error, Key, LeaseId, Operation, OperationResult, Outcome, Revision, Transaction,
};

/// The revision a store is at, and its leases with their seconds.
pub fn resume(database: &Database) -> Result<(Revision, Vec<(LeaseId, u64)>), redb::Error> {
    let snapshot = database.begin_read()?;
    let revision = number(&snapshot.open_table(META)?, REVISION)?;
    let mut leases = Vec::new();
    for row in snapshot.open_table(LEASES)?.iter()? {
        let (lease, seconds) = row?;
        leases.push((LeaseId(lease.value()), seconds.value()));
    }
    Ok((Revision(revision), leases))
}

/// The tables of a redb transaction under way.
pub struct Commit<'t> {
    pub versions: Table<'t, VersionKey, VersionValue>,
    pub log: Table<'t, LogKey, LogValue>,
    leases: Table<'t, u64, u64>,
    lease_keys: Table<'t, (u64, &'static [u8]), ()>,
    meta: Table<'t, &'static str, u64>,
    pub revision: Revision,
    pub compacted: Revision,
    pub history_bytes: u64,
    /// Rows of `log` at the revision under way.
    index: u32,
    changed: bool,
}

impl<'t> Commit<'t> {
    pub fn begin(transaction: &'t WriteTransaction) -> Result<Self, redb::Error> {
        let meta = transaction.open_table(META)?;
        Ok(Self {
            versions: transaction.open_table(VERSIONS)?,
            log: transaction.open_table(LOG)?,
            leases: transaction.open_table(LEASES)?,
            lease_keys: transaction.open_table(LEASE_KEYS)?,
            revision: Revision(number(&meta, REVISION)?),
            compacted: Revision(number(&meta, COMPACTED)?),
            history_bytes: number(&meta, HISTORY_BYTES)?,
            meta,
            index: 0,
            changed: false,
        })
    }

    /// Writes the numbers down, forgets history that exceeds `limit`, and says
    /// whether there is anything to commit.
    pub fn finish(mut self, limit: HistoryLimit) -> Result<bool, redb::Error> {
        if !self.changed {
            return Ok(false);
        }
        history::trim(&mut self, limit)?;
        self.meta.insert(REVISION, self.revision.0)?;
        self.meta.insert(COMPACTED, self.compacted.0)?;
        self.meta.insert(HISTORY_BYTES, self.history_bytes)?;
        Ok(true)
    }

    /// Does one transaction. What is refused has changed nothing.
    pub fn transact(
        &mut self,
        transaction: &Transaction,
        lease_lives: impl Fn(LeaseId) -> bool,
    ) -> Result<Result<Outcome, Error>, redb::Error> {
        let mut succeeded = true;
        for condition in &transaction.conditions {
            succeeded = succeeded && self.holds(condition)?;
        }
        let operations = if succeeded {
            &transaction.then
        } else {
            &transaction.otherwise
        };
        for operation in operations {
            if let Operation::Put {
                lease: Some(lease), ..
            } = operation
                && !lease_lives(*lease)
            {
                return Ok(Err(Error::LeaseNotFound { lease: *lease }));
            }
        }
        let mut results = Vec::with_capacity(operations.len());
        for operation in operations {
            results.push(self.operate(operation)?);
        }
        self.end_revision();
        for result in &mut results {
            if let OperationResult::Range(page) = result {
                page.revision = self.revision;
            }
        }
        Ok(Ok(Outcome {
            succeeded,
            revision: self.revision,
            results,
        }))
    }

    fn holds(&self, condition: &Condition) -> Result<bool, redb::Error> {
        let found = read::version(&self.versions, bytes(&condition.key), u64::MAX)?;
        Ok(condition.holds(found.as_ref().map(|found| {
            (
                Revision(found.created),
                Revision(found.modified),
                found.version,
                found.value.as_slice(),
            )
        })))
    }

    fn operate(&mut self, operation: &Operation) -> Result<OperationResult, redb::Error> {
        Ok(match operation {
            Operation::Put { key, value, lease } => {
                self.put(bytes(key), value, *lease)?;
                OperationResult::Put
            }
            Operation::Delete(key) => OperationResult::Deleted(u64::from(self.delete(bytes(key))?)),
            Operation::DeletePrefix(prefix) => {
                let mut doomed = Vec::new();
                read::keys(&self.versions, prefix.as_str().as_bytes(), None, |key| {
                    doomed.push(key.to_vec());
                    Ok(true)
                })?;
                let mut deleted = 0;
                for key in doomed {
                    deleted += u64::from(self.delete(&key)?);
                }
                OperationResult::Deleted(deleted)
            }
            Operation::Get(key) => {
                OperationResult::Got(read::entry(&self.versions, key, u64::MAX)?)
            }
            Operation::Range(range) => {
                // Past every revision: its own changes are seen, too.
                let page = read::page(&self.versions, range, Revision(u64::MAX))?;
                OperationResult::Range(page)
            }
        })
    }

    fn put(&mut self, key: &[u8], value: &[u8], lease: Option<LeaseId>) -> Result<(), redb::Error> {
        let revision = self.revision.next().0;
        let before = read::version(&self.versions, key, u64::MAX)?;
        let (created, version, had) = match &before {
            Some(before) => (before.created, before.version + 1, before.lease),
            None => (revision, 1, None),
        };
        if had != lease {
            if let Some(had) = had {
                self.lease_keys.remove((had.0, key))?;
            }
            if let Some(lease) = lease {
                self.lease_keys.insert((lease.0, key), ())?;
            }
        }
        let lease = lease.map_or(0, |lease| lease.0);
        self.versions
            .insert((key, revision), (created, version, lease, Some(value)))?;
        self.record(key, value.len())
    }

    /// Whether the key was there.
    fn delete(&mut self, key: &[u8]) -> Result<bool, redb::Error> {
        let Some(before) = read::version(&self.versions, key, u64::MAX)? else {
            return Ok(false);
        };
        if let Some(lease) = before.lease {
            self.lease_keys.remove((lease.0, key))?;
        }
        let revision = self.revision.next().0;
        self.versions.insert((key, revision), (0, 0, 0, None))?;
        self.record(key, 0)?;
        Ok(true)
    }

    /// Enters a change of the revision under way into the log.
    fn record(&mut self, key: &[u8], value: usize) -> Result<(), redb::Error> {
        let counts = (key.len() + value) as u64;
        self.log
            .insert((self.revision.next().0, self.index), (counts, key))?;
        self.history_bytes += counts;
        self.index += 1;
        Ok(())
    }

    fn end_revision(&mut self) {
        if self.index > 0 {
            self.revision = self.revision.next();
            self.index = 0;
            self.changed = true;
        }
    }

    /// Takes a lease.
    pub fn grant(&mut self, seconds: u64) -> Result<LeaseId, redb::Error> {
        let lease = number(&self.meta, LAST_LEASE)? + 1;
        self.meta.insert(LAST_LEASE, lease)?;
        self.leases.insert(lease, seconds)?;
        self.changed = true;
        Ok(LeaseId(lease))
    }

    /// Ends a lease and deletes its keys, in the order of their names.
    pub fn end_lease(&mut self, lease: LeaseId) -> Result<(), redb::Error> {
        let mut doomed = Vec::new();
        for row in self
            .lease_keys
            .range::<(u64, &[u8])>((lease.0, &[][..])..)?
        {
            let (row, ()) = row.map(|(row, _)| (row, ()))?;
            let (owner, key) = row.value();
            if owner != lease.0 {
                break;
            }
            doomed.push(key.to_vec());
        }
        for key in doomed {
            self.delete(&key)?;
        }
        self.end_revision();
        self.leases.remove(lease.0)?;
        self.changed = true;
        Ok(())
    }

    /// Forgets the history through a revision.
    pub fn compact(&mut self, through: Revision) -> Result<(), redb::Error> {
        history::compact(self, through)?;
        self.changed = true;
        Ok(())
    }
}

fn bytes(key: &Key) -> &[u8] {
    key.as_str().as_bytes()
}
