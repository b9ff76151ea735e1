//! What a store is, in a few lines.

use std::collections::BTreeMap;

use favo_store::{LeaseId, Range};

/// An entry, with revisions counted from the beginning of the case and leases
/// by their place.
#[derive(Clone, PartialEq, Debug)]
pub struct Stored {
    pub value: u8,
    pub created: u64,
    pub modified: u64,
    pub version: u64,
    pub lease: Option<LeaseId>,
}

pub type State = BTreeMap<String, Stored>;

/// What a store is: its states, and what changed between them.
pub struct Model {
    /// The state at each revision, from the first.
    pub states: Vec<State>,
    /// What each revision changed, in order: what is stored since, or nothing.
    pub changes: Vec<Vec<(String, Option<Stored>)>>,
    pub compacted: u64,
    pub leases: Vec<Option<LeaseId>>,
}

impl Model {
    pub fn revision(&self) -> u64 {
        self.states.len() as u64 - 1
    }

    pub fn state(&self) -> &State {
        &self.states[self.states.len() - 1]
    }

    pub fn write(&self, state: &mut State, key: &str, value: u8, lease: Option<LeaseId>) -> Stored {
        let modified = self.revision() + 1;
        let (created, version) = match state.get(key) {
            Some(before) => (before.created, before.version + 1),
            None => (modified, 1),
        };
        let stored = Stored {
            value,
            created,
            modified,
            version,
            lease,
        };
        state.insert(key.to_owned(), stored.clone());
        stored
    }

    pub fn advance(&mut self, state: State, changes: Vec<(String, Option<Stored>)>) {
        if !changes.is_empty() {
            self.states.push(state);
            self.changes.push(changes);
        }
    }

    pub fn end_lease(&mut self, lease: LeaseId) {
        let mut state = self.state().clone();
        state.retain(|_, stored| stored.lease != Some(lease));
        let gone = self.state().keys().filter(|key| !state.contains_key(*key));
        let changes = gone.map(|key| (key.clone(), None)).collect();
        self.advance(state, changes);
    }
}

pub fn found(state: &State, range: &Range) -> (Vec<(String, Stored)>, bool) {
    let mut all: Vec<_> = state
        .iter()
        .filter(|(key, _)| key.starts_with(range.prefix.as_str()))
        .filter(|(key, _)| {
            range
                .after
                .as_ref()
                .is_none_or(|after| key.as_str() > after.as_str())
        })
        .map(|(key, stored)| (key.clone(), stored.clone()))
        .collect();
    let limit = range.limit.map_or(usize::MAX, usize::from);
    let more = all.len() > limit;
    all.truncate(limit);
    (all, more)
}
