//! What any thread may call, and the threads of the program around the
//! machine.

use libc::{
    EACCES, ENOSYS, F_GETFD, MADV_DONTNEED, MAP_ANONYMOUS, PR_SET_NAME, PROT_EXEC, SO_RCVTIMEO,
    SOL_SOCKET,
};
use syscalls::Sysno;

use super::{
    Condition, Rule, allow, allow_when, bits_are, is, is_u32, own_process, refuse, without,
};

const ALLOCATOR: &str = "the allocator, if a thread needs that much";
const NO_VDSO: &str = "a host whose clock can't be read without a call";
const ABORT: &str = "abort(), after a panic in a panic";

/// What any thread may call: memory, locks, its end.
pub const ANY: &[Rule] = &[
    // Locks and channels.
    allow(Sysno::futex),
    allow(Sysno::sched_yield).rarely("channels, when many want one at once"),
    // Memory, which is never executable.
    allow_when(
        Sysno::mmap,
        &[
            without(2, PROT_EXEC),
            bits_are(3, MAP_ANONYMOUS, MAP_ANONYMOUS),
        ],
    ),
    allow_when(Sysno::mprotect, &[without(2, PROT_EXEC)]),
    allow(Sysno::munmap),
    allow_when(Sysno::madvise, &[is(2, MADV_DONTNEED)]),
    allow(Sysno::mremap).rarely(ALLOCATOR),
    allow(Sysno::brk).rarely(ALLOCATOR),
    // The allocator wants the number of processors from /sys, or does without.
    refuse(Sysno::openat, EACCES)
        .rarely("the allocator, once many threads have memory of their own"),
    allow(Sysno::sched_getaffinity).rarely("the allocator, after that"),
    allow(Sysno::getrandom).rarely("the first hash table of a thread"),
    // Event descriptors, and what is logged.
    allow(Sysno::write),
    allow(Sysno::close),
    allow_when(Sysno::fcntl, &[is(1, F_GETFD)]).rarely("debug builds, before they close"),
    // Time.
    allow(Sysno::clock_gettime).rarely(NO_VDSO),
    allow(Sysno::gettimeofday).rarely(NO_VDSO),
    allow(Sysno::restart_syscall).rarely("a sleep that SIGSTOP and SIGCONT interrupted"),
    // Signals, and the end.
    allow(Sysno::rt_sigprocmask),
    allow(Sysno::rt_sigreturn),
    allow(Sysno::sigaltstack),
    allow(Sysno::exit),
    allow(Sysno::exit_group),
    allow(Sysno::gettid).rarely(ABORT),
    allow(Sysno::getpid).rarely(ABORT),
    allow_when(Sysno::tgkill, &[own_process(0), is(2, libc::SIGABRT)]).rarely(ABORT),
];

/// Of sendto(2): no address, so only to the socket's peer.
pub(super) const CONNECTED: [Condition; 1] = [is(5, 0)];

/// TCGETS2 and TCSETSF2 of ioctl_tty(2), which libc has not.
const TCGETS2: u32 = 0x802c_542a;
const TCSETS2: u32 = 0x402c_542b;
const TCSETSF2: u32 = 0x402c_542d;

/// The main thread, once the machine runs.
pub const MAIN: &[Rule] = &[
    // Events, the command's streams, and its connection.
    allow(Sysno::ppoll),
    allow(Sysno::read),
    allow(Sysno::recvfrom),
    allow_when(Sysno::sendto, &CONNECTED),
    // A disk's metadata, and processors on KVM.
    allow(Sysno::fsync),
    allow_when(Sysno::tgkill, &[own_process(0)]).rarely("KVM, where the host has it"),
    allow_when(Sysno::setsockopt, &[is(1, SOL_SOCKET), is(2, SO_RCVTIMEO)]),
    // Connections to the control socket, at the end.
    allow(Sysno::shutdown),
    // The terminal: its size, and raw mode.
    allow_when(Sysno::ioctl, &[is_u32(1, libc::TIOCGWINSZ as u32)]),
    allow_when(Sysno::ioctl, &[is_u32(1, TCGETS2)]),
    allow_when(Sysno::ioctl, &[is_u32(1, TCSETS2)]),
    allow_when(Sysno::ioctl, &[is_u32(1, TCSETSF2)]),
    allow_when(Sysno::ioctl, &[is_u32(1, libc::TCGETS as u32)]),
];

/// The thread that waits for signals.
pub const SIGNALS: &[Rule] = &[
    allow(Sysno::recvfrom),
    allow_when(Sysno::sendto, &CONNECTED),
];

/// The thread that ends a program that does not end.
pub const TIMER: &[Rule] = &[
    allow(Sysno::clock_nanosleep),
    allow_when(Sysno::ioctl, &[is_u32(1, TCSETSF2)])
        .rarely("the terminal of a machine that does not stop"),
];

/// What makes a thread that shares everything, as pthread_create does
/// (clone(2)).
const THREAD: i32 = libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM
    | libc::CLONE_SETTLS
    | libc::CLONE_PARENT_SETTID
    | libc::CLONE_CHILD_CLEARTID;

/// The thread that starts others, and what these do before they are confined.
pub const LAUNCHER: &[Rule] = &[
    allow_when(Sysno::clone, &[is(0, THREAD)]),
    // Its flags lie in memory, where no filter sees them.
    refuse(Sysno::clone3, ENOSYS),
    allow(Sysno::set_robust_list),
    allow(Sysno::rseq),
    allow_when(Sysno::prctl, &[is(0, PR_SET_NAME)]),
    // To confine them.
    allow_when(Sysno::prctl, &[is(0, libc::PR_SET_NO_NEW_PRIVS)]),
    allow_when(Sysno::prctl, &[is(0, libc::PR_CAP_AMBIENT)]),
    allow_when(Sysno::prctl, &[is(0, libc::PR_CAPBSET_DROP)]),
    allow(Sysno::landlock_restrict_self),
    allow_when(Sysno::fcntl, &[is(1, libc::F_DUPFD_CLOEXEC)]),
    allow(Sysno::capset),
    allow(Sysno::seccomp),
    // A disk's queue on io_uring.
    allow(Sysno::io_uring_setup),
    allow(Sysno::io_uring_register),
    allow_when(Sysno::madvise, &[is(2, libc::MADV_DONTFORK)]),
    allow_when(
        Sysno::mmap,
        &[
            without(2, PROT_EXEC),
            is(3, libc::MAP_SHARED | libc::MAP_POPULATE),
        ],
    ),
    allow(Sysno::eventfd2),
];
