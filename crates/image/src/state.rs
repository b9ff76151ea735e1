//! Where favo keeps its state.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::ImageError;

/// The directory for images and disks: `$FAVO_STATE_DIR` if set; `/var/lib/favo` for root;
/// for a user `$XDG_DATA_HOME/favo`, by default `~/.local/share/favo`.
pub fn state_directory() -> Result<PathBuf, ImageError> {
    choose(
        |name| env::var_os(name),
        rustix::process::geteuid().is_root(),
    )
    .ok_or(ImageError::NoStateDirectory)
}

fn choose(variable: impl Fn(&str) -> Option<OsString>, is_root: bool) -> Option<PathBuf> {
    let path = |name: &str| {
        variable(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    if let Some(directory) = path("FAVO_STATE_DIR") {
        // A relative one is meant from here, and must not move with a later chdir.
        return std::path::absolute(directory).ok();
    }
    if is_root {
        return Some("/var/lib/favo".into());
    }
    // XDG Base Directory Specification: relative paths are to be ignored.
    path("XDG_DATA_HOME")
        .filter(|p| p.is_absolute())
        .or_else(|| path("HOME").map(|home| home.join(Path::new(".local/share"))))
        .map(|data| data.join("favo"))
}

#[cfg(test)]
#[path = "state_test.rs"]
mod test;
