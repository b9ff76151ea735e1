//! What processes and the host use, read from `/proc` (proc(5)).

use std::path::Path;

use favo_api::host::Host;
use rustix::param::{clock_ticks_per_second, page_size};

/// Resident memory in bytes and processor time in milliseconds of a process.
pub fn of_process(pid: u32) -> (Option<u64>, Option<u64>) {
    let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).ok();
    let resident = read("statm").and_then(|statm| {
        let pages: u64 = statm.split_ascii_whitespace().nth(1)?.parse().ok()?;
        Some(pages * page_size() as u64)
    });
    let cpu = read("stat").and_then(|stat| {
        // The command, in parentheses, may have blanks and parentheses in it.
        let (_, fields) = stat.rsplit_once(')')?;
        let mut fields = fields.split_ascii_whitespace().skip(11);
        let user: u64 = fields.next()?.parse().ok()?;
        let system: u64 = fields.next()?.parse().ok()?;
        Some((user + system) * 1000 / clock_ticks_per_second())
    });
    (resident, cpu)
}

/// The host, without what is given to instances.
pub fn of_host(state: &Path) -> Host {
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kibibytes = |name: &str| {
        let line = memory.lines().find_map(|line| line.strip_prefix(name));
        let number =
            line.and_then(|line| line.split_ascii_whitespace().next()?.parse::<u64>().ok());
        number.unwrap_or_default() * 1024
    };
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let (disk, disk_available) = rustix::fs::statvfs(state)
        .map(|fs| (fs.f_blocks * fs.f_frsize, fs.f_bavail * fs.f_frsize))
        .unwrap_or_default();
    Host {
        name: rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned(),
        favo: env!("CARGO_PKG_VERSION").to_owned(),
        cpus: std::thread::available_parallelism().map_or(1, |cpus| cpus.get() as u32),
        memory: kibibytes("MemTotal:"),
        memory_available: kibibytes("MemAvailable:"),
        disk,
        disk_available,
        load: load
            .split_ascii_whitespace()
            .next()
            .and_then(|load| load.parse().ok())
            .unwrap_or_default(),
        running: 0,
        cpus_given: 0,
        memory_given: 0,
        daemon_resident: of_process(std::process::id()).0.unwrap_or_default(),
    }
}
