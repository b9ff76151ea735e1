use super::*;
use crate::model::{Forward, ForwardProtocol};
use crate::program::{DropReason, LayerName};

const WEB: PortId = PortId(1);
const DATA: PortId = PortId(2);

fn scene() -> (Scene, IpAddr, IpAddr) {
    let network = Network::named("lab", 1500);
    let first = u32::from(network.v4.unwrap().prefix.network());
    let (web, data) = ((first + 2).into(), (first + 3).into());
    let mac = |last| MacAddress([0x52, 0x54, 0, 0, 0, last]);
    let mut ports = [
        Port::new(&network, WEB, "web", mac(2), Some(web)),
        Port::new(&network, DATA, "data", mac(3), Some(data)),
    ];
    ports[0].forwards = vec![Forward {
        protocol: ForwardProtocol::Tcp,
        guest_port: 80,
    }];
    (Scene::new(&network, &ports), web.into(), data.into())
}

fn question(origin: Origin, ip: (IpAddr, IpAddr), port: u16) -> Question {
    Question {
        origin,
        source_mac: None,
        destination_mac: None,
        ip,
        protocol: 6,
        ports: (4000, port),
    }
}

fn verdicts(stops: &[Stop]) -> Vec<(PortId, Verdict)> {
    stops
        .iter()
        .map(|stop| (stop.port, stop.trace.decision.verdict))
        .collect()
}

#[test]
fn a_packet_is_followed_to_the_other_port_and_its_answer_back() {
    let (mut scene, web, data) = scene();
    let stops = scene.follow(WEB, &question(Origin::Guest, (web, data), 5432), true);
    let mac = |last| MacAddress([0x52, 0x54, 0, 0, 0, last]);
    assert_eq!(
        verdicts(&stops),
        [
            (WEB, Verdict::Neighbour(mac(3))),
            (DATA, Verdict::Deliver),
            (DATA, Verdict::Neighbour(mac(2))),
            (WEB, Verdict::Deliver),
        ]
    );
    // Back at the first port it is the conversation that lets it in.
    let firewall = stops[3].trace.steps.last().unwrap();
    assert_eq!(firewall.rule.layer, LayerName::Firewall);
    assert_eq!(firewall.name, "established");
}

#[test]
fn what_comes_from_beyond_needs_a_forward_and_its_answer_none() {
    let (mut scene, web, _) = scene();
    let client = "9.9.9.9".parse().unwrap();
    let stops = scene.follow(WEB, &question(Origin::Uplink, (client, web), 80), true);
    assert_eq!(
        verdicts(&stops),
        [(WEB, Verdict::Deliver), (WEB, Verdict::Uplink)]
    );
    let stops = scene.follow(WEB, &question(Origin::Uplink, (client, web), 81), true);
    assert_eq!(verdicts(&stops), [(WEB, Verdict::Drop(DropReason::Denied))]);
}

#[test]
fn a_spoofed_packet_is_dropped_where_it_is_sent() {
    let (mut scene, web, data) = scene();
    let out = "9.9.9.9".parse().unwrap();
    let stops = scene.follow(WEB, &question(Origin::Guest, (data, out), 80), true);
    let spoofed = Verdict::Drop(DropReason::SpoofedIpv4);
    assert_eq!(verdicts(&stops), [(WEB, spoofed)]);
    let asked = Question {
        source_mac: Some(MacAddress([2; 6])),
        ..question(Origin::Guest, (web, out), 80)
    };
    let spoofed = Verdict::Drop(DropReason::SpoofedMac);
    assert_eq!(verdicts(&scene.follow(WEB, &asked, true)), [(WEB, spoofed)]);
    assert!(scene.follow(PortId(9), &asked, true).is_empty());
}
