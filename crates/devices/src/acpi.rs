//! The ACPI tables that describe the machine to its guest (ACPI 6.5).
//!
//! Hardware-reduced: no SCI, no power management timer, no legacy interrupt
//! controller, nothing to calibrate against. What the tables say about
//! addresses comes from [`platform`], what the registers mean from the
//! devices; the loader places [`AcpiTables::bytes`] and tells the kernel
//! [`AcpiTables::rsdp`].
//!
//! The interpreted part, the DSDT, is in `acpi/dsdt.rs`.

mod dsdt;

use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};
use favo_types::{ByteCount, GuestAddress};
use zerocopy::{Immutable, IntoBytes};

use crate::pci::PciWindows;
use crate::platform;
use crate::power::{Power, ResetControl};
use crate::rtc::Rtc;

const OEM_ID: [u8; 6] = *b"FAVO  ";
const OEM_TABLE_ID: [u8; 8] = *b"FAVOPC  ";
const OEM_REVISION: u32 = 1;

/// Tables begin at multiples of this.
const TABLE_ALIGNMENT: usize = 16;

/// The largest APIC id a plain local APIC entry can have; 255 is everyone.
const LAST_XAPIC_ID: u32 = 254;

/// IA-PC boot architecture flags (ACPI 6.5, table 5.11).
const BOOT_LEGACY_DEVICES: u16 = 1 << 0;
const BOOT_NO_VGA: u16 = 1 << 2;

/// What differs from machine to machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Platform {
    /// How many processors; their APIC ids are `0..vcpus`.
    pub vcpus: u32,
    /// Where PCI devices may lie.
    pub pci: PciWindows,
}

/// The tables, ready to be placed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AcpiTables {
    /// Where [`AcpiTables::bytes`] go.
    pub address: GuestAddress,
    /// All tables. They refer to each other by address.
    pub bytes: Vec<u8>,
    /// The root pointer, within them.
    pub rsdp: GuestAddress,
}

/// Why a machine can't be described.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AcpiError {
    /// The tables don't fit.
    #[error(
        "the ACPI tables of {vcpus} processors take {needed} of the {available} there are; \
         give the machine fewer with --cpus"
    )]
    TooLarge {
        /// Processors asked for.
        vcpus: u32,
        /// What the tables take.
        needed: ByteCount,
        /// The room for them.
        available: ByteCount,
    },
    /// A PCI window is empty or leaves its half of the address space.
    #[error("the PCI window of {size} at {start} is not valid")]
    InvalidWindow {
        /// First address.
        start: GuestAddress,
        /// Size.
        size: ByteCount,
    },
}

impl AcpiTables {
    /// The tables of a machine.
    pub fn new(machine: &Platform) -> Result<Self, AcpiError> {
        let (start, available) = platform::ACPI_TABLES;
        let mut tables = Placement {
            start,
            bytes: vec![0; Rsdp::len()],
        };
        let dsdt = tables.place(&dsdt::dsdt(machine)?);
        let fadt = tables.place(&fadt(dsdt));
        let madt = tables.place(&madt(machine.vcpus));
        let mcfg = tables.place(&mcfg());
        let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
        for table in [fadt, madt, mcfg] {
            xsdt.add_entry(table.0);
        }
        let xsdt = tables.place(&xsdt);

        let mut bytes = tables.bytes;
        let rsdp = Rsdp::new(OEM_ID, xsdt.0);
        bytes[..Rsdp::len()].copy_from_slice(rsdp.as_bytes());
        let needed = ByteCount(bytes.len() as u64);
        if needed > available {
            return Err(AcpiError::TooLarge {
                vcpus: machine.vcpus,
                needed,
                available,
            });
        }
        Ok(Self {
            address: start,
            bytes,
            rsdp: start,
        })
    }
}

/// Tables one behind the other.
struct Placement {
    start: GuestAddress,
    bytes: Vec<u8>,
}

impl Placement {
    /// Appends a table; returns its address.
    fn place(&mut self, table: &dyn Aml) -> GuestAddress {
        let at = self.bytes.len().next_multiple_of(TABLE_ALIGNMENT);
        self.bytes.resize(at, 0);
        table.to_aml_bytes(&mut self.bytes);
        GuestAddress(self.start.0 + at as u64)
    }
}

/// A byte-wide register in port space.
fn port_register(port: u16) -> GAS {
    GAS::new(
        AddressSpace::SystemIo,
        8,
        0,
        AccessSize::ByteAccess,
        u64::from(port),
    )
}

/// Fixed hardware (5.2.9): that there is none, and how to sleep and reset.
fn fadt(dsdt: GuestAddress) -> impl Aml {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt.0)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Wbinvd)
        // No fixed buttons: the power button is a device.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        // The clock can't wake the machine.
        .flag(Flags::FixRtc);
    fadt.reset_reg = port_register(platform::RESET_CONTROL_PORT);
    fadt.reset_value = ResetControl::RESET_VALUE;
    fadt.sleep_control_reg = port_register(platform::POWER_PORT + Power::SLEEP_CONTROL);
    fadt.sleep_status_reg = port_register(platform::POWER_PORT + Power::SLEEP_STATUS);
    fadt.century = Rtc::CENTURY;
    fadt.iapc_boot_arch = (BOOT_LEGACY_DEVICES | BOOT_NO_VGA).into();
    fadt.finalize()
}

/// Interrupt controllers (5.2.12).
fn madt(vcpus: u32) -> impl Aml {
    let local_apic = LocalInterruptController::Address(platform::LOCAL_APIC.0.0 as u32);
    let mut madt = MADT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION, local_apic);
    for id in 0..vcpus {
        if id <= LAST_XAPIC_ID {
            madt.add_structure(ProcessorLocalApic::new(
                id as u8,
                id as u8,
                EnabledStatus::Enabled,
            ));
        } else {
            madt.add_structure(LocalX2Apic::new(id));
        }
    }
    madt.add_structure(IoApic::new(
        platform::IOAPIC_ID,
        platform::IOAPIC.0.0 as u32,
        0,
    ));
    madt
}

/// A processor's local x2APIC (5.2.12.12): type, length, 2 reserved bytes,
/// id, flags, processor UID.
#[derive(Clone, IntoBytes, Immutable)]
#[repr(transparent)]
struct LocalX2Apic([u8; 16]);

impl LocalX2Apic {
    const TYPE: u8 = 9;
    const ENABLED: u32 = 1;

    fn new(id: u32) -> Self {
        let mut bytes = [0; 16];
        bytes[0] = Self::TYPE;
        bytes[1] = bytes.len() as u8;
        bytes[4..8].copy_from_slice(&id.to_le_bytes());
        bytes[8..12].copy_from_slice(&Self::ENABLED.to_le_bytes());
        bytes[12..].copy_from_slice(&id.to_le_bytes());
        Self(bytes)
    }
}

impl Aml for LocalX2Apic {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

/// Where PCI configuration space is (PCI Firmware 3.3, 4.1.2): bus 0 only, so
/// that nobody scans 255 empty ones.
fn mcfg() -> impl Aml {
    let mut mcfg = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    mcfg.add_ecam(platform::ECAM.0.0, 0, 0, 0);
    mcfg
}

#[cfg(test)]
#[path = "acpi_test.rs"]
mod test;
