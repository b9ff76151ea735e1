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
    let plane = Plane::start_with(
        network.clone(),
        Box::new(NoUplink::new().unwrap()),
        Resolvers::Fixed(vec![]),
    )
    .unwrap();
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

/// A guest made of smoltcp: what the plane says to it, a whole stack must
/// understand.
struct Guest {
    link: PortLink,
}

struct In(Vec<u8>);
struct Out<'a>(&'a mut PortLink);

impl smoltcp::phy::RxToken for In {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl smoltcp::phy::TxToken for Out<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        self.0.send(&frame, Offload::default());
        self.0.flush();
        result
    }
}

impl smoltcp::phy::Device for Guest {
    type RxToken<'a> = In;
    type TxToken<'a> = Out<'a>;
    fn receive(&mut self, _now: smoltcp::time::Instant) -> Option<(In, Out<'_>)> {
        let mut frame = Vec::new();
        self.link.receive(&mut frame)?;
        Some((In(frame), Out(&mut self.link)))
    }
    fn transmit(&mut self, _now: smoltcp::time::Instant) -> Option<Out<'_>> {
        Some(Out(&mut self.link))
    }
    fn capabilities(&self) -> smoltcp::phy::DeviceCapabilities {
        let mut capabilities = smoltcp::phy::DeviceCapabilities::default();
        capabilities.medium = smoltcp::phy::Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        capabilities
    }
}

