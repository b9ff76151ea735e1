//! PCI Express: what a device is made of, and the root complex that gives a
//! guest its configuration space.
//!
//! A device implements [`PciDevice`]: a [`PciSpec`] that says what it is
//! (identity, BARs, capabilities, MSI-X), and reads and writes of its BARs.
//! [`PciRoot::attach`] makes a [`PciFunction`] of it, which owns everything
//! that is the same for all devices: the type 0 header, BAR sizing and
//! relocation, the MSI-X capability, table and pending bits. A device never
//! sees an address, only a BAR and an offset in it.
//!
//! There are no wired interrupts (INTx) and no bridges: everything sits on
//! bus 0, and interrupts by MSI-X only.
//!
//! Specification: PCI Local Bus 3.0, chapter 6; PCI Express Base 4.0, chapter 7.

mod config;
mod function;
mod msix;
mod root;

pub use function::{PciFunction, PciFunctionState};
pub use msix::{Msix, MsixState, MsixVectorState};
pub use root::{ConfigPorts, PciError, PciRoot, PciRootState, PciSlot, PciWindows};

use std::sync::Arc;

use favo_accel::AccessSize;
use favo_types::GuestAddress;

/// Who a function is (PCI 3.0, 6.2.1 and 6.2.4).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PciIdentity {
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Revision id.
    pub revision: u8,
    /// Base class, sub-class and programming interface, as in bits 23:0.
    pub class: u32,
    /// Subsystem vendor id.
    pub subsystem_vendor: u16,
    /// Subsystem id.
    pub subsystem: u16,
}

/// One of the six base address registers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct BarIndex(u8);

impl BarIndex {
    /// How many there are.
    pub const COUNT: usize = 6;

    /// BAR number `index`, 0 to 5.
    pub const fn new(index: u8) -> Option<Self> {
        if index < Self::COUNT as u8 {
            Some(Self(index))
        } else {
            None
        }
    }

    /// The number.
    pub const fn get(self) -> u8 {
        self.0
    }
}

/// Where a memory BAR may lie. I/O BARs don't exist here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BarKind {
    /// Below 4 GiB; one register.
    Memory32,
    /// Anywhere; this register and the next one.
    Memory64,
}

/// A range of memory a function decodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BarSpec {
    /// Which register; for [`BarKind::Memory64`] the lower of the two.
    pub index: BarIndex,
    /// Where it may lie.
    pub kind: BarKind,
    /// Reads have no side effects.
    pub prefetchable: bool,
    /// Its size in bytes: a power of two, at least 4096.
    pub size: u64,
}

/// A capability other than MSI-X (PCI 3.0, 6.7).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Capability {
    /// Capability id.
    pub id: u8,
    /// Everything behind the two header bytes (id and next pointer): byte 0
    /// here is byte 2 of the capability.
    pub body: Vec<u8>,
    /// Whether reads and writes of the body go to the device
    /// ([`PciDevice::read_capability`]). Otherwise it is constant.
    pub dynamic: bool,
}

/// The MSI-X of a function and where its table and pending bits lie.
#[derive(Clone)]
pub struct MsixSpec {
    /// The vectors; the device keeps a clone to signal them.
    pub msix: Arc<Msix>,
    /// The BAR with table and pending bits. Nothing of the device's own may
    /// lie in the 4 KiB pages they occupy.
    pub bar: BarIndex,
    /// Offset of the table: 16 bytes per vector, 8-byte aligned.
    pub table_offset: u32,
    /// Offset of the pending bits: 8 bytes per 64 vectors, 8-byte aligned.
    pub pending_offset: u32,
}

/// What a function looks like.
#[derive(Clone)]
pub struct PciSpec {
    /// Its name in errors, logs and listings.
    pub name: String,
    /// Who it is.
    pub identity: PciIdentity,
    /// Its BARs.
    pub bars: Vec<BarSpec>,
    /// Its capabilities, in the order a driver finds them.
    pub capabilities: Vec<Capability>,
    /// Its interrupts.
    pub msix: Option<MsixSpec>,
}

/// A PCI device: its behaviour behind the configuration space.
///
/// All methods may be called by several threads at once.
pub trait PciDevice: Send + Sync {
    /// What it looks like. Called once, when it is attached.
    fn spec(&self) -> PciSpec;

    /// Reads `size` bytes at `offset` in a BAR. The access lies wholly in the
    /// BAR and outside MSI-X table and pending bits; it need not be aligned.
    fn read_bar(&self, bar: BarIndex, offset: u64, size: AccessSize) -> u64;

    /// Writes the low `size` bytes of `value` (the rest is zero).
    fn write_bar(&self, bar: BarIndex, offset: u64, size: AccessSize, value: u64);

    /// Reads from the body of a dynamic capability: `index` counts
    /// [`PciSpec::capabilities`], `offset` the bytes of [`Capability::body`].
    /// Widths are 1, 2 or 4 bytes; the access lies wholly in the body.
    fn read_capability(&self, index: usize, offset: u16, size: AccessSize) -> u32 {
        let _ = (index, offset);
        size.truncate(u64::MAX) as u32
    }

    /// Writes to the body of a dynamic capability.
    fn write_capability(&self, index: usize, offset: u16, size: AccessSize, value: u32) {
        let _ = (index, offset, size, value);
    }

    /// The guest allowed or forbade the device to write and read memory
    /// (command register, bit 2). After reset it is forbidden.
    fn set_bus_master(&self, enabled: bool) {
        let _ = enabled;
    }

    /// The guest moved a BAR: its first address, or `None` while the function
    /// decodes nothing there. For devices whose registers the engine watches
    /// itself (ioeventfd); all others need not know.
    fn bar_moved(&self, bar: BarIndex, address: Option<GuestAddress>) {
        let _ = (bar, address);
    }

    /// Back to power-on: the machine was reset. The configuration space has
    /// been reset already.
    fn reset(&self);
}
