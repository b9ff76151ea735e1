//! One function on the bus: what all PCI devices have in common.
//!
//! Order of locks: a function's configuration space, then the memory bus. The
//! device is called with the configuration space locked only for the three
//! notifications ([`PciDevice::set_bus_master`], [`PciDevice::bar_moved`] and
//! [`PciDevice::reset`]), so that they arrive in the order of the guest's
//! writes; a device must not access its own configuration space in them.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use favo_accel::AccessSize;
use favo_types::GuestAddress;
use serde::{Deserialize, Serialize};

use super::config::{
    COMMAND, COMMAND_BUS_MASTER, COMMAND_MEMORY, CONFIG_BYTES, ConfigSpace, Owner, is_valid_access,
};
use super::{BarIndex, BarSpec, MsixSpec, MsixState, PciDevice, PciSpec};
use crate::bus::{Bus, BusDevice};
use crate::state::{StateError, check_version};

const DEVICE: &str = "PCI function";

/// What a guest programmed into a function.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PciFunctionState {
    /// [`PciFunctionState::VERSION`] when it was written.
    pub version: u32,
    /// The 256 bytes of configuration space.
    pub config: Vec<u8>,
    /// The interrupt vectors.
    pub msix: Option<MsixState>,
}

impl PciFunctionState {
    /// The version of the layout described here.
    pub const VERSION: u32 = 1;
}

/// A device with its configuration space, on a bus.
pub struct PciFunction {
    name: String,
    device: Arc<dyn PciDevice>,
    msix: Option<MsixSpec>,
    mmio: Weak<Bus>,
    /// For the bus, which needs an owner to call.
    this: Weak<PciFunction>,
    /// Where the BARs are after reset, as firmware would have put them.
    assigned: Vec<(BarSpec, u64)>,
    inner: Mutex<Inner>,
}

struct Inner {
    config: ConfigSpace,
    /// Where each BAR is on the bus now, in the order of `config.bars()`.
    mapped: Vec<Option<u64>>,
    bus_master: bool,
    detached: bool,
}

impl PciFunction {
    /// Builds the function; `assign` finds a place for each BAR.
    pub(super) fn new<E>(
        device: Arc<dyn PciDevice>,
        spec: PciSpec,
        mut config: ConfigSpace,
        mmio: Weak<Bus>,
        mut assign: impl FnMut(&BarSpec) -> Result<u64, E>,
    ) -> Result<Arc<Self>, E> {
        let bars = config.bars().to_vec();
        let mut assigned = Vec::with_capacity(bars.len());
        for bar in bars {
            let address = assign(&bar)?;
            config.set_bar_address(&bar, address);
            assigned.push((bar, address));
        }
        let mapped = vec![None; assigned.len()];
        Ok(Arc::new_cyclic(|this| Self {
            name: spec.name,
            device,
            msix: spec.msix,
            mmio,
            this: this.clone(),
            assigned,
            inner: Mutex::new(Inner {
                config,
                mapped,
                bus_master: false,
                detached: false,
            }),
        }))
    }

    /// What the device calls itself.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Reads the configuration space. Misaligned and 8-byte accesses, which
    /// no processor can address to a function, read as all ones.
    pub fn read_config(&self, offset: u64, size: AccessSize) -> u32 {
        let ones = size.truncate(u64::MAX) as u32;
        if !is_valid_access(offset, size) || offset >= CONFIG_BYTES as u64 {
            return ones;
        }
        let offset = offset as usize;
        if let Some((capability, offset)) = self.device_access(offset, size) {
            let value = self.device.read_capability(capability, offset, size);
            return size.truncate(u64::from(value)) as u32;
        }
        let control = self.msix.as_ref().map_or(0, |msix| msix.msix.control());
        let inner = self.lock();
        (offset..offset + size.bytes()).rev().fold(0, |value, at| {
            let byte = match inner.config.owner(at) {
                Owner::MsixControl(index) => control.to_le_bytes()[index],
                Owner::Plain | Owner::Device(..) => inner.config.read(at),
            };
            value << 8 | u32::from(byte)
        })
    }

