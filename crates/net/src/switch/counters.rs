//! What a port has seen: every frame is counted, and every drop with its
//! reason.

use crate::model::Direction;
use crate::program::DropReason;

/// What a port has seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames from the guest.
    pub sent: u64,
    /// Bytes from the guest.
    pub sent_bytes: u64,
    /// Frames to the guest.
    pub received: u64,
    /// Bytes to the guest.
    pub received_bytes: u64,
    /// Frames dropped, by reason; in the order of [`DropReason::ALL`].
    pub drops: [[u64; DropReason::COUNT]; 2],
}

impl Counters {
    /// How many packets were dropped for a reason, from the guest or to it.
    pub fn dropped(&self, direction: Direction, reason: DropReason) -> u64 {
        self.drops[direction as usize][reason as usize]
    }

    pub(crate) fn count(&mut self, direction: Direction, reason: DropReason) {
        self.drops[direction as usize][reason as usize] += 1;
    }
}
