//! Forgetting history: on request, or when there is too much of it.

use redb::ReadableTable;

use super::HistoryLimit;
use super::commit::Commit;
use crate::Revision;

/// Rows of `log` that a commit forgets on its own account at most, so that
/// history that grew large does not stop the store while it goes.
const STEP: usize = 1024;

/// Forgets all history through `through`: the rows of `log`, every version
/// that a later one replaced by then, and deletions.
pub fn compact(commit: &mut Commit<'_>, through: Revision) -> Result<(), redb::Error> {
    if through > commit.compacted {
        let rows = rows(commit, usize::MAX, |revision, _| revision > through.0)?;
        forget(commit, rows)?;
        commit.compacted = through;
    }
    Ok(())
}

/// Forgets some of what exceeds the limit, whole revisions only. The newest
/// revision is always kept: a watch that is up to date never ends.
pub fn trim(commit: &mut Commit<'_>, limit: HistoryLimit) -> Result<(), redb::Error> {
    let mut excess_revisions =
        (commit.revision.0 - commit.compacted.0).saturating_sub(limit.revisions);
    let mut excess_bytes = commit.history_bytes.saturating_sub(limit.bytes.bytes());
    // An eighth more than wanted, so that not every commit has to.
    if excess_revisions <= limit.revisions / 8 && excess_bytes <= limit.bytes.bytes() / 8 {
        return Ok(());
    }
    let newest = commit.revision.0;
    let mut last = commit.compacted.0;
    let doomed = rows(commit, STEP, |revision, counts| {
        if revision != last {
            if revision == newest || (excess_revisions == 0 && excess_bytes == 0) {
                return true;
            }
            excess_revisions = excess_revisions.saturating_sub(revision - last);
            last = revision;
        }
        excess_bytes = excess_bytes.saturating_sub(counts);
        false
    })?;
    if let Some(through) = doomed.last().map(|row| row.revision) {
        forget(commit, doomed)?;
        commit.compacted = Revision(through);
    }
    Ok(())
}

struct Row {
    revision: u64,
    index: u32,
    counts: u64,
    key: Vec<u8>,
}

/// The oldest rows of `log`, whole revisions, at least `enough` of them, until
/// `end` says so of a revision and its bytes.
fn rows(
    commit: &Commit<'_>,
    enough: usize,
    mut end: impl FnMut(u64, u64) -> bool,
) -> Result<Vec<Row>, redb::Error> {
    let mut rows: Vec<Row> = Vec::new();
    for row in commit.log.iter()? {
        let (name, row) = row?;
        let (revision, index) = name.value();
        let (counts, key) = row.value();
        let begins = rows.last().is_none_or(|last| last.revision != revision);
        if (begins && rows.len() >= enough) || end(revision, counts) {
            break;
        }
        rows.push(Row {
            revision,
            index,
            counts,
            key: key.to_vec(),
        });
    }
    Ok(rows)
}

fn forget(commit: &mut Commit<'_>, rows: Vec<Row>) -> Result<(), redb::Error> {
    for row in rows {
        let key = row.key.as_slice();
        let replaced = {
            let mut older = commit
                .versions
                .range::<(&[u8], u64)>((key, 0)..(key, row.revision))?;
            match older.next_back() {
                Some(older) => Some(older?.0.value().1),
                None => None,
            }
        };
        if let Some(revision) = replaced {
            commit.versions.remove((key, revision))?;
        }
        let deletion = match commit.versions.get((key, row.revision))? {
            Some(version) => version.value().3.is_none(),
            None => false,
        };
        if deletion {
            commit.versions.remove((key, row.revision))?;
        }
        commit.log.remove((row.revision, row.index))?;
        commit.history_bytes = commit.history_bytes.saturating_sub(row.counts);
    }
    Ok(())
}
