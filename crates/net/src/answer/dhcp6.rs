//! DHCPv6 (RFC 8415, RFC 3646). The address is the port's, for ever: there is
//! no pool and nothing to remember.
//!
//! Replies are written by dhcproto. Requests are not read by it, as in
//! [`super::dhcp4`]; and its decoder follows nested options as deep as a guest
//! likes.

use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use dhcproto::v6::{DhcpOption, DhcpOptions, IAAddr, IANA, Message, MessageType};
use dhcproto::v6::{Status, StatusCode};
use dhcproto::{Encodable, Encoder, Name};

use super::Question;
use crate::model::{GATEWAY_LINK_LOCAL, GATEWAY_MAC};
use crate::packet::Ip;
use crate::packet::build::{self, Envelope};
use crate::program::DropReason;

/// Seconds an address lasts, and how long it is preferred.
const LEASE: u32 = 86_400;

/// The longest name a client may have, in bytes (RFC 8415, section 11.1).
const MAXIMUM_DUID: usize = 130;

/// The most identity associations answered in a message, and the most
/// addresses in one.
const MAXIMUM_ASSOCIATIONS: usize = 8;

/// The server's name: the gateway's Ethernet address (RFC 8415, section 11.4).
fn server_id() -> Vec<u8> {
    [&[0, 3, 0, 1][..], &GATEWAY_MAC.0].concat()
}

/// What of a request matters here.
struct Request<'a> {
    kind: MessageType,
    xid: [u8; 3],
    client: Option<&'a [u8]>,
    server: Option<&'a [u8]>,
    rapid_commit: bool,
    associations: Vec<Association>,
}

/// An identity association for non-temporary addresses, with the addresses
/// the client has or wants.
struct Association {
    id: u32,
    addresses: Vec<Ipv6Addr>,
}

/// Options of a code, a length and a value (RFC 8415, section 21.1); ends at
/// the first that is cut off.
fn options(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (header, rest) = bytes.split_first_chunk::<4>()?;
        let [a, b, c, d] = *header;
        let (value, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes([c, d])))?;
        bytes = rest;
        Some((u16::from_be_bytes([a, b]), value))
    })
}

impl<'a> Request<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        const CLIENT_ID: u16 = 1;
        const SERVER_ID: u16 = 2;
        const IA_NA: u16 = 3;
        const RAPID_COMMIT: u16 = 14;
        let (header, rest) = bytes.split_first_chunk::<4>()?;
        let [kind, a, b, c] = *header;
        let mut request = Self {
            kind: message_type(kind)?,
            xid: [a, b, c],
            client: None,
            server: None,
            rapid_commit: false,
            associations: Vec::new(),
        };
        for (code, value) in options(rest) {
            match code {
                CLIENT_ID if value.len() <= MAXIMUM_DUID => request.client = Some(value),
                CLIENT_ID => return None,
                SERVER_ID => request.server = Some(value),
                RAPID_COMMIT => request.rapid_commit = true,
                IA_NA if request.associations.len() < MAXIMUM_ASSOCIATIONS => {
                    request.associations.extend(Association::parse(value));
                }
                _ => {}
            }
        }
        Some(request)
    }
}

/// What clients send (RFC 8415, section 7.3).
fn message_type(number: u8) -> Option<MessageType> {
    Some(match number {
        1 => MessageType::Solicit,
        3 => MessageType::Request,
        4 => MessageType::Confirm,
        5 => MessageType::Renew,
        6 => MessageType::Rebind,
        8 => MessageType::Release,
        9 => MessageType::Decline,
        11 => MessageType::InformationRequest,
        _ => return None,
    })
}

impl Association {
    fn parse(value: &[u8]) -> Option<Self> {
        const IA_ADDRESS: u16 = 5;
        // The identifier, two times, options.
        let (header, rest) = value.split_first_chunk::<12>()?;
        let addresses = options(rest)
            .filter(|(code, _)| *code == IA_ADDRESS)
            .filter_map(|(_, value)| value.first_chunk::<16>().copied().map(Ipv6Addr::from));
        Some(Self {
            id: u32::from_be_bytes([header[0], header[1], header[2], header[3]]),
            addresses: addresses.take(MAXIMUM_ASSOCIATIONS).collect(),
        })
    }
}

