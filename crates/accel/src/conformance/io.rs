//! Ports and memory that is not RAM.

use iced_x86::code_asm::*;

use super::guest::{DATA, Guest, MMIO, RAM, done, report, report_constant};
use super::harness::{Answer, Machine, RESUME, data, unexpected};
use super::{Case, Failure, expect};
use crate::engine::{AccelError, Accelerator, AccessSize, VcpuEntry, VcpuExit};

pub(super) const CASES: &[Case] = &[
    Case::new("io/port-write-of-every-size", port_writes),
    Case::new("io/port-read-of-every-size", port_reads),
    Case::new("io/string-port-write", string_writes),
    Case::new("io/string-port-read", string_reads),
    Case::new("io/mmio-write-of-every-size", mmio_writes),
    Case::new("io/mmio-read-of-every-size", mmio_reads),
    Case::new("io/mmio-read-modify-write", mmio_read_modify_write),
    Case::new("io/mmio-string-copy", mmio_string_copy),
    Case::new("io/mmio-access-across-two-pages", mmio_across_pages),
    Case::new("io/access-across-the-end-of-ram", across_the_end_of_ram),
    Case::new("io/a-read-must-be-answered", read_must_be_answered),
    Case::new("io/protected-mode-ports-and-mmio", protected_mode),
    Case::new("io/real-mode-ports", real_mode),
];

const PORT: u16 = 0x3f8;

fn port_writes(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    let guest = Guest::long(|a| {
        a.mov(dx, u32::from(PORT))?;
        a.mov(eax, 0x8765_4321_u32)?;
        a.out(dx, al)?;
        a.out(dx, ax)?;
        a.out(dx, eax)?;
        a.out(0x80, al)?;
        done(a)
    })?;
    let write = |port, size, value| VcpuExit::PortWrite { port, size, value };
    collect(
        accelerator,
        &guest,
        &[
            write(PORT, AccessSize::Byte, 0x21),
            write(PORT, AccessSize::Word, 0x4321),
            write(PORT, AccessSize::Dword, 0x8765_4321),
            write(0x80, AccessSize::Byte, 0x21),
        ],
    )
}

/// Runs to the end and compares every exit that is not a report.
fn collect(
    accelerator: &dyn Accelerator,
    guest: &Guest,
    expected: &[VcpuExit],
) -> Result<(), Failure> {
    let mut seen = Vec::new();
    Machine::new(accelerator, guest)?.run_with(|_, exit| {
        seen.push(exit);
        Ok(RESUME)
    })?;
    expect("the exits", expected, &seen[..])
}

fn port_reads(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    let guest = Guest::long(|a| {
        a.mov(rax, u64::MAX)?;
        for size in 0..3 {
            a.mov(rsi, 0x1111_2222_3333_4444_u64)?;
            a.mov(dx, u32::from(PORT))?;
            a.mov(rax, rsi)?;
            match size {
                0 => a.in_(al, dx)?,
                1 => a.in_(ax, dx)?,
                _ => a.in_(eax, dx)?,
            }
            a.mov(rdi, rax)?;
            report(a, edi)?;
            a.shr(rdi, 32)?;
            report(a, edi)?;
        }
        done(a)
    })?;
    let mut machine = Machine::new(accelerator, &guest)?;
    let mut sizes = Vec::new();
    machine.run_with(|_, exit| match exit {
        VcpuExit::PortRead { port: PORT, size } => {
            sizes.push(size);
            // Bits above the size must be ignored.
            Ok(data(0xffff_ffff_89ab_cdef))
        }
        other => Err(unexpected(other)),
    })?;
    expect(
        "the sizes",
        vec![AccessSize::Byte, AccessSize::Word, AccessSize::Dword],
        sizes,
    )?;
    machine.compare_reports(&[
        0x3333_44ef,
        0x1111_2222,
        0x3333_cdef,
        0x1111_2222,
        0x89ab_cdef,
        0,
    ])
}

