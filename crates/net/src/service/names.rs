//! DNS for the network's own names (RFC 1035). Everything else is for the
//! host's resolvers ([`super::resolver`]).

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, PTR};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use crate::model::Network;

/// Seconds a guest may believe an address: instances come and go.
const TIME_TO_LIVE: u32 = 5;

/// Who is called what on a network.
#[derive(Clone, Debug, Default)]
pub struct Names {
    /// In lower case, without the domain.
    addresses: HashMap<String, Vec<IpAddr>>,
    /// The domain, in lower case, without dots around it.
    domain: String,
    prefixes: Vec<ipnet::IpNet>,
}

/// What to do with a query.
#[derive(Debug, PartialEq, Eq)]
pub enum Answered {
    /// This is the answer.
    Here(Vec<u8>),
    /// The network doesn't know: ask the host's resolvers.
    Elsewhere,
    /// It is no query.
    Nonsense,
}

impl Names {
    /// A network's names: each instance's addresses. Later names don't replace
    /// earlier ones.
    pub fn new<'a>(
        network: &Network,
        instances: impl Iterator<Item = (&'a str, Vec<IpAddr>)>,
    ) -> Self {
        let mut names = Self {
            addresses: HashMap::new(),
            domain: network.domain.trim_matches('.').to_lowercase(),
            prefixes: Vec::new(),
        };
        names
            .prefixes
            .extend(network.v4.map(|v4| ipnet::IpNet::V4(v4.prefix)));
        names
            .prefixes
            .extend(network.v6.map(|v6| ipnet::IpNet::V6(v6.prefix)));
        let gateways = network.v4.map(|v4| v4.gateway.into());
        let gateways = gateways
            .into_iter()
            .chain(network.v6.map(|v6| v6.gateway.into()));
        names
            .addresses
            .insert("_gateway".to_owned(), gateways.collect());
        for (name, addresses) in instances.filter(|(name, _)| !name.is_empty()) {
            // Link-local addresses mean nothing without an interface.
            let global = addresses.into_iter().filter(|ip| match ip {
                IpAddr::V4(_) => true,
                IpAddr::V6(v6) => v6.segments()[0] != 0xfe80,
            });
            names
                .addresses
                .entry(name.to_lowercase())
                .or_insert_with(|| global.collect());
        }
        names
    }

    /// Answers a query, if it is about this network.
    pub fn answer(&self, query: &[u8]) -> Answered {
        let Ok(message) = Message::from_vec(query) else {
            return Answered::Nonsense;
        };
        if message.metadata.message_type != MessageType::Query {
            return Answered::Nonsense;
        }
        let [question] = message.queries.as_slice() else {
            return Answered::Nonsense;
        };
        if message.metadata.op_code != OpCode::Query || question.query_class() != DNSClass::IN {
            return Answered::Elsewhere;
        }
        let Some(found) = self.find(question.name(), question.query_type()) else {
            return Answered::Elsewhere;
        };
        let mut reply = Message::response(message.metadata.id, OpCode::Query);
        reply.metadata.recursion_desired = message.metadata.recursion_desired;
        reply.metadata.recursion_available = true;
        reply.metadata.authoritative = true;
        reply.queries = message.queries.clone();
        match found {
            Found::Records(records) => {
                for data in records {
                    let name = question.name().clone();
                    reply.add_answer(Record::from_rdata(name, TIME_TO_LIVE, data));
                }
            }
            Found::NoSuchName => reply.metadata.response_code = ResponseCode::NXDomain,
        }
        reply.to_vec().map_or(Answered::Nonsense, Answered::Here)
    }

    fn find(&self, name: &Name, kind: RecordType) -> Option<Found> {
        let text = name.to_ascii().to_lowercase();
        let text = text.trim_end_matches('.');
        if text.ends_with(".arpa") {
            return self.find_reverse(name, kind);
        }
        let (label, in_domain) = match text.strip_suffix(&self.domain) {
            Some("") if !self.domain.is_empty() => return Some(Found::Records(Vec::new())),
            Some(rest) if rest.ends_with('.') => (rest.trim_end_matches('.'), true),
            _ => (text, false),
        };
        let Some(addresses) = self.addresses.get(label) else {
            return in_domain.then_some(Found::NoSuchName);
        };
        let records = addresses
            .iter()
            .filter_map(|address| match (address, kind) {
                (IpAddr::V4(v4), RecordType::A | RecordType::ANY) => Some(RData::A(A(*v4))),
                (IpAddr::V6(v6), RecordType::AAAA | RecordType::ANY) => {
                    Some(RData::AAAA(AAAA(*v6)))
                }
                _ => None,
            });
        Some(Found::Records(records.collect()))
    }

    fn find_reverse(&self, name: &Name, kind: RecordType) -> Option<Found> {
        let address = reverse_address(&name.to_ascii())?;
        if !self.prefixes.iter().any(|prefix| prefix.contains(&address)) {
            return None;
        }
        let owner = self
            .addresses
            .iter()
            .find(|(_, addresses)| addresses.contains(&address));
        let Some((label, _)) = owner else {
            return Some(Found::NoSuchName);
        };
        let full = if self.domain.is_empty() {
            format!("{label}.")
        } else {
            format!("{label}.{}.", self.domain)
        };
        let records = match (kind, Name::from_ascii(full)) {
            (RecordType::PTR | RecordType::ANY, Ok(name)) => vec![RData::PTR(PTR(name))],
            _ => Vec::new(),
        };
        Some(Found::Records(records))
    }
}

enum Found {
    Records(Vec<RData>),
    NoSuchName,
}

/// The address a reverse name is about (RFC 1035, section 3.5; RFC 3596,
/// section 2.5), if it is a whole one.
fn reverse_address(name: &str) -> Option<IpAddr> {
    let name = name.trim_end_matches('.').to_lowercase();
    if let Some(labels) = name.strip_suffix(".in-addr.arpa") {
        let mut octets = [0u8; 4];
        let mut labels = labels.split('.').rev();
        for octet in &mut octets {
            *octet = labels.next()?.parse().ok()?;
        }
        return labels
            .next()
            .is_none()
            .then(|| Ipv4Addr::from(octets).into());
    }
    let labels = name.strip_suffix(".ip6.arpa")?;
    let mut bits = 0u128;
    let mut count = 0;
    for label in labels.split('.').rev() {
        if label.len() != 1 || count == 32 {
            return None;
        }
        bits = bits << 4 | u128::from(u8::from_str_radix(label, 16).ok()?);
        count += 1;
    }
    (count == 32).then(|| Ipv6Addr::from(bits).into())
}

#[cfg(test)]
#[path = "names_test.rs"]
mod test;
