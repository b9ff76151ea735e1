//! Virtio memory balloon (virtio 1.2, 5.5): takes memory back from a guest.
//!
//! * The host sets a target; the guest gives that many pages up ("inflates"),
//!   and the host frees what is behind them. A lower target lets it have them
//!   again.
//! * Free page reporting: the guest tells, without being asked, which of its
//!   pages are free; the host frees what is behind those too.
//! * Statistics: the host asks, the guest answers.
//!
//! A guest can name any page at any time; what is not its RAM is ignored and
//! counted. The balloon is a promise of the guest's, not a limit: a limit is
//! set from outside.

mod discard;

use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Weak};
use std::time::Duration;

use favo_accel::{EventCounter, GuestMemory, PAGE_SIZE};
use favo_types::{ByteCount, GuestAddress};
use serde::{Deserialize, Serialize};

use super::device::{
    DeviceError, DeviceState, DeviceType, QueueResources, VirtioDevice, read_config_bytes,
};
use super::queue::{Chain, QueueCounters, QueueState, Virtqueue, read_segments};
use super::worker::{Context, Handler, Worker};
use discard::discard;

const NAME: &str = DeviceType::Balloon.name();
const QUEUE_SIZE: u16 = 128;
const STATE_VERSION: u32 = 1;

const F_STATS_VQ: u64 = 1 << 1;
const F_DEFLATE_ON_OOM: u64 = 1 << 2;
const F_REPORTING: u64 = 1 << 5;

const INFLATE: u16 = 0;
const DEFLATE: u16 = 1;

/// The most page numbers taken from one chain, in bytes. Linux sends 1 KiB.
const MAX_PAGE_LIST: u64 = 64 << 10;
/// Chains handled before anything else has its turn.
const CHAINS_PER_STEP: usize = 16;

fn yes() -> bool {
    true
}

/// A memory balloon.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonSpec {
    /// How much memory the guest gives up from the start.
    #[serde(default)]
    pub target: ByteCount,
    /// The guest may take pages back when it would otherwise run out of
    /// memory.
    #[serde(default = "yes")]
    pub deflate_on_oom: bool,
    /// The guest reports free pages, which are given back to the host.
    #[serde(default = "yes")]
    pub free_page_reporting: bool,
    /// The guest answers when asked for memory statistics.
    #[serde(default = "yes")]
    pub statistics: bool,
}

impl Default for BalloonSpec {
    fn default() -> Self {
        Self {
            target: ByteCount(0),
            deflate_on_oom: true,
            free_page_reporting: true,
            statistics: true,
        }
    }
}

impl BalloonSpec {
    /// Makes the device.
    pub fn build(&self) -> Result<Balloon, DeviceError> {
        let target = pages(self.target).ok_or_else(|| DeviceError::InvalidSpec {
            device: NAME,
            reason: format!("a target of {} is too large", self.target),
        })?;
        let shared = Arc::new(Shared {
            target: AtomicU32::new(target),
            ..Shared::default()
        });
        let mut features = 0;
        let mut queues = 2;
        for (wanted, feature, queue) in [
            (self.deflate_on_oom, F_DEFLATE_ON_OOM, 0),
            (self.statistics, F_STATS_VQ, 1),
            (self.free_page_reporting, F_REPORTING, 1),
        ] {
            if wanted {
                features |= feature;
                queues += queue;
            }
        }
        let handler = BalloonHandler {
            shared: shared.clone(),
            features: 0,
            statistics_buffer: None,
            waiting: Vec::new(),
        };
        Ok(Balloon {
            worker: Arc::new(Worker::spawn(
                NAME,
                "virtio-balloon".into(),
                queues,
                handler,
            )?),
            shared,
            features,
            queue_sizes: vec![QUEUE_SIZE; queues],
        })
    }
}

/// Pages of 4 KiB, the unit of the configuration space.
fn pages(bytes: ByteCount) -> Option<u32> {
    u32::try_from(bytes.bytes() / PAGE_SIZE).ok()
}