fn string_writes(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    let guest = Guest::long(|a| {
        a.mov(dx, u32::from(PORT))?;
        a.mov(rsi, DATA)?;
        a.mov(ecx, 5)?;
        a.rep().outsb()?;
        a.mov(ecx, 2)?;
        a.rep().outsw()?;
        a.mov(ecx, 2)?;
        a.rep().outsd()?;
        a.mov(ecx, 0)?;
        a.rep().outsd()?;
        a.sub(rsi, i32::try_from(DATA).unwrap_or(0))?;
        report(a, esi)?;
        report(a, ecx)?;
        a.std()?;
        a.mov(dx, u32::from(PORT))?;
        a.mov(rsi, DATA + 2)?;
        a.mov(ecx, 2)?;
        a.rep().outsb()?;
        a.cld()?;
        done(a)
    })?;
    let bytes: Vec<u8> = (1..=17).collect();
    guest.put(DATA, &bytes)?;
    let mut machine = Machine::new(accelerator, &guest)?;
    let mut seen = Vec::new();
    machine.run_with(|_, exit| match exit {
        VcpuExit::PortWrite {
            port: PORT,
            size,
            value,
        } => {
            seen.push((size, value));
            Ok(RESUME)
        }
        other => Err(unexpected(other)),
    })?;
    let mut expected: Vec<(AccessSize, u32)> = (1..=5).map(|v| (AccessSize::Byte, v)).collect();
    expected.extend([
        (AccessSize::Word, 0x0706),
        (AccessSize::Word, 0x0908),
        (AccessSize::Dword, 0x0d0c_0b0a),
        (AccessSize::Dword, 0x1110_0f0e),
        (AccessSize::Byte, 3),
        (AccessSize::Byte, 2),
    ]);
    expect("the elements", expected, seen)?;
    machine.compare_reports(&[17, 0])
}

fn string_reads(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    // 5000 bytes cross a page and are more than KVM's page holds at once.
    const COUNT: u32 = 5000;
    let guest = Guest::long(|a| {
        a.mov(dx, u32::from(PORT))?;
        a.mov(rdi, DATA + 100)?;
        a.mov(ecx, COUNT)?;
        a.rep().insb()?;
        a.mov(ecx, 2)?;
        a.rep().insd()?;
        a.sub(rdi, i32::try_from(DATA).unwrap_or(0))?;
        report(a, edi)?;
        done(a)
    })?;
    let mut machine = Machine::new(accelerator, &guest)?;
    let mut next = 0_u32;
    machine.run_with(|_, exit| match exit {
        VcpuExit::PortRead { port: PORT, size } => {
            next += 1;
            Ok(data(match size {
                AccessSize::Byte => u64::from(next % 251),
                _ => 0xaabb_0000 + u64::from(next),
            }))
        }
        other => Err(unexpected(other)),
    })?;
    machine.compare_reports(&[100 + COUNT + 8])?;
    let mut bytes = vec![0; COUNT as usize + 8];
    guest
        .memory
        .read(favo_types::GuestAddress(DATA + 100), &mut bytes)?;
    let mut expected: Vec<u8> = (1..=COUNT).map(|n| (n % 251) as u8).collect();
    for n in 1..=2 {
        expected.extend((0xaabb_0000_u32 + COUNT + n).to_le_bytes());
    }
    let first_difference = bytes.iter().zip(&expected).position(|(a, b)| a != b);
    expect("the first byte that differs", None, first_difference)
}

fn mmio_writes(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    let guest = Guest::long(|a| {
        a.mov(rdi, MMIO)?;
        a.mov(rax, 0x8877_6655_4433_2211_u64)?;
        a.mov(byte_ptr(rdi), al)?;
        a.mov(word_ptr(rdi + 2), ax)?;
        a.mov(dword_ptr(rdi + 4), eax)?;
        a.mov(qword_ptr(rdi + 8), rax)?;
        a.mov(byte_ptr(rdi + 16), 0x7f)?;
        a.mov(dword_ptr(rdi + 20), 0x1234_5678)?;
        done(a)
    })?;
    let write = |offset, size, value| VcpuExit::MmioWrite {
        address: favo_types::GuestAddress(MMIO + offset),
        size,
        value,
    };
    collect(
        accelerator,
        &guest,
        &[
            write(0, AccessSize::Byte, 0x11),
            write(2, AccessSize::Word, 0x2211),
            write(4, AccessSize::Dword, 0x4433_2211),
            write(8, AccessSize::Qword, 0x8877_6655_4433_2211),
            write(16, AccessSize::Byte, 0x7f),
            write(20, AccessSize::Dword, 0x1234_5678),
        ],
    )
}

