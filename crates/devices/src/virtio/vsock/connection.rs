//! One stream between the guest and a Unix socket of the host.
//!
//! Flow control (virtio 1.2, 5.10.6.3): each side tells how large its buffer
//! is and how much it has taken out; the other never has more than that in
//! flight. Towards the host, bytes go straight into the Unix socket, and only
//! what that does not take is buffered here, at most [`BUFFER_SIZE`]. Towards
//! the guest nothing is buffered: bytes leave the Unix socket only when the
//! guest has given a buffer and credit for them.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::net::Shutdown;
use std::num::Wrapping;
use std::os::unix::net::UnixStream;

use favo_accel::GuestMemory;

use super::super::queue::{Segment, read_segments, slice_segments};
use super::super::scatter;
use super::packet::{Header, Operation, Ports, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM};

/// Bytes the guest may have in flight to the host on one connection.
pub const BUFFER_SIZE: u32 = 128 << 10;
/// How much may have been taken out before the guest is told.
const UPDATE_AFTER: u32 = BUFFER_SIZE / 4;

/// How far a connection is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// The host asked; the guest has not answered.
    Requested,
    /// Both sides agreed.
    Established,
    /// The guest is done with it; what it sent is still on its way to the host.
    Draining,
}

/// Control packets waiting to be sent to the guest, at most one of each.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Pending {
    /// [`Operation::Request`].
    pub request: bool,
    /// [`Operation::Response`].
    pub response: bool,
    /// [`Operation::Shutdown`].
    pub shutdown: bool,
    /// [`Operation::CreditUpdate`].
    pub credit_update: bool,
    /// [`Operation::CreditRequest`].
    pub credit_request: bool,
}

/// The guest broke the protocol: the connection is to be reset.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ProtocolViolation;

/// See the module.
pub struct Connection {
    /// Its ports.
    pub ports: Ports,
    /// How far it is.
    pub state: State,
    /// The host's end; non-blocking use only.
    pub stream: UnixStream,
    /// What is to be sent to the guest.
    pub pending: Pending,
    /// The stream has bytes, or its end, to be read.
    pub readable: bool,
    /// The other end has closed at least its sending half.
    pub read_closed: bool,
    /// Is in the handler's list of connections with something to send.
    pub listed: bool,

    writable: bool,
    buffer: VecDeque<u8>,
    /// Bytes received from the guest.
    received: Wrapping<u32>,
    /// Bytes of those that were passed on.
    forwarded: Wrapping<u32>,
    /// The value of `forwarded` the guest knows.
    told: Wrapping<u32>,

    peer_buffer_size: u32,
    peer_forwarded: Wrapping<u32>,
    /// Bytes sent to the guest.
    sent: Wrapping<u32>,

    /// Halves the guest has closed, as `SHUTDOWN_*`.
    guest_shutdown: u32,
    /// Halves the host has closed.
    host_shutdown: u32,
    write_half_closed: bool,
}

impl Connection {
    /// A fresh connection over `stream`.
    pub fn new(ports: Ports, state: State, stream: UnixStream) -> Self {
        Self {
            ports,
            state,
            stream,
            pending: Pending::default(),
            // The descriptor's readiness is reported as soon as it is watched.
            readable: false,
            read_closed: false,
            listed: false,
            writable: true,
            buffer: VecDeque::new(),
            received: Wrapping(0),
            forwarded: Wrapping(0),
            told: Wrapping(0),
            peer_buffer_size: 0,
            peer_forwarded: Wrapping(0),
            sent: Wrapping(0),
            guest_shutdown: 0,
            host_shutdown: 0,
            write_half_closed: false,
        }
    }

    /// Takes the credit every packet of the guest carries.
    pub fn update_credit(&mut self, header: &Header) {
        self.peer_buffer_size = header.buffer_size.get();
        self.peer_forwarded = Wrapping(header.forwarded.get());
        self.pending.credit_request = false;
    }

    /// Bytes the guest has room for.
    pub fn credit(&self) -> u32 {
        let in_flight = (self.sent - self.peer_forwarded).0;
        self.peer_buffer_size.saturating_sub(in_flight)
    }

    /// Whether a packet for the guest could be made now.
    pub fn has_work(&self) -> bool {
        self.pending != Pending::default() || self.wants_read()
    }

    /// Whether bytes, or the end of them, could be read for the guest now.
    pub fn wants_read(&self) -> bool {
        self.state == State::Established
            && self.readable
            && self.host_shutdown & SHUTDOWN_SEND == 0
            && self.guest_shutdown & SHUTDOWN_RECEIVE == 0
            && self.credit() > 0
    }

    /// Asks the guest for credit if bytes wait for it.
    pub fn note_stall(&mut self) {
        let stalled = self.state == State::Established
            && self.readable
            && self.host_shutdown & SHUTDOWN_SEND == 0
            && self.guest_shutdown & SHUTDOWN_RECEIVE == 0
            && self.credit() == 0;
        if stalled {
            self.pending.credit_request = true;
        }
    }

    /// The next control packet to send, if there is one.
    pub fn take_control(&mut self) -> Option<(Operation, u32)> {
        let pending = &mut self.pending;
        let take = std::mem::take::<bool>;
        if take(&mut pending.request) {
            Some((Operation::Request, 0))
        } else if take(&mut pending.response) {
            Some((Operation::Response, 0))
        } else if take(&mut pending.credit_update) {
            Some((Operation::CreditUpdate, 0))
        } else if take(&mut pending.credit_request) {
            Some((Operation::CreditRequest, 0))
        } else if take(&mut pending.shutdown) {
            Some((Operation::Shutdown, self.host_shutdown))
        } else {
            None
        }
    }

