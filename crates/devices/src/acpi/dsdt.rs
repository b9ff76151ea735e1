//! The DSDT: the devices a guest can't discover by itself, in AML.

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, And, Device, EISAName, Field, FieldAccessType, FieldEntry,
    FieldLockRule, FieldUpdateRule, IO, If, Interrupt, Local, Memory32Fixed, Method, Name, Notify,
    OpRegion, OpRegionSpace, Package, Path, ResourceTemplate, Scope, Store, ZERO,
};
use acpi_tables::sdt::Sdt;
use acpi_tables::{Aml, AmlSink};
use favo_types::{ByteCount, GuestAddress};

use super::{AcpiError, OEM_ID, OEM_REVISION, OEM_TABLE_ID, Platform};
use crate::platform;
use crate::power::Power;
use crate::rtc::Rtc;
use crate::serial::SerialPort;

/// Bytes of a table's header.
const HEADER_BYTES: u32 = 36;
/// Revision 2 makes integers 64 bits wide.
const REVISION: u8 = 2;

/// Notification that a power button was pressed (ACPI 6.5, table 5.160).
const BUTTON_PRESSED: u8 = 0x80;
/// Notification that the generation changed.
const GENERATION_CHANGED: u8 = 0x80;
/// `_STA`: present, enabled, shown, working.
const STATUS_PRESENT: u8 = 0xf;

/// The whole table.
pub(super) fn dsdt(machine: &Platform) -> Result<impl Aml + use<>, AcpiError> {
    let mut table = Sdt::new(
        *b"DSDT",
        HEADER_BYTES,
        REVISION,
        OEM_ID,
        OEM_TABLE_ID,
        OEM_REVISION,
    );
    let mut devices = Vec::new();
    pci_root(&mut devices, machine)?;
    motherboard(&mut devices);
    serial(&mut devices);
    rtc(&mut devices);
    pvpanic(&mut devices);
    power_button(&mut devices);
    generation(&mut devices);
    event_device(&mut devices);
    let mut code = Scope::raw(Path::new("_SB_"), devices);
    sleep_states(&mut code);
    table.append_slice(&code);
    Ok(Encoded(table.as_slice().to_vec()))
}

/// AML that is encoded already.
struct Encoded(Vec<u8>);

