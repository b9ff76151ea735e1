//! Disks: what a block device asks of one, and the files that are one.
//!
//! Devices hold a [`BlockDevice`] and open one [`BlockQueue`] per thread;
//! tools use [`BlockImage`] directly, one call at a time. [`BlockImage`] is a
//! raw file, a host block device, a qcow2 image, or a throw-away
//! copy-on-write layer over any of these.
//!
//! Everything that comes from a guest (offsets, lengths) or from a file
//! (headers, tables, backing file names) is checked here, and answered with an
//! error. A file is locked for as long as it is open, in the way QEMU does it,
//! so that neither another favo nor a `qemu-img` changes it underneath.

mod device;
mod error;
mod image;
mod lock;
mod overlay;
mod qcow2;
mod qcow2_header;
mod raw;
mod scatter;
mod storage;
mod thread_queue;
mod uring_queue;

pub use device::{BlockCompletion, BlockDevice, BlockInfo, BlockOperation, BlockQueue};
pub use error::BlockError;
pub use image::{Backing, BlockImage, Format, IoEngine, OpenOptions};
pub use overlay::OverlayLayer;
pub use scatter::RawBuffer;
