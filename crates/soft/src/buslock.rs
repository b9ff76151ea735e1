//! The bus lock: LOCK on bytes that cross a page, or on device memory.
//!
//! The host can't do these atomically in one instruction of ours, so all
//! processors of the process that do one take turns. An ordinary store of
//! another processor in between is not held back: a guest that mixes the two
//! on one page-crossing word sees what a torn access shows.

use std::sync::{Mutex, MutexGuard, PoisonError};

static BUS: Mutex<()> = Mutex::new(());

pub(crate) fn lock() -> MutexGuard<'static, ()> {
    BUS.lock().unwrap_or_else(PoisonError::into_inner)
}
