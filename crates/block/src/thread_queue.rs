//! A queue whose requests are done by threads that call the image.
//!
//! For images that need work of ours between calls of the kernel (overlay,
//! qcow2), and for hosts that refuse io_uring. Threads start with the first
//! requests that need them.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use favo_thread::{ThreadKind, spawn};
use rustix::event::{EventfdFlags, eventfd};

use crate::scatter::{Scatter, Source};
use crate::storage::Storage;
use crate::{BlockCompletion, BlockInfo, BlockOperation, BlockQueue};

/// Threads of one queue, at most.
const MOST_THREADS: usize = 4;

/// A request with its buffers, valid until it has completed.
enum Job {
    Read(u64, Scatter<'static>),
    Write(u64, Source<'static>),
    Flush,
    Discard(u64, u64),
    WriteZeroes(u64, u64, bool),
}

impl Job {
    fn run(self, storage: &dyn Storage) -> io::Result<()> {
        match self {
            Self::Read(offset, into) => storage.read(offset, into),
            Self::Write(offset, from) => storage.write(offset, from),
            Self::Flush => storage.flush(),
            Self::Discard(_, 0) | Self::WriteZeroes(_, 0, _) => Ok(()),
            Self::Discard(offset, length) => storage.discard(offset, length),
            Self::WriteZeroes(offset, length, unmap) => storage.write_zeroes(offset, length, unmap),
        }
    }
}

#[derive(Default)]
struct Jobs {
    waiting: VecDeque<(u64, Job)>,
    idle: usize,
    stop: bool,
}

struct Shared {
    storage: Arc<dyn Storage>,
    jobs: Mutex<Jobs>,
    wake: Condvar,
    done: Mutex<Vec<BlockCompletion>>,
    event: OwnedFd,
}

impl Shared {
    fn finish(&self, token: u64, result: io::Result<()>) {
        hold(&self.done).push(BlockCompletion { token, result });
        signal(&self.event);
    }

    fn work(&self) {
        let mut jobs = hold(&self.jobs);
        loop {
            if let Some((token, job)) = jobs.waiting.pop_front() {
                drop(jobs);
                // A defect in a format driver is one failed request, not a
                // machine that waits for ever.
                let result = catch_unwind(AssertUnwindSafe(|| job.run(&*self.storage)))
                    .unwrap_or_else(|_| Err(io::Error::other("the disk's format driver failed")));
                self.finish(token, result);
                jobs = hold(&self.jobs);
            } else if jobs.stop {
                return;
            } else {
                jobs.idle += 1;
                jobs = self.wake.wait(jobs).unwrap_or_else(PoisonError::into_inner);
                jobs.idle -= 1;
            }
        }
    }
}

/// Nothing is left half done under these locks, so poison means nothing.
fn hold<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes an event descriptor readable.
pub(crate) fn signal(event: &OwnedFd) {
    // It fails only when the counter is full, and then it is readable.
    let _ = rustix::io::write(event, &1u64.to_ne_bytes());
}

/// Makes it unreadable.
pub(crate) fn clear(event: &OwnedFd) {
    let _ = rustix::io::read(event, &mut [0u8; 8]);
}

/// A new one.
pub(crate) fn event() -> io::Result<OwnedFd> {
    Ok(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)
}

/// See the module.
pub(crate) struct ThreadQueue {
    info: BlockInfo,
    shared: Arc<Shared>,
    batch: VecDeque<(u64, Job)>,
    threads: Vec<JoinHandle<()>>,
    most_threads: usize,
}

impl ThreadQueue {
    pub fn new(storage: Arc<dyn Storage>, depth: u16) -> io::Result<Self> {
        Ok(Self {
            info: storage.info(),
            shared: Arc::new(Shared {
                storage,
                jobs: Mutex::default(),
                wake: Condvar::new(),
                done: Mutex::default(),
                event: event()?,
            }),
            batch: VecDeque::new(),
            threads: Vec::new(),
            most_threads: usize::from(depth).clamp(1, MOST_THREADS),
        })
    }

    fn spawn(&mut self) -> io::Result<()> {
        let shared = self.shared.clone();
        let thread = spawn(ThreadKind::Disk, "disk", move || shared.work())?;
        self.threads.push(thread);
        Ok(())
    }
}

impl BlockQueue for ThreadQueue {
    unsafe fn submit(&mut self, token: u64, operation: BlockOperation<'_>) {
        if let Err(error) = operation.check(&self.info) {
            return self.shared.finish(token, Err(error));
        }
        // SAFETY: the caller keeps the buffers valid until the completion, and
        // the job, which is dropped before it, is the only holder.
        let scatter = |buffers: &[_]| unsafe { Scatter::new(buffers.to_vec()) };
        let job = match operation {
            BlockOperation::Read { offset, buffers } => Job::Read(offset, scatter(buffers)),
            BlockOperation::Write { offset, buffers } => {
                Job::Write(offset, scatter(buffers).into_source())
            }
            BlockOperation::Flush => Job::Flush,
            BlockOperation::Discard { offset, length } => Job::Discard(offset, length),
            BlockOperation::WriteZeroes {
                offset,
                length,
                may_unmap,
            } => Job::WriteZeroes(offset, length, may_unmap),
        };
        self.batch.push_back((token, job));
    }

    fn commit(&mut self) -> io::Result<()> {
        if self.batch.is_empty() {
            return Ok(());
        }
        let count = self.batch.len();
        let idle = {
            let mut jobs = hold(&self.shared.jobs);
            jobs.waiting.append(&mut self.batch);
            jobs.idle
        };
        for _ in 0..count.min(idle) {
            self.shared.wake.notify_one();
        }
        for _ in idle..count {
            if self.threads.len() == self.most_threads {
                break;
            }
            match self.spawn() {
                Ok(()) => {}
                // Fewer threads do it, too; none do not.
                Err(_) if !self.threads.is_empty() => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn complete(&mut self, completions: &mut Vec<BlockCompletion>) {
        // First cleared, then taken: what comes between is told once more.
        clear(&self.shared.event);
        completions.append(&mut hold(&self.shared.done));
    }

    fn event(&self) -> BorrowedFd<'_> {
        self.shared.event.as_fd()
    }
}

impl Drop for ThreadQueue {
    fn drop(&mut self) {
        hold(&self.shared.jobs).stop = true;
        self.shared.wake.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
