//! What every kind of image does, one call at a time.
//!
//! Queues are made of this: by threads that call it, or, where the kernel can
//! do it all on its own, directly. The callers have checked that ranges lie in
//! the disk and that it may be written.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::overlay::OverlayLayer;
use crate::scatter::{Scatter, Source};
use crate::{BlockInfo, BlockQueue};

/// See the module.
pub(crate) trait Storage: Send + Sync {
    fn info(&self) -> BlockInfo;
    fn path(&self) -> &Path;
    fn read(&self, offset: u64, into: Scatter<'_>) -> io::Result<()>;
    fn write(&self, offset: u64, from: Source<'_>) -> io::Result<()>;
    fn flush(&self) -> io::Result<()>;
    fn discard(&self, offset: u64, length: u64) -> io::Result<()>;
    fn write_zeroes(&self, offset: u64, length: u64, may_unmap: bool) -> io::Result<()>;

    /// What was written so far, as layers that don't change any more, if it is
    /// an overlay.
    fn freeze(&self) -> Option<io::Result<Vec<OverlayLayer>>> {
        None
    }

    /// A queue without threads, if it has one.
    fn native_queue(&self, depth: u16) -> Option<io::Result<Box<dyn BlockQueue>>> {
        let _ = depth;
        None
    }
}

/// What was being done when something failed.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Action {
    Read,
    Write,
    Flush,
    Discard,
    WriteZeroes,
}

/// Tells the log of the first failure of each kind: a guest that retries for
/// hours fills no disk with it.
#[derive(Debug, Default)]
pub(crate) struct FailureLog(AtomicU8);

impl FailureLog {
    /// Passes `result` on.
    pub fn look<T>(&self, path: &Path, action: Action, result: io::Result<T>) -> io::Result<T> {
        if let Err(error) = &result {
            let bit = 1 << action as u8;
            if self.0.fetch_or(bit, Ordering::Relaxed) & bit == 0 {
                tracing::error!(
                    disk = %path.display(),
                    ?action,
                    %error,
                    "the disk failed; the guest sees an I/O error (further ones are not logged)"
                );
            }
        }
        result
    }
}
