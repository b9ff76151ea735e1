//! Security groups: which connections a port may open and accept.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Rules that ports share. What no rule names is denied; answers to what was
/// allowed are always allowed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecurityGroup {
    /// What people call it.
    pub name: String,
    /// Its rules, in any order: the lowest priority number decides first.
    pub rules: Vec<SecurityRule>,
}

/// One rule of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecurityRule {
    /// The lowest number decides first; at the same number, deny before allow.
    pub priority: u16,
    /// Which way the connection is opened.
    pub direction: Direction,
    /// What it is made of.
    pub protocol: Protocol,
    /// Which destination ports, for TCP and UDP; all, if absent.
    pub ports: Option<PortRange>,
    /// Who is at the other end.
    pub remote: Remote,
    /// What is done.
    pub access: Access,
}

/// Which way packets go, seen from the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// The guest sends.
    Out,
    /// The guest receives.
    In,
}

/// What a rule lets through, or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// Dropped and counted.
    Deny,
    /// Let through, with its answers.
    Allow,
}

/// The protocol above IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Whatever it is.
    Any,
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP, and ICMPv6.
    Icmp,
}

/// Port numbers, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortRange {
    /// The first port.
    pub first: u16,
    /// The last port.
    pub last: u16,
}

/// The other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Remote {
    /// Anyone.
    Any,
    /// The ports of the same network.
    Network,
    /// These addresses.
    Prefix(IpNet),
}

impl Default for SecurityGroup {
    /// Everything out; in, only from the same network. Forwards come in by
    /// themselves.
    fn default() -> Self {
        let rule = |direction, remote| SecurityRule {
            priority: 1000,
            direction,
            protocol: Protocol::Any,
            ports: None,
            remote,
            access: Access::Allow,
        };
        Self {
            name: "default".to_owned(),
            rules: vec![
                rule(Direction::Out, Remote::Any),
                rule(Direction::In, Remote::Network),
            ],
        }
    }
}
