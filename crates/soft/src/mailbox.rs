//! How other threads reach a processor.
//!
//! Each processor has a mailbox. Anybody may put something in; the processor
//! looks at one word, [`Mailbox::attention`], before every block. Nothing in
//! here is ever waited for while holding a lock the processor's fast path
//! takes; the only lock guards going to sleep.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Bits of [`Mailbox::attention`].
pub(crate) mod attention {
    /// Somebody wants `run` to return.
    pub const KICK: u32 = 1 << 0;
    /// Interrupts wait in the mailbox.
    pub const INTERRUPT: u32 = 1 << 1;
    /// A non-maskable interrupt.
    pub const NMI: u32 = 1 << 2;
    /// INIT.
    pub const INIT: u32 = 1 << 3;
    /// A start-up IPI; its vector lies beside.
    pub const STARTUP: u32 = 1 << 4;
    /// Its next timer is due.
    pub const TIMER: u32 = 1 << 5;
    /// Code it may have cached was written.
    pub const CODE: u32 = 1 << 6;
    /// It must give up permissions to write without notice.
    pub const REVOKE: u32 = 1 << 7;
    /// What the processor handles without leaving its blocks for long.
    pub const CACHES: u32 = CODE | REVOKE;
}

/// Pages, by guest-physical address, or all of them.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Pages {
    Some(Vec<u64>),
    All,
}

impl Default for Pages {
    fn default() -> Self {
        Self::Some(Vec::new())
    }
}

impl Pages {
    /// Beyond so many it is all of them.
    const MOST: usize = 256;

    fn add(&mut self, page: Option<u64>) {
        match (&mut *self, page) {
            (Self::Some(pages), Some(page)) if pages.len() < Self::MOST => {
                if !pages.contains(&page) {
                    pages.push(page);
                }
            }
            (Self::All, _) => {}
            _ => *self = Self::All,
        }
    }
}

/// A processor's mailbox, and what senders must know of its local APIC.
#[derive(Default)]
pub(crate) struct Mailbox {
    attention: AtomicU32,
    /// What translated code makes an index of a jump's target with; 0 while
    /// somebody wants attention.
    jump_mask: AtomicU64,
    requests: [AtomicU32; 8],
    /// Which of the requests are level triggered.
    levels: [AtomicU32; 8],
    startup_vector: AtomicU8,
    sleeping: AtomicBool,
    sleep: Mutex<()>,
    woken: Condvar,
    /// Pages whose code changed.
    changed: Mutex<Pages>,
    /// Pages that must not be written without notice.
    revoked: Mutex<Pages>,
    /// How often something was put into `revoked`, and up to which of these
    /// the processor has done it.
    revoke_wanted: AtomicU32,
    revoke_done: AtomicU32,
    /// The processor may be storing without notice.
    running: AtomicBool,
    /// IA32_APIC_BASE in bits 63:0 of one word, LDR and DFR in the other:
    /// copies that the processor refreshes, for senders to address by.
    apic_base: AtomicU64,
    destinations: AtomicU64,
}

impl Mailbox {
    /// The word to look at.
    pub(crate) fn attention(&self) -> &AtomicU32 {
        &self.attention
    }

    /// See [`crate::translate`].
    pub(crate) fn jump_mask(&self) -> &AtomicU64 {
        &self.jump_mask
    }

    /// Lets translated code jump, if nobody wants attention.
    #[inline(always)]
    pub(crate) fn set_jump_mask(&self, mask: u64) {
        if self.jump_mask.load(Ordering::Relaxed) != mask {
            self.jump_mask.store(mask, Ordering::SeqCst);
            if self.attention.load(Ordering::SeqCst) != 0 {
                self.jump_mask.store(0, Ordering::SeqCst);
            }
        }
    }

    fn want_attention(&self, bits: u32) {
        self.attention.fetch_or(bits, Ordering::SeqCst);
        self.jump_mask.store(0, Ordering::SeqCst);
    }

    /// Takes notice of `bits` and clears them.
    pub(crate) fn take(&self, bits: u32) -> u32 {
        self.attention.fetch_and(!bits, Ordering::SeqCst) & bits
    }

    /// Draws the processor's attention, and wakes it if it sleeps.
    pub(crate) fn raise(&self, bits: u32) {
        self.want_attention(bits);
        if self.sleeping.load(Ordering::SeqCst) {
            // Taking the lock orders this behind the sleeper's last look.
            drop(self.sleep.lock().unwrap_or_else(PoisonError::into_inner));
            self.woken.notify_one();
        }
    }

    /// The code of a page changed.
    pub(crate) fn code_changed(&self, physical: u64) {
        lock(&self.changed).add(Some(physical));
        self.want_attention(attention::CODE);
    }

    /// Takes the pages whose code changed.
    pub(crate) fn take_changed(&self) -> Pages {
        std::mem::take(&mut lock(&self.changed))
    }

    /// Asks for permissions to write without notice to be given up; the
    /// answer says what to wait for.
    pub(crate) fn revoke(&self, physical: Option<u64>) -> u32 {
        lock(&self.revoked).add(physical);
        let ticket = self.revoke_wanted.fetch_add(1, Ordering::SeqCst) + 1;
        self.want_attention(attention::REVOKE);
        ticket
    }

