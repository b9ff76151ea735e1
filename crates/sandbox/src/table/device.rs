//! What the threads of virtio devices and of disks may call.

use syscalls::Sysno;

use super::machine::kvm;
use super::program::CONNECTED;
use super::{Rule, allow, allow_when, is, is_u32};

/// A hole, in a file that keeps its length.
const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;

/// A virtio device's thread.
pub const DEVICE: &[Rule] = &[
    // Queues and whatever else is waited for.
    allow(Sysno::epoll_pwait),
    allow(Sysno::epoll_ctl),
    allow(Sysno::read),
    // A disk on io_uring.
    allow(Sysno::io_uring_enter),
    // vsock, whose streams in this process are socket pairs.
    allow_when(Sysno::socketpair, &[is(0, libc::AF_UNIX)]),
    allow(Sysno::recvmsg),
    allow(Sysno::sendmsg),
    allow_when(Sysno::sendto, &CONNECTED),
    allow(Sysno::shutdown),
    // What the guest gives back of memory that clones may share.
    allow_when(Sysno::fallocate, &[is(1, PUNCH)]),
    // Interrupts on KVM.
    allow_when(Sysno::ioctl, &[is_u32(1, kvm::SIGNAL_MSI)])
        .rarely("a device on KVM, whose guests are too slow for the tests without hardware"),
];

/// A thread that reads and writes an image.
pub const DISK: &[Rule] = &[
    allow(Sysno::preadv),
    allow(Sysno::pwritev),
    allow(Sysno::fdatasync).rarely("raw files, where the host refuses io_uring"),
    allow(Sysno::pread64).rarely("qcow2, for pieces that are not aligned"),
    allow(Sysno::pwrite64).rarely("qcow2, for pieces that are not aligned"),
    allow(Sysno::fallocate),
    // qcow2, which grows.
    allow(Sysno::fsync),
    allow(Sysno::ftruncate),
];
