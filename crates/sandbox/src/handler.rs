//! The unsafe part of [`violation`](crate::violation): the signal handler, and
//! what is called in it.

use std::io;
use std::os::fd::{BorrowedFd, RawFd};
use std::sync::atomic::AtomicU32;

use crate::violation;

/// Where the number of the call lies in a `siginfo_t` of SIGSYS: behind the
/// signal, error and code, 4 bytes of padding, and the call's address
/// (sigaction(2)).
const CALL_OFFSET: usize = 24;

extern "C" fn refused(_signal: i32, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the kernel passes a siginfo_t, 128 bytes, to handlers with
    // SA_SIGINFO.
    let call = unsafe { info.cast::<u8>().add(CALL_OFFSET).cast::<i32>().read() };
    violation::end(call)
}

/// Has SIGSYS handled on the thread it hits, on its signal stack.
pub(crate) fn install() -> io::Result<()> {
    // SAFETY: a zeroed sigaction is the default action with an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = refused as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: the handler is async-signal-safe: it writes, sleeps on a futex
    // and exits, and allocates nothing.
    match unsafe { libc::sigaction(libc::SIGSYS, &action, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A descriptor that was given up to stay open.
pub(crate) fn borrow(fd: RawFd) -> BorrowedFd<'static> {
    // SAFETY: `violation::watch` took it out of its owner, and nobody closes it.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

/// Sleeps on a futex that nobody wakes: every list has this call.
pub(crate) fn sleep(never: &AtomicU32, seconds: u64) {
    let time = libc::timespec {
        tv_sec: seconds as libc::time_t,
        tv_nsec: 0,
    };
    // SAFETY: the word and the time outlive the call.
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            never.as_ptr(),
            libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG,
            0,
            &raw const time,
        )
    };
}

/// Ends the process at once.
pub(crate) fn exit(status: u8) -> ! {
    // SAFETY: ends the process without running anything of it.
    unsafe { libc::_exit(status.into()) }
}
