//! One file per noun: its desired and observed state, and the next step from
//! one to the other.

pub mod instance;