fn mmio_reads(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    let guest = Guest::long(|a| {
        a.mov(rdi, MMIO)?;
        a.mov(rax, u64::MAX)?;
        a.mov(al, byte_ptr(rdi))?;
        a.mov(rsi, rax)?;
        report(a, esi)?;
        a.mov(rax, u64::MAX)?;
        a.mov(ax, word_ptr(rdi + 2))?;
        a.mov(rsi, rax)?;
        report(a, esi)?;
        a.mov(rax, u64::MAX)?;
        a.mov(eax, dword_ptr(rdi + 4))?;
        a.mov(rsi, rax)?;
        report(a, esi)?;
        a.shr(rsi, 32)?;
        report(a, esi)?;
        a.mov(rsi, qword_ptr(rdi + 8))?;
        report(a, esi)?;
        a.shr(rsi, 32)?;
        report(a, esi)?;
        a.movzx(esi, byte_ptr(rdi + 1))?;
        report(a, esi)?;
        a.movsx(esi, word_ptr(rdi + 6))?;
        report(a, esi)?;
        done(a)
    })?;
    let mut machine = Machine::new(accelerator, &guest)?;
    let mut sizes = Vec::new();
    machine.run_with(|_, exit| match exit {
        VcpuExit::MmioRead { address, size } => {
            sizes.push((address.0 - MMIO, size.bytes()));
            Ok(data(0xf0e0_d0c0_b0a0_9080))
        }
        other => Err(unexpected(other)),
    })?;
    expect(
        "offsets and sizes",
        vec![(0, 1), (2, 2), (4, 4), (8, 8), (1, 1), (6, 2)],
        sizes,
    )?;
    machine.compare_reports(&[
        0xffff_ff80,
        0xffff_9080,
        0xb0a0_9080,
        0,
        0xb0a0_9080,
        0xf0e0_d0c0,
        0x80,
        0xffff_9080,
    ])
}

fn mmio_read_modify_write(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    let guest = Guest::long(|a| {
        a.mov(rdi, MMIO)?;
        a.mov(esi, 5)?;
        a.add(dword_ptr(rdi), esi)?;
        a.or(byte_ptr(rdi + 1), 0x80)?;
        a.mov(eax, 0x1111)?;
        a.xchg(dword_ptr(rdi + 8), eax)?;
        a.mov(esi, eax)?;
        report(a, esi)?;
        a.inc(qword_ptr(rdi + 16))?;
        a.pushfq()?;
        a.pop(rsi)?;
        a.and(esi, 0x40)?;
        report(a, esi)?;
        done(a)
    })?;
    let mut machine = Machine::new(accelerator, &guest)?;
    let mut device = [0_u8; 32];
    device[0] = 0xfe;
    device[8] = 7;
    device[16..24].copy_from_slice(&u64::MAX.to_le_bytes());
    machine.run_with(|_, exit| memory_device(&mut device, exit))?;
    machine.compare_reports(&[7, 0x40])?;
    let mut expected = [0_u8; 32];
    expected[..2].copy_from_slice(&[0x03, 0x81]);
    expected[8..10].copy_from_slice(&[0x11, 0x11]);
    expect("the device's bytes", expected, device)
}

