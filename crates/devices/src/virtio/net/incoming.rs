//! A frame on its way from the network to the guest: finished and cut as the
//! guest's driver needs it, held until the guest has buffers for it.

use favo_net::link::{MAX_FRAME_LENGTH, Offload, SegmentKind};
use favo_net::offload::{Cutter, finish_checksum};

use super::super::queue::{Chain, Virtqueue, write_segments};
use super::feature;
use super::header::{self, HEADER_SIZE, MIN_FRAME_LENGTH};

/// What became of a try to hand a frame over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Placed {
    /// The guest has this many bytes more.
    Whole(usize),
    /// The guest has no buffers now; it notifies when it has.
    NoBuffers,
    /// No buffers of this queue could ever hold it.
    NoRoom,
}

/// The frame that is handed over next, if any.
#[derive(Default)]
pub struct Incoming {
    frame: Vec<u8>,
    offload: Offload,
    /// How the frame is cut, and which piece is next.
    cut: Option<(Cutter, usize)>,
    /// The piece itself.
    piece: Vec<u8>,
    held: bool,
    /// Chains taken for the frame, and what is written to each; empty between
    /// two calls.
    chains: Vec<(Chain, u32)>,
}

impl Incoming {
    /// Whether a frame is held.
    pub fn is_held(&self) -> bool {
        self.held
    }

    /// Forgets it.
    pub fn discard(&mut self) {
        self.held = false;
        self.cut = None;
    }

    /// Where the next frame goes; then [`Incoming::accept`] it.
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        self.frame.clear();
        &mut self.frame
    }

    /// Where the frame in the buffer goes to.
    pub fn destination(&self) -> Option<&[u8; 6]> {
        self.frame.first_chunk()
    }

    /// Takes the frame in the buffer over. `None` if it is no frame, or does
    /// not fit its offload: then nothing is held.
    pub fn accept(&mut self, offload: Offload, features: u64) -> Option<()> {
        self.discard();
        if !(MIN_FRAME_LENGTH..=MAX_FRAME_LENGTH).contains(&self.frame.len()) {
            return None;
        }
        self.offload = offload;
        if let Some(segmentation) = offload.segmentation {
            let cutter = Cutter::new(&self.frame, offload.checksum?, segmentation)?;
            let taken_whole = match segmentation.kind {
                SegmentKind::Tcp4 => features & feature::GUEST_TSO4 != 0,
                SegmentKind::Tcp6 => features & feature::GUEST_TSO6 != 0,
                SegmentKind::Udp => false,
            };
            if !taken_whole {
                self.offload.segmentation = None;
                self.cut = Some((cutter, 0));
                self.prepare_piece(features)?;
            }
        } else if let Some(partial) = offload.checksum {
            if features & feature::GUEST_CSUM == 0 {
                finish_checksum(&mut self.frame, partial)?;
                self.offload.checksum = None;
            } else {
                let end = usize::from(partial.start) + usize::from(partial.offset) + 2;
                (end <= self.frame.len()).then_some(())?;
            }
        }
        self.held = true;
        Some(())
    }

    fn prepare_piece(&mut self, features: u64) -> Option<()> {
        let (cutter, index) = self.cut?;
        cutter.cut(&self.frame, index, &mut self.piece)?;
        let partial = cutter.checksum();
        self.offload.checksum = Some(partial);
        if features & feature::GUEST_CSUM == 0 {
            finish_checksum(&mut self.piece, partial)?;
            self.offload.checksum = None;
        }
        Some(())
    }

    /// Goes on to the next piece, or lets the frame go.
    fn advance(&mut self, features: u64) {
        if let Some((cutter, index)) = &mut self.cut {
            *index += 1;
            if *index < cutter.pieces() && self.prepare_piece(features).is_some() {
                return;
            }
        }
        self.discard();
    }

    /// Hands the held frame, or its next piece, to the guest. After
    /// [`Placed::Whole`] and [`Placed::NoRoom`] it is let go.
    pub fn place(&mut self, queue: &mut Virtqueue, features: u64) -> Placed {
        let bytes = if self.cut.is_some() {
            &self.piece
        } else {
            &self.frame
        };
        let header = header::encode(&self.offload, features);
        let mergeable = features & feature::MRG_RXBUF != 0;
        let placed = place(&mut self.chains, queue, header, bytes, mergeable);
        if placed != Placed::NoBuffers {
            self.advance(features);
        }
        placed
    }
}

fn place(
    chains: &mut Vec<(Chain, u32)>,
    queue: &mut Virtqueue,
    mut header: [u8; HEADER_SIZE],
    frame: &[u8],
    mergeable: bool,
) -> Placed {
    let needed = (HEADER_SIZE + frame.len()) as u64;
    let most = if mergeable { queue.size() } else { 1 };
    let before = queue.state().next_avail;
    let mut room = 0;
    while room < needed {
        if chains.len() == usize::from(most) {
            // Even all of the queue is too small. The buffers are returned
            // empty, or a driver that offers such would never get them back.
            queue.add_used_together(chains.drain(..));
            return Placed::NoRoom;
        }
        let Some(chain) = queue.pop() else {
            put_back(chains, queue, before);
            return Placed::NoBuffers;
        };
        room += chain.writable_bytes();
        chains.push((chain, 0));
    }

    header::set_buffers(&mut header, chains.len() as u16);
    // The header and the frame, one behind the other, over all buffers.
    let (mut header, mut rest) = (&header[..], frame);
    for (chain, written) in &mut *chains {
        let (memory, segments) = (queue.memory(), chain.writable());
        let room = chain.writable_bytes();
        let here = room.min(header.len() as u64) as usize;
        if here > 0 {
            write_segments(memory, segments, 0, &header[..here]);
            header = &header[here..];
        }
        let left = (room - here as u64).min(rest.len() as u64) as usize;
        write_segments(memory, segments, here as u64, &rest[..left]);
        rest = &rest[left..];
        *written = (here + left) as u32;
    }
    queue.add_used_together(chains.drain(..));
    Placed::Whole(frame.len())
}

/// Puts the chains back that were taken since the ring stood at `before`.
fn put_back(chains: &mut Vec<(Chain, u32)>, queue: &mut Virtqueue, before: u16) {
    let taken = queue.state().next_avail.wrapping_sub(before);
    if usize::from(taken) == chains.len() {
        while let Some((chain, _)) = chains.pop() {
            queue.unpop(chain);
        }
    } else {
        // Malformed chains lay between, which are returned already.
        queue.add_used_together(chains.drain(..));
    }
}
