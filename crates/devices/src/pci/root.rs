//! The root complex: bus 0, its slots, and the two ways to configuration
//! space (PCI Express 4.0, 7.2.2 ECAM; PCI 3.0, 3.2.2.3.2 mechanism 1).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use favo_accel::AccessSize;
use favo_types::{ByteCount, GuestAddress};
use serde::{Deserialize, Serialize};

use super::config::ConfigSpace;
use super::{
    BarIndex, BarKind, BarSpec, PciDevice, PciFunction, PciFunctionState, PciIdentity, PciSpec,
};
use crate::bus::{Bus, BusDevice};
use crate::state::{StateError, check_version};

/// How many device numbers a bus has.
const SLOTS: usize = 32;
/// Bytes of configuration space per function in ECAM.
const FUNCTION_BYTES: u64 = 4096;
const FUNCTIONS_PER_SLOT: u64 = 8;
const DEVICE: &str = "PCI root";

/// A device number on bus 0, 1 to 31; 0 is the host bridge.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct PciSlot(u8);

impl PciSlot {
    /// Slot `number`, 1 to 31.
    pub const fn new(number: u8) -> Option<Self> {
        if number >= 1 && (number as usize) < SLOTS {
            Some(Self(number))
        } else {
            None
        }
    }

    /// The number.
    pub const fn get(self) -> u8 {
        self.0
    }
}

impl TryFrom<u8> for PciSlot {
    type Error = String;

    fn try_from(number: u8) -> Result<Self, String> {
        Self::new(number).ok_or_else(|| format!("{number} is no PCI slot: 1 to 31 are"))
    }
}

impl From<PciSlot> for u8 {
    fn from(slot: PciSlot) -> Self {
        slot.0
    }
}

/// Why a device can't be attached.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PciError {
    /// Another device is there.
    #[error("{name} can't have PCI slot {slot}: {other} is there")]
    SlotTaken {
        /// The newcomer.
        name: String,
        /// Where it was to go.
        slot: u8,
        /// Who is there.
        other: String,
    },
    /// All 31 slots are taken.
    #[error("there is no free PCI slot for {name}: a machine has 31")]
    NoFreeSlot {
        /// The newcomer.
        name: String,
    },
    /// No room for a BAR.
    #[error("{name} needs {size} for BAR {bar}, and the machine's PCI window has no room for it")]
    NoSpace {
        /// The newcomer.
        name: String,
        /// Which BAR.
        bar: u8,
        /// How much.
        size: ByteCount,
    },
    /// The device describes something that can't be. An error in favo.
    #[error("{name} is not a valid PCI device: {reason}")]
    InvalidSpec {
        /// The newcomer.
        name: String,
        /// What is wrong.
        reason: String,
    },
}

/// The addresses devices may have: first and size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PciWindows {
    /// Below 4 GiB.
    pub low: (GuestAddress, ByteCount),
    /// Above RAM.
    pub high: (GuestAddress, ByteCount),
}

/// Everything a guest programmed on bus 0. Devices' own states are apart.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PciRootState {
    /// [`PciRootState::VERSION`] when it was written.
    pub version: u32,
    /// The functions, by slot; slot 0 is not listed.
    pub functions: Vec<(PciSlot, PciFunctionState)>,
}

impl PciRootState {
    /// The version of the layout described here.
    pub const VERSION: u32 = 1;
}

/// Bus 0. Put it on the memory bus where ECAM is; it answers for 1 MiB.
pub struct PciRoot {
    mmio: Weak<Bus>,
    inner: Mutex<Inner>,
}

struct Inner {
    slots: [Option<Arc<PciFunction>>; SLOTS],
    low: Allocator,
    high: Allocator,
}

/// Hands out addresses, ascending; what is handed out stays so.
struct Allocator {
    next: u64,
    end: u64,
}

impl Allocator {
    fn new((start, size): (GuestAddress, ByteCount)) -> Self {
        Self {
            next: start.0,
            end: start.0.saturating_add(size.bytes()),
        }
    }

    /// `size` bytes at a multiple of `size`.
    fn take(&mut self, size: u64) -> Option<u64> {
        let start = self.next.checked_next_multiple_of(size)?;
        let end = start.checked_add(size).filter(|&end| end <= self.end)?;
        self.next = end;
        Some(start)
    }
}

impl PciRoot {
    /// Bytes of ECAM: one bus.
    pub const ECAM_BYTES: u64 = SLOTS as u64 * FUNCTIONS_PER_SLOT * FUNCTION_BYTES;

    /// A bus with a host bridge only, whose devices' BARs appear on `mmio`,
    /// at first in `windows`.
    pub fn new(mmio: &Arc<Bus>, windows: PciWindows) -> Arc<Self> {
        let mut slots = [const { None }; SLOTS];
        slots[0] = host_bridge(mmio);
        Arc::new(Self {
            mmio: Arc::downgrade(mmio),
            inner: Mutex::new(Inner {
                slots,
                low: Allocator::new(windows.low),
                high: Allocator::new(windows.high),
            }),
        })
    }

