//! The plane: the thread that runs a switch.
//!
//! It owns the switch, the uplink and the services. Everyone else talks to it
//! through queues of frames ([`crate::queue`]) and requests ([`Plane`]'s
//! methods). Each round it takes what waits in every port's queue, which is
//! bounded, so a flood on one port costs the others no more than its batch;
//! then it hands over what has gathered for each guest.
//!
//! The thread must never block but in its one wait, and nothing a guest, a
//! peer or the uplink sends may end it.

mod outlets;
mod services;
mod worker;

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, eventfd};

use favo_thread::ThreadKind;

use crate::link::Offload;
use crate::model::{Network, Port, PortId};
use crate::program::Origin;
use crate::queue::{PortLink, Queue};
use crate::segment::Peers;
use crate::service::metadata::Metadata;
use crate::service::resolver::Resolvers;
use crate::switch::{Counters, SwitchError};
use crate::uplink::Uplink;
use worker::Worker;

/// The most queue pairs a port may have.
pub const MAXIMUM_QUEUES: usize = 16;

/// A running network plane. Dropping it stops the thread; links then send into
/// the void.
#[derive(Debug)]
pub struct Plane {
    requests: Sender<Request>,
    wake: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

/// What can't be done.
#[derive(Debug, thiserror::Error)]
pub enum PlaneError {
    /// The host refuses a thread or a descriptor.
    #[error("the network can't be started: {0}")]
    Host(#[from] std::io::Error),
    /// The network doesn't fit together.
    #[error(transparent)]
    Network(#[from] crate::model::NetworkError),
    /// The port doesn't fit the network.
    #[error(transparent)]
    Switch(#[from] SwitchError),
    /// More queues than a card has, or none.
    #[error("a port has 1 to {MAXIMUM_QUEUES} queues, not {0}")]
    Queues(usize),
    /// The thread is gone.
    #[error("the network's thread has ended")]
    Gone,
}

/// What the thread is asked.
enum Request {
    AddPort(
        Box<Port>,
        Vec<(Arc<Queue>, Arc<Queue>)>,
        Sender<Result<(), PlaneError>>,
    ),
    SetPort(Box<Port>, Sender<Result<(), PlaneError>>),
    Join(Box<Peers>, Sender<Result<(), PlaneError>>),
    RemovePort(PortId),
    SetMetadata(PortId, Box<Metadata>),
    Counters(PortId, Sender<Option<Counters>>),
    Trace(PortId, Origin, Vec<u8>, Sender<Option<String>>),
    TraceTo(PortId, u8, SocketAddr, Sender<Option<String>>),
    Stop,
}

impl Plane {
    /// Starts a network's plane. Names that aren't the network's are asked of
    /// the host's resolvers.
    ///
    /// # Errors
    /// The network can't be, or the host has no descriptors or threads left.
    pub fn start(network: Network, uplink: Box<dyn Uplink>) -> Result<Self, PlaneError> {
        Self::start_with(network, uplink, Resolvers::of_host())
    }

    /// Starts a network's plane. Names that aren't the network's are asked of
    /// `resolvers`.
    ///
    /// # Errors
    /// The network can't be, or the host has no descriptors or threads left.
    pub fn start_with(
        network: Network,
        uplink: Box<dyn Uplink>,
        resolvers: Resolvers,
    ) -> Result<Self, PlaneError> {
        network.check()?;
        let wake = Arc::new(
            eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)
                .map_err(std::io::Error::from)?,
        );
        let (requests, inbox) = channel();
        let worker = Worker::new(network, uplink, resolvers, inbox, wake.clone())?;
        let thread = favo_thread::spawn(ThreadKind::Network, "net", move || worker.run())?;
        Ok(Self {
            requests,
            wake,
            thread: Some(thread),
        })
    }

    /// Plugs a port in; gives the card's ends, one per queue pair.
    ///
    /// # Errors
    /// The port doesn't fit the network, or the host has no descriptors left.
    pub fn add_port(&self, port: Port, queues: usize) -> Result<Vec<PortLink>, PlaneError> {
        if !(1..=MAXIMUM_QUEUES).contains(&queues) {
            return Err(PlaneError::Queues(queues));
        }
        let pairs = (0..queues)
            .map(|_| Ok((Arc::new(Queue::new()?), Arc::new(Queue::new()?))))
            .collect::<std::io::Result<Vec<_>>>()?;
        let links = pairs
            .iter()
            .map(|(out, back)| PortLink::new(out.clone(), back.clone()))
            .collect();
        self.ask(|reply| Request::AddPort(Box::new(port), pairs, reply))??;
        Ok(links)
    }

    /// Changes a port's rules, forwards or addresses.
    ///
    /// # Errors
    /// There is no such port, or it doesn't fit the network any more.
    pub fn set_port(&self, port: Port) -> Result<(), PlaneError> {
        self.ask(|reply| Request::SetPort(Box::new(port), reply))?
    }

    /// Connects the plane to the other processes of its network, which see its
    /// ports from now on.
    ///
    /// # Errors
    /// The host has no descriptors left.
    pub fn join(&self, peers: Peers) -> Result<(), PlaneError> {
        self.ask(|reply| Request::Join(Box::new(peers), reply))?
    }

    /// Unplugs a port.
    pub fn remove_port(&self, port: PortId) {
        let _ = self.tell(Request::RemovePort(port));
    }

    /// Says what a port's guest is told by the metadata service.
    pub fn set_metadata(&self, port: PortId, metadata: Metadata) {
        let _ = self.tell(Request::SetMetadata(port, Box::new(metadata)));
    }

    /// What a port has seen so far.
    ///
    /// # Errors
    /// The thread has ended.
    pub fn counters(&self, port: PortId) -> Result<Option<Counters>, PlaneError> {
        self.ask(|reply| Request::Counters(port, reply))
    }

    /// What would happen to a packet, as text.
    ///
    /// # Errors
    /// The thread has ended.
    pub fn trace(
        &self,
        port: PortId,
        origin: Origin,
        frame: Vec<u8>,
    ) -> Result<Option<String>, PlaneError> {
        self.ask(|reply| Request::Trace(port, origin, frame, reply))
    }

    /// What would happen to the first packet a port's guest sends to
    /// `destination` by a protocol of IP (6 TCP, 17 UDP, else an echo request),
    /// as text: each rule that decides, on every port of this process it
    /// passes. `None`, if there is no such port, or it has no address to send
    /// from.
    ///
    /// # Errors
    /// The thread has ended.
    pub fn trace_to(
        &self,
        port: PortId,
        protocol: u8,
        destination: SocketAddr,
    ) -> Result<Option<String>, PlaneError> {
        self.ask(|reply| Request::TraceTo(port, protocol, destination, reply))
    }

    fn tell(&self, request: Request) -> Result<(), PlaneError> {
        self.requests.send(request).map_err(|_| PlaneError::Gone)?;
        // Fails only if the counter is full, and then the thread wakes anyway.
        let _ = rustix::io::write(&*self.wake, &1u64.to_ne_bytes());
        Ok(())
    }

    fn ask<T>(&self, request: impl FnOnce(Sender<T>) -> Request) -> Result<T, PlaneError> {
        let (reply, answer): (Sender<T>, Receiver<T>) = channel();
        self.tell(request(reply))?;
        answer.recv().map_err(|_| PlaneError::Gone)
    }
}

impl Drop for Plane {
    fn drop(&mut self) {
        let _ = self.tell(Request::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// An uplink that leads nowhere: for networks without a way out.
#[derive(Debug)]
pub struct NoUplink {
    never: OwnedFd,
}

impl NoUplink {
    /// An uplink that drops all it is given.
    ///
    /// # Errors
    /// The host has no descriptors left.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self {
            never: eventfd(0, EventfdFlags::CLOEXEC)?,
        })
    }
}

impl Uplink for NoUplink {
    fn send(&mut self, _port: PortId, _packet: &[u8], _offload: Offload) {}
    fn flush(&mut self) {}
    fn receive(&mut self, _packet: &mut Vec<u8>) -> Option<(PortId, Offload)> {
        None
    }
    fn ready(&self) -> std::os::fd::BorrowedFd<'_> {
        std::os::fd::AsFd::as_fd(&self.never)
    }
}

#[cfg(test)]
#[path = "plane_hostile_test.rs"]
mod hostile_test;
#[cfg(test)]
#[path = "plane_test.rs"]
mod test;
