//! What a packet says: fields over the bytes a guest or a peer sent, checked
//! once, copied out, never allocated.
//!
//! [`Ethernet`] and [`Ip`] are the only readers of hostile packets on the
//! path to a verdict; whatever they accept is as long as they say. They read
//! no further than the transport's header.

pub mod build;
mod checksum;
mod ip;

use crate::model::{Direction, MacAddress};
use std::net::IpAddr;

pub use checksum::{Sum, transport_sum};
pub use ip::{Ip, Malformed, TcpFlags, icmp, protocol};

/// Length of an Ethernet header, in bytes.
pub const ETHERNET_LENGTH: usize = 14;

/// Ethernet's numbers for what a frame carries.
pub mod ethertype {
    /// IPv4.
    pub const IPV4: u16 = 0x0800;
    /// ARP.
    pub const ARP: u16 = 0x0806;
    /// IPv6.
    pub const IPV6: u16 = 0x86dd;
}

/// The header of an Ethernet frame (IEEE 802.3; no VLAN tag: a tag is an
/// EtherType no rule lets through).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ethernet {
    /// Who it is for.
    pub destination: MacAddress,
    /// Who sent it.
    pub source: MacAddress,
    /// What it carries.
    pub ethertype: u16,
}

impl Ethernet {
    /// Reads the header of `frame`, if there is one.
    pub fn parse(frame: &[u8]) -> Option<Self> {
        Some(Self {
            destination: MacAddress::read(frame, 0)?,
            source: MacAddress::read(frame, 6)?,
            ethertype: u16::from_be_bytes([*frame.get(12)?, *frame.get(13)?]),
        })
    }

    /// Its bytes.
    pub fn bytes(&self) -> [u8; ETHERNET_LENGTH] {
        let mut bytes = [0; ETHERNET_LENGTH];
        bytes[..6].copy_from_slice(&self.destination.0);
        bytes[6..12].copy_from_slice(&self.source.0);
        bytes[12..].copy_from_slice(&self.ethertype.to_be_bytes());
        bytes
    }
}

/// Names a conversation as the port sees it: the same for both directions.
///
/// For ICMP echo the identifier stands in for the guest's port number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowKey {
    /// The guest's address.
    pub local: IpAddr,
    /// The other end's address.
    pub remote: IpAddr,
    /// The protocol above IP.
    pub protocol: u8,
    /// The guest's port number, 0 where there are none.
    pub local_port: u16,
    /// The other end's port number, 0 where there are none.
    pub remote_port: u16,
}

impl FlowKey {
    /// The conversation a packet belongs to.
    pub fn of(ip: &Ip, direction: Direction) -> Self {
        let (source_port, destination_port) = ip.ports;
        match direction {
            Direction::Out => Self {
                local: ip.source,
                remote: ip.destination,
                protocol: ip.protocol,
                local_port: source_port,
                remote_port: destination_port,
            },
            Direction::In => Self {
                local: ip.destination,
                remote: ip.source,
                protocol: ip.protocol,
                local_port: destination_port,
                remote_port: source_port,
            },
        }
    }
}
