//! Virtio network device (virtio 1.2, 5.1): a network card.
//!
//! Every queue pair has a thread and a cable ([`Link`]) of its own into the
//! network. Frames cross with what their sender left undone (checksums, cutting
//! into packets); what the other side's driver does not take unfinished is done
//! in software on the way to it.
//!
//! [`header`] checks what a guest puts before a frame, [`incoming`] fills its
//! buffers, [`control`] is what its driver sets, [`limit`] how fast it may go,
//! [`handler`] what a queue pair's thread does.

pub mod control;
pub mod counters;
pub mod handler;
pub mod header;
pub mod incoming;
pub mod limit;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Instant;

use favo_accel::EventCounter;
use favo_net::link::Link;
use serde::{Deserialize, Serialize};

use super::device::{
    DeviceError, DeviceState, DeviceType, QueueResources, VirtioDevice, read_config_bytes,
};
use super::queue::{QueueState, Virtqueue};
use super::worker::Worker;
use crate::state::StateError;
use control::{Ack, Control, Mac};
use counters::NetCounters;
use handler::PairHandler;
use limit::{Limiter, RateLimit};

const NAME: &str = DeviceType::Network.name();
const STATE_VERSION: u32 = 1;
/// Descriptors of a queue that carries frames.
const QUEUE_SIZE: u16 = 256;
/// Descriptors of the control queue.
const CONTROL_QUEUE_SIZE: u16 = 64;
/// The most queue pairs of one card.
pub const MAX_QUEUE_PAIRS: u16 = 16;
/// The smallest MTU: what IPv4 asks of every link (RFC 791).
pub const MIN_MTU: u16 = 68;
/// The largest MTU: what an IPv4 packet can be, down to a multiple of 16.
pub const MAX_MTU: u16 = 65_520;

/// Feature bits (5.1.3), as masks.
pub mod feature {
    /// The device finishes checksums.
    pub const CSUM: u64 = 1 << 0;
    /// The driver takes frames with unfinished checksums.
    pub const GUEST_CSUM: u64 = 1 << 1;
    /// The MTU stands in the configuration space.
    pub const MTU: u64 = 1 << 3;
    /// The address stands in the configuration space.
    pub const MAC: u64 = 1 << 5;
    /// The driver takes large TCP frames over IPv4.
    pub const GUEST_TSO4: u64 = 1 << 7;
    /// The driver takes large TCP frames over IPv6.
    pub const GUEST_TSO6: u64 = 1 << 8;
    /// The device takes large TCP frames over IPv4.
    pub const HOST_TSO4: u64 = 1 << 11;
    /// The device takes large TCP frames over IPv6.
    pub const HOST_TSO6: u64 = 1 << 12;
    /// The driver merges receive buffers.
    pub const MRG_RXBUF: u64 = 1 << 15;
    /// The link's status stands in the configuration space.
    pub const STATUS: u64 = 1 << 16;
    /// There is a control queue.
    pub const CTRL_VQ: u64 = 1 << 17;
    /// It sets promiscuous mode and address tables.
    pub const CTRL_RX: u64 = 1 << 18;
    /// It sets further receive modes.
    pub const CTRL_RX_EXTRA: u64 = 1 << 20;
    /// The driver announces itself when asked.
    pub const GUEST_ANNOUNCE: u64 = 1 << 21;
    /// There may be several queue pairs.
    pub const MQ: u64 = 1 << 22;
    /// The control queue sets the address.
    pub const CTRL_MAC_ADDR: u64 = 1 << 23;

    /// Without the first, the others mean nothing (5.1.3.1).
    const REQUIRES: [(u64, u64); 4] = [
        (CSUM, HOST_TSO4 | HOST_TSO6),
        (GUEST_CSUM, GUEST_TSO4 | GUEST_TSO6),
        (
            CTRL_VQ,
            CTRL_RX | CTRL_RX_EXTRA | GUEST_ANNOUNCE | MQ | CTRL_MAC_ADDR,
        ),
        (STATUS, GUEST_ANNOUNCE),
    ];

    /// What a driver agreed to, without what lacks its ground.
    pub(super) fn effective(mut features: u64) -> u64 {
        for (ground, built) in REQUIRES {
            if features & ground == 0 {
                features &= !built;
            }
        }
        features
    }
}

const STATUS_LINK_UP: u16 = 1;
const STATUS_ANNOUNCE: u16 = 2;

fn default_mtu() -> u16 {
    1500
}

