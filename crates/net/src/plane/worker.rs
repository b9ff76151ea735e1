//! The plane's loop.

use std::collections::BTreeMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};

use super::outlets::{GuestQueues, PlaneOutlets};
use super::services::Services;
use super::{PlaneError, Request};
use crate::model::{Direction, Network, Port, PortId};
use crate::program::DropReason;
use crate::program::flow::Milliseconds;
use crate::queue::{Batch, Queue};
use crate::segment::{PeerEvent, Peers};
use crate::service::resolver::Resolvers;
use crate::switch::{PeerPort, Switch, SwitchError, addresses};
use crate::uplink::Uplink;

/// How many packets are taken from the uplink in a round.
const UPLINK_BUDGET: usize = 256;

/// How often conversations that are over are forgotten.
const EXPIRE_INTERVAL: Duration = Duration::from_secs(30);

/// How often guests are told of their router, unasked.
const ADVERTISE_INTERVAL: Duration = Duration::from_secs(600);

/// Tells apart what the loop waits for.
const WAKE: u64 = 0;
const UPLINK: u64 = 1;
const RESOLVER: u64 = 2;
const PEERS: u64 = 3;
/// A port's queue: this plus its number.
const FIRST_QUEUE: u64 = 16;

/// The thread's state.
pub(super) struct Worker {
    switch: Switch,
    outlets: PlaneOutlets,
    services: Services,
    inbox: Receiver<Request>,
    wake: Arc<OwnedFd>,
    epoll: OwnedFd,
    /// The queues from guests, by their number; numbers aren't used again.
    queues: BTreeMap<u64, (PortId, Arc<Queue>)>,
    next_queue: u64,
    /// Swapped with whatever waits.
    batch: Batch,
    packet: Vec<u8>,
    started: Instant,
    expire_at: Instant,
    advertise_at: Instant,
}

impl Worker {
    pub(super) fn new(
        network: Network,
        uplink: Box<dyn Uplink>,
        resolvers: Resolvers,
        inbox: Receiver<Request>,
        wake: Arc<OwnedFd>,
    ) -> Result<Self, PlaneError> {
        let epoll = epoll::create(CreateFlags::CLOEXEC).map_err(std::io::Error::from)?;
        let started = Instant::now();
        let worker = Self {
            switch: Switch::new(network),
            outlets: PlaneOutlets {
                guests: BTreeMap::new(),
                uplink,
                peers: None,
                for_services: Vec::new(),
            },
            services: Services::new(resolvers)?,
            inbox,
            wake,
            epoll,
            queues: BTreeMap::new(),
            next_queue: FIRST_QUEUE,
            batch: Batch::default(),
            packet: Vec::new(),
            started,
            expire_at: started + EXPIRE_INTERVAL,
            advertise_at: started + ADVERTISE_INTERVAL,
        };
        worker.watch(std::os::fd::AsFd::as_fd(&*worker.wake), WAKE)?;
        worker.watch(worker.outlets.uplink.ready(), UPLINK)?;
        worker.watch(worker.services.ready(), RESOLVER)?;
        Ok(worker)
    }

    fn watch(&self, fd: BorrowedFd<'_>, number: u64) -> Result<(), PlaneError> {
        epoll::add(&self.epoll, fd, EventData::new_u64(number), EventFlags::IN)
            .map_err(std::io::Error::from)?;
        Ok(())
    }

