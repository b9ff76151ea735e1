//! DHCPv6 (RFC 8415, RFC 3646). The address is the port's, for ever: there is
//! no pool and nothing to remember.

use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use dhcproto::v6::{DhcpOption, DhcpOptions, IAAddr, IANA, Message, MessageType, OptionCode};
use dhcproto::v6::{Status, StatusCode};
use dhcproto::{Decodable, Decoder, Encodable, Encoder, Name};

use super::Question;
use crate::model::{GATEWAY_LINK_LOCAL, GATEWAY_MAC};
use crate::packet::Ip;
use crate::packet::build::{self, Envelope};
use crate::program::DropReason;

/// Seconds an address lasts, and how long it is preferred.
const LEASE: u32 = 86_400;

/// The longest request looked at, in bytes: options nest, and so does the
/// reading of them.
const MAXIMUM_LENGTH: usize = 1500;

/// The most identity associations answered in a message.
const MAXIMUM_ASSOCIATIONS: usize = 8;

/// The server's name: the gateway's Ethernet address (RFC 8415, section 11.4).
fn server_id() -> Vec<u8> {
    [&[0, 3, 0, 1][..], &GATEWAY_MAC.0].concat()
}

/// Answers a DHCPv6 client.
pub(crate) fn dhcp6(
    question: &Question<'_>,
    ip: &Ip,
    answer: &mut Vec<u8>,
) -> Result<(), DropReason> {
    let bytes = question.datagram(ip)?;
    if bytes.len() > MAXIMUM_LENGTH {
        return Err(DropReason::BadRequest);
    }
    let request = Message::decode(&mut Decoder::new(bytes)).map_err(|_| DropReason::BadRequest)?;
    let program = question.program;
    let (Some(subnet), Some(address)) = (program.network.v6, program.port.v6) else {
        return Err(DropReason::Ignored);
    };
    let option = |code| request.opts().get(code);
    let server = match option(OptionCode::ServerId) {
        Some(DhcpOption::ServerId(id)) => Some(id.as_slice()),
        _ => None,
    };
    use MessageType::{Advertise, Confirm, Decline, InformationRequest, Rebind, Release};
    use MessageType::{Renew, Reply, Request, Solicit};
    let ours = server == Some(server_id().as_slice());
    let kind = match request.msg_type() {
        Solicit if option(OptionCode::RapidCommit).is_some() => Reply,
        Solicit => Advertise,
        Request | Renew | Release | Decline if ours => Reply,
        Confirm | Rebind => Reply,
        InformationRequest if server.is_none() || ours => Reply,
        _ => return Err(DropReason::Ignored),
    };

    let mut reply = Message::new_with_id(kind, request.xid());
    let options = reply.opts_mut();
    match option(OptionCode::ClientId) {
        Some(client @ DhcpOption::ClientId(_)) => options.insert(client.clone()),
        _ if request.msg_type() == InformationRequest => {}
        _ => return Err(DropReason::BadRequest),
    }
    options.insert(DhcpOption::ServerId(server_id()));
    if kind == Reply && request.msg_type() == Solicit {
        options.insert(DhcpOption::RapidCommit);
    }
    match request.msg_type() {
        InformationRequest => {}
        Release | Decline => options.insert(status(Status::Success)),
        Confirm => {
            let on_link = associations(&request)
                .flat_map(|association| association.opts.iter())
                .all(|option| match option {
                    DhcpOption::IAAddr(wanted) => subnet.prefix.contains(&wanted.addr),
                    _ => true,
                });
            options.insert(status(if on_link {
                Status::Success
            } else {
                Status::NotOnLink
            }));
        }
        _ => {
            for (index, association) in associations(&request)
                .take(MAXIMUM_ASSOCIATIONS)
                .enumerate()
            {
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

/// The non-temporary addresses a client asks for.
fn associations(request: &Message) -> impl Iterator<Item = &IANA> {
    request.opts().iter().filter_map(|option| match option {
        DhcpOption::IANA(association) => Some(association),
        _ => None,
    })
}

/// What a client gets for an association; addresses it wants beside are
/// taken from it (RFC 8415, section 18.3.4).
fn association_reply(association: &IANA, given: Option<Ipv6Addr>) -> DhcpOption {
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
            let others = association.opts.iter().filter_map(|option| match option {
                DhcpOption::IAAddr(wanted) if wanted.addr != address => Some(wanted.addr),
                _ => None,
            });
            for other in others.take(MAXIMUM_ASSOCIATIONS) {
                opts.insert(lease(other, 0));
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
