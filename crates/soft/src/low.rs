//! Memory whose address fits in 31 bits.
//!
//! Translated code names the processor, its translation tables and its jump
//! tables by absolute address, in the 32 bits an x86 instruction has for that.
//! So all of them, and the code itself, are put into the low 2 GiB of the
//! process.

use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// What the host can map in one piece, in bytes.
pub(crate) const LARGE_PAGE: usize = 2 << 20;

/// An anonymous mapping in the low 2 GiB, zeroed.
#[derive(Debug)]
pub(crate) struct LowMemory {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: the mapping is owned and has no thread of its own.
unsafe impl Send for LowMemory {}

impl LowMemory {
    /// Maps `length` bytes.
    pub(crate) fn new(length: usize) -> std::io::Result<Self> {
        Self::map(
            length,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
        )
    }

    /// Maps `length` bytes twice: here to be executed, and at the address
    /// returned to be written, both so that the host may use large pages.
    /// Anonymous, because perf looks up names only for such code.
    pub(crate) fn executable(length: usize) -> std::io::Result<(Self, *mut u8)> {
        let low = Self::reserve(length, libc::MAP_32BIT)?;
        let shared = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        let both = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: over our own reservation.
        let mapped = unsafe { libc::mmap(low.start().cast(), length, both, shared, -1, 0) };
        if mapped == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error());
        }
        let write = Self::reserve(length, 0)?;
        let options = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        // SAFETY: an old size of zero asks for a second mapping of the same
        // pages; it takes the place of our own reservation.
        let second =
            unsafe { libc::mremap(mapped, 0, length, options, write.start().cast::<u8>()) };
        if second == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error());
        }
        let execute = libc::PROT_READ | libc::PROT_EXEC;
        // SAFETY: our own mapping, not used yet.
        if unsafe { libc::mprotect(mapped, length, execute) } != 0 {
            return Err(std::io::Error::last_os_error());
        }
        let address = write.start();
        // The caller unmaps it.
        std::mem::forget(write);
        Ok((low, address))
    }

    /// Takes `length` bytes of addresses that begin at a multiple of
    /// [`LARGE_PAGE`], with nothing in them.
    fn reserve(length: usize, flags: i32) -> std::io::Result<Self> {
        let flags = flags | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let whole = length + LARGE_PAGE;
        // SAFETY: a new mapping where the kernel chooses.
        let address =
            unsafe { libc::mmap(std::ptr::null_mut(), whole, libc::PROT_NONE, flags, -1, 0) };
        if address == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error());
        }
        let before = (address as usize).wrapping_neg() % LARGE_PAGE;
        let start = address.cast::<u8>().wrapping_add(before);
        // SAFETY: the ends of our own reservation.
        unsafe {
            if before > 0 {
                libc::munmap(address, before);
            }
            let end = start.wrapping_add(length);
            libc::munmap(end.cast(), LARGE_PAGE - before);
        }
        let start = NonNull::new(start).ok_or(std::io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, length })
    }

    fn map(length: usize, protection: i32, flags: i32, file: i32) -> std::io::Result<Self> {
        // SAFETY: a new mapping where the kernel chooses.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                protection,
                flags | libc::MAP_32BIT,
                file,
                0,
            )
        };
        match NonNull::new(address.cast::<u8>()) {
            Some(start) if address != libc::MAP_FAILED => Ok(Self { start, length }),
            _ => Err(std::io::Error::last_os_error()),
        }
    }

    /// Its first byte.
    pub(crate) fn start(&self) -> *mut u8 {
        self.start.as_ptr()
    }
}

impl Drop for LowMemory {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and whoever pointed into it is gone.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
    }
}

/// A value in the low 2 GiB.
pub struct LowBox<T> {
    memory: LowMemory,
    value: NonNull<T>,
}

// SAFETY: it owns its value as a Box does.
unsafe impl<T: Send> Send for LowBox<T> {}
// SAFETY: as a Box.
unsafe impl<T: Sync> Sync for LowBox<T> {}

impl<T> LowBox<T> {
    /// Moves `value` there.
    pub(crate) fn new(value: T) -> std::io::Result<Self> {
        let boxed = Self::uninitialized()?;
        // SAFETY: the mapping is as large as T and aligned to a page.
        unsafe { boxed.value.write(value) };
        Ok(boxed)
    }

    /// A value whose representation is all zero bytes.
    ///
    /// # Safety
    ///
    /// Zero bytes must be a valid `T`.
    pub(crate) unsafe fn zeroed() -> std::io::Result<Self> {
        Self::uninitialized()
    }

    fn uninitialized() -> std::io::Result<Self> {
        const { assert!(align_of::<T>() <= 4096) };
        let memory = LowMemory::new(size_of::<T>().max(1))?;
        let value = memory.start.cast::<T>();
        Ok(Self { memory, value })
    }
}

impl<T> Deref for LowBox<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: initialized, and ours.
        unsafe { self.value.as_ref() }
    }
}

impl<T> DerefMut for LowBox<T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: initialized, and ours.
        unsafe { self.value.as_mut() }
    }
}

impl<T> Drop for LowBox<T> {
    fn drop(&mut self) {
        // SAFETY: dropped once; the memory goes after it.
        unsafe { self.value.drop_in_place() };
        debug_assert!(self.memory.length > 0);
    }
}

/// The address of something in low memory, as an instruction encodes it.
pub(crate) fn address<T: ?Sized>(place: *const T) -> i32 {
    let address = place.cast::<u8>() as usize;
    debug_assert!(i32::try_from(address).is_ok(), "{address:#x} is not low");
    address as i32
}
