//! What the threads of the control socket may not call.
//!
//! They do what the machine's owner asks for: write snapshots wherever he
//! says, share memory with clones. What that takes is too much for a list, so
//! this is the one kind of thread that has the opposite of one: it reaches the
//! owner's files, and neither programs nor other processes nor networks.

use libc::{AF_UNIX, CLONE_THREAD, ENOSYS, PR_SET_DUMPABLE, PROT_EXEC, TIOCSTI};
use syscalls::Sysno;

use super::{Rule, bits_are, forbid, forbid_when, is, is_u32, not, other_process, refuse, without};

/// See the module.
pub const FORBIDDEN: &[Rule] = &[
    // Programs and processes.
    forbid(Sysno::execve),
    forbid(Sysno::execveat),
    forbid(Sysno::fork),
    forbid(Sysno::vfork),
    forbid_when(Sysno::clone, &[without(0, CLONE_THREAD)]),
    // Its flags lie in memory, where no filter sees them.
    refuse(Sysno::clone3, ENOSYS),
    // Other processes.
    forbid(Sysno::ptrace),
    forbid(Sysno::process_vm_readv),
    forbid(Sysno::process_vm_writev),
    forbid(Sysno::process_madvise),
    forbid(Sysno::kill),
    forbid(Sysno::tkill),
    forbid_when(Sysno::tgkill, &[other_process(0)]),
    forbid(Sysno::rt_sigqueueinfo),
    forbid(Sysno::rt_tgsigqueueinfo),
    forbid(Sysno::pidfd_open),
    forbid(Sysno::pidfd_getfd),
    forbid(Sysno::pidfd_send_signal),
    forbid(Sysno::prlimit64),
    // Networks.
    forbid_when(Sysno::socket, &[not(0, AF_UNIX)]),
    // Code.
    forbid_when(Sysno::mmap, &[bits_are(2, PROT_EXEC, PROT_EXEC)]),
    forbid_when(Sysno::mprotect, &[bits_are(2, PROT_EXEC, PROT_EXEC)]),
    forbid_when(Sysno::pkey_mprotect, &[bits_are(2, PROT_EXEC, PROT_EXEC)]),
    forbid(Sysno::uselib),
    // The system, and ways around what is above.
    forbid(Sysno::mount),
    forbid(Sysno::umount2),
    forbid(Sysno::move_mount),
    forbid(Sysno::open_tree),
    forbid(Sysno::fsopen),
    forbid(Sysno::pivot_root),
    forbid(Sysno::chroot),
    forbid(Sysno::unshare),
    forbid(Sysno::setns),
    forbid(Sysno::bpf),
    forbid(Sysno::userfaultfd),
    forbid(Sysno::perf_event_open),
    forbid(Sysno::io_uring_setup),
    forbid(Sysno::keyctl),
    forbid(Sysno::add_key),
    forbid(Sysno::request_key),
    forbid(Sysno::personality),
    forbid(Sysno::iopl),
    forbid(Sysno::ioperm),
    forbid(Sysno::modify_ldt),
    forbid(Sysno::init_module),
    forbid(Sysno::finit_module),
    forbid(Sysno::kexec_load),
    forbid(Sysno::kexec_file_load),
    forbid_when(Sysno::prctl, &[is(0, PR_SET_DUMPABLE)]),
    forbid_when(Sysno::ioctl, &[is_u32(1, TIOCSTI as u32)]),
];
