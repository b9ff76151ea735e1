//! Transactions: conditions, and what to do if they hold or don't.

use std::cmp::Ordering;

use crate::{Entry, Key, LeaseId, Page, Prefix, Range, Revision};

/// A compare-and-set: if all conditions hold, `then` is done, otherwise
/// `otherwise`, as one indivisible step.
///
/// Operations are done in order, and reads among them see the writes before
/// them. A list may write a key only once: its changes share one revision.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Transaction {
    /// All must hold; none always hold.
    pub conditions: Vec<Condition>,
    /// What is done if they do.
    pub then: Vec<Operation>,
    /// What is done if they don't.
    pub otherwise: Vec<Operation>,
}

/// Something about one key that holds or doesn't.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Condition {
    /// Which key.
    pub key: Key,
    /// How what is found must relate to what is said.
    pub relation: Relation,
    /// What is compared, and with what.
    pub operand: Operand,
}

/// How two values relate: what is stored, to what is said.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Relation {
    /// They are equal.
    Equal,
    /// They are not.
    NotEqual,
    /// The stored is less.
    Less,
    /// The stored is greater.
    Greater,
}

/// What of an entry is compared, and the value it is compared with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Operand {
    /// [`Entry::created`]; zero if there is no such key.
    Created(Revision),
    /// [`Entry::modified`]; zero if there is no such key.
    Modified(Revision),
    /// [`Entry::version`]; zero if there is no such key.
    Version(u64),
    /// [`Entry::value`], compared byte by byte. If there is no such key, no
    /// relation to any value holds, not even [`Relation::NotEqual`].
    Value(Vec<u8>),
}

impl Relation {
    /// Whether two values that compare like `ordering` relate like this.
    pub fn holds(self, ordering: Ordering) -> bool {
        match self {
            Self::Equal => ordering.is_eq(),
            Self::NotEqual => ordering.is_ne(),
            Self::Less => ordering.is_lt(),
            Self::Greater => ordering.is_gt(),
        }
    }
}

impl Condition {
    /// There is no such key.
    pub fn absent(key: &Key) -> Self {
        Self::unchanged(key, Revision::ZERO)
    }

    /// There is such a key.
    pub fn exists(key: &Key) -> Self {
        Self {
            key: key.clone(),
            relation: Relation::Greater,
            operand: Operand::Version(0),
        }
    }

    /// The key was last written at this revision.
    pub fn unchanged(key: &Key, modified: Revision) -> Self {
        Self {
            key: key.clone(),
            relation: Relation::Equal,
            operand: Operand::Modified(modified),
        }
    }

    /// The key has this value.
    pub fn value(key: &Key, value: impl Into<Vec<u8>>) -> Self {
        Self {
            key: key.clone(),
            relation: Relation::Equal,
            operand: Operand::Value(value.into()),
        }
    }

    /// Whether it holds for what is stored under its key: created, modified,
    /// version and value, or nothing.
    pub fn holds(&self, stored: Option<(Revision, Revision, u64, &[u8])>) -> bool {
        let (created, modified, version) = stored
            .map(|(created, modified, version, _)| (created, modified, version))
            .unwrap_or_default();
        let ordering = match &self.operand {
            Operand::Created(said) => created.cmp(said),
            Operand::Modified(said) => modified.cmp(said),
            Operand::Version(said) => version.cmp(said),
            Operand::Value(said) => match stored {
                Some((_, _, _, value)) => value.cmp(said),
                None => return false,
            },
        };
        self.relation.holds(ordering)
    }
}

/// One step of a transaction.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Operation {
    /// Stores a value under a key, attached to a lease or to none.
    Put {
        /// The key.
        key: Key,
        /// What is stored.
        value: Vec<u8>,
        /// The lease whose end deletes it; replaces the one it had.
        lease: Option<LeaseId>,
    },
    /// Deletes a key, if it exists.
    Delete(Key),
    /// Deletes all keys that begin so.
    DeletePrefix(Prefix),
    /// Reads one key.
    Get(Key),
    /// Reads many.
    Range(Range),
}

impl Operation {
    /// Stores `value` under `key`, without a lease.
    pub fn put(key: &Key, value: impl Into<Vec<u8>>) -> Self {
        Self::Put {
            key: key.clone(),
            value: value.into(),
            lease: None,
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Put { key, value, .. } => key.as_str().len() + value.len(),
            Self::Delete(key) | Self::Get(key) => key.as_str().len(),
            Self::DeletePrefix(prefix) => prefix.as_str().len(),
            Self::Range(range) => range.prefix.as_str().len(),
        }
    }

