//! Our types to etcd's, and back.

use etcd_client::{
    Compare, CompareOp, DeleteOptions, GetOptions, GetResponse, KeyValue, PutOptions,
    ResponseHeader, Txn, TxnOp, TxnOpResponse, TxnResponse,
};

use super::{Site, signed, unsigned};
use crate::{
    Condition, Entry, Error, Key, LeaseId, Operand, Operation, OperationResult, Outcome, Page,
    Prefix, Range, Relation, Revision, Transaction,
};

impl Site {
    /// A key's name in etcd.
    pub fn full(&self, key: &Key) -> String {
        format!("{}{key}", self.namespace)
    }

    /// Where the keys with a prefix begin and end in etcd.
    pub fn prefix(&self, prefix: &Prefix) -> (Vec<u8>, Vec<u8>) {
        let start = format!("{}{prefix}", self.namespace).into_bytes();
        let mut end = start.clone();
        // The least bytes behind all that begin so. The namespace is text and
        // not empty, so its last byte is not 255.
        if let Some(last) = end.last_mut() {
            *last += 1;
        }
        (start, end)
    }

    /// Where a range begins and ends in etcd.
    pub fn bounds(&self, range: &Range) -> (Vec<u8>, Vec<u8>) {
        let (start, end) = self.prefix(&range.prefix);
        let Some(after) = &range.after else {
            return (start, end);
        };
        // The least key behind it. A range that would end before it begins is
        // everything from there on to etcd.
        let mut after = self.full(after).into_bytes();
        after.push(0);
        let start = start.max(after);
        let end = end.max(start.clone());
        (start, end)
    }

    pub fn revision(&self, header: Option<&ResponseHeader>) -> Result<Revision, Error> {
        header
            .map(|header| Revision(unsigned(header.revision())))
            .ok_or_else(|| self.nonsense("an answer without a revision"))
    }

    /// A key as it is in etcd. It has the namespace, or etcd would not have
    /// answered with it.
    pub fn key(&self, full: &[u8]) -> Result<Key, Error> {
        full.strip_prefix(self.namespace.as_str().as_bytes())
            .and_then(|key| std::str::from_utf8(key).ok())
            .and_then(|key| Key::new(key).ok())
            .ok_or_else(|| {
                let full = String::from_utf8_lossy(full);
                self.nonsense(format!(
                    "{full:?} is not a key of favo: the namespace is someone else's, too"
                ))
            })
    }

    pub fn entry(&self, kv: KeyValue) -> Result<Entry, Error> {
        let (created, modified) = (kv.create_revision(), kv.mod_revision());
        let (version, lease) = (kv.version(), kv.lease());
        let (key, value) = kv.into_key_value();
        Ok(Entry {
            key: self.key(&key)?,
            value,
            created: Revision(unsigned(created)),
            modified: Revision(unsigned(modified)),
            version: unsigned(version),
            lease: (lease != 0).then_some(LeaseId(unsigned(lease))),
        })
    }

    pub fn page(&self, mut response: GetResponse, revision: Revision) -> Result<Page, Error> {
        let more = response.more();
        let entries = response
            .take_kvs()
            .into_iter()
            .map(|kv| self.entry(kv))
            .collect::<Result<_, _>>()?;
        Ok(Page {
            entries,
            more,
            revision,
        })
    }

    pub fn transaction(&self, transaction: &Transaction) -> Txn {
        let list = |operations: &[Operation]| -> Vec<TxnOp> {
            operations.iter().map(|op| self.operation(op)).collect()
        };
        let conditions = transaction.conditions.iter();
        let conditions: Vec<_> = conditions.map(|c| self.condition(c)).collect();
        Txn::new()
            .when(conditions)
            .and_then(list(&transaction.then))
            .or_else(list(&transaction.otherwise))
    }

    fn condition(&self, condition: &Condition) -> Compare {
        let key = self.full(&condition.key);
        let relation = match condition.relation {
            Relation::Equal => CompareOp::Equal,
            Relation::NotEqual => CompareOp::NotEqual,
            Relation::Less => CompareOp::Less,
            Relation::Greater => CompareOp::Greater,
        };
        match &condition.operand {
            Operand::Created(said) => Compare::create_revision(key, relation, signed(said.0)),
            Operand::Modified(said) => Compare::mod_revision(key, relation, signed(said.0)),
            Operand::Version(said) => Compare::version(key, relation, signed(*said)),
            Operand::Value(said) => Compare::value(key, relation, said.clone()),
        }
    }

    fn operation(&self, operation: &Operation) -> TxnOp {
        match operation {
            Operation::Put { key, value, lease } => {
                let lease = lease.map_or(0, |lease| signed(lease.0));
                let options = PutOptions::new().with_lease(lease);
                TxnOp::put(self.full(key), value.clone(), Some(options))
            }
            Operation::Delete(key) => TxnOp::delete(self.full(key), None),
            Operation::DeletePrefix(prefix) => {
                let (start, end) = self.prefix(prefix);
                TxnOp::delete(start, Some(DeleteOptions::new().with_range(end)))
            }
            Operation::Get(key) => TxnOp::get(self.full(key), None),
            Operation::Range(range) => {
                let (start, end) = self.bounds(range);
                let limit = range
                    .limit
                    .map_or(0, |limit| signed(usize::from(limit) as u64));
                let options = GetOptions::new().with_range(end).with_limit(limit);
                TxnOp::get(start, Some(options))
            }
        }
    }

    /// An answer to [`Site::transaction`]; `asked` is what was asked.
    pub fn outcome(&self, asked: &Transaction, response: TxnResponse) -> Result<Outcome, Error> {
        let revision = self.revision(response.header())?;
        let succeeded = response.succeeded();
        let operations = if succeeded {
            &asked.then
        } else {
            &asked.otherwise
        };
        let answers = response.op_responses();
        if answers.len() != operations.len() {
            return Err(self.nonsense("not one answer to each operation"));
        }
        let results = operations
            .iter()
            .zip(answers)
            .map(|(operation, answer)| match (operation, answer) {
                (Operation::Put { .. }, TxnOpResponse::Put(_)) => Ok(OperationResult::Put),
                (
                    Operation::Delete(_) | Operation::DeletePrefix(_),
                    TxnOpResponse::Delete(answer),
                ) => Ok(OperationResult::Deleted(unsigned(answer.deleted()))),
                (Operation::Get(_), TxnOpResponse::Get(mut answer)) => {
                    let entry = answer.take_kvs().pop().map(|kv| self.entry(kv));
                    Ok(OperationResult::Got(entry.transpose()?))
                }
                (Operation::Range(_), TxnOpResponse::Get(answer)) => {
                    Ok(OperationResult::Range(self.page(answer, revision)?))
                }
                _ => Err(self.nonsense("an answer to another operation")),
            })
            .collect::<Result<_, _>>()?;
        Ok(Outcome {
            succeeded,
            revision,
            results,
        })
    }
}
