//! From the socket to the guest.

use std::collections::VecDeque;
use std::time::Instant;

use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

use super::super::wire::{FIN, Out, PSH};
use super::{Fate, RTO_MIN, Segment, Tcp};

/// The most that is under way to a guest in one connection, bytes.
const IN_FLIGHT: usize = 1 << 20;
/// The same while much is held for all guests, or under way to this one.
const SMALL_FLIGHT: usize = 64 << 10;
/// The longest payload of one packet to a guest, whatever its options are.
pub(in crate::nat) const MAX_PAYLOAD: usize = 65_535 - 60 - 20;

impl Tcp {
    /// Bytes of data, without SYN and FIN, from `una` to `to`.
    fn data_until(&self, to: u32) -> usize {
        let end = match self.fin_at {
            Some(fin) if (to.wrapping_sub(fin) as i32) > 0 => fin,
            _ => to,
        };
        (end.wrapping_sub(self.una) as i32).max(0) as usize
    }

    /// Bytes under way.
    pub(super) fn under_way(&self) -> usize {
        self.max.wrapping_sub(self.una) as usize
    }

    pub(super) fn take_ack(&mut self, segment: &Segment<'_>, out: &mut Out, now: Instant) {
        let acked = segment.ack.wrapping_sub(self.una) as i32;
        if acked < 0 {
            return;
        }
        self.retries = 0;
        let window = u32::from(segment.window) << self.scale.unwrap_or(0);
        if acked == 0 {
            let duplicate = window == self.window && segment.length() == 0 && self.max != self.una;
            self.window = window;
            if !duplicate {
                return;
            }
            self.dup_acks += 1;
            if self.dup_acks == 3 && !self.recovering {
                self.recovering = true;
                self.recover = self.max;
                self.resend(out);
            }
            return;
        }
        let gone = self.data_until(segment.ack).min(self.sent.len());
        self.sent.drain(..gone);
        if self.sent.is_empty() && !self.readable {
            self.sent = VecDeque::new();
        }
        self.una = segment.ack;
        self.window = window;
        if (self.una.wrapping_sub(self.nxt) as i32) > 0 {
            self.nxt = self.una;
        }
        self.dup_acks = 0;
        self.rto = RTO_MIN;
        if self.recovering {
            self.recovering = (self.recover.wrapping_sub(self.una) as i32) > 0;
            if self.recovering {
                self.resend(out);
            }
        }
        self.retransmit_at = (self.max != self.una).then(|| now + self.rto);
    }

    /// Sends one segment again: the first that isn't acknowledged.
    fn resend(&mut self, out: &mut Out) {
        let length = self.sent.len().min(usize::from(self.mss));
        out.counters.tcp_retransmissions += 1;
        if length > 0 {
            self.send_again(self.una, 0, length, out);
        } else if self.fin_at == Some(self.una) {
            let header = self.header(self.una, FIN, out);
            self.send(&header, &[], out);
        }
    }

    /// Sends bytes of `sent`, from `at` on.
    fn send_again(&mut self, seq: u32, at: usize, length: usize, out: &mut Out) {
        let header = self.header(seq, PSH, out);
        let (first, second) = self.sent.as_slices();
        let a = &first[at.min(first.len())..(at + length).min(first.len())];
        let from = at.saturating_sub(first.len());
        let b = &second[from..from + length - a.len()];
        let mss = self.mss;
        out.tcp(self.port, self.peer, self.guest, &header, &[], [a, b], mss);
    }

    /// How much may be under way.
    fn flight(&self, out: &Out) -> usize {
        if out.is_short() || out.is_crowded(self.port) {
            SMALL_FLIGHT
        } else {
            IN_FLIGHT
        }
    }

    /// `probe`: one byte more than the guest's window, if it is closed.
    pub(super) fn pump_to_guest(
        &mut self,
        out: &mut Out,
        scratch: &mut [u8],
        now: Instant,
        probe: bool,
    ) -> Fate {
        self.blocked = false;
        if self.fin_at.is_some() && self.nxt == self.max {
            return Fate::Keep;
        }
        let window = (self.window as usize).max(usize::from(probe));
        let limit = window.min(self.flight(out));
        loop {
            let at = self.data_until(self.nxt);
            let again = self.sent.len() - at.min(self.sent.len());
            if again == 0 && !self.readable {
                break;
            }
            // A sliver of window is left alone while more will come of it
            // (RFC 9293, section 3.8.6.2.1).
            let sliver = at > 0 && limit - at.min(limit) < usize::from(self.mss).min(limit / 2);
            if at >= limit || sliver || !(out.has_room() || probe) {
                self.blocked = true;
                break;
            }
            let wanted = (limit - at).min(self.payload());
            if again > 0 {
                let length = wanted.min(again);
                self.send_again(self.nxt, at, length, out);
                self.advance(length as u32);
                continue;
            }
            match recv(&self.socket, &mut scratch[..wanted], RecvFlags::DONTWAIT) {
                Ok((_, 0)) => {
                    self.host_eof = true;
                    self.readable = false;
                }
                Ok((_, length)) => {
                    let bytes = &scratch[..length];
                    // Less than was asked for: that was all, and more is told
                    // of by an event.
                    self.readable = self.ending || length == wanted;
                    self.sent.extend(bytes);
                    let flags = if self.readable { 0 } else { PSH };
                    let header = self.header(self.nxt, flags, out);
                    self.send(&header, bytes, out);
                    self.advance(length as u32);
                }
                Err(Errno::AGAIN) => self.readable = false,
                Err(Errno::INTR) => {}
                Err(_) => return Fate::Gone,
            }
        }
        let fin_due = self.fin_at.is_none_or(|fin| self.nxt == fin);
        if self.host_eof && !self.blocked && fin_due {
            let header = self.header(self.nxt, FIN, out);
            self.fin_at = Some(self.nxt);
            self.send(&header, &[], out);
            self.advance(1);
        }
        if (self.max != self.una || self.blocked) && self.retransmit_at.is_none() {
            self.retransmit_at = Some(now + self.rto);
        }
        Fate::Keep
    }

    /// Whole segments, as many as fit in a packet.
    fn payload(&self) -> usize {
        let mss = usize::from(self.mss);
        (MAX_PAYLOAD / mss).max(1) * mss
    }

    fn advance(&mut self, by: u32) {
        self.nxt = self.nxt.wrapping_add(by);
        if (self.nxt.wrapping_sub(self.max) as i32) > 0 {
            self.max = self.nxt;
        }
    }
}
