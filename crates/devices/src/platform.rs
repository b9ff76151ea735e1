//! Where everything lies in a machine: memory, ports, interrupt pins.
//!
//! The one place for these numbers. `favo-vmm` maps RAM and puts devices on
//! the buses by it, [`acpi`](crate::acpi) tells the guest, and the loader
//! leaves alone what is taken.
//!
//! ```text
//!           0  RAM, at most 3 GiB of it
//!  c000_0000  PCI window below 4 GiB, 512 MiB
//!  e000_0000  ECAM of bus 0, 1 MiB
//!  fec0_0000  I/O APIC
//!  fee0_0000  local APICs
//! 1_0000_0000  the rest of the RAM
//!        above, at the next multiple of 4 GiB: PCI window, 64 GiB
//! ```

use favo_types::{ByteCount, GuestAddress};

/// RAM below 4 GiB ends here at the latest.
pub const LOW_RAM_END: GuestAddress = GuestAddress(0xc000_0000);
/// RAM that doesn't fit below [`LOW_RAM_END`] starts here.
pub const HIGH_RAM_START: GuestAddress = GuestAddress(1 << 32);

/// PCI devices' addresses below 4 GiB.
pub const PCI_LOW_WINDOW: (GuestAddress, ByteCount) =
    (GuestAddress(0xc000_0000), ByteCount(0x2000_0000));
/// How large the window above RAM is.
pub const PCI_HIGH_WINDOW_SIZE: ByteCount = ByteCount::gib(64);
/// What the window above RAM is aligned to.
const PCI_HIGH_WINDOW_ALIGNMENT: ByteCount = ByteCount::gib(4);

/// PCI configuration space of bus 0.
pub const ECAM: (GuestAddress, ByteCount) = (
    GuestAddress(0xe000_0000),
    ByteCount(crate::pci::PciRoot::ECAM_BYTES),
);
/// The I/O APIC's registers.
pub const IOAPIC: (GuestAddress, ByteCount) = (GuestAddress(0xfec0_0000), ByteCount(0x1000));
/// The local APICs' registers, answered by the engine.
pub const LOCAL_APIC: (GuestAddress, ByteCount) = (GuestAddress(0xfee0_0000), ByteCount(0x1000));

/// Where the ACPI tables go: in the BIOS area, which no kernel uses as RAM
/// when the loader lists it as reserved, and where one looks for the RSDP
/// without being told.
pub const ACPI_TABLES: (GuestAddress, ByteCount) = (GuestAddress(0xe_0000), ByteCount(0x1_f000));

/// Where the machine's generation is: 16 bytes that differ in every copy of a
/// machine and after every restore (Microsoft, Virtual Machine Generation ID).
pub const GENERATION_ID: GuestAddress = GuestAddress(0xf_f000);

/// Below 1 MiB, RAM ends here: what follows is video memory and BIOS on a PC,
/// and on this one the [`ACPI_TABLES`]. There is RAM behind it all the same.
pub const LEGACY_AREA: (GuestAddress, ByteCount) = (GuestAddress(0xa_0000), ByteCount(0x6_0000));

/// What the loader's memory map must list as reserved: RAM that is not for
/// the kernel, and ECAM, which Linux believes in only if it is reserved.
pub const RESERVED: [(GuestAddress, ByteCount); 2] = [LEGACY_AREA, ECAM];

/// The I/O APIC's id. Local APIC ids count from 0 and may include this one;
/// the two are different name spaces since the APIC bus is gone.
pub const IOAPIC_ID: u8 = 0;

/// First port of the serial port COM1.
pub const SERIAL_PORT: u16 = 0x3f8;
/// I/O APIC pin of COM1; edge triggered.
pub const SERIAL_PIN: u8 = 4;

/// First of the two ports of the real-time clock.
pub const RTC_PORT: u16 = 0x70;

/// The keyboard controller's command port; only its reset exists.
pub const KEYBOARD_COMMAND_PORT: u16 = 0x64;
/// The chipset's reset control port, also ACPI's reset register.
pub const RESET_CONTROL_PORT: u16 = 0xcf9;

/// First port of ACPI's sleep and event registers ([`crate::power`]).
pub const POWER_PORT: u16 = 0x600;
/// I/O APIC pin of the ACPI generic event device; edge triggered.
pub const POWER_PIN: u8 = 9;

/// The port of pvpanic.
pub const PVPANIC_PORT: u16 = 0x505;

/// Why there can't be such a machine.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PlatformError {
    /// RAM and PCI window don't fit below the highest physical address.
    #[error(
        "{ram} of memory need {needed} address bits, the processor has {available}; \
         give the machine less with --memory"
    )]
    AddressSpaceTooSmall {
        /// The RAM asked for.
        ram: ByteCount,
        /// Bits it needs.
        needed: u32,
        /// Bits there are.
        available: u32,
    },
    /// Less RAM than holds the fixed areas below 1 MiB.
    #[error("{0} of memory is too little for a machine: it needs at least 2 MiB, in whole pages")]
    BadRamSize(ByteCount),
}

/// The part of the address map that depends on the machine's size.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MemoryMap {
    /// RAM, ascending: one range or two.
    pub ram: Vec<(GuestAddress, ByteCount)>,
    /// PCI devices' addresses above RAM.
    pub pci_high_window: (GuestAddress, ByteCount),
}

impl MemoryMap {
    /// The map of a machine with `ram` bytes of RAM and processors with
    /// `address_bits` physical address bits (CPUID 8000_0008H, EAX bits 7:0).
    pub fn new(ram: ByteCount, address_bits: u32) -> Result<Self, PlatformError> {
        if ram < ByteCount::mib(2) || !ram.bytes().is_multiple_of(0x1000) {
            return Err(PlatformError::BadRamSize(ram));
        }
        let low = ram.bytes().min(LOW_RAM_END.0);
        let high = ram.bytes() - low;
        let mut ranges = vec![(GuestAddress(0), ByteCount(low))];
        if high > 0 {
            ranges.push((HIGH_RAM_START, ByteCount(high)));
        }
        let too_small = |end: u64| PlatformError::AddressSpaceTooSmall {
            ram,
            needed: u64::BITS - end.leading_zeros(),
            available: address_bits,
        };
        let window = HIGH_RAM_START
            .checked_add(high)
            .and_then(|end| ByteCount(end.0).checked_align_up(PCI_HIGH_WINDOW_ALIGNMENT))
            .ok_or(too_small(u64::MAX))?;
        let limit = 1u64.checked_shl(address_bits).unwrap_or(u64::MAX);
        // A processor with few address bits gets a smaller window.
        let size = limit.saturating_sub(window.bytes());
        let size = size.min(PCI_HIGH_WINDOW_SIZE.bytes());
        if size < ByteCount::gib(1).bytes() {
            return Err(too_small(window.bytes()));
        }
        Ok(Self {
            ram: ranges,
            pci_high_window: (GuestAddress(window.bytes()), ByteCount(size)),
        })
    }

    /// The windows PCI devices may lie in.
    pub fn pci_windows(&self) -> crate::pci::PciWindows {
        crate::pci::PciWindows {
            low: PCI_LOW_WINDOW,
            high: self.pci_high_window,
        }
    }
}

#[cfg(test)]
#[path = "platform_test.rs"]
mod test;
