//! `--publish [ADDR:]HOSTPORT:GUESTPORT[/tcp|/udp]`.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use favo_net::model::ForwardProtocol;
use serde::{Deserialize, Serialize};

/// A port of the guest's that the host's is joined to.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Publish {
    /// The host's address; `None`: all of them.
    pub address: Option<IpAddr>,
    /// The host's port.
    pub host_port: u16,
    /// The guest's port.
    pub guest_port: u16,
    /// TCP or UDP.
    pub protocol: ForwardProtocol,
}

impl FromStr for Publish {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (ports, protocol) = match text.rsplit_once('/') {
            None => (text, ForwardProtocol::Tcp),
            Some((ports, "tcp")) => (ports, ForwardProtocol::Tcp),
            Some((ports, "udp")) => (ports, ForwardProtocol::Udp),
            Some((_, other)) => return Err(format!("'{other}' is neither tcp nor udp")),
        };
        let (host, guest_port) = ports.rsplit_once(':').ok_or(
            "give the host's port and the guest's: 8080:80, or 127.0.0.1:8080:80, or [::1]:53:53/udp",
        )?;
        let (address, host_port) = match host.rsplit_once(':') {
            None => (None, host),
            Some((address, port)) => (Some(parse_address(address)?), port),
        };
        Ok(Self {
            address,
            host_port: parse_port(host_port)?,
            guest_port: parse_port(guest_port)?,
            protocol,
        })
    }
}

fn parse_port(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(format!("'{text}' is no port; a port is 1 to 65535")),
    }
}

/// IPv6 stands in brackets, for it has colons of its own.
fn parse_address(text: &str) -> Result<IpAddr, String> {
    let bare = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'));
    let address: Option<IpAddr> = match bare {
        Some(bare) => bare.parse().ok().filter(IpAddr::is_ipv6),
        None => text.parse().ok().filter(IpAddr::is_ipv4),
    };
    address
        .ok_or_else(|| format!("'{text}' is no address of the host; it is like 127.0.0.1 or [::1]"))
}

impl TryFrom<String> for Publish {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Publish> for String {
    fn from(publish: Publish) -> Self {
        publish.to_string()
    }
}

impl fmt::Display for Publish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(IpAddr::V6(address)) => write!(f, "[{address}]:")?,
            Some(IpAddr::V4(address)) => write!(f, "{address}:")?,
            None => {}
        }
        let protocol = match self.protocol {
            ForwardProtocol::Tcp => "tcp",
            ForwardProtocol::Udp => "udp",
        };
        write!(f, "{}:{}/{protocol}", self.host_port, self.guest_port)
    }
}

#[cfg(test)]
#[path = "publish_test.rs"]
mod test;
