use proptest::prelude::*;
use smoltcp::wire::DhcpOption;

use super::*;

const MAC: EthernetAddress = EthernetAddress([2, 0, 0, 0, 0, 1]);

pub(in crate::boot) fn lease() -> Lease {
    Lease {
        address: Ipv4Addr::new(10, 0, 0, 9),
        mask: Ipv4Addr::new(255, 255, 255, 0),
        router: Some(Ipv4Addr::new(10, 0, 0, 1)),
        dns: vec![Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2)],
        domain: Some("vm.internal".into()),
        mtu: Some(9000),
        server: Ipv4Addr::new(10, 0, 0, 1),
    }
}

fn client() -> Client {
    Client {
        transaction: 0x1234_5678,
        hardware_address: MAC,
        began: Instant::now(),
    }
}

/// What a server would answer.
fn answer(kind: DhcpMessageType, change: impl FnOnce(&mut DhcpRepr<'_>)) -> Vec<u8> {
    let lease = lease();
    let options = [
        DhcpOption {
            kind: OPTION_DOMAIN,
            data: b"vm.internal",
        },
        DhcpOption {
            kind: OPTION_MTU,
            data: &[0x23, 0x28],
        },
    ];
    let mut repr = DhcpRepr {
        message_type: kind,
        transaction_id: 0x1234_5678,
        secs: 0,
        client_hardware_address: MAC,
        client_ip: Ipv4Addr::UNSPECIFIED,
        your_ip: lease.address,
        server_ip: Ipv4Addr::UNSPECIFIED,
        router: lease.router,
        subnet_mask: Some(lease.mask),
        relay_agent_ip: Ipv4Addr::UNSPECIFIED,
        broadcast: true,
        requested_ip: None,
        client_identifier: None,
        server_identifier: Some(lease.server),
        parameter_request_list: None,
        dns_servers: Some(lease.dns.iter().copied().collect()),
        max_size: None,
        lease_duration: Some(3600),
        renew_duration: None,
        rebind_duration: None,
        additional_options: &options,
    };
    change(&mut repr);
    let mut bytes = vec![0; repr.buffer_len()];
    repr.emit(&mut DhcpPacket::new_unchecked(&mut bytes))
        .unwrap();
    bytes
}

#[test]
fn a_request_asks_for_what_was_offered() {
    let client = client();
    let discover = client.message(None).unwrap();
    let packet = DhcpPacket::new_checked(&discover[..]).unwrap();
    let discover = DhcpRepr::parse(&packet).unwrap();
    assert_eq!(discover.message_type, DhcpMessageType::Discover);
    assert!(discover.broadcast);

    let (kind, offer) = client
        .parse(&answer(DhcpMessageType::Offer, |_| {}))
        .unwrap();
    assert_eq!((kind, &offer), (DhcpMessageType::Offer, &lease()));
    let request = client.message(Some(&offer)).unwrap();
    let packet = DhcpPacket::new_checked(&request[..]).unwrap();
    let request = DhcpRepr::parse(&packet).unwrap();
    assert_eq!(request.message_type, DhcpMessageType::Request);
    assert_eq!(request.requested_ip, Some(offer.address));
    assert_eq!(request.server_identifier, Some(offer.server));
}

#[test]
fn answers_to_others_and_senseless_ones_are_ignored() {
    let ignored = |change: fn(&mut DhcpRepr<'_>)| {
        let bytes = answer(DhcpMessageType::Offer, change);
        assert_eq!(client().parse(&bytes), None);
    };
    ignored(|repr| repr.transaction_id = 1);
    ignored(|repr| repr.client_hardware_address = EthernetAddress([2, 0, 0, 0, 0, 2]));
    ignored(|repr| repr.your_ip = Ipv4Addr::UNSPECIFIED);
    ignored(|repr| repr.your_ip = Ipv4Addr::LOCALHOST);
    ignored(|repr| repr.server_identifier = None);
    ignored(|repr| repr.subnet_mask = Some(Ipv4Addr::new(255, 0, 255, 0)));
}

#[test]
fn a_domain_can_not_smuggle_lines_in() {
    assert_eq!(domain(b"vm.internal\0"), Some("vm.internal".into()));
    for wrong in [&b""[..], b"a\nnameserver 6.6.6.6", b"a b", b"\xff"] {
        assert_eq!(domain(wrong), None);
    }
}

proptest! {
    #[test]
    fn any_bytes_are_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        client().parse(&bytes);
    }

    #[test]
    fn a_damaged_answer_is_no_panic(at in 0usize..300, byte in any::<u8>()) {
        let mut bytes = answer(DhcpMessageType::Ack, |_| {});
        let at = at % bytes.len();
        bytes[at] = byte;
        if let Some((_, lease)) = client().parse(&bytes) {
            prop_assert!(lease.domain.is_none_or(|domain| !domain.contains('\n')));
        }
    }
}
