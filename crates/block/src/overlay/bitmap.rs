//! Which clusters of a throw-away disk were written.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Words of a leaf: 128 MiB of disk.
const LEAF_WORDS: usize = 512;
const LEAF_CLUSTERS: u64 = LEAF_WORDS as u64 * 64;

/// One bit for each cluster, in leaves that are made when one is needed.
pub(crate) struct Bitmap {
    leaves: Vec<OnceLock<Box<[AtomicU64; LEAF_WORDS]>>>,
    clusters: u64,
}

impl Bitmap {
    pub fn new(clusters: u64) -> Self {
        let leaves = clusters.div_ceil(LEAF_CLUSTERS);
        Self {
            leaves: (0..leaves).map(|_| OnceLock::new()).collect(),
            clusters,
        }
    }

    fn place(cluster: u64) -> (usize, usize, u64) {
        let within = cluster % LEAF_CLUSTERS;
        let leaf = (cluster / LEAF_CLUSTERS) as usize;
        (leaf, (within / 64) as usize, 1 << (within % 64))
    }

    pub fn get(&self, cluster: u64) -> bool {
        let (leaf, word, bit) = Self::place(cluster);
        self.leaves[leaf]
            .get()
            .is_some_and(|leaf| leaf[word].load(Ordering::Acquire) & bit != 0)
    }

    pub fn set(&self, cluster: u64) {
        let (leaf, word, bit) = Self::place(cluster);
        let new = || Box::new([const { AtomicU64::new(0) }; LEAF_WORDS]);
        let leaf = self.leaves[leaf].get_or_init(new);
        leaf[word].fetch_or(bit, Ordering::Release);
    }

    /// The clusters whose bit is set, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        let leaves = (0u64..).zip(&self.leaves);
        let words = leaves.flat_map(|(number, leaf)| {
            let words = leaf.get().into_iter().flat_map(|leaf| leaf.iter());
            (number * LEAF_WORDS as u64..).zip(words)
        });
        words.flat_map(|(number, word)| {
            let word = word.load(Ordering::Acquire);
            (0..64u64)
                .filter(move |bit| word >> bit & 1 != 0)
                .map(move |bit| number * 64 + bit)
        })
    }

    /// Bit `n % 8` of byte `n / 8` is cluster `n`; zeroes at the end are left
    /// out.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for cluster in self.iter() {
            let byte = (cluster / 8) as usize;
            bytes.resize(bytes.len().max(byte + 1), 0);
            bytes[byte] |= 1 << (cluster % 8);
        }
        bytes
    }

    /// Undoes [`Bitmap::to_bytes`]; `None` if a bit is none of `clusters`.
    pub fn from_bytes(bytes: &[u8], clusters: u64) -> Option<Self> {
        let bitmap = Self::new(clusters);
        for (index, byte) in (0u64..).zip(bytes) {
            for bit in (0..8).filter(|bit| byte >> bit & 1 != 0) {
                let cluster = index * 8 + bit;
                if cluster >= clusters {
                    return None;
                }
                bitmap.set(cluster);
            }
        }
        Some(bitmap)
    }

    pub fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }

    /// An empty one of as many clusters.
    pub fn empty_like(&self) -> Self {
        Self::new(self.clusters)
    }
}
