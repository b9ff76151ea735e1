//! x
use super::Case;
pub(super) const CASES: &[Case] = &[];
pub fn move_between() {}
