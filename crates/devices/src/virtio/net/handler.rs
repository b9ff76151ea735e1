//! One queue pair of a network card, on its own thread. The first also serves
//! the control queue.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use favo_accel::GuestMemory;
use favo_net::link::{Link, MAX_FRAME_LENGTH, Offload};

use super::super::queue::{Chain, read_segments, write_segments};
use super::super::worker::{Context, Handler, Interest, Readiness};
use super::Shared;
use super::control::{Ack, MAX_COMMAND};
use super::counters::Undelivered;
use super::header::{self, HEADER_SIZE, Refusal};
use super::incoming::{Incoming, Placed};

const LINK: u64 = 0;
/// Frames moved one way before the other has its turn.
const FRAMES_PER_STEP: usize = 64;
/// Commands run before anything else has its turn.
const COMMANDS_PER_STEP: usize = 16;

/// See the module.
pub struct PairHandler {
    pair: u16,
    link: Box<dyn Link>,
    shared: Arc<Shared>,
    features: u64,
    /// The control queue, if this pair's thread serves it.
    control: Option<u16>,
    /// The link was told whether it is active.
    active: bool,
    incoming: Incoming,
    /// A frame from the guest.
    frame: Vec<u8>,
    /// When the rate limits let the next frame through.
    receive_at: Option<Instant>,
    transmit_at: Option<Instant>,
}

impl PairHandler {
    /// For queue pair `pair`.
    pub fn new(pair: u16, link: Box<dyn Link>, shared: Arc<Shared>) -> Self {
        Self {
            pair,
            link,
            shared,
            features: 0,
            control: None,
            active: true,
            incoming: Incoming::default(),
            frame: Vec::new(),
            receive_at: None,
            transmit_at: None,
        }
    }

    /// Starts to watch the link.
    pub fn watch(&mut self, context: &mut Context) -> std::io::Result<()> {
        let interest = Interest {
            readable: true,
            writable: false,
            edge: true,
        };
        context.watch(self.link.ready(), LINK, interest)
    }

    /// What was negotiated.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// What was negotiated, and the number of the control queue.
    pub fn configure(&mut self, features: u64, control: Option<u16>) {
        self.features = features;
        self.control = control.filter(|_| self.pair == 0);
        self.incoming.discard();
        (self.receive_at, self.transmit_at) = (None, None);
        self.update_active();
    }

    fn receive_queue(&self) -> u16 {
        2 * self.pair
    }

    fn transmit_queue(&self) -> u16 {
        2 * self.pair + 1
    }

    /// Tells the link whether the guest receives on this pair, if that has
    /// changed.
    pub fn update_active(&mut self) {
        let active = self.shared.is_link_up()
            && self.pair < self.shared.active_pairs.load(Ordering::Acquire);
        if active != self.active {
            self.active = active;
            self.link.set_active(active);
        }
    }

    /// From the network to the guest.
    fn receive(&mut self, context: &mut Context) {
        self.update_active();
        let index = self.receive_queue();
        let Some(queue) = context.queue(index) else {
            return;
        };
        self.receive_at = None;
        let mut more = true;
        for _ in 0..FRAMES_PER_STEP {
            if !self.incoming.is_held() && !self.fetch() {
                more = false;
                break;
            }
            if !self.incoming.is_held() {
                continue;
            }
            if let Err(at) = self.shared.permit_to_guest() {
                self.receive_at = Some(at);
                more = false;
                break;
            }
            match self.incoming.place(queue, self.features) {
                Placed::Whole(length) => {
                    self.shared.charge_to_guest(length);
                    self.shared.counters.to_guest.count(length);
                }
                Placed::NoRoom => self.shared.counters.undelivered(Undelivered::NoRoom),
                Placed::NoBuffers => {
                    more = false;
                    break;
                }
            }
        }
        queue.signal();
        if more {
            context.request(index);
        }
    }

    /// Takes the next frame from the link, and holds it if the guest wants it;
    /// whether there was one.
    fn fetch(&mut self) -> bool {
        let Some(offload) = self.link.receive(self.incoming.buffer()) else {
            return false;
        };
        let dropped = match self.incoming.destination() {
            None => Some(Undelivered::Malformed),
            Some(_) if !self.shared.is_link_up() => Some(Undelivered::LinkDown),
            Some(_) if !self.active => Some(Undelivered::InactiveQueue),
            Some(destination) if !self.shared.wants(destination) => Some(Undelivered::Filtered),
            Some(_) => match self.incoming.accept(offload, self.features) {
                Some(()) => None,
                None => Some(Undelivered::Malformed),
            },
        };
        if let Some(reason) = dropped {
            self.shared.counters.undelivered(reason);
        }
        true
    }

