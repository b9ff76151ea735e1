//! What a network card counts.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use favo_accel::EventCounter;

use super::super::queue::QueueCounters;
use super::header::Refusal;

/// Why a frame for the guest is dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Undelivered {
    /// The driver does not want frames for this address.
    Filtered,
    /// The driver's buffers can't hold it.
    NoRoom,
    /// It came on a queue pair the driver does not use.
    InactiveQueue,
    /// The link is down.
    LinkDown,
    /// The network handed over something that is no frame.
    Malformed,
}

impl Undelivered {
    const ALL: [Self; 5] = [
        Self::Filtered,
        Self::NoRoom,
        Self::InactiveQueue,
        Self::LinkDown,
        Self::Malformed,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Filtered => "filtered",
            Self::NoRoom => "no-room",
            Self::InactiveQueue => "inactive-queue",
            Self::LinkDown => "link-down",
            Self::Malformed => "malformed",
        }
    }
}

/// Frames and bytes in one direction.
#[derive(Debug, Default)]
pub struct Traffic {
    frames: AtomicU64,
    bytes: AtomicU64,
}

impl Traffic {
    /// Counts a frame.
    pub fn count(&self, length: usize) {
        self.frames.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(length as u64, Ordering::Relaxed);
    }
}

/// What all queues of a card count together.
#[derive(Debug, Default)]
pub struct NetCounters {
    /// Frames the guest took.
    pub to_guest: Traffic,
    /// Frames the guest sent and the network was given.
    pub from_guest: Traffic,
    /// What went wrong on the rings.
    pub queues: Arc<QueueCounters>,
    refused: [AtomicU64; Refusal::ALL.len()],
    undelivered: [AtomicU64; Undelivered::ALL.len()],
}

impl NetCounters {
    /// Counts a frame from the guest that is dropped.
    pub fn refuse(&self, refusal: Refusal) {
        self.refused[refusal as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a frame for the guest that is dropped.
    pub fn undelivered(&self, reason: Undelivered) {
        self.undelivered[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// As named counts.
    pub fn event_counters(&self) -> Vec<EventCounter> {
        let plain = |name, count: &AtomicU64| EventCounter {
            name,
            detail: None,
            count: count.load(Ordering::Relaxed),
        };
        let mut counters = vec![
            plain("frames-to-guest", &self.to_guest.frames),
            plain("bytes-to-guest", &self.to_guest.bytes),
            plain("frames-from-guest", &self.from_guest.frames),
            plain("bytes-from-guest", &self.from_guest.bytes),
        ];
        let dropped = |name, reason: &str, count: &AtomicU64| EventCounter {
            name,
            detail: Some(reason.to_owned()),
            count: count.load(Ordering::Relaxed),
        };
        for (reason, count) in Refusal::ALL.iter().zip(&self.refused) {
            counters.push(dropped("dropped-from-guest", reason.name(), count));
        }
        for (reason, count) in Undelivered::ALL.iter().zip(&self.undelivered) {
            counters.push(dropped("dropped-to-guest", reason.name(), count));
        }
        counters.extend(self.queues.event_counters());
        counters
    }
}
