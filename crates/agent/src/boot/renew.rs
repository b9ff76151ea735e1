//! What a guest must renew when it may have been restored or cloned: its
//! random numbers, which a twin would otherwise repeat, and its clock, which
//! stood still.
//!
//! The machine says so by its generation id, but not every kernel listens
//! (Debian 12's does not), and none sets its clock by it. The agent notices:
//! its connection to the host breaks whenever the guest wakes up elsewhere.

use std::fs::{self, File};
use std::io::{self, Read};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, Timespec, clock_settime};

use crate::sys;

/// More than the kernel's drivers may have kept from before: 64 bytes each.
const ENTROPY_BYTES: usize = 1024;

/// A clock that is off by less was not standing.
const TOLERANCE_SECONDS: u64 = 2;

/// Renews both as far as the guest can; what it can't is said on the console.
pub fn renew() {
    if let Err(error) = reseed() {
        eprintln!("favo-agent: new random numbers: {error}");
    }
    if let Err(error) = set_clock() {
        eprintln!("favo-agent: setting the clock: {error}");
    }
}

/// Gives the kernel fresh entropy of the host's and has it used at once.
fn reseed() -> io::Result<()> {
    let mut entropy = [0; ENTROPY_BYTES];
    File::open("/dev/hwrng")?.read_exact(&mut entropy)?;
    sys::reseed(&entropy)
}

/// Sets the clock by the machine's real-time clock, which never stands.
fn set_clock() -> io::Result<()> {
    let text = fs::read_to_string("/sys/class/rtc/rtc0/since_epoch")?;
    let seconds: u64 = text.trim().parse().map_err(io::Error::other)?;
    let own = SystemTime::now().duration_since(UNIX_EPOCH);
    let own = own.map_or(0, |own| own.as_secs());
    if own.abs_diff(seconds) <= TOLERANCE_SECONDS {
        return Ok(());
    }
    let time = Timespec {
        tv_sec: seconds as i64,
        tv_nsec: 0,
    };
    Ok(clock_settime(ClockId::Realtime, time)?)
}