    /// From the guest to the network.
    fn transmit(&mut self, context: &mut Context) {
        let index = self.transmit_queue();
        let Some(queue) = context.queue(index) else {
            return;
        };
        self.transmit_at = None;
        let mut more = true;
        for _ in 0..FRAMES_PER_STEP {
            if let Err(at) = self.shared.permit_from_guest() {
                self.transmit_at = Some(at);
                more = false;
                break;
            }
            let Some(chain) = queue.pop() else {
                more = false;
                break;
            };
            match read_frame(queue.memory(), &chain, &mut self.frame) {
                Ok(header) => self.send(&header),
                Err(refusal) => self.shared.counters.refuse(refusal),
            }
            queue.add_used(chain, 0);
        }
        self.link.flush();
        queue.signal();
        if more {
            context.request(index);
        }
    }

    fn send(&mut self, header: &[u8; HEADER_SIZE]) {
        let shared = &self.shared;
        let offload: Result<Offload, Refusal> =
            header::parse(header, &self.frame, self.features, shared.mtu);
        match offload {
            Ok(_) if !shared.is_link_up() => shared.counters.refuse(Refusal::LinkDown),
            Ok(offload) => {
                shared.charge_from_guest(self.frame.len());
                shared.counters.from_guest.count(self.frame.len());
                self.link.send(&self.frame, offload);
            }
            Err(refusal) => {
                // A driver that sends nonsense pays for it all the same.
                shared.charge_from_guest(self.frame.len());
                shared.counters.refuse(refusal);
            }
        }
    }

    fn serve_control(&mut self, index: u16, context: &mut Context) {
        let mut more = true;
        for _ in 0..COMMANDS_PER_STEP {
            let Some(queue) = context.queue(index) else {
                return;
            };
            let Some(chain) = queue.pop() else {
                more = false;
                break;
            };
            let length = chain.readable_bytes();
            let room = chain.writable_bytes();
            let ack = if length > MAX_COMMAND as u64 {
                Ack::Error
            } else {
                let mut command = vec![0; length as usize];
                read_segments(queue.memory(), chain.readable(), 0, &mut command);
                self.shared.execute(&command, self.features)
            };
            if room == 0 {
                self.shared.counters.queues.count_malformed();
            }
            let written = write_segments(queue.memory(), chain.writable(), 0, &[ack as u8]);
            queue.add_used(chain, written as u32);
        }
        if let Some(queue) = context.queue(index) {
            queue.signal();
        }
        self.update_active();
        self.shared.tell_pairs(1);
        if more {
            context.request(index);
        }
    }
}

/// Copies a frame out of the guest's memory into `frame`, and returns its
/// header.
fn read_frame(
    memory: &GuestMemory,
    chain: &Chain,
    frame: &mut Vec<u8>,
) -> Result<[u8; HEADER_SIZE], Refusal> {
    let length = chain
        .readable_bytes()
        .checked_sub(HEADER_SIZE as u64)
        .ok_or(Refusal::TooShort)?;
    if length > MAX_FRAME_LENGTH as u64 {
        return Err(Refusal::TooLong);
    }
    let mut header = [0; HEADER_SIZE];
    read_segments(memory, chain.readable(), 0, &mut header);
    // All of it is overwritten: what an older, longer frame left is cut off.
    frame.resize(length as usize, 0);
    read_segments(memory, chain.readable(), HEADER_SIZE as u64, frame);
    Ok(header)
}

impl Handler for PairHandler {
    fn serve(&mut self, index: u16, context: &mut Context) {
        if Some(index) == self.control {
            self.serve_control(index, context);
        } else if index == self.receive_queue() {
            self.receive(context);
        } else if index == self.transmit_queue() {
            self.transmit(context);
        }
    }

    fn ready(&mut self, _token: u64, _readiness: Readiness, context: &mut Context) {
        self.receive(context);
    }

    fn deadline(&self) -> Option<Instant> {
        match (self.receive_at, self.transmit_at) {
            (Some(receive), Some(transmit)) => Some(receive.min(transmit)),
            (receive, transmit) => receive.or(transmit),
        }
    }

    fn expired(&mut self, context: &mut Context) {
        let now = Instant::now();
        if self.receive_at.is_some_and(|at| at <= now) {
            self.receive_at = None;
            context.request(self.receive_queue());
        }
        if self.transmit_at.is_some_and(|at| at <= now) {
            self.transmit_at = None;
            context.request(self.transmit_queue());
        }
    }
}