/// One request over TCP by smoltcp; gives all that came back.
fn request(
    guest: &mut Guest,
    (mac, own, gateway): (MacAddress, std::net::IpAddr, std::net::IpAddr),
    to: std::net::SocketAddr,
    bytes: &[u8],
    local_port: u16,
    enough: impl Fn(&[u8]) -> bool,
) -> Vec<u8> {
    use smoltcp::iface::{Config, Interface, SocketSet};
    use smoltcp::socket::tcp;
    use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr};
    let clock = || smoltcp::time::Instant::now();
    let config = Config::new(HardwareAddress::Ethernet(EthernetAddress(mac.0)));
    let mut interface = Interface::new(config, guest, clock());
    interface.update_ip_addrs(|list| {
        let length = if own.is_ipv4() { 24 } else { 64 };
        list.push(IpCidr::new(own.into(), length)).unwrap();
    });
    match gateway {
        std::net::IpAddr::V4(v4) => drop(interface.routes_mut().add_default_ipv4_route(v4)),
        std::net::IpAddr::V6(v6) => drop(interface.routes_mut().add_default_ipv6_route(v6)),
    }
    let mut sockets = SocketSet::new(Vec::new());
    let buffer = || tcp::SocketBuffer::new(vec![0; 65536]);
    let handle = sockets.add(tcp::Socket::new(buffer(), buffer()));
    let socket = sockets.get_mut::<tcp::Socket<'_>>(handle);
    socket
        .connect(interface.context(), (to.ip(), to.port()), local_port)
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    let (mut sent, mut received) = (false, Vec::new());
    loop {
        assert!(Instant::now() < deadline, "no whole answer: {received:?}");
        interface.poll(clock(), guest, &mut sockets);
        let socket = sockets.get_mut::<tcp::Socket<'_>>(handle);
        if socket.can_send() && !sent {
            assert_eq!(socket.send_slice(bytes), Ok(bytes.len()));
            sent = true;
        }
        if socket.can_recv() {
            let _ = socket.recv(|data| {
                received.extend_from_slice(data);
                (data.len(), ())
            });
        }
        if enough(&received) || !socket.is_open() {
            socket.close();
            // Until the other side knows.
            for _ in 0..10 {
                interface.poll(clock(), guest, &mut sockets);
                std::thread::sleep(Duration::from_millis(1));
            }
            return received;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

struct Lab {
    plane: Plane,
    network: Network,
    guest: Guest,
    own: (std::net::Ipv4Addr, std::net::Ipv6Addr),
}

fn lab(resolvers: Resolvers) -> Lab {
    let network = Network::named("test", 1500);
    let address: std::net::Ipv4Addr = (u32::from(network.v4.unwrap().gateway) + 1).into();
    let plane = Plane::start_with(
        network.clone(),
        Box::new(NoUplink::new().unwrap()),
        resolvers,
    )
    .unwrap();
    let port = Port::new(&network, PortId(1), "guest", MAC, Some(address));
    let v6 = port.v6.unwrap();
    let link = plane.add_port(port, 1).unwrap().remove(0);
    Lab {
        plane,
        network,
        guest: Guest { link },
        own: (address, v6),
    }
}

#[test]
fn a_guest_reads_its_metadata_over_both_families() {
    let mut lab = lab(Resolvers::Fixed(vec![]));
    let user_data = vec![b'#'; 40_000];
    lab.plane.set_metadata(
        PortId(1),
        Metadata {
            user_data: Some(user_data.clone()),
            ..Metadata::default()
        },
    );
    let put = "PUT /latest/api/token HTTP/1.1\r\nX-aws-ec2-metadata-token-ttl-seconds: 60\r\n\r\n";
    let ways: [(std::net::IpAddr, std::net::IpAddr, &str); 2] = [
        (
            lab.own.0.into(),
            lab.network.v4.unwrap().gateway.into(),
            "169.254.169.254:80",
        ),
        (
            lab.own.1.into(),
            lab.network.v6.unwrap().gateway.into(),
            "[fd00:ec2::254]:80",
        ),
    ];
    let mut port = 40_000;
    for (own, gateway, to) in ways {
        let to = to.parse().unwrap();
        // More requests than connections: each is closed for good.
        for _ in 0..12 {
            port += 1;
            let whole = |bytes: &[u8]| {
                bytes
                    .windows(4)
                    .position(|four| four == b"\r\n\r\n")
                    .is_some_and(|at| bytes.len() == at + 52)
            };
            let reply = request(
                &mut lab.guest,
                (MAC, own, gateway),
                to,
                put.as_bytes(),
                port,
                whole,
            );
            let reply = String::from_utf8(reply).unwrap();
            assert!(reply.starts_with("HTTP/1.1 200 OK"), "{reply}");
            let token = reply.split("\r\n\r\n").nth(1).unwrap();
            if port % 12 == 0 {
                port += 1;
                let get = format!(
                    "GET /latest/user-data HTTP/1.1\r\nX-aws-ec2-metadata-token: {token}\r\n\r\n"
                );
                let whole = |bytes: &[u8]| bytes.ends_with(b"#") && bytes.len() > 40_000 + 50;
                let data = request(
                    &mut lab.guest,
                    (MAC, own, gateway),
                    to,
                    get.as_bytes(),
                    port,
                    |bytes| {
                        whole(bytes) && bytes.iter().filter(|byte| **byte == b'#').count() == 40_000
                    },
                );
                assert!(data.ends_with(&user_data));
            }
        }
    }
}

fn dns_query(name: &str) -> Vec<u8> {
    use hickory_proto::op::{Message, MessageType, OpCode, Query};
    use hickory_proto::rr::{Name, RecordType};
    let mut query = Message::new(99, MessageType::Query, OpCode::Query);
    query.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    query.to_vec().unwrap()
}

fn udp_to_gateway(lab: &Lab, payload: &[u8]) -> Vec<u8> {
    use crate::packet::build::{self, Envelope};
    let mut frame = Vec::new();
    let to = Envelope {
        ethernet: (MAC, GATEWAY_MAC),
        ip: (lab.own.0.into(), lab.network.v4.unwrap().gateway.into()),
    };
    build::udp(&mut frame, to, (5000, 53), payload);
    frame
}

#[test]
fn dns_answers_for_the_network_and_asks_the_host_for_the_rest() {
    use hickory_proto::op::{Message, ResponseCode};
    let server = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut lab = lab(Resolvers::Fixed(vec![server.local_addr().unwrap()]));

    let frame = udp_to_gateway(&lab, &dns_query("guest.test.internal."));
    lab.guest.link.send(&frame, Offload::default());
    lab.guest.link.flush();
    let reply = Message::from_vec(&receive(&mut lab.guest.link)[42..]).unwrap();
    assert_eq!(reply.answers[0].data.to_string(), lab.own.0.to_string());

    let frame = udp_to_gateway(&lab, &dns_query("example.org."));
    lab.guest.link.send(&frame, Offload::default());
    lab.guest.link.flush();
    let mut buffer = [0; 512];
    let (length, from) = server.recv_from(&mut buffer).unwrap();
    buffer[2] |= 0x80;
    buffer[3] |= 3;
    server.send_to(&buffer[..length], from).unwrap();
    let reply = Message::from_vec(&receive(&mut lab.guest.link)[42..]).unwrap();
    assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(reply.metadata.id, 99);

    // The same over TCP, for the network's own names.
    let query = dns_query("guest.test.internal.");
    let mut bytes = (query.len() as u16).to_be_bytes().to_vec();
    bytes.extend(query);
    let gateway: std::net::IpAddr = lab.network.v4.unwrap().gateway.into();
    let whole = |bytes: &[u8]| {
        bytes.len() > 2 && bytes.len() == 2 + usize::from(u16::from_be_bytes([bytes[0], bytes[1]]))
    };
    let own = lab.own.0.into();
    let reply = request(
        &mut lab.guest,
        (MAC, own, gateway),
        (gateway, 53).into(),
        &bytes,
        45_000,
        whole,
    );
    let reply = Message::from_vec(&reply[2..]).unwrap();
    assert_eq!(reply.answers[0].data.to_string(), lab.own.0.to_string());
}

/// Two planes in two "processes" on one network.
#[test]
fn machines_of_two_processes_reach_each_other_by_name() {
    use hickory_proto::op::Message;
    let networks = tempfile::tempdir().unwrap();
    let start = |name: &str| {
        let member = crate::segment::join(networks.path(), "lab", name, 1500).unwrap();
        let uplink = Box::new(NoUplink::new().unwrap());
        let plane =
            Plane::start_with(member.network.clone(), uplink, Resolvers::Fixed(vec![])).unwrap();
        let port = Port::new(
            &member.network,
            PortId(1),
            name,
            member.lease.mac,
            member.lease.v4,
        );
        let link = plane.add_port(port.clone(), 1).unwrap().remove(0);
        plane.join(member.peers).unwrap();
        (plane, port, link, member.network, member.lock)
    };
    let (_web_plane, web, mut web_link, network, _web_lock) = start("web");
    let (_db_plane, db, db_link, ..) = start("db");
    let gateway: std::net::IpAddr = network.v4.unwrap().gateway.into();

    // By name, as soon as they know of each other.
    let deadline = Instant::now() + Duration::from_secs(10);
    let address = loop {
        let mut frame = Vec::new();
        let to = crate::packet::build::Envelope {
            ethernet: (web.mac, GATEWAY_MAC),
            ip: (web.v4.unwrap().into(), gateway),
        };
        crate::packet::build::udp(&mut frame, to, (5000, 53), &dns_query("db.lab.internal."));
        web_link.send(&frame, Offload::default());
        web_link.flush();
        let reply = Message::from_vec(&receive(&mut web_link)[42..]).unwrap();
        if let Some(record) = reply.answers.first() {
            break record.data.to_string();
        }
        assert!(Instant::now() < deadline, "the name wasn't found");
        std::thread::sleep(Duration::from_millis(5));
    };
    assert_eq!(address, db.v4.unwrap().to_string());

    // A whole TCP exchange between the two, large frames and all.
    let server = std::thread::spawn(move || {
        use smoltcp::iface::{Config, Interface, SocketSet};
        use smoltcp::socket::tcp;
        use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr};
        let clock = || smoltcp::time::Instant::now();
        let mut guest = Guest { link: db_link };
        let config = Config::new(HardwareAddress::Ethernet(EthernetAddress(db.mac.0)));
        let mut interface = Interface::new(config, &mut guest, clock());
        interface.update_ip_addrs(|list| {
            list.push(IpCidr::new(db.v4.unwrap().into(), 24)).unwrap();
        });
        let mut sockets = SocketSet::new(Vec::new());
        let buffer = || tcp::SocketBuffer::new(vec![0; 65536]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.listen(80).unwrap();
        let handle = sockets.add(socket);
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut said = false;
        while Instant::now() < deadline {
            interface.poll(clock(), &mut guest, &mut sockets);
            let socket = sockets.get_mut::<tcp::Socket<'_>>(handle);
            if socket.can_recv() && !said {
                socket.recv(|data| (data.len(), ())).unwrap();
                socket.send_slice(&[b'x'; 30_000]).unwrap();
                said = true;
            }
            if said && !socket.may_recv() {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    let mut guest = Guest { link: web_link };
    let to = std::net::SocketAddr::new(db_address(&address), 80);
    let own = web.v4.unwrap().into();
    let all = |bytes: &[u8]| bytes.len() == 30_000;
    let reply = request(
        &mut guest,
        (web.mac, own, gateway),
        to,
        b"hello",
        41_000,
        all,
    );
    assert_eq!(reply.len(), 30_000);
    server.join().unwrap();
}

fn db_address(text: &str) -> std::net::IpAddr {
    text.parse().unwrap()
}

#[test]
fn a_flooding_guest_stops_nobody() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let network = Network::named("test", 1500);
    let plane = Plane::start(network.clone(), Box::new(NoUplink::new().unwrap())).unwrap();
    let gateway = u32::from(network.v4.unwrap().gateway);
    let good = Port::new(&network, PortId(1), "good", MAC, Some((gateway + 1).into()));
    let bad_mac = MacAddress([0x52, 0x54, 0, 0, 0, 2]);
    let bad = Port::new(
        &network,
        PortId(2),
        "bad",
        bad_mac,
        Some((gateway + 2).into()),
    );
    let mut good_link = plane.add_port(good, 1).unwrap().remove(0);
    let mut bad_link = plane.add_port(bad, 1).unwrap().remove(0);
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    // Broadcasts to the good guest, garbage, queries, connections: never read.
    let flood = std::thread::spawn(move || {
        let own: std::net::IpAddr = std::net::Ipv4Addr::from(gateway + 2).into();
        let to = |mac, ip: std::net::IpAddr| crate::packet::build::Envelope {
            ethernet: (bad_mac, mac),
            ip: (own, ip),
        };
        let target: std::net::IpAddr = std::net::Ipv4Addr::from(gateway).into();
        let mut frames: Vec<Vec<u8>> = vec![vec![0xff; 9000], vec![], vec![0x45; 60]];
        let mut frame = Vec::new();
        let everyone = std::net::Ipv4Addr::BROADCAST.into();
        crate::packet::build::udp(
            &mut frame,
            to(MacAddress::BROADCAST, everyone),
            (1, 9),
            &[0; 1000],
        );
        frames.push(frame);
        let mut frame = Vec::new();
        crate::packet::build::udp(&mut frame, to(GATEWAY_MAC, target), (1, 53), b"nonsense");
        frames.push(frame);
        for port in 0..200 {
            let mut frame = Vec::new();
            let ports = (port, 53);
            crate::packet::build::tcp_control(
                &mut frame,
                to(GATEWAY_MAC, target),
                ports,
                (1, 0),
                2,
            );
            frames.push(frame);
        }
        while !stopped.load(Ordering::Relaxed) {
            for frame in &frames {
                bad_link.send(frame, Offload::default());
            }
            bad_link.flush();
        }
        bad_link
    });
    let begun = Instant::now();
    while plane.counters(PortId(2)).unwrap().unwrap().sent < 1000 {
        assert!(
            begun.elapsed() < Duration::from_secs(20),
            "the flood doesn't arrive"
        );
        std::thread::yield_now();
    }
    let mut frame = Vec::new();
    for round in 0..20u16 {
        let mut ping = Vec::new();
        let to = crate::packet::build::Envelope {
            ethernet: (MAC, GATEWAY_MAC),
            ip: (
                std::net::Ipv4Addr::from(gateway + 1).into(),
                std::net::Ipv4Addr::from(gateway).into(),
            ),
        };
        let [high, low] = round.to_be_bytes();
        crate::packet::build::icmpv4(&mut ping, to, &[8, 0, 0, 0, 7, 7, high, low]);
        let deadline = Instant::now() + Duration::from_secs(20);
        // The flood fills the queue to this guest, too: it reads on, and asks
        // again now and then, as ping does.
        let mut asked = Instant::now() - Duration::from_secs(1);
        loop {
            assert!(Instant::now() < deadline, "no answer in round {round}");
            if asked.elapsed() > Duration::from_millis(200) {
                good_link.send(&ping, Offload::default());
                good_link.flush();
                asked = Instant::now();
            }
            frame.clear();
            match good_link.receive(&mut frame) {
                Some(_) if frame.get(23) == Some(&1) && frame[40..42] == [high, low] => break,
                Some(_) => {}
                None => std::thread::yield_now(),
            }
        }
    }
    stop.store(true, Ordering::Relaxed);
    drop(flood.join().unwrap());
    let counters = plane.counters(PortId(2)).unwrap().unwrap();
    let direction = crate::model::Direction::Out;
    use crate::program::DropReason;
    assert!(counters.dropped(direction, DropReason::SpoofedMac) > 0);
    assert!(counters.dropped(direction, DropReason::Truncated) > 0);
}
