//! What a virtual network is made of, as one says it: networks, subnets,
//! ports, security groups, forwards.
//!
//! Data only. [`crate::program`] compiles it.

mod id;

pub use id::PortId;
