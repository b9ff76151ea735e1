//! The disks of `favo run`: an image's, thrown away or kept, and the user's.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use favo_block::{Backing, BlockImage, Format, OpenOptions};
use favo_image::{ImageName, OpenImage, Store};
use favo_vmm::machine::DiskSpec;

use crate::{Failure, exit};

/// `FILE[,ro][,format=raw|qcow2]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct DiskArgument {
    file: PathBuf,
    read_only: bool,
    format: Format,
}

impl FromStr for DiskArgument {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(',');
        let file = PathBuf::from(parts.next().unwrap_or_default());
        // Never by content: a guest could write a qcow2 header to its raw disk
        // and read any file of the host's through it.
        let qcow2 = file.extension().is_some_and(|extension| extension == "qcow2");
        let format = if qcow2 { Format::Qcow2 } else { Format::Raw };
        let mut disk = Self { file, read_only: false, format };
        for part in parts {
            match part {
                "ro" => disk.read_only = true,
                "format=raw" => disk.format = Format::Raw,
                "format=qcow2" => disk.format = Format::Qcow2,
                other => {
                    return Err(format!("'{other}' is not known: use ro, format=raw or format=qcow2"));
                }
            }
        }
        Ok(disk)
    }
}

/// Opens the user's disks.
pub(super) fn open_all(disks: &[DiskArgument]) -> Result<Vec<DiskSpec>, Failure> {
    disks
        .iter()
        .map(|disk| {
            let directory = match disk.file.parent() {
                Some(parent) if parent != Path::new("") => parent.to_owned(),
                _ => PathBuf::from("."),
            };
            let options = OpenOptions::new(disk.format)
                .read_only(disk.read_only)
                .backing(Backing::Within(vec![directory]));
            open(&disk.file, &options)
        })
        .collect()
}

fn open(path: &Path, options: &OpenOptions) -> Result<DiskSpec, Failure> {
    let image = BlockImage::open(path, options).map_err(failure)?;
    Ok(spec(image))
}

fn spec(image: BlockImage) -> DiskSpec {
    DiskSpec { disk: Arc::new(image), serial: String::new() }
}

fn failure(error: favo_block::BlockError) -> Failure {
    let status = match &error {
        favo_block::BlockError::InUse { .. } => exit::CONFLICT,
        _ => exit::FAILED,
    };
    Failure::with_status(Failure::from(error).message, status)
}

/// The image's disk: copy-on-write, and forgotten unless `keep` names it.
pub(super) fn of_image(
    store: &Store,
    image: &OpenImage,
    keep: Option<&str>,
) -> Result<DiskSpec, Failure> {
    let base = image
        .disk_path()
        .ok_or_else(|| Failure::new("the image has no disk; build or import it again"))?;
    let directory = store.state_directory();
    match keep {
        None => {
            let base = BlockImage::open(base, &OpenOptions::new(Format::Raw).read_only(true))
                .map_err(failure)?;
            Ok(spec(base.overlay(directory).map_err(failure)?))
        }
        Some(name) => kept(store, image, base, name),
    }
}

/// A kept disk: a qcow2 file over the image's disk, which is pinned before
/// the file is there.
fn kept(store: &Store, image: &OpenImage, base: &Path, name: &str) -> Result<DiskSpec, Failure> {
    let holder: ImageName = name.parse()?;
    let disks = store.state_directory().join("disks");
    std::fs::create_dir_all(&disks)?;
    let path = disks.join(format!("{}.qcow2", name.replace('/', "%")));
    let size = std::fs::metadata(base)?.len();
    if !path.exists() {
        let digest = image.image.manifest.disk.image.digest;
        store.pin(&holder, [digest]).map_err(crate::image::failure)?;
        let backing = base.to_string_lossy();
        BlockImage::create(&path, Format::Qcow2, size, Some((&backing, Format::Raw)))
            .map_err(failure)?;
    }
    let blobs = base.parent().map_or_else(PathBuf::new, Path::to_owned);
    let options = OpenOptions::new(Format::Qcow2).backing(Backing::Within(vec![blobs]));
    open(&path, &options)
}

#[cfg(test)]
#[path = "disks_test.rs"]
mod test;
