use std::time::{Duration, Instant};

use super::*;
use crate::link::Link;
use crate::model::{GATEWAY_MAC, MacAddress};

const MAC: MacAddress = MacAddress([0x52, 0x54, 0, 0, 0, 1]);

fn receive(link: &mut PortLink) -> Vec<u8> {
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut frame = Vec::new();
    while link.receive(&mut frame).is_none() {
        assert!(Instant::now() < deadline, "no frame came");
        std::thread::sleep(Duration::from_millis(1));
    }
    frame
}

#[test]
fn a_guest_learns_the_gateways_address() {
    let network = Network::named("test", 1500);
    let subnet = network.v4.unwrap();
    let address: std::net::Ipv4Addr = (u32::from(subnet.gateway) + 1).into();
    let plane = Plane::start(network.clone(), Box::new(NoUplink::new().unwrap())).unwrap();
    let port = Port::new(&network, PortId(1), "guest", MAC, Some(address));
    let mut link = plane.add_port(port, 1).unwrap().remove(0);

    let mut request = vec![0xff; 6];
    request.extend(MAC.0);
    request.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    request.extend(MAC.0);
    request.extend(address.octets());
    request.extend([0; 6]);
    request.extend(subnet.gateway.octets());
    link.send(&request, Offload::default());
    link.flush();

    let reply = receive(&mut link);
    assert_eq!(MacAddress::read(&reply, 0), Some(MAC));
    assert_eq!(MacAddress::read(&reply, 22), Some(GATEWAY_MAC));
    assert_eq!(reply[28..32], subnet.gateway.octets());
    assert_eq!(plane.counters(PortId(1)).unwrap().unwrap().received, 1);
}
