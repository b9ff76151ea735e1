//! Exceptions: that they come, with the right error code, at the right
//! instruction, and that everything before it counts.

use iced_x86::code_asm::*;

use super::guest::{
    DATA, EXCEPTION, EXTRA_CODE, GDT, Guest, IDT, KERNEL_CODE, PRESENT, STACK, TSS, USER,
    USER_CODE, USER_DATA, USER_STACK, WRITABLE, done, report, report_constant, sync,
};
use super::harness::{Machine, unexpected};
use super::{Case, Failure, expect};
use crate::engine::{Accelerator, VcpuEntry, VcpuExit};
use crate::state::PendingException;

pub(super) const CASES: &[Case] = &[
    Case::new("exceptions/divide-error", divide_error),
    Case::new("exceptions/undefined-instruction", undefined_instruction),
    Case::new("exceptions/general-protection", general_protection),
    Case::new("exceptions/page-fault", page_fault),
    Case::new("exceptions/breakpoint-is-a-trap", breakpoint).excused(NO_INT),
    Case::new("exceptions/software-interrupt", software_interrupt).excused(NO_INT),
    Case::new("exceptions/single-step", single_step),
    Case::new(
        "exceptions/breakpoint-on-execution",
        breakpoint_on_execution,
    ),
    Case::new("exceptions/breakpoint-on-data", breakpoint_on_data).excused(NO_DATA_BREAKPOINTS),
    Case::new("exceptions/from-user-mode", from_user_mode).excused(NO_USER_IO),
    Case::new("exceptions/double-fault", double_fault)
        .excused_on_tcg("an exception that KVM injects does not merge into a double fault"),
    Case::new("exceptions/triple-fault-shuts-down", triple_fault),
    Case::new("exceptions/stack-switch-by-ist", interrupt_stack_table),
    Case::new("exceptions/pending-at-import", pending_at_import),
    Case::new("exceptions/protected-mode-segment-limit", segment_limit)
        .excused_on_tcg("it does not check segment limits"),
    Case::new("exceptions/real-mode-interrupt", real_mode_interrupt),
    Case::new("exceptions/syscall-and-sysret", syscall_and_sysret).excused(NO_USER_IO),
];

const NO_INT: &str = "its instruction emulator knows INT only in real mode";
pub(super) const NO_USER_IO: &str = "it refuses I/O after ring 3 was entered, whatever IOPL says";
const NO_DATA_BREAKPOINTS: &str = "its instruction emulator ignores data breakpoints";

/// CR2 as it is when nothing set it.
const NO_CR2: u32 = 0;

fn divide_error(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    let guest = Guest::long(|a| {
        let mut fault = a.create_label();
        let mut second = a.create_label();
        let mut after = a.create_label();
        let mut end = a.create_label();
        a.lea(rbx, qword_ptr(fault))?;
        a.lea(r12, qword_ptr(after))?;
        a.xor(edx, edx)?;
        a.mov(eax, 7)?;
        a.xor(ecx, ecx)?;
        a.set_label(&mut fault)?;
        a.div(ecx)?;
        report_constant(a, 0xbad)?;
        a.set_label(&mut after)?;
        // Nothing was committed.
        report(a, eax)?;
        a.lea(rbx, qword_ptr(second))?;
        a.lea(r12, qword_ptr(end))?;
        // The most negative number by −1 does not fit either.
        a.mov(eax, 0x8000_0000_u32)?;
        a.cdq()?;
        a.mov(ecx, -1)?;
        a.set_label(&mut second)?;
        a.idiv(ecx)?;
        report_constant(a, 0xbad)?;
        a.set_label(&mut end)?;
        done(a)
    })?;
    Machine::new(accelerator, &guest)?
        .expect_reports(&[EXCEPTION, 0, 0, NO_CR2, 7, EXCEPTION, 0, 0, NO_CR2])
}

fn undefined_instruction(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    let guest = Guest::long(|a| {
        let mut fault = a.create_label();
        let mut end = a.create_label();
        a.lea(rbx, qword_ptr(fault))?;
        a.lea(r12, qword_ptr(end))?;
        a.set_label(&mut fault)?;
        a.ud2()?;
        a.set_label(&mut end)?;
        done(a)
    })?;
    Machine::new(accelerator, &guest)?.expect_reports(&[EXCEPTION | 6, 0, 0, NO_CR2])
}

