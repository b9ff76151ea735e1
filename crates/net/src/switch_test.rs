use super::*;
use crate::model::{Forward, ForwardProtocol};
use crate::packet::build::{self, Envelope};

/// Writes down where everything goes.
#[derive(Default)]
struct Record {
    guests: Vec<(PortId, Vec<u8>, Offload)>,
    uplink: Vec<(PortId, Vec<u8>, Offload)>,
    services: Vec<PortId>,
    peers: Vec<(Option<PeerId>, Vec<u8>)>,
}

impl Outlets for Record {
    fn guest(
        &mut self,
        port: PortId,
        header: [u8; ETHERNET_LENGTH],
        packet: &[u8],
        offload: Offload,
    ) {
        self.guests
            .push((port, [&header, packet].concat(), offload));
    }
    fn uplink(&mut self, port: PortId, packet: &[u8], offload: Offload) {
        self.uplink.push((port, packet.to_vec(), offload));
    }
    fn service(
        &mut self,
        port: PortId,
        _service: Service,
        _frame: &[u8],
        _offload: Offload,
    ) -> bool {
        self.services.push(port);
        self.services.len() <= BUSY
    }
    fn peer(&mut self, to: Option<PeerId>, frame: &[u8], _offload: Offload) -> bool {
        self.peers.push((to, frame.to_vec()));
        true
    }
}

/// How many requests the services of these tests take.
const BUSY: usize = 100;

const A: PortId = PortId(1);
const B: PortId = PortId(2);

fn mac(last: u8) -> MacAddress {
    MacAddress([0x52, 0x54, 0, 0, 0, last])
}

fn network() -> Network {
    let mut network = Network::named("lab", 1500);
    network.v4.as_mut().unwrap().prefix = "10.0.0.0/24".parse().unwrap();
    network.v4.as_mut().unwrap().gateway = "10.0.0.1".parse().unwrap();
    network
}

fn port(id: PortId, last: u8) -> Port {
    let address = [10, 0, 0, last].into();
    Port::new(
        &network(),
        id,
        &format!("guest{last}"),
        mac(last),
        Some(address),
    )
}

fn switch() -> Switch {
    let mut switch = Switch::new(network());
    switch.set_port(port(A, 2)).unwrap();
    switch.set_port(port(B, 3)).unwrap();
    switch
}

fn datagram(macs: (MacAddress, MacAddress), ips: ([u8; 4], [u8; 4])) -> Vec<u8> {
    let mut frame = Vec::new();
    let to = Envelope {
        ethernet: macs,
        ip: (ips.0.into(), ips.1.into()),
    };
    build::udp(&mut frame, to, (1000, 2000), b"hello");
    frame
}

fn send(switch: &mut Switch, frame: &[u8]) -> Record {
    let mut record = Record::default();
    switch.from_guest(0, A, &mut frame.to_vec(), Offload::default(), &mut record);
    record
}

#[test]
fn ports_reach_each_other_straight_and_by_the_gateway() {
    let mut switch = switch();
    for to in [mac(3), GATEWAY_MAC] {
        let record = send(
            &mut switch,
            &datagram((mac(2), to), ([10, 0, 0, 2], [10, 0, 0, 3])),
        );
        let [(port, frame, _)] = record.guests.as_slice() else {
            panic!("{:?}", record.guests)
        };
        assert_eq!(*port, B);
        assert_eq!(Ethernet::parse(frame).unwrap().destination, mac(3));
    }
    assert_eq!(switch.counters(B).unwrap().received, 2);
}

#[test]
fn a_known_address_is_never_flooded_and_a_group_reaches_all_others() {
    let mut switch = switch();
    switch.set_port(port(PortId(3), 4)).unwrap();
    let record = send(
        &mut switch,
        &datagram((mac(2), mac(3)), ([10, 0, 0, 2], [10, 0, 0, 3])),
    );
    assert_eq!((record.guests.len(), record.peers.len()), (1, 0));
    let group = MacAddress([1, 0, 0x5e, 0, 0, 0xfb]);
    let record = send(
        &mut switch,
        &datagram((mac(2), group), ([10, 0, 0, 2], [224, 0, 0, 251])),
    );
    let ports: Vec<PortId> = record.guests.iter().map(|(port, ..)| *port).collect();
    assert_eq!(ports, [B, PortId(3)]);
    assert_eq!(record.peers.len(), 1);
}

#[test]
fn what_leaves_is_cut_to_the_ip_packet_and_what_comes_gets_a_header() {
    let mut switch = switch();
    let mut frame = datagram((mac(2), GATEWAY_MAC), ([10, 0, 0, 2], [9, 9, 9, 9]));
    let length = frame.len() - ETHERNET_LENGTH;
    frame.resize(60, 0);
    let offload = Offload {
        checksum: Some(PartialChecksum {
            start: 34,
            offset: 6,
        }),
        ..Offload::default()
    };
    let mut record = Record::default();
    switch.from_guest(0, A, &mut frame, offload, &mut record);
    let (_, packet, offload) = record.uplink.pop().unwrap();
    assert_eq!(packet.len(), length);
    assert_eq!(
        offload.checksum,
        Some(PartialChecksum {
            start: 20,
            offset: 6
        })
    );

    let mut answer = Vec::new();
    let to = Envelope {
        ethernet: (GATEWAY_MAC, mac(2)),
        ip: ([9, 9, 9, 9].into(), [10, 0, 0, 2].into()),
    };
    build::udp(&mut answer, to, (2000, 1000), b"yes?");
    switch.from_uplink(1, A, &answer[ETHERNET_LENGTH..], offload, &mut record);
    let (port, frame, offload) = record.guests.pop().unwrap();
    assert_eq!((port, &frame), (A, &answer));
    assert_eq!(
        offload.checksum,
        Some(PartialChecksum {
            start: 34,
            offset: 6
        })
    );
}

