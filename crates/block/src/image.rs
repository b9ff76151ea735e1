//! Opening images, and using one without a queue.

use std::fmt;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use crate::lock::{Access, lock};
use crate::overlay::{Overlay, OverlayLayer};
use crate::qcow2::Qcow2;
use crate::raw::{Raw, RawFile};
use crate::scatter::Scatter;
use crate::storage::Storage;
use crate::thread_queue::ThreadQueue;
use crate::{BlockDevice, BlockError, BlockInfo, BlockQueue};

/// How the bytes of a file make a disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// They are the disk's.
    Raw,
    /// QEMU's copy-on-write format, versions 2 and 3.
    Qcow2,
}

impl Format {
    /// Its name, as qcow2 headers have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }

    /// The format of a file, by its first bytes: qcow2 if it says so, else raw.
    ///
    /// Never for a disk that a guest writes as raw: it could make it a qcow2
    /// image with a backing file of its choice.
    pub fn probe(path: &Path) -> Result<Self, BlockError> {
        use std::io::Read;
        let failed = |error| BlockError::io("read", path, error);
        let mut magic = Vec::new();
        let file = File::open(path).map_err(failed)?;
        file.take(4).read_to_end(&mut magic).map_err(failed)?;
        Ok(if magic == *b"QFI\xfb" {
            Self::Qcow2
        } else {
            Self::Raw
        })
    }
}

/// Which other files an image may use: its backing file, that one's, and so
/// on.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Backing {
    /// None.
    #[default]
    Refuse,
    /// Those in one of these directories, or below, once symbolic links are
    /// followed.
    Within(Vec<PathBuf>),
}

/// Who does the I/O of a raw image.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum IoEngine {
    /// io_uring where the host lets us, else threads.
    #[default]
    Auto,
    /// io_uring, or a queue can't be had.
    Uring,
    /// Threads with blocking calls.
    Threads,
}

/// How to open an image.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OpenOptions {
    /// What it is.
    pub format: Format,
    /// Nothing will write it, and others may open it for reading, too.
    pub read_only: bool,
    /// Which files it may use beside itself.
    pub backing: Backing,
    /// Who does the I/O.
    pub engine: IoEngine,
}

impl OpenOptions {
    /// To be written by us alone; no backing files.
    pub fn new(format: Format) -> Self {
        Self {
            format,
            read_only: false,
            backing: Backing::Refuse,
            engine: IoEngine::Auto,
        }
    }

    /// To be read only.
    pub fn read_only(mut self, read_only: bool) -> Self {
        self.read_only = read_only;
        self
    }

    /// With these files allowed.
    pub fn backing(mut self, backing: Backing) -> Self {
        self.backing = backing;
        self
    }

    /// With this engine.
    pub fn engine(mut self, engine: IoEngine) -> Self {
        self.engine = engine;
        self
    }
}

/// An open image, locked until it is dropped with all its queues. A clone is
/// the same open image.
#[derive(Clone)]
pub struct BlockImage {
    storage: Arc<dyn Storage>,
}

impl BlockImage {
    /// Opens a file.
    ///
    /// # Errors
    ///
    /// [`BlockError::InUse`] while another machine uses it, and the rest of
    /// [`BlockError`].
    pub fn open(path: &Path, options: &OpenOptions) -> Result<Self, BlockError> {
        let file = open_locked(path, options.read_only)?;
        let storage: Arc<dyn Storage> = match options.format {
            Format::Raw => {
                let file = RawFile::new(file, path.into(), options.read_only)?;
                Arc::new(Raw::new(file, options.engine))
            }
            Format::Qcow2 => Arc::new(Qcow2::open(
                file,
                path,
                options.read_only,
                &options.backing,
            )?),
        };
        Ok(Self { storage })
    }

    /// Makes a new image of `size` bytes, a multiple of 512, that reads as
    /// zeroes, or as `backing`: a name as seen from the image's directory, and
    /// its format. Nothing is opened or checked of that one.
    ///
    /// # Errors
    ///
    /// [`BlockError::Io`] if the file exists. What failed leaves no file.
    pub fn create(
        path: &Path,
        format: Format,
        size: u64,
        backing: Option<(&str, Format)>,
    ) -> Result<(), BlockError> {
        let failed = |error| BlockError::io("create", path, error);
        let invalid = |text| failed(io::Error::new(io::ErrorKind::InvalidInput, text));
        if !size.is_multiple_of(512) {
            return Err(invalid("its size is no multiple of 512 bytes"));
        }
        if backing.is_some() && format == Format::Raw {
            return Err(invalid("a raw image has no backing file"));
        }
        let mut options = File::options();
        options.read(true).write(true).create_new(true);
        let file = options.open(path).map_err(failed)?;
        let make = || {
            lock(&file, path, Access::Write)?;
            match format {
                Format::Raw => file.set_len(size).map_err(failed)?,
                Format::Qcow2 => {
                    let file = file.try_clone().map_err(failed)?;
                    Qcow2::create(file, path, size, backing)?;
                }
            }
            file.sync_all().map_err(failed)
        };
        make().inspect_err(|_| {
            let _ = std::fs::remove_file(path);
        })
    }

