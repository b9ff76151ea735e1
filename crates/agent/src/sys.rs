//! The few system calls no safe wrapper covers. All unsafe code of the agent is here.

use std::io;
use std::mem::{size_of, zeroed};
use std::net::Ipv4Addr;
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

/// A network interface, set up through ioctls (netdevice(7)).
pub struct Interface {
    socket: OwnedFd,
    name: [libc::c_char; libc::IFNAMSIZ],
}

impl Interface {
    /// The interface of this name.
    pub fn new(name: &str) -> io::Result<Self> {
        let mut field = [0; libc::IFNAMSIZ];
        // The last byte stays zero.
        if name.len() >= field.len() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        for (to, from) in field.iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        // SAFETY: a plain system call; the descriptor is checked and new.
        let socket = unsafe {
            let fd = libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(fd)
        };
        Ok(Self {
            socket,
            name: field,
        })
    }

    /// Brings it up.
    pub fn up(&self) -> io::Result<()> {
        let mut request = self.request();
        self.call(libc::SIOCGIFFLAGS, &mut request)?;
        // SAFETY: the call above filled the flags in.
        unsafe { request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short };
        self.call(libc::SIOCSIFFLAGS, &mut request)
    }

    /// Sets its MTU, in bytes.
    pub fn set_mtu(&self, mtu: u16) -> io::Result<()> {
        let mut request = self.request();
        request.ifr_ifru.ifru_mtu = mtu.into();
        self.call(libc::SIOCSIFMTU, &mut request)
    }

    /// Gives it its first IPv4 address, and with it the route to its network.
    pub fn set_address(&self, address: Ipv4Addr, mask: Ipv4Addr) -> io::Result<()> {
        for (operation, value) in [(libc::SIOCSIFADDR, address), (libc::SIOCSIFNETMASK, mask)] {
            let mut request = self.request();
            request.ifr_ifru.ifru_addr = socket_address(value);
            self.call(operation, &mut request)?;
        }
        Ok(())
    }

    /// Sends what has no other route to `router` through it.
    pub fn set_default_route(&self, router: Ipv4Addr) -> io::Result<()> {
        let mut name = self.name;
        // SAFETY: `rtentry` is plain data, all zeroes is a route to 0.0.0.0/0; the name it
        // points to is zero-terminated and outlives the call.
        let result = unsafe {
            let mut route: libc::rtentry = zeroed();
            route.rt_dst = socket_address(Ipv4Addr::UNSPECIFIED);
            route.rt_genmask = socket_address(Ipv4Addr::UNSPECIFIED);
            route.rt_gateway = socket_address(router);
            route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
            route.rt_dev = name.as_mut_ptr();
            libc::ioctl(self.socket.as_raw_fd(), libc::SIOCADDRT, &raw mut route)
        };
        result_of(result)
    }

    /// Has `socket` send and receive through it only.
    pub fn bind(&self, socket: &impl AsRawFd) -> io::Result<()> {
        // SAFETY: the name is a local array whose true size is passed.
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_BINDTODEVICE,
                self.name.as_ptr().cast(),
                self.name.len() as libc::socklen_t,
            )
        };
        result_of(result)
    }

    fn request(&self) -> libc::ifreq {
        // SAFETY: `ifreq` is plain data; the name is zero-terminated.
        let mut request: libc::ifreq = unsafe { zeroed() };
        request.ifr_name = self.name;
        request
    }

    fn call(&self, operation: libc::Ioctl, request: &mut libc::ifreq) -> io::Result<()> {
        // SAFETY: the operations used here read and write that structure only.
        result_of(unsafe {
            libc::ioctl(
                self.socket.as_raw_fd(),
                operation,
                std::ptr::from_mut(request),
            )
        })
    }
}

fn result_of(status: libc::c_int) -> io::Result<()> {
    if status == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// A `sockaddr_in` in the field of a `sockaddr`.
fn socket_address(address: Ipv4Addr) -> libc::sockaddr {
    let mut data = [0; 14];
    // Behind a port of 0.
    for (to, from) in data[2..6].iter_mut().zip(address.octets()) {
        *to = from as libc::c_char;
    }
    libc::sockaddr {
        sa_family: libc::AF_INET as libc::sa_family_t,
        sa_data: data,
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

/// Adds `entropy` to the kernel's random number generator and has it start
/// anew from there (random(4), `RNDADDENTROPY` and `RNDRESEEDCRNG`).
pub fn reseed(entropy: &[u8]) -> io::Result<()> {
    const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;
    const RNDRESEEDCRNG: libc::c_ulong = 0x5207;
    let length = i32::try_from(entropy.len()).map_err(io::Error::other)?;
    // struct rand_pool_info: bits to credit, bytes, the bytes.
    let mut request = Vec::with_capacity(8 + entropy.len());
    request.extend((length.saturating_mul(8)).to_ne_bytes());
    request.extend(length.to_ne_bytes());
    request.extend(entropy);
    let device = std::fs::File::options().write(true).open("/dev/urandom")?;
    // SAFETY: the request is the structure the kernel reads, with as many bytes
    // behind it as it says; the second call takes no argument.
    let results = unsafe {
        [
            libc::ioctl(device.as_raw_fd(), RNDADDENTROPY as _, request.as_ptr()),
            libc::ioctl(device.as_raw_fd(), RNDRESEEDCRNG as _),
        ]
    };
    if results != [0, 0] {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
