//! Process 1 of a guest: from the initramfs to a root disk, and then one of two lives.
//!
//! ```text
//!  /proc /sys /dev → modules → root disk → switch root ─┬─ run:  network, serve the host, power off
//!                                                       └─ boot: exec the distribution's init
//!                                                                (an agent may stay beside it)
//! ```
//!
//! What to do comes from the kernel's command line ([`Options`]). Process 1 must never exit
//! (the kernel panics): whatever fails is said on the console, and the machine powers off.

mod dhcp;
mod mounts;
mod network;
mod options;
mod power;
mod renew;
mod stay;

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};

use crate::protocol::CONSOLE_PORT_NAME;
use crate::server::{self, ServeOptions};
use crate::sys;

pub use options::{Mode, Options, OptionsError};

/// Where an initramfs holds the modules, in it the file [`MODULES_ORDER`].
pub const MODULES_DIRECTORY: &str = "/modules";

/// The list of modules to load: file names in [`MODULES_DIRECTORY`], one a line, in order.
pub const MODULES_ORDER: &str = "order";

const INITS: [&str; 4] = [
    "/sbin/init",
    "/lib/systemd/systemd",
    "/etc/init",
    "/bin/init",
];

/// How long the connection to the host may take; its listener is there before the guest is.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Why the guest could not be brought up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BootError {
    #[error("{what}: {source}")]
    System {
        what: String,
        #[source]
        source: io::Error,
    },
    #[error("kernel command line: {0}")]
    Options(#[from] OptionsError),
    #[error(
        "no root disk {device} after {seconds} s (is the disk attached, and its driver among the \
         loaded modules?)"
    )]
    NoRootDisk { device: String, seconds: u64 },
    #[error("none of {} is on the root disk: nothing to boot", INITS.join(", "))]
    NoInit,
    #[error(
        "no way to the host: vsock port {port}: {vsock}; and no virtio-console port named \
         {CONSOLE_PORT_NAME}"
    )]
    NoHost { port: u32, vsock: io::Error },
    #[error(transparent)]
    Serve(#[from] server::ServeError),
}

pub(crate) fn failed(what: impl Into<String>) -> impl FnOnce(io::Error) -> BootError {
    let what = what.into();
    move |source| BootError::System { what, source }
}

/// The program. Returns only when it is not process 1.
pub fn main() {
    if std::env::args().nth(1).as_deref() == Some(stay::ARGUMENT) {
        return stay::serve();
    }
    if std::process::id() != 1 {
        eprintln!("favo-agent: I am the first process of a favo guest, and not to be run by hand");
        std::process::exit(2);
    }
    if let Err(e) = run() {
        eprintln!("favo-agent: {e}");
    }
    power::off();
}

fn run() -> Result<(), BootError> {
    mounts::kernel_file_systems()?;
    let text = fs::read_to_string("/proc/cmdline").map_err(failed("/proc/cmdline"))?;
    let options = Options::parse(&text)?;
    load_modules();
    wait_for(&options.root, options.root_timeout)?;
    mounts::switch_root(&options)?;
    match options.mode {
        Mode::Boot => {
            if options.stay {
                stay::name_guest(&options);
                stay::start(&options);
            }
            Err(exec_init(&options))
        }
        Mode::Run => serve(&options),
    }
}

/// Loads the listed modules. One that fails may not be needed, so it is only reported: if it
/// was, the root disk or the host is missing next, and that is fatal.
fn load_modules() {
    let directory = Path::new(MODULES_DIRECTORY);
    let Ok(order) = fs::read_to_string(directory.join(MODULES_ORDER)) else {
        return;
    };
    for name in order.lines().map(str::trim).filter(|l| !l.is_empty()) {
        let result = fs::File::open(directory.join(name))
            .and_then(|file| rustix::system::finit_module(file, c"", 0).map_err(io::Error::from));
        match result {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            // ENODEV: the hardware it is for is not there.
            Err(e) if e.raw_os_error() == Some(libc::ENODEV) => {}
            Err(e) => eprintln!("favo-agent: module {name}: {e}"),
        }
    }
    // The archive is memory of the guest.
    let _ = fs::remove_dir_all(directory);
}