#[derive(Default)]
struct Shared {
    /// `num_pages`.
    target: AtomicU32,
    /// `actual`.
    actual: AtomicU32,
    discarded_bytes: AtomicU64,
    reported_bytes: AtomicU64,
    pages_outside_ram: AtomicU64,
    failed_discards: AtomicU64,
    queues: Arc<QueueCounters>,
}

/// The balloon device.
pub struct Balloon {
    worker: Arc<Worker<BalloonHandler>>,
    shared: Arc<Shared>,
    features: u64,
    queue_sizes: Vec<u16>,
}

impl Balloon {
    /// The way to steer it.
    pub fn handle(&self) -> BalloonHandle {
        BalloonHandle {
            worker: Arc::downgrade(&self.worker),
            shared: self.shared.clone(),
        }
    }
}

/// Steers a [`Balloon`]. It does not keep the device alive.
#[derive(Clone)]
pub struct BalloonHandle {
    worker: Weak<Worker<BalloonHandler>>,
    shared: Arc<Shared>,
}

impl BalloonHandle {
    /// Asks the guest to give up this much in total. It does so at its own
    /// pace, and only if it has a driver.
    pub fn set_target(&self, target: ByteCount) -> io::Result<()> {
        let target = pages(target).ok_or(io::ErrorKind::InvalidInput)?;
        self.shared.target.store(target, Ordering::Release);
        let worker = self.worker.upgrade().ok_or(io::ErrorKind::NotConnected)?;
        worker.post(|_, context| {
            if let Some(queue) = context.queue(INFLATE) {
                queue.interrupt().signal_config();
            }
        });
        Ok(())
    }

    /// What the guest has been asked for.
    pub fn target(&self) -> ByteCount {
        ByteCount(u64::from(self.shared.target.load(Ordering::Acquire)) * PAGE_SIZE)
    }

    /// What the guest says it has given up.
    pub fn actual(&self) -> ByteCount {
        ByteCount(u64::from(self.shared.actual.load(Ordering::Acquire)) * PAGE_SIZE)
    }

    /// Asks the guest how it uses its memory. `TimedOut` if it does not answer
    /// in time: it may have no driver, or one without statistics.
    pub fn statistics(&self, timeout: Duration) -> io::Result<BalloonStatistics> {
        let (reply, answer) = channel();
        {
            let worker = self.worker.upgrade().ok_or(io::ErrorKind::NotConnected)?;
            worker.post(move |handler, context| handler.ask(reply, context));
        }
        answer
            .recv_timeout(timeout)
            .map_err(|_| io::ErrorKind::TimedOut.into())
    }
}

/// What a guest says of its memory (5.5.6.3). Sizes are in bytes; what it did
/// not tell is `None`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct BalloonStatistics {
    /// Swapped in since boot.
    pub swap_in: Option<u64>,
    /// Swapped out since boot.
    pub swap_out: Option<u64>,
    /// Major page faults since boot.
    pub major_faults: Option<u64>,
    /// Minor page faults since boot.
    pub minor_faults: Option<u64>,
    /// Not used for anything.
    pub free: Option<u64>,
    /// All the guest has.
    pub total: Option<u64>,
    /// What could be had without swapping.
    pub available: Option<u64>,
    /// Caches that could be dropped.
    pub caches: Option<u64>,
}

impl BalloonStatistics {
    /// Reads `struct virtio_balloon_stat`s: a 16-bit tag and a 64-bit value.
    fn from_bytes(bytes: &[u8]) -> Self {
        let mut statistics = Self::default();
        for entry in bytes.chunks_exact(10) {
            let (tag, value) = entry.split_at(2);
            let tag = u16::from_le_bytes([tag[0], tag[1]]);
            let value = value.try_into().map_or(0, u64::from_le_bytes);
            let field = match tag {
                0 => &mut statistics.swap_in,
                1 => &mut statistics.swap_out,
                2 => &mut statistics.major_faults,
                3 => &mut statistics.minor_faults,
                4 => &mut statistics.free,
                5 => &mut statistics.total,
                6 => &mut statistics.available,
                7 => &mut statistics.caches,
                _ => continue,
            };
            *field = Some(value);
        }
        statistics
    }
}

