//! The steps, and how they are chosen.

use favo_store::{Range, Relation};
use proptest::prelude::*;

use crate::common::{key, prefix};

pub const KEYS: [&str; 6] = ["a", "a/1", "a/2", "ab", "b", "b/1"];
/// Every one of them begins a key that `Case::mark` writes.
pub const PREFIXES: [&str; 4] = ["", "a", "a/", "b"];
pub const LEASES: usize = 3;

/// A revision, said without knowing what the present one is.
#[derive(Clone, Copy, Debug)]
pub enum When {
    Zero,
    Back(u64),
    Ahead(u64),
    Modified(usize),
    Created(usize),
}

#[derive(Clone, Debug)]
pub enum What {
    Created(When),
    Modified(When),
    Version(u64),
    Value(u8),
}

#[derive(Clone, Debug)]
pub struct If(pub usize, pub Relation, pub What);

#[derive(Clone, Debug)]
pub enum Do {
    Put(usize, u8, Option<usize>),
    Delete(usize),
    DeletePrefix(usize),
    Get(usize),
    Range(usize, Option<usize>, usize),
}

#[derive(Clone, Debug)]
pub enum Step {
    Transact(Vec<If>, Vec<Do>, Vec<Do>),
    Get(usize),
    Range(usize, Option<usize>, usize, Option<When>),
    Compact(u64),
    Watch(usize, When),
    Drain(usize),
    Grant(usize),
    Revoke(usize),
    KeepAlive(usize),
    /// A short lease with these keys, left to its end.
    Expire(Vec<usize>),
    /// Closes the store and opens it again, where it is ours to close.
    Reopen,
}

pub fn when() -> impl Strategy<Value = When> {
    prop_oneof![
        1 => Just(When::Zero),
        4 => (0..12_u64).prop_map(When::Back),
        1 => (1..4_u64).prop_map(When::Ahead),
        4 => (0..KEYS.len()).prop_map(When::Modified),
        2 => (0..KEYS.len()).prop_map(When::Created),
    ]
}

pub fn condition() -> impl Strategy<Value = If> {
    let relation = prop_oneof![
        3 => Just(Relation::Equal),
        1 => Just(Relation::NotEqual),
        1 => Just(Relation::Less),
        1 => Just(Relation::Greater),
    ];
    let what = prop_oneof![
        when().prop_map(What::Created),
        when().prop_map(What::Modified),
        (0..4_u64).prop_map(What::Version),
        (0..4_u8).prop_map(What::Value),
    ];
    (0..KEYS.len(), relation, what).prop_map(|(key, relation, what)| If(key, relation, what))
}

pub fn operation() -> impl Strategy<Value = Do> {
    let keys = 0..KEYS.len();
    let prefixes = 0..PREFIXES.len();
    prop_oneof![
        8 => (keys.clone(), 0..4_u8, prop::option::weighted(0.3, 0..LEASES))
            .prop_map(|(key, value, lease)| Do::Put(key, value, lease)),
        3 => keys.clone().prop_map(Do::Delete),
        1 => prefixes.clone().prop_map(Do::DeletePrefix),
        2 => keys.clone().prop_map(Do::Get),
        2 => (prefixes, prop::option::of(keys), 0..4_usize)
            .prop_map(|(prefix, after, limit)| Do::Range(prefix, after, limit)),
    ]
}

pub fn step() -> impl Strategy<Value = Step> {
    let keys = 0..KEYS.len();
    let prefixes = 0..PREFIXES.len();
    let operations = || prop::collection::vec(operation(), 0..5);
    prop_oneof![
        40 => (prop::collection::vec(condition(), 0..3), operations(), operations())
            .prop_map(|(conditions, then, otherwise)| Step::Transact(conditions, then, otherwise)),
        5 => keys.clone().prop_map(Step::Get),
        15 => (prefixes.clone(), prop::option::of(keys.clone()), 0..4_usize, prop::option::of(when()))
            .prop_map(|(prefix, after, limit, at)| Step::Range(prefix, after, limit, at)),
        4 => (0..6_u64).prop_map(Step::Compact),
        8 => (prefixes, when()).prop_map(|(prefix, from)| Step::Watch(prefix, from)),
        8 => (0..4_usize).prop_map(Step::Drain),
        8 => (0..LEASES).prop_map(Step::Grant),
        4 => (0..LEASES).prop_map(Step::Revoke),
        3 => (0..LEASES).prop_map(Step::KeepAlive),
        1 => prop::collection::vec(keys, 1..4).prop_map(Step::Expire),
        2 => Just(Step::Reopen),
    ]
}

pub fn range(name: usize, after: Option<usize>, limit: usize) -> Range {
    let range = Range::prefix(&prefix(PREFIXES[name])).limit(limit);
    match after {
        Some(after) => range.after(&key(KEYS[after])),
        None => range,
    }
}
