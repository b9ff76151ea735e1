//! The agent favo runs in its guests.
fn main() {}
