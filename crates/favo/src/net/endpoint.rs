//! The ends of a conversation as a person writes them: `10.0.0.2:80`,
//! `[fd00::1]:53`, `guest`, `web:22`, and behind the last one the protocol.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

/// Who is at an end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Station {
    /// The machine the trace is about.
    Guest,
    /// The network's gateway.
    Gateway,
    /// Where the metadata service answers.
    Metadata,
    /// Another machine of the network.
    Named(String),
    /// Whoever has this address.
    Address(IpAddr),
}

/// An end, with its port if it has one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Endpoint {
    /// Who.
    pub station: Station,
    /// The TCP or UDP port.
    pub port: Option<u16>,
}

/// Where a packet goes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Target {
    /// Who, and which port.
    pub endpoint: Endpoint,
    /// The protocol.
    pub protocol: Transport,
}

/// The protocols a trace knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP and ICMPv6: an echo.
    Icmp,
}

impl Transport {
    /// The number in the IP header that [`favo_net::program::trace::packet`]
    /// wants.
    pub fn number(self) -> u8 {
        match self {
            Self::Icmp => 1,
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Icmp => "icmp",
        })
    }
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(Self {
                station: Station::Address(address.ip()),
                port: Some(address.port()),
            });
        }
        let bare = text
            .strip_prefix('[')
            .and_then(|text| text.strip_suffix(']'));
        if let Ok(address) = bare.unwrap_or(text).parse::<IpAddr>() {
            return Ok(Self {
                station: Station::Address(address),
                port: None,
            });
        }
        let (name, port) = match text.split_once(':') {
            None => (text, None),
            Some((name, port)) => match port.parse() {
                Ok(port) => (name, Some(port)),
                Err(_) => return Err(format!("'{port}' is no port; a port is 0 to 65535")),
            },
        };
        let station = match name {
            "guest" => Station::Guest,
            "gateway" => Station::Gateway,
            "metadata" => Station::Metadata,
            name if favo_net::segment::is_name(name) => Station::Named(name.to_owned()),
            _ => {
                return Err(format!(
                    "'{text}' is no end of a conversation; give an address, guest, gateway, \
                     metadata, or the name of a machine, and a port: 10.0.0.2:80, [fd00::1]:53, web:22"
                ));
            }
        };
        Ok(Self { station, port })
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (endpoint, protocol) = match text.rsplit_once('/') {
            None => (text, None),
            Some((endpoint, "tcp")) => (endpoint, Some(Transport::Tcp)),
            Some((endpoint, "udp")) => (endpoint, Some(Transport::Udp)),
            Some((endpoint, "icmp")) => (endpoint, Some(Transport::Icmp)),
            Some((_, other)) => return Err(format!("'{other}' is none of tcp, udp and icmp")),
        };
        let endpoint: Endpoint = endpoint.parse()?;
        let protocol = match (protocol, endpoint.port) {
            (None, Some(_)) => Transport::Tcp,
            (None, None) => Transport::Icmp,
            (Some(Transport::Icmp), Some(port)) => {
                return Err(format!("icmp has no ports; leave :{port} out"));
            }
            (Some(protocol @ (Transport::Tcp | Transport::Udp)), None) => {
                return Err(format!(
                    "{protocol} needs a port: {text} should be like 10.0.0.2:80/{protocol}"
                ));
            }
            (Some(protocol), _) => protocol,
        };
        Ok(Self { endpoint, protocol })
    }
}

#[cfg(test)]
#[path = "endpoint_test.rs"]
mod test;
