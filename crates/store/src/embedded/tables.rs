//! The database's tables.
//!
//! | table        | key             | value                                    |
//! |--------------|-----------------|------------------------------------------|
//! | `versions`   | key, revision   | created, version, lease (0: none), value |
//! | `log`        | revision, index | key, and the bytes it counts for         |
//! | `leases`     | lease           | seconds                                  |
//! | `lease_keys` | lease, key      |                                          |
//! | `meta`       | name            | number                                   |
//!
//! `versions` has a row for each change: the newest of a key is its present
//! value, or a deletion if it has none. So the present and the past are read
//! alike. `log` is the order of the changes, for watches; its rows end at the
//! compacted revision, and so do the older versions.

use redb::{
    Database, ReadOnlyTable, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition,
};

use crate::Revision;

/// The format of the tables, as stored in `meta`.
pub const FORMAT: u64 = 1;

pub type VersionKey = (&'static [u8], u64);
pub type VersionValue = (u64, u64, u64, Option<&'static [u8]>);
pub type LogKey = (u64, u32);
pub type LogValue = (u64, &'static [u8]);

pub const VERSIONS: TableDefinition<'_, VersionKey, VersionValue> =
    TableDefinition::new("versions");
pub const LOG: TableDefinition<'_, LogKey, LogValue> = TableDefinition::new("log");
pub const LEASES: TableDefinition<'_, u64, u64> = TableDefinition::new("leases");
pub const LEASE_KEYS: TableDefinition<'_, (u64, &'static [u8]), ()> =
    TableDefinition::new("lease_keys");
pub const META: TableDefinition<'_, &'static str, u64> = TableDefinition::new("meta");

/// [`META`]: the present revision.
pub const REVISION: &str = "revision";
/// [`META`]: the revision through which the history is forgotten.
pub const COMPACTED: &str = "compacted";
/// [`META`]: the bytes all rows of `log` count for.
pub const HISTORY_BYTES: &str = "history_bytes";
/// [`META`]: the last lease that was given.
pub const LAST_LEASE: &str = "last_lease";
/// [`META`]: the format.
const FORMAT_NAME: &str = "format";

/// Makes the tables that are not there; returns the format of what is.
pub fn create(database: &Database) -> Result<u64, redb::Error> {
    let snapshot = database.begin_read()?;
    match snapshot.open_table(META) {
        Ok(meta) => return number(&meta, FORMAT_NAME),
        Err(redb::TableError::TableDoesNotExist(_)) => {}
        Err(error) => return Err(error.into()),
    }
    drop(snapshot);
    let transaction = database.begin_write()?;
    transaction.open_table(VERSIONS)?;
    transaction.open_table(LOG)?;
    transaction.open_table(LEASES)?;
    transaction.open_table(LEASE_KEYS)?;
    {
        let mut meta = transaction.open_table(META)?;
        meta.insert(FORMAT_NAME, FORMAT)?;
        meta.insert(REVISION, Revision::FIRST.0)?;
    }
    transaction.commit()?;
    Ok(FORMAT)
}

/// A number of [`META`]; zero if it was never set.
pub fn number(
    meta: &impl ReadableTable<&'static str, u64>,
    name: &str,
) -> Result<u64, redb::Error> {
    Ok(meta.get(name)?.map_or(0, |guard| guard.value()))
}

/// One state of the store, unmoved by later writes.
pub struct Snapshot {
    pub revision: Revision,
    pub compacted: Revision,
    pub versions: ReadOnlyTable<VersionKey, VersionValue>,
    pub log: ReadOnlyTable<LogKey, LogValue>,
}

impl Snapshot {
    pub fn open(transaction: &ReadTransaction) -> Result<Self, redb::Error> {
        let meta = transaction.open_table(META)?;
        Ok(Self {
            revision: Revision(number(&meta, REVISION)?),
            compacted: Revision(number(&meta, COMPACTED)?),
            versions: transaction.open_table(VERSIONS)?,
            log: transaction.open_table(LOG)?,
        })
    }
}
