//! `--disk FILE[,ro]`.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use favo_block::{BlockImage, Format, OpenOptions};
use favo_vmm::machine::DiskSpec;

use crate::Failure;

/// A disk as the user names it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DiskArgument {
    file: PathBuf,
    read_only: bool,
}

impl FromStr for DiskArgument {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (file, read_only) = match text.strip_suffix(",ro") {
            Some(file) => (file, true),
            None => (text, false),
        };
        if file.is_empty() {
            return Err("it names no file".to_owned());
        }
        Ok(Self {
            file: file.into(),
            read_only,
        })
    }
}

impl DiskArgument {
    /// Whether the guest may write it.
    pub fn is_writable(&self) -> bool {
        !self.read_only
    }

    /// Opens and locks the disk.
    pub fn open(&self, index: usize) -> Result<DiskSpec, Failure> {
        let format = Format::probe(&self.file)?;
        let options = OpenOptions::new(format).read_only(self.read_only);
        Ok(DiskSpec {
            disk: Arc::new(BlockImage::open(&self.file, &options)?),
            serial: format!("favo-disk{index}"),
        })
    }
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
