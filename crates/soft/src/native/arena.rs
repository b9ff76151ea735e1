//! Executable memory for stubs: one memfd, mapped once to write and once to
//! execute, so that no page is ever both.
//!
//! Memory is handed out once and never reused: a stub, once published, stays
//! as it is until the process ends, so any thread may call it at any time and
//! no processor ever sees code change under it.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Why no stub can be made.
#[derive(Debug, thiserror::Error)]
pub enum ArenaError {
    /// The host refuses executable memory.
    #[error(
        "can't get executable memory for the software CPU ({0}); a security policy \
         (noexec memfd, SELinux execmem) may forbid it: allow it for favo, or use --accel kvm"
    )]
    Map(#[source] std::io::Error),
    /// All of the arena is in use.
    #[error("the software CPU's {CAPACITY} bytes of executable memory are used up")]
    Full,
}

/// Bytes of address space. The number of distinct stubs is finite (registers
/// and addresses are not part of them), and all of them fit.
const CAPACITY: usize = 32 << 20;

/// Stubs start here; keeps each within few cache lines.
const ALIGNMENT: usize = 32;

/// The executable memory of this process.
pub struct Arena {
    write: *mut u8,
    execute: *const u8,
    used: usize,
}

// SAFETY: the two pointers denote mappings that live as long as the process
// and are written only through `&mut self`.
unsafe impl Send for Arena {}

impl Arena {
    /// Maps a new arena; nothing is committed yet.
    pub fn new() -> Result<Self, ArenaError> {
        let error = || ArenaError::Map(std::io::Error::last_os_error());
        // SAFETY: the name is a valid C string.
        let fd = unsafe { libc::memfd_create(c"favo-stubs".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(error());
        }
        // SAFETY: the descriptor is new and ours.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: a plain system call on our descriptor.
        if unsafe { libc::ftruncate(fd.as_raw_fd(), CAPACITY as libc::off_t) } != 0 {
            return Err(error());
        }
        let map = |protection| {
            // SAFETY: a new shared mapping at an address the kernel chooses.
            let address = unsafe {
                libc::mmap(
                    std::ptr::null_mut(),
                    CAPACITY,
                    protection,
                    libc::MAP_SHARED,
                    fd.as_raw_fd(),
                    0,
                )
            };
            if address == libc::MAP_FAILED {
                Err(error())
            } else {
                Ok(address.cast::<u8>())
            }
        };
        let write = map(libc::PROT_READ | libc::PROT_WRITE)?;
        let execute = map(libc::PROT_READ | libc::PROT_EXEC)?;
        Ok(Self {
            write,
            execute,
            used: 0,
        })
    }

    /// Copies `code` in and returns its executable address.
    pub fn publish(&mut self, code: &[u8]) -> Result<*const u8, ArenaError> {
        let start = self.used.next_multiple_of(ALIGNMENT);
        let end = start + code.len();
        if end > CAPACITY {
            return Err(ArenaError::Full);
        }
        // SAFETY: start..end lies inside the mapping and was never handed out.
        unsafe {
            std::ptr::copy_nonoverlapping(code.as_ptr(), self.write.add(start), code.len());
        }
        self.used = end;
        // SAFETY: inside the mapping.
        Ok(unsafe { self.execute.add(start) })
    }
}