    /// A key that both write, if there is one.
    fn collision(&self, other: &Self) -> Option<String> {
        let key = |key: &Key| key.as_str().to_owned();
        match (self, other) {
            (
                Self::Put { key: a, .. } | Self::Delete(a),
                Self::Put { key: b, .. } | Self::Delete(b),
            ) => (a == b).then(|| key(a)),
            (Self::Put { key: a, .. } | Self::Delete(a), Self::DeletePrefix(prefix))
            | (Self::DeletePrefix(prefix), Self::Put { key: a, .. } | Self::Delete(a)) => {
                a.starts_with(prefix).then(|| key(a))
            }
            (Self::DeletePrefix(a), Self::DeletePrefix(b)) => {
                let (short, long) = if a.as_str().len() < b.as_str().len() {
                    (a, b)
                } else {
                    (b, a)
                };
                long.as_str()
                    .starts_with(short.as_str())
                    .then(|| long.as_str().to_owned())
            }
            _ => None,
        }
    }
}

/// What became of one [`Operation`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum OperationResult {
    /// Stored.
    Put,
    /// So many keys were deleted.
    Deleted(u64),
    /// What is stored there.
    Got(Option<Entry>),
    /// What is stored there.
    Range(Page),
}

/// What became of a [`Transaction`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// Whether the conditions held, so `then` was done.
    pub succeeded: bool,
    /// The state of the store after it: its own revision if it changed
    /// something.
    pub revision: Revision,
    /// One result for each operation that was done.
    pub results: Vec<OperationResult>,
}

/// Why no store takes a transaction, whatever is stored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTransaction {
    /// More than [`Transaction::LONGEST`] conditions or operations.
    #[error("a list of a transaction has at most {most} entries, this one has {0}", most = Transaction::LONGEST)]
    TooLong(usize),
    /// More than [`Transaction::LARGEST`] bytes of keys and values.
    #[error("a transaction carries at most {most} bytes, this one has {0}", most = Transaction::LARGEST)]
    TooLarge(usize),
    /// Two operations of one list write the same key.
    #[error(
        "two operations of a transaction write {0:?}; its changes are one step, so each key is written once"
    )]
    WrittenTwice(String),
}

impl Transaction {
    /// The most conditions, and the most operations of either list. It is
    /// etcd's default (`--max-txn-ops`).
    pub const LONGEST: usize = 128;
    /// The most bytes of keys and values together. etcd's default
    /// (`--max-request-bytes`) is 1.5 MiB, its own overhead included.
    pub const LARGEST: usize = 1 << 20;

    /// A transaction without conditions.
    pub fn always(then: impl Into<Vec<Operation>>) -> Self {
        Self {
            then: then.into(),
            ..Self::default()
        }
    }

    /// Adds a condition.
    #[must_use]
    pub fn when(mut self, condition: Condition) -> Self {
        self.conditions.push(condition);
        self
    }

    /// Adds an operation for the case that the conditions hold.
    #[must_use]
    pub fn then(mut self, operation: Operation) -> Self {
        self.then.push(operation);
        self
    }

    /// Adds an operation for the case that they don't.
    #[must_use]
    pub fn otherwise(mut self, operation: Operation) -> Self {
        self.otherwise.push(operation);
        self
    }

    /// Whether a store may look at it at all. Every provider asks this first,
    /// so that all refuse the same.
    ///
    /// # Errors
    /// It is too long, too large, or writes a key twice.
    pub fn check(&self) -> Result<(), InvalidTransaction> {
        for length in [self.conditions.len(), self.then.len(), self.otherwise.len()] {
            if length > Self::LONGEST {
                return Err(InvalidTransaction::TooLong(length));
            }
        }
        let bytes = self.bytes();
        if bytes > Self::LARGEST {
            return Err(InvalidTransaction::TooLarge(bytes));
        }
        for list in [&self.then, &self.otherwise] {
            for (index, operation) in list.iter().enumerate() {
                for earlier in &list[..index] {
                    if let Some(key) = operation.collision(earlier) {
                        return Err(InvalidTransaction::WrittenTwice(key));
                    }
                }
            }
        }
        Ok(())
    }

    /// Keys and values, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        let conditions = self.conditions.iter().map(|condition| {
            let value = match &condition.operand {
                Operand::Value(value) => value.len(),
                _ => 0,
            };
            condition.key.as_str().len() + value
        });
        let operations = self
            .then
            .iter()
            .chain(&self.otherwise)
            .map(Operation::bytes);
        conditions.chain(operations).sum()
    }
}

#[cfg(test)]
#[path = "transaction_test.rs"]
mod test;
