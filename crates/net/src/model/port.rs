//! Ports and what is forwarded to them.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{MacAddress, Network, PortId, SecurityGroup};

/// Where one network card is plugged into a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// Names the port within its process.
    pub id: PortId,
    /// The instance's name: its host name by DHCP and in DNS.
    pub name: String,
    /// The card's address.
    pub mac: MacAddress,
    /// Its IPv4 address on the network.
    pub v4: Option<Ipv4Addr>,
    /// Its IPv6 address on the network.
    pub v6: Option<Ipv6Addr>,
    /// Addresses beside its own that the port may send from and is sent to.
    pub transit: Vec<IpNet>,
    /// Who may reach it, and whom it may reach. The rules of all groups count.
    pub groups: Vec<SecurityGroup>,
    /// What comes in from outside of the network.
    pub forwards: Vec<Forward>,
}

/// The transport of a forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ForwardProtocol {
    /// TCP connections.
    Tcp,
    /// UDP datagrams.
    Udp,
}

/// A port of the guest that can be reached from outside of the network. Where
/// outside, the uplink knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Forward {
    /// TCP or UDP.
    pub protocol: ForwardProtocol,
    /// The guest's port number.
    pub guest_port: u16,
}

impl Port {
    /// A port with the default group. Its IPv6 address is the one the guest
    /// would give itself.
    pub fn new(
        network: &Network,
        id: PortId,
        name: &str,
        mac: MacAddress,
        v4: Option<Ipv4Addr>,
    ) -> Self {
        Self {
            id,
            name: name.to_owned(),
            mac,
            v4,
            v6: network.v6.map(|v6| mac.eui64(v6.prefix.network())),
            transit: Vec::new(),
            groups: vec![SecurityGroup::default()],
            forwards: Vec::new(),
        }
    }

    /// Lets the port use any IPv6 address of the network, as guests with
    /// privacy extensions (RFC 8981) do. Only for a network with one port:
    /// nobody else's address can be taken there.
    pub fn allow_own_ipv6(&mut self, network: &Network) {
        self.transit.push(LINK_LOCAL);
        self.transit
            .extend(network.v6.map(|v6| IpNet::V6(v6.prefix)));
    }
}

/// All link-local addresses guests give themselves (RFC 4291, section 2.5.6).
const LINK_LOCAL: IpNet = IpNet::V6(ipnet::Ipv6Net::new_assert(
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0),
    64,
));
