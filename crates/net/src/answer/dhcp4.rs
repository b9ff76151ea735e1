//! DHCP (RFC 2131, RFC 2132). The address is the port's, for ever: there is
//! no pool and nothing to remember.
//!
//! Replies are written by dhcproto. Requests are not read by it: its decoder
//! asserts what a client may not keep to, and a guest must not end the plane.

use std::net::{IpAddr, Ipv4Addr};

use dhcproto::v4::{DhcpOption, Flags, Message, MessageType, Opcode};
use dhcproto::{Encodable, Encoder};

use super::Question;
use crate::model::GATEWAY_MAC;
use crate::packet::Ip;
use crate::packet::build::{self, Envelope};
use crate::program::DropReason;

/// Seconds a lease lasts.
const LEASE: u32 = 86_400;

/// What of a request matters here.
struct Request {
    xid: u32,
    flags: u16,
    /// The address the client has.
    current: Ipv4Addr,
    kind: MessageType,
    /// The address the client wants.
    requested: Option<Ipv4Addr>,
    /// The server the client means.
    server: Option<Ipv4Addr>,
}

/// The client can't be answered at its own address yet.
const BROADCAST_FLAG: u16 = 0x8000;

impl Request {
    /// Reads a message (RFC 2131, section 2): 236 bytes, the cookie, options
    /// of code, length and value. Of an option given twice the first counts.
    fn parse(bytes: &[u8]) -> Option<Self> {
        const BOOT_REQUEST: u8 = 1;
        const COOKIE: [u8; 4] = [99, 130, 83, 99];
        const OPTIONS: usize = 240;
        let fixed: &[u8; OPTIONS] = bytes.first_chunk()?;
        let v4 = |at: usize| Ipv4Addr::new(fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]);
        let relayed = !v4(24).is_unspecified();
        if fixed[0] != BOOT_REQUEST || fixed[236..] != COOKIE || relayed {
            return None;
        }
        let (mut kind, mut requested, mut server) = (None, None, None);
        let mut options = &bytes[OPTIONS..];
        while let [code, rest @ ..] = options {
            if *code == 0 {
                options = rest;
                continue;
            }
            if *code == 255 {
                break;
            }
            let (length, rest) = rest.split_first()?;
            let (value, rest) = rest.split_at_checked(usize::from(*length))?;
            options = rest;
            let address = || <[u8; 4]>::try_from(value).ok().map(Ipv4Addr::from);
            match code {
                50 => requested = requested.or_else(address),
                53 => kind = kind.or(value.first().copied()),
                54 => server = server.or_else(address),
                _ => {}
            }
        }
        Some(Self {
            xid: u32::from_be_bytes([fixed[4], fixed[5], fixed[6], fixed[7]]),
            flags: u16::from_be_bytes([fixed[10], fixed[11]]),
            current: v4(12),
            kind: MessageType::from(kind?),
            requested,
            server,
        })
    }
}

/// Answers a DHCP client.
pub(crate) fn dhcp4(
    question: &Question<'_>,
    ip: &Ip,
    answer: &mut Vec<u8>,
) -> Result<(), DropReason> {
    let request = Request::parse(question.datagram(ip)?).ok_or(DropReason::BadRequest)?;
    let program = question.program;
    let (Some(subnet), Some(address)) = (program.network.v4, program.port.v4) else {
        return Err(DropReason::Ignored);
    };
    if request
        .server
        .is_some_and(|server| server != subnet.gateway)
    {
        return Err(DropReason::Ignored);
    }
    let current = Some(request.current).filter(|current| !current.is_unspecified());
    let wanted = request.requested.or(current);
    let kind = match request.kind {
        MessageType::Discover => MessageType::Offer,
        MessageType::Request if wanted.is_none_or(|wanted| wanted == address) => MessageType::Ack,
        MessageType::Request => MessageType::Nak,
        MessageType::Inform => MessageType::Ack,
        _ => return Err(DropReason::Ignored),
    };
    let inform = request.kind == MessageType::Inform;

    let leased = if inform || kind == MessageType::Nak {
        Ipv4Addr::UNSPECIFIED
    } else {
        address
    };
    let mut reply = Message::new_with_id(
        request.xid,
        if kind == MessageType::Nak {
            Ipv4Addr::UNSPECIFIED
        } else {
            request.current
        },
        leased,
        Ipv4Addr::UNSPECIFIED,
        Ipv4Addr::UNSPECIFIED,
        &program.port.mac.0,
    );
    reply
        .set_opcode(Opcode::BootReply)
        .set_flags(Flags::new(request.flags));
    let options = reply.opts_mut();
    options.insert(DhcpOption::MessageType(kind));
    options.insert(DhcpOption::ServerIdentifier(subnet.gateway));
    if kind != MessageType::Nak {
        if !inform {
            options.insert(DhcpOption::AddressLeaseTime(LEASE));
            options.insert(DhcpOption::Renewal(LEASE / 2));
            options.insert(DhcpOption::Rebinding(LEASE / 8 * 7));
        }
        options.insert(DhcpOption::SubnetMask(subnet.prefix.netmask()));
        options.insert(DhcpOption::BroadcastAddr(subnet.prefix.broadcast()));
        options.insert(DhcpOption::Router(vec![subnet.gateway]));
        options.insert(DhcpOption::DomainNameServer(vec![subnet.gateway]));
        options.insert(DhcpOption::InterfaceMtu(program.network.mtu));
        if !program.port.name.is_empty() {
            options.insert(DhcpOption::Hostname(program.port.name.clone()));
        }
        if !program.network.domain.is_empty() {
            options.insert(DhcpOption::DomainName(program.network.domain.clone()));
        }
    }
    let mut bytes = Vec::with_capacity(320);
    reply
        .encode(&mut Encoder::new(&mut bytes))
        .map_err(|_| DropReason::BadRequest)?;
    // Some clients take nothing shorter than BOOTP's message (RFC 1542,
    // section 2.1).
    if bytes.len() < 300 {
        bytes.resize(300, 0);
    }

    let destination = match (kind, request.current) {
        (MessageType::Nak, _) => Ipv4Addr::BROADCAST,
        (_, ciaddr) if ciaddr == address => ciaddr,
        _ if request.flags & BROADCAST_FLAG != 0 || inform => Ipv4Addr::BROADCAST,
        _ => address,
    };
    let to = Envelope {
        ethernet: (GATEWAY_MAC, question.ethernet.source),
        ip: (IpAddr::V4(subnet.gateway), IpAddr::V4(destination)),
    };
    build::udp(answer, to, (67, 68), &bytes);
    Ok(())
}