#[derive(Serialize, Deserialize)]
struct State {
    target: u32,
    actual: u32,
}

impl VirtioDevice for Balloon {
    fn device_type(&self) -> DeviceType {
        DeviceType::Balloon
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn set_features(&mut self, features: u64) {
        if let Err(error) = self
            .worker
            .call(move |handler, _| handler.features = features)
        {
            tracing::error!(%error, "setting features");
        }
    }

    fn read_config(&self, offset: u32, data: &mut [u8]) {
        let mut config = [0; 8];
        config[..4].copy_from_slice(&self.shared.target.load(Ordering::Acquire).to_le_bytes());
        config[4..].copy_from_slice(&self.shared.actual.load(Ordering::Acquire).to_le_bytes());
        read_config_bytes(&config, offset, data);
    }

    fn write_config(&mut self, offset: u32, data: &[u8]) {
        if offset == 4
            && let Ok(actual) = data.try_into().map(u32::from_le_bytes)
        {
            self.shared.actual.store(actual, Ordering::Release);
        }
    }

    fn start_queue(&mut self, index: u16, resources: QueueResources) -> Result<(), DeviceError> {
        let queue = Virtqueue::for_device(
            NAME,
            &self.queue_sizes,
            index,
            resources,
            &self.shared.queues,
        )?;
        self.worker.start_queue(queue)
    }

    fn stop_queue(&mut self, index: u16) -> Result<Option<QueueState>, DeviceError> {
        self.worker.stop_queue(index)
    }

    fn reset(&mut self) {
        self.shared.actual.store(0, Ordering::Release);
        if let Err(error) = self.worker.call(|handler, _| {
            handler.features = 0;
            handler.waiting.clear();
        }) {
            tracing::error!(%error, "resetting");
        }
    }

    fn save(&self) -> Result<DeviceState, DeviceError> {
        let state = State {
            target: self.shared.target.load(Ordering::Acquire),
            actual: self.shared.actual.load(Ordering::Acquire),
        };
        DeviceState::encode(DeviceType::Balloon, STATE_VERSION, &state)
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), DeviceError> {
        let state: State = state.decode(DeviceType::Balloon, STATE_VERSION)?;
        self.shared.target.store(state.target, Ordering::Release);
        self.shared.actual.store(state.actual, Ordering::Release);
        Ok(())
    }

    fn counters(&self) -> Vec<EventCounter> {
        let mut counters = self.shared.queues.event_counters();
        for (name, count) in [
            ("discarded-bytes", &self.shared.discarded_bytes),
            ("reported-free-bytes", &self.shared.reported_bytes),
            ("pages-outside-ram", &self.shared.pages_outside_ram),
            ("failed-discards", &self.shared.failed_discards),
        ] {
            counters.push(EventCounter {
                name,
                detail: None,
                count: count.load(Ordering::Relaxed),
            });
        }
        counters
    }
}

struct BalloonHandler {
    shared: Arc<Shared>,
    features: u64,
    /// The guest's statistics buffer; giving it back asks for new ones.
    statistics_buffer: Option<Chain>,
    waiting: Vec<Sender<BalloonStatistics>>,
}

impl BalloonHandler {
    /// The optional queues are numbered as they were negotiated.
    fn statistics_queue(&self) -> Option<u16> {
        (self.features & F_STATS_VQ != 0).then_some(2)
    }

    fn reporting_queue(&self) -> Option<u16> {
        let index = 2 + u16::from(self.features & F_STATS_VQ != 0);
        (self.features & F_REPORTING != 0).then_some(index)
    }

