use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use dhcproto::v4::{DhcpOption, Message, MessageType, OptionCode};
use dhcproto::{Decodable, Decoder, Encodable, Encoder, v6};
use proptest::prelude::*;

use super::*;
use crate::link::Offload;
use crate::model::{GATEWAY_LINK_LOCAL, GATEWAY_MAC, MacAddress, Network, Port, PortId};
use crate::packet::build::{self, Envelope};
use crate::packet::{ethertype, icmp, transport_sum};
use crate::program::compile::compile;
use crate::program::executor::Executor;
use crate::program::{Neighbours, Origin, Verdict};

const MAC: MacAddress = MacAddress([0x52, 0x54, 0, 0, 0, 1]);
const OTHER: MacAddress = MacAddress([0x52, 0x54, 0, 0, 0, 2]);

fn program() -> Program {
    let network = Network::named("test", 9000);
    let gateway = u32::from(network.v4.unwrap().gateway);
    let mut port = Port::new(
        &network,
        PortId(1),
        "guest",
        MAC,
        Some((gateway + 1).into()),
    );
    port.allow_own_ipv6(&network);
    let mut neighbours = Neighbours::default();
    neighbours.insert(IpAddr::V4((gateway + 2).into()), OTHER);
    compile(&network, &port, &neighbours, 1)
}

/// What a guest gets for a frame, after the program has had its say.
fn exchange(program: &Program, frame: &[u8]) -> Result<Vec<u8>, DropReason> {
    let decision =
        Executor::new(program.clone()).decide(0, Origin::Guest, frame, &Offload::default());
    let kind = match decision.verdict {
        Verdict::Answer(kind) => kind,
        Verdict::Drop(reason) => return Err(reason),
        other => panic!("not an answer: {other:?}"),
    };
    let mut reply = Vec::new();
    answer(program, kind, frame, &mut reply)?;
    Ok(reply)
}

/// The payload of a UDP datagram in a frame, all checksums looked at.
fn datagram(frame: &[u8]) -> (Ip, Vec<u8>) {
    let packet = &frame[ETHERNET_LENGTH..];
    let ip = Ip::parse(packet).unwrap();
    assert!(ip.transport_checksum_holds(packet, &Offload::default()));
    (ip, packet[ip.transport + 8..ip.length].to_vec())
}

fn dhcp_frame(message: &Message, source: Ipv4Addr, destination: Ipv4Addr) -> Vec<u8> {
    let mut bytes = Vec::new();
    message.encode(&mut Encoder::new(&mut bytes)).unwrap();
    let mut frame = Vec::new();
    let to = Envelope {
        ethernet: (MAC, MacAddress::BROADCAST),
        ip: (source.into(), destination.into()),
    };
    build::udp(&mut frame, to, (68, 67), &bytes);
    frame
}

fn dhcp(kind: MessageType, wanted: Option<Ipv4Addr>) -> Result<(Ip, Message), DropReason> {
    let zero = Ipv4Addr::UNSPECIFIED;
    let mut message = Message::new_with_id(77, zero, zero, zero, zero, &MAC.0);
    message.opts_mut().insert(DhcpOption::MessageType(kind));
    if let Some(wanted) = wanted {
        message
            .opts_mut()
            .insert(DhcpOption::RequestedIpAddress(wanted));
    }
    let reply = exchange(&program(), &dhcp_frame(&message, zero, Ipv4Addr::BROADCAST))?;
    assert_eq!(MacAddress::read(&reply, 0), Some(MAC));
    let (ip, payload) = datagram(&reply);
    assert_eq!(ip.ports, (67, 68));
    Ok((ip, Message::decode(&mut Decoder::new(&payload)).unwrap()))
}

