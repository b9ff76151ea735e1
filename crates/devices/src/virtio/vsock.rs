//! Virtio socket device (virtio 1.2, 5.10): streams between programs in the
//! guest (AF_VSOCK) and programs on the host (Unix sockets).
//!
//! * The guest connects to context id 2, port P: whoever registered for P with
//!   [`VsockHandle::listen`] gets a stream; else the Unix socket
//!   `<socket>_<P>` is connected to; else the guest sees a refused connection.
//! * The host connects to port P of the guest: with [`VsockHandle::connect`],
//!   or by connecting to the Unix socket `<socket>` and sending
//!   `CONNECT <P>\n`; the answer is `OK <port>\n` and then the stream. A
//!   refused connection is closed without an answer.
//!
//! [`mux`] holds all connections, [`connection`] one, [`packet`] and `send` are
//! what goes over the rings, [`host`] the Unix sockets. Connections do not survive a restore
//! from a snapshot; the guest is told so.

pub mod connection;
pub mod host;
pub mod mux;
pub mod packet;
mod send;

use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Weak};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::device::{
    DeviceError, DeviceState, DeviceType, QueueResources, VirtioDevice, read_config_bytes,
};
use super::queue::{QueueState, Virtqueue};
use super::worker::Worker;
use crate::state::StateError;
use host::{Accept, Listeners, SocketFile};
use mux::{Mux, VsockCounters};

const NAME: &str = DeviceType::Socket.name();
/// Receive, transmit, event.
const QUEUE_SIZES: [u16; 3] = [256, 256, 16];
const STATE_VERSION: u32 = 1;
/// `VIRTIO_VSOCK_F_STREAM`.
const F_STREAM: u64 = 1;

/// A socket device.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockSpec {
    /// The guest's context id, from 3 to 2³² − 2.
    pub cid: u32,
    /// A Unix socket on which the host's programs connect to the guest, and
    /// the stem of the names of those the guest connects to.
    #[serde(default)]
    pub socket: Option<PathBuf>,
    /// The most connections at a time.
    #[serde(default = "default_max_connections")]
    pub max_connections: u16,
}

fn default_max_connections() -> u16 {
    512
}

impl VsockSpec {
    /// A device without a Unix socket: it is reached by its handle only.
    pub fn new(cid: u32) -> Self {
        Self {
            cid,
            socket: None,
            max_connections: default_max_connections(),
        }
    }

    /// Makes the device, and the Unix socket if there is to be one.
    pub fn build(&self) -> Result<Vsock, DeviceError> {
        if self.cid < 3 || self.cid == u32::MAX {
            return Err(DeviceError::InvalidSpec {
                device: NAME,
                reason: format!(
                    "context id {} is reserved; choose one from 3 to 4294967294",
                    self.cid
                ),
            });
        }
        let host = |operation| {
            move |source: io::Error| DeviceError::Host {
                device: NAME,
                operation,
                source,
            }
        };
        let socket = match &self.socket {
            Some(path) => {
                Some(SocketFile::bind(path).map_err(host("listening on its Unix socket"))?)
            }
            None => None,
        };
        let listeners = Arc::new(Listeners::new(self.socket.clone()));
        let counters = Arc::<VsockCounters>::default();
        let mux = Mux::new(
            self.cid.into(),
            self.max_connections.into(),
            listeners.clone(),
            counters.clone(),
            socket,
        );
        let worker = Worker::spawn(NAME, "virtio-vsock".into(), QUEUE_SIZES.len(), mux)?;
        worker
            .call(|mux, context| mux.watch_socket(context))?
            .map_err(host("watching its Unix socket"))?;
        Ok(Vsock {
            cid: self.cid,
            worker: Arc::new(worker),
            listeners,
            counters,
        })
    }
}

/// The socket device.
pub struct Vsock {
    cid: u32,
    worker: Arc<Worker<Mux>>,
    listeners: Arc<Listeners>,
    counters: Arc<VsockCounters>,
}

impl Vsock {
    /// The way for the host's own code to connect and to listen.
    pub fn handle(&self) -> VsockHandle {
        VsockHandle {
            worker: Arc::downgrade(&self.worker),
            listeners: self.listeners.clone(),
        }
    }

