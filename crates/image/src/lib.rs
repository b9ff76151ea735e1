//! Images: what a guest is started from.
//!
//! An image is a [`Manifest`] and the blobs it names by their SHA-256: a disk, a kernel, the
//! kernel's modules. The [`Store`] keeps them; [`build`] makes images from Debian's packages,
//! [`import`] from files, [`export`] writes disks out again; [`initramfs`] puts together what
//! the kernel is booted with. Called by the command line and by the VM process; it never
//! starts a guest, and never writes outside the state directory except where told to.

pub mod build;
mod digest;
mod error;
pub mod export;
pub mod import;
pub mod initramfs;
mod manifest;
mod modules;
mod name;
mod progress;
mod qcow2;
mod rootfs;
mod scratch;
mod sparse;
mod state;
mod store;
mod tool;

pub use digest::Digest;
pub use error::ImageError;
pub use manifest::{
    Blob, Disk, Kernel, Kind, MANIFEST_VERSION, Manifest, Package, Provenance, Root,
};
pub use name::{ImageName, ImageNameError};
pub use progress::{NoProgress, Progress};
pub use state::state_directory;
pub use store::{OpenImage, Removed, Store, StoredImage};
