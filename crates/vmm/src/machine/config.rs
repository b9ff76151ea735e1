//! What a machine is made of, as a value: what a snapshot keeps so that
//! nothing must be said again when it is restored.

use std::path::PathBuf;

use favo_block::{Backing, BlockImage, Format, OpenOptions};
use favo_types::ByteCount;
use serde::{Deserialize, Serialize};

/// A machine's parts. What is behind them on this host (a network, a terminal)
/// is its owner's business.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineConfig {
    /// Processors.
    pub cpus: u32,
    /// Bytes of RAM.
    pub memory: u64,
    /// Its disks, in their order.
    pub disks: Vec<DiskConfig>,
    /// The addresses of its network cards, in their order.
    pub cards: Vec<[u8; 6]>,
    /// The guest's context id, if there is a socket device.
    pub vsock_cid: Option<u32>,
    /// An entropy source.
    pub rng: bool,
    /// A balloon.
    pub balloon: bool,
    /// A console beside the serial port.
    pub console: bool,
}

impl MachineConfig {
    /// RAM.
    pub fn memory(&self) -> ByteCount {
        ByteCount(self.memory)
    }
}

/// A disk.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskConfig {
    /// The file, or the base of a throw-away disk; absolute.
    pub path: PathBuf,
    /// How its bytes make a disk.
    pub format: DiskFormat,
    /// Which directories backing files may lie in.
    pub backing: Vec<PathBuf>,
    /// The guest may not write it.
    pub read_only: bool,
    /// What the guest writes does not go to the file.
    pub throw_away: bool,
    /// Its serial number in the guest.
    pub serial: String,
}

/// How the bytes of a file make a disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    /// They are the disk's.
    Raw,
    /// QEMU's copy-on-write format.
    Qcow2,
}

impl From<Format> for DiskFormat {
    fn from(format: Format) -> Self {
        match format {
            Format::Raw => Self::Raw,
            Format::Qcow2 => Self::Qcow2,
        }
    }
}

impl DiskConfig {
    /// How to open the file.
    pub fn options(&self) -> OpenOptions {
        let format = match self.format {
            DiskFormat::Raw => Format::Raw,
            DiskFormat::Qcow2 => Format::Qcow2,
        };
        let backing = match self.backing.is_empty() {
            true => Backing::Refuse,
            false => Backing::Within(self.backing.clone()),
        };
        OpenOptions::new(format)
            .read_only(self.read_only || self.throw_away)
            .backing(backing)
    }
}

/// Where a disk's bytes are, for a disk that can be in a snapshot.
#[derive(Clone, Debug)]
pub struct DiskSource {
    /// The open disk.
    pub image: BlockImage,
    /// How to have it again.
    pub config: DiskConfig,
}
