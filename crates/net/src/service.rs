//! What answers behind the gateway's addresses and takes more than the packet
//! to do so: DNS and the instance metadata.
//!
//! The plane's thread calls it. Guests are hostile: every message is parsed by
//! a library that is fuzzed, everything that is kept for a guest is bounded
//! per port.

pub mod metadata;
pub mod names;
pub mod resolver;
mod stack;

pub(crate) use stack::{ConnectionId, Stack};
