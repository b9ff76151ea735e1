use std::process::Command;

use super::*;
use crate::platform::MemoryMap;

fn machine(vcpus: u32) -> Platform {
    let map = MemoryMap::new(ByteCount::gib(4), 40).unwrap();
    Platform {
        vcpus,
        pci: map.pci_windows(),
    }
}

/// Follows the pointers from the RSDP as a kernel does, and checks every sum.
/// The tables' signatures and bytes, the XSDT first.
fn walk(tables: &AcpiTables) -> Vec<([u8; 4], Vec<u8>)> {
    let at = |address: u64| &tables.bytes[(address - tables.address.0) as usize..];
    let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    let u64_at =
        |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    let table = |address: u64| {
        let bytes = at(address);
        let length = u32::from_le_bytes(bytes[4..8].try_into().unwrap()) as usize;
        assert_eq!(sum(&bytes[..length]), 0);
        assert_eq!(address % 16, 0);
        (bytes[..4].try_into().unwrap(), bytes[..length].to_vec())
    };
    let rsdp = &at(tables.rsdp.0)[..36];
    assert_eq!(&rsdp[..8], b"RSD PTR ");
    assert_eq!((sum(&rsdp[..20]), sum(rsdp)), (0, 0));
    let xsdt = table(u64_at(rsdp, 24));
    let mut found = vec![xsdt.clone()];
    for entry in xsdt.1[36..].chunks(8) {
        let entry = table(u64_at(entry, 0));
        if &entry.0 == b"FACP" {
            found.push(table(u64_at(&entry.1, 140)));
        }
        found.push(entry);
    }
    found
}

fn find(tables: &[([u8; 4], Vec<u8>)], signature: &[u8; 4]) -> Vec<u8> {
    let table = tables.iter().find(|(found, _)| found == signature);
    table.unwrap().1.clone()
}

#[test]
fn every_table_is_found_and_sums_to_zero() {
    let tables = AcpiTables::new(&machine(4)).unwrap();
    let found = walk(&tables);
    let signatures: Vec<_> = found.iter().map(|(signature, _)| *signature).collect();
    assert_eq!(
        signatures,
        [*b"XSDT", *b"DSDT", *b"FACP", *b"APIC", *b"MCFG"]
    );
}

#[test]
fn the_fadt_says_how_to_sleep_and_reset() {
    let fadt = find(&walk(&AcpiTables::new(&machine(1)).unwrap()), b"FACP");
    let flags = u32::from_le_bytes(fadt[112..116].try_into().unwrap());
    assert_ne!(flags & 1 << 20, 0, "hardware-reduced");
    assert_ne!(flags & 1 << 10, 0, "has a reset register");
    let register = |at: usize| {
        (
            fadt[at],
            u64::from_le_bytes(fadt[at + 4..at + 12].try_into().unwrap()),
        )
    };
    assert_eq!(register(116), (1, 0xcf9));
    assert_eq!(fadt[128], ResetControl::RESET_VALUE);
    assert_eq!(register(244), (1, 0x600));
    assert_eq!(register(256), (1, 0x601));
    // No keyboard controller: bit 1 of the boot architecture flags.
    assert_eq!(u16::from_le_bytes([fadt[109], fadt[110]]) & 2, 0);
}

#[test]
fn the_madt_lists_every_processor_once() {
    for vcpus in [1, 2, 255, 256, 1000] {
        let madt = find(&walk(&AcpiTables::new(&machine(vcpus)).unwrap()), b"APIC");
        let mut ids = Vec::new();
        let mut ioapics = 0;
        let mut rest = &madt[44..];
        while !rest.is_empty() {
            let (entry, next) = rest.split_at(usize::from(rest[1]));
            match (entry[0], entry.len()) {
                (0, 8) => {
                    assert_eq!(entry[4], 1);
                    ids.push(u32::from(entry[3]));
                }
                (9, 16) => {
                    assert_eq!(entry[8], 1);
                    ids.push(u32::from_le_bytes(entry[4..8].try_into().unwrap()));
                }
                (1, 12) => ioapics += 1,
                other => panic!("unexpected entry {other:?}"),
            }
            rest = next;
        }
        assert_eq!(ids, (0..vcpus).collect::<Vec<_>>());
        assert_eq!(ioapics, 1);
    }
}

#[test]
fn impossible_machines_are_refused() {
    let error = AcpiTables::new(&machine(100_000)).unwrap_err();
    assert!(error.to_string().contains("--cpus"), "{error}");
    for size in [0, u64::MAX] {
        let mut bad = machine(1);
        bad.pci.low.1 = ByteCount(size);
        assert!(matches!(
            AcpiTables::new(&bad),
            Err(AcpiError::InvalidWindow { .. })
        ));
    }
}

/// ACPICA's own disassembler and compiler read the tables without complaint.
#[test]
fn acpica_reads_the_tables() {
    if Command::new("iasl").arg("-v").output().is_err() {
        println!("skipped: iasl is not installed (Debian package acpica-tools)");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for (signature, bytes) in walk(&AcpiTables::new(&machine(300)).unwrap()) {
        let name = String::from_utf8(signature.to_vec()).unwrap();
        let file = folder.path().join(format!("{name}.dat"));
        std::fs::write(&file, bytes).unwrap();
        let output = Command::new("iasl").arg("-d").arg(&file).output().unwrap();
        let text =
            String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name}: {text}");
        let source = folder.path().join(format!("{name}.dsl"));
        let disassembled = std::fs::read_to_string(&source).unwrap();
        for complaint in ["Error", "Warning", "Invalid", "Unknown", "incorrect"] {
            assert!(!text.contains(complaint), "{name}: {text}");
            assert!(!disassembled.contains(complaint), "{name}: {disassembled}");
        }
        if name == "DSDT" {
            let output = Command::new("iasl")
                .arg("-tc")
                .arg(&source)
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(
                text.contains("0 Errors, 0 Warnings"),
                "{text}\n{disassembled}"
            );
        }
    }
}

/// ACPICA's interpreter, which is also Linux's, loads the DSDT and runs the
/// event method; the memory behind its ports is all zero.
#[test]
fn acpica_runs_the_event_method() {
    if Command::new("acpiexec").arg("-v").output().is_err() {
        println!("skipped: acpiexec is not installed (Debian package acpica-tools)");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("DSDT.dat");
    let dsdt = find(&walk(&AcpiTables::new(&machine(1)).unwrap()), b"DSDT");
    std::fs::write(&file, dsdt).unwrap();
    for (method, result) in [
        ("\\_SB.GED_._EVT 9", "No object was returned"),
        ("\\_SB.PCI0._CRS", "[Buffer]"),
        ("\\_S5", "[Package] Contains 4 Elements"),
    ] {
        let output = Command::new("acpiexec")
            .arg("-b")
            .arg(format!("execute {method}"))
            .arg(&file)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains(result), "{method}: {text}");
        assert!(!text.contains("AE_"), "{method}: {text}");
    }
}
