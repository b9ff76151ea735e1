//! Token buckets: how fast a network card may go.
//!
//! A bucket fills at a rate and holds at most a burst. A frame passes while
//! there is a byte in the bucket and may run it into debt, so that a frame
//! larger than the burst passes too, and the long-run rate holds all the same.
//! Pure: the caller says what time it is.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// How much per second, in bytes or in packets.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// Units per second; not 0.
    pub per_second: u64,
    /// Units that may pass at once after a pause; not 0.
    pub burst: u64,
}

/// How fast frames may go in one direction. Without a rate: as fast as they
/// can.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimit {
    /// Bytes of Ethernet frames.
    #[serde(default)]
    pub bytes: Option<Rate>,
    /// Frames, as the guest hands them over or gets them: a large frame that
    /// is still to be cut counts once.
    #[serde(default)]
    pub packets: Option<Rate>,
}

impl RateLimit {
    /// What is wrong with it.
    pub(super) fn check(&self) -> Result<(), String> {
        for rate in [self.bytes, self.packets].into_iter().flatten() {
            if rate.per_second == 0 || rate.burst == 0 {
                return Err("a rate limit of 0 would stop all traffic; \
                            give a rate and a burst above 0, or no limit"
                    .into());
            }
        }
        Ok(())
    }
}

/// Billionths of a unit, so that slow rates fill evenly.
const SCALE: i128 = 1_000_000_000;

#[derive(Clone, Copy, Debug)]
struct Bucket {
    rate: Rate,
    /// In billionths of a unit; below 0 is debt.
    level: i128,
    filled_at: Instant,
}

impl Bucket {
    fn new(rate: Rate, now: Instant) -> Self {
        Self {
            rate,
            level: i128::from(rate.burst) * SCALE,
            filled_at: now,
        }
    }

    fn fill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.filled_at).as_nanos();
        let passed = i128::try_from(passed).unwrap_or(i128::MAX);
        self.filled_at = now.max(self.filled_at);
        let full = i128::from(self.rate.burst) * SCALE;
        let gained = passed.saturating_mul(self.rate.per_second.into());
        self.level = self.level.saturating_add(gained).min(full);
    }

    /// How long until there is `needed` in the bucket.
    fn wait(&self, needed: i128) -> Option<Duration> {
        if self.level >= needed {
            return None;
        }
        let missing = (needed - self.level).unsigned_abs();
        let nanoseconds = missing.div_ceil(self.rate.per_second.max(1).into());
        Some(Duration::from_nanos(
            nanoseconds.try_into().unwrap_or(u64::MAX),
        ))
    }
}

/// A running [`RateLimit`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Limiter {
    bytes: Option<Bucket>,
    packets: Option<Bucket>,
}

impl Limiter {
    /// Starts with full buckets.
    pub fn new(limit: RateLimit, now: Instant) -> Self {
        Self {
            bytes: limit.bytes.map(|rate| Bucket::new(rate, now)),
            packets: limit.packets.map(|rate| Bucket::new(rate, now)),
        }
    }

    /// Whether it never holds anything up.
    pub fn is_unlimited(&self) -> bool {
        self.bytes.is_none() && self.packets.is_none()
    }

    /// Whether a frame may pass now; if not, when it is worth asking again.
    pub fn permit(&mut self, now: Instant) -> Result<(), Instant> {
        let mut wait = None;
        // A whole packet, but any number of bytes: what is more is owed.
        for (bucket, needed) in [(&mut self.packets, SCALE), (&mut self.bytes, 1)] {
            if let Some(bucket) = bucket {
                bucket.fill(now);
                wait = wait.max(bucket.wait(needed));
            }
        }
        match wait {
            None => Ok(()),
            // A moment at most, so that a changed limit is noticed.
            Some(wait) => Err(now + wait.min(Duration::from_millis(500))),
        }
    }

    /// A frame of `length` bytes has passed.
    pub fn charge(&mut self, length: usize) {
        if let Some(bucket) = &mut self.bytes {
            bucket.level -= length as i128 * SCALE;
        }
        if let Some(bucket) = &mut self.packets {
            bucket.level -= SCALE;
        }
    }
}

#[cfg(test)]
#[path = "limit_test.rs"]
mod test;