    /// The header of a packet to the guest. It carries the newest credit.
    pub fn header(
        &mut self,
        guest_cid: u64,
        operation: Operation,
        flags: u32,
        length: u32,
    ) -> Header {
        self.told = self.forwarded;
        self.pending.credit_update = false;
        self.sent += Wrapping(length);
        Header {
            source_cid: super::packet::HOST_CID.into(),
            destination_cid: guest_cid.into(),
            source_port: self.ports.host.into(),
            destination_port: self.ports.guest.into(),
            length: length.into(),
            socket_type: TYPE_STREAM.into(),
            operation: (operation as u16).into(),
            flags: flags.into(),
            buffer_size: BUFFER_SIZE.into(),
            forwarded: self.forwarded.0.into(),
        }
    }

    /// Passes the data of a packet on: `length` bytes of `segments` from
    /// `offset`.
    pub fn receive(
        &mut self,
        memory: &GuestMemory,
        segments: &[Segment],
        offset: u64,
        length: u32,
    ) -> Result<(), ProtocolViolation> {
        let in_flight = (self.received - self.forwarded).0;
        let after_end = self.guest_shutdown & SHUTDOWN_SEND != 0;
        if length > BUFFER_SIZE - in_flight || after_end {
            return Err(ProtocolViolation);
        }
        self.received += Wrapping(length);
        if self.host_shutdown & SHUTDOWN_RECEIVE != 0 {
            // Nobody is there to read it.
            self.forward(length);
            return Ok(());
        }
        let mut taken = 0;
        if self.buffer.is_empty() && self.writable {
            let payload = slice_segments(segments, offset, length.into());
            match scatter::send(&self.stream, memory, payload) {
                Ok(count) => taken = count as u32,
                Err(error) => self.write_failed(&error),
            }
            self.forward(taken);
        }
        if self.host_shutdown & SHUTDOWN_RECEIVE != 0 {
            self.forward(length - taken);
            return Ok(());
        }
        let rest = (length - taken) as usize;
        if rest > 0 {
            let mut bytes = vec![0; rest];
            read_segments(memory, segments, offset + u64::from(taken), &mut bytes);
            self.buffer.extend(bytes);
            self.flush();
        }
        Ok(())
    }

    /// The stream takes bytes again.
    pub fn set_writable(&mut self) {
        self.writable = true;
        self.flush();
    }

    /// The guest closes halves of the connection.
    pub fn guest_shuts_down(&mut self, flags: u32) {
        self.guest_shutdown |= flags & (SHUTDOWN_RECEIVE | SHUTDOWN_SEND);
        if self.guest_shutdown & SHUTDOWN_RECEIVE != 0 {
            let _ = self.stream.shutdown(Shutdown::Read);
        }
        self.flush();
    }

    /// The guest accepted a connection of the host.
    pub fn establish(&mut self) {
        self.state = State::Established;
        self.pending.shutdown = self.host_shutdown != 0;
    }

    /// The host's end is gone: nobody will read what the guest sends.
    pub fn host_receives_no_more(&mut self) {
        self.close_half(SHUTDOWN_RECEIVE);
    }

    /// The host will send nothing more.
    pub fn host_sends_no_more(&mut self) {
        self.close_half(SHUTDOWN_SEND);
    }

    /// Whether the guest has closed both halves and all it sent is delivered.
    pub fn is_finished(&self) -> bool {
        self.guest_shutdown == SHUTDOWN_RECEIVE | SHUTDOWN_SEND && self.buffer.is_empty()
    }

    /// Whether the guest ended it properly while bytes are still under way.
    pub fn must_drain(&self) -> bool {
        self.guest_shutdown & SHUTDOWN_SEND != 0 && !self.buffer.is_empty()
    }

    /// Whether everything the guest sent was passed on.
    pub fn is_drained(&self) -> bool {
        self.buffer.is_empty()
    }

    fn flush(&mut self) {
        while self.writable && !self.buffer.is_empty() {
            let (front, _) = self.buffer.as_slices();
            let result = rustix::net::send(
                &self.stream,
                front,
                rustix::net::SendFlags::DONTWAIT | rustix::net::SendFlags::NOSIGNAL,
            );
            match result {
                Ok(count) => {
                    self.buffer.drain(..count);
                    self.forward(count as u32);
                }
                Err(error) => self.write_failed(&error.into()),
            }
        }
        if self.buffer.is_empty() {
            self.buffer.shrink_to(4096);
            let ended = self.guest_shutdown & SHUTDOWN_SEND != 0;
            if ended && !std::mem::replace(&mut self.write_half_closed, true) {
                let _ = self.stream.flush();
                let _ = self.stream.shutdown(Shutdown::Write);
            }
        }
    }

    fn write_failed(&mut self, error: &io::Error) {
        match error.kind() {
            io::ErrorKind::WouldBlock => self.writable = false,
            io::ErrorKind::Interrupted => {}
            _ => {
                // The host's end is gone. What it sent before is still read.
                self.forward(self.buffer.len() as u32);
                self.buffer.clear();
                self.close_half(SHUTDOWN_RECEIVE);
            }
        }
    }

    fn close_half(&mut self, half: u32) {
        if self.host_shutdown & half == 0 {
            self.host_shutdown |= half;
            self.pending.shutdown = self.state == State::Established;
        }
    }

    fn forward(&mut self, length: u32) {
        self.forwarded += Wrapping(length);
        let unknown = (self.forwarded - self.told).0;
        if unknown >= UPDATE_AFTER && self.state == State::Established {
            self.pending.credit_update = true;
        }
    }
}
