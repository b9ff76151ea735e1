//! DHCP (RFC 2131, RFC 2132). The address is the port's, for ever: there is
//! no pool and nothing to remember.

use std::net::{IpAddr, Ipv4Addr};

use dhcproto::v4::{DhcpOption, Message, MessageType, Opcode, OptionCode};
use dhcproto::{Decodable, Decoder, Encodable, Encoder};

use super::Question;
use crate::model::GATEWAY_MAC;
use crate::packet::Ip;
use crate::packet::build::{self, Envelope};
use crate::program::DropReason;

/// Seconds a lease lasts.
const LEASE: u32 = 86_400;

/// The longest request looked at, in bytes.
const MAXIMUM_LENGTH: usize = 2048;

/// Answers a DHCP client.
pub(crate) fn dhcp4(
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
    let (Some(subnet), Some(address)) = (program.network.v4, program.port.v4) else {
        return Err(DropReason::Ignored);
    };
    if request.opcode() != Opcode::BootRequest || !request.giaddr().is_unspecified() {
        return Err(DropReason::BadRequest);
    }
    let option = |code| request.opts().get(code);
    if let Some(DhcpOption::ServerIdentifier(server)) = option(OptionCode::ServerIdentifier)
        && *server != subnet.gateway
    {
        return Err(DropReason::Ignored);
    }
    let wanted = match option(OptionCode::RequestedIpAddress) {
        Some(DhcpOption::RequestedIpAddress(wanted)) => Some(*wanted),
        _ => Some(request.ciaddr()).filter(|ciaddr| !ciaddr.is_unspecified()),
    };
    let kind = match request.opts().msg_type() {
        Some(MessageType::Discover) => MessageType::Offer,
        Some(MessageType::Request) if wanted.is_none_or(|wanted| wanted == address) => {
            MessageType::Ack
        }
        Some(MessageType::Request) => MessageType::Nak,
        Some(MessageType::Inform) => MessageType::Ack,
        _ => return Err(DropReason::Ignored),
    };
    let inform = request.opts().msg_type() == Some(MessageType::Inform);

    let leased = if inform || kind == MessageType::Nak {
        Ipv4Addr::UNSPECIFIED
    } else {
        address
    };
    let mut reply = Message::new_with_id(
        request.xid(),
        if kind == MessageType::Nak {
            Ipv4Addr::UNSPECIFIED
        } else {
            request.ciaddr()
        },
        leased,
        Ipv4Addr::UNSPECIFIED,
        Ipv4Addr::UNSPECIFIED,
        &program.port.mac.0,
    );
    reply
        .set_opcode(Opcode::BootReply)
        .set_flags(request.flags());
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

    let destination = match (kind, request.ciaddr()) {
        (MessageType::Nak, _) => Ipv4Addr::BROADCAST,
        (_, ciaddr) if ciaddr == address => ciaddr,
        _ if request.flags().broadcast() || inform => Ipv4Addr::BROADCAST,
        _ => address,
    };
    let to = Envelope {
        ethernet: (GATEWAY_MAC, question.ethernet.source),
        ip: (IpAddr::V4(subnet.gateway), IpAddr::V4(destination)),
    };
    build::udp(answer, to, (67, 68), &bytes);
    Ok(())
}
