//! A queue of a raw file on io_uring: the kernel does it all.
//!
//! Each request has a slot, whose number is the user data of its submissions.
//! A short transfer is submitted again for the rest; a file system that can't
//! make ranges zero gets zeroes written. Reads go into guest memory directly.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use io_uring::{IoUring, Probe, opcode, register::Restriction, squeue, types};

use crate::raw::{RawFile, ZERO_BYTES, is_unsupported, zero_modes};
use crate::scatter::Scatter;
use crate::storage::Action;
use crate::thread_queue::{clear, event, signal};
use crate::{BlockCompletion, BlockInfo, BlockOperation, BlockQueue};

/// Entries of a submission ring, at most; what is more waits.
const MOST_ENTRIES: u16 = 256;

/// What is left to do of a request.
enum Work {
    Read(Scatter<'static>),
    Write(Scatter<'static>),
    Flush,
    Discard(u64),
    /// By `fallocate`, in the way with this number.
    Zero {
        length: u64,
        may_unmap: bool,
        way: usize,
    },
    /// By writing.
    ZeroBytes(u64),
}

impl Work {
    fn action(&self) -> Action {
        match self {
            Self::Read(_) => Action::Read,
            Self::Write(_) => Action::Write,
            Self::Flush => Action::Flush,
            Self::Discard(_) => Action::Discard,
            Self::Zero { .. } | Self::ZeroBytes(_) => Action::WriteZeroes,
        }
    }
}

struct Slot {
    token: u64,
    offset: u64,
    work: Work,
}

/// See the module.
pub(crate) struct UringQueue {
    file: Arc<RawFile>,
    info: BlockInfo,
    ring: IoUring,
    event: OwnedFd,
    slots: Vec<Option<Slot>>,
    free: Vec<usize>,
    /// Slots to be submitted, in order.
    ready: VecDeque<usize>,
    /// Submissions the kernel has, or finds in the ring.
    in_flight: usize,
    most_in_flight: usize,
    /// Completed without the kernel.
    done: Vec<BlockCompletion>,
}

impl UringQueue {
    /// Fails where the kernel doesn't have io_uring, or not for us.
    pub fn new(file: Arc<RawFile>, info: BlockInfo, depth: u16) -> io::Result<Self> {
        let entries = u32::from(depth.clamp(1, MOST_ENTRIES)).next_power_of_two();
        let ring = IoUring::builder()
            .dontfork()
            .setup_r_disabled()
            .build(entries)?;
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        let needed = [
            opcode::Readv::CODE,
            opcode::Writev::CODE,
            opcode::Write::CODE,
            opcode::Fsync::CODE,
            opcode::Fallocate::CODE,
        ];
        if !needed.into_iter().all(|code| probe.is_supported(code)) {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "this kernel's io_uring lacks operations (Linux 5.10 has them)",
            ));
        }
        let event = event()?;
        ring.submitter().register_eventfd(event.as_raw_fd())?;
        // What a ring does no system call filter sees: from here on it does
        // these and nothing else.
        let mut only = needed.map(Restriction::sqe_op);
        ring.submitter().register_restrictions(&mut only)?;
        ring.submitter().register_enable_rings()?;
        let most_in_flight = ring.params().cq_entries() as usize;
        Ok(Self {
            file,
            info,
            ring,
            event,
            slots: Vec::new(),
            free: Vec::new(),
            ready: VecDeque::new(),
            in_flight: 0,
            most_in_flight,
            done: Vec::new(),
        })
    }

    fn finish(&mut self, token: u64, result: io::Result<()>) {
        self.done.push(BlockCompletion { token, result });
    }

    /// The submission for what is left of a slot.
    fn entry(&self, slot: &Slot) -> squeue::Entry {
        let fd = types::Fd(self.file.file().as_raw_fd());
        let offset = slot.offset;
        let fallocate = |mode: rustix::fs::FallocateFlags, length| {
            opcode::Fallocate::new(fd, length)
                .offset(offset)
                .mode(mode.bits() as i32)
                .build()
        };
        match &slot.work {
            Work::Read(into) => {
                let (pieces, count) = into.pieces();
                opcode::Readv::new(fd, pieces.cast(), count as u32)
                    .offset(offset)
                    .build()
            }
            Work::Write(from) => {
                let (pieces, count) = from.pieces();
                opcode::Writev::new(fd, pieces.cast(), count as u32)
                    .offset(offset)
                    .build()
            }
            Work::Flush => opcode::Fsync::new(fd)
                .flags(types::FsyncFlags::DATASYNC)
                .build(),
            Work::Discard(length) => fallocate(zero_modes(true)[0], *length),
            Work::Zero {
                length,
                may_unmap,
                way,
            } => fallocate(zero_modes(*may_unmap)[*way], *length),
            Work::ZeroBytes(length) => {
                let count = (*length).min(ZERO_BYTES.len() as u64) as u32;
                opcode::Write::new(fd, ZERO_BYTES.as_ptr(), count)
                    .offset(offset)
                    .build()
            }
        }
    }

    /// Puts into the ring what fits.
    fn fill(&mut self) {
        while self.in_flight < self.most_in_flight {
            let Some(&number) = self.ready.front() else {
                return;
            };
            let Some(slot) = &self.slots[number] else {
                self.ready.pop_front();
                continue;
            };
            let entry = self.entry(slot).user_data(number as u64);
            // SAFETY: what the entry points to is the slot's, on the heap, and
            // stays as it is until the completion; the buffers are valid until
            // then by the contract of `submit`.
            if unsafe { self.ring.submission().push(&entry) }.is_err() {
                return;
            }
            self.ready.pop_front();
            self.in_flight += 1;
        }
    }

