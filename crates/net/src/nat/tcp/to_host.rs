//! From the guest into the socket.

use std::collections::VecDeque;

use rustix::io::Errno;
use rustix::net::{SendFlags, Shutdown, send, shutdown};

use super::super::wire::{ACK, Header, Out};
use super::{Fate, Segment, Tcp};

/// The most a guest may have under way to a socket that takes nothing, bytes.
const WINDOW: usize = 512 << 10;
/// The same while much is held for all guests.
const SMALL_WINDOW: usize = 16 << 10;
/// Our windows are told in units of this power of two (RFC 7323).
pub(super) const SCALE: u8 = 5;

impl Tcp {
    fn most(out: &Out) -> usize {
        if out.is_short() { SMALL_WINDOW } else { WINDOW }
    }

    /// How much the guest may send from `nxt_in` on. What lies in
    /// `reassembly` is within it.
    fn room(&self, out: &Out) -> usize {
        Self::most(out).saturating_sub(self.pending.len())
    }

    /// A header that acknowledges all that came, with the window there is.
    pub(super) fn header(&mut self, seq: u32, flags: u8, out: &Out) -> Header {
        let scale = if self.scale.is_some() { SCALE } else { 0 };
        let window = (self.room(out) >> scale).min(0xffff) as u16;
        self.told = u32::from(window) << scale;
        self.ack_due = false;
        Header {
            seq,
            ack: self.nxt_in,
            flags: flags | ACK,
            window,
        }
    }

    pub(super) fn send_ack(&mut self, out: &mut Out) {
        let header = self.header(self.max, 0, out);
        self.send(&header, &[], out);
    }

    /// Keeps what came too early, `ahead` of the next byte.
    pub(super) fn keep_data(&mut self, segment: &Segment<'_>, out: &Out) {
        if self.guest_fin {
            return;
        }
        let room = self.room(out);
        self.reassembly
            .keep(self.nxt_in, segment.seq, segment.payload, room);
        if segment.flags.fin() {
            let end = segment.seq.wrapping_add(segment.payload.len() as u32);
            self.early_fin.get_or_insert(end);
        }
    }

    /// Takes data of which the first `old` bytes were there before, and what
    /// was kept behind it.
    pub(super) fn take_data(&mut self, segment: &Segment<'_>, old: u32, out: &Out) -> Fate {
        let old = old as usize;
        if self.guest_fin || old > segment.payload.len() {
            return Fate::Keep;
        }
        let Some(all) = self.accept(&segment.payload[old..], out) else {
            return Fate::Gone;
        };
        let mut fin = segment.flags.fin() && all;
        while let Some(bytes) = self.reassembly.take(self.nxt_in) {
            match self.accept(&bytes, out) {
                Some(true) => {}
                Some(false) => break,
                None => return Fate::Gone,
            }
        }
        fin |= self.early_fin == Some(self.nxt_in);
        if fin {
            self.guest_fin = true;
            self.nxt_in = self.nxt_in.wrapping_add(1);
        }
        Fate::Keep
    }

    /// Takes the next bytes as far as there is room; whether that was all.
    /// `None`: the socket is broken.
    fn accept(&mut self, new: &[u8], out: &Out) -> Option<bool> {
        let mut fits = &new[..new.len().min(self.room(out))];
        self.nxt_in = self.nxt_in.wrapping_add(fits.len() as u32);
        let all = fits.len() == new.len();
        while self.pending.is_empty() && !fits.is_empty() {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match send(&self.socket, fits, flags) {
                Ok(n) => fits = &fits[n..],
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(_) => return None,
            }
        }
        self.pending.extend(fits);
        Some(all)
    }

    pub(super) fn pump_to_host(&mut self, out: &mut Out) -> Fate {
        while !self.pending.is_empty() {
            let (first, _) = self.pending.as_slices();
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match send(&self.socket, first, flags) {
                Ok(n) => drop(self.pending.drain(..n)),
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(_) => return Fate::Gone,
            }
        }
        if self.pending.is_empty() {
            if self.pending.capacity() > 0 {
                self.pending = VecDeque::new();
            }
            if self.guest_fin && !self.shut {
                self.shut = true;
                let _ = shutdown(&self.socket, Shutdown::Write);
            }
        }
        let scale = if self.scale.is_some() { SCALE } else { 0 };
        let most = (0xffff_usize << scale).min(Self::most(out));
        if !self.guest_fin && (self.told as usize) < most / 2 && self.room(out) >= most / 2 {
            self.ack_due = true;
        }
        Fate::Keep
    }
}
