//! How fast the plane moves data, without a guest's processor in the way.
//!
//!     throughput ports|out|in [SECONDS] [MTU] [FLOWS] [PAYLOAD]
//!
//! `ports`: from one port of a network to another; `out`: from a port through
//! the way out to a socket on the host's loopback; `in`: from a socket to a
//! port. Each flow has ports and threads of its own. Prints Gbit/s of payload
//! that arrived, frames per second, and seconds of processor time, of all
//! threads, for each gigabyte.

mod guest;

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use favo_net::model::{GATEWAY_MAC, MacAddress, Network, Port, PortId};
use favo_net::nat::{Nat, NatOptions};
use favo_net::plane::Plane;
use guest::{Address, Guest};

type Error = Box<dyn std::error::Error + Send + Sync>;
/// Bytes and frames.
type Moved = io::Result<(u64, u64)>;

/// As large as iperf3's.
const BUFFER: usize = 128 << 10;

struct Bench {
    network: Network,
    plane: Plane,
    gateway: Ipv4Addr,
    mtu: u16,
    payload: usize,
    end: Instant,
}

impl Bench {
    fn plug(&self, number: u16) -> Result<(favo_net::queue::PortLink, Address), Error> {
        let [high, low] = number.to_be_bytes();
        let mac = MacAddress([0x52, 0x54, 0, 0, high, low]);
        let ip = Ipv4Addr::from(u32::from(self.gateway) + u32::from(number));
        let port = Port::new(
            &self.network,
            PortId(number.into()),
            &format!("bench{number}"),
            mac,
            Some(ip),
        );
        let link = self.plane.add_port(port, 1)?.remove(0);
        Ok((
            link,
            Address {
                mac,
                ip,
                port: 5201,
            },
        ))
    }

    fn ports(&self, flow: u16) -> Result<Vec<JoinHandle<Moved>>, Error> {
        let (link, from) = self.plug(2 * flow + 1)?;
        let (other, to) = self.plug(2 * flow + 2)?;
        let mut sender = Guest::new(link, from, to, self.mtu, self.payload);
        let mut receiver = Guest::new(other, to, from, self.mtu, self.payload);
        let end = self.end;
        Ok(vec![
            thread::spawn(move || {
                receiver.accept()?;
                let bytes = receiver.drain(end + Duration::from_secs(5))?;
                Ok((bytes, receiver.frames))
            }),
            thread::spawn(move || {
                sender.connect()?;
                sender.pour(end)?;
                Ok((0, 0))
            }),
        ])
    }

    fn outward(&self, flow: u16, inward: bool) -> Result<Vec<JoinHandle<Moved>>, Error> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let (link, own) = self.plug(flow + 1)?;
        let peer = Address {
            mac: GATEWAY_MAC,
            ip: self.gateway,
            port: listener.local_addr()?.port(),
        };
        let mut guest = Guest::new(link, own, peer, self.mtu, self.payload);
        let end = self.end;
        let host = thread::spawn(move || {
            let (stream, _) = listener.accept()?;
            if inward {
                source(stream, end)
            } else {
                sink(stream)
            }
        });
        let card = thread::spawn(move || {
            guest.connect()?;
            if inward {
                let bytes = guest.drain(end + Duration::from_secs(5))?;
                return Ok((bytes, guest.frames));
            }
            guest.pour(end)?;
            Ok((0, guest.frames))
        });
        // The card's first: when it fails, nobody waits for the host's end.
        Ok(vec![card, host])
    }
}

fn source(mut stream: TcpStream, end: Instant) -> Moved {
    let buffer = vec![0x5a; BUFFER];
    while Instant::now() < end {
        stream.write_all(&buffer)?;
    }
    Ok((0, 0))
}

fn sink(mut stream: TcpStream) -> Moved {
    let mut buffer = vec![0; BUFFER];
    let mut bytes = 0;
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok((bytes, 0)),
            n => bytes += n as u64,
        }
    }
}

/// Processor time of all threads so far.
fn processor() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

fn main() -> Result<(), Error> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let mode = arguments.first().map_or("ports", String::as_str);
    let number = |at: usize, default: f64| {
        arguments
            .get(at)
            .map_or(Ok(default), |text| text.parse::<f64>())
    };
    let seconds = number(1, 3.0)?;
    let mtu = number(2, 1500.0)? as u16;
    let flows = number(3, 1.0)? as u16;
    let payload = number(4, 0.0)? as usize;

    let mut network = Network::named("bench", mtu);
    network.host_loopback = true;
    let gateway = network.v4.ok_or("a network without IPv4")?.gateway;
    let nat = Nat::new(NatOptions::of(&network))?;
    let bench = Bench {
        plane: Plane::start(network.clone(), Box::new(nat))?,
        network,
        gateway,
        mtu,
        payload,
        end: Instant::now() + Duration::from_secs_f64(seconds),
    };
    let (start, before) = (Instant::now(), processor());
    let mut threads = Vec::new();
    for flow in 0..flows {
        threads.extend(match mode {
            "ports" => bench.ports(flow)?,
            "out" => bench.outward(flow, false)?,
            "in" => bench.outward(flow, true)?,
            other => return Err(format!("'{other}' is neither ports, out nor in").into()),
        });
    }
    let (mut bytes, mut frames) = (0, 0);
    for thread in threads {
        let moved = thread.join().map_err(|_| "a thread failed")??;
        bytes += moved.0;
        frames += moved.1;
    }
    let (elapsed, used) = (start.elapsed().as_secs_f64(), processor() - before);
    println!(
        "{:.3} Gbit/s {:.0} frames/s {:.3} s/GB",
        bytes as f64 * 8.0 / elapsed / 1e9,
        frames as f64 / elapsed,
        used / (bytes as f64 / 1e9)
    );
    Ok(())
}