#[test]
fn drops_are_counted_with_their_reason() {
    let mut switch = switch();
    send(
        &mut switch,
        &datagram((mac(9), GATEWAY_MAC), ([10, 0, 0, 2], [9, 9, 9, 9])),
    );
    send(
        &mut switch,
        &datagram((mac(2), GATEWAY_MAC), ([10, 0, 0, 9], [9, 9, 9, 9])),
    );
    send(&mut switch, &[]);
    let mut record = Record::default();
    switch.from_uplink(0, A, &[0x45], Offload::default(), &mut record);
    let counters = switch.counters(A).unwrap();
    for reason in [
        DropReason::SpoofedMac,
        DropReason::SpoofedIpv4,
        DropReason::Truncated,
    ] {
        assert_eq!(counters.dropped(Direction::Out, reason), 1, "{reason}");
    }
    assert_eq!(counters.dropped(Direction::In, DropReason::Truncated), 1);
}

fn peer_port(last: u8) -> PeerPort {
    PeerPort {
        name: "far".into(),
        mac: mac(last),
        addresses: vec![[10, 0, 0, last].into()],
    }
}

#[test]
fn peers_are_reached_and_only_speak_for_themselves() {
    let mut switch = switch();
    let (first, second) = (PeerId(1), PeerId(2));
    switch.set_peer(first, vec![peer_port(7)]);
    switch.set_peer(second, vec![peer_port(8)]);
    let record = send(
        &mut switch,
        &datagram((mac(2), mac(7)), ([10, 0, 0, 2], [10, 0, 0, 7])),
    );
    assert_eq!(record.peers[0].0, Some(first));

    let back = datagram((mac(7), mac(2)), ([10, 0, 0, 7], [10, 0, 0, 2]));
    let mut record = Record::default();
    switch.from_peer(0, second, &back, Offload::default(), &mut record);
    assert!(record.guests.is_empty(), "a frame of another peer's port");
    switch.from_peer(0, first, &back, Offload::default(), &mut record);
    assert_eq!(record.guests.len(), 1);

    switch.set_peer(first, Vec::new());
    switch.from_peer(0, first, &back, Offload::default(), &mut record);
    assert_eq!(record.guests.len(), 1, "a peer that is gone");
}

#[test]
fn an_address_is_one_ports_only() {
    let mut switch = switch();
    let mut same_ip = port(PortId(3), 4);
    same_ip.v4 = Some([10, 0, 0, 3].into());
    let error = switch.set_port(same_ip).unwrap_err();
    assert!(error.to_string().contains("guest3"), "{error}");
    let mut same_mac = port(PortId(3), 4);
    same_mac.mac = mac(2);
    assert!(matches!(
        switch.set_port(same_mac),
        Err(SwitchError::Taken(..))
    ));
    for bad in [[10, 0, 0, 1], [10, 0, 0, 255], [10, 0, 1, 4], [10, 0, 0, 0]] {
        let mut elsewhere = port(PortId(3), 4);
        elsewhere.v4 = Some(bad.into());
        assert!(
            matches!(
                switch.set_port(elsewhere),
                Err(SwitchError::NotOnNetwork(..))
            ),
            "{bad:?}"
        );
    }
    // A peer that claims an address of ours gets nothing for it.
    switch.set_peer(PeerId(1), vec![peer_port(3), peer_port(7)]);
    let macs: Vec<MacAddress> = switch.peer_ports().map(|port| port.mac).collect();
    assert_eq!(macs, [mac(7)]);
}

#[test]
fn a_trace_follows_to_the_other_port() {
    let mut switch = switch();
    let mut closed = port(B, 3);
    closed.groups.clear();
    closed.forwards = vec![Forward {
        protocol: ForwardProtocol::Tcp,
        guest_port: 443,
    }];
    switch.set_port(closed).unwrap();
    let traces = switch
        .trace_to(A, 6, "10.0.0.3:443".parse().unwrap())
        .unwrap();
    let verdicts: Vec<Verdict> = traces
        .iter()
        .map(|(_, trace)| trace.decision.verdict)
        .collect();
    assert_eq!(
        verdicts,
        [
            Verdict::Neighbour(mac(3)),
            Verdict::Drop(DropReason::Denied)
        ]
    );
    let traces = switch.trace_to(A, 1, "9.9.9.9:0".parse().unwrap()).unwrap();
    assert_eq!(traces[0].1.decision.verdict, Verdict::Uplink);
    assert_eq!(switch.counters(A).unwrap().sent, 0, "nothing was sent");
}
