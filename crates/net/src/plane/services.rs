//! Brings guests' packets to the services and their answers back.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use super::outlets::PlaneOutlets;
use crate::link::Offload;
use crate::model::PortId;
use crate::packet::build::{self, Envelope};
use crate::packet::{ETHERNET_LENGTH, Ethernet, Ip};
use crate::program::Service;
use crate::program::flow::Milliseconds;
use crate::service::Stack;
use crate::service::metadata::{Metadata, MetadataServer};
use crate::service::names::{Answered, Names};
use crate::service::resolver::{Resolved, Resolver, Resolvers, truncated};
use crate::switch::{Switch, addresses};

/// Length of the UDP header.
const UDP_LENGTH: usize = 8;

/// The services of a network.
pub(super) struct Services {
    names: Names,
    resolver: Resolver<Client>,
    tcp: BTreeMap<PortId, TcpServices>,
    metadata: BTreeMap<PortId, Metadata>,
}

/// What is behind a port's gateway over TCP.
struct TcpServices {
    stack: Stack,
    metadata: MetadataServer,
}

/// Who asked a DNS question.
#[derive(Clone, Copy, Debug)]
enum Client {
    /// By UDP; the way back.
    Udp(Envelope, (u16, u16)),
    /// By TCP.
    Tcp(crate::service::ConnectionId),
}

impl Services {
    pub(super) fn new(resolvers: Resolvers) -> std::io::Result<Self> {
        Ok(Self {
            names: Names::default(),
            resolver: Resolver::new(resolvers)?,
            tcp: BTreeMap::new(),
            metadata: BTreeMap::new(),
        })
    }