    fn mux<R: Send + 'static>(
        &self,
        function: impl FnOnce(&mut Mux) -> R + Send + 'static,
    ) -> Result<R, DeviceError> {
        self.worker.call(move |mux, _| function(mux))
    }
}

/// Reaches a [`Vsock`] from the host's code. It does not keep the device alive.
#[derive(Clone)]
pub struct VsockHandle {
    worker: Weak<Worker<Mux>>,
    listeners: Arc<Listeners>,
}

impl VsockHandle {
    /// Connects to a port of the guest.
    ///
    /// Fails with `ConnectionRefused` if nobody listens there, `TimedOut` if
    /// the guest did not answer in time (it may not have a driver yet), and
    /// `NotConnected` if the device is gone. Not to be called from an
    /// [`Accept`] function, which runs on the device's thread.
    pub fn connect(&self, port: u32, timeout: Duration) -> io::Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair()?;
        let (reply, answer) = channel();
        {
            let worker = self.worker.upgrade().ok_or(io::ErrorKind::NotConnected)?;
            worker.post(move |mux, context| mux.connect(port, theirs, reply, context));
        }
        match answer.recv_timeout(timeout) {
            Ok(result) => result.map(|()| ours),
            Err(RecvTimeoutError::Timeout) => Err(io::ErrorKind::TimedOut.into()),
            Err(RecvTimeoutError::Disconnected) => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// Has `accept` called with the stream whenever the guest connects to
    /// `port` of the host.
    pub fn listen(&self, port: u32, accept: Accept) {
        self.listeners.register(port, accept);
    }

    /// Undoes [`VsockHandle::listen`]. Streams already handed out live on.
    pub fn unlisten(&self, port: u32) {
        self.listeners.unregister(port);
    }

    /// How many connections there are now.
    pub fn connection_count(&self) -> io::Result<usize> {
        let worker = self.worker.upgrade().ok_or(io::ErrorKind::NotConnected)?;
        worker
            .call(|mux, _| mux.connection_count())
            .map_err(io::Error::other)
    }
}

impl VirtioDevice for Vsock {
    fn device_type(&self) -> DeviceType {
        DeviceType::Socket
    }

    fn features(&self) -> u64 {
        F_STREAM
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn set_features(&mut self, _features: u64) {}

    fn read_config(&self, offset: u32, data: &mut [u8]) {
        read_config_bytes(&u64::from(self.cid).to_le_bytes(), offset, data);
    }

    fn write_config(&mut self, _offset: u32, _data: &[u8]) {}

    fn start_queue(&mut self, index: u16, resources: QueueResources) -> Result<(), DeviceError> {
        let queue =
            Virtqueue::for_device(NAME, &QUEUE_SIZES, index, resources, &self.counters.queues)?;
        self.worker.start_queue(queue)
    }

    fn stop_queue(&mut self, index: u16) -> Result<Option<QueueState>, DeviceError> {
        self.worker.stop_queue(index)
    }

    fn reset(&mut self) {
        if let Err(error) = self.mux(Mux::reset) {
            tracing::error!(%error, "resetting");
        }
    }

    fn save(&self) -> Result<DeviceState, DeviceError> {
        DeviceState::encode(DeviceType::Socket, STATE_VERSION, &self.cid)
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), DeviceError> {
        let cid: u32 = state.decode(DeviceType::Socket, STATE_VERSION)?;
        if cid != self.cid {
            let reason = format!("it is for context id {cid}, this device has {}", self.cid);
            return Err(StateError::invalid(NAME, reason).into());
        }
        self.mux(|mux| {
            mux.reset();
            mux.announce_transport_reset();
        })
    }

    fn counters(&self) -> Vec<favo_accel::EventCounter> {
        let mut counters = self.counters.queues.event_counters();
        for (name, count) in [
            ("connections", &self.counters.connections),
            ("resets-sent", &self.counters.resets_sent),
            ("bytes-from-guest", &self.counters.bytes_from_guest),
            ("bytes-to-guest", &self.counters.bytes_to_guest),
        ] {
            counters.push(favo_accel::EventCounter {
                name,
                detail: None,
                count: count.load(Ordering::Relaxed),
            });
        }
        counters
    }
}

#[cfg(test)]
#[path = "vsock_test.rs"]
mod test;
