//! What is known of each page of RAM: whether it was written, and whether
//! somebody keeps a translation or a decoding of code that lies in it.
//!
//! # The protocol between code caches and writers
//!
//! A processor in software keeps decoded code. Another processor, or a
//! device, may write that code at any time. Taking a lock on every store
//! would be dear, so the cost is put on the side that is rare:
//!
//! * **Caching** code of a page: [`RegionPages::arm_code`] reads the page's
//!   version, sets its `CODE` flag and, if the flag was not set before, makes
//!   every running thread of the process pass a memory barrier (membarrier).
//!   Only then the bytes are read. The cached code is valid for as long as the
//!   page's version is the one `arm_code` returned.
//! * **Writing** a page: store the bytes; then, with a compiler barrier only,
//!   load the page's flags. If any is set, call [`RegionPages::note_write`],
//!   which clears `CODE` and then raises the version, in that order.
//!
//! Why nothing is missed: the writer's store may still sit in its store
//! buffer when it loads the flags and sees `CODE` clear. If that load came
//! before the cacher's membarrier on the writer's processor, the barrier
//! drained the store, and the cacher reads the new bytes. If it came after,
//! the writer sees the flag. `CODE` is cleared before the version is raised,
//! so a cacher that found it still set will find its version stale.
//!
//! Dirty logging uses the same load: `LOG` asks the next writer to record the
//! page. With no flag set a store costs one extra byte load.
//!
//! A processor in software may leave out that load for a page whose flags it
//! found clear, as long as everybody who sets a flag first makes it give up
//! that permission, and waits until it has (`favo_soft`'s mailboxes). It hears
//! of stale code through [`RegionPages::listen`].

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering, fence};

use vm_memory::bitmap::{Bitmap, BitmapSlice, NewBitmap, WithBitmapSlice};

use super::PAGE_SIZE;

/// Flag: somebody cached code of this page.
pub const CODE: u8 = 1;
/// Flag: the next write must be recorded.
pub const LOG: u8 = 2;
/// Flag: the page was written since logging began. Set only with `LOG` clear.
pub const DIRTY: u8 = 4;

/// A write must call [`RegionPages::note_write`] if any of these is set.
pub const NOTICE: u8 = CODE | LOG;

/// The pages of one region of RAM.
#[derive(Debug, Default)]
pub struct RegionPages {
    flags: Box<[AtomicU8]>,
    versions: Box<[AtomicU32]>,
    listener: ListenerCell,
}

/// Hears of pages whose cached code became stale, by their index. Called on
/// whichever thread wrote; it must not write guest memory itself.
pub type CodeListener = Box<dyn Fn(usize) + Send + Sync>;

#[derive(Default)]
struct ListenerCell(OnceLock<CodeListener>);

impl std::fmt::Debug for ListenerCell {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "listener: {}", self.0.get().is_some())
    }
}

impl RegionPages {
    fn with_len(bytes: usize) -> Self {
        let pages = bytes.div_ceil(PAGE_SIZE as usize);
        Self {
            flags: super::host::zeroed(pages),
            versions: super::host::zeroed(pages),
            listener: ListenerCell::default(),
        }
    }

    /// The flags of every page, for fast paths that load one byte per store.
    pub fn flags(&self) -> &[AtomicU8] {
        &self.flags
    }

    /// The version of every page: cached code is valid while it is unchanged.
    pub fn versions(&self) -> &[AtomicU32] {
        &self.versions
    }

    /// To be called before the bytes of a page are read into a code cache.
    /// Returns the version the cached code belongs to, and whether the page
    /// was not armed before. See the module's text.
    pub fn arm_code(&self, page: usize) -> (u32, bool) {
        let version = self.versions[page].load(Ordering::SeqCst);
        let newly = self.flags[page].fetch_or(CODE, Ordering::SeqCst) & CODE == 0;
        if newly {
            barrier_on_every_thread();
        }
        (version, newly)
    }

    /// Has `listener` called with the index of every page whose cached code
    /// becomes stale. The first listener stays.
    pub fn listen(&self, listener: CodeListener) {
        let _ = self.listener.0.set(listener);
    }

