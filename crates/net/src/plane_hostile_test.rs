//! One guest floods its port with whatever a program, an answer or a service
//! takes; its neighbour must not notice, and what grows must have an end.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::*;
use crate::link::Link;
use crate::model::{Direction, GATEWAY_MAC, MacAddress};
use crate::packet::build::{self, Envelope};
use crate::program::DropReason;
use crate::program::flow::MAXIMUM_FLOWS;

const HOSTILE: PortId = PortId(1);
const QUIET: PortId = PortId(2);
/// Frames of each kind of flood.
const FRAMES: u32 = 20_000;

fn mac(port: PortId) -> MacAddress {
    MacAddress([0x52, 0x54, 0, 0, 0, port.0 as u8])
}

struct Bench {
    plane: Plane,
    hostile: PortLink,
    quiet: PortLink,
    gateway: Ipv4Addr,
    gateway6: IpAddr,
    /// Takes questions and never answers.
    _resolver: UdpSocket,
}

fn bench() -> Bench {
    let network = Network::named("test", 1500);
    let gateway = network.v4.unwrap().gateway;
    let resolver = UdpSocket::bind("127.0.0.1:0").unwrap();
    let plane = Plane::start_with(
        network.clone(),
        Box::new(NoUplink::new().unwrap()),
        Resolvers::Fixed(vec![resolver.local_addr().unwrap()]),
    )
    .unwrap();
    let mut links = [HOSTILE, QUIET].map(|id| {
        let v4 = Ipv4Addr::from(u32::from(gateway) + u32::from(id.0 as u8));
        let port = Port::new(&network, id, &format!("guest{}", id.0), mac(id), Some(v4));
        plane.add_port(port, 1).unwrap().remove(0)
    });
    let [hostile, quiet] = &mut links;
    let placeholder = || {
        let queue = || Arc::new(Queue::new().unwrap());
        PortLink::new(queue(), queue())
    };
    Bench {
        hostile: std::mem::replace(hostile, placeholder()),
        quiet: std::mem::replace(quiet, placeholder()),
        plane,
        gateway,
        gateway6: network.v6.unwrap().gateway.into(),
        _resolver: resolver,
    }
}

/// The address of a port of the bench.
fn address(gateway: Ipv4Addr, port: PortId) -> Ipv4Addr {
    (u32::from(gateway) + u32::from(port.0 as u8)).into()
}

fn arp(port: PortId, gateway: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let mut frame = [[0xff; 6], mac(port).0].concat();
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(mac(port).0);
    frame.extend(address(gateway, port).octets());
    frame.extend([0; 6]);
    frame.extend(target.octets());
    frame
}

/// A question for the address of a name no other question has.
fn dns(number: u32) -> Vec<u8> {
    let mut query = (number as u16).to_be_bytes().to_vec();
    query.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    let label = format!("n{number}");
    query.push(label.len() as u8);
    query.extend(label.bytes());
    query.extend(b"\x07example\0\0\x01\0\x01");
    query
}