/// A network card as the guest sees it. The cables are given to
/// [`NetSpec::build`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetSpec {
    /// Its address. A driver may change it; the network need not accept that.
    pub mac: Mac,
    /// The longest packet, in bytes, without the Ethernet header:
    /// [`MIN_MTU`] to [`MAX_MTU`].
    #[serde(default = "default_mtu")]
    pub mtu: u16,
    /// How fast the guest may send.
    #[serde(default)]
    pub from_guest: RateLimit,
    /// How fast the guest may be sent to. What comes faster waits in the
    /// network.
    #[serde(default)]
    pub to_guest: RateLimit,
}

impl NetSpec {
    /// An unlimited card with an MTU of 1,500 bytes.
    pub fn new(mac: Mac) -> Self {
        Self {
            mac,
            mtu: default_mtu(),
            from_guest: RateLimit::default(),
            to_guest: RateLimit::default(),
        }
    }

    /// Makes the device, with a queue pair for each of `links`.
    pub fn build(&self, links: Vec<Box<dyn Link>>) -> Result<Net, DeviceError> {
        self.check(links.len())
            .map_err(|reason| DeviceError::InvalidSpec {
                device: NAME,
                reason,
            })?;
        let now = Instant::now();
        let shared = Arc::new(Shared {
            mtu: self.mtu,
            pairs: links.len() as u16,
            active_pairs: AtomicU16::new(1),
            link_up: AtomicBool::new(true),
            control: Mutex::new(Control::new(self.mac)),
            from_guest: Gate::new(self.from_guest, now),
            to_guest: Gate::new(self.to_guest, now),
            counters: NetCounters::default(),
            workers: OnceLock::new(),
        });
        let mut queue_sizes = vec![QUEUE_SIZE; 2 * links.len()];
        queue_sizes.push(CONTROL_QUEUE_SIZE);
        let mut workers = Vec::with_capacity(links.len());
        for (pair, link) in (0u16..).zip(links) {
            let handler = PairHandler::new(pair, link, shared.clone());
            let name = format!("virtio-net {pair}");
            let worker = Worker::spawn(NAME, name, queue_sizes.len(), handler)?;
            worker
                .call(PairHandler::watch)?
                .map_err(|source| DeviceError::Host {
                    device: NAME,
                    operation: "watching the network's event descriptor",
                    source,
                })?;
            workers.push(Arc::new(worker));
        }
        let weak = workers.iter().map(Arc::downgrade).collect();
        // Set here only.
        let _ = shared.workers.set(weak);
        let mut net = Net {
            mac: self.mac,
            shared,
            workers,
            queue_sizes,
            features: 0,
        };
        net.configure(0);
        Ok(net)
    }

    fn check(&self, links: usize) -> Result<(), String> {
        if links == 0 || links > usize::from(MAX_QUEUE_PAIRS) {
            return Err(format!(
                "{links} queue pairs; choose 1 to {MAX_QUEUE_PAIRS}"
            ));
        }
        if !(MIN_MTU..=MAX_MTU).contains(&self.mtu) {
            return Err(format!(
                "an MTU of {} bytes is not possible; choose {MIN_MTU} to {MAX_MTU}",
                self.mtu
            ));
        }
        if self.mac[0] & 1 != 0 || self.mac == [0; 6] {
            let reason = "its MAC address is a group's or all zero; give it one of its own";
            return Err(reason.into());
        }
        self.from_guest.check()?;
        self.to_guest.check()
    }
}

/// A rate limit that all queue pairs of a card share.
struct Gate {
    limited: AtomicBool,
    limiter: Mutex<Limiter>,
}

impl Gate {
    fn new(limit: RateLimit, now: Instant) -> Self {
        let limiter = Limiter::new(limit, now);
        Self {
            limited: AtomicBool::new(!limiter.is_unlimited()),
            limiter: Mutex::new(limiter),
        }
    }

    fn set(&self, limit: RateLimit) {
        let limiter = Limiter::new(limit, Instant::now());
        self.limited
            .store(!limiter.is_unlimited(), Ordering::Release);
        *lock(&self.limiter) = limiter;
    }

    fn permit(&self) -> Result<(), Instant> {
        if !self.limited.load(Ordering::Acquire) {
            return Ok(());
        }
        lock(&self.limiter).permit(Instant::now())
    }

    fn charge(&self, length: usize) {
        if self.limited.load(Ordering::Acquire) {
            lock(&self.limiter).charge(length);
        }
    }
}

/// What holds after a panic elsewhere is still whole: every change is one
/// assignment.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What all queue pairs of a card know.
pub struct Shared {
    mtu: u16,
    pairs: u16,
    /// [`Control::active_pairs`], to be read at every step.
    active_pairs: AtomicU16,
    link_up: AtomicBool,
    control: Mutex<Control>,
    from_guest: Gate,
    to_guest: Gate,
    counters: NetCounters,
    /// One per queue pair.
    workers: OnceLock<Vec<Weak<Worker<PairHandler>>>>,
}

