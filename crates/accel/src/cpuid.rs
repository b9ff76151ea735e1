//! What a processor says of itself: CPUID leaves as a table.

use serde::{Deserialize, Serialize};

/// The four registers CPUID fills.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct CpuidResult {
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
}

/// One leaf, or one subleaf where the leaf has several.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CpuidLeaf {
    /// EAX on input.
    pub function: u32,
    /// ECX on input, or `None` where the leaf ignores it.
    pub index: Option<u32>,
    /// What comes back.
    pub result: CpuidResult,
}

/// All leaves of one processor.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct CpuidTable {
    leaves: Vec<CpuidLeaf>,
}

impl CpuidTable {
    /// An empty table: every leaf reads as zeroes.
    pub fn new() -> Self {
        Self::default()
    }

    /// All leaves, in the order they were set.
    pub fn leaves(&self) -> &[CpuidLeaf] {
        &self.leaves
    }

    /// Sets a leaf, replacing what was there.
    pub fn set(&mut self, function: u32, index: Option<u32>, result: CpuidResult) {
        match self.entry(function, index) {
            Some(leaf) => leaf.result = result,
            None => self.leaves.push(CpuidLeaf {
                function,
                index,
                result,
            }),
        }
    }

    /// Removes a leaf and all its subleaves.
    pub fn remove(&mut self, function: u32) {
        self.leaves.retain(|leaf| leaf.function != function);
    }

    /// Changes a leaf in place, if it is there.
    pub fn update(
        &mut self,
        function: u32,
        index: Option<u32>,
        change: impl FnOnce(&mut CpuidResult),
    ) {
        if let Some(leaf) = self.entry(function, index) {
            change(&mut leaf.result);
        }
    }

    /// What the instruction returns for EAX = `function`, ECX = `index`.
    /// A leaf or subleaf that is not in the table reads as zeroes, as AMD's
    /// processors do for leaves above the highest.
    pub fn get(&self, function: u32, index: u32) -> CpuidResult {
        self.leaves
            .iter()
            .find(|leaf| leaf.function == function && leaf.index.is_none_or(|i| i == index))
            .map(|leaf| leaf.result)
            .unwrap_or_default()
    }

    fn entry(&mut self, function: u32, index: Option<u32>) -> Option<&mut CpuidLeaf> {
        self.leaves
            .iter_mut()
            .find(|leaf| leaf.function == function && leaf.index == index)
    }
}

/// Executes CPUID on the host. A virtualized host may take microseconds for
/// it: ask once, keep the answer.
pub fn host(function: u32, index: u32) -> CpuidResult {
    let result = std::arch::x86_64::__cpuid_count(function, index);
    CpuidResult {
        eax: result.eax,
        ebx: result.ebx,
        ecx: result.ecx,
        edx: result.edx,
    }
}

#[cfg(test)]
#[path = "cpuid_test.rs"]
mod test;