/// A device that is plain memory at `MMIO`.
fn memory_device(bytes: &mut [u8], exit: VcpuExit) -> Result<Answer, Failure> {
    match exit {
        VcpuExit::MmioRead { address, size } => {
            let offset = (address.0 - MMIO) as usize;
            let mut value = [0; 8];
            value[..size.bytes()].copy_from_slice(&bytes[offset..offset + size.bytes()]);
            Ok(data(u64::from_le_bytes(value)))
        }
        VcpuExit::MmioWrite {
            address,
            size,
            value,
        } => {
            let offset = (address.0 - MMIO) as usize;
            bytes[offset..offset + size.bytes()]
                .copy_from_slice(&value.to_le_bytes()[..size.bytes()]);
            Ok(RESUME)
        }
        other => Err(unexpected(other)),
    }
}

fn mmio_string_copy(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    let guest = Guest::long(|a| {
        a.mov(rsi, MMIO)?;
        a.mov(rdi, DATA)?;
        a.mov(ecx, 24)?;
        a.rep().movsb()?;
        a.mov(rsi, DATA)?;
        a.mov(rdi, MMIO + 32)?;
        a.mov(ecx, 3)?;
        a.rep().movsq()?;
        a.mov(rdi, MMIO + 60)?;
        a.mov(eax, 0x5a5a_5a5a_u32)?;
        a.stosd()?;
        a.sub(rdi, i32::MAX)?;
        report_constant(a, 1)?;
        done(a)
    })?;
    let mut device: Vec<u8> = (0..64).collect();
    let mut machine = Machine::new(accelerator, &guest)?;
    machine.run_with(|_, exit| memory_device(&mut device, exit))?;
    machine.compare_reports(&[1])?;
    let mut expected: Vec<u8> = (0..64).collect();
    expected.copy_within(0..24, 32);
    expected[60..].fill(0x5a);
    expect("the device's bytes", expected, device)
}

fn mmio_across_pages(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    let guest = Guest::long(|a| {
        a.mov(rdi, MMIO + 0xffd)?;
        a.mov(rax, 0x8877_6655_4433_2211_u64)?;
        a.mov(qword_ptr(rdi), rax)?;
        a.mov(rsi, qword_ptr(rdi + 0x100))?;
        a.mov(esi, dword_ptr(rdi + 1))?;
        report(a, esi)?;
        a.mov(rsi, qword_ptr(rdi))?;
        report(a, esi)?;
        a.shr(rsi, 32)?;
        report(a, esi)?;
        done(a)
    })?;
    let mut device = vec![0; 0x1200];
    let mut machine = Machine::new(accelerator, &guest)?;
    machine.run_with(|_, exit| memory_device(&mut device, exit))?;
    expect(
        "the device's bytes",
        &[0, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0][..],
        &device[0xffc..0x1006],
    )?;
    machine.compare_reports(&[0x5544_3322, 0x4433_2211, 0x8877_6655])
}

fn across_the_end_of_ram(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    let guest = Guest::long(|a| {
        a.mov(rdi, RAM - 3)?;
        a.mov(rax, 0x8877_6655_4433_2211_u64)?;
        a.mov(qword_ptr(rdi), rax)?;
        a.mov(rsi, qword_ptr(rdi))?;
        report(a, esi)?;
        a.shr(rsi, 32)?;
        report(a, esi)?;
        done(a)
    })?;
    let mut beyond = [0_u8; 8];
    let mut machine = Machine::new(accelerator, &guest)?;
    machine.run_with(|_, exit| {
        let moved = match exit {
            VcpuExit::MmioRead { address, size } => VcpuExit::MmioRead {
                address: favo_types::GuestAddress(address.0.wrapping_sub(RAM) + MMIO),
                size,
            },
            VcpuExit::MmioWrite {
                address,
                size,
                value,
            } => VcpuExit::MmioWrite {
                address: favo_types::GuestAddress(address.0.wrapping_sub(RAM) + MMIO),
                size,
                value,
            },
            other => other,
        };
        match moved {
            VcpuExit::MmioRead { address, .. } | VcpuExit::MmioWrite { address, .. }
                if !(MMIO..MMIO + 8).contains(&address.0) =>
            {
                Err(unexpected(exit))
            }
            moved => memory_device(&mut beyond, moved),
        }
    })?;
    let mut below = [0; 3];
    guest
        .memory
        .read(favo_types::GuestAddress(RAM - 3), &mut below)?;
    expect("the end of RAM", [0x11, 0x22, 0x33], below)?;
    expect(
        "what lies beyond",
        [0x44, 0x55, 0x66, 0x77, 0x88, 0, 0, 0],
        beyond,
    )?;
    machine.compare_reports(&[0x4433_2211, 0x8877_6655])
}