fn general_protection(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    let guest = Guest::long(|a| {
        // A selector beyond the GDT, a non-canonical address, an unknown MSR,
        // a reserved bit of CR4.
        let mut faults = Vec::new();
        for kind in 0..4 {
            let mut fault = a.create_label();
            let mut after = a.create_label();
            a.lea(rbx, qword_ptr(fault))?;
            a.lea(r12, qword_ptr(after))?;
            a.mov(ecx, 0x1234_0000)?;
            a.mov(rdi, 0x8000_0000_0000_0000_u64)?;
            a.mov(eax, 0x78)?;
            a.mov(rsi, cr4)?;
            a.bts(rsi, 15)?;
            a.set_label(&mut fault)?;
            match kind {
                0 => a.mov(es, ax)?,
                1 => a.mov(rax, qword_ptr(rdi))?,
                2 => a.rdmsr()?,
                _ => a.mov(cr4, rsi)?,
            }
            report_constant(a, 0xbad)?;
            a.set_label(&mut after)?;
            faults.push(kind);
        }
        done(a)
    })?;
    let fault = |error| [EXCEPTION | 13, error, 0, NO_CR2];
    Machine::new(accelerator, &guest)?
        .expect_reports(&[fault(0x78), fault(0), fault(0), fault(0)].concat())
}

fn page_fault(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    const ABSENT: u64 = 0x4000_0000_1000;
    const READ_ONLY: u64 = 0x4000_0000_2000;
    let mut guest = Guest::long(|a| {
        for kind in 0..4 {
            let mut fault = a.create_label();
            let mut after = a.create_label();
            a.lea(rbx, qword_ptr(fault))?;
            a.lea(r12, qword_ptr(after))?;
            a.mov(rdi, if kind == 2 { READ_ONLY } else { ABSENT })?;
            a.mov(esi, 0x77)?;
            if kind == 3 {
                // A fetch: the fault is at the target itself.
                a.mov(rbx, ABSENT)?;
            }
            a.set_label(&mut fault)?;
            match kind {
                0 => a.mov(rsi, qword_ptr(rdi))?,
                1 => a.mov(qword_ptr(rdi + 8), rsi)?,
                2 => a.add(dword_ptr(rdi), 1)?,
                _ => a.jmp(rdi)?,
            }
            report_constant(a, 0xbad)?;
            a.set_label(&mut after)?;
            report(a, esi)?;
        }
        done(a)
    })?;
    guest.map(READ_ONLY, DATA, 4096, PRESENT)?;
    let mut machine = Machine::new(accelerator, &guest)?;
    machine.run_with(|_, exit| Err(unexpected(exit)))?;
    // Whether a fetch says so in bit 4 depends on NX and SMEP being enabled
    // (SDM vol. 3, 4.7); they are not.
    let fault = |error, address| [EXCEPTION | 14, error, 0, address, 0x77];
    machine.compare_reports(
        &[
            fault(0, ABSENT as u32),
            fault(2, ABSENT as u32 + 8),
            fault(3, READ_ONLY as u32),
            fault(0, ABSENT as u32),
        ]
        .concat(),
    )
}

fn breakpoint(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    let guest = Guest::long(|a| {
        let mut after = a.create_label();
        let mut end = a.create_label();
        a.lea(rbx, qword_ptr(after))?;
        a.lea(r12, qword_ptr(end))?;
        a.int3()?;
        a.set_label(&mut after)?;
        report_constant(a, 0xbad)?;
        a.set_label(&mut end)?;
        done(a)
    })?;
    Machine::new(accelerator, &guest)?.expect_reports(&[EXCEPTION | 3, 0, 0, NO_CR2])
}

fn software_interrupt(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    let guest = Guest::long(|a| {
        a.lea(rbp, qword_ptr(rsp))?;
        a.int(0x80)?;
        a.sub(rbp, rsp)?;
        report(a, ebp)?;
        done(a)
    })?;
    // The handler finds IF clear, RSP aligned to 16 and the frame in order.
    guest.code(64, EXTRA_CODE, |a| {
        a.pushfq()?;
        a.pop(rsi)?;
        a.and(esi, 0x200)?;
        report(a, esi)?;
        a.mov(esi, esp)?;
        a.and(esi, 0xf)?;
        report(a, esi)?;
        a.mov(esi, dword_ptr(rsp + 8))?;
        report(a, esi)?;
        a.iretq()
    })?;
    guest.gate(0x80, EXTRA_CODE, 0)?;
    // Five quadwords below a multiple of 16.
    Machine::new(accelerator, &guest)?.expect_reports(&[0, 8, u32::from(KERNEL_CODE), 0])
}

