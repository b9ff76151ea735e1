//! Conversations the firewall has let through, and how long they last.

use crate::model::Direction;
use crate::packet::{Ip, TcpFlags, protocol};

use super::Origin;

/// Milliseconds of a clock that never goes back. Whoever calls has the clock.
pub type Milliseconds = u64;

/// How many conversations a port may have at a time.
pub const MAXIMUM_FLOWS: usize = 65_536;

/// How long a conversation lasts without a packet, by what it is doing.
/// The figures are those RFC 5382, RFC 4787 and RFC 5508 ask of a translator,
/// or longer.
mod lifetime {
    use super::Milliseconds;

    pub const TCP_OPENING: Milliseconds = 240_000;
    pub const TCP_OPEN: Milliseconds = 7_440_000;
    pub const TCP_CLOSING: Milliseconds = 240_000;
    pub const TCP_RESET: Milliseconds = 10_000;
    pub const ONE_WAY: Milliseconds = 60_000;
    pub const BOTH_WAYS: Milliseconds = 300_000;
}

/// One conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Who spoke first.
    pub opened: Direction,
    /// Where the other end is.
    pub origin: Origin,
    /// The rules it was allowed by.
    pub epoch: u64,
    /// When it is forgotten.
    pub expires: Milliseconds,
    progress: Progress,
}

/// How far a conversation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Progress {
    /// The other side has answered.
    answered: bool,
    /// TCP: which sides have sent their FIN.
    finished_out: bool,
    finished_in: bool,
    /// TCP: it was reset.
    reset: bool,
}

impl Flow {
    /// A conversation whose first packet is `ip`.
    pub fn open(
        ip: &Ip,
        direction: Direction,
        origin: Origin,
        epoch: u64,
        now: Milliseconds,
    ) -> Self {
        let mut flow = Self {
            opened: direction,
            origin,
            epoch,
            expires: 0,
            progress: Progress {
                answered: false,
                finished_out: false,
                finished_in: false,
                reset: false,
            },
        };
        flow.advance(ip.protocol, ip.flags, direction, now);
        flow
    }

    /// Takes note of one more packet.
    pub fn advance(
        &mut self,
        protocol: u8,
        flags: TcpFlags,
        direction: Direction,
        now: Milliseconds,
    ) {
        let progress = &mut self.progress;
        progress.answered |= direction != self.opened;
        if protocol == protocol::TCP {
            if flags.syn() && !flags.ack() && direction == self.opened {
                // The same ports again: a new connection.
                *progress = Progress {
                    answered: false,
                    finished_out: false,
                    finished_in: false,
                    reset: false,
                };
            }
            progress.reset |= flags.rst();
            match direction {
                Direction::Out => progress.finished_out |= flags.fin(),
                Direction::In => progress.finished_in |= flags.fin(),
            }
        }
        self.expires = now.saturating_add(match (protocol, *progress) {
            (protocol::TCP, Progress { reset: true, .. }) => lifetime::TCP_RESET,
            (
                protocol::TCP,
                Progress {
                    finished_out: true,
                    finished_in: true,
                    ..
                },
            ) => lifetime::TCP_CLOSING,
            (
                protocol::TCP,
                Progress {
                    answered: false, ..
                },
            ) => lifetime::TCP_OPENING,
            (protocol::TCP, _) => lifetime::TCP_OPEN,
            (
                _,
                Progress {
                    answered: false, ..
                },
            ) => lifetime::ONE_WAY,
            _ => lifetime::BOTH_WAYS,
        });
    }

    /// Whether it still lasts.
    pub fn lives(&self, now: Milliseconds) -> bool {
        now < self.expires
    }
}
