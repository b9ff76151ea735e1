//! A guest played by smoltcp's stack, on a cable that can lose and reorder.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::time::Instant as Time;
use smoltcp::wire::{HardwareAddress, IpCidr};

use super::super::{Nat, NatOptions};
use crate::link::Offload;
use crate::model::PortId;
use crate::uplink::Uplink;

pub(super) const PORT: PortId = PortId(1);
pub(super) const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 64, 0, 1);
pub(super) const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);
pub(super) const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 64, 0, 2);
pub(super) const ADDRESS6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);

/// Whose host's loopback is behind the gateway.
pub(super) fn nat() -> Nat {
    Nat::new(NatOptions {
        mtu: 1500,
        gateway4: Some(GATEWAY),
        gateway6: Some(GATEWAY6),
        host_loopback: true,
        descriptors: 100,
    })
    .unwrap()
}

/// The guest's end: what it gets, what it sends.
#[derive(Default)]
pub(super) struct Cable(VecDeque<Vec<u8>>, VecDeque<Vec<u8>>);
pub(super) struct Packet(Vec<u8>);
pub(super) struct Sender<'a>(&'a mut VecDeque<Vec<u8>>);
impl RxToken for Packet {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}
impl TxToken for Sender<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        let mut packet = vec![0; length];
        let result = f(&mut packet);
        self.0.push_back(packet);
        result
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
        // What comes in may have its checksum left to do.
        caps.checksum.tcp = smoltcp::phy::Checksum::Tx;
        caps
    }
}

/// A guest behind a way out.
pub(super) struct Guest {
    pub(super) nat: Nat,
    cable: Cable,
    stack: Interface,
    sockets: SocketSet<'static>,
    /// Packets in 1,000 that are lost, and as many that are overtaken.
    pub(super) trouble: u64,
    random: u64,
    pub(super) lost: u64,
}

impl Guest {
    pub(super) fn new(nat: Nat) -> Self {
        let mut cable = Cable::default();
        let mut stack = Interface::new(Config::new(HardwareAddress::Ip), &mut cable, Time::now());
        stack.update_ip_addrs(|all| {
            all.push(IpCidr::new(ADDRESS.into(), 24)).unwrap();
            all.push(IpCidr::new(ADDRESS6.into(), 64)).unwrap();
        });
        Self {
            nat,
            cable,
            stack,
            sockets: SocketSet::new(Vec::new()),
            trouble: 0,
            random: 0x9e37_79b9_7f4a_7c15,
            lost: 0,
        }
    }

    fn socket(&mut self) -> SocketHandle {
        let buffer = || tcp::SocketBuffer::new(vec![0; 100_000]);
        self.sockets.add(tcp::Socket::new(buffer(), buffer()))
    }

    pub(super) fn connect(&mut self, to: IpAddr, port: u16, from: u16) -> SocketHandle {
        let id = self.socket();
        self.sockets
            .get_mut::<tcp::Socket<'_>>(id)
            .connect(self.stack.context(), (to, port), from)
            .unwrap();
        id
    }

    pub(super) fn listen(&mut self, port: u16) -> SocketHandle {
        let id = self.socket();
        self.tcp(id).listen(port).unwrap();
        id
    }

    pub(super) fn tcp(&mut self, id: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(id)
    }

    pub(super) fn forget(&mut self, id: SocketHandle) {
        self.sockets.remove(id);
    }

    fn chance(&mut self) -> bool {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % 1000 < self.trouble
    }

    fn disturb(&mut self, packets: VecDeque<Vec<u8>>) -> VecDeque<Vec<u8>> {
        let mut through = VecDeque::new();
        for packet in packets {
            if self.chance() {
                self.lost += 1;
                continue;
            }
            let at = through.len() - usize::from(self.chance() && !through.is_empty());
            through.insert(at, packet);
        }
        through
    }

    /// Moves what waits, once.
    pub(super) fn step(&mut self) {
        let (mut packet, mut packets) = (Vec::new(), VecDeque::new());
        while packets.len() < 64 && self.nat.receive(&mut packet).is_some() {
            packets.push_back(std::mem::take(&mut packet));
        }
        let idle = packets.is_empty();
        let packets = self.disturb(packets);
        self.cable.0.extend(packets);
        self.stack
            .poll(Time::now(), &mut self.cable, &mut self.sockets);
        let packets = std::mem::take(&mut self.cable.1);
        if idle && packets.is_empty() {
            std::thread::sleep(Duration::from_micros(200));
        }
        for packet in self.disturb(packets) {
            self.nat.send(PORT, &packet, Offload::default());
        }
        self.nat.flush();
    }

    /// Steps until `done`; panics when it takes far too long.
    pub(super) fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let end = Instant::now() + Duration::from_secs(60);
        while !done(self) {
            assert!(Instant::now() < end, "{what}: {:?}", self.nat.counters());
            self.step();
        }
    }

    /// Sends all of `sent`, closes, and gives all that comes until the end.
    pub(super) fn exchange(&mut self, id: SocketHandle, sent: &[u8], want: usize) -> Vec<u8> {
        let (mut at, mut got) = (0, Vec::new());
        self.until("exchange", |guest| {
            let socket = guest.tcp(id);
            if at < sent.len() && socket.can_send() {
                at += socket.send_slice(&sent[at..]).unwrap();
            }
            if at == sent.len() && socket.may_send() {
                socket.close();
            }
            while socket.can_recv() {
                let take = |bytes: &mut [u8]| {
                    got.extend_from_slice(bytes);
                    (bytes.len(), ())
                };
                socket.recv(take).unwrap();
            }
            at == sent.len() && got.len() >= want && guest.nat.flows() == 0
        });
        got
    }
}
