use favo_accel::MemoryBacking;

use super::*;
use crate::kernel::Segment as KernelSegment;

fn memory() -> GuestMemory {
    GuestMemory::new(
        &[(GuestAddress(0), ByteCount::mib(32))],
        MemoryBacking::Anonymous,
    )
    .unwrap()
}

fn kernel() -> Kernel {
    Kernel {
        image: b"kernel".to_vec(),
        segments: vec![KernelSegment {
            address: GuestAddress(16 << 20),
            file: 0..6,
            memory_size: ByteCount::mib(4),
        }],
        entry: GuestAddress(16 << 20),
        setup_header: None,
    }
}

fn boot<'a>(kernel: &'a Kernel, initrd: &'a [u8], command_line: &'a str) -> Boot<'a> {
    Boot {
        kernel,
        initrd,
        command_line,
        memory_map: &[
            (0..0x9_fc00, RangeKind::Ram),
            (1 << 20..32 << 20, RangeKind::Ram),
        ],
        acpi_rsdp: Some(GuestAddress(0xe_0000)),
    }
}

fn read<const N: usize>(memory: &GuestMemory, address: u64) -> [u8; N] {
    let mut bytes = [0; N];
    memory.read(GuestAddress(address), &mut bytes).unwrap();
    bytes
}

#[test]
fn the_kernel_finds_what_the_protocol_promises() {
    let (memory, kernel) = (memory(), kernel());
    let mut state = VcpuState::power_on(0, 0);
    boot(&kernel, b"cpio", "console=ttyS0")
        .place(&memory, &mut state)
        .unwrap();

    let zero_page = state.general.rsi;
    assert_eq!(state.general.rip, 16 << 20);
    assert_eq!(&read::<6>(&memory, 16 << 20), b"kernel");
    assert_eq!(read::<1>(&memory, zero_page + 0x1e8), [2]);
    assert_eq!(
        u64::from_le_bytes(read(&memory, zero_page + 0x70)),
        0xe_0000
    );
    let initrd = u32::from_le_bytes(read(&memory, zero_page + 0x218)).into();
    assert_eq!(initrd, (32 << 20) - 4096);
    assert_eq!(&read::<4>(&memory, initrd), b"cpio");
    let line = u32::from_le_bytes(read(&memory, zero_page + 0x228)).into();
    assert_eq!(&read::<14>(&memory, line), b"console=ttyS0\0");

    // Address 5 GiB / 2 + 0x1234 leads to itself through the page tables.
    let wanted = (5u64 << 29) + 0x1234;
    let entry =
        |table: u64, index: u64| u64::from_le_bytes(read(&memory, (table & !0xfff) + index * 8));
    let pdpt = entry(state.control.cr3, wanted >> 39 & 511);
    let directory = entry(pdpt, wanted >> 30 & 511);
    let page = entry(directory, wanted >> 21 & 511);
    assert_eq!((page & !0x1f_ffff) + (wanted & 0x1f_ffff), wanted);
    assert_eq!(page & 0x83, 0x83);
}

#[test]
fn what_does_not_fit_is_named() {
    let (memory, mut kernel) = (memory(), kernel());
    let mut state = VcpuState::power_on(0, 0);
    let large = vec![1; 20 << 20];
    let error = boot(&kernel, &large, "")
        .place(&memory, &mut state)
        .unwrap_err();
    assert!(
        error.to_string().contains("initial RAM disk of 20 MiB"),
        "{error}"
    );
    let long = "x".repeat(3000);
    let error = boot(&kernel, b"", &long)
        .place(&memory, &mut state)
        .unwrap_err();
    assert!(matches!(
        error,
        BootError::CommandLineTooLong {
            length: 3000,
            limit: 2047
        }
    ));
    kernel.segments[0].memory_size = ByteCount::mib(17);
    let error = boot(&kernel, b"", "")
        .place(&memory, &mut state)
        .unwrap_err();
    assert!(error.to_string().contains("the kernel of"), "{error}");
    kernel.segments[0].address = GuestAddress(0x8000);
    let error = boot(&kernel, b"", "")
        .place(&memory, &mut state)
        .unwrap_err();
    assert!(matches!(error, BootError::KernelTooLow(_)));
}
