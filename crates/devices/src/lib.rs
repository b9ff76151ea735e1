//! The devices of favo's virtual machine: each one file, one noun.
//!
//! A device is a plain object that a driver reaches through [`bus`] or
//! [`pci`], that interrupts through [`interrupt`], and that knows neither the
//! engine its guest runs on nor the machine around it. `favo-vmm` assembles
//! machines from them.
//!
//! The laws all devices keep:
//!
//! * **A guest is hostile.** Every offset, width and value is checked; nothing
//!   a guest writes panics, blocks a processor's thread without bound, or
//!   reaches memory that is not the guest's. What has no meaning is ignored on
//!   write and reads as the specification says, or as zero.
//! * **Called from any thread.** Methods take `&self`; the locks inside are
//!   held only for the time of one access.
//! * **State is a value.** Every device saves and restores its state as a
//!   versioned serde type. Restoring checks all of it before it changes
//!   anything ([`state::StateError`]).
//!
//! The rooms:
//!
//! * [`platform`]: where everything lies in a machine, in one place.
//! * [`bus`], [`interrupt`], [`pci`], [`state`]: what devices are built on.
//! * [`ioapic`], [`serial`], [`rtc`], [`power`], [`pvpanic`]: the small
//!   devices of a PC.
//! * [`acpi`]: the tables that describe all that to the guest.
//! * [`fuzz`]: what a hostile guest does, for fuzz targets.

pub mod acpi;
pub mod bus;
pub mod fuzz;
pub mod interrupt;
pub mod ioapic;
pub mod pci;
pub mod platform;
pub mod power;
pub mod pvpanic;
pub mod rtc;
pub mod serial;
pub mod state;
pub mod virtio;
