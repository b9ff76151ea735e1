//! What the processor counts for people who tune and debug.

use std::collections::BTreeMap;

use favo_accel::EventCounter;

/// Counts since the processor was made.
#[derive(Debug, Default)]
pub struct Counters {
    /// Instructions completed.
    pub instructions: u64,
    /// Blocks decoded.
    pub blocks_decoded: u64,
    /// Pieces of code translated.
    pub units_translated: u64,
    /// Times translated code was entered.
    pub units_entered: u64,
    /// Page walks.
    pub page_walks: u64,
    /// Instructions that are not there, by mnemonic.
    pub undefined: BTreeMap<String, u64>,
    /// Things met that favo does not have: unknown MSRs, gates.
    pub unsupported: BTreeMap<String, u64>,
}

impl Counters {
    /// As [`favo_accel::Vcpu::counters`] returns them.
    pub fn list(&self) -> Vec<EventCounter> {
        let plain = [
            ("instructions", self.instructions),
            ("blocks-decoded", self.blocks_decoded),
            ("units-translated", self.units_translated),
            ("units-entered", self.units_entered),
            ("page-walks", self.page_walks),
        ];
        let plain = plain.map(|(name, count)| EventCounter {
            name,
            detail: None,
            count,
        });
        let named = |name: &'static str, counts: &BTreeMap<String, u64>| {
            counts
                .iter()
                .map(|(detail, count)| EventCounter {
                    name,
                    detail: Some(detail.clone()),
                    count: *count,
                })
                .collect::<Vec<_>>()
        };
        let mut list = plain.to_vec();
        list.extend(named("undefined-instruction", &self.undefined));
        list.extend(named("unsupported", &self.unsupported));
        list
    }
}

/// Counts one occurrence; a guest can't make the map grow without bound.
pub(crate) fn count(counts: &mut BTreeMap<String, u64>, name: String) {
    const MOST_NAMES: usize = 1024;
    if counts.len() < MOST_NAMES || counts.contains_key(&name) {
        *counts.entry(name).or_default() += 1;
    }
}
