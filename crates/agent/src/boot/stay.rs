//! The agent beside a distribution's init: runs commands for the host while
//! the guest lives its own life.
//!
//! Process 1 starts it before it becomes the init, whose child it then is. It
//! keeps several connections to the host open, each in a thread: each serves
//! one command at a time. The file it was started from is gone by now, and it
//! needs none.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::thread::{self, sleep};
use std::time::Duration;

use super::{Options, renew};
use crate::server::{self, Outcome, ServeOptions};
use crate::sys;

/// The argument that tells this life from that of process 1; the port follows.
pub const ARGUMENT: &str = "stay";

/// Commands the host can run at the same time.
const CONNECTIONS: usize = 4;

/// How long to wait before the host is called again.
const PAUSE: Duration = Duration::from_secs(1);

/// Has the guest called as its instance is. The init reads the name.
pub fn name_guest(options: &Options) {
    const FILE: &str = "/etc/hostname";
    let Some(name) = &options.hostname else {
        return;
    };
    // At once: commands may run before the init has read it.
    if let Err(error) = rustix::system::sethostname(name.as_bytes()) {
        eprintln!("favo-agent: hostname {name}: {error}");
    }
    let own = fs::read_to_string(FILE).unwrap_or_default();
    if own.trim() != name
        && let Err(error) = fs::write(FILE, format!("{name}\n"))
    {
        eprintln!("favo-agent: {FILE}: {error}");
    }
}

/// Starts it. A guest without an agent is better than no guest.
pub fn start(options: &Options) {
    let started = Command::new("/proc/self/exe")
        // systemd spares processes of this name when it leaves an initramfs.
        .arg0("@favo-agent")
        .args([ARGUMENT, &options.port.to_string()])
        .env_clear()
        .env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        )
        .env("HOME", "/root")
        .stdin(Stdio::null())
        .spawn();
    if let Err(error) = started {
        eprintln!("favo-agent: no agent stays beside the init: {error}");
    }
}

/// The program of that process.
pub fn serve() {
    let port = std::env::args().nth(2).and_then(|port| port.parse().ok());
    let port = port.unwrap_or(crate::protocol::DEFAULT_VSOCK_PORT);
    let threads: Vec<_> = (0..CONNECTIONS)
        .map(|_| thread::spawn(move || serve_for_ever(port)))
        .collect();
    for thread in threads {
        let _ = thread.join();
    }
}

fn serve_for_ever(port: u32) {
    loop {
        let Ok(host) = sys::connect_vsock_host(port) else {
            sleep(PAUSE);
            continue;
        };
        match server::serve(host, ServeOptions::default()) {
            Ok(Outcome::PowerOff) => {
                if let Err(error) = power_off() {
                    eprintln!("favo-agent: powering off: {error}");
                }
            }
            // A host that breaks the protocol is tried again later.
            Ok(Outcome::Disconnected) => renew::renew(),
            Err(error) => {
                eprintln!("favo-agent: {error}");
                sleep(PAUSE);
            }
        }
    }
}

/// By the init, in its own order.
fn power_off() -> io::Result<()> {
    let status = Command::new("poweroff").stdin(Stdio::null()).status()?;
    match status.success() {
        true => Ok(()),
        false => Err(io::Error::other(format!("poweroff: {status}"))),
    }
}
