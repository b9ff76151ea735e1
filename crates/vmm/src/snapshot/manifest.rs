//! The manifest: what a snapshot is, and the seal over it.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use favo_accel::{EngineKind, PAGE_SIZE};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::SnapshotError;
use crate::machine::MachineState;
use crate::machine::config::MachineConfig;

/// The manifest's name in the directory.
pub const NAME: &str = "manifest";
const MAGIC: &str = "favo-snapshot";
/// More than any machine's: 64 processors and a few disks have a megabyte.
const MOST_BYTES: u64 = 64 << 20;

/// Tells snapshots apart: 128 random bits, in hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SnapshotId([u8; 16]);

impl SnapshotId {
    /// A new one.
    pub fn random() -> std::io::Result<Self> {
        let mut id = [0; 16];
        rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty())?;
        Ok(Self(id))
    }
}

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl FromStr for SnapshotId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut id = [0; 16];
        hex::decode_to_slice(text, &mut id).map_err(|error| format!("'{text}': {error}"))?;
        Ok(Self(id))
    }
}

impl TryFrom<String> for SnapshotId {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<SnapshotId> for String {
    fn from(id: SnapshotId) -> Self {
        id.to_string()
    }
}

/// A SHA-256, in hexadecimal.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Sum(String);

impl Sum {
    /// One that was computed.
    pub(super) fn from_digest(digest: [u8; 32]) -> Self {
        Self(hex::encode(digest))
    }

    /// Of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(hex::encode(Sha256::digest(bytes)))
    }
}

impl fmt::Display for Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A whole snapshot, but for its data.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Manifest {
    /// Which snapshot.
    pub id: SnapshotId,
    /// When: nanoseconds since 1970.
    pub created_ns: u64,
    /// The version of the favo that wrote it.
    pub favo: String,
    /// The engine the machine ran on.
    pub engine: EngineKind,
    /// The snapshot this one adds to, if it is incremental.
    pub parent: Option<Parent>,
    /// RAM.
    pub memory: MemoryRecord,
    /// As many as the configuration has disks, in their order.
    pub disks: Vec<DiskRecord>,
    /// What the machine is made of.
    pub config: MachineConfig,
    /// What the machine's owner keeps with it; not looked at here.
    #[serde(default)]
    pub owner: serde_json::Value,
    /// Processors and devices.
    pub state: MachineState,
}

/// The snapshot below.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Parent {
    /// Where it was; one of the same name beside this snapshot goes first.
    pub path: PathBuf,
    /// Which it is.
    pub id: SnapshotId,
}

/// A data file: `bytes` of data, then its seal.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FileRecord {
    /// Its name in the directory.
    pub name: String,
    /// Bytes of data.
    pub bytes: u64,
    /// The sum of the sums in `name` + `.sums`.
    pub sums: Sum,
}

/// RAM.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MemoryRecord {
    /// The file.
    pub file: FileRecord,
    /// Which pages are in it, if it is incremental: first and behind the last.
    pub pages: Option<Vec<(u64, u64)>>,
}

impl MemoryRecord {
    /// [`MemoryRecord::pages`] in bytes.
    pub fn ranges(&self) -> Option<Vec<Range<u64>>> {
        let pages = self.pages.as_ref()?.iter();
        let bytes = |page: u64| page.saturating_mul(PAGE_SIZE);
        Some(pages.map(|(from, to)| bytes(*from)..bytes(*to)).collect())
    }
}

/// A disk.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DiskRecord {
    /// Tells whether the file outside is still the same.
    pub identity: DiskIdentity,
    /// What was written, if it is a throw-away disk.
    pub overlay: Option<OverlayRecord>,
}

/// What a file outside the snapshot was like.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DiskIdentity {
    /// Its length.
    pub bytes: u64,
    /// When it was written last: nanoseconds since 1970.
    pub modified_ns: i128,
    /// The sum of 16 pieces of 64 KiB at even distances.
    pub sample: Sum,
}

