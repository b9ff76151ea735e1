//! The few system calls no safe wrapper covers. All unsafe code of the agent is here.

use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

/// The host's context id ([`VMADDR_CID_HOST`](https://man7.org/linux/man-pages/man7/vsock.7.html)).
const VSOCK_CID_HOST: u32 = 2;

/// Spawns `command` in its own session; `controlling_terminal`: its standard input is a
/// terminal and becomes the session's. Signals are as a fresh program expects them: none
/// blocked, none ignored.
pub fn spawn_in_session(mut command: Command, controlling_terminal: bool) -> io::Result<Child> {
    // SAFETY: between fork and exec the closure makes system calls only: no allocation, no
    // lock, no access to state another thread could hold.
    unsafe {
        command.pre_exec(move || {
            rustix::process::setsid()?;
            if controlling_terminal && libc::ioctl(0, libc::TIOCSCTTY, 0) != 0 {
                return Err(io::Error::last_os_error());
            }
            // KILL, STOP and the C library's own refuse; that is all right.
            for signal in 1..=64 {
                libc::signal(signal, libc::SIG_DFL);
            }
            let mut none: libc::sigset_t = zeroed();
            libc::sigemptyset(&mut none);
            if libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut()) != 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(())
        });
    }
    command.spawn()
}

/// Blocks SIGCHLD for this thread and returns a non-blocking signalfd that is readable when
/// a child has ended. For process 1, which has one thread.
pub fn child_signal_fd() -> io::Result<OwnedFd> {
    // SAFETY: the set is initialised by sigemptyset before any use, the pointers are to
    // locals that outlive the calls, and the descriptor returned is new and ours alone.
    unsafe {
        let mut set: libc::sigset_t = zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGCHLD);
        if libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
        let fd = libc::signalfd(-1, &set, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Connects to `port` of the host over AF_VSOCK.
pub fn connect_vsock_host(port: u32) -> io::Result<OwnedFd> {
    // SAFETY: the address is a plain structure, fully initialised, and its true size is
    // passed; the descriptor is checked and owned before it is used.
    unsafe {
        let fd = libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        let socket = OwnedFd::from_raw_fd(fd);
        let mut address: libc::sockaddr_vm = zeroed();
        address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
        address.svm_cid = VSOCK_CID_HOST;
        address.svm_port = port;
        let length = size_of::<libc::sockaddr_vm>() as libc::socklen_t;
        if libc::connect(socket.as_raw_fd(), (&raw const address).cast(), length) != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(socket)
    }
}

/// Brings the loopback interface up.
pub fn loopback_up() -> io::Result<()> {
    // SAFETY: `ifreq` is plain data; the name is shorter than its field and zero-terminated
    // by the zeroed rest; both ioctls read and write that structure only.
    unsafe {
        let fd = libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        let socket = OwnedFd::from_raw_fd(fd);
        let mut request: libc::ifreq = zeroed();
        for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
            *to = *from as libc::c_char;
        }
        if libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &mut request) != 0 {
            return Err(io::Error::last_os_error());
        }
        request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short;
        if libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &request) != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

/// Sends a signal to every process but this one, in process 1; elsewhere does nothing.
pub fn signal_all(signal: rustix::process::Signal) {
    if std::process::id() != 1 {
        return;
    }
    // SAFETY: a plain system call on integers.
    unsafe {
        libc::kill(-1, signal.as_raw());
    }
}