/// Answers a DHCPv6 client.
pub(crate) fn dhcp6(
    question: &Question<'_>,
    ip: &Ip,
    answer: &mut Vec<u8>,
) -> Result<(), DropReason> {
    use MessageType::{Advertise, Confirm, Decline, InformationRequest, Rebind, Release};
    use MessageType::{Renew, Reply, Request as Ask, Solicit};
    let request = Request::parse(question.datagram(ip)?).ok_or(DropReason::BadRequest)?;
    let program = question.program;
    let (Some(subnet), Some(address)) = (program.network.v6, program.port.v6) else {
        return Err(DropReason::Ignored);
    };
    let ours = request.server == Some(server_id().as_slice());
    let kind = match request.kind {
        Solicit if request.rapid_commit => Reply,
        Solicit => Advertise,
        Ask | Renew | Release | Decline if ours => Reply,
        Confirm | Rebind => Reply,
        InformationRequest if request.server.is_none() || ours => Reply,
        _ => return Err(DropReason::Ignored),
    };

    let mut reply = Message::new_with_id(kind, request.xid);
    let options = reply.opts_mut();
    match request.client {
        Some(client) => options.insert(DhcpOption::ClientId(client.to_vec())),
        None if request.kind == InformationRequest => {}
        None => return Err(DropReason::BadRequest),
    }
    options.insert(DhcpOption::ServerId(server_id()));
    if kind == Reply && request.kind == Solicit {
        options.insert(DhcpOption::RapidCommit);
    }
    match request.kind {
        InformationRequest => {}
        Release | Decline => options.insert(status(Status::Success)),
        Confirm => {
            let on_link = request
                .associations
                .iter()
                .flat_map(|association| &association.addresses)
                .all(|wanted| subnet.prefix.contains(wanted));
            options.insert(status(if on_link {
                Status::Success
            } else {
                Status::NotOnLink
            }));
        }
        _ => {
            for (index, association) in request.associations.iter().enumerate() {
                // There is one address: the first association has it.
                let given = (index == 0).then_some(address);
                options.insert(association_reply(association, given));
            }
        }
    }
    options.insert(DhcpOption::DomainNameServers(vec![subnet.gateway]));
    if let Ok(domain) = Name::from_str(&program.network.domain)
        && !program.network.domain.is_empty()
    {
        options.insert(DhcpOption::DomainSearchList(vec![domain]));
    }
    let mut bytes = Vec::with_capacity(256);
    reply
        .encode(&mut Encoder::new(&mut bytes))
        .map_err(|_| DropReason::BadRequest)?;
    let to = Envelope {
        ethernet: (GATEWAY_MAC, question.ethernet.source),
        ip: (IpAddr::V6(GATEWAY_LINK_LOCAL), ip.source),
    };
    build::udp(answer, to, (547, 546), &bytes);
    Ok(())
}

fn status(status: Status) -> DhcpOption {
    DhcpOption::StatusCode(StatusCode {
        status,
        msg: String::new(),
    })
}

/// What a client gets for an association; addresses it wants beside are
/// taken from it (RFC 8415, section 18.3.4).
fn association_reply(association: &Association, given: Option<Ipv6Addr>) -> DhcpOption {
    let lease = |addr, seconds| {
        DhcpOption::IAAddr(IAAddr {
            addr,
            preferred_life: seconds,
            valid_life: seconds,
            opts: DhcpOptions::new(),
        })
    };
    let mut opts = DhcpOptions::new();
    match given {
        Some(address) => {
            opts.insert(lease(address, LEASE));
            let others = association
                .addresses
                .iter()
                .filter(|wanted| **wanted != address);
            for other in others {
                opts.insert(lease(*other, 0));
            }
        }
        None => opts.insert(status(Status::NoAddrsAvail)),
    }
    DhcpOption::IANA(IANA {
        id: association.id,
        t1: LEASE / 2,
        t2: LEASE / 8 * 7,
        opts,
    })
}