#[test]
fn a_dhcp_client_gets_the_ports_address_and_all_about_the_network() {
    let program = program();
    let address = program.port.v4.unwrap();
    let gateway = program.network.v4.unwrap().gateway;
    for (ask, expected) in [
        (MessageType::Discover, MessageType::Offer),
        (MessageType::Request, MessageType::Ack),
    ] {
        let (ip, reply) = dhcp(ask, Some(address)).unwrap();
        assert_eq!(ip.destination, IpAddr::V4(address));
        assert_eq!(reply.opts().msg_type(), Some(expected));
        assert_eq!((reply.yiaddr(), reply.xid()), (address, 77));
        let option = |code| reply.opts().get(code).cloned();
        assert_eq!(
            option(OptionCode::Router),
            Some(DhcpOption::Router(vec![gateway]))
        );
        assert_eq!(
            option(OptionCode::DomainNameServer),
            Some(DhcpOption::DomainNameServer(vec![gateway]))
        );
        assert_eq!(
            option(OptionCode::InterfaceMtu),
            Some(DhcpOption::InterfaceMtu(9000))
        );
        assert_eq!(
            option(OptionCode::Hostname),
            Some(DhcpOption::Hostname("guest".into()))
        );
        assert_eq!(
            option(OptionCode::SubnetMask),
            Some(DhcpOption::SubnetMask(Ipv4Addr::new(255, 255, 255, 0)))
        );
    }
}

#[test]
fn a_dhcp_client_that_wants_another_address_is_refused() {
    let (ip, reply) = dhcp(MessageType::Request, Some(Ipv4Addr::new(192, 168, 1, 7))).unwrap();
    assert_eq!(reply.opts().msg_type(), Some(MessageType::Nak));
    assert_eq!(ip.destination, IpAddr::V4(Ipv4Addr::BROADCAST));
    assert!(reply.yiaddr().is_unspecified());
    assert_eq!(dhcp(MessageType::Release, None), Err(DropReason::Ignored));
}

/// A frame with a DHCPv6 message.
fn dhcp6_frame(program: &Program, message: &v6::Message) -> Vec<u8> {
    let mut bytes = Vec::new();
    message.encode(&mut Encoder::new(&mut bytes)).unwrap();
    let mut frame = Vec::new();
    let source = MAC.eui64("fe80::".parse().unwrap());
    let to = Envelope {
        ethernet: (MAC, MacAddress([0x33, 0x33, 0, 1, 0, 2])),
        ip: (source.into(), "ff02::1:2".parse().unwrap()),
    };
    build::udp(&mut frame, to, (546, 547), &bytes);
    let _ = program;
    frame
}

#[test]
fn a_dhcpv6_client_gets_the_ports_address() {
    let program = program();
    let address = program.port.v6.unwrap();
    let mut solicit = v6::Message::new_with_id(v6::MessageType::Solicit, [1, 2, 3]);
    solicit
        .opts_mut()
        .insert(v6::DhcpOption::ClientId(vec![0, 3, 0, 1, 9]));
    solicit.opts_mut().insert(v6::DhcpOption::IANA(v6::IANA {
        id: 5,
        t1: 0,
        t2: 0,
        opts: v6::DhcpOptions::new(),
    }));
    let reply = exchange(&program, &dhcp6_frame(&program, &solicit)).unwrap();
    let (_, payload) = datagram(&reply);
    let advertise = v6::Message::decode(&mut Decoder::new(&payload)).unwrap();
    assert_eq!(advertise.msg_type(), v6::MessageType::Advertise);
    let given = |message: &v6::Message| match message.opts().get(v6::OptionCode::IANA) {
        Some(v6::DhcpOption::IANA(association)) => {
            assert_eq!(association.id, 5);
            match association.opts.get(v6::OptionCode::IAAddr) {
                Some(v6::DhcpOption::IAAddr(given)) => Some(given.addr),
                _ => None,
            }
        }
        _ => None,
    };
    assert_eq!(given(&advertise), Some(address));

    // The server named in the advertisement answers a request that names it.
    let mut request = solicit.clone();
    request.set_msg_type(v6::MessageType::Request);
    assert_eq!(
        exchange(&program, &dhcp6_frame(&program, &request)),
        Err(DropReason::Ignored),
        "a request for no server in particular"
    );
    let server = advertise
        .opts()
        .get(v6::OptionCode::ServerId)
        .unwrap()
        .clone();
    request.opts_mut().insert(server);
    let reply = exchange(&program, &dhcp6_frame(&program, &request)).unwrap();
    let (_, payload) = datagram(&reply);
    let reply = v6::Message::decode(&mut Decoder::new(&payload)).unwrap();
    assert_eq!(reply.msg_type(), v6::MessageType::Reply);
    assert_eq!(given(&reply), Some(address));
}