/// Reports DR6 and RIP − RBX, clears DR6 and returns.
fn debug_handler(guest: &Guest, clear_trap_flag_after: u32) -> Result<(), Failure> {
    guest.code(64, EXTRA_CODE, |a| {
        let mut go_on = a.create_label();
        a.push(rax)?;
        a.push(rdx)?;
        a.mov(rax, dr6)?;
        a.and(eax, 0xe00f)?;
        report(a, eax)?;
        a.mov(rax, qword_ptr(rsp + 16))?;
        a.sub(rax, rbx)?;
        report(a, eax)?;
        a.mov(eax, 0xffff_0ff0_u32)?;
        a.mov(dr6, rax)?;
        a.inc(r13)?;
        a.cmp(r13, i32::try_from(clear_trap_flag_after).unwrap_or(0))?;
        a.jne(go_on)?;
        a.and(dword_ptr(rsp + 32), !0x100_i32)?;
        a.set_label(&mut go_on)?;
        // RF: a breakpoint on this very instruction must not come again.
        a.or(dword_ptr(rsp + 32), 0x1_0000)?;
        a.pop(rdx)?;
        a.pop(rax)?;
        a.iretq()
    })?;
    guest.gate(1, EXTRA_CODE, 0)
}

fn single_step(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    let guest = Guest::long(|a| {
        let mut start = a.create_label();
        a.lea(rbx, qword_ptr(start))?;
        a.xor(r13d, r13d)?;
        a.pushfq()?;
        a.or(dword_ptr(rsp), 0x100)?;
        a.popfq()?;
        // The trap comes after the instruction that follows POPF.
        a.set_label(&mut start)?;
        a.nop()?;
        a.nop()?;
        a.mov(rsi, 5_u64)?;
        a.nop()?;
        done(a)
    })?;
    debug_handler(&guest, 3)?;
    let seen = |offset| [0x4000, offset];
    // MOV RSI, 5 is encoded in 7 bytes.
    let mut machine = Machine::new(accelerator, &guest)?;
    machine.run_with(|_, exit| Err(unexpected(exit)))?;
    let length = machine.reports.get(5).map_or(0, |end| end.wrapping_sub(2));
    expect("the length of MOV", true, matches!(length, 5 | 7 | 10))?;
    machine.compare_reports(&[seen(1), seen(2), seen(2 + length)].concat())
}

fn breakpoint_on_execution(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    let guest = Guest::long(|a| {
        let mut target = a.create_label();
        a.lea(rbx, qword_ptr(target))?;
        a.xor(r13d, r13d)?;
        a.mov(dr0, rbx)?;
        a.mov(eax, 0x401)?;
        a.mov(dr7, rax)?;
        a.mov(esi, 1)?;
        a.set_label(&mut target)?;
        a.inc(esi)?;
        report(a, esi)?;
        a.mov(rax, dr7)?;
        report(a, eax)?;
        done(a)
    })?;
    debug_handler(&guest, 0)?;
    // A fault: at the instruction, before it runs.
    Machine::new(accelerator, &guest)?.expect_reports(&[1, 0, 2, 0x401])
}

fn breakpoint_on_data(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    let guest = Guest::long(|a| {
        let mut after = a.create_label();
        a.lea(rbx, qword_ptr(after))?;
        a.xor(r13d, r13d)?;
        a.mov(rdi, DATA + 0x40)?;
        a.mov(dr1, rdi)?;
        // DR1: local, on writes, four bytes.
        a.mov(eax, 0x00d0_0404)?;
        a.mov(dr7, rax)?;
        a.mov(esi, dword_ptr(rdi))?;
        a.mov(byte_ptr(rdi + 4), 1)?;
        a.mov(byte_ptr(rdi + 3), 2)?;
        a.set_label(&mut after)?;
        a.mov(esi, dword_ptr(rdi))?;
        report(a, esi)?;
        done(a)
    })?;
    debug_handler(&guest, 0)?;
    // A trap: after the write.
    Machine::new(accelerator, &guest)?.expect_reports(&[2, 0, 0x0200_0000])
}