    /// Whether a request is done, or will be before the processor stores
    /// again. Between the request and this lies a barrier on every thread.
    pub(crate) fn is_revoked(&self, ticket: u32) -> bool {
        let done = self.revoke_done.load(Ordering::SeqCst);
        done.wrapping_sub(ticket) as i32 >= 0 || !self.running.load(Ordering::SeqCst)
    }

    /// Something waits to be revoked.
    #[inline(always)]
    pub(crate) fn must_revoke(&self) -> bool {
        self.revoke_wanted.load(Ordering::Acquire) != self.revoke_done.load(Ordering::Relaxed)
    }

    /// Does what was asked for: `each` gives up a page.
    pub(crate) fn do_revoke(&self, mut each: impl FnMut(Option<u64>)) {
        let wanted = self.revoke_wanted.load(Ordering::SeqCst);
        match std::mem::take(&mut *lock(&self.revoked)) {
            Pages::Some(pages) => pages.into_iter().for_each(|page| each(Some(page))),
            Pages::All => each(None),
        }
        self.revoke_done.store(wanted, Ordering::SeqCst);
    }

    /// The processor begins or ends to store without notice. Whoever begins
    /// looks at [`Mailbox::must_revoke`] next; the asker's barrier stands in
    /// for one here.
    #[inline(always)]
    pub(crate) fn set_running(&self, running: bool) {
        self.running.store(running, Ordering::Release);
        std::sync::atomic::compiler_fence(Ordering::SeqCst);
    }

    /// Puts an interrupt in.
    pub(crate) fn interrupt(&self, vector: u8, level: bool) {
        let (word, mask) = (usize::from(vector >> 5), 1 << (vector & 31));
        if level {
            self.levels[word].fetch_or(mask, Ordering::SeqCst);
        } else {
            self.levels[word].fetch_and(!mask, Ordering::SeqCst);
        }
        self.requests[word].fetch_or(mask, Ordering::SeqCst);
        self.raise(attention::INTERRUPT);
    }

    /// Takes all interrupts out, each as its vector and whether it is level
    /// triggered.
    pub(crate) fn take_interrupts(&self, mut each: impl FnMut(u8, bool)) {
        for (word, requests) in self.requests.iter().enumerate() {
            let mut pending = requests.swap(0, Ordering::SeqCst);
            let levels = self.levels[word].load(Ordering::SeqCst);
            while pending != 0 {
                let bit = pending.trailing_zeros();
                pending &= pending - 1;
                each((word * 32) as u8 + bit as u8, levels >> bit & 1 != 0);
            }
        }
    }

    /// A start-up IPI.
    pub(crate) fn startup(&self, vector: u8) {
        self.startup_vector.store(vector, Ordering::SeqCst);
        self.raise(attention::STARTUP);
    }

    pub(crate) fn startup_vector(&self) -> u8 {
        self.startup_vector.load(Ordering::SeqCst)
    }

    /// Something waits that the processor's blocks can't do.
    pub(crate) fn wants_caller(&self) -> bool {
        self.attention.load(Ordering::SeqCst) & !attention::CACHES != 0
    }

    /// Sleeps until something is raised, or `timeout` is over.
    pub(crate) fn sleep(&self, timeout: Option<Duration>) {
        let guard = self.sleep.lock().unwrap_or_else(PoisonError::into_inner);
        self.sleeping.store(true, Ordering::SeqCst);
        if !self.wants_caller() {
            match timeout {
                Some(timeout) => drop(self.woken.wait_timeout(guard, timeout)),
                None => drop(self.woken.wait(guard)),
            }
        }
        self.sleeping.store(false, Ordering::SeqCst);
    }

    /// Tells senders how this processor's local APIC is addressed.
    pub(crate) fn publish(&self, apic_base: u64, ldr: u32, dfr: u32) {
        self.apic_base.store(apic_base, Ordering::SeqCst);
        self.destinations
            .store(u64::from(dfr) << 32 | u64::from(ldr), Ordering::SeqCst);
    }

    fn is_x2apic(&self) -> bool {
        use crate::apic::base::{ENABLE, X2APIC};
        let base = self.apic_base.load(Ordering::SeqCst);
        base & (ENABLE | X2APIC) == ENABLE | X2APIC
    }

    fn is_enabled(&self) -> bool {
        self.apic_base.load(Ordering::SeqCst) & crate::apic::base::ENABLE != 0
    }

    /// Whether a message to `destination` is for processor `id`.
    pub(crate) fn is_addressed(&self, id: u32, destination: u32, logical: bool) -> bool {
        if !self.is_enabled() {
            return false;
        }
        let x2apic = self.is_x2apic();
        let broadcast = if x2apic {
            destination == u32::MAX
        } else {
            destination & 0xff == 0xff
        };
        if broadcast || destination == 0xff && !logical {
            return true;
        }
        if !logical {
            return destination == id;
        }
        let words = self.destinations.load(Ordering::SeqCst);
        let (ldr, dfr) = (words as u32, (words >> 32) as u32);
        if x2apic {
            return destination >> 16 == ldr >> 16 && destination & ldr & 0xffff != 0;
        }
        let (mda, ldr) = (destination & 0xff, ldr >> 24);
        if dfr >> 28 == 0xf {
            mda & ldr != 0
        } else {
            mda >> 4 == ldr >> 4 && mda & ldr & 0xf != 0
        }
    }
}

fn lock(pages: &Mutex<Pages>) -> std::sync::MutexGuard<'_, Pages> {
    pages.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[path = "mailbox_test.rs"]
mod test;
