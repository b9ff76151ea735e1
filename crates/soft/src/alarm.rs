//! Tells processors that their timers are due.
//!
//! Translated code does not look at the clock. One thread of the machine
//! sleeps until the earliest deadline of a running processor and raises its
//! attention. Deadlines mostly move back, so a later one is only written down;
//! the thread finds out when it wakes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, Once, PoisonError, Weak};
use std::time::Duration;

use favo_thread::{ThreadKind, spawn};

use crate::clock::host_tsc;
use crate::mailbox::attention;
use crate::partition::Shared;

/// How long the thread sleeps at most: so long it outlives its machine.
const LONGEST: Duration = Duration::from_millis(50);

/// Deadlines of one machine's processors, in host TSC ticks.
pub(crate) struct Alarm {
    deadlines: Box<[AtomicU64]>,
    /// When the thread will wake.
    wakes: Mutex<u64>,
    changed: Condvar,
    started: Once,
}

impl Alarm {
    pub(crate) fn new(vcpus: u32) -> Self {
        Self {
            deadlines: (0..vcpus).map(|_| AtomicU64::new(u64::MAX)).collect(),
            wakes: Mutex::new(u64::MAX),
            changed: Condvar::new(),
            started: Once::new(),
        }
    }

    pub(crate) fn set(&self, machine: &Arc<Shared>, id: u32, deadline: u64) {
        let cell = &self.deadlines[id as usize];
        if cell.load(Ordering::Relaxed) == deadline {
            return;
        }
        cell.store(deadline, Ordering::SeqCst);
        if deadline == u64::MAX {
            return;
        }
        self.started.call_once(|| {
            let machine = Arc::downgrade(machine);
            let spawned = spawn(ThreadKind::Alarm, "favo-alarm", move || watch(&machine));
            if let Err(error) = spawned {
                tracing::error!(%error, "no thread for the timers of this machine");
            }
        });
        let mut wakes = self.wakes.lock().unwrap_or_else(PoisonError::into_inner);
        if deadline < *wakes {
            *wakes = deadline;
            self.changed.notify_one();
        }
    }

    /// Tells whoever is due, then sleeps until the next is.
    fn round(&self, machine: &Shared) {
        let now = host_tsc();
        let mut next = u64::MAX;
        for (id, cell) in self.deadlines.iter().enumerate() {
            let deadline = cell.load(Ordering::SeqCst);
            if deadline > now {
                next = next.min(deadline);
            } else if cell
                .compare_exchange(deadline, u64::MAX, Ordering::SeqCst, Ordering::SeqCst)
                .is_ok()
            {
                machine.mailbox(id as u32).raise(attention::TIMER);
            }
        }
        let mut wakes = self.wakes.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever sets a deadline from here on finds this one and notifies.
        *wakes = next;
        let earlier = self
            .deadlines
            .iter()
            .any(|cell| cell.load(Ordering::SeqCst) < next);
        if earlier {
            return;
        }
        let sleep = match next {
            u64::MAX => LONGEST,
            next => {
                Duration::from_nanos(machine.scale.nanoseconds(next.saturating_sub(host_tsc())))
                    .min(LONGEST)
            }
        };
        drop(self.changed.wait_timeout(wakes, sleep));
    }
}

fn watch(machine: &Weak<Shared>) {
    while let Some(machine) = machine.upgrade() {
        machine.alarm().round(&machine);
    }
}
