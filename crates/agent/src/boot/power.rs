//! The end of a guest: everything stopped, the disks flushed, the power off.

use std::io::IsTerminal;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::mount::{MountFlags, mount_remount};
use rustix::process::{Signal, WaitOptions, wait};
use rustix::system::{RebootCommand, reboot};

use crate::sys;

/// How long processes may take to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(2);

/// Stops all processes, makes the root read-only and powers off. Never returns.
pub(super) fn off() -> ! {
    sys::signal_all(Signal::TERM);
    sys::signal_all(Signal::CONT);
    if !all_ended(GRACE) {
        sys::signal_all(Signal::KILL);
        all_ended(GRACE);
    }
    rustix::fs::sync();
    // With no process left nothing writes; read-only makes the file system mark itself clean.
    if let Err(e) = mount_remount("/", MountFlags::RDONLY, c"") {
        eprintln!("favo-agent: root disk read-only: {e}");
    }
    rustix::fs::sync();
    if std::io::stderr().is_terminal() {
        let _ = rustix::termios::tcdrain(rustix::stdio::stderr());
    }
    if let Err(e) = reboot(RebootCommand::PowerOff) {
        eprintln!("favo-agent: power off: {e}");
    }
    // A machine without a power switch.
    loop {
        sleep(Duration::from_secs(3600));
    }
}

/// Collects children, which all processes are or become, until there are none.
fn all_ended(within: Duration) -> bool {
    let start = Instant::now();
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some(_)) | Err(Errno::INTR) => {}
            Err(_) => return true,
            Ok(None) if start.elapsed() > within => return false,
            Ok(None) => sleep(Duration::from_millis(5)),
        }
    }
}