    fn start(&mut self) -> io::Result<()> {
        loop {
            self.fill();
            if self.ring.submission().is_empty() {
                return Ok(());
            }
            match self.ring.submit() {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes what the kernel says of a slot: its result, once it has one.
    fn advance(&self, slot: &mut Slot, result: i32) -> Option<io::Result<()>> {
        let count = match u64::try_from(result) {
            Ok(count) => count,
            Err(_) => {
                let error = io::Error::from_raw_os_error(result.saturating_neg());
                return self.fail(slot, error);
            }
        };
        let left = match &mut slot.work {
            Work::Read(into) if count == 0 && into.length() > 0 => {
                return Some(self.file.end_of_file(into));
            }
            Work::Read(buffers) | Work::Write(buffers) => {
                if count == 0 && buffers.length() > 0 {
                    return Some(Err(io::ErrorKind::WriteZero.into()));
                }
                buffers.advance(count);
                buffers.length()
            }
            Work::ZeroBytes(_) if count == 0 => {
                return Some(Err(io::ErrorKind::WriteZero.into()));
            }
            Work::ZeroBytes(length) => {
                *length = length.saturating_sub(count);
                *length
            }
            Work::Flush | Work::Discard(_) | Work::Zero { .. } => 0,
        };
        slot.offset += count;
        (left == 0).then_some(Ok(()))
    }

    /// What an error means: the next way to do it, or the end.
    fn fail(&self, slot: &mut Slot, error: io::Error) -> Option<io::Result<()>> {
        if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN)) {
            return None;
        }
        match slot.work {
            Work::Discard(_) if is_unsupported(&error) => Some(Ok(())),
            Work::Zero {
                length,
                may_unmap,
                way,
            } if is_unsupported(&error) => {
                slot.work = if way + 1 < zero_modes(may_unmap).len() {
                    Work::Zero {
                        length,
                        may_unmap,
                        way: way + 1,
                    }
                } else {
                    Work::ZeroBytes(length)
                };
                None
            }
            _ => Some(Err(error)),
        }
    }

    fn drain(&mut self) {
        loop {
            let Some(entry) = self.ring.completion().next() else {
                return;
            };
            self.in_flight -= 1;
            let number = entry.user_data() as usize;
            let Some(mut slot) = self.slots.get_mut(number).and_then(Option::take) else {
                continue;
            };
            match self.advance(&mut slot, entry.result()) {
                Some(result) => {
                    let action = slot.work.action();
                    let result = self.file.failures.look(self.file.path(), action, result);
                    self.free.push(number);
                    self.finish(slot.token, result);
                }
                None => {
                    self.slots[number] = Some(slot);
                    self.ready.push_back(number);
                }
            }
        }
    }
}

impl BlockQueue for UringQueue {
    unsafe fn submit(&mut self, token: u64, operation: BlockOperation<'_>) {
        // SAFETY: the caller keeps the buffers valid until the completion, and
        // the slot is gone before it is told.
        let scatter = |buffers: &[_]| unsafe { Scatter::new(buffers.to_vec()) };
        let checked = operation.check(&self.info);
        let (offset, work) = match operation {
            BlockOperation::Read { offset, buffers } => (offset, Work::Read(scatter(buffers))),
            BlockOperation::Write { offset, buffers } => (offset, Work::Write(scatter(buffers))),
            BlockOperation::Flush => (0, Work::Flush),
            BlockOperation::Discard { offset, length } => (offset, Work::Discard(length)),
            BlockOperation::WriteZeroes {
                offset,
                length,
                may_unmap,
            } => {
                let way = 0;
                let work = Work::Zero {
                    length,
                    may_unmap,
                    way,
                };
                (offset, work)
            }
        };
        let nothing = match &work {
            Work::Read(buffers) | Work::Write(buffers) => buffers.length() == 0,
            Work::Discard(length) | Work::Zero { length, .. } => *length == 0,
            Work::Flush => self.info.read_only,
            Work::ZeroBytes(_) => false,
        };
        if checked.is_err() || nothing {
            self.finish(token, checked);
            return signal(&self.event);
        }
        let slot = Some(Slot {
            token,
            offset,
            work,
        });
        let number = match self.free.pop() {
            Some(number) => {
                self.slots[number] = slot;
                number
            }
            None => {
                self.slots.push(slot);
                self.slots.len() - 1
            }
        };
        self.ready.push_back(number);
    }

    fn commit(&mut self) -> io::Result<()> {
        self.start()
    }

    fn complete(&mut self, completions: &mut Vec<BlockCompletion>) {
        // First cleared, then taken: what comes between is told once more.
        clear(&self.event);
        self.drain();
        completions.append(&mut self.done);
        if !self.ready.is_empty() && self.start().is_err() {
            // The kernel is short of something: we are called once more.
            signal(&self.event);
        }
    }

    fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

impl Drop for UringQueue {
    fn drop(&mut self) {
        // The kernel must not write to buffers that are somebody else's by
        // then. What was never committed is dropped.
        self.ready.clear();
        while self.in_flight > 0 {
            match self.ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => std::thread::sleep(std::time::Duration::from_millis(1)),
            }
            self.drain();
            self.ready.clear();
        }
    }
}
