//! Packets to the guest: into which of its buffers, and with how much data.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use zerocopy::{FromZeros, IntoBytes};

use super::super::queue::{Chain, Virtqueue, slice_segments, write_segments};
use super::super::scatter;
use super::connection::{Connection, Pending};
use super::mux::VsockCounters;
use super::packet::{HEADER_SIZE, HOST_CID, Header, Operation, Ports, TYPE_STREAM};

/// Buffers of the guest filled by one read of a stream, and their bytes.
const MAX_READ_CHAINS: usize = 16;
const MAX_READ_BYTES: u64 = 64 << 10;

/// Adds to a counter.
pub(super) fn count(counter: &AtomicU64, by: u32) {
    counter.fetch_add(by.into(), Ordering::Relaxed);
}

/// The header of a reset for a connection that need not exist.
pub(super) fn reset_header(guest_cid: u64, ports: Ports) -> Header {
    Header {
        source_cid: HOST_CID.into(),
        destination_cid: guest_cid.into(),
        source_port: ports.host.into(),
        destination_port: ports.guest.into(),
        socket_type: TYPE_STREAM.into(),
        operation: (Operation::Reset as u16).into(),
        ..Header::new_zeroed()
    }
}

/// Puts a packet without data into `chain` and returns it to the guest.
pub(super) fn send_packet(
    queue: &mut Virtqueue,
    chain: Chain,
    header: &Header,
    counters: &VsockCounters,
) {
    if chain.writable_bytes() < HEADER_SIZE as u64 {
        counters.queues.count_malformed();
    }
    let written = write_segments(queue.memory(), chain.writable(), 0, header.as_bytes());
    queue.add_used(chain, written as u32);
}

/// Sends what a connection has to send next. `false` if the guest has no
/// buffers for it.
pub(super) fn send_next(
    connection: &mut Connection,
    guest_cid: u64,
    queue: &mut Virtqueue,
    counters: &VsockCounters,
) -> bool {
    if connection.pending == Pending::default() {
        return !connection.wants_read() || send_data(connection, guest_cid, queue, counters);
    }
    let Some(chain) = queue.pop() else {
        return false;
    };
    match connection.take_control() {
        Some((operation, flags)) => {
            let header = connection.header(guest_cid, operation, flags, 0);
            send_packet(queue, chain, &header, counters);
        }
        None => queue.unpop(chain),
    }
    true
}

/// One read from the stream, spread over as many buffers as it fills.
fn send_data(
    connection: &mut Connection,
    guest_cid: u64,
    queue: &mut Virtqueue,
    counters: &VsockCounters,
) -> bool {
    let wanted = u64::from(connection.credit()).min(MAX_READ_BYTES);
    let mut chains: Vec<Chain> = Vec::with_capacity(MAX_READ_CHAINS);
    let mut room = 0;
    for _ in 0..MAX_READ_CHAINS {
        if room >= wanted {
            break;
        }
        let Some(chain) = queue.pop() else {
            break;
        };
        if chain.writable_bytes() <= HEADER_SIZE as u64 {
            // Useless for data, and a driver never offers such.
            counters.queues.count_malformed();
            if !chains.is_empty() {
                queue.unpop(chain);
                break;
            }
            queue.add_used(chain, 0);
            continue;
        }
        room += data_room(&chain);
        chains.push(chain);
    }
    if chains.is_empty() {
        return false;
    }

    let mut left = wanted;
    let segments = chains.iter().flat_map(|chain| {
        let here = data_room(chain).min(left);
        left -= here;
        slice_segments(chain.writable(), HEADER_SIZE as u64, here)
    });
    let mut received = match scatter::receive(&connection.stream, queue.memory(), segments) {
        Ok(0) => {
            connection.readable = false;
            connection.host_sends_no_more();
            0
        }
        Ok(count) => {
            // A short read has emptied the stream, but its end may be behind.
            let emptied = (count as u64) < wanted.min(room);
            connection.readable = !emptied || connection.read_closed;
            count as u64
        }
        Err(error) => {
            match error.kind() {
                io::ErrorKind::WouldBlock => connection.readable = false,
                io::ErrorKind::Interrupted => {}
                _ => {
                    connection.readable = false;
                    connection.host_sends_no_more();
                }
            }
            0
        }
    };
    let mut unused = Vec::new();
    for chain in chains {
        let here = received.min(data_room(&chain)) as u32;
        if here == 0 {
            unused.push(chain);
            continue;
        }
        received -= u64::from(here);
        count(&counters.bytes_to_guest, here);
        let header = connection.header(guest_cid, Operation::Data, 0, here);
        write_segments(queue.memory(), chain.writable(), 0, header.as_bytes());
        queue.add_used(chain, HEADER_SIZE as u32 + here);
    }
    for chain in unused.into_iter().rev() {
        queue.unpop(chain);
    }
    connection.note_stall();
    true
}

fn data_room(chain: &Chain) -> u64 {
    chain.writable_bytes().saturating_sub(HEADER_SIZE as u64)
}