    /// Readable while answers from outside may wait.
    pub(super) fn ready(&self) -> BorrowedFd<'_> {
        self.resolver.ready()
    }

    /// When [`Self::serve`] is to be called at the latest.
    pub(super) fn deadline(&mut self, now: Milliseconds) -> Option<Instant> {
        let here = Instant::now();
        let stacks = self.tcp.values_mut().filter_map(|tcp| tcp.stack.delay(now));
        let stacks = stacks.map(|delay| here + Duration::from_millis(delay));
        stacks.chain(self.resolver.deadline()).min()
    }

    /// Learns who is on the network now.
    pub(super) fn set_names(&mut self, switch: &Switch) {
        let here = switch
            .ports()
            .map(|port| (port.name.as_str(), addresses(port).collect()));
        let there = switch
            .peer_ports()
            .map(|port| (port.name.as_str(), port.addresses.clone()));
        self.names = Names::new(switch.network(), here.chain(there));
        for port in switch.ports() {
            if let Some(tcp) = self.tcp.get_mut(&port.id) {
                let metadata = self.metadata.get(&port.id).cloned().unwrap_or_default();
                tcp.metadata.update(switch.network(), port, &metadata);
            }
        }
    }

    pub(super) fn set_metadata(&mut self, switch: &Switch, port: PortId, metadata: Metadata) {
        self.metadata.insert(port, metadata);
        self.set_names(switch);
    }

    pub(super) fn remove_port(&mut self, port: PortId) {
        self.resolver.forget(port);
        self.tcp.remove(&port);
        self.metadata.remove(&port);
    }

    /// Takes what came for the services, and answers.
    pub(super) fn serve(
        &mut self,
        now: Milliseconds,
        switch: &mut Switch,
        outlets: &mut PlaneOutlets,
    ) {
        for (port, service, frame, offload) in std::mem::take(&mut outlets.for_services) {
            match service {
                Service::Dns => self.ask(port, &frame, switch, outlets),
                Service::Tcp => self.receive(now, port, &frame, offload, switch),
            }
        }
        for resolved in self.resolver.collect(Instant::now()) {
            self.answer(resolved, switch, outlets);
        }
        self.serve_tcp(now, switch, outlets);
    }

    /// A DNS question by UDP.
    fn ask(&mut self, port: PortId, frame: &[u8], switch: &mut Switch, outlets: &mut PlaneOutlets) {
        let (Some(ethernet), Some(packet)) = (Ethernet::parse(frame), frame.get(ETHERNET_LENGTH..))
        else {
            return;
        };
        let Ok(ip) = Ip::parse(packet) else { return };
        let Some(query) = packet.get(ip.transport + UDP_LENGTH..ip.length) else {
            return;
        };
        let back = Envelope {
            ethernet: (ethernet.destination, ethernet.source),
            ip: (ip.destination, ip.source),
        };
        let client = Client::Udp(back, (ip.ports.1, ip.ports.0));
        self.resolve(port, client, query, switch, outlets);
    }

    fn resolve(
        &mut self,
        port: PortId,
        client: Client,
        query: &[u8],
        switch: &mut Switch,
        outlets: &mut PlaneOutlets,
    ) {
        let resolved = match self.names.answer(query) {
            Answered::Here(answer) => Some(Resolved {
                client,
                port,
                answer,
            }),
            Answered::Elsewhere => {
                let over_tcp = matches!(client, Client::Tcp(_));
                self.resolver
                    .ask(Instant::now(), port, client, query, over_tcp)
            }
            Answered::Nonsense => Some(Resolved {
                client,
                port,
                answer: Vec::new(),
            }),
        };
        if let Some(resolved) = resolved {
            self.answer(resolved, switch, outlets);
        }
    }

    fn answer(
        &mut self,
        resolved: Resolved<Client>,
        switch: &mut Switch,
        outlets: &mut PlaneOutlets,
    ) {
        let Resolved {
            client,
            port,
            mut answer,
        } = resolved;
        match client {
            Client::Udp(back, ports) => {
                if answer.is_empty() {
                    return;
                }
                let headers = UDP_LENGTH + if back.ip.0.is_ipv4() { 20 } else { 40 };
                if answer.len() + headers > usize::from(switch.network().mtu) {
                    answer = truncated(&answer);
                }
                let mut frame = Vec::with_capacity(ETHERNET_LENGTH + headers + answer.len());
                build::udp(&mut frame, back, ports, &answer);
                switch.from_service(port, &frame, outlets);
            }
            Client::Tcp(connection) => {
                if let Some(tcp) = self.tcp.get_mut(&port) {
                    tcp.stack.answer(connection, &answer);
                }
            }
        }
    }

    /// A TCP segment for the gateway.
    fn receive(
        &mut self,
        now: Milliseconds,
        id: PortId,
        frame: &[u8],
        _offload: Offload,
        switch: &Switch,
    ) {
        let Some(port) = switch.ports().find(|port| port.id == id) else {
            return;
        };
        let Some(packet) = frame.get(ETHERNET_LENGTH..) else {
            return;
        };
        let metadata = &self.metadata;
        let tcp = self.tcp.entry(id).or_insert_with(|| TcpServices {
            stack: Stack::new(switch.network(), port.mac, now),
            metadata: MetadataServer::new(
                switch.network(),
                port,
                metadata.get(&id).unwrap_or(&Metadata::default()),
            ),
        });
        tcp.stack.receive(packet);
    }

    fn serve_tcp(&mut self, now: Milliseconds, switch: &mut Switch, outlets: &mut PlaneOutlets) {
        let mut frames = Vec::new();
        let mut asked = Vec::new();
        for (port, tcp) in &mut self.tcp {
            let questions = tcp.stack.poll(now, &mut tcp.metadata, &mut frames);
            asked.extend(questions.into_iter().map(|question| (*port, question)));
            for frame in frames.drain(..) {
                switch.from_service(*port, &frame, outlets);
            }
        }
        let again = !asked.is_empty();
        for (port, question) in asked {
            let client = Client::Tcp(question.connection);
            self.resolve(port, client, &question.query, switch, outlets);
        }
        if again {
            // Answers known at once go out at once.
            self.serve_tcp(now, switch, outlets);
        }
    }
}