impl Shared {
    fn is_link_up(&self) -> bool {
        self.link_up.load(Ordering::Acquire)
    }

    /// Has the pairs from `first` on notice that the link, or how many of them
    /// the driver uses, has changed. A pair's thread must leave itself out: if
    /// the device went away meanwhile, it would wait for its own end.
    fn tell_pairs(&self, first: usize) {
        let workers = self.workers.get().map(Vec::as_slice).unwrap_or_default();
        for worker in workers.iter().skip(first).filter_map(Weak::upgrade) {
            worker.post(|handler, _| handler.update_active());
        }
    }

    fn permit_from_guest(&self) -> Result<(), Instant> {
        self.from_guest.permit()
    }

    fn charge_from_guest(&self, length: usize) {
        self.from_guest.charge(length);
    }

    fn permit_to_guest(&self) -> Result<(), Instant> {
        self.to_guest.permit()
    }

    fn charge_to_guest(&self, length: usize) {
        self.to_guest.charge(length);
    }

    fn wants(&self, destination: &Mac) -> bool {
        lock(&self.control).wants(destination)
    }

    fn execute(&self, command: &[u8], features: u64) -> Ack {
        let mut control = lock(&self.control);
        let ack = control.execute(command, features, self.pairs);
        self.active_pairs
            .store(control.active_pairs, Ordering::Release);
        ack
    }

    fn set_control(&self, new: Control) {
        let mut control = lock(&self.control);
        self.active_pairs.store(new.active_pairs, Ordering::Release);
        *control = new;
    }

    fn status(&self) -> u16 {
        let mut status = 0;
        if self.is_link_up() {
            status |= STATUS_LINK_UP;
        }
        if lock(&self.control).announce {
            status |= STATUS_ANNOUNCE;
        }
        status
    }
}

/// The network card.
pub struct Net {
    mac: Mac,
    shared: Arc<Shared>,
    /// One per queue pair.
    workers: Vec<Arc<Worker<PairHandler>>>,
    queue_sizes: Vec<u16>,
    features: u64,
}

impl Net {
    /// The way to steer it.
    pub fn handle(&self) -> NetHandle {
        NetHandle {
            worker: self.workers.first().map_or_else(Weak::new, Arc::downgrade),
            shared: self.shared.clone(),
        }
    }

    /// The control queue's number: behind all pairs the driver could use
    /// (5.1.2).
    fn control_queue(&self) -> u16 {
        if self.features & feature::MQ != 0 {
            2 * self.shared.pairs
        } else {
            2
        }
    }

    fn worker(&self, index: u16) -> Result<&Worker<PairHandler>, DeviceError> {
        let no_such_queue = DeviceError::NoSuchQueue {
            device: NAME,
            queue: index,
        };
        if usize::from(index) >= self.queue_sizes.len() {
            return Err(no_such_queue);
        }
        // A driver without several pairs may start the queue where the control
        // queue would be with them. Nobody serves it.
        let pair = match usize::from(index / 2) {
            pair if index != self.control_queue() && pair < self.workers.len() => pair,
            _ => 0,
        };
        self.workers
            .get(pair)
            .map(AsRef::as_ref)
            .ok_or(no_such_queue)
    }

    fn configure(&mut self, features: u64) {
        self.features = feature::effective(features);
        let features = self.features;
        let control = (features & feature::CTRL_VQ != 0).then(|| self.control_queue());
        for worker in &self.workers {
            let configured = worker.call(move |handler, _| handler.configure(features, control));
            if let Err(error) = configured {
                tracing::error!(%error, "setting features");
            }
        }
    }
}

/// Steers a [`Net`]. It does not keep the device alive.
#[derive(Clone)]
pub struct NetHandle {
    worker: Weak<Worker<PairHandler>>,
    shared: Arc<Shared>,
}

impl NetHandle {
    /// Asks the guest to announce its addresses on its networks, after a
    /// migration. A driver without the feature is not asked.
    pub fn announce(&self) -> io::Result<()> {
        self.change_config(|shared, features| {
            if features & feature::GUEST_ANNOUNCE != 0 {
                lock(&shared.control).announce = true;
            }
        })
    }

    /// Plugs the cable in, or pulls it: the guest sees it, and no frame
    /// crosses; those that would are dropped and counted.
    pub fn set_link_up(&self, up: bool) -> io::Result<()> {
        // At once, before any thread is told.
        self.shared.link_up.store(up, Ordering::Release);
        self.shared.tell_pairs(0);
        self.change_config(|_, _| {})
    }