    /// Writes the configuration space. Returns whether addresses were given
    /// up that another function may have been waiting for.
    pub fn write_config(&self, offset: u64, size: AccessSize, value: u32) -> bool {
        if !is_valid_access(offset, size) || offset >= CONFIG_BYTES as u64 {
            return false;
        }
        let offset = offset as usize;
        if let Some((capability, offset)) = self.device_access(offset, size) {
            let value = size.truncate(u64::from(value)) as u32;
            self.device
                .write_capability(capability, offset, size, value);
            return false;
        }
        let mut control = None;
        let mut inner = self.lock();
        for (index, byte) in value.to_le_bytes()[..size.bytes()].iter().enumerate() {
            match inner.config.owner(offset + index) {
                Owner::Plain => inner.config.write(offset + index, *byte),
                Owner::MsixControl(index) => {
                    control.get_or_insert((0xffff, 0)).1 |= u16::from(*byte) << (8 * index);
                    if let Some((keep, _)) = &mut control {
                        *keep &= !(0xff << (8 * index));
                    }
                }
                // Only part of the access: no driver does this.
                Owner::Device(..) => {}
            }
        }
        if let (Some(msix), Some((keep, bits))) = (&self.msix, control) {
            msix.msix.set_control(msix.msix.control() & keep | bits);
        }
        self.apply(&mut inner)
    }

    /// Where a BAR is on the memory bus, if it is.
    pub fn bar_address(&self, bar: BarIndex) -> Option<GuestAddress> {
        let inner = self.lock();
        let position = inner
            .config
            .bars()
            .iter()
            .position(|spec| spec.index == bar)?;
        inner.mapped[position].map(GuestAddress)
    }

    /// Back to power-on, the device too.
    pub fn reset(&self) {
        let mut inner = self.lock();
        inner.config.reset();
        for (bar, address) in &self.assigned {
            inner.config.set_bar_address(bar, *address);
        }
        if let Some(msix) = &self.msix {
            msix.msix.reset();
        }
        self.apply(&mut inner);
        self.device.reset();
    }

    /// What the guest programmed. The device's own state is the device's.
    pub fn save(&self) -> PciFunctionState {
        let inner = self.lock();
        PciFunctionState {
            version: PciFunctionState::VERSION,
            config: inner.config.bytes().to_vec(),
            msix: self.msix.as_ref().map(|msix| msix.msix.save()),
        }
    }

    /// Whether [`PciFunction::restore`] would accept `state`.
    pub fn check(&self, state: &PciFunctionState) -> Result<(), StateError> {
        self.checked(state).map(|_| ())
    }

    /// Takes over a saved state: the same device, BARs where they were.
    pub fn restore(&self, state: &PciFunctionState) -> Result<(), StateError> {
        let config = self.checked(state)?;
        if let (Some(spec), Some(msix)) = (&self.msix, &state.msix) {
            spec.msix.restore(msix)?;
        }
        let mut inner = self.lock();
        inner.config.load(&config);
        self.apply(&mut inner);
        Ok(())
    }

    /// Tries again to map BARs that had no room.
    pub(super) fn remap(&self) {
        self.apply(&mut self.lock());
    }

    /// Takes the BARs off the bus, as if the guest had done it.
    pub(super) fn unmap(&self) {
        let mut inner = self.lock();
        let command = inner.config.command() & !COMMAND_MEMORY;
        inner.config.write(COMMAND, command as u8);
        self.apply(&mut inner);
    }

    /// Takes the BARs off the bus for good.
    pub(super) fn detach(&self) {
        let mut inner = self.lock();
        inner.detached = true;
        self.apply(&mut inner);
    }

    fn checked(&self, state: &PciFunctionState) -> Result<[u8; CONFIG_BYTES], StateError> {
        check_version(DEVICE, state.version, PciFunctionState::VERSION)?;
        let config: [u8; CONFIG_BYTES] = state.config.as_slice().try_into().map_err(|_| {
            StateError::invalid(
                DEVICE,
                format!(
                    "{} has {} bytes of configuration space, not {CONFIG_BYTES}",
                    self.name,
                    state.config.len()
                ),
            )
        })?;
        if let Some(offset) = self.lock().config.first_difference(&config) {
            return Err(StateError::invalid(
                DEVICE,
                format!(
                    "{} is another device, or is built differently: \
                     byte {offset:#x} of its configuration space differs",
                    self.name
                ),
            ));
        }
        match (&self.msix, &state.msix) {
            (None, None) => {}
            (Some(spec), Some(msix)) => spec.msix.check(msix)?,
            _ => {
                return Err(StateError::invalid(
                    DEVICE,
                    format!("only one of the state and {} has MSI-X", self.name),
                ));
            }
        }
        Ok(config)
    }

