//! `--disk FILE[,ro][,format=raw|qcow2]`.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use favo_block::{Backing, BlockImage, Format, OpenOptions};
use favo_vmm::machine::DiskSpec;
use favo_vmm::machine::config::{DiskConfig, DiskSource};

use crate::Failure;

/// A disk as the user names it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DiskArgument {
    file: PathBuf,
    read_only: bool,
    format: Format,
}

impl FromStr for DiskArgument {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // Options are taken off the end: a file's name may hold commas.
        let (mut file, mut read_only, mut format) = (text, false, None);
        loop {
            if let Some(rest) = file.strip_suffix(",ro") {
                (file, read_only) = (rest, true);
            } else if let Some(rest) = file.strip_suffix(",format=raw") {
                (file, format) = (rest, Some(Format::Raw));
            } else if let Some(rest) = file.strip_suffix(",format=qcow2") {
                (file, format) = (rest, Some(Format::Qcow2));
            } else {
                break;
            }
        }
        if file.is_empty() {
            return Err("it names no file".to_owned());
        }
        // Never by content: a guest can write a qcow2 header to its raw disk.
        let by_name = if file.ends_with(".qcow2") {
            Format::Qcow2
        } else {
            Format::Raw
        };
        let disk = Self {
            file: file.into(),
            read_only,
            format: format.unwrap_or(by_name),
        };
        Ok(disk)
    }
}

impl DiskArgument {
    /// Whether the guest may write it.
    pub fn is_writable(&self) -> bool {
        !self.read_only
    }

    /// Opens and locks the disk. A backing file must lie in the same directory
    /// or below.
    pub fn open(&self, index: usize) -> Result<DiskSpec, Failure> {
        let directory = match self.file.parent() {
            Some(parent) if parent != Path::new("") => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        let options = OpenOptions::new(self.format)
            .read_only(self.read_only)
            .backing(Backing::Within(vec![directory.clone()]));
        let image = BlockImage::open(&self.file, &options)?;
        let config = DiskConfig {
            path: absolute(&self.file)?,
            format: self.format.into(),
            backing: vec![absolute(&directory)?],
            read_only: self.read_only,
            throw_away: false,
            serial: format!("favo-disk{index}"),
        };
        Ok(DiskSource { image, config }.into())
    }
}

/// The path without links, for whoever opens it later from elsewhere.
pub fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::fs::canonicalize(path)
        .map_err(|error| Failure::new(format!("finding {}: {error}", path.display())))
}

/// Opens all of them.
pub fn open(arguments: &[DiskArgument]) -> Result<Vec<DiskSpec>, Failure> {
    arguments
        .iter()
        .enumerate()
        .map(|(index, disk)| disk.open(index + 1))
        .collect()
}

#[cfg(test)]
#[path = "disks_test.rs"]
mod test;
