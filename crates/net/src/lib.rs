//! The virtual network: what a network card's cable ends in.
//!
//! * [`link`]: the cable between a virtual machine's network card and the
//!   network. The card's device (`favo-devices`) is written against it and
//!   knows nothing else of this crate.
//! * [`offload`]: what a card leaves undone, done in software.
//! * [`pcap`]: captures of what crosses a cable.
//! * [`model`]: what a network is made of, as one says it.
//! * [`program`]: what a port does with each packet; compiled from the model.
//! * [`packet`]: what a packet says.
//! * [`answer`]: what a port answers itself.
//! * [`service`]: DNS and the metadata, behind the gateway's addresses.
//! * [`segment`]: a network that several processes of a user share.
//! * [`switch`]: the ports of a network and what passes between them.
//! * [`plane`]: the thread that runs a switch.
//! * [`queue`]: bounded queues of frames between threads.
//! * [`uplink`]: the way out of a network.
//! * [`nat`]: that way through the host's sockets, and back in.
#![forbid(unsafe_code)]

pub mod answer;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
pub mod link;
pub mod model;
pub mod nat;
pub mod offload;
pub mod packet;
pub mod pcap;
pub mod plane;
pub mod program;
pub mod queue;
pub mod segment;
pub mod service;
pub mod switch;
pub mod uplink;
