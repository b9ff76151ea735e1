//! Builders: images from Debian's packages.
//!
//! | name | what |
//! |---|---|
//! | `debian:12`, `debian:13` | a minimal bootable Debian with its stock cloud kernel |
//! | `debian:12-6.12` | Debian 12 with the 6.12 kernel of its own archive |
//! | `minimal` | busybox on the stock kernel of Debian 12, in seconds and without root |
//!
//! Packages come through the host's apt configuration and are verified by its keys. A build
//! works in one locked directory of the store, which is gone when it ends, however it ends.

mod apt;
mod debian;
mod minimal;

use jiff::Timestamp;

use favo_types::ByteCount;

use crate::manifest::{Disk, Kernel, Kind, MANIFEST_VERSION, Root};
use crate::rootfs::FoundKernel;
use crate::scratch::Scratch;
use crate::{
    Blob, ImageError, ImageName, Manifest, Progress, Provenance, Store, StoredImage, sparse,
};

/// The names [`build`] knows.
pub const KNOWN: [&str; 4] = ["debian:12", "debian:13", "debian:12-6.12", "minimal"];

/// What a serial console needs, for every image made here.
pub(crate) const COMMAND_LINE: &str = "console=ttyS0";

/// How to build.
#[derive(Debug, Clone, Default)]
pub struct BuildOptions {
    /// Another name for the image than the builder's.
    pub name: Option<ImageName>,
    /// The disk's size; the builder has its own default. Unused space takes none.
    pub disk_size: Option<ByteCount>,
    /// A Debian mirror instead of the host's: a URI as in an apt source.
    pub mirror: Option<String>,
    /// Replace an image of this name.
    pub replace: bool,
}

/// Whether there is a builder of this name.
pub fn is_known(name: &ImageName) -> bool {
    recipe(name).is_some()
}

/// Builds the image `what`.
pub fn build(
    store: &Store,
    what: &ImageName,
    options: &BuildOptions,
    progress: &dyn Progress,
) -> Result<StoredImage, ImageError> {
    let recipe = recipe(what).ok_or_else(|| ImageError::NoBuilder {
        name: what.clone(),
        known: KNOWN.map(String::from).to_vec(),
    })?;
    let name = options.name.as_ref().unwrap_or(what);
    store.check_free(name, options.replace)?;
    let built = match recipe {
        Recipe::Debian(recipe) => debian::build(store, &recipe, options, progress)?,
        Recipe::Minimal => minimal::build(store, options, progress)?,
    };
    let provenance = Provenance {
        source: format!("build {what}"),
        ..built.provenance
    };
    let parts = Parts {
        kind: Kind::Linux,
        kernel: Some(built.kernel),
        initrd: None,
        disk: built.disk,
        root: Some(Root {
            partition: None,
            file_system: "ext4".into(),
        }),
        command_line: COMMAND_LINE.into(),
        provenance,
    };
    store_image(
        store,
        &built.scratch,
        name,
        parts,
        options.replace,
        progress,
    )
}

enum Recipe {
    Debian(debian::Recipe),
    Minimal,
}

fn recipe(name: &ImageName) -> Option<Recipe> {
    match (name.name(), name.tag()) {
        ("minimal", "latest") => Some(Recipe::Minimal),
        ("debian", tag) => debian::Recipe::for_tag(tag).map(Recipe::Debian),
        _ => None,
    }
}

/// What a builder hands over; its disk is a file in its work directory.
struct Built {
    scratch: Scratch,
    kernel: FoundKernel,
    disk: std::path::PathBuf,
    provenance: Provenance,
}

/// The parts of an image that is about to be stored.
pub(crate) struct Parts {
    pub kind: Kind,
    pub kernel: Option<FoundKernel>,
    pub initrd: Option<Vec<u8>>,
    /// A file in the work directory.
    pub disk: std::path::PathBuf,
    pub root: Option<Root>,
    pub command_line: String,
    pub provenance: Provenance,
}

/// Takes the parts into the store and publishes the image.
pub(crate) fn store_image(
    store: &Store,
    scratch: &Scratch,
    name: &ImageName,
    parts: Parts,
    replace: bool,
    progress: &dyn Progress,
) -> Result<StoredImage, ImageError> {
    use crate::error::IoContext;
    let mut held = Vec::new();
    let mut add = |path: &std::path::Path| -> Result<Blob, ImageError> {
        let blob = store.add(path, progress)?;
        let stored = blob.blob;
        held.push(blob);
        Ok(stored)
    };
    let size = std::fs::metadata(&parts.disk)
        .during("read", &parts.disk)?
        .len();
    progress.stage("storing the disk", Some(ByteCount(size)));
    let stored = sparse::stored_size(&parts.disk)?;
    let disk = add(&parts.disk)?;
    progress.stage("storing the kernel", None);
    let mut add_bytes = |bytes: &[u8]| -> Result<Blob, ImageError> {
        let path = scratch.path().join("blob");
        std::fs::write(&path, bytes).during("write", &path)?;
        add(&path)
    };
    let kernel = match parts.kernel {
        Some(kernel) => Some(Kernel {
            image: add_bytes(&kernel.image)?,
            release: Some(kernel.release).filter(|r| !r.is_empty()),
            modules: match kernel.modules.as_slice() {
                [] => None,
                modules => Some(add_bytes(modules)?),
            },
        }),
        None => None,
    };
    let initrd = match parts.initrd {
        Some(initrd) => Some(add_bytes(&initrd)?),
        None => None,
    };
    let manifest = Manifest {
        version: MANIFEST_VERSION,
        name: name.clone(),
        kind: parts.kind,
        architecture: "x86_64".into(),
        kernel,
        initrd,
        command_line: parts.command_line,
        disk: Disk {
            image: disk,
            stored,
            root: parts.root,
        },
        created: Timestamp::now(),
        provenance: parts.provenance,
    };
    store.publish(scratch, &manifest, &held, replace)
}
