use super::*;
use smoltcp::iface::{Config, Interface, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::time::Instant as Time;
use smoltcp::wire::{HardwareAddress, IpCidr};
use std::io::{Read, Write};

const PORT: PortId = PortId(1);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 64, 0, 1);

fn nat() -> Nat {
    Nat::new(NatOptions {
        mtu: 1500,
        gateway4: Some(GATEWAY),
        gateway6: None,
        host_loopback: true,
        descriptors: 100,
    })
    .unwrap()
}

/// The guest's end: what it gets, what it sends.
#[derive(Default)]
struct Cable(std::collections::VecDeque<Vec<u8>>, Vec<Vec<u8>>);
struct Packet(Vec<u8>);
struct Sender<'a>(&'a mut Vec<Vec<u8>>);
impl RxToken for Packet {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}
impl TxToken for Sender<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        self.0.push(vec![0; length]);
        f(self.0.last_mut().unwrap())
    }
}
impl Device for Cable {
    type RxToken<'a> = Packet;
    type TxToken<'a> = Sender<'a>;
    fn receive(&mut self, _: Time) -> Option<(Packet, Sender<'_>)> {
        Some((Packet(self.0.pop_front()?), Sender(&mut self.1)))
    }
    fn transmit(&mut self, _: Time) -> Option<Sender<'_>> {
        Some(Sender(&mut self.1))
    }
    fn capabilities(&self) -> DeviceCapabilities {
        let mut caps = DeviceCapabilities::default();
        caps.medium = Medium::Ip;
        caps.max_transmission_unit = 1500;
        caps.checksum.tcp = smoltcp::phy::Checksum::Tx;
        caps
    }
}

#[test]
fn bytes_cross_both_ways_and_both_ends_close() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let sent: Vec<u8> = (0..3_000_000_u32).map(|i| ((i * 7) >> 3) as u8).collect();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        stream.write_all(&all).unwrap();
    });
    let mut nat = nat();
    let mut cable = Cable::default();
    let mut guest = Interface::new(Config::new(HardwareAddress::Ip), &mut cable, Time::now());
    guest.update_ip_addrs(|all| {
        all.push(IpCidr::new(Ipv4Addr::new(10, 64, 0, 2).into(), 24))
            .unwrap()
    });
    let mut sockets = SocketSet::new(Vec::new());
    let buffer = || tcp::SocketBuffer::new(vec![0; 200_000]);
    let id = sockets.add(tcp::Socket::new(buffer(), buffer()));
    sockets
        .get_mut::<tcp::Socket<'_>>(id)
        .connect(guest.context(), (GATEWAY, port), 40_000)
        .unwrap();
    let (mut at, mut got) = (0, Vec::new());
    let until = Instant::now() + Duration::from_secs(60);
    while got.len() < sent.len() || nat.flows() > 0 {
        assert!(Instant::now() < until, "{} {:?}", got.len(), nat.counters());
        let mut packet = Vec::new();
        while nat.receive(&mut packet).is_some() {
            cable.0.push_back(std::mem::take(&mut packet));
        }
        guest.poll(Time::now(), &mut cable, &mut sockets);
        for packet in cable.1.drain(..) {
            nat.send(PORT, &packet, Offload::default());
        }
        nat.flush();
        let socket = sockets.get_mut::<tcp::Socket<'_>>(id);
        if at < sent.len() && socket.can_send() {
            at += socket.send_slice(&sent[at..]).unwrap();
            if at == sent.len() {
                socket.close();
            }
        }
        while socket.can_recv() {
            socket
                .recv(|bytes| {
                    got.extend_from_slice(bytes);
                    (bytes.len(), ())
                })
                .unwrap();
        }
    }
    assert!(got == sent);
    server.join().unwrap();
}
