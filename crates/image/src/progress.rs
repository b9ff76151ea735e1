//! How long work tells what it does, and is told to stop.

use favo_types::ByteCount;

/// Who watches a build, an import or an export. All methods may be called from any thread.
pub trait Progress: Send + Sync {
    /// A new stage begins, and with it the one before ends. `total`: how much there is to do,
    /// where that is known.
    fn stage(&self, name: &str, total: Option<ByteCount>);

    /// So much of the stage is done by now.
    fn done(&self, done: ByteCount);

    /// Something worth a line: what a tool said.
    fn note(&self, text: &str);

    /// Whether to stop: asked often. The work then cleans up and fails with
    /// [`crate::ImageError::Cancelled`].
    fn is_cancelled(&self) -> bool {
        false
    }
}

/// Nobody watches.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoProgress;

impl Progress for NoProgress {
    fn stage(&self, _: &str, _: Option<ByteCount>) {}
    fn done(&self, _: ByteCount) {}
    fn note(&self, _: &str) {}
}
