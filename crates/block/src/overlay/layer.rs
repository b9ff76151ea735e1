//! What was written to a throw-away disk until some moment, and is not written
//! any more: snapshots and clones are made of it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::bitmap::Bitmap;
use super::{CLUSTER, LARGEST};

/// Clusters that were written, at their places in a file; which, says a
/// bitmap. Nobody writes either. Clones are the same.
#[derive(Clone)]
pub struct OverlayLayer {
    pub(super) file: Arc<File>,
    pub(super) written: Arc<Bitmap>,
    capacity: u64,
}

impl OverlayLayer {
    pub(super) fn new(file: Arc<File>, written: Arc<Bitmap>, capacity: u64) -> Self {
        Self {
            file,
            written,
            capacity,
        }
    }

    /// A layer from its file and what [`OverlayLayer::bitmap`] returned, for a
    /// disk of `capacity` bytes.
    ///
    /// # Errors
    ///
    /// `InvalidData` if they don't fit the disk.
    pub fn from_parts(file: File, bitmap: &[u8], capacity: u64) -> io::Result<Self> {
        let invalid = |reason: String| io::Error::new(io::ErrorKind::InvalidData, reason);
        if capacity > LARGEST {
            return Err(invalid(format!("{capacity} bytes are too many for a disk")));
        }
        let bytes = file.metadata()?.len();
        if bytes < capacity {
            return Err(invalid(format!(
                "the written clusters have {bytes} bytes, the disk {capacity}"
            )));
        }
        let clusters = capacity.div_ceil(CLUSTER);
        let written = Bitmap::from_bytes(bitmap, clusters)
            .ok_or_else(|| invalid(format!("the bitmap is not one of {clusters} clusters")))?;
        Ok(Self::new(Arc::new(file), Arc::new(written), capacity))
    }

    /// The file. A cluster that was not written is a hole, or anything.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Which clusters of 4 KiB are in the file: bit `n % 8` of byte `n / 8`,
    /// as many bytes as hold the last that is.
    pub fn bitmap(&self) -> Vec<u8> {
        self.written.to_bytes()
    }

    /// Bytes of the disk it is of.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Copies what `layers`, the newest first, have into `to`, as one layer;
    /// returns its bitmap. Zeroes stay holes: `to` is empty before.
    pub fn merge(layers: &[Self], to: &File) -> io::Result<Vec<u8>> {
        Ok(merge(layers, to)?.to_bytes())
    }
}

/// [`OverlayLayer::merge`], with the bitmap as it is.
pub(super) fn merge(layers: &[OverlayLayer], to: &File) -> io::Result<Bitmap> {
    let capacity = layers.first().map_or(0, |layer| layer.capacity);
    to.set_len(capacity)?;
    let merged = Bitmap::new(capacity.div_ceil(CLUSTER));
    let mut bytes = [0; CLUSTER as usize];
    for layer in layers {
        for cluster in layer.written.iter() {
            if merged.get(cluster) {
                continue;
            }
            let start = cluster * CLUSTER;
            let length = CLUSTER.min(capacity.saturating_sub(start)) as usize;
            let bytes = &mut bytes[..length];
            layer.file.read_exact_at(bytes, start)?;
            if bytes.iter().any(|byte| *byte != 0) {
                to.write_all_at(bytes, start)?;
            }
            merged.set(cluster);
        }
    }
    Ok(merged)
}

impl std::fmt::Debug for OverlayLayer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OverlayLayer")
            .field("capacity", &self.capacity)
            .finish_non_exhaustive()
    }
}
