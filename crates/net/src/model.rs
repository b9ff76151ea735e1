//! What a virtual network is made of, as one says it: networks, subnets,
//! ports, security groups, forwards.
//!
//! Data only; [`crate::program`] compiles it to what runs. Nothing here does
//! I/O, and every type can be read from and written to a file.

mod id;
mod mac;
mod network;
mod port;
mod security_group;

pub use id::PortId;
pub use mac::{MacAddress, ParseMacError};
pub use network::{GATEWAY_LINK_LOCAL, GATEWAY_MAC, METADATA_V4, METADATA_V6, MINIMUM_MTU};
pub use network::{Network, NetworkError, Subnet4, Subnet6};
pub use port::{Forward, ForwardProtocol, Port};
pub use security_group::{Access, Direction, PortRange, Protocol, Remote};
pub use security_group::{SecurityGroup, SecurityRule};