    /// The slow half of a write: the bytes are there, and the page's flags had
    /// one of [`NOTICE`].
    pub fn note_write(&self, page: usize) {
        let flags = &self.flags[page];
        let before = flags
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |old| {
                let dirty = if old & LOG != 0 { DIRTY } else { 0 };
                Some((old & !NOTICE) | dirty)
            })
            .unwrap_or(0);
        if before & CODE != 0 {
            self.versions[page].fetch_add(1, Ordering::SeqCst);
            if let Some(listener) = self.listener.0.get() {
                listener(page);
            }
        }
    }

    /// Records a write of `length` bytes at `offset` in the region, after the
    /// bytes are there. Anything outside the region is ignored.
    pub fn mark_written(&self, offset: u64, length: u64) {
        if length == 0 {
            return;
        }
        // The caller may be a device thread that shares no barrier with the
        // cacher: make its stores visible before the flags are read.
        fence(Ordering::SeqCst);
        let first = offset / PAGE_SIZE;
        let last = (offset.saturating_add(length - 1) / PAGE_SIZE)
            .min((self.flags.len() as u64).saturating_sub(1));
        for page in first..=last {
            let page = page as usize;
            if let Some(flags) = self.flags.get(page)
                && flags.load(Ordering::SeqCst) & NOTICE != 0
            {
                self.note_write(page);
            }
        }
    }

    /// Begins dirty logging: every page counts as clean.
    pub fn start_log(&self) {
        for flags in &self.flags {
            let _ = flags.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |old| {
                Some((old & !DIRTY) | LOG)
            });
        }
        barrier_on_every_thread();
    }

    /// The pages written since the log began or was last taken; they count as
    /// clean from here on. Their bytes may be read once this returned.
    pub fn take_log(&self) -> Vec<usize> {
        let mut dirty = Vec::new();
        for (page, flags) in self.flags.iter().enumerate() {
            if flags.load(Ordering::Relaxed) & DIRTY == 0 {
                continue;
            }
            let _ = flags.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |old| {
                Some((old & !DIRTY) | LOG)
            });
            dirty.push(page);
        }
        barrier_on_every_thread();
        dirty
    }

    /// Ends dirty logging.
    pub fn stop_log(&self) {
        for flags in &self.flags {
            flags.fetch_and(CODE, Ordering::SeqCst);
        }
    }
}

/// Makes every running thread of this process execute a full memory barrier.
pub fn barrier_on_every_thread() {
    const REGISTER_PRIVATE_EXPEDITED: i32 = 1 << 4;
    const PRIVATE_EXPEDITED: i32 = 1 << 3;
    const GLOBAL: i32 = 1;
    static EXPEDITED: OnceLock<bool> = OnceLock::new();

    let membarrier = |command: i32| {
        // SAFETY: membarrier takes three integers and touches no memory.
        unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) }
    };
    let expedited = *EXPEDITED.get_or_init(|| membarrier(REGISTER_PRIVATE_EXPEDITED) == 0);
    if !(expedited && membarrier(PRIVATE_EXPEDITED) == 0) {
        // Older kernels and strict sandboxes: slower, same meaning. Without
        // either a fence still orders this thread.
        membarrier(GLOBAL);
    }
    fence(Ordering::SeqCst);
}

/// Hooks [`RegionPages`] into vm-memory, so that every write of a device
/// through a guest-memory view is recorded.
#[derive(Clone, Debug, Default)]
pub struct PageTracker {
    pages: Arc<RegionPages>,
    offset: usize,
}

impl PageTracker {
    /// The pages behind it.
    pub fn pages(&self) -> &Arc<RegionPages> {
        &self.pages
    }
}

/// A [`PageTracker`] that begins somewhere inside the region.
#[derive(Clone, Debug)]
pub struct PageTrackerSlice<'a> {
    pages: &'a RegionPages,
    offset: usize,
}

impl<'a> WithBitmapSlice<'a> for PageTracker {
    type S = PageTrackerSlice<'a>;
}

impl<'a> WithBitmapSlice<'a> for PageTrackerSlice<'_> {
    type S = Self;
}

impl BitmapSlice for PageTrackerSlice<'_> {}

impl Bitmap for PageTracker {
    fn mark_dirty(&self, offset: usize, len: usize) {
        self.pages
            .mark_written((self.offset + offset) as u64, len as u64);
    }

    fn dirty_at(&self, offset: usize) -> bool {
        dirty_at(&self.pages, self.offset + offset)
    }

    fn slice_at(&self, offset: usize) -> PageTrackerSlice<'_> {
        PageTrackerSlice {
            pages: &self.pages,
            offset: self.offset + offset,
        }
    }
}

impl Bitmap for PageTrackerSlice<'_> {
    fn mark_dirty(&self, offset: usize, len: usize) {
        self.pages
            .mark_written((self.offset + offset) as u64, len as u64);
    }

    fn dirty_at(&self, offset: usize) -> bool {
        dirty_at(self.pages, self.offset + offset)
    }

    fn slice_at(&self, offset: usize) -> Self {
        Self {
            pages: self.pages,
            offset: self.offset + offset,
        }
    }
}

impl NewBitmap for PageTracker {
    fn with_len(len: usize) -> Self {
        Self {
            pages: Arc::new(RegionPages::with_len(len)),
            offset: 0,
        }
    }
}

fn dirty_at(pages: &RegionPages, offset: usize) -> bool {
    pages
        .flags
        .get(offset / PAGE_SIZE as usize)
        .is_some_and(|flags| flags.load(Ordering::SeqCst) & DIRTY != 0)
}
