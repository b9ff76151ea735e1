//! What the threads of processors and of the serial port may call.

use libc::MADV_DONTNEED;
use syscalls::Sysno;

use super::program::CONNECTED;
use super::{Rule, allow, allow_when, is, is_u32, own_process};

/// Calls on KVM's descriptors (`linux/kvm.h`).
pub(super) mod kvm {
    pub const RUN: u32 = 0xae80;
    pub const GET_REGS: u32 = 0x8090_ae81;
    pub const SIGNAL_MSI: u32 = 0x4020_aea5;
    pub const IOEVENTFD: u32 = 0x4040_ae79;
    pub const SET_GSI_ROUTING: u32 = 0x4008_ae6a;
}

const _: () = assert!(MADV_DONTNEED == 4);

/// Linux 6.1; the libc crate has it for other C libraries only.
const MADV_COLLAPSE: i32 = 25;

/// A virtual processor's thread. It also does what the guest's drivers ask of
/// a device's registers: start its queues.
pub const VCPU: &[Rule] = &[
    // The software CPU, before it caches code (`accel::memory::pages`).
    allow(Sysno::membarrier),
    // The software CPU, when it begins another 2 MiB of code.
    allow_when(Sysno::madvise, &[is(2, MADV_COLLAPSE)]),
    // The machine's end, to the main thread.
    allow_when(Sysno::sendto, &CONNECTED),
    // A device's worker.
    allow(Sysno::eventfd2),
    allow(Sysno::epoll_create1),
    allow(Sysno::epoll_ctl),
    // KVM.
    allow_when(Sysno::ioctl, &[is_u32(1, kvm::RUN)]).rarely("KVM, where the host has it"),
    allow_when(Sysno::ioctl, &[is_u32(1, kvm::GET_REGS)]).rarely("a processor that failed"),
    allow_when(Sysno::ioctl, &[is_u32(1, kvm::SIGNAL_MSI)])
        .rarely("a driver on KVM, whose guests are too slow for the tests without hardware"),
    allow_when(Sysno::ioctl, &[is_u32(1, kvm::IOEVENTFD)])
        .rarely("a driver on KVM, whose guests are too slow for the tests without hardware"),
    allow_when(Sysno::ioctl, &[is_u32(1, kvm::SET_GSI_ROUTING)])
        .rarely("a driver on KVM, whose guests are too slow for the tests without hardware"),
    allow_when(Sysno::tgkill, &[own_process(0)]).rarely("stopping another processor on KVM"),
];

/// The thread of the software CPU's timers: needs no more than any.
pub const ALARM: &[Rule] = &[];

/// The serial port's threads.
pub const SERIAL: &[Rule] = &[
    allow(Sysno::ppoll),
    allow(Sysno::read),
    // An instance's console log, whose two files take turns.
    allow(Sysno::ftruncate).rarely("a console that said a mebibyte"),
    // The escape key, to the main thread.
    allow_when(Sysno::sendto, &CONNECTED),
];