    /// Changes how fast the guest may send and be sent to, at once.
    pub fn set_limits(&self, from_guest: RateLimit, to_guest: RateLimit) -> io::Result<()> {
        for limit in [from_guest, to_guest] {
            limit
                .check()
                .map_err(|reason| io::Error::new(io::ErrorKind::InvalidInput, reason))?;
        }
        self.shared.from_guest.set(from_guest);
        self.shared.to_guest.set(to_guest);
        Ok(())
    }

    /// What the card counted.
    pub fn counters(&self) -> Vec<EventCounter> {
        self.shared.counters.event_counters()
    }

    fn change_config(&self, change: impl FnOnce(&Shared, u64) + Send + 'static) -> io::Result<()> {
        let worker = self.worker.upgrade().ok_or(io::ErrorKind::NotConnected)?;
        let shared = self.shared.clone();
        worker.post(move |handler, context| {
            change(&shared, handler.features());
            if let Some(queue) = context.queue(0) {
                queue.interrupt().signal_config();
            }
        });
        Ok(())
    }
}

#[derive(Serialize, Deserialize)]
struct State {
    pairs: u16,
    mtu: u16,
    link_up: bool,
    control: Control,
}

impl VirtioDevice for Net {
    fn device_type(&self) -> DeviceType {
        DeviceType::Network
    }

    fn features(&self) -> u64 {
        use feature::{
            CSUM, CTRL_MAC_ADDR, CTRL_RX, CTRL_RX_EXTRA, CTRL_VQ, GUEST_ANNOUNCE, GUEST_CSUM,
            GUEST_TSO4, GUEST_TSO6, HOST_TSO4, HOST_TSO6, MAC, MQ, MRG_RXBUF, MTU, STATUS,
        };
        let always = CSUM | GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | HOST_TSO4 | HOST_TSO6;
        let always = always | MTU | MAC | MRG_RXBUF | STATUS | GUEST_ANNOUNCE;
        let always = always | CTRL_VQ | CTRL_RX | CTRL_RX_EXTRA | CTRL_MAC_ADDR;
        if self.shared.pairs > 1 {
            always | MQ
        } else {
            always
        }
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn set_features(&mut self, features: u64) {
        self.configure(features);
    }

    fn read_config(&self, offset: u32, data: &mut [u8]) {
        let mut config = [0; 12];
        config[..6].copy_from_slice(&lock(&self.shared.control).mac);
        config[6..8].copy_from_slice(&self.shared.status().to_le_bytes());
        config[8..10].copy_from_slice(&self.shared.pairs.to_le_bytes());
        config[10..].copy_from_slice(&self.shared.mtu.to_le_bytes());
        read_config_bytes(&config, offset, data);
    }

    /// A modern driver sets the address by the control queue.
    fn write_config(&mut self, _offset: u32, _data: &[u8]) {}

    fn start_queue(&mut self, index: u16, resources: QueueResources) -> Result<(), DeviceError> {
        let queue = Virtqueue::for_device(
            NAME,
            &self.queue_sizes,
            index,
            resources,
            &self.shared.counters.queues,
        )?;
        self.worker(index)?.start_queue(queue)
    }

    fn stop_queue(&mut self, index: u16) -> Result<Option<QueueState>, DeviceError> {
        self.worker(index)?.stop_queue(index)
    }

    fn reset(&mut self) {
        self.shared.set_control(Control::new(self.mac));
        self.configure(0);
    }

    fn save(&self) -> Result<DeviceState, DeviceError> {
        let state = State {
            pairs: self.shared.pairs,
            mtu: self.shared.mtu,
            link_up: self.shared.link_up.load(Ordering::Acquire),
            control: lock(&self.shared.control).clone(),
        };
        DeviceState::encode(DeviceType::Network, STATE_VERSION, &state)
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), DeviceError> {
        let state: State = state.decode(DeviceType::Network, STATE_VERSION)?;
        let shared = &self.shared;
        let invalid = |reason: String| Err(StateError::invalid(NAME, reason).into());
        if (state.pairs, state.mtu) != (shared.pairs, shared.mtu) {
            return invalid(format!(
                "it has {} queue pairs and an MTU of {}, this card has {} and {}",
                state.pairs, state.mtu, shared.pairs, shared.mtu
            ));
        }
        if !state.control.is_plausible(shared.pairs) {
            return invalid("what its driver set is not possible".into());
        }
        shared.link_up.store(state.link_up, Ordering::Release);
        shared.set_control(state.control);
        shared.tell_pairs(0);
        Ok(())
    }

    fn counters(&self) -> Vec<EventCounter> {
        self.shared.counters.event_counters()
    }
}

#[cfg(test)]
#[path = "net_test.rs"]
mod test;
