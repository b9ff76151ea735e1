//! Which pages were written: KVM's record of processors' writes and guest
//! memory's own record of devices'.

use favo_accel::{AccelError, DirtyLog, PAGE_SIZE};
use favo_types::GuestAddress;

use crate::error::host;
use crate::partition::PartitionInner;
use crate::slots;

impl PartitionInner {
    fn log_slots(&self, on: bool) -> Result<(), AccelError> {
        for (slot, region) in (0..).zip(self.memory.regions()) {
            slots::set(&self.vm, slot, region, on)?;
        }
        Ok(())
    }
}

impl DirtyLog for PartitionInner {
    fn start(&self) -> Result<(), AccelError> {
        // Off first: a slot whose flag goes from off to on begins clean.
        self.log_slots(false)?;
        self.log_slots(true)?;
        for region in self.memory.regions() {
            region.pages.start_log();
        }
        Ok(())
    }

    fn take(&self) -> Result<Vec<GuestAddress>, AccelError> {
        let mut dirty = Vec::new();
        for (slot, region) in (0..).zip(self.memory.regions()) {
            let size = usize::try_from(region.size.bytes())
                .map_err(|_| AccelError::Unsupported(format!("a region of {}", region.size)))?;
            let mut bitmap = self
                .vm
                .get_dirty_log(slot, size)
                .map_err(host("reading the written pages (KVM_GET_DIRTY_LOG)"))?;
            for page in region.pages.take_log() {
                if let Some(word) = bitmap.get_mut(page / 64) {
                    *word |= 1 << (page % 64);
                }
            }
            for (first, word) in (0..).step_by(64).zip(bitmap) {
                let mut rest = word;
                while rest != 0 {
                    let page = first + u64::from(rest.trailing_zeros());
                    dirty.push(GuestAddress(region.start.0 + page * PAGE_SIZE));
                    rest &= rest - 1;
                }
            }
        }
        Ok(dirty)
    }

    fn stop(&self) -> Result<(), AccelError> {
        for region in self.memory.regions() {
            region.pages.stop_log();
        }
        self.log_slots(false)
    }
}