    /// Serves until it is told to stop.
    pub(super) fn run(mut self) {
        let mut events: Vec<epoll::Event> = Vec::with_capacity(64);
        loop {
            let now = self.started.elapsed().as_millis() as Milliseconds;
            let mut until = self.expire_at.min(self.advertise_at);
            if let Some(deadline) = self.services.deadline(now) {
                until = until.min(deadline);
            }
            let wait = until.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            let wait = rustix::time::Timespec {
                tv_sec: wait.as_secs() as i64,
                tv_nsec: i64::from(wait.subsec_nanos()),
            };
            events.clear();
            let waited = epoll::wait(
                &self.epoll,
                rustix::buffer::spare_capacity(&mut events),
                Some(&wait),
            );
            if let Err(error) = waited
                && error != rustix::io::Errno::INTR
            {
                tracing::error!(%error, "the network's thread can't wait");
                return;
            }
            let now = self.started.elapsed().as_millis() as Milliseconds;
            for event in &events {
                match event.data.u64() {
                    WAKE => {
                        if !self.serve_requests() {
                            return;
                        }
                    }
                    UPLINK => self.serve_uplink(now),
                    PEERS => self.serve_peers(now),
                    // Served every round.
                    RESOLVER => {}
                    queue => self.serve_queue(now, queue),
                }
            }
            self.serve_timers(now);
            self.services
                .serve(now, &mut self.switch, &mut self.outlets);
            self.flush();
        }
    }

    /// Takes what waits in one queue.
    fn serve_queue(&mut self, now: Milliseconds, number: u64) {
        let Some((port, queue)) = self.queues.get(&number) else {
            return;
        };
        let port = *port;
        if !queue.take(&mut self.batch) {
            return;
        }
        let mut batch = std::mem::take(&mut self.batch);
        for (frame, offload) in batch.frames_mut() {
            self.switch
                .from_guest(now, port, frame, offload, &mut self.outlets);
        }
        batch.clear();
        self.batch = batch;
    }

    fn serve_uplink(&mut self, now: Milliseconds) {
        for _ in 0..UPLINK_BUDGET {
            self.packet.clear();
            let Some((port, offload)) = self.outlets.uplink.receive(&mut self.packet) else {
                break;
            };
            self.switch
                .from_uplink(now, port, &self.packet, offload, &mut self.outlets);
        }
    }

    fn serve_timers(&mut self, now: Milliseconds) {
        let instant = Instant::now();
        if instant >= self.expire_at {
            self.expire_at = instant + EXPIRE_INTERVAL;
            self.switch.expire(now);
        }
        if instant >= self.advertise_at {
            self.advertise_at = instant + ADVERTISE_INTERVAL;
            let ports: Vec<PortId> = self.switch.ports().map(|port| port.id).collect();
            for port in ports {
                self.switch.advertise(port, &mut self.outlets);
            }
        }
    }

    /// Hands over what has gathered.
    fn flush(&mut self) {
        self.outlets.uplink.flush();
        for guest in self.outlets.guests.values_mut() {
            guest.flush();
        }
    }

    /// Does what was asked; whether to go on.
    fn serve_requests(&mut self) -> bool {
        let _ = rustix::io::read(&*self.wake, &mut [0; 8]);
        while let Ok(request) = self.inbox.try_recv() {
            // Whoever asked may have gone; that is its business.
            match request {
                Request::AddPort(port, queues, reply) => {
                    let _ = reply.send(self.add_port(*port, queues));
                }
                Request::SetPort(port, reply) => {
                    let _ = reply.send(self.set_port(*port));
                }
                Request::Join(peers, reply) => {
                    let _ = reply.send(self.join(*peers));
                }
                Request::RemovePort(port) => self.remove_port(port),
                Request::SetMetadata(port, metadata) => {
                    self.services.set_metadata(&self.switch, port, *metadata);
                }
                Request::Counters(port, reply) => {
                    let _ = reply.send(self.counters(port));
                }
                Request::Trace(port, origin, frame, reply) => {
                    let trace = self.switch.trace(port, origin, &frame, &Default::default());
                    let _ = reply.send(trace.map(|trace| trace.to_string()));
                }
                Request::TraceTo(port, protocol, destination, reply) => {
                    let traces = self.switch.trace_to(port, protocol, destination);
                    let _ = reply.send(traces.map(|traces| {
                        let lines = traces.iter().map(|(id, trace)| {
                            let name = self.switch.ports().find(|port| port.id == *id);
                            let name = name.map_or("", |port| port.name.as_str());
                            format!("at {name}:\n{trace}")
                        });
                        lines.collect::<Vec<_>>().join("\n")
                    }));
                }
                Request::Stop => return false,
            }
        }
        true
    }