/// Asks for the gateway's address until it is told; whether that took less
/// than ten seconds.
fn asks_and_is_told(link: &mut PortLink, gateway: Ipv4Addr) -> bool {
    link.send(&arp(QUIET, gateway, gateway), Offload::default());
    link.flush();
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut frame = Vec::new();
    while Instant::now() < deadline {
        frame.clear();
        if link.receive(&mut frame).is_some() {
            return frame[12..14] == [8, 6] && frame[22..28] == GATEWAY_MAC.0;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    false
}

/// Floods with what `make` makes of numbers, while the neighbour goes about
/// its business; gives the hostile port's counters.
fn flood(make: impl Fn(&Bench, u32) -> Vec<u8> + Sync) -> Counters {
    let mut bench = bench();
    // Frames are made beforehand: the flood is to be faster than the plane.
    let frames: Vec<Vec<u8>> = (0..FRAMES).map(|number| make(&bench, number)).collect();
    let done = AtomicBool::new(false);
    let (hostile, quiet, gateway) = (&mut bench.hostile, &mut bench.quiet, bench.gateway);
    let answered = std::thread::scope(|scope| {
        scope.spawn(|| {
            // It never takes what it gets.
            for frame in &frames {
                hostile.send(frame, Offload::default());
            }
            hostile.flush();
            done.store(true, Ordering::Relaxed);
        });
        let mut answered = 0;
        loop {
            assert!(asks_and_is_told(quiet, gateway), "after {answered} answers");
            answered += 1;
            if done.load(Ordering::Relaxed) {
                return answered;
            }
        }
    });
    // Whatever is left in the queue is taken, too.
    let deadline = Instant::now() + Duration::from_secs(60);
    let counters = loop {
        let counters = bench.plane.counters(HOSTILE).unwrap().unwrap();
        let lost = counters.dropped(Direction::Out, DropReason::QueueFull);
        if counters.sent + lost == u64::from(FRAMES) {
            break counters;
        }
        assert!(Instant::now() < deadline, "{counters:?}");
        std::thread::sleep(Duration::from_millis(5));
    };
    let quiet = bench.plane.counters(QUIET).unwrap().unwrap();
    assert_eq!(quiet.received, answered, "nothing of the flood came here");
    assert_eq!(quiet.drops, [[0; DropReason::COUNT]; 2]);
    counters
}

/// What came of the flood: frames to the guest and drops, by reason.
fn fates(counters: &Counters) -> u64 {
    counters.received + counters.drops[Direction::Out as usize].iter().sum::<u64>()
}

#[test]
fn arp_requests() {
    let counters = flood(|bench, number| {
        let target = u32::from(bench.gateway) & !0xff | number & 0xff;
        arp(HOSTILE, bench.gateway, target.into())
    });
    // Answered, or counted: nobody has the address, or the queue is full.
    assert!(fates(&counters) >= u64::from(FRAMES), "{counters:?}");
}

#[test]
fn neighbour_solicitations() {
    let counters = flood(|bench, number| {
        let mut message = vec![135, 0, 0, 0, 0, 0, 0, 0];
        let prefix = match bench.gateway6 {
            IpAddr::V6(v6) => u128::from(v6) & !0xffff,
            IpAddr::V4(_) => 0,
        };
        message.extend((prefix | u128::from(number)).to_be_bytes());
        message.extend([1, 1]);
        message.extend(mac(HOSTILE).0);
        let own = mac(HOSTILE).eui64("fe80::".parse().unwrap());
        let mut frame = Vec::new();
        let to = Envelope {
            ethernet: (mac(HOSTILE), MacAddress([0x33, 0x33, 0xff, 0, 0, 1])),
            ip: (own.into(), "ff02::1:ff00:1".parse().unwrap()),
        };
        build::icmpv6(&mut frame, to, 255, &message);
        frame
    });
    assert!(fates(&counters) >= u64::from(FRAMES), "{counters:?}");
}

fn envelope(bench: &Bench, target: Ipv4Addr) -> Envelope {
    Envelope {
        ethernet: (mac(HOSTILE), GATEWAY_MAC),
        ip: (address(bench.gateway, HOSTILE).into(), target.into()),
    }
}

#[test]
fn tcp_connections_beyond_and_to_the_gateway() {
    flood(|bench, number| {
        let target = match number % 2 {
            0 => Ipv4Addr::from(0x0808_0000 + number),
            _ => bench.gateway,
        };
        let ports = (1024 + (number / 2) as u16, 53);
        let mut frame = Vec::new();
        build::tcp_control(&mut frame, envelope(bench, target), ports, (number, 0), 2);
        frame
    });
}

#[test]
fn fragments() {
    let counters = flood(|bench, number| {
        let mut frame = Vec::new();
        let to = envelope(bench, (0x0808_0808 + number).into());
        build::udp(&mut frame, to, (1, 2), b"part");
        frame[20] = 0x20;
        frame[24..26].fill(0);
        let sum = crate::packet::Sum::default()
            .bytes(&frame[14..34])
            .checksum();
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        frame
    });
    let dropped = |reason| counters.dropped(Direction::Out, reason);
    let all = dropped(DropReason::Fragment) + dropped(DropReason::QueueFull);
    assert_eq!((all, counters.received), (u64::from(FRAMES), 0));
}

#[test]
fn dhcp_and_dns() {
    for dhcp in [true, false] {
        flood(move |bench, number| {
            let mut frame = Vec::new();
            if dhcp {
                let to = Envelope {
                    ethernet: (mac(HOSTILE), MacAddress::BROADCAST),
                    ip: ([0; 4].into(), [255; 4].into()),
                };
                let mut discover = vec![1, 1, 6, 0];
                discover.extend(number.to_be_bytes());
                discover.extend([0; 20]);
                discover.extend(mac(HOSTILE).0);
                discover.extend([0; 202]);
                discover.extend([99, 130, 83, 99, 53, 1, 1, 255]);
                build::udp(&mut frame, to, (68, 67), &discover);
            } else {
                let ports = (1024 + number as u16 % 60_000, 53);
                let to = envelope(bench, bench.gateway);
                build::udp(&mut frame, to, ports, &dns(number));
            }
            frame
        });
    }
}

#[test]
fn frames_of_no_kind() {
    let counters = flood(|_, number| {
        // Pseudo-random bytes of any length.
        let mut state = number.wrapping_mul(2_654_435_761) | 1;
        (0..number % 200)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 17;
                state ^= state << 5;
                state as u8
            })
            .collect()
    });
    assert_eq!(counters.received, 0);
    assert_eq!(fates(&counters), u64::from(FRAMES), "{counters:?}");
}

#[test]
fn conversations_have_a_limit_that_is_the_ports_own() {
    let network = Network::named("test", 1500);
    let gateway = network.v4.unwrap().gateway;
    let mut switch = crate::switch::Switch::new(network.clone());
    for id in [HOSTILE, QUIET] {
        let v4 = Some(address(gateway, id));
        switch
            .set_port(Port::new(
                &network,
                id,
                &format!("guest{}", id.0),
                mac(id),
                v4,
            ))
            .unwrap();
    }
    let (wake, _) = (NoUplink::new().unwrap(), ());
    let mut outlets = super::outlets::PlaneOutlets {
        guests: Default::default(),
        uplink: Box::new(wake),
        peers: None,
        for_services: Vec::new(),
    };
    let mut syn = |switch: &mut crate::switch::Switch, port: PortId, number: u32| {
        let to = Envelope {
            ethernet: (mac(port), GATEWAY_MAC),
            ip: (
                address(gateway, port).into(),
                Ipv4Addr::from(0x0808_0000 + number).into(),
            ),
        };
        let mut frame = Vec::new();
        build::tcp_control(&mut frame, to, (4000, 80), (0, 0), 2);
        switch.from_guest(0, port, &mut frame, Offload::default(), &mut outlets);
    };
    for number in 0..MAXIMUM_FLOWS as u32 + 100 {
        syn(&mut switch, HOSTILE, number);
    }
    assert_eq!(switch.flows(HOSTILE), MAXIMUM_FLOWS);
    let hostile = switch.counters(HOSTILE).unwrap();
    assert_eq!(
        hostile.dropped(Direction::Out, DropReason::TooManyFlows),
        100
    );
    syn(&mut switch, QUIET, 1);
    assert_eq!(switch.flows(QUIET), 1);
}
