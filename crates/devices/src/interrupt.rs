//! How a device interrupts, without knowing what runs the processors.
//!
//! PCI devices send messages through an [`MsiSender`]. The few wired devices
//! hold an [`InterruptLine`], which is a pin of the I/O APIC. In a machine the
//! sender is the engine's partition ([`PartitionMsiSender`]); in a test it is
//! whatever records what was sent.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use favo_accel::{AccelError, Msi, Partition};

/// Delivers message-signalled interrupts. Never blocks; callable from any
/// thread, also while the caller holds its own locks, so an implementation
/// must not call back into a device.
pub trait MsiSender: Send + Sync {
    /// Delivers `msi`. A message that no local APIC answers to is lost, as on
    /// a bus; a device can't know.
    fn send(&self, msi: Msi);
}

/// A wire from a device to the interrupt controller. Callable from any thread.
pub trait InterruptLine: Send + Sync {
    /// Drives the wire active (`true`) or inactive. Idempotent.
    fn set_level(&self, active: bool);

    /// Active and inactive again: one edge.
    fn pulse(&self) {
        self.set_level(true);
        self.set_level(false);
    }
}

/// A wire that is not connected.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unconnected;

impl InterruptLine for Unconnected {
    fn set_level(&self, _active: bool) {}
}

/// Delivers to the local APICs of a partition.
///
/// A guest that has more than 255 processors and KVM's extended destination
/// ids puts id bits 14:8 into bits 11:5 of a message's address, which are
/// otherwise zero; here they move to where [`Msi`] has them.
pub struct PartitionMsiSender {
    partition: Arc<dyn Partition>,
    failures: AtomicU64,
}

impl PartitionMsiSender {
    /// A sender to `partition`.
    pub fn new(partition: Arc<dyn Partition>) -> Self {
        Self {
            partition,
            failures: AtomicU64::new(0),
        }
    }

    /// How many messages the engine refused.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Passes on [`Partition::set_level_triggered_pins`].
    pub(crate) fn report_level_triggered_pins(&self, pins: &[Option<Msi>]) {
        if let Err(error) = self.partition.set_level_triggered_pins(pins) {
            self.failed("the engine refused the level-triggered pins", &error);
        }
    }

    /// A guest can provoke failures with nonsensical messages: say it once.
    fn failed(&self, what: &str, error: &AccelError) {
        if self.failures.fetch_add(1, Ordering::Relaxed) == 0 {
            tracing::warn!(%error, "{what}; further failures are only counted");
        }
    }
}

impl MsiSender for PartitionMsiSender {
    fn send(&self, msi: Msi) {
        if let Err(error) = self.partition.signal_msi(extend_destination(msi)) {
            self.failed("the engine refused an interrupt message", &error);
        }
    }
}

/// Moves bits 11:5 of the address to bits 46:40.
fn extend_destination(msi: Msi) -> Msi {
    let extension = msi.address & 0xfe0;
    Msi {
        address: msi.address & !0xfe0 | extension << 35,
        ..msi
    }
}

#[cfg(test)]
#[path = "interrupt_test.rs"]
mod test;

#[cfg(test)]
pub(crate) mod recorder {
    //! What tests connect instead of an engine.

    use std::sync::Mutex;

    use super::*;

    /// Remembers the messages sent.
    #[derive(Default)]
    pub(crate) struct MsiRecorder(Mutex<Vec<Msi>>);

    impl MsiRecorder {
        pub(crate) fn new() -> Arc<Self> {
            Arc::default()
        }

        /// The messages since the last call.
        pub(crate) fn take(&self) -> Vec<Msi> {
            std::mem::take(&mut self.0.lock().unwrap())
        }
    }

    impl MsiSender for MsiRecorder {
        fn send(&self, msi: Msi) {
            self.0.lock().unwrap().push(msi);
        }
    }

    /// Remembers the level and the rising edges of a wire.
    #[derive(Default)]
    pub(crate) struct LineRecorder(Mutex<(bool, u32)>);

    impl LineRecorder {
        pub(crate) fn new() -> Arc<Self> {
            Arc::default()
        }

        pub(crate) fn level(&self) -> bool {
            self.0.lock().unwrap().0
        }

        /// Rising edges since the last call.
        pub(crate) fn take_edges(&self) -> u32 {
            std::mem::take(&mut self.0.lock().unwrap().1)
        }
    }

    impl InterruptLine for LineRecorder {
        fn set_level(&self, active: bool) {
            let mut line = self.0.lock().unwrap();
            if active && !line.0 {
                line.1 += 1;
            }
            line.0 = active;
        }
    }
}