    /// Tells everyone who is to know which ports there are.
    fn ports_changed(&mut self) {
        self.services.set_names(&self.switch);
        if let Some(peers) = &mut self.outlets.peers {
            let ports: Vec<PeerPort> = self
                .switch
                .ports()
                .map(|port| PeerPort {
                    name: port.name.clone(),
                    mac: port.mac,
                    addresses: addresses(port).collect(),
                })
                .collect();
            peers.announce(&ports);
        }
    }

    fn join(&mut self, peers: Peers) -> Result<(), PlaneError> {
        self.watch(peers.ready(), PEERS)?;
        self.outlets.peers = Some(peers);
        self.ports_changed();
        Ok(())
    }

    /// Takes what came from other processes.
    fn serve_peers(&mut self, now: Milliseconds) {
        // Nothing that comes from a peer goes to one.
        let Some(mut peers) = self.outlets.peers.take() else {
            return;
        };
        let (switch, outlets) = (&mut self.switch, &mut self.outlets);
        let mut changed = false;
        peers.serve(|peer, event| match event {
            PeerEvent::Ports(ports) => {
                switch.set_peer(peer, ports);
                changed = true;
            }
            PeerEvent::Frame(frame, offload) => {
                switch.from_peer(now, peer, frame, offload, outlets);
            }
        });
        self.outlets.peers = Some(peers);
        if changed {
            self.services.set_names(&self.switch);
        }
    }

    fn add_port(
        &mut self,
        port: Port,
        queues: Vec<(Arc<Queue>, Arc<Queue>)>,
    ) -> Result<(), PlaneError> {
        let id = port.id;
        if self.outlets.guests.contains_key(&id) {
            self.remove_port(id);
        }
        self.switch.set_port(port)?;
        let mut back = Vec::new();
        for (from_guest, to_guest) in queues {
            let number = self.next_queue;
            self.next_queue += 1;
            if let Err(error) = self.watch(from_guest.ready(), number) {
                self.remove_port(id);
                return Err(error);
            }
            self.queues.insert(number, (id, from_guest));
            back.push((Batch::default(), to_guest));
        }
        self.outlets.guests.insert(id, GuestQueues { queues: back });
        self.ports_changed();
        Ok(())
    }

    fn set_port(&mut self, port: Port) -> Result<(), PlaneError> {
        if !self.outlets.guests.contains_key(&port.id) {
            let network = self.switch.network().name.clone();
            return Err(SwitchError::NoPort(network, port.id).into());
        }
        self.switch.set_port(port)?;
        self.ports_changed();
        Ok(())
    }

    fn remove_port(&mut self, id: PortId) {
        self.switch.remove_port(id);
        self.services.remove_port(id);
        self.ports_changed();
        self.outlets.guests.remove(&id);
        let epoll = &self.epoll;
        self.queues.retain(|_, (port, queue)| {
            if *port == id {
                let _ = epoll::delete(epoll, queue.ready());
            }
            *port != id
        });
    }

    /// What a port has seen, with what its queues dropped.
    fn counters(&self, id: PortId) -> Option<crate::switch::Counters> {
        let mut counters = self.switch.counters(id)?.clone();
        let out = self.queues.values().filter(|(port, _)| *port == id);
        let out: u64 = out.map(|(_, queue)| queue.dropped()).sum();
        let guest = self.outlets.guests.get(&id);
        let back = |count: fn(&Queue) -> u64| -> u64 {
            guest.map_or(0, |guest| {
                guest.queues.iter().map(|(_, queue)| count(queue)).sum()
            })
        };
        let incoming = &mut counters.drops[Direction::In as usize];
        incoming[DropReason::QueueFull as usize] += back(Queue::dropped);
        incoming[DropReason::LinkDown as usize] += back(Queue::refused);
        counters.drops[Direction::Out as usize][DropReason::QueueFull as usize] += out;
        Some(counters)
    }
}
