//! Memory for translated code: mapped once to write and once, in low memory,
//! to execute. No page is ever both.

use crate::low::{LARGE_PAGE, LowMemory};

/// Code is handed out from the beginning, a segment at a time; when all of
/// them are used up the oldest is used again.
pub(super) struct CodeMemory {
    write: *mut u8,
    execute: LowMemory,
    capacity: usize,
    /// Bytes of a segment.
    segment: usize,
    segments: usize,
    /// The segment that code is put into.
    current: usize,
    /// Where the next code goes.
    used: usize,
    /// What lies below in the first segment stays for good.
    kept: usize,
    /// Bytes from the beginning that were ever handed out.
    touched: usize,
}

// SAFETY: the mappings are owned, and written only through `&mut self`.
unsafe impl Send for CodeMemory {}

/// Blocks start at multiples of this.
const ALIGNMENT: usize = 16;
/// Linux 6.1; the libc crate has it for other C libraries only.
const MADV_COLLAPSE: i32 = 25;

impl CodeMemory {
    pub(super) fn new(capacity: usize) -> std::io::Result<Self> {
        let (execute, write) = LowMemory::executable(capacity)?;
        Ok(Self {
            write,
            execute,
            capacity,
            segment: LARGE_PAGE,
            segments: capacity / LARGE_PAGE,
            current: 0,
            used: 0,
            kept: 0,
            touched: 0,
        })
    }

    /// Uses less, for tests.
    #[cfg(test)]
    pub(super) fn divide(&mut self, segment: usize, segments: usize) {
        assert!(segment * segments <= self.capacity && self.used <= segment);
        (self.segment, self.segments) = (segment, segments);
    }

    fn start(&self) -> u32 {
        self.execute.start() as u32
    }

    /// Where the next code will lie.
    pub(super) fn next(&self) -> u32 {
        self.start() + self.used.next_multiple_of(ALIGNMENT) as u32
    }

    /// Bytes that were ever in use.
    pub(super) fn touched(&self) -> usize {
        self.touched
    }

    pub(super) fn segments(&self) -> usize {
        self.segments
    }

    /// What was handed out until now is never taken back.
    pub(super) fn keep(&mut self) {
        self.kept = self.used;
    }

    /// Begins the next segment, and says which addresses it has: nothing may
    /// lead there any more when code is put into it.
    pub(super) fn next_segment(&mut self) -> std::ops::Range<u32> {
        self.current = (self.current + 1) % self.segments;
        let begin = self.current * self.segment;
        self.used = if self.current == 0 { self.kept } else { begin };
        let start = self.start();
        start + self.used as u32..start + (begin + self.segment) as u32
    }

    /// Begins anew, with nothing in it.
    pub(super) fn restart(&mut self) {
        self.current = 0;
        self.used = self.kept;
    }

    /// Puts code at [`CodeMemory::next`]. False if it does not fit into the
    /// segment.
    pub(super) fn publish(&mut self, code: &[u8]) -> bool {
        let start = self.used.next_multiple_of(ALIGNMENT);
        let end = start + code.len();
        if end > (self.current + 1) * self.segment {
            return false;
        }
        if end.div_ceil(LARGE_PAGE) > self.touched.div_ceil(LARGE_PAGE) {
            self.use_large_page((end - 1) / LARGE_PAGE * LARGE_PAGE);
        }
        // SAFETY: inside the mapping, and nobody executes what was not handed
        // out yet, or was taken back.
        unsafe {
            std::ptr::copy_nonoverlapping(code.as_ptr(), self.write.add(start), code.len());
        }
        self.used = end;
        self.touched = self.touched.max(end);
        true
    }

    /// Has the next bytes lie in one large page: translated code is spread
    /// out, and every small page of it takes a line of the host's own table.
    /// Hosts that don't do that for shared memory go on with small ones.
    fn use_large_page(&mut self, offset: usize) {
        if offset + LARGE_PAGE > self.capacity {
            return;
        }
        // SAFETY: inside the mapping, where nothing lies yet; a page that is
        // there makes the host look at the rest.
        unsafe {
            let place = self.write.add(offset);
            place.write_volatile(0);
            libc::madvise(place.cast(), LARGE_PAGE, MADV_COLLAPSE);
        }
    }

    /// Changes code that is not executing: the only thread that could is here.
    pub(super) fn patch(&mut self, address: u32, bytes: &[u8]) {
        let offset = address.wrapping_sub(self.start()) as usize;
        if offset.saturating_add(bytes.len()) > self.touched {
            debug_assert!(false, "a patch outside the code");
            return;
        }
        // SAFETY: inside what was handed out.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.write.add(offset), bytes.len());
        }
    }

    /// Makes the jump whose distance lies at `site` lead to `target`.
    pub(super) fn link(&mut self, site: u32, target: u32) {
        let distance = target.wrapping_sub(site + 4);
        self.patch(site, &distance.to_le_bytes());
    }

    /// What lies from an address on.
    #[cfg(any(test, feature = "difftest"))]
    pub(super) fn read(&self, address: u32) -> Vec<u8> {
        let offset = address.wrapping_sub(self.start()) as usize;
        let length = self.used.saturating_sub(offset);
        // SAFETY: inside what was handed out.
        unsafe { std::slice::from_raw_parts(self.write.add(offset), length) }.to_vec()
    }
}

impl Drop for CodeMemory {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours.
        unsafe { libc::munmap(self.write.cast(), self.capacity) };
    }
}
