//! The way out of a virtual network.
//!
//! The plane hands an [`Uplink`] the packets that a port's program let out of
//! the network, and takes from it those that come in. Host sockets are one
//! uplink (`nat`); a tunnel to other hosts is another.
//!
//! An uplink sees only packets a port program has passed: the source address
//! is the port's, the IP header's length and checksum are right, the packet is
//! as long as its header says (trailing bytes of the frame are cut off). It
//! must still treat everything above the IP header as hostile. What it gives
//! back goes through the port's program, too, so it may hand in anything.

use std::os::fd::BorrowedFd;

use crate::link::Offload;
use crate::model::PortId;

/// The way out of a virtual network: takes the IP packets that a port program
/// let out, gives back those that come in.
///
/// All calls are made by the one thread that serves the plane; none may block.
pub trait Uplink: Send {
    /// An IP packet (from the IP header on, no Ethernet header) leaving
    /// `port`. It may still need a checksum or a cut; all offsets in `offload`
    /// are from the IP header. The uplink takes it, or drops and counts it.
    fn send(&mut self, port: PortId, packet: &[u8], offload: Offload);

    /// The batch ends: what was held back goes out now.
    fn flush(&mut self);

    /// The next packet for a port, appended to the cleared `packet`, from the
    /// IP header on; its destination is an address of that port. `None` when
    /// none waits.
    fn receive(&mut self, packet: &mut Vec<u8>) -> Option<(PortId, Offload)>;

    /// Readable while packets may wait or a timer is due.
    fn ready(&self) -> BorrowedFd<'_>;
}
