//! What the processor counts for people who tune and debug.

use std::collections::BTreeMap;

use favo_accel::EventCounter;

/// Counts since the processor was made.
#[derive(Debug, Default)]
pub struct Counters {
    /// Instructions the interpreter completed, block by block or alone.
    pub instructions: u64,
    /// Instructions interpreted in the middle of translated code.
    pub interpreted_inside: u64,
    /// Blocks decoded.
    pub blocks_decoded: u64,
    /// Pieces of code translated.
    pub units_translated: u64,
    /// Guest instructions in them.
    pub instructions_translated: u64,
    /// Time spent translating, in host TSC ticks.
    pub translating: u64,
    /// Times translated code was entered from the run loop.
    pub units_entered: u64,
    /// Times it was left for a jump that was not linked yet.
    pub left_by_edge: u64,
    /// For a jump that was not in the jump table.
    pub left_by_jump: u64,
    /// By an instruction that ended the block in the interpreter.
    pub left_interpreted: u64,
    /// For anything else: somebody wanted attention, code was written.
    pub left_otherwise: u64,
    /// Pages of code that were written.
    pub code_pages_changed: u64,
    /// Segments of translated code given up for want of room.
    pub code_evictions: u64,
    /// Page walks: misses of the translation tables.
    pub page_walks: u64,
    /// Times all translations of an address space were dropped.
    pub address_space_flushes: u64,
    /// Time spent halted, in host TSC ticks.
    pub halted: u64,
    /// Instructions that are not there, by mnemonic.
    pub undefined: BTreeMap<String, u64>,
    /// Things met that favo does not have: unknown MSRs, gates.
    pub unsupported: BTreeMap<String, u64>,
}

impl Counters {
    /// As [`favo_accel::Vcpu::counters`] returns them.
    pub fn list(&self) -> Vec<EventCounter> {
        let plain = [
            ("instructions-interpreted", self.instructions),
            ("instructions-interpreted-inside", self.interpreted_inside),
            ("instructions-translated", self.instructions_translated),
            ("blocks-decoded", self.blocks_decoded),
            ("units-translated", self.units_translated),
            ("units-entered", self.units_entered),
            ("left-by-edge", self.left_by_edge),
            ("left-by-jump", self.left_by_jump),
            ("left-interpreted", self.left_interpreted),
            ("left-otherwise", self.left_otherwise),
            ("code-pages-changed", self.code_pages_changed),
            ("code-evictions", self.code_evictions),
            ("page-walks", self.page_walks),
            ("address-space-flushes", self.address_space_flushes),
            ("ticks-translating", self.translating),
            ("ticks-halted", self.halted),
        ];
        let mut list: Vec<EventCounter> = plain
            .into_iter()
            .map(|(name, count)| EventCounter {
                name,
                detail: None,
                count,
            })
            .collect();
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
