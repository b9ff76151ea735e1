//! Names of translated code for `perf`: with `FAVO_PERF_MAP` set in the
//! environment, every unit is written down in `/tmp/perf-PID.map`, as perf
//! expects it of just-in-time compilers.

use std::fs::File;
use std::io::Write;
use std::sync::{Mutex, OnceLock, PoisonError};

static MAP: OnceLock<Option<Mutex<File>>> = OnceLock::new();

fn map() -> Option<&'static Mutex<File>> {
    MAP.get_or_init(|| {
        std::env::var_os("FAVO_PERF_MAP")?;
        let path = format!("/tmp/perf-{}.map", std::process::id());
        let opened = File::options().append(true).create_new(true).open(&path);
        opened
            .inspect_err(|error| tracing::error!(%error, path, "can't write the names for perf"))
            .ok()
            .map(Mutex::new)
    })
    .as_ref()
}

/// Writes down that the code of the guest's `linear` lies here.
pub(super) fn note(start: u32, length: usize, linear: u64, user: bool) {
    let Some(map) = map() else { return };
    let level = if user { "user" } else { "kernel" };
    let line = format!("{start:x} {length:x} guest-{level}-{linear:x}\n");
    let mut file = map.lock().unwrap_or_else(PoisonError::into_inner);
    if let Err(error) = file.write_all(line.as_bytes()) {
        tracing::debug!(%error, "a name for perf was lost");
    }
}