fn read_must_be_answered(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    let guest = Guest::long(|a| {
        a.mov(dx, u32::from(PORT))?;
        a.in_(al, dx)?;
        a.movzx(esi, al)?;
        report(a, esi)?;
        done(a)
    })?;
    let mut machine = Machine::new(accelerator, &guest)?;
    let exit = machine.cpus[0].run(VcpuEntry::Resume)?;
    expect(
        "the exit",
        VcpuExit::PortRead {
            port: PORT,
            size: AccessSize::Byte,
        },
        exit,
    )?;
    let export = machine.cpus[0].call(|vcpu| vcpu.export_state())?;
    expect_invalid("an export in the middle of a read", export)?;
    let resume = machine.cpus[0].call(|vcpu| vcpu.run(VcpuEntry::Resume))?;
    expect_invalid("a read that is not answered", resume)?;
    let exit = machine.cpus[0].run(VcpuEntry::Data(0x42))?;
    expect(
        "the exit after the answer",
        VcpuExit::PortWrite {
            port: super::guest::REPORT,
            size: AccessSize::Dword,
            value: 0x42,
        },
        exit,
    )?;
    machine.expect_reports(&[])
}

fn expect_invalid<T: std::fmt::Debug>(
    what: &str,
    result: Result<T, AccelError>,
) -> Result<(), Failure> {
    match result {
        Err(AccelError::InvalidState(_)) => Ok(()),
        other => Err(Failure::mismatch(what, "InvalidState", other)),
    }
}

fn protected_mode(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    let guest = Guest::protected(|a| {
        a.mov(edi, MMIO as u32)?;
        a.mov(dword_ptr(edi), 0x1234_5678)?;
        a.mov(esi, dword_ptr(edi))?;
        report(a, esi)?;
        a.mov(esi, DATA as u32)?;
        a.mov(ecx, 3)?;
        a.mov(dx, u32::from(PORT))?;
        a.rep().outsb()?;
        done(a)
    })?;
    guest.put(DATA, b"abc")?;
    let mut device = vec![0; 8];
    let mut text = Vec::new();
    let mut machine = Machine::new(accelerator, &guest)?;
    machine.run_with(|_, exit| match exit {
        VcpuExit::PortWrite {
            port: PORT, value, ..
        } => {
            text.push(value as u8);
            Ok(RESUME)
        }
        other => memory_device(&mut device, other),
    })?;
    expect("the text", b"abc".to_vec(), text)?;
    machine.compare_reports(&[0x1234_5678])
}

fn real_mode(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    let guest = Guest::real(|a| {
        a.mov(dx, u32::from(PORT))?;
        a.mov(al, 0x41)?;
        a.out(dx, al)?;
        a.in_(ax, dx)?;
        a.movzx(esi, ax)?;
        report(a, esi)?;
        a.mov(ax, 0x2000)?;
        a.mov(ds, ax)?;
        a.mov(si, 0x10)?;
        a.mov(eax, dword_ptr(si))?;
        report(a, eax)?;
        done(a)
    })?;
    guest.put(0x2_0010, &0xcafe_f00d_u32.to_le_bytes())?;
    let mut machine = Machine::new(accelerator, &guest)?;
    machine.run_with(|_, exit| match exit {
        VcpuExit::PortWrite {
            port: PORT,
            size: AccessSize::Byte,
            value: 0x41,
        } => Ok(RESUME),
        VcpuExit::PortRead {
            port: PORT,
            size: AccessSize::Word,
        } => Ok(data(0x8001)),
        other => Err(unexpected(other)),
    })?;
    machine.compare_reports(&[0x8001, 0xcafe_f00d])
}