/// What was written to a throw-away disk.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct OverlayRecord {
    /// The clusters, at their places.
    pub file: FileRecord,
    /// The name of the bitmap's file.
    pub bitmap: String,
    /// The sum of the bitmap.
    pub bitmap_sum: Sum,
}

impl Manifest {
    /// The version of the format described here.
    pub const VERSION: u32 = 1;

    /// The file's bytes.
    pub fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        let body = serde_json::to_vec(self)?;
        let mut bytes = header(Self::VERSION, &body).into_bytes();
        bytes.extend(body);
        Ok(bytes)
    }

    /// Reads a manifest's bytes, which came from `path`. All that can be said
    /// of it without its other files is checked.
    pub fn decode(bytes: &[u8], path: &Path) -> Result<Self, SnapshotError> {
        let foreign = || SnapshotError::foreign(path, "its manifest does not begin as one");
        let end = bytes.iter().take(128).position(|byte| *byte == b'\n');
        let end = end.ok_or_else(foreign)?;
        let line = std::str::from_utf8(&bytes[..=end]).map_err(|_| foreign())?;
        let mut words = line.split_ascii_whitespace();
        if words.next() != Some(MAGIC) {
            return Err(foreign());
        }
        let version = words.next().and_then(|word| word.parse().ok());
        let version: u32 = version.ok_or_else(foreign)?;
        if version == 0 || version > Self::VERSION {
            return Err(SnapshotError::Version {
                path: path.to_owned(),
                found: version,
            });
        }
        let body = &bytes[end + 1..];
        if line != header(version, body) {
            return Err(SnapshotError::damaged(path, "its checksum is another"));
        }
        let manifest: Self = serde_json::from_slice(body)
            .map_err(|error| SnapshotError::damaged(path, error.to_string()))?;
        manifest
            .check()
            .map_err(|why| SnapshotError::damaged(path, why))?;
        Ok(manifest)
    }

    /// Reads the manifest of the snapshot in `directory`.
    pub fn read(directory: &Path) -> Result<Self, SnapshotError> {
        use std::io::Read;
        let path = directory.join(NAME);
        let file = match std::fs::File::open(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && directory.is_dir() => {
                return Err(SnapshotError::foreign(directory, "it has no manifest"));
            }
            result => result.map_err(SnapshotError::io("opening", &path))?,
        };
        let mut bytes = Vec::new();
        file.take(MOST_BYTES + 1)
            .read_to_end(&mut bytes)
            .map_err(SnapshotError::io("reading", &path))?;
        if bytes.len() as u64 > MOST_BYTES {
            return Err(SnapshotError::foreign(
                &path,
                "it is too long for a manifest",
            ));
        }
        Self::decode(&bytes, &path)
    }

    fn check(&self) -> Result<(), String> {
        if self.disks.len() != self.config.disks.len() {
            return Err(format!(
                "it has {} disks, its machine {}",
                self.disks.len(),
                self.config.disks.len()
            ));
        }
        for (disk, config) in self.disks.iter().zip(&self.config.disks) {
            if disk.overlay.is_some() != config.throw_away {
                return Err("only one of a disk and its configuration is thrown away".to_owned());
            }
        }
        if self.memory.file.bytes != self.config.memory {
            return Err("its memory is not as large as its machine's".to_owned());
        }
        if self.memory.pages.is_some() != self.parent.is_some() {
            return Err("it is incremental and not".to_owned());
        }
        let overlays = self.disks.iter().filter_map(|disk| disk.overlay.as_ref());
        let names = overlays.flat_map(|overlay| [&overlay.file.name, &overlay.bitmap]);
        for name in names.chain([&self.memory.file.name]) {
            let plain = name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'.');
            if name.is_empty() || name.starts_with('.') || !plain {
                return Err(format!("'{name}' is no name of a file in it"));
            }
        }
        Ok(())
    }
}

fn header(version: u32, body: &[u8]) -> String {
    format!("{MAGIC} {version} sha256:{}\n", Sum::of(body))
}
