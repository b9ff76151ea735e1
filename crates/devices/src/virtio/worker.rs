//! The thread that serves a device's queues.
//!
//! A [`Handler`] holds what the device does; its [`Worker`] is the thread that
//! owns the handler and the running queues, sleeps in epoll(7), and calls the
//! handler when a queue is notified, a file descriptor is ready or a deadline
//! has passed. Whoever is outside reaches the handler only by [`Worker::call`],
//! which runs a closure on the thread between two steps: nothing needs a lock.
//!
//! A handler's every step does a bounded amount of work, asking to be called
//! again ([`Context::request`]) for the rest, so that stopping is always prompt.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use favo_thread::ThreadKind;

use rustix::event::{Timespec, epoll};

use super::device::DeviceError;
use super::event::EventFd;
use super::queue::{QueueState, Virtqueue};

/// What a file descriptor is ready for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Readiness {
    /// Reading will not block.
    pub readable: bool,
    /// Writing will not block.
    pub writable: bool,
    /// The other end will send nothing more.
    pub read_closed: bool,
    /// The other end is gone, or the descriptor is in error.
    pub hangup: bool,
}

/// What one wants to know of a file descriptor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Interest {
    /// Tell when it is readable.
    pub readable: bool,
    /// Tell when it is writable.
    pub writable: bool,
    /// Tell only of changes: the handler remembers what it was told.
    pub edge: bool,
}

impl Interest {
    /// Readable only, for as long as it is.
    pub const READ: Self = Self {
        readable: true,
        writable: false,
        edge: false,
    };
    /// Nothing but errors.
    pub const NONE: Self = Self {
        readable: false,
        writable: false,
        edge: false,
    };
    /// Every change.
    pub const CHANGES: Self = Self {
        readable: true,
        writable: true,
        edge: true,
    };

    fn flags(self) -> epoll::EventFlags {
        let mut flags = epoll::EventFlags::empty();
        flags.set(
            epoll::EventFlags::IN | epoll::EventFlags::RDHUP,
            self.readable,
        );
        flags.set(epoll::EventFlags::ET, self.edge);
        flags.set(epoll::EventFlags::OUT, self.writable);
        flags
    }
}

/// What a device does. Runs on its worker's thread only.
pub trait Handler: Send + 'static {
    /// Queue `index` was started, notified, or requested.
    fn serve(&mut self, index: u16, context: &mut Context);

    /// The descriptor watched under `token` is ready.
    fn ready(&mut self, token: u64, readiness: Readiness, context: &mut Context) {
        let _ = (token, readiness, context);
    }

    /// Queue `index` is about to be taken away: finish or put back every chain
    /// taken from it.
    fn stopping(&mut self, index: u16, context: &mut Context) {
        let _ = (index, context);
    }

    /// When [`Handler::expired`] wants to be called.
    fn deadline(&self) -> Option<Instant> {
        None
    }

    /// The deadline has passed.
    fn expired(&mut self, context: &mut Context) {
        let _ = context;
    }
}

/// What a handler works with.
pub struct Context {
    queues: Vec<Option<Virtqueue>>,
    requested: Vec<bool>,
    poll: OwnedFd,
}

impl Context {
    /// The queue, if it is running.
    pub fn queue(&mut self, index: u16) -> Option<&mut Virtqueue> {
        self.queues.get_mut(usize::from(index))?.as_mut()
    }

    /// Two running queues at once.
    pub fn queue_pair(
        &mut self,
        a: u16,
        b: u16,
    ) -> (Option<&mut Virtqueue>, Option<&mut Virtqueue>) {
        match self
            .queues
            .get_disjoint_mut([usize::from(a), usize::from(b)])
        {
            Ok([a, b]) => (a.as_mut(), b.as_mut()),
            Err(_) => (None, None),
        }
    }

    /// Has [`Handler::serve`] called for the queue soon, after everything else
    /// had its turn.
    pub fn request(&mut self, index: u16) {
        if let Some(requested) = self.requested.get_mut(usize::from(index)) {
            *requested = true;
        }
    }

    /// Starts to watch a descriptor. `token` is the handler's own name for it,
    /// below 2⁶².
    pub fn watch(&self, fd: impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        let data = epoll::EventData::new_u64(token & TOKEN_MASK);
        Ok(epoll::add(&self.poll, fd, data, interest.flags())?)
    }

    /// Changes what is watched for.
    pub fn rewatch(&self, fd: impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        let data = epoll::EventData::new_u64(token & TOKEN_MASK);
        Ok(epoll::modify(&self.poll, fd, data, interest.flags())?)
    }

    /// Stops watching.
    pub fn unwatch(&self, fd: impl AsFd) {
        let _ = epoll::delete(&self.poll, fd);
    }
}

const TOKEN_MASK: u64 = (1 << 62) - 1;
const KICK: u64 = 1 << 62;
const WAKE: u64 = 1 << 63;

type Call<H> = Box<dyn FnOnce(&mut H, &mut Context) + Send>;

