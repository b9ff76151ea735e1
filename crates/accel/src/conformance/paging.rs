//! Paging: sizes, permissions, accessed and dirty bits, and what the processor
//! may remember.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use super::exceptions::{NO_USER_IO, open_to_user};
use super::guest::{
    ACCESSED, CODE, DATA, DIRTY, EXCEPTION, GLOBAL, Guest, NO_EXECUTE, PML4, PRESENT, USER,
    USER_CODE, USER_DATA, USER_STACK, WRITABLE, done, report, report_constant, sync,
};
use super::harness::{GIGABYTE_PAGES, Machine, NX, PCID, RESUME, SMAP, SMEP, unexpected};
use super::{Case, Failure, expect};
use crate::engine::{Accelerator, VcpuExit};

pub(super) const CASES: &[Case] = &[
    Case::new("paging/pages-of-4k-2m", small_and_large),
    Case::new("paging/pages-of-1g", gigabyte),
    Case::new("paging/accessed-and-dirty", accessed_and_dirty),
    Case::new("paging/write-protect", write_protect),
    Case::new("paging/user-pages", user_pages).excused(NO_USER_IO),
    Case::new("paging/no-execute", no_execute),
    Case::new("paging/smep", smep).excused(PERMISSIONS),
    Case::new("paging/smap", smap).excused(PERMISSIONS),
    Case::new("paging/reserved-bits", reserved_bits)
        .excused_on_tcg("it reports reserved bits without P in the error code"),
    Case::new("paging/invlpg", invlpg),
    Case::new("paging/cr3-switch", cr3_switch),
    Case::new("paging/global-pages", global_pages),
    Case::new("paging/pcid", pcid),
    Case::new("paging/access-across-two-pages", across_pages)
        .excused("its instruction emulator writes the first page before it checks the second"),
];

const PERMISSIONS: &str = "it does not enforce every permission";

/// Where cases map their pages.
const HERE: u64 = 0x4000_0000_0000;
const RW: u64 = PRESENT | WRITABLE;