    /// The dynamic capability that has all of an access.
    fn device_access(&self, offset: usize, size: AccessSize) -> Option<(usize, u16)> {
        let inner = self.lock();
        let (Owner::Device(first, start), Owner::Device(last, _)) = (
            inner.config.owner(offset),
            inner.config.owner(offset + size.bytes() - 1),
        ) else {
            return None;
        };
        (first == last).then_some((first, start))
    }

    /// Makes bus and device follow the configuration space. Returns whether
    /// addresses were given up.
    fn apply(&self, inner: &mut Inner) -> bool {
        let command = inner.config.command();
        let bus_master = command & COMMAND_BUS_MASTER != 0;
        if bus_master != inner.bus_master {
            inner.bus_master = bus_master;
            self.device.set_bus_master(bus_master);
        }
        let Some(mmio) = self.mmio.upgrade() else {
            return false;
        };
        let decodes = command & COMMAND_MEMORY != 0 && !inner.detached;
        let mut freed = false;
        for position in 0..inner.mapped.len() {
            let bar = inner.config.bars()[position];
            let wanted = decodes.then(|| inner.config.bar_address(&bar));
            let now = inner.mapped[position];
            if wanted == now {
                continue;
            }
            if let Some(address) = now {
                // It is there: nobody else removes it.
                let _ = mmio.remove(address);
                freed = true;
            }
            let mapped = wanted.filter(|&address| self.map(&mmio, &bar, address));
            inner.mapped[position] = mapped;
            if mapped != now {
                self.device.bar_moved(bar.index, mapped.map(GuestAddress));
            }
        }
        freed
    }

    fn map(&self, mmio: &Bus, bar: &BarSpec, address: u64) -> bool {
        let Some(function) = self.this.upgrade() else {
            return false;
        };
        let window = Arc::new(BarWindow {
            function,
            bar: bar.index,
        });
        let name = format!("{} BAR {}", self.name, bar.index.get());
        match mmio.insert(&name, address, bar.size, window) {
            Ok(()) => true,
            Err(error) => {
                // Happens while a guest moves BARs around; it is tried again
                // when addresses become free.
                tracing::debug!(%error, "a guest's BAR is not mapped");
                false
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for PciFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PciFunction")
            .field("name", &self.name)
            .field("bars", &self.lock().mapped)
            .finish_non_exhaustive()
    }
}

/// A BAR as the memory bus sees it.
struct BarWindow {
    function: Arc<PciFunction>,
    bar: BarIndex,
}

/// What an access to a BAR meets.
enum BarTarget<'a> {
    Device,
    Table(&'a MsixSpec, u64),
    Pending(&'a MsixSpec, u64),
    /// Partly MSI-X, partly not.
    Nothing,
}

impl BarWindow {
    fn target(&self, offset: u64, size: AccessSize) -> BarTarget<'_> {
        let Some(spec) = &self.function.msix else {
            return BarTarget::Device;
        };
        if spec.bar != self.bar {
            return BarTarget::Device;
        }
        let end = offset.saturating_add(size.bytes() as u64);
        let table = u64::from(spec.table_offset);
        let pending = u64::from(spec.pending_offset);
        let table_end = table + spec.msix.table_bytes();
        let pending_end = pending + spec.msix.pending_bytes();
        if end <= table.min(pending)
            || offset >= table_end.max(pending_end)
            || !(offset < table_end && table < end || offset < pending_end && pending < end)
        {
            BarTarget::Device
        } else if offset >= table && end <= table_end {
            BarTarget::Table(spec, offset - table)
        } else if offset >= pending && end <= pending_end {
            BarTarget::Pending(spec, offset - pending)
        } else {
            BarTarget::Nothing
        }
    }
}

impl BusDevice for BarWindow {
    fn read(&self, offset: u64, size: AccessSize) -> u64 {
        match self.target(offset, size) {
            BarTarget::Device => self.function.device.read_bar(self.bar, offset, size),
            BarTarget::Table(spec, offset) => spec.msix.read_table(offset, size),
            BarTarget::Pending(spec, offset) => spec.msix.read_pending(offset, size),
            BarTarget::Nothing => 0,
        }
    }

    fn write(&self, offset: u64, size: AccessSize, value: u64) {
        match self.target(offset, size) {
            BarTarget::Device => self
                .function
                .device
                .write_bar(self.bar, offset, size, value),
            BarTarget::Table(spec, offset) => spec.msix.write_table(offset, size, value),
            BarTarget::Pending(..) | BarTarget::Nothing => {}
        }
    }
}

#[cfg(test)]
#[path = "function_test.rs"]
pub(super) mod test;