    /// Puts a device into `slot`, or into the first free one.
    pub fn attach(
        &self,
        slot: Option<PciSlot>,
        device: Arc<dyn PciDevice>,
    ) -> Result<(PciSlot, Arc<PciFunction>), PciError> {
        let spec = device.spec();
        let name = spec.name.clone();
        let config = ConfigSpace::new(&spec).map_err(|reason| PciError::InvalidSpec {
            name: name.clone(),
            reason,
        })?;
        let mut inner = self.lock();
        let slot = match slot {
            Some(slot) => slot,
            None => (1..SLOTS as u8)
                .find(|&slot| inner.slots[usize::from(slot)].is_none())
                .map(PciSlot)
                .ok_or_else(|| PciError::NoFreeSlot { name: name.clone() })?,
        };
        if let Some(other) = &inner.slots[usize::from(slot.0)] {
            return Err(PciError::SlotTaken {
                name,
                slot: slot.0,
                other: other.name().to_owned(),
            });
        }
        let Inner { low, high, slots } = &mut *inner;
        let assign = |bar: &BarSpec| {
            let address = match bar.kind {
                BarKind::Memory64 => high.take(bar.size).or_else(|| low.take(bar.size)),
                BarKind::Memory32 => low.take(bar.size),
            };
            address.ok_or_else(|| PciError::NoSpace {
                name: name.clone(),
                bar: bar.index.get(),
                size: ByteCount(bar.size),
            })
        };
        let function = PciFunction::new(device, spec, config, self.mmio.clone(), assign)?;
        slots[usize::from(slot.0)] = Some(function.clone());
        Ok((slot, function))
    }

    /// Takes the device out of `slot`. Its addresses are not handed out again.
    pub fn detach(&self, slot: PciSlot) -> Option<Arc<PciFunction>> {
        let function = self.lock().slots[usize::from(slot.0)].take()?;
        function.detach();
        Some(function)
    }

    /// The function in a slot.
    pub fn function(&self, slot: PciSlot) -> Option<Arc<PciFunction>> {
        self.lock().slots[usize::from(slot.0)].clone()
    }

    /// Every occupied slot, the host bridge not.
    pub fn functions(&self) -> Vec<(PciSlot, Arc<PciFunction>)> {
        let inner = self.lock();
        let slots = inner.slots.iter().enumerate().skip(1);
        slots
            .filter_map(|(slot, function)| Some((PciSlot(slot as u8), function.clone()?)))
            .collect()
    }

    /// Resets every function and its device.
    pub fn reset(&self) {
        for function in self.all() {
            function.reset();
        }
    }

    /// What the guest programmed.
    pub fn save(&self) -> PciRootState {
        PciRootState {
            version: PciRootState::VERSION,
            functions: self
                .functions()
                .iter()
                .map(|(slot, function)| (*slot, function.save()))
                .collect(),
        }
    }

    /// Takes over a saved state. The same devices must be in the same slots.
    /// Comes before the devices' own states: they hear of bus mastering and of
    /// where their BARs are as if the guest had written it now.
    pub fn restore(&self, state: &PciRootState) -> Result<(), StateError> {
        check_version(DEVICE, state.version, PciRootState::VERSION)?;
        let functions = self.functions();
        let here = functions.iter().map(|(slot, _)| slot);
        if !here.eq(state.functions.iter().map(|(slot, _)| slot)) {
            return Err(StateError::invalid(
                DEVICE,
                "the machine has devices in other PCI slots than the state",
            ));
        }
        let both = || functions.iter().zip(&state.functions);
        for ((_, function), (_, state)) in both() {
            function.check(state)?;
        }
        // One function may move to where another still is: first all go away.
        for (_, function) in &functions {
            function.unmap();
        }
        for ((_, function), (_, state)) in both() {
            function.restore(state)?;
        }
        Ok(())
    }

    /// Reads configuration space. `address` is an offset in ECAM: bus in bits
    /// 27:20, device 19:15, function 14:12, register 11:0.
    pub fn read_config(&self, address: u64, size: AccessSize) -> u32 {
        match self.find(address) {
            Some(function) => function.read_config(address % FUNCTION_BYTES, size),
            None => size.truncate(u64::MAX) as u32,
        }
    }

    /// Writes configuration space.
    pub fn write_config(&self, address: u64, size: AccessSize, value: u32) {
        let Some(function) = self.find(address) else {
            return;
        };
        if function.write_config(address % FUNCTION_BYTES, size, value) {
            // Addresses became free that another function may have been
            // refused.
            for other in self.all() {
                other.remap();
            }
        }
    }

    fn find(&self, address: u64) -> Option<Arc<PciFunction>> {
        let function = address / FUNCTION_BYTES;
        let slot = usize::try_from(function / FUNCTIONS_PER_SLOT).ok()?;
        if !function.is_multiple_of(FUNCTIONS_PER_SLOT) {
            return None;
        }
        self.lock().slots.get(slot)?.clone()
    }