/// Puts the place of a fault and where to go on into RBX and R12, and runs
/// `access` there; reports 0BADH if nothing happened.
fn faulting(
    a: &mut CodeAssembler,
    access: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Result<(), IcedError> {
    let mut fault = a.create_label();
    let mut after = a.create_label();
    a.lea(rbx, qword_ptr(fault))?;
    a.lea(r12, qword_ptr(after))?;
    a.set_label(&mut fault)?;
    access(a)?;
    report_constant(a, 0xbad)?;
    a.set_label(&mut after)?;
    a.nop()
}

fn small_and_large(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    let mut guest = Guest::long(|a| {
        a.mov(rdi, HERE + 0x123)?;
        a.mov(dword_ptr(rdi), 0x1111)?;
        a.mov(rdi, HERE + 0x1123)?;
        a.mov(dword_ptr(rdi), 0x2222)?;
        // DATA through a large page.
        a.mov(rdi, HERE + (2 << 20) + 0x4000)?;
        a.mov(dword_ptr(rdi), 0x3333)?;
        a.mov(esi, dword_ptr(rdi - 0x4000 + 0x2123))?;
        report(a, esi)?;
        done(a)
    })?;
    // Two neighbours, the other way round in memory.
    guest.map(HERE, DATA + 0x3000, 4096, RW)?;
    guest.map(HERE + 0x1000, DATA + 0x2000, 4096, RW)?;
    guest.map(HERE + (2 << 20), DATA, 2 << 20, RW)?;
    let mut machine = Machine::new(accelerator, &guest)?;
    machine.expect_reports(&[0x2222])?;
    expect("through 4K", 0x1111, guest.u64_at(DATA + 0x3123)? & 0xffff)?;
    expect("through 2M", 0x3333, guest.u64_at(DATA + 0x4000)?)
}

fn gigabyte(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    GIGABYTE_PAGES.require(accelerator)?;
    let mut guest = Guest::long(|a| {
        a.mov(rdi, HERE + DATA)?;
        a.mov(dword_ptr(rdi), 0x4444)?;
        done(a)
    })?;
    let entry = guest.map(HERE, 0, 1 << 30, RW)?;
    Machine::new(accelerator, &guest)?.expect_reports(&[])?;
    expect("through 1G", 0x4444, guest.u64_at(DATA)?)?;
    let bits = guest.u64_at(entry)? & (ACCESSED | DIRTY);
    expect("accessed and dirty", ACCESSED | DIRTY, bits)
}

fn accessed_and_dirty(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    let mut guest = Guest::long(|a| {
        a.mov(rdi, HERE)?;
        a.mov(eax, dword_ptr(rdi))?;
        a.mov(dword_ptr(rdi + 0x1000), eax)?;
        sync(a, 1)?;
        // Read first, then written: dirty must still be set.
        a.mov(rdi, HERE)?;
        a.mov(dword_ptr(rdi), eax)?;
        done(a)
    })?;
    let mut entries = Vec::new();
    for page in 0..3 {
        entries.push(guest.map(HERE + 0x1000 * page, DATA + 0x1000 * page, 4096, RW)?);
    }
    let mut machine = Machine::new(accelerator, &guest)?;
    let bits = |entry: u64| Ok::<_, Failure>(guest.u64_at(entry)? & (ACCESSED | DIRTY));
    machine.run_with(|_, exit| match exit {
        VcpuExit::PortWrite {
            port: super::guest::SYNC,
            ..
        } => {
            expect("after a read", ACCESSED, bits(entries[0])?)?;
            expect("after a write", ACCESSED | DIRTY, bits(entries[1])?)?;
            expect("untouched", 0, bits(entries[2])?)?;
            Ok(RESUME)
        }
        other => Err(unexpected(other)),
    })?;
    expect(
        "after a read and a write",
        ACCESSED | DIRTY,
        bits(entries[0])?,
    )?;
    // The entries above are accessed, and never dirty.
    let top = guest.u64_at(PML4 + 8 * (HERE >> 39 & 0x1ff))?;
    expect("the top entry", ACCESSED, top & (ACCESSED | DIRTY))
}

fn write_protect(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    let mut guest = Guest::long(|a| {
        a.mov(rdi, HERE)?;
        faulting(a, |a| a.mov(dword_ptr(rdi), 1))?;
        // Without CR0.WP the kernel writes where it likes.
        a.mov(rax, cr0)?;
        a.btr(rax, 16)?;
        a.mov(cr0, rax)?;
        a.mov(dword_ptr(rdi), 0x5555)?;
        a.mov(rax, cr0)?;
        a.bts(rax, 16)?;
        a.mov(cr0, rax)?;
        faulting(a, |a| a.mov(dword_ptr(rdi), 2))?;
        a.mov(esi, dword_ptr(rdi))?;
        report(a, esi)?;
        done(a)
    })?;
    guest.map(HERE, DATA, 4096, PRESENT)?;
    let fault = [EXCEPTION | 14, 3, 0, HERE as u32];
    Machine::new(accelerator, &guest)?.expect_reports(&[&fault[..], &fault, &[0x5555]].concat())
}

fn to_user_mode(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut user = a.create_label();
    a.push(i32::from(USER_DATA))?;
    a.mov(rax, USER_STACK)?;
    a.push(rax)?;
    a.push(0x3002)?;
    a.push(i32::from(USER_CODE))?;
    a.lea(rax, qword_ptr(user))?;
    a.push(rax)?;
    a.iretq()?;
    a.set_label(&mut user)?;
    a.nop()
}

fn user_pages(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    let mut guest = Guest::long(|a| {
        to_user_mode(a)?;
        a.mov(rdi, HERE)?;
        a.mov(esi, dword_ptr(rdi))?;
        report(a, esi)?;
        faulting(a, |a| a.mov(dword_ptr(rdi), 1))?;
        faulting(a, |a| a.mov(esi, dword_ptr(rdi + 0x1000)))?;
        done(a)
    })?;
    open_to_user(&mut guest)?;
    guest.map(HERE, DATA, 4096, PRESENT | USER)?;
    guest.map(HERE + 0x1000, DATA, 4096, RW)?;
    guest.put(DATA, &0x6666_u32.to_le_bytes())?;
    let low = HERE as u32;
    Machine::new(accelerator, &guest)?.expect_reports(&[
        0x6666,
        EXCEPTION | 14,
        7,
        0,
        low,
        EXCEPTION | 14,
        5,
        0,
        low + 0x1000,
    ])
}

fn no_execute(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    NX.require(accelerator)?;
    let mut guest = Guest::long(|a| {
        // RET there, through a page that allows it.
        a.mov(rdi, HERE + 0x1000)?;
        a.call(rdi)?;
        report_constant(a, 1)?;
        a.mov(rdi, HERE)?;
        faulting_at_target(a)?;
        done(a)
    })?;
    guest.put(DATA, &[0xc3])?;
    guest.map(HERE, DATA, 4096, RW | NO_EXECUTE)?;
    guest.map(HERE + 0x1000, DATA, 4096, RW)?;
    guest.state.control.efer |= 1 << 11;
    Machine::new(accelerator, &guest)?.expect_reports(&[1, EXCEPTION | 14, 0x11, 0, HERE as u32])
}

/// Jumps to RDI, where the fetch faults.
fn faulting_at_target(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut after = a.create_label();
    a.mov(rbx, rdi)?;
    a.lea(r12, qword_ptr(after))?;
    a.jmp(rdi)?;
    a.set_label(&mut after)?;
    a.nop()
}

fn smep(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    SMEP.require(accelerator)?;
    let mut guest = Guest::long(|a| {
        a.mov(rdi, HERE)?;
        a.mov(esi, dword_ptr(rdi))?;
        faulting_at_target(a)?;
        done(a)
    })?;
    guest.map(HERE, DATA, 4096, RW | USER)?;
    guest.state.control.cr4 |= 1 << 20;
    Machine::new(accelerator, &guest)?.expect_reports(&[EXCEPTION | 14, 0x11, 0, HERE as u32])
}

fn smap(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    SMAP.require(accelerator)?;
    let mut guest = Guest::long(|a| {
        a.mov(rdi, HERE)?;
        faulting(a, |a| a.mov(esi, dword_ptr(rdi)))?;
        a.stac()?;
        a.mov(esi, dword_ptr(rdi))?;
        report(a, esi)?;
        a.clac()?;
        faulting(a, |a| a.mov(dword_ptr(rdi), 1))?;
        done(a)
    })?;
    guest.map(HERE, DATA, 4096, RW | USER)?;
    guest.put(DATA, &0x7777_u32.to_le_bytes())?;
    guest.state.control.cr4 |= 1 << 21;
    let fault = |error| [EXCEPTION | 14, error, 0, HERE as u32];
    Machine::new(accelerator, &guest)?
        .expect_reports(&[&fault(1)[..], &[0x7777], &fault(3)].concat())
}

fn reserved_bits(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    // Without EFER.NXE bit 63 is reserved; so is bit 7 of a top-level entry.
    let mut guest = Guest::long(|a| {
        a.mov(rdi, HERE)?;
        faulting(a, |a| a.mov(esi, dword_ptr(rdi)))?;
        a.mov(rdi, 0x2000_0000_0000_u64)?;
        faulting(a, |a| a.mov(esi, dword_ptr(rdi)))?;
        done(a)
    })?;
    guest.map(HERE, DATA, 4096, RW | NO_EXECUTE)?;
    guest.map(0x2000_0000_0000, DATA, 4096, RW)?;
    let top = PML4 + 8 * (0x2000_0000_0000_u64 >> 39);
    guest.put_u64(top, guest.u64_at(top)? | 1 << 7)?;
    Machine::new(accelerator, &guest)?.expect_reports(&[
        EXCEPTION | 14,
        9,
        0,
        HERE as u32,
        EXCEPTION | 14,
        9,
        0,
        0,
    ])
}

/// Writes a page table entry from the guest; changes RAX and RCX.
fn set_entry(a: &mut CodeAssembler, entry: u64, value: u64) -> Result<(), IcedError> {
    a.mov(rcx, entry)?;
    a.mov(rax, value)?;
    a.mov(qword_ptr(rcx), rax)
}

/// Two pages of data, 1 and 2 in their first words, and a page mapped to the
/// first at `HERE`.
fn two_pages(
    flags: u64,
    code: impl FnOnce(&mut CodeAssembler, u64) -> Result<(), IcedError>,
) -> Result<Guest, Failure> {
    let mut guest = Guest::long(done)?;
    let entry = guest.map(HERE, DATA, 4096, RW | flags)?;
    guest.put(DATA, &1_u32.to_le_bytes())?;
    guest.put(DATA + 0x1000, &2_u32.to_le_bytes())?;
    guest.code(64, CODE, |a| code(a, entry))?;
    Ok(guest)
}

fn read_here(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(rdi, HERE)?;
    a.mov(esi, dword_ptr(rdi))?;
    report(a, esi)
}

fn invlpg(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    let guest = two_pages(0, |a, entry| {
        read_here(a)?;
        set_entry(a, entry, (DATA + 0x1000) | RW)?;
        a.mov(rdi, HERE)?;
        a.invlpg(ptr(rdi))?;
        read_here(a)?;
        // Taken away altogether.
        set_entry(a, entry, 0)?;
        a.invlpg(ptr(rdi))?;
        faulting(a, |a| a.mov(esi, dword_ptr(rdi)))?;
        done(a)
    })?;
    Machine::new(accelerator, &guest)?.expect_reports(&[1, 2, EXCEPTION | 14, 0, 0, HERE as u32])
}

fn cr3_switch(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    let mut guest = two_pages(0, |a, _| done(a))?;
    // A second root: the same low half, another page at HERE.
    let other = guest.table();
    guest.put_u64(other, guest.u64_at(PML4)?)?;
    guest.map_in(other, HERE, DATA + 0x1000, 4096, RW)?;
    guest.code(64, CODE, |a| {
        read_here(a)?;
        a.mov(rax, other)?;
        a.mov(cr3, rax)?;
        read_here(a)?;
        a.mov(rax, PML4)?;
        a.mov(cr3, rax)?;
        read_here(a)?;
        a.mov(rsi, cr3)?;
        report(a, esi)?;
        done(a)
    })?;
    Machine::new(accelerator, &guest)?.expect_reports(&[1, 2, 1, PML4 as u32])
}

fn global_pages(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    // A global page may survive a CR3 write; toggling CR4.PGE drops it.
    let mut guest = two_pages(GLOBAL, |a, entry| {
        read_here(a)?;
        set_entry(a, entry, (DATA + 0x1000) | RW | GLOBAL)?;
        a.mov(rax, cr4)?;
        a.btr(rax, 7)?;
        a.mov(cr4, rax)?;
        a.bts(rax, 7)?;
        a.mov(cr4, rax)?;
        read_here(a)?;
        done(a)
    })?;
    guest.state.control.cr4 |= 1 << 7;
    Machine::new(accelerator, &guest)?.expect_reports(&[1, 2])
}

fn pcid(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    PCID.require(accelerator)?;
    let mut guest = two_pages(0, |a, _| done(a))?;
    let other = guest.table();
    guest.put_u64(other, guest.u64_at(PML4)?)?;
    guest.map_in(other, HERE, DATA + 0x1000, 4096, RW)?;
    guest.code(64, CODE, |a| {
        read_here(a)?;
        a.mov(rax, other | 5)?;
        a.mov(cr3, rax)?;
        read_here(a)?;
        // Back without a flush: bit 63 is not kept.
        a.mov(rax, PML4 | 1 << 63)?;
        a.mov(cr3, rax)?;
        read_here(a)?;
        a.mov(rsi, cr3)?;
        report(a, esi)?;
        a.shr(rsi, 32)?;
        report(a, esi)?;
        a.mov(rax, other | 5)?;
        a.mov(cr3, rax)?;
        read_here(a)?;
        done(a)
    })?;
    guest.state.control.cr4 |= 1 << 17;
    Machine::new(accelerator, &guest)?.expect_reports(&[1, 2, 1, PML4 as u32, 0, 2])
}

fn across_pages(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    let mut guest = Guest::long(|a| {
        a.mov(rdi, HERE + 0xffd)?;
        a.mov(rax, 0x8877_6655_4433_2211_u64)?;
        a.mov(qword_ptr(rdi), rax)?;
        a.mov(rsi, qword_ptr(rdi))?;
        report(a, esi)?;
        // The second page is missing: nothing of the write may be seen.
        a.mov(rdi, HERE + 0x1ffd)?;
        faulting(a, |a| a.mov(qword_ptr(rdi), rax))?;
        a.mov(esi, dword_ptr(rdi - 1))?;
        report(a, esi)?;
        done(a)
    })?;
    guest.map(HERE, DATA + 0x3000, 4096, RW)?;
    guest.map(HERE + 0x1000, DATA + 0x2000, 4096, RW)?;
    let mut machine = Machine::new(accelerator, &guest)?;
    machine.expect_reports(&[0x4433_2211, EXCEPTION | 14, 2, 0, (HERE + 0x2000) as u32, 0])?;
    expect(
        "the first page",
        0x33_2211,
        guest.u64_at(DATA + 0x3ffd)? & 0xff_ffff,
    )?;
    expect(
        "the second page",
        0x88_7766_5544,
        guest.u64_at(DATA + 0x2000)?,
    )
}
