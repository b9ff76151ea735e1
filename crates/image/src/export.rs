//! Disks out of the store, as files other programs read.

use std::io;
use std::path::{Path, PathBuf};

use favo_types::ByteCount;

use crate::error::IoContext;
use crate::{ImageError, ImageName, Progress, Store, qcow2, sparse};

/// The format of a file to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExportFormat {
    /// The disk's bytes, with holes.
    Raw,
    /// qcow2 version 3, without a backing file.
    Qcow2,
}

/// How to export.
#[derive(Debug, Clone)]
pub struct ExportOptions {
    /// The file to write.
    pub file: PathBuf,
    /// In this format.
    pub format: ExportFormat,
    /// Replace the file if it is there.
    pub replace: bool,
}

/// Writes an image's disk to a file. The file is there, whole, or not at all.
pub fn export(
    store: &Store,
    name: &ImageName,
    options: &ExportOptions,
    progress: &dyn Progress,
) -> Result<(), ImageError> {
    let exists = || ImageError::FileExists {
        path: options.file.clone(),
    };
    if !options.replace && options.file.exists() {
        return Err(exists());
    }
    let image = store.open_image(name)?;
    let blob = image.image.manifest.disk.image;
    let disk = image.disk_path().ok_or_else(|| ImageError::Damaged {
        name: name.clone(),
        digest: blob.digest,
        problem: "is not there".into(),
    })?;
    let directory = match options.file.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let file = tempfile::Builder::new()
        .prefix(".favo-export-")
        .tempfile_in(directory)
        .during("create a file in", directory)?;
    match options.format {
        ExportFormat::Raw => {
            progress.stage("writing", Some(ByteCount(blob.size.bytes())));
            let from = std::fs::File::open(disk).during("open", disk)?;
            sparse::copy(&from, disk, file.as_file(), file.path(), progress)?;
        }
        ExportFormat::Qcow2 => qcow2::from_raw(disk, file.path(), progress)?,
    }
    // A temporary file is private; an ordinary new file has what the umask leaves.
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o666 & !umask());
    file.as_file()
        .set_permissions(mode)
        .during("set the mode of", file.path())?;
    file.as_file().sync_all().during("flush", file.path())?;
    let persisted = if options.replace {
        file.persist(&options.file)
    } else {
        file.persist_noclobber(&options.file)
    };
    match persisted {
        Ok(_) => Ok(()),
        Err(e) if e.error.kind() == io::ErrorKind::AlreadyExists => Err(exists()),
        Err(e) => Err(e.error).during("write", &options.file),
    }
}

/// The process's umask, read without changing it.
fn umask() -> u32 {
    std::fs::read_to_string("/proc/self/status")
        .ok()
        .and_then(|status| {
            let line = status.lines().find_map(|l| l.strip_prefix("Umask:"))?;
            u32::from_str_radix(line.trim(), 8).ok()
        })
        .unwrap_or(0o022)
}
