//! `--allow` and `--deny`: `in|out[:tcp|udp|icmp[:PORT[-PORT]]][@REMOTE]`.
//!
//! What `--allow` names passes; of the rest, what `--deny` names is dropped;
//! of the rest, published ports come in, and the network's default decides:
//! everything out, in only from the same network.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use favo_net::model::{
    Access, Direction, PortRange, Protocol, Remote, SecurityGroup, SecurityRule,
};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// The options that make rules.
#[derive(Clone, Debug, Default, clap::Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FirewallArgs {
    /// Let these connections through, whatever --deny says:
    /// in|out[:tcp|udp|icmp[:PORT[-PORT]]][@ADDRESS[/LENGTH]|@network]. May be repeated.
    #[arg(long, value_name = "RULE")]
    pub allow: Vec<Traffic>,
    /// Drop these connections, written as for --allow, published ports included. Without rules
    /// everything may go out, and in comes what is published and what other machines of the
    /// network send. May be repeated.
    #[arg(long, value_name = "RULE")]
    pub deny: Vec<Traffic>,
}

/// Which connections a rule is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Traffic {
    direction: Direction,
    protocol: Protocol,
    ports: Option<PortRange>,
    remote: Remote,
}

/// The lowest number decides first; the default group has 1000.
const ALLOW: u16 = 100;
const DENY: u16 = 200;

impl FirewallArgs {
    /// The group these rules make; none without rules.
    pub fn group(&self) -> Option<SecurityGroup> {
        let rule = |traffic: &Traffic, access, priority| SecurityRule {
            priority,
            direction: traffic.direction,
            protocol: traffic.protocol,
            ports: traffic.ports,
            remote: traffic.remote,
            access,
        };
        let allowed = self
            .allow
            .iter()
            .map(|traffic| rule(traffic, Access::Allow, ALLOW));
        let denied = self
            .deny
            .iter()
            .map(|traffic| rule(traffic, Access::Deny, DENY));
        let rules: Vec<SecurityRule> = allowed.chain(denied).collect();
        (!rules.is_empty()).then(|| SecurityGroup {
            name: "options".to_owned(),
            rules,
        })
    }

    /// The first rule as its option was written, if there is one.
    pub fn first(&self) -> Option<String> {
        let allow = self
            .allow
            .first()
            .map(|traffic| format!("--allow {traffic}"));
        allow.or_else(|| self.deny.first().map(|traffic| format!("--deny {traffic}")))
    }
}

impl TryFrom<String> for Traffic {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Traffic> for String {
    fn from(value: Traffic) -> Self {
        value.to_string()
    }
}

impl FromStr for Traffic {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (what, remote) = match text.split_once('@') {
            None => (text, Remote::Any),
            Some((what, remote)) => (what, parse_remote(remote)?),
        };
        let mut parts = what.splitn(3, ':');
        let direction = match parts.next() {
            Some("in") => Direction::In,
            Some("out") => Direction::Out,
            other => {
                let other = other.unwrap_or_default();
                return Err(format!(
                    "'{other}' is no direction; a rule begins with in or out, like in:tcp:22"
                ));
            }
        };
        let protocol = match parts.next() {
            None => Protocol::Any,
            Some("tcp") => Protocol::Tcp,
            Some("udp") => Protocol::Udp,
            Some("icmp") => Protocol::Icmp,
            Some(other) => return Err(format!("'{other}' is none of tcp, udp and icmp")),
        };
        let ports = parts.next().map(parse_ports).transpose()?;
        if ports.is_some() && protocol == Protocol::Icmp {
            return Err("icmp has no ports".to_owned());
        }
        Ok(Self {
            direction,
            protocol,
            ports,
            remote,
        })
    }
}

fn parse_ports(text: &str) -> Result<PortRange, String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (first.parse::<u16>(), last.parse::<u16>()) {
        (Ok(first), Ok(last)) if (1..=last).contains(&first) => Ok(PortRange { first, last }),
        _ => Err(format!(
            "'{text}' are no ports; give one of 1 to 65535, or a range like 8000-8100"
        )),
    }
}

fn parse_remote(text: &str) -> Result<Remote, String> {
    if text == "network" {
        return Ok(Remote::Network);
    }
    let net: Option<IpNet> = text.parse().ok();
    let host = || text.parse::<IpAddr>().ok().map(IpNet::from);
    net.or_else(host).map(Remote::Prefix).ok_or_else(|| {
        format!("'{text}' is neither an address, a prefix like 10.0.0.0/8, nor 'network'")
    })
}

impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.direction {
            Direction::In => "in",
            Direction::Out => "out",
        })?;
        f.write_str(match self.protocol {
            Protocol::Any => "",
            Protocol::Tcp => ":tcp",
            Protocol::Udp => ":udp",
            Protocol::Icmp => ":icmp",
        })?;
        match self.ports {
            None => {}
            Some(PortRange { first, last }) if first == last => write!(f, ":{first}")?,
            Some(PortRange { first, last }) => write!(f, ":{first}-{last}")?,
        }
        match self.remote {
            Remote::Any => Ok(()),
            Remote::Network => f.write_str("@network"),
            Remote::Prefix(net) => write!(f, "@{net}"),
        }
    }
}

#[cfg(test)]
#[path = "firewall_test.rs"]
mod test;