    fn inflate(&self, memory: &GuestMemory, chain: &Chain) {
        let length = chain.readable_bytes();
        if length > MAX_PAGE_LIST {
            self.shared.queues.count_malformed();
            return;
        }
        let mut bytes = [0; 4096];
        let mut run: Option<(u64, u64)> = None;
        let mut offset = 0;
        loop {
            let got = read_segments(memory, chain.readable(), offset, &mut bytes);
            offset += got as u64;
            for number in bytes[..got].chunks_exact(4) {
                let number = number.try_into().map_or(0, u32::from_le_bytes);
                let address = u64::from(number) * PAGE_SIZE;
                match &mut run {
                    Some((start, length)) if *start + *length == address => *length += PAGE_SIZE,
                    _ => {
                        if let Some((start, length)) = run.replace((address, PAGE_SIZE)) {
                            self.release(memory, start, length);
                        }
                    }
                }
            }
            if got < bytes.len() {
                break;
            }
        }
        if let Some((start, length)) = run {
            self.release(memory, start, length);
        }
    }

    /// Gives pages back. A run that is not all RAM is tried page by page.
    fn release(&self, memory: &GuestMemory, start: u64, length: u64) {
        match discard(memory, GuestAddress(start), length) {
            Ok(true) => {
                self.shared
                    .discarded_bytes
                    .fetch_add(length, Ordering::Relaxed);
            }
            Ok(false) if length > PAGE_SIZE => {
                for page in (start..start + length).step_by(PAGE_SIZE as usize) {
                    self.release(memory, page, PAGE_SIZE);
                }
            }
            Ok(false) => {
                self.shared
                    .pages_outside_ram
                    .fetch_add(1, Ordering::Relaxed);
            }
            Err(_) => {
                self.shared.failed_discards.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn report(&self, memory: &GuestMemory, chain: &Chain) {
        for segment in chain.writable() {
            match discard(memory, segment.address, segment.length.into()) {
                Ok(_) => {
                    self.shared
                        .reported_bytes
                        .fetch_add(segment.length.into(), Ordering::Relaxed);
                }
                Err(_) => {
                    self.shared.failed_discards.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }

    fn ask(&mut self, reply: Sender<BalloonStatistics>, context: &mut Context) {
        let Some(queue) = self
            .statistics_queue()
            .and_then(|index| context.queue(index))
        else {
            return;
        };
        self.waiting.push(reply);
        if let Some(buffer) = self.statistics_buffer.take() {
            queue.add_used(buffer, 0);
            queue.signal();
        }
    }

    fn take_statistics(&mut self, index: u16, context: &mut Context) {
        let Some(queue) = context.queue(index) else {
            return;
        };
        for _ in 0..CHAINS_PER_STEP {
            let Some(chain) = queue.pop() else {
                break;
            };
            let mut bytes = [0; 640];
            let got = read_segments(queue.memory(), chain.readable(), 0, &mut bytes);
            let statistics = BalloonStatistics::from_bytes(&bytes[..got]);
            for waiting in self.waiting.drain(..) {
                let _ = waiting.send(statistics);
            }
            // A driver has one buffer only; an older one goes back.
            if let Some(older) = self.statistics_buffer.replace(chain) {
                queue.add_used(older, 0);
            }
        }
        queue.signal();
    }
}

impl Handler for BalloonHandler {
    fn serve(&mut self, index: u16, context: &mut Context) {
        if self.statistics_queue() == Some(index) {
            self.take_statistics(index, context);
            return;
        }
        let reporting = self.reporting_queue() == Some(index);
        let Some(queue) = context.queue(index) else {
            return;
        };
        let mut more = true;
        for _ in 0..CHAINS_PER_STEP {
            let Some(chain) = queue.pop() else {
                more = false;
                break;
            };
            match index {
                INFLATE => self.inflate(queue.memory(), &chain),
                // The guest takes pages back: they come when it touches them.
                DEFLATE => {}
                _ if reporting => self.report(queue.memory(), &chain),
                _ => {}
            }
            queue.add_used(chain, 0);
        }
        queue.signal();
        if more {
            context.request(index);
        }
    }

    fn stopping(&mut self, index: u16, context: &mut Context) {
        if self.statistics_queue() == Some(index)
            && let Some(buffer) = self.statistics_buffer.take()
            && let Some(queue) = context.queue(index)
        {
            queue.unpop(buffer);
        }
    }
}

#[cfg(test)]
#[path = "balloon_test.rs"]
mod test;
