//! What an image is made of.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use favo_types::ByteCount;

use crate::{Digest, ImageName};

/// The version of the manifest written now. A manifest of another version is refused.
pub const MANIFEST_VERSION: u32 = 1;

/// An image: stored as JSON, one file per name in the catalogue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`MANIFEST_VERSION`].
    pub version: u32,
    /// What it is called.
    pub name: ImageName,
    /// What is in it.
    pub kind: Kind,
    /// The CPU it is for, as in `uname -m`.
    pub architecture: String,
    /// The kernel to boot it with. `None`: the disk is bootable by firmware only, or has no
    /// kernel at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<Kernel>,
    /// An initrd that came with the kernel. favo composes its own from the modules if there is
    /// none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<Blob>,
    /// The default kernel command line, without what favo adds for its agent.
    #[serde(default)]
    pub command_line: String,
    /// The disk.
    pub disk: Disk,
    /// When it was made.
    pub created: Timestamp,
    /// Where it comes from.
    pub provenance: Provenance,
}

/// What is in an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A Linux root file system, the whole disk, and maybe its kernel beside it.
    Linux,
    /// A whole disk, with partitions and perhaps a boot loader, as some other program made it.
    Disk,
}

/// Bytes in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blob {
    /// Their name.
    pub digest: Digest,
    /// How many, holes counted.
    pub size: ByteCount,
}

/// A Linux kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kernel {
    /// The bzImage or vmlinux, untouched.
    pub image: Blob,
    /// What `uname -r` says, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<String>,
    /// A cpio archive of the modules that reach the root disk and the host, for
    /// [`crate::initramfs`]. `None`: all of that is built in, or the image has an initrd.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub modules: Option<Blob>,
}

/// A disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Its bytes: always raw, with holes. What was imported in another format was converted,
    /// so that a format is parsed once, before any guest runs, and never again.
    pub image: Blob,
    /// What its bytes take in the store, holes not counted.
    pub stored: ByteCount,
    /// Where the root file system is, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<Root>,
}

/// A root file system on a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    /// The partition's number, from 1. `None`: the whole disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partition: Option<u32>,
    /// Its type as mount(8) names it.
    pub file_system: String,
}

/// Where an image comes from.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Provenance {
    /// What made it: `build debian:12`, `import`.
    pub source: String,
    /// The version of favo that did.
    pub favo: String,
    /// The file it was imported from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// The apt sources the packages came from, in deb822 form.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub apt_sources: Option<String>,
    /// The packages in it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub packages: Vec<Package>,
}

/// A Debian package.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its architecture.
    pub architecture: String,
}

impl Manifest {
    /// The blobs it names.
    pub fn blobs(&self) -> impl Iterator<Item = Blob> + '_ {
        let kernel = self.kernel.iter();
        kernel
            .flat_map(|kernel| [Some(kernel.image), kernel.modules])
            .flatten()
            .chain(self.initrd)
            .chain([self.disk.image])
    }
}

impl Provenance {
    /// Made by this favo, from `source`.
    pub(crate) fn new(source: impl Into<String>) -> Self {
        Self {
            source: source.into(),
            favo: env!("CARGO_PKG_VERSION").into(),
            ..Self::default()
        }
    }
}
