//! The favo command: arguments in, text out; no logic.
fn main() {}