/// Goes to ring 3 at the label that `code` sets first, with I/O allowed.
fn enter_user_mode(a: &mut CodeAssembler, target: CodeLabel) -> Result<(), iced_x86::IcedError> {
    a.push(i32::from(USER_DATA))?;
    a.mov(rax, USER_STACK)?;
    a.push(rax)?;
    a.push(0x3002)?;
    a.push(i32::from(USER_CODE))?;
    a.lea(rax, qword_ptr(target))?;
    a.push(rax)?;
    a.iretq()
}

/// Opens code, data and the user stack to ring 3.
pub(super) fn open_to_user(guest: &mut Guest) -> Result<(), Failure> {
    for page in [0, DATA] {
        guest.map(page, page, 2 << 20, PRESENT | WRITABLE | USER)?;
    }
    Ok(())
}

fn from_user_mode(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    const KERNEL_PAGE: u64 = 0x30_0000;
    let mut guest = Guest::long(|a| {
        let mut user = a.create_label();
        let mut fault = a.create_label();
        let mut after = a.create_label();
        let mut privileged = a.create_label();
        let mut end = a.create_label();
        enter_user_mode(a, user)?;
        a.set_label(&mut user)?;
        a.lea(rbx, qword_ptr(fault))?;
        a.lea(r12, qword_ptr(after))?;
        a.mov(rdi, 0x4000_0000_0000_u64)?;
        a.set_label(&mut fault)?;
        a.mov(eax, dword_ptr(rdi))?;
        report_constant(a, 0xbad)?;
        a.set_label(&mut after)?;
        a.mov(esi, cs)?;
        report(a, esi)?;
        a.lea(rbx, qword_ptr(privileged))?;
        a.lea(r12, qword_ptr(end))?;
        a.set_label(&mut privileged)?;
        a.mov(rax, cr0)?;
        report_constant(a, 0xbad)?;
        a.set_label(&mut end)?;
        done(a)
    })?;
    open_to_user(&mut guest)?;
    guest.map(0x4000_0000_0000, KERNEL_PAGE, 4096, PRESENT | WRITABLE)?;
    Machine::new(accelerator, &guest)?.expect_reports(&[
        EXCEPTION | 14,
        5,
        0,
        0,
        u32::from(USER_CODE),
        EXCEPTION | 13,
        0,
        0,
        0,
    ])
}

fn double_fault(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    // The page fault's gate is not present: a contributory fault on the way to
    // a page fault's handler is a double fault (SDM vol. 3, table 6-5).
    let guest = Guest::long(|a| {
        let mut fault = a.create_label();
        let mut end = a.create_label();
        a.lea(rbx, qword_ptr(fault))?;
        a.lea(r12, qword_ptr(end))?;
        a.mov(rdi, 0x4000_0000_3000_u64)?;
        a.set_label(&mut fault)?;
        a.mov(eax, dword_ptr(rdi))?;
        a.set_label(&mut end)?;
        done(a)
    })?;
    guest.put_u64(IDT + 16 * 14, 0)?;
    Machine::new(accelerator, &guest)?.expect_reports(&[EXCEPTION | 8, 0, 0, 0x3000])
}

fn triple_fault(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    let guest = Guest::long(|a| {
        a.lidt(ptr(DATA))?;
        a.ud2()?;
        done(a)
    })?;
    // An empty IDT: every delivery faults.
    guest.put(DATA, &[0; 10])?;
    let machine = Machine::new(accelerator, &guest)?;
    let exit = machine.cpus[0].run(VcpuEntry::Resume)?;
    expect("the exit", VcpuExit::Shutdown, exit)?;
    // And it stays so until a new state is loaded.
    let exit = machine.cpus[0].run(VcpuEntry::Resume)?;
    expect("the next exit", VcpuExit::Shutdown, exit)?;
    guest.code(64, super::guest::CODE, done)?;
    machine.cpus[0].import(&guest.state)?;
    match machine.cpus[0].run(VcpuEntry::Resume)? {
        VcpuExit::PortWrite {
            port: super::guest::DONE,
            ..
        } => Ok(()),
        other => Err(unexpected(other)),
    }
}

