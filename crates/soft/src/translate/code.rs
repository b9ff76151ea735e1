//! Memory for translated code: mapped once to write and once, in low memory,
//! to execute. No page is ever both.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::low::LowMemory;

/// Code is handed out from the beginning; when it is used up all of it is
/// given back at once.
pub(super) struct CodeMemory {
    write: *mut u8,
    execute: LowMemory,
    capacity: usize,
    used: usize,
}

// SAFETY: the mappings are owned, and written only through `&mut self`.
unsafe impl Send for CodeMemory {}

/// Blocks start at multiples of this.
const ALIGNMENT: usize = 16;

impl CodeMemory {
    pub(super) fn new(capacity: usize) -> std::io::Result<Self> {
        // SAFETY: the name is a valid C string.
        let file = unsafe { libc::memfd_create(c"favo-code".as_ptr(), libc::MFD_CLOEXEC) };
        if file < 0 {
            return Err(std::io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and ours.
        let file = unsafe { OwnedFd::from_raw_fd(file) };
        // SAFETY: a plain system call on our descriptor.
        if unsafe { libc::ftruncate(file.as_raw_fd(), capacity as libc::off_t) } != 0 {
            return Err(std::io::Error::last_os_error());
        }
        let execute = LowMemory::execute(capacity, file.as_raw_fd())?;
        // SAFETY: a new mapping where the kernel chooses.
        let write = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                capacity,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if write == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error());
        }
        Ok(Self {
            write: write.cast(),
            execute,
            capacity,
            used: 0,
        })
    }

    fn start(&self) -> u32 {
        self.execute.start() as u32
    }

    /// Where the next code will lie.
    pub(super) fn next(&self) -> u32 {
        self.start() + self.used.next_multiple_of(ALIGNMENT) as u32
    }

    /// Bytes in use.
    pub(super) fn used(&self) -> usize {
        self.used
    }

    /// Puts code at [`CodeMemory::next`]. False if it does not fit.
    pub(super) fn publish(&mut self, code: &[u8]) -> bool {
        let start = self.used.next_multiple_of(ALIGNMENT);
        if start + code.len() > self.capacity {
            return false;
        }
        // SAFETY: inside the mapping, and nobody executes what was not handed
        // out yet.
        unsafe {
            std::ptr::copy_nonoverlapping(code.as_ptr(), self.write.add(start), code.len());
        }
        self.used = start + code.len();
        true
    }

    /// Changes code that is not executing: the only thread that could is here.
    pub(super) fn patch(&mut self, address: u32, bytes: &[u8]) {
        let offset = address.wrapping_sub(self.start()) as usize;
        if offset.saturating_add(bytes.len()) > self.used {
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

    /// Gives back everything behind an address.
    pub(super) fn truncate(&mut self, end: u32) {
        self.used = (end - self.start()) as usize;
    }
}

impl Drop for CodeMemory {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours.
        unsafe { libc::munmap(self.write.cast(), self.capacity) };
    }
}
