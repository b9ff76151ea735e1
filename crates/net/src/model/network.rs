//! Networks and their subnets.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use super::MacAddress;

/// The gateway's Ethernet address, on every network: the gateway is no
/// machine, each port's program answers for it.
pub const GATEWAY_MAC: MacAddress = MacAddress([0x0e, 0xfa, 0x40, 0, 0, 1]);

/// The gateway's link-local address; router advertisements come from it.
pub const GATEWAY_LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// Where the metadata service answers, as on public clouds.
pub const METADATA_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// Where the metadata service answers over IPv6, as on public clouds.
pub const METADATA_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);

/// The smallest MTU IPv6 works with (RFC 8200, section 5), in bytes.
pub const MINIMUM_MTU: u16 = 1280;

/// One virtual Ethernet segment with its addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// What people call it.
    pub name: String,
    /// Largest IP packet on it, in bytes.
    pub mtu: u16,
    /// Its IPv4 addresses.
    pub v4: Option<Subnet4>,
    /// Its IPv6 addresses.
    pub v6: Option<Subnet6>,
    /// The DNS domain its instances are in.
    pub domain: String,
    /// Whether ports may leave for what lies beyond the network.
    pub routed: bool,
    /// Whether the gateway's addresses lead to the host's loopback, for ports
    /// the gateway doesn't serve itself.
    pub host_loopback: bool,
}

/// The IPv4 addresses of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnet4 {
    /// Which addresses are on the network.
    pub prefix: Ipv4Net,
    /// The gateway: router, DNS and DHCP server.
    pub gateway: Ipv4Addr,
}

/// The IPv6 addresses of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnet6 {
    /// Which addresses are on the network; a /64, so that guests can configure
    /// themselves.
    pub prefix: Ipv6Net,
    /// The gateway: DNS server, and router beside [`GATEWAY_LINK_LOCAL`].
    pub gateway: Ipv6Addr,
    /// Whether advertisements offer a way to everywhere else. Not, when the
    /// host has none, so that guests don't wait for it.
    pub default_route: bool,
}

/// A network that can't be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetworkError {
    /// Below what IP needs.
    #[error("network '{0}' has an MTU of {1}; it is at least {MINIMUM_MTU}")]
    Mtu(String, u16),
    /// A gateway that isn't on the network.
    #[error("network '{0}' has its gateway {1} outside of its subnet {2}")]
    Gateway(String, IpAddr, String),
    /// An IPv4 subnet with no room for a gateway and a port.
    #[error(
        "network '{0}' has the subnet {1}; it is at most a /30, within 10/8, 172.16/12, 192.168/16 or 100.64/10"
    )]
    Subnet4(String, Ipv4Net),
    /// An IPv6 subnet guests can't configure themselves in.
    #[error("network '{0}' has the subnet {1}; it is a /64 of unicast addresses")]
    Subnet6(String, Ipv6Net),
}

impl Network {
    /// A network of favo's choice: private addresses that follow from the
    /// name, the MTU of `mtu` bytes.
    ///
    /// The IPv6 prefix is a unique local one (RFC 4193) with the hash of the
    /// name in place of the random number.
    pub fn named(name: &str, mtu: u16) -> Self {
        let hash = fnv1a(name.as_bytes()).to_be_bytes();
        let (third, second) = (hash[6], 64 | (hash[7] & 0x3f));
        let v4 = u32::from_be_bytes([10, second, third, 0]);
        let mut v6 = [0; 16];
        v6[0] = 0xfd;
        v6[1..6].copy_from_slice(&hash[..5]);
        Self {
            name: name.to_owned(),
            mtu,
            v4: Some(Subnet4 {
                prefix: Ipv4Net::new_assert(v4.into(), 24),
                gateway: (v4 | 1).into(),
            }),
            v6: Some(Subnet6 {
                prefix: Ipv6Net::new_assert(v6.into(), 64),
                gateway: (u128::from_be_bytes(v6) | 1).into(),
                default_route: true,
            }),
            domain: format!("{name}.internal"),
            routed: true,
            host_loopback: false,
        }
    }

    /// Whether everything in it fits together.
    ///
    /// # Errors
    /// Says which part doesn't.
    pub fn check(&self) -> Result<(), NetworkError> {
        let name = || self.name.clone();
        if self.mtu < MINIMUM_MTU {
            return Err(NetworkError::Mtu(name(), self.mtu));
        }
        if let Some(v4) = self.v4 {
            if v4.prefix.prefix_len() > 30 || !is_private(v4.prefix) {
                return Err(NetworkError::Subnet4(name(), v4.prefix));
            }
            if !v4.hosts_contain(v4.gateway) {
                let prefix = v4.prefix.to_string();
                return Err(NetworkError::Gateway(name(), v4.gateway.into(), prefix));
            }
        }
        if let Some(v6) = self.v6 {
            let first = v6.prefix.network();
            let special = first.is_multicast() || first.segments()[0] & 0xffc0 == 0xfe80;
            if v6.prefix.prefix_len() != 64 || special || first.is_unspecified() {
                return Err(NetworkError::Subnet6(name(), v6.prefix));
            }
            if !v6.prefix.contains(&v6.gateway) {
                let prefix = v6.prefix.to_string();
                return Err(NetworkError::Gateway(name(), v6.gateway.into(), prefix));
            }
        }
        Ok(())
    }
}

impl Subnet4 {
    /// Whether `address` can be a station's: in the subnet, neither its first
    /// nor its last address.
    pub fn hosts_contain(&self, address: Ipv4Addr) -> bool {
        self.prefix.contains(&address)
            && address != self.prefix.network()
            && address != self.prefix.broadcast()
    }
}

/// Whether guests may use the addresses without hiding a part of the internet
/// from themselves (RFC 1918, RFC 6598).
fn is_private(prefix: Ipv4Net) -> bool {
    [
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "100.64.0.0/10",
    ]
    .iter()
    .any(|range| {
        range
            .parse::<Ipv4Net>()
            .is_ok_and(|range| range.contains(&prefix))
    })
}

/// The FNV-1a hash, 64 bits: it only has to spread names and stay the same for
/// ever.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
#[path = "network_test.rs"]
mod test;