impl Aml for Encoded {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

/// A resource template, encoded so that it borrows nothing.
fn resources(descriptors: Vec<&dyn Aml>) -> Encoded {
    let mut bytes = Vec::new();
    ResourceTemplate::new(descriptors).to_aml_bytes(&mut bytes);
    Encoded(bytes)
}

/// PCI bus 0 and what addresses its devices may have.
fn pci_root(code: &mut Vec<u8>, machine: &Platform) -> Result<(), AcpiError> {
    let (low_start, low_end) = window(machine.pci.low, u64::from(u32::MAX))?;
    let (high_start, high_end) = window(machine.pci.high, u64::MAX)?;
    let resources = resources(vec![
        &AddressSpace::<u16>::new_bus_number(0, 0),
        &AddressSpace::<u32>::new_memory(
            AddressSpaceCacheable::NotCacheable,
            true,
            low_start as u32,
            low_end as u32,
            None,
        ),
        &AddressSpace::<u64>::new_memory(
            AddressSpaceCacheable::NotCacheable,
            true,
            high_start,
            high_end,
            None,
        ),
    ]);
    Device::new(
        Path::new("PCI0"),
        vec![
            // A PCI Express root, compatible with a PCI root.
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0A08")),
            &Name::new(Path::new("_CID"), &EISAName::new("PNP0A03")),
            &Name::new(Path::new("_UID"), &ZERO),
            &Name::new(Path::new("_SEG"), &ZERO),
            &Name::new(Path::new("_BBN"), &ZERO),
            &Name::new(Path::new("_CRS"), &resources),
        ],
    )
    .to_aml_bytes(code);
    Ok(())
}

/// First and last address of a window.
fn window((start, size): (GuestAddress, ByteCount), limit: u64) -> Result<(u64, u64), AcpiError> {
    size.bytes()
        .checked_sub(1)
        .and_then(|rest| start.0.checked_add(rest))
        .filter(|&last| last <= limit)
        .map(|last| (start.0, last))
        .ok_or(AcpiError::InvalidWindow { start, size })
}

/// What belongs to nobody else: ECAM, which Linux wants reserved before it
/// believes the MCFG, and the power registers.
fn motherboard(code: &mut Vec<u8>) {
    let (ecam, size) = platform::ECAM;
    let resources = resources(vec![
        &Memory32Fixed::new(true, ecam.0 as u32, size.bytes() as u32),
        &ports(platform::POWER_PORT, Power::PORTS),
    ]);
    device(code, "MBRD", &EISAName::new("PNP0C02"), Some(&resources));
}

fn serial(code: &mut Vec<u8>) {
    let resources = resources(vec![
        &ports(platform::SERIAL_PORT, SerialPort::PORTS),
        &pin(platform::SERIAL_PIN),
    ]);
    device(code, "COM1", &EISAName::new("PNP0501"), Some(&resources));
}

/// The clock, without an interrupt: it has none.
fn rtc(code: &mut Vec<u8>) {
    let resources = resources(vec![&ports(platform::RTC_PORT, Rtc::PORTS)]);
    device(code, "RTC0", &EISAName::new("PNP0B00"), Some(&resources));
}

fn pvpanic(code: &mut Vec<u8>) {
    let resources = resources(vec![&ports(platform::PVPANIC_PORT, 1)]);
    device(code, "PVPN", &"QEMU0001", Some(&resources));
}

fn power_button(code: &mut Vec<u8>) {
    device(code, "PWRB", &EISAName::new("PNP0C0C"), None);
}

/// Where the machine's generation is, and who is told when it changes
/// (Microsoft, Virtual Machine Generation ID). Drivers know it by its
/// compatible ids: Windows by the first, Linux by the others.
fn generation(code: &mut Vec<u8>) {
    let address = platform::GENERATION_ID.0;
    Device::new(
        Path::new("VGEN"),
        vec![
            &Name::new(Path::new("_HID"), &"FAVO0001"),
            &Name::new(
                Path::new("_CID"),
                &Package::new(vec![&"VM_Gen_Counter", &"VM_GEN_COUNTER", &"VMGENCTR"]),
            ),
            &Name::new(Path::new("_DDN"), &"VM_Gen_Counter"),
            &Name::new(Path::new("_UID"), &ZERO),
            &Name::new(Path::new("_STA"), &STATUS_PRESENT),
            &Name::new(
                Path::new("ADDR"),
                &Package::new(vec![&(address as u32), &((address >> 32) as u32)]),
            ),
        ],
    )
    .to_aml_bytes(code);
}

/// The generic event device (5.6.9.1): on an interrupt, its `_EVT` reads what
/// happened and passes it on.
fn event_device(code: &mut Vec<u8>) {
    let resources = resources(vec![&pin(platform::POWER_PIN)]);
    Device::new(
        Path::new("GED_"),
        vec![
            &Name::new(Path::new("_HID"), &"ACPI0013"),
            &Name::new(Path::new("_UID"), &ZERO),
            &Name::new(Path::new("_CRS"), &resources),
            &OpRegion::new(
                Path::new("EREG"),
                OpRegionSpace::SystemIO,
                &(platform::POWER_PORT + Power::EVENTS),
                &1u8,
            ),
            &Field::new(
                Path::new("EREG"),
                FieldAccessType::Byte,
                FieldLockRule::NoLock,
                FieldUpdateRule::WriteAsZeroes,
                vec![FieldEntry::Named(*b"EVTS", 8)],
            ),
            &Method::new(
                Path::new("_EVT"),
                1,
                true,
                vec![
                    // One read: it clears the register.
                    &Store::new(&Local(0), &Path::new("EVTS")),
                    &And::new(&Local(1), &Local(0), &Power::EVENT_POWER_BUTTON),
                    &If::new(
                        &Local(1),
                        vec![&Notify::new(&Path::new("\\_SB_.PWRB"), &BUTTON_PRESSED)],
                    ),
                    &And::new(&Local(1), &Local(0), &Power::EVENT_GENERATION),
                    &If::new(
                        &Local(1),
                        vec![&Notify::new(&Path::new("\\_SB_.VGEN"), &GENERATION_CHANGED)],
                    ),
                ],
            ),
        ],
    )
    .to_aml_bytes(code);
}

/// `\_S5`, power off, is the only sleep (7.4.2.6).
fn sleep_states(code: &mut Vec<u8>) {
    Name::new(
        Path::new("_S5_"),
        &Package::new(vec![&Power::S5_SLEEP_TYPE, &ZERO, &ZERO, &ZERO]),
    )
    .to_aml_bytes(code);
}

/// A device that is nothing but its id and its resources.
fn device(code: &mut Vec<u8>, name: &str, id: &dyn Aml, resources: Option<&dyn Aml>) {
    let id = Name::new(Path::new("_HID"), id);
    let unique = Name::new(Path::new("_UID"), &ZERO);
    let status = Name::new(Path::new("_STA"), &STATUS_PRESENT);
    let resources = resources.map(|resources| Name::new(Path::new("_CRS"), resources));
    let mut children: Vec<&dyn Aml> = vec![&id, &unique, &status];
    if let Some(resources) = &resources {
        children.push(resources);
    }
    Device::new(Path::new(name), children).to_aml_bytes(code);
}

fn ports(first: u16, count: u64) -> IO {
    IO::new(first, first, 1, count as u8)
}

/// An edge-triggered, active-high, exclusive pin of the I/O APIC.
fn pin(pin: u8) -> Interrupt {
    Interrupt::new(true, true, false, false, u32::from(pin))
}
