//! Stopping a processor from another thread.
//!
//! KVM_RUN ends with EINTR when a signal arrives or when `immediate_exit` in
//! the page shared with the kernel is set on entry. A kick uses both, because
//! either alone leaves a gap: the flag is read once, on entry; a signal that
//! comes just before entry is gone by the time the guest runs.
//!
//! Order, on which "kicks never get lost" rests:
//!
//! * kicker: `kicked` := 1, then `immediate_exit` := 1, then the signal;
//! * runner after EINTR: `immediate_exit` := 0, then takes `kicked`.
//!
//! So whenever `kicked` is set, either the flag is set too or its setter is
//! still on its way to set it, and the next KVM_RUN ends at once. A flag left
//! over from a kick already taken costs one empty round.
//!
//! The signal is one real-time signal of the process, with a handler that does
//! nothing; it is sent only to a thread that is inside [`crate::vcpu`]'s run,
//! which the mutex guarantees.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::RawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use favo_accel::{AccelError, VcpuKicker};
use kvm_bindings::kvm_run;

/// Which real-time signal, counted from SIGRTMIN. The first few are used by
/// libraries now and then.
const SIGNAL_OFFSET: i32 = 6;

/// One processor's kicker.
pub(crate) struct Kicker {
    kicked: AtomicBool,
    target: Mutex<Target>,
}

struct Target {
    /// The page shared with the kernel, until the processor is dropped.
    page: Option<RunPage>,
    /// The thread inside KVM_RUN, if there is one.
    thread: Option<libc::pid_t>,
}

/// A mapping of the processor's `kvm_run`, our own: the library's is borrowed
/// mutably while the processor runs.
struct RunPage(NonNull<kvm_run>);

// SAFETY: the mapping belongs to this value, and the only access through it is
// one atomic store.
unsafe impl Send for RunPage {}

impl RunPage {
    const BYTES: usize = size_of::<kvm_run>();

    fn map(vcpu: RawFd) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice.
        let page = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                Self::BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                vcpu,
                0,
            )
        };
        if page == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(page.cast())
            .map(Self)
            .ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))
    }

    fn request_exit(&self) {
        // SAFETY: the field lies in our mapping, is one byte, and is accessed
        // by the kernel and the runner with single-byte loads and stores.
        let flag = unsafe { AtomicU8::from_ptr(&raw mut (*self.0.as_ptr()).immediate_exit) };
        flag.store(1, Ordering::SeqCst);
    }
}

impl Drop for RunPage {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping made in `map`, which nobody else knows.
        unsafe { libc::munmap(self.0.as_ptr().cast(), Self::BYTES) };
    }
}

impl Kicker {
    /// For the processor behind `vcpu`.
    pub(crate) fn new(vcpu: RawFd) -> Result<Arc<Self>, AccelError> {
        kick_signal()?;
        let page = RunPage::map(vcpu).map_err(|source| AccelError::Host {
            operation: "mapping a processor's shared page",
            source,
        })?;
        Ok(Arc::new(Self {
            kicked: AtomicBool::new(false),
            target: Mutex::new(Target {
                page: Some(page),
                thread: None,
            }),
        }))
    }

    /// The calling thread is about to enter KVM_RUN.
    pub(crate) fn enter(&self) {
        thread_local! {
            static THREAD: libc::pid_t = open_this_thread();
        }
        self.lock().thread = Some(THREAD.with(|thread| *thread));
    }

    /// The calling thread has left KVM_RUN for good; no signal comes after this.
    pub(crate) fn leave(&self) {
        self.lock().thread = None;
    }

    /// Takes the kick, if there is one.
    pub(crate) fn take(&self) -> bool {
        self.kicked.swap(false, Ordering::SeqCst)
    }

    /// Whether a kick waits.
    pub(crate) fn is_kicked(&self) -> bool {
        self.kicked.load(Ordering::SeqCst)
    }

    /// The processor is gone: kicks do nothing from here on.
    pub(crate) fn retire(&self) {
        let mut target = self.lock();
        target.page = None;
        target.thread = None;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Target> {
        self.target
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl VcpuKicker for Kicker {
    fn kick(&self) {
        self.kicked.store(true, Ordering::SeqCst);
        let target = self.lock();
        if let Some(page) = &target.page {
            page.request_exit();
        }
        if let (Some(thread), Ok(signal)) = (target.thread, kick_signal()) {
            // SAFETY: tgkill takes three integers; the thread is inside `run`
            // of this process for as long as the mutex is held.
            unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, signal) };
        }
    }
}

/// Lets the signal through to the calling thread, whatever mask it inherited,
/// and returns the thread's id.
fn open_this_thread() -> libc::pid_t {
    if let Ok(signal) = kick_signal() {
        // SAFETY: the set is initialised by sigemptyset before it is used.
        unsafe {
            let mut set = std::mem::zeroed();
            libc::sigemptyset(&mut set);
            libc::sigaddset(&mut set, signal);
            libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut());
        }
    }
    // SAFETY: gettid has no preconditions.
    unsafe { libc::gettid() }
}

/// The signal, its handler installed on first use.
fn kick_signal() -> Result<i32, AccelError> {
    static INSTALLED: OnceLock<Result<i32, i32>> = OnceLock::new();
    INSTALLED
        .get_or_init(install)
        .map_err(|errno| AccelError::Host {
            operation: "reserving the signal that stops processors",
            source: io::Error::from_raw_os_error(errno),
        })
}

fn install() -> Result<i32, i32> {
    extern "C" fn ignore(_: libc::c_int) {}

    let signal = libc::SIGRTMIN() + SIGNAL_OFFSET;
    // SAFETY: a zeroed sigaction is the default action with an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: reads the present action of one signal into a valid structure.
    if unsafe { libc::sigaction(signal, std::ptr::null(), &mut action) } != 0 {
        return Err(errno());
    }
    if action.sa_sigaction != libc::SIG_DFL {
        // Somebody in this process uses it for something else.
        return Err(libc::EBUSY);
    }
    action.sa_sigaction = ignore as *const () as usize;
    // No SA_RESTART: KVM_RUN has to come back.
    action.sa_flags = 0;
    // SAFETY: the handler is async-signal-safe: it does nothing.
    if unsafe { libc::sigaction(signal, &action, std::ptr::null_mut()) } != 0 {
        return Err(errno());
    }
    Ok(signal)
}

fn errno() -> i32 {
    io::Error::last_os_error()
        .raw_os_error()
        .unwrap_or(libc::EIO)
}