fn interrupt_stack_table(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    const IST: u64 = 0x5_f000;
    let guest = Guest::long(|a| {
        a.ud2()?;
        done(a)
    })?;
    guest.code(64, EXTRA_CODE, |a| {
        a.mov(rsi, rsp)?;
        report(a, esi)?;
        a.mov(rsi, qword_ptr(rsp + 24))?;
        report(a, esi)?;
        a.add(qword_ptr(rsp), 2)?;
        a.iretq()
    })?;
    guest.gate(6, EXTRA_CODE, 0)?;
    guest.put(IDT + 16 * 6 + 4, &[1])?;
    guest.put_u64(TSS + 0x24, IST)?;
    Machine::new(accelerator, &guest)?.expect_reports(&[IST as u32 - 40, STACK as u32])
}

fn pending_at_import(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    let mut guest = Guest::long(|a| {
        a.nop()?;
        done(a)
    })?;
    guest.state.events.exception = Some(PendingException {
        vector: 13,
        error_code: Some(0x18),
    });
    guest.state.general.rbx = super::guest::CODE;
    guest.state.general.r12 = super::guest::CODE;
    Machine::new(accelerator, &guest)?.expect_reports(&[EXCEPTION | 13, 0x18, 0, 0])
}

fn segment_limit(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    const FAULT: u64 = EXTRA_CODE + 0x1000;
    // Selector 40H: data at DATA, 256 bytes.
    let guest = Guest::protected(|a| {
        a.mov(eax, 0x40)?;
        a.mov(fs, eax)?;
        a.mov(edi, 0xfc)?;
        a.mov(esi, dword_ptr(edi).fs())?;
        report(a, esi)?;
        a.inc(edi)?;
        a.jmp(FAULT)
    })?;
    guest.code(32, FAULT, |a| {
        a.mov(esi, dword_ptr(edi).fs())?;
        report_constant(a, 0xbad)
    })?;
    guest.code(32, EXTRA_CODE, |a| {
        a.pop(esi)?;
        report(a, esi)?;
        a.pop(esi)?;
        report(a, esi)?;
        done(a)
    })?;
    guest.gate_32(13, EXTRA_CODE)?;
    guest.put_u64(GDT + 0x40, 0x0040_9300_0000_00ff | (DATA & 0xff_ffff) << 16)?;
    guest.put(DATA + 0xfc, &0x600d_600d_u32.to_le_bytes())?;
    Machine::new(accelerator, &guest)?.expect_reports(&[0x600d_600d, 0, FAULT as u32])
}

fn real_mode_interrupt(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    let guest = Guest::real(|a| {
        a.mov(si, 1)?;
        a.int(0x21)?;
        report(a, esi)?;
        sync(a, 1)?;
        done(a)
    })?;
    // Vector 21H at segment 0A00H, offset 10H.
    guest.put(4 * 0x21, &[0x10, 0, 0, 0x0a])?;
    guest.code(16, 0xa010, |a| {
        a.add(si, 0x41)?;
        a.mov(cx, cs)?;
        a.movzx(ecx, cx)?;
        report(a, ecx)?;
        a.iret()
    })?;
    let mut machine = Machine::new(accelerator, &guest)?;
    expect("the step", 1, machine.run_to_sync()?)?;
    machine.expect_reports(&[0x0a00, 0x42])
}

fn syscall_and_sysret(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    let mut guest = Guest::long(|a| {
        let mut user = a.create_label();
        enter_user_mode(a, user)?;
        a.set_label(&mut user)?;
        a.mov(edi, 5)?;
        a.syscall()?;
        report(a, edi)?;
        a.mov(esi, cs)?;
        report(a, esi)?;
        a.pushfq()?;
        a.pop(rsi)?;
        a.and(esi, 0x3001)?;
        report(a, esi)?;
        done(a)
    })?;
    open_to_user(&mut guest)?;
    guest.code(64, EXTRA_CODE, |a| {
        a.mov(esi, cs)?;
        report(a, esi)?;
        a.pushfq()?;
        a.pop(rsi)?;
        // SFMASK cleared CF and IOPL stayed.
        a.and(esi, 0x3001)?;
        report(a, esi)?;
        a.inc(edi)?;
        a.sysretq()
    })?;
    guest.state.msrs.lstar = EXTRA_CODE;
    guest.state.msrs.sfmask = 1;
    // SYSCALL: CS 8H, SS 10H. SYSRET: SS 1BH + 8 = 23H, CS 1BH + 16 = 2BH.
    guest.state.msrs.star = 0x8 << 32 | 0x1b << 48;
    Machine::new(accelerator, &guest)?.expect_reports(&[8, 0x3000, 6, u32::from(USER_CODE), 0x3000])
}
