//! The virtual network: what a network card's cable ends in.
//!
//! * [`link`]: the cable between a virtual machine's network card and the
//!   network. The card's device (`favo-devices`) is written against it and
//!   knows nothing else of this crate.
//! * [`model`]: what a network is made of, as one says it.
//! * [`uplink`]: the way out of a network.

pub mod link;
pub mod model;
pub mod uplink;
