//! How fast frames pass from one port of a plane to another, without a guest
//! in the way.
//!
//!     cargo run --release -p favo-net --example plane_throughput [SECONDS]
//!
//! One thread sends as fast as the queue takes, one receives, the plane is
//! between; what is counted arrived. Large frames are TCP segments still to be
//! cut, as guests with offloads send them.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use favo_net::link::{Link, Offload, PartialChecksum, SegmentKind, Segmentation};
use favo_net::model::{MacAddress, Network, Port, PortId};
use favo_net::packet::build::{Envelope, tcp_control};
use favo_net::packet::{ETHERNET_LENGTH, Sum};
use favo_net::plane::{NoUplink, Plane};

/// A TCP segment of `length` bytes, Ethernet header included.
fn segment(from: &Port, to: &Port, length: usize) -> (Vec<u8>, Offload) {
    let mut frame = Vec::new();
    let ip = |port: &Port| port.v4.unwrap_or(Ipv4Addr::UNSPECIFIED).into();
    let envelope = Envelope {
        ethernet: (from.mac, to.mac),
        ip: (ip(from), ip(to)),
    };
    tcp_control(&mut frame, envelope, (40_000, 5201), (1, 1), 16);
    frame.resize(length, 0);
    let total = (length - ETHERNET_LENGTH) as u16;
    frame[16..18].copy_from_slice(&total.to_be_bytes());
    frame[24..26].fill(0);
    let sum = Sum::default().bytes(&frame[14..34]).checksum();
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    let cut = Segmentation {
        kind: SegmentKind::Tcp4,
        size: 1448,
        header: 54,
    };
    let offload = Offload {
        checksum: Some(PartialChecksum {
            start: 34,
            offset: 16,
        }),
        segmentation: (length > 1514).then_some(cut),
        checked: false,
    };
    (frame, offload)
}

fn measure(length: usize, seconds: f64) -> Result<(f64, f64), Box<dyn std::error::Error>> {
    let network = Network::named("bench", 1500);
    let gateway = network.v4.map_or(0, |v4| u32::from(v4.gateway));
    let port = |number: u8| {
        let mac = MacAddress([0x52, 0x54, 0, 0, 0, number]);
        let address = Ipv4Addr::from(gateway + u32::from(number));
        Port::new(&network, PortId(number.into()), "bench", mac, Some(address))
    };
    let (from, to) = (port(1), port(2));
    let (frame, offload) = segment(&from, &to, length);
    let plane = Plane::start(network.clone(), Box::new(NoUplink::new()?))?;
    let mut sender = plane.add_port(from, 1)?.remove(0);
    let mut receiver = plane.add_port(to, 1)?.remove(0);
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let thread = std::thread::spawn(move || {
        // A window, as TCP has one: what is ahead of the receiver is bounded.
        while !stopped.load(Ordering::Relaxed) {
            for _ in 0..32 {
                sender.send(&frame, offload);
            }
            sender.flush();
            std::thread::yield_now();
        }
    });
    let mut received = (0u64, 0u64);
    let mut buffer = Vec::new();
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs_f64(seconds) {
        buffer.clear();
        match receiver.receive(&mut buffer) {
            Some(_) => received = (received.0 + 1, received.1 + buffer.len() as u64),
            None => std::thread::yield_now(),
        }
    }
    let elapsed = start.elapsed().as_secs_f64();
    stop.store(true, Ordering::Relaxed);
    thread.join().map_err(|_| "the sender failed")?;
    Ok((
        received.0 as f64 / elapsed,
        received.1 as f64 * 8.0 / elapsed / 1e9,
    ))
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let seconds = std::env::args()
        .nth(1)
        .map_or(Ok(3.0), |text| text.parse())?;
    for length in [64, 1514, 65_549] {
        let (frames, gigabits) = measure(length, seconds)?;
        println!(
            "{length:>6} bytes: {:>9.0} frames/s {gigabits:>7.2} Gbit/s",
            frames
        );
    }
    Ok(())
}