#[test]
fn deeply_nested_dhcpv6_options_end_nothing() {
    let program = program();
    // Identity associations within each other, as deep as a datagram goes.
    for length in [1400, 8000] {
        let mut bytes = vec![1, 0, 0, 1];
        while bytes.len() + 16 <= length {
            let rest = (length - bytes.len() - 4) as u16;
            bytes.extend([0, 3]);
            bytes.extend(rest.to_be_bytes());
            bytes.extend([0; 12]);
        }
        let mut frame = Vec::new();
        let to = Envelope {
            ethernet: (MAC, MacAddress([0x33, 0x33, 0, 1, 0, 2])),
            ip: (
                MAC.eui64("fe80::".parse().unwrap()).into(),
                "ff02::1:2".parse().unwrap(),
            ),
        };
        build::udp(&mut frame, to, (546, 547), &bytes);
        assert!(exchange(&program, &frame).is_err());
    }
}

fn neighbour_solicitation(source: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
    let mut message = vec![icmp::NEIGHBOUR_SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
    message.extend(target.octets());
    if !source.is_unspecified() {
        message.extend([1, 1]);
        message.extend(MAC.0);
    }
    let mut frame = Vec::new();
    let to = Envelope {
        ethernet: (MAC, MacAddress([0x33, 0x33, 0xff, 0, 0, 1])),
        ip: (source.into(), "ff02::1:ff00:1".parse().unwrap()),
    };
    build::icmpv6(&mut frame, to, 255, &message);
    frame
}

#[test]
fn neighbour_solicitations_for_the_gateway_are_answered() {
    let program = program();
    let own = MAC.eui64("fe80::".parse().unwrap());
    for target in [GATEWAY_LINK_LOCAL, program.network.v6.unwrap().gateway] {
        let reply = exchange(&program, &neighbour_solicitation(own, target)).unwrap();
        let packet = &reply[ETHERNET_LENGTH..];
        let ip = Ip::parse(packet).unwrap();
        assert_eq!((ip.source, ip.destination), (target.into(), own.into()));
        assert_eq!(ip.hop_limit, 255);
        assert_eq!(ip.icmp, Some((icmp::NEIGHBOUR_ADVERTISEMENT, 0)));
        assert_eq!(
            transport_sum(ip.source, ip.destination, 58, &packet[40..]),
            0xffff
        );
        assert_eq!(packet[64..66], [2, 1]);
        assert_eq!(MacAddress::read(packet, 66), Some(GATEWAY_MAC));
    }
}

#[test]
fn a_guest_finds_its_own_address_free_and_the_gateways_taken() {
    let program = program();
    let unspecified = Ipv6Addr::UNSPECIFIED;
    let own = neighbour_solicitation(unspecified, program.port.v6.unwrap());
    assert_eq!(exchange(&program, &own), Err(DropReason::UnknownNeighbour));
    let taken = neighbour_solicitation(unspecified, program.network.v6.unwrap().gateway);
    let reply = exchange(&program, &taken).unwrap();
    let ip = Ip::parse(&reply[ETHERNET_LENGTH..]).unwrap();
    assert_eq!(ip.destination, "ff02::1".parse::<IpAddr>().unwrap());
}

#[test]
fn arp_is_answered_for_the_gateway_and_neighbours_only() {
    let program = program();
    let gateway = program.network.v4.unwrap().gateway;
    let ask = |target: Ipv4Addr| {
        let mut frame = vec![0xff; 6];
        frame.extend(MAC.0);
        frame.extend(ethertype::ARP.to_be_bytes());
        frame.extend([0, 1, 8, 0, 6, 4, 0, 1]);
        frame.extend(MAC.0);
        frame.extend(program.port.v4.unwrap().octets());
        frame.extend([0; 6]);
        frame.extend(target.octets());
        exchange(&program, &frame).map(|reply| MacAddress::read(&reply, 22))
    };
    let offset = |by: u32| Ipv4Addr::from(u32::from(gateway) + by);
    assert_eq!(ask(gateway), Ok(Some(GATEWAY_MAC)));
    assert_eq!(ask(offset(2)), Ok(Some(OTHER)));
    assert_eq!(ask(offset(1)), Err(DropReason::UnknownNeighbour), "its own");
    assert_eq!(ask(offset(3)), Err(DropReason::UnknownNeighbour));
}

#[test]
fn a_router_solicitation_is_answered_with_prefix_mtu_and_dns() {
    let program = program();
    let mut frame = Vec::new();
    let to = Envelope {
        ethernet: (MAC, MacAddress([0x33, 0x33, 0, 0, 0, 2])),
        ip: (Ipv6Addr::UNSPECIFIED.into(), "ff02::2".parse().unwrap()),
    };
    build::icmpv6(
        &mut frame,
        to,
        255,
        &[icmp::ROUTER_SOLICITATION, 0, 0, 0, 0, 0, 0, 0],
    );
    let reply = exchange(&program, &frame).unwrap();
    let packet = &reply[ETHERNET_LENGTH..];
    let ip = Ip::parse(packet).unwrap();
    assert!(ip.transport_checksum_holds(packet, &Offload::default()));
    assert_eq!(ip.icmp, Some((icmp::ROUTER_ADVERTISEMENT, 0)));
    let mut options = &packet[40 + 16..ip.length];
    let mut seen = Vec::new();
    while !options.is_empty() {
        let length = usize::from(options[1]) * 8;
        seen.push(options[0]);
        if options[0] == 3 {
            let prefix: [u8; 16] = options[16..32].try_into().unwrap();
            assert_eq!(
                Ipv6Addr::from(prefix),
                program.network.v6.unwrap().prefix.network()
            );
        }
        if options[0] == 5 {
            assert_eq!(options[4..8], 9000u32.to_be_bytes());
        }
        options = &options[length..];
    }
    assert_eq!(seen, [1, 5, 3, 25, 31]);
}

#[test]
fn the_gateway_echoes_and_refuses() {
    let program = program();
    let own = program.port.v4.unwrap();
    let gateway = program.network.v4.unwrap().gateway;
    let to = Envelope {
        ethernet: (MAC, GATEWAY_MAC),
        ip: (own.into(), gateway.into()),
    };

    let mut ping = Vec::new();
    build::icmpv4(&mut ping, to, &[8, 0, 0, 0, 0x12, 0x34, 0, 1, 9, 9, 9]);
    let reply = exchange(&program, &ping).unwrap();
    let packet = &reply[ETHERNET_LENGTH..];
    let ip = Ip::parse(packet).unwrap();
    assert!(ip.transport_checksum_holds(packet, &Offload::default()));
    assert_eq!(ip.icmp, Some((0, 0)));
    assert_eq!(packet[24..31], [0x12, 0x34, 0, 1, 9, 9, 9]);

    let mut syn = Vec::new();
    build::tcp_control(&mut syn, to, (40000, 22), (1000, 0), 2);
    let reply = exchange(&program, &syn).unwrap();
    let packet = &reply[ETHERNET_LENGTH..];
    let ip = Ip::parse(packet).unwrap();
    assert!(ip.transport_checksum_holds(packet, &Offload::default()));
    assert!(ip.flags.rst() && ip.flags.ack());
    assert_eq!(ip.ports, (22, 40000));
    assert_eq!(packet[28..32], 1001u32.to_be_bytes());

    let mut datagram = Vec::new();
    build::udp(&mut datagram, to, (40000, 123), b"what time is it?");
    let reply = exchange(&program, &datagram).unwrap();
    let ip = Ip::parse(&reply[ETHERNET_LENGTH..]).unwrap();
    assert_eq!(ip.icmp, Some((3, 3)));
    let quoted = ip.quoted(&reply[ETHERNET_LENGTH..]).unwrap();
    assert_eq!(quoted.ports, (40000, 123));
}

proptest! {
    /// Whatever a guest writes into a request, the answer is well-formed or
    /// there is none.
    #[test]
    fn no_request_breaks_an_answer(
        kind in 0usize..4,
        changes in prop::collection::vec((0usize..400, any::<u8>()), 0..20),
        cut in 0usize..400,
    ) {
        let program = program();
        let zero = Ipv4Addr::UNSPECIFIED;
        let mut message = Message::new_with_id(77, zero, zero, zero, zero, &MAC.0);
        message.opts_mut().insert(DhcpOption::MessageType(MessageType::Discover));
        let mut solicit = v6::Message::new_with_id(v6::MessageType::Solicit, [1, 2, 3]);
        solicit.opts_mut().insert(v6::DhcpOption::ClientId(vec![0, 3, 0, 1, 9]));
        let (kind, mut frame) = match kind {
            0 => (Answer::Dhcp4, dhcp_frame(&message, zero, Ipv4Addr::BROADCAST)),
            1 => (Answer::Dhcp6, dhcp6_frame(&program, &solicit)),
            2 => (Answer::Neighbour, neighbour_solicitation(zero.to_ipv6_mapped(), GATEWAY_LINK_LOCAL)),
            _ => (Answer::Refusal, dhcp_frame(&message, zero, Ipv4Addr::BROADCAST)),
        };
        for (at, byte) in changes {
            if let Some(place) = frame.get_mut(at) {
                *place = byte;
            }
        }
        if cut >= 14 {
            frame.truncate(cut);
        }
        let mut reply = Vec::new();
        match answer(&program, kind, &frame, &mut reply) {
            Ok(()) => {
                let packet = &reply[ETHERNET_LENGTH..];
                let ip = Ip::parse(packet).unwrap();
                prop_assert!(ip.transport_checksum_holds(packet, &Offload::default()));
            }
            Err(_) => prop_assert!(reply.is_empty()),
        }
    }
}

#[test]
fn options_of_impossible_lengths_end_nothing() {
    // Found by fuzzing: dhcproto's decoder asserts the lengths of these.
    let zero = Ipv4Addr::UNSPECIFIED;
    let mut message = Message::new_with_id(77, zero, zero, zero, zero, &MAC.0);
    message
        .opts_mut()
        .insert(DhcpOption::MessageType(MessageType::Discover));
    let mut bytes = Vec::new();
    message.encode(&mut Encoder::new(&mut bytes)).unwrap();
    while bytes.last() != Some(&255) {
        bytes.pop();
    }
    bytes.pop();
    bytes.extend([151, 0, 153, 1, 0, 81, 0, 50, 3, 1, 2, 3, 54, 0, 255]);
    let mut frame = Vec::new();
    let to = Envelope {
        ethernet: (MAC, MacAddress::BROADCAST),
        ip: (zero.into(), Ipv4Addr::BROADCAST.into()),
    };
    build::udp(&mut frame, to, (68, 67), &bytes);
    let reply = exchange(&program(), &frame).unwrap();
    let (_, payload) = datagram(&reply);
    let offer = Message::decode(&mut Decoder::new(&payload)).unwrap();
    assert_eq!(offer.opts().msg_type(), Some(MessageType::Offer));
}