/// A running worker. Dropping it ends its thread; its queues are gone then.
pub struct Worker<H: Handler> {
    device: &'static str,
    calls: Option<Sender<Call<H>>>,
    wake: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl<H: Handler> Worker<H> {
    /// Starts the thread. `device` is the name used in messages, `name` the
    /// thread's (15 bytes are shown by tools).
    pub fn spawn(
        device: &'static str,
        name: String,
        queues: usize,
        handler: H,
    ) -> Result<Self, DeviceError> {
        let host = |operation| {
            move |source: io::Error| DeviceError::Host {
                device,
                operation,
                source,
            }
        };
        let wake = Arc::new(EventFd::new().map_err(host("making an event descriptor"))?);
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC)
            .map_err(|error| host("making an epoll instance")(error.into()))?;
        epoll::add(
            &poll,
            &*wake,
            epoll::EventData::new_u64(WAKE),
            epoll::EventFlags::IN,
        )
        .map_err(|error| host("watching an event descriptor")(error.into()))?;
        let (calls, receiver) = channel();
        let context = Context {
            queues: (0..queues).map(|_| None).collect(),
            requested: vec![false; queues],
            poll,
        };
        let thread_wake = wake.clone();
        let thread = favo_thread::spawn(ThreadKind::Device, name, move || {
            run(handler, context, &receiver, &thread_wake)
        })
        .map_err(host("starting a thread"))?;
        Ok(Self {
            device,
            calls: Some(calls),
            wake,
            thread: Some(thread),
        })
    }

    /// Runs `function` on the thread, between two steps, and waits for its
    /// result.
    pub fn call<R: Send + 'static>(
        &self,
        function: impl FnOnce(&mut H, &mut Context) -> R + Send + 'static,
    ) -> Result<R, DeviceError> {
        let (reply, result) = channel();
        self.post(move |handler, context| {
            let _ = reply.send(function(handler, context));
        });
        result.recv().map_err(|_| DeviceError::WorkerGone {
            device: self.device,
        })
    }

    /// Runs `function` on the thread, soon.
    pub fn post(&self, function: impl FnOnce(&mut H, &mut Context) + Send + 'static) {
        if let Some(calls) = &self.calls
            && calls.send(Box::new(function)).is_ok()
        {
            self.wake.signal();
        }
    }

    /// Gives the thread a queue; it is served at once.
    pub fn start_queue(&self, queue: Virtqueue) -> Result<(), DeviceError> {
        let device = self.device;
        let index = queue.index();
        self.call(move |handler, context| {
            let slot =
                context
                    .queues
                    .get_mut(usize::from(index))
                    .ok_or(DeviceError::NoSuchQueue {
                        device,
                        queue: index,
                    })?;
            if slot.is_some() {
                return Err(DeviceError::AlreadyStarted {
                    device,
                    queue: index,
                });
            }
            // Edge triggered: a notification wakes the thread once, and nobody
            // has to read the counter.
            epoll::add(
                &context.poll,
                &**queue.kick(),
                epoll::EventData::new_u64(KICK | u64::from(index)),
                epoll::EventFlags::IN | epoll::EventFlags::ET,
            )
            .map_err(|error| DeviceError::Host {
                device,
                operation: "watching a queue's event descriptor",
                source: error.into(),
            })?;
            *slot = Some(queue);
            handler.serve(index, context);
            Ok(())
        })?
    }

    /// Takes a queue back. `None` if it was not running.
    pub fn stop_queue(&self, index: u16) -> Result<Option<QueueState>, DeviceError> {
        self.call(move |handler, context| {
            context.queue(index)?;
            handler.stopping(index, context);
            let mut queue = context.queues.get_mut(usize::from(index))?.take()?;
            context.unwatch(&**queue.kick());
            queue.signal();
            Some(queue.state())
        })
    }
}

impl<H: Handler> Drop for Worker<H> {
    fn drop(&mut self) {
        self.calls = None;
        self.wake.signal();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!(device = self.device, "a device's thread panicked");
        }
    }
}

fn run<H: Handler>(
    mut handler: H,
    mut context: Context,
    calls: &Receiver<Call<H>>,
    wake: &EventFd,
) {
    serve(&mut handler, &mut context, calls, wake);
    for index in 0..context.queues.len() {
        if context.queues[index].is_some() {
            handler.stopping(index as u16, &mut context);
        }
    }
}

/// Until the worker is dropped.
fn serve<H: Handler>(
    handler: &mut H,
    context: &mut Context,
    calls: &Receiver<Call<H>>,
    wake: &EventFd,
) {
    let mut events = Vec::with_capacity(32);
    loop {
        loop {
            match calls.try_recv() {
                Ok(call) => call(handler, context),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return,
            }
        }
        for index in 0..context.requested.len() {
            if std::mem::take(&mut context.requested[index]) && context.queues[index].is_some() {
                handler.serve(index as u16, context);
            }
        }
        if handler.deadline().is_some_and(|at| at <= Instant::now()) {
            handler.expired(context);
        }

        events.clear();
        let timeout = timeout(handler, context);
        let spare = rustix::buffer::spare_capacity(&mut events);
        match epoll::wait(&context.poll, spare, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                // Only a bug of ours can bring this about; better no device
                // than a thread that spins.
                tracing::error!(%error, "epoll failed; the device stops");
                return;
            }
        }
        for event in &events {
            let token = event.data.u64();
            if token == WAKE {
                wake.take();
            } else if token & KICK != 0 {
                context.request((token & 0xffff) as u16);
            } else {
                handler.ready(token, readiness(event.flags), context);
            }
        }
    }
}

fn timeout<H: Handler>(handler: &H, context: &Context) -> Option<Timespec> {
    let duration = if context.requested.iter().any(|&requested| requested) {
        Duration::ZERO
    } else {
        handler
            .deadline()?
            .saturating_duration_since(Instant::now())
    };
    Some(Timespec {
        tv_sec: duration.as_secs().min(1 << 30) as i64,
        tv_nsec: duration.subsec_nanos().into(),
    })
}

fn readiness(flags: epoll::EventFlags) -> Readiness {
    Readiness {
        readable: flags.contains(epoll::EventFlags::IN),
        writable: flags.contains(epoll::EventFlags::OUT),
        read_closed: flags.intersects(epoll::EventFlags::HUP | epoll::EventFlags::RDHUP),
        hangup: flags.intersects(epoll::EventFlags::HUP | epoll::EventFlags::ERR),
    }
}