    fn all(&self) -> Vec<Arc<PciFunction>> {
        self.lock().slots.iter().flatten().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BusDevice for PciRoot {
    fn read(&self, offset: u64, size: AccessSize) -> u64 {
        match size {
            AccessSize::Qword => {
                let low = self.read_config(offset, AccessSize::Dword);
                let high = self.read_config(offset + 4, AccessSize::Dword);
                u64::from(high) << 32 | u64::from(low)
            }
            _ => u64::from(self.read_config(offset, size)),
        }
    }

    fn write(&self, offset: u64, size: AccessSize, value: u64) {
        match size {
            AccessSize::Qword => {
                self.write_config(offset, AccessSize::Dword, value as u32);
                self.write_config(offset + 4, AccessSize::Dword, (value >> 32) as u32);
            }
            _ => self.write_config(offset, size, value as u32),
        }
    }
}

/// The ports 0xcf8 to 0xcff: configuration space for those who don't know
/// ECAM. A machine may leave them out; Linux then needs half the exits.
///
/// Byte accesses to 0xcf9 are the PC's reset control and go to the device
/// given for it.
pub struct ConfigPorts {
    root: Arc<PciRoot>,
    reset_control: Arc<dyn BusDevice>,
    address: Mutex<u32>,
}

/// Bit 31 of the address register: accesses to the data register are
/// configuration accesses.
const ADDRESS_ENABLE: u32 = 1 << 31;

impl ConfigPorts {
    /// The first port.
    pub const PORT: u16 = 0xcf8;
    /// How many there are.
    pub const PORTS: u64 = 8;

    /// Ports to `root`'s configuration space.
    pub fn new(root: Arc<PciRoot>, reset_control: Arc<dyn BusDevice>) -> Self {
        Self {
            root,
            reset_control,
            address: Mutex::new(0),
        }
    }

    /// The address register, for saved state.
    pub fn address(&self) -> u32 {
        *self.address.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the address register.
    pub fn set_address(&self, address: u32) {
        *self.address.lock().unwrap_or_else(PoisonError::into_inner) = address;
    }

    /// The ECAM offset an access to the data register means.
    fn target(&self, offset: u64) -> Option<u64> {
        let address = self.address();
        let register = u64::from(address & 0xfc) + (offset - 4);
        (address & ADDRESS_ENABLE != 0)
            .then(|| u64::from(address >> 8 & 0xffff) * FUNCTION_BYTES + register)
    }
}

impl BusDevice for ConfigPorts {
    fn read(&self, offset: u64, size: AccessSize) -> u64 {
        match (offset, size) {
            (0, AccessSize::Dword) => u64::from(self.address()),
            (1, AccessSize::Byte) => self.reset_control.read(0, size),
            (4..=7, _) => self
                .target(offset)
                .map_or(u64::MAX, |at| u64::from(self.root.read_config(at, size))),
            _ => u64::MAX,
        }
    }

    fn write(&self, offset: u64, size: AccessSize, value: u64) {
        match (offset, size) {
            (0, AccessSize::Dword) => self.set_address(value as u32),
            (1, AccessSize::Byte) => self.reset_control.write(0, size, value),
            (4..=7, _) => {
                if let Some(at) = self.target(offset) {
                    self.root.write_config(at, size, value as u32);
                }
            }
            _ => {}
        }
    }
}

/// Device 0: what a guest takes as the proof that there is PCI at all.
struct HostBridge;

impl PciDevice for HostBridge {
    fn spec(&self) -> PciSpec {
        PciSpec {
            name: "PCI host bridge".to_owned(),
            // The generic PCI Express host bridge (QEMU, docs/specs/pci-ids).
            identity: PciIdentity {
                vendor: 0x1b36,
                device: 0x0008,
                revision: 0,
                class: 0x06_00_00,
                subsystem_vendor: 0,
                subsystem: 0,
            },
            bars: Vec::new(),
            capabilities: Vec::new(),
            msix: None,
        }
    }

    fn read_bar(&self, _bar: BarIndex, _offset: u64, _size: AccessSize) -> u64 {
        u64::MAX
    }

    fn write_bar(&self, _bar: BarIndex, _offset: u64, _size: AccessSize, _value: u64) {}

    fn reset(&self) {}
}

fn host_bridge(mmio: &Arc<Bus>) -> Option<Arc<PciFunction>> {
    let spec = HostBridge.spec();
    // It has no BARs and no capabilities: nothing in it can be refused.
    let config = ConfigSpace::new(&spec).ok()?;
    PciFunction::new(
        Arc::new(HostBridge),
        spec,
        config,
        Arc::downgrade(mmio),
        |_| Err::<u64, ()>(()),
    )
    .ok()
}

#[cfg(test)]
#[path = "root_test.rs"]
mod test;