    /// A disk that begins as this one and forgets what is written to it when
    /// it is dropped. The writes are kept in a nameless file in `directory`.
    pub fn overlay(&self, directory: &Path) -> Result<Self, BlockError> {
        self.overlay_on(Vec::new(), directory)
    }

    /// Like [`BlockImage::overlay`], of a disk to which `layers`, the newest
    /// first, were written before.
    pub fn overlay_on(
        &self,
        layers: Vec<OverlayLayer>,
        directory: &Path,
    ) -> Result<Self, BlockError> {
        let overlay = Overlay::new(self.storage.clone(), layers, directory)?;
        Ok(Self {
            storage: Arc::new(overlay),
        })
    }

    /// What was written to an overlay so far, as layers that don't change any
    /// more, the newest first; `None` if it is none.
    pub fn freeze(&self) -> Option<Result<Vec<OverlayLayer>, BlockError>> {
        let layers = self.storage.freeze()?;
        Some(self.told("set aside what was written to", layers))
    }

    /// The file, or that of the base.
    pub fn path(&self) -> &Path {
        self.storage.path()
    }

    /// Fills `bytes` from `offset`.
    pub fn read_at(&self, offset: u64, bytes: &mut [u8]) -> Result<(), BlockError> {
        self.check("read", offset, bytes.len() as u64, false)?;
        self.told("read", self.storage.read(offset, Scatter::of(bytes)))
    }

    /// Writes `bytes` at `offset`.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), BlockError> {
        self.check("write", offset, bytes.len() as u64, true)?;
        self.told(
            "write",
            self.storage.write(offset, Scatter::of_const(bytes)),
        )
    }

    /// Makes durable what was written.
    pub fn flush(&self) -> Result<(), BlockError> {
        self.told("flush", self.storage.flush())
    }

    /// The bytes don't matter any more.
    pub fn discard(&self, offset: u64, length: u64) -> Result<(), BlockError> {
        self.check("discard", offset, length, true)?;
        if length == 0 {
            return Ok(());
        }
        self.told("discard", self.storage.discard(offset, length))
    }

    /// The bytes become zero; their space may be given back if `may_unmap`.
    pub fn write_zeroes(
        &self,
        offset: u64,
        length: u64,
        may_unmap: bool,
    ) -> Result<(), BlockError> {
        self.check("write zeroes to", offset, length, true)?;
        if length == 0 {
            return Ok(());
        }
        let result = self.storage.write_zeroes(offset, length, may_unmap);
        self.told("write zeroes to", result)
    }

    fn check(
        &self,
        action: &'static str,
        offset: u64,
        length: u64,
        change: bool,
    ) -> Result<(), BlockError> {
        self.told(action, self.storage.info().check(offset, length, change))
    }

    fn told<T>(&self, action: &'static str, result: io::Result<T>) -> Result<T, BlockError> {
        result.map_err(|error| BlockError::io(action, self.path(), error))
    }
}

impl BlockDevice for BlockImage {
    fn info(&self) -> BlockInfo {
        self.storage.info()
    }

    fn queue(&self, depth: u16) -> io::Result<Box<dyn BlockQueue>> {
        match self.storage.native_queue(depth) {
            Some(queue) => queue,
            None => Ok(Box::new(ThreadQueue::new(self.storage.clone(), depth)?)),
        }
    }
}

impl fmt::Debug for BlockImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockImage")
            .field("path", &self.path())
            .field("info", &self.storage.info())
            .finish()
    }
}

/// Opens `path` and locks it.
pub(crate) fn open_locked(path: &Path, read_only: bool) -> Result<File, BlockError> {
    use std::os::unix::fs::OpenOptionsExt;
    // Without O_NONBLOCK, opening a FIFO would wait for a writer.
    let file = File::options()
        .read(true)
        .write(!read_only)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
        .map_err(|error| BlockError::io("open", path, error))?;
    // It serves no more, and makes io_uring answer EAGAIN.
    let flags = fcntl_getfl(&file).map_err(|error| BlockError::io("open", path, error.into()))?;
    fcntl_setfl(&file, flags - OFlags::NONBLOCK)
        .map_err(|error| BlockError::io("open", path, error.into()))?;
    let access = if read_only {
        Access::Read
    } else {
        Access::Write
    };
    lock(&file, path, access)?;
    Ok(file)
}

#[cfg(test)]
#[path = "image_test.rs"]
pub(crate) mod test;