fn wait_for(device: &str, timeout: Duration) -> Result<(), BootError> {
    let start = Instant::now();
    while !Path::new(device).exists() {
        if start.elapsed() > timeout {
            return Err(BootError::NoRootDisk {
                device: device.into(),
                seconds: timeout.as_secs(),
            });
        }
        sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Becomes the distribution's init; returns only if that cannot be.
fn exec_init(options: &Options) -> BootError {
    let candidates: Vec<&str> = match &options.init {
        Some(init) => vec![init.as_str()],
        None => INITS.to_vec(),
    };
    for init in candidates {
        if fs::metadata(init).is_ok() {
            let error = std::process::Command::new(init)
                .env_clear()
                .env(
                    "PATH",
                    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                )
                .env("HOME", "/")
                .env("TERM", "linux")
                .exec();
            return failed(format!("start {init}"))(error);
        }
    }
    BootError::NoInit
}

/// Serves one host after the other until one asks for power-off, or none is there.
fn serve(options: &Options) -> Result<(), BootError> {
    mounts::run_file_systems();
    set_hostname(options);
    network::configure();
    let children = sys::child_signal_fd().map_err(failed("signalfd"))?;
    loop {
        let host = connect(options)?;
        let reap_all = children.try_clone().map_err(failed("signalfd"))?;
        let reap_all = Some(reap_all);
        match server::serve(host, ServeOptions { reap_all })? {
            server::Outcome::PowerOff => return Ok(()),
            // The machine was restored from a snapshot or cloned, or whoever
            // ran a command is done: there may be another.
            server::Outcome::Disconnected => renew::renew(),
        }
    }
}

fn set_hostname(options: &Options) {
    let own = fs::read_to_string("/etc/hostname").unwrap_or_default();
    let name = match &options.hostname {
        Some(name) => name,
        None if own.trim().is_empty() => "favo",
        None => own.trim(),
    };
    if let Err(e) = rustix::system::sethostname(name.as_bytes()) {
        eprintln!("favo-agent: hostname {name}: {e}");
    }
}

/// Reaches the host over vsock, or over the named port where there is no vsock. Drivers may
/// still be starting, so both are tried for a while.
fn connect(options: &Options) -> Result<OwnedFd, BootError> {
    let start = Instant::now();
    loop {
        let vsock = match sys::connect_vsock_host(options.port) {
            Ok(connection) => return Ok(connection),
            Err(e) => e,
        };
        if let Some(port) = open_console_port() {
            return wait_for_host(port);
        }
        if start.elapsed() > CONNECT_TIMEOUT {
            return Err(BootError::NoHost {
                port: options.port,
                vsock,
            });
        }
        sleep(Duration::from_millis(20));
    }
}

fn open_console_port() -> Option<OwnedFd> {
    for entry in fs::read_dir("/sys/class/virtio-ports").ok()?.flatten() {
        let name = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
        if name.trim() == CONSOLE_PORT_NAME {
            let device = Path::new("/dev").join(entry.file_name());
            let file = fs::File::options().read(true).write(true).open(device);
            return file.ok().map(OwnedFd::from);
        }
    }
    None
}

/// A port whose other end nobody has open reads as ended: waits until somebody has.
fn wait_for_host(port: OwnedFd) -> Result<OwnedFd, BootError> {
    loop {
        let mut fds = [PollFd::new(&port, PollFlags::OUT)];
        poll(&mut fds, None).map_err(|e| failed("virtio-console port")(e.into()))?;
        if !fds[0].revents().contains(PollFlags::HUP) {
            return Ok(port);
        }
        sleep(Duration::from_millis(20));
    }
}
