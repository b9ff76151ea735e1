//! The virtual network: what a network card's cable ends in.
//!
//! * [`link`]: the cable between a virtual machine's network card and the
//!   network. The card's device (`favo-devices`) is written against it and
//!   knows nothing else of this crate.
//! * [`offload`]: what a card leaves undone, done in software.
//! * [`pcap`]: captures of what crosses a cable.

pub mod link;
pub mod offload;
pub mod pcap;
