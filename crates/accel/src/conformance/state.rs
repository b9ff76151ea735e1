//! State that leaves a processor and comes back, into a fresh machine or into
//! another engine, and nobody in the guest notices.

use std::thread::sleep;
use std::time::Duration;

use favo_types::{ByteCount, GuestAddress};
use iced_x86::IcedError;
use iced_x86::code_asm::*;

use super::guest::{
    ApicMode, DATA, Guest, INTERRUPT, RAM, apic_write, done, report, report_constant, sync,
};
use super::harness::{AVX, Machine, TSC_DEADLINE, XSAVE};
use super::interrupts::to_first;
use super::{Case, Failure, expect, expect_within};
use crate::engine::{AccelError, Accelerator, VcpuEntry, VcpuExit};
use crate::memory::{GuestMemory, MemoryBacking};
use crate::state::{Activity, VcpuState};

pub(super) const CASES: &[Case] = &[
    Case::new("state/a-loop-moves-to-fresh-machines", loop_moves),
    Case::new(
        "state/a-loop-moves-with-copied-memory",
        loop_moves_with_copy,
    ),
    Case::new("state/every-register-comes-back", every_register),
    Case::new(
        "state/the-guest-sees-imported-registers",
        guest_sees_registers,
    ),
    Case::new("state/x87-and-sse", x87_and_sse)
        .excused("its instruction emulator lacks x87 arithmetic"),
    Case::new("state/avx", avx).excused_on_tcg("AVX is undefined in its nested guests"),
    Case::new("state/impossible-state-is-refused", impossible_state),
    Case::new("state/export-after-a-write", export_after_write),
    Case::new("state/halted", halted),
    Case::new("state/timer-armed", timer_armed),
    Case::new("state/tsc-deadline-armed", tsc_deadline_armed),
    Case::new("state/time-stamp-counter-goes-on", time_stamp_counter)
        .excused("RDTSC in it reads the host's counter"),
    Case::new("state/clock-comes-back", clock),
    Case::new("state/power-on", power_on),
];

/// The guest of [`loop_moves`] leaves when this quadword is not 0.
const LEAVE: u64 = DATA + 8;

/// Counts in RAX and in memory, and sums in RDX, until told to leave; then
/// reports how the three compare.
fn counting_loop(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.xor(eax, eax)?;
    a.xor(edx, edx)?;
    a.mov(rdi, DATA)?;
    a.set_label(&mut again)?;
    a.inc(rax)?;
    a.inc(qword_ptr(rdi))?;
    a.add(rdx, rax)?;
    a.cmp(qword_ptr(rdi + 8), 0)?;
    a.je(again)?;
    // n (n + 1) / 2.
    a.lea(rsi, qword_ptr(rax + 1))?;
    a.imul_2(rsi, rax)?;
    a.shr(rsi, 1)?;
    a.sub(rsi, rdx)?;
    a.mov(rcx, rax)?;
    a.mov(r8, qword_ptr(rdi))?;
    a.sub(r8, rcx)?;
    report(a, esi)?;
    report(a, r8d)?;
    done(a)
}

const COUNTED_RIGHT: [u32; 2] = [0, 0];

/// Runs the loop a little on each engine of `path`, moving state and memory
/// from one to the next, and ends it on the last.
fn move_along(path: &[&dyn Accelerator], copy_memory: bool) -> Result<(), Failure> {
    let mut guest = Guest::long(counting_loop)?;
    // The loop leaves these alone: they must come along.
    guest.state = patterned_registers(&guest);
    let carried = guest.state.clone();
    let mut counts = Vec::new();
    for engine in path {
        let machine = Machine::new(*engine, &guest)?;
        let run = machine.cpus[0].begin_run(VcpuEntry::Resume);
        // Long enough for a slow engine to count something.
        let before = guest.u64_at(DATA)?;
        for _ in 0..2000 {
            sleep(Duration::from_millis(2));
            if guest.u64_at(DATA)? > before + 100 {
                break;
            }
        }
        machine.cpus[0].kicker.kick();
        let exit = run.wait(super::DEADLINE)??;
        expect("the exit", VcpuExit::Interrupted, exit)?;
        guest.state = machine.cpus[0].export()?;
        expect("the carried x87 and SSE", carried.fpu, guest.state.fpu)?;
        expect("carried R15", carried.general.r15, guest.state.general.r15)?;
        expect("carried debug registers", carried.debug, guest.state.debug)?;
        expect("carried FS", carried.segments.fs, guest.state.segments.fs)?;
        counts.push(guest.u64_at(DATA)?);
        drop(machine);
        if copy_memory {
            guest.memory = copy(&guest.memory)?;
        }
    }
    let went_on = counts.windows(2).all(|pair| pair[0] < pair[1]);
    expect("each engine counted", true, went_on)?;
    guest.put_u64(LEAVE, 1)?;
    let last = path.last().ok_or(Failure::Skipped("no engine".into()))?;
    Machine::new(*last, &guest)?.expect_reports(&COUNTED_RIGHT)
}

fn copy(memory: &GuestMemory) -> Result<GuestMemory, Failure> {
    let fresh = GuestMemory::new(
        &[(GuestAddress(0), ByteCount(RAM))],
        MemoryBacking::Anonymous,
    )?;
    let mut bytes = vec![0; RAM as usize];
    memory.read(GuestAddress(0), &mut bytes)?;
    fresh.write(GuestAddress(0), &bytes)?;
    Ok(fresh)
}

/// Moves a running guest from engine `a` to `b` and back, twice, and checks
/// that it never noticed.
pub fn move_between(a: &dyn Accelerator, b: &dyn Accelerator) -> Result<(), Failure> {
    move_along(&[a, b, a, b, a], true)
}

fn loop_moves(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    move_along(&[accelerator; 5], false)
}

fn loop_moves_with_copy(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    move_along(&[accelerator; 3], true)
}

/// A state with a different value in every register that does not decide how
/// the guest runs.
fn patterned_registers(guest: &Guest) -> VcpuState {
    let mut state = guest.state.clone();
    let general = &mut state.general;
    for (number, register) in (1..).zip([
        &mut general.rax,
        &mut general.rbx,
        &mut general.rcx,
        &mut general.rdx,
        &mut general.rsi,
        &mut general.rdi,
        &mut general.rbp,
        &mut general.r8,
        &mut general.r9,
        &mut general.r10,
        &mut general.r11,
        &mut general.r12,
        &mut general.r13,
        &mut general.r14,
        &mut general.r15,
    ]) {
        *register = 0x0101_0101_0101_0101 * number;
    }
    state.segments.fs.base = 0x1234_5678_9000;
    state.segments.gs.base = 0xffff_8000_1234_5000;
    state.control.cr2 = 0xdead_beef_f00d;
    state.debug.address = [0x1000, 0x2000, 0x3000, 0xffff_8000_0000_0000];
    state.debug.dr7 = 0x400;
    let msrs = &mut state.msrs;
    msrs.sysenter_cs = 0x10;
    // AMD's processors keep 32 bits of these two.
    msrs.sysenter_esp = 0x8000_1000;
    msrs.sysenter_eip = 0x8000_2000;
    msrs.star = 0x001b_0008_0000_0000;
    msrs.lstar = 0xffff_ffff_8100_0000;
    msrs.cstar = 0xffff_ffff_8200_0000;
    msrs.sfmask = 0x4_7700;
    msrs.kernel_gs_base = 0xffff_8000_0000_3000;
    msrs.pat = 0x0007_0406_0007_0401;
    let fpu = &mut state.fpu;
    fpu.fcw = 0x27f;
    fpu.fsw = 0x3000;
    fpu.ftw = 0xc3;
    fpu.mxcsr = 0x1fa0;
    for (number, st) in (1..).zip(&mut fpu.st) {
        *st = [0, 0, 0, 0, 0, 0, number, 0x80 | number, number, 0x40];
    }
    for (number, ymm) in (1..).zip(&mut fpu.ymm) {
        ymm[..16].fill(number);
    }
    state
}

/// The same, with flags, interrupts and the local APIC.
fn patterned(guest: &Guest) -> VcpuState {
    let mut state = patterned_registers(guest);
    state.general.rflags = 0x8d7;
    let apic = &mut state.local_apic;
    apic.tpr = 0x30;
    apic.ldr = 0x0200_0000;
    apic.svr = 0x1e7;
    apic.isr[3] = 1 << 4;
    apic.tmr[2] = 1 << 9;
    apic.irr[2] = 1 << 9 | 1 << 1;
    apic.icr = 0x0100_0000_0000_00a3;
    apic.lvt_timer = 0x1_00ec;
    apic.lvt_thermal = 0x1_00fa;
    apic.lvt_lint0 = 0x8700;
    apic.lvt_lint1 = 0x400;
    apic.lvt_error = 0xfe;
    apic.timer_divide = 0xb;
    state.events.nmi_masked = true;
    state
}

fn every_register(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    let guest = Guest::long(done)?;
    let state = patterned(&guest);
    let machine = Machine::new(accelerator, &guest)?;
    machine.cpus[0].import(&state)?;
    compare(&state, machine.cpus[0].export()?)?;
    // And twice is as good as once.
    let exported = machine.cpus[0].export()?;
    let fresh = Machine::new(accelerator, &guest)?;
    fresh.cpus[0].import(&exported)?;
    compare(&exported, fresh.cpus[0].export()?)
}

/// Compares part by part, so that a failure shows which part it is. The time
/// stamp counter runs.
fn compare(expected: &VcpuState, mut seen: VcpuState) -> Result<(), Failure> {
    if seen.msrs.tsc < expected.msrs.tsc {
        return Err(Failure::mismatch(
            "the time stamp counter",
            expected.msrs.tsc,
            seen.msrs.tsc,
        ));
    }
    seen.msrs.tsc = expected.msrs.tsc;
    expect("general registers", expected.general, seen.general)?;
    expect("segments", expected.segments, seen.segments)?;
    expect("control registers", expected.control, seen.control)?;
    expect("debug registers", expected.debug, seen.debug)?;
    expect("MSRs", &expected.msrs, &seen.msrs)?;
    expect("x87, SSE and AVX", expected.fpu, seen.fpu)?;
    expect("the local APIC", expected.local_apic, seen.local_apic)?;
    expect("pending events", expected.events, seen.events)?;
    expect("the activity", expected.activity, seen.activity)
}

fn guest_sees_registers(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    let guest = Guest::long(|a| {
        // R8 to R15 hold what they are called; FS and GS point at themselves.
        for (register, number) in [(r8, 8), (r9, 9), (r13, 13), (r15, 15)] {
            a.sub(register, number)?;
            a.mov(rsi, register)?;
            report(a, esi)?;
        }
        a.mov(esi, dword_ptr(0x10_u64).fs())?;
        report(a, esi)?;
        a.mov(esi, dword_ptr(0x10_u64).gs())?;
        report(a, esi)?;
        a.swapgs()?;
        a.mov(esi, dword_ptr(0x10_u64).gs())?;
        report(a, esi)?;
        a.mov(rsi, cr2)?;
        report(a, esi)?;
        a.mov(rsi, dr2)?;
        report(a, esi)?;
        for msr in [0x277, 0xc000_0082_u32] {
            a.mov(ecx, msr)?;
            a.rdmsr()?;
            a.mov(esi, eax)?;
            report(a, esi)?;
        }
        done(a)
    })?;
    let mut state = guest.state.clone();
    state.general.r8 = 8;
    state.general.r9 = 9;
    state.general.r13 = 13;
    state.general.r15 = 15;
    state.segments.fs.base = DATA;
    state.segments.gs.base = DATA + 0x100;
    state.msrs.kernel_gs_base = DATA + 0x200;
    state.control.cr2 = 0x4242;
    state.debug.address[2] = 0x9999;
    state.msrs.pat = 0x0007_0406_0007_0400;
    state.msrs.lstar = 0x1234;
    for (offset, value) in [(0x10, 0xf5_u32), (0x110, 0x65), (0x210, 0x66)] {
        guest.put(DATA + offset, &value.to_le_bytes())?;
    }
    let mut machine = Machine::new(accelerator, &guest)?;
    machine.cpus[0].import(&state)?;
    machine.expect_reports(&[
        0,
        0,
        0,
        0,
        0xf5,
        0x65,
        0x66,
        0x4242,
        0x9999,
        0x0007_0400,
        0x1234,
    ])
}

fn x87_and_sse(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    let guest = Guest::long(|a| {
        a.mov(rdi, DATA)?;
        a.fninit()?;
        a.fld1()?;
        a.fldpi()?;
        a.movdqu(xmm0, xmmword_ptr(rdi))?;
        a.movdqu(xmm15, xmmword_ptr(rdi + 16))?;
        a.ldmxcsr(dword_ptr(rdi + 32))?;
        sync(a, 1)?;
        a.mov(rdi, DATA)?;
        // 2π as an integer, then 1.
        a.fadd_2(st0, st0)?;
        a.fistp(dword_ptr(rdi + 64))?;
        a.fistp(dword_ptr(rdi + 68))?;
        a.fnstsw(ax)?;
        a.movzx(ecx, ax)?;
        a.movdqu(xmmword_ptr(rdi + 80), xmm0)?;
        a.movdqu(xmmword_ptr(rdi + 96), xmm15)?;
        a.stmxcsr(dword_ptr(rdi + 112))?;
        a.and(ecx, 0x3800)?;
        report(a, ecx)?;
        for offset in [64, 68, 80, 92, 96, 112] {
            a.mov(esi, dword_ptr(rdi + offset))?;
            report(a, esi)?;
        }
        done(a)
    })?;
    for word in 0..8 {
        guest.put(DATA + 4 * word, &(0x1000 + word as u32).to_le_bytes())?;
    }
    guest.put(DATA + 32, &0x3fa0_u32.to_le_bytes())?;
    move_at_sync(accelerator, &guest, |_| ())?
        .expect_reports(&[0, 6, 1, 0x1000, 0x1003, 0x1004, 0x3fa0])
}

/// Runs to the guest's next `SYNC`, lets `change` see the state, and puts it
/// on a fresh machine.
fn move_at_sync(
    accelerator: &dyn Accelerator,
    guest: &Guest,
    change: impl FnOnce(&mut VcpuState),
) -> Result<Machine, Failure> {
    let mut machine = Machine::new(accelerator, guest)?;
    machine.run_to_sync()?;
    let mut state = machine.cpus[0].export()?;
    change(&mut state);
    let fresh = Machine::new(accelerator, guest)?;
    fresh.cpus[0].import(&state)?;
    Ok(fresh)
}

fn avx(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    XSAVE.require(accelerator)?;
    AVX.require(accelerator)?;
    let mut guest = Guest::long(|a| {
        a.xor(ecx, ecx)?;
        a.xor(edx, edx)?;
        a.mov(eax, 7)?;
        a.xsetbv()?;
        a.mov(rdi, DATA)?;
        a.vmovdqu(ymm0, ymmword_ptr(rdi))?;
        a.vmovdqu(ymm15, ymmword_ptr(rdi + 16))?;
        sync(a, 1)?;
        a.mov(rdi, DATA)?;
        a.vmovdqu(ymmword_ptr(rdi + 64), ymm0)?;
        a.vmovdqu(ymmword_ptr(rdi + 96), ymm15)?;
        for offset in [64, 80, 92, 96, 124] {
            a.mov(esi, dword_ptr(rdi + offset))?;
            report(a, esi)?;
        }
        a.xor(ecx, ecx)?;
        a.xgetbv()?;
        report(a, eax)?;
        done(a)
    })?;
    guest.state.control.cr4 |= 1 << 18;
    for word in 0..12 {
        guest.put(DATA + 4 * word, &(0x1000 + word as u32).to_le_bytes())?;
    }
    let mut upper = 0;
    let mut fresh = move_at_sync(accelerator, &guest, |state| upper = state.fpu.ymm[0][16])?;
    expect("the upper half of YMM0 in the state", 4, upper)?;
    fresh.expect_reports(&[0x1000, 0x1004, 0x1007, 0x1004, 0x100b, 7])
}

fn impossible_state(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    let guest = Guest::long(|a| {
        report(a, edi)?;
        done(a)
    })?;
    let mut machine = Machine::new(accelerator, &guest)?;
    let mut good = guest.state.clone();
    good.general.rdi = 7;
    machine.cpus[0].import(&good)?;
    type Change = fn(&mut VcpuState);
    let changes: [Change; 6] = [
        |state| state.version = 99,
        |state| state.control.cr0 = 0x8000_0000,
        |state| state.control.cr4 |= 1 << 63,
        |state| state.msrs.lstar = 1 << 55,
        |state| state.general.rflags = 0,
        |state| state.msrs.apic_base |= 1 << 60,
    ];
    for change in changes {
        let mut bad = guest.state.clone();
        bad.general.rdi = 8;
        change(&mut bad);
        match machine.cpus[0].call(move |vcpu| vcpu.import_state(&bad))? {
            Err(AccelError::InvalidState(_)) => {}
            other => {
                return Err(Failure::mismatch(
                    "an impossible state",
                    "InvalidState",
                    other,
                ));
            }
        }
    }
    machine.expect_reports(&[7])
}

fn export_after_write(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    // The port write itself must not come again on the fresh machine.
    let guest = Guest::long(|a| {
        a.xor(ebx, ebx)?;
        sync(a, 1)?;
        a.inc(ebx)?;
        report(a, ebx)?;
        done(a)
    })?;
    move_at_sync(accelerator, &guest, |_| ())?.expect_reports(&[1])
}

fn halted(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    let guest = Guest::long(|a| {
        a.sti()?;
        a.hlt()?;
        a.cli()?;
        report_constant(a, 1)?;
        done(a)
    })?;
    let machine = Machine::new(accelerator, &guest)?;
    let state = stop_once_halted(&machine)?;
    let mut fresh = Machine::new(accelerator, &guest)?;
    fresh.cpus[0].import(&state)?;
    fresh.partition.signal_msi(to_first(0x41))?;
    fresh.expect_reports(&[INTERRUPT | 0x41, 1])
}

/// Lets processor 0 run into its HLT, stops it there and exports it.
fn stop_once_halted(machine: &Machine) -> Result<VcpuState, Failure> {
    for _ in 0..100 {
        let run = machine.cpus[0].begin_run(VcpuEntry::Resume);
        sleep(Duration::from_millis(5));
        machine.cpus[0].kicker.kick();
        let exit = run.wait(super::DEADLINE)??;
        expect("the exit", VcpuExit::Interrupted, exit)?;
        let state = machine.cpus[0].export()?;
        if state.activity == Activity::Halted {
            return Ok(state);
        }
    }
    Err(Failure::mismatch(
        "the activity",
        Activity::Halted,
        Activity::Running,
    ))
}

fn timer_armed(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    let guest = Guest::long(|a| {
        apic_write(a, ApicMode::XApic, 0x3e0, 0xb)?;
        apic_write(a, ApicMode::XApic, 0x320, 0x41)?;
        apic_write(a, ApicMode::XApic, 0x380, 0x2000_0000)?;
        a.sti()?;
        a.hlt()?;
        a.cli()?;
        report_constant(a, 1)?;
        done(a)
    })?;
    let machine = Machine::new(accelerator, &guest)?;
    let mut state = stop_once_halted(&machine)?;
    let left = state.local_apic.timer_current_count;
    if left == 0 || left >= 0x2000_0000 {
        return Err(Failure::mismatch("the count left", "1 to 1fffffff", left));
    }
    // Not half a second: only a little is left.
    state.local_apic.timer_current_count = 1000;
    let mut fresh = Machine::new(accelerator, &guest)?;
    fresh.cpus[0].import(&state)?;
    fresh.expect_reports(&[INTERRUPT | 0x41, 1])
}

fn tsc_deadline_armed(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    TSC_DEADLINE.require(accelerator)?;
    let guest = Guest::long(|a| {
        apic_write(a, ApicMode::XApic, 0x320, 1 << 18 | 0x41)?;
        a.mfence()?;
        // About half a minute from now.
        a.rdtsc()?;
        a.add(edx, 16)?;
        a.mov(ecx, 0x6e0)?;
        a.wrmsr()?;
        a.sti()?;
        a.hlt()?;
        a.cli()?;
        report_constant(a, 1)?;
        done(a)
    })?;
    let machine = Machine::new(accelerator, &guest)?;
    let mut state = stop_once_halted(&machine)?;
    let ahead = state.msrs.tsc_deadline.wrapping_sub(state.msrs.tsc) >> 32;
    expect_within("how far the deadline lies ahead", 14..17, ahead)?;
    state.msrs.tsc_deadline = state.msrs.tsc + 1_000_000;
    let mut fresh = Machine::new(accelerator, &guest)?;
    fresh.cpus[0].import(&state)?;
    fresh.expect_reports(&[INTERRUPT | 0x41, 1])
}

fn time_stamp_counter(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    let guest = Guest::long(|a| {
        a.rdtsc()?;
        a.shl(rdx, 32)?;
        a.or(rax, rdx)?;
        a.mov(rdi, DATA)?;
        a.mov(qword_ptr(rdi), rax)?;
        done(a)
    })?;
    const THEN: u64 = 1 << 50;
    let mut state = guest.state.clone();
    state.msrs.tsc = THEN;
    let mut machine = Machine::new(accelerator, &guest)?;
    let khz = u64::from(machine.partition.tsc_khz());
    machine.cpus[0].import(&state)?;
    machine.expect_reports(&[])?;
    let seen = guest.u64_at(DATA)?;
    // Ten seconds is more than any engine takes.
    expect_within("the counter after import", THEN..THEN + khz * 10_000, seen)?;
    let exported = machine.cpus[0].export()?.msrs.tsc;
    expect_within("the exported counter", seen..seen + khz * 10_000, exported)
}

fn clock(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    let guest = Guest::long(done)?;
    let machine = Machine::new(accelerator, &guest)?;
    let mut clock = machine.partition.export_clock()?;
    clock.kvmclock_ns += 3_600_000_000_000;
    machine.partition.import_clock(&clock)?;
    let later = machine.partition.export_clock()?;
    let ahead = later.kvmclock_ns.wrapping_sub(clock.kvmclock_ns);
    if ahead > 10_000_000_000 {
        return Err(Failure::mismatch(
            "kvmclock after import",
            clock.kvmclock_ns,
            later.kvmclock_ns,
        ));
    }
    let unix = later.realtime_ns / 1_000_000_000;
    expect("the real-time clock is set", true, unix > 1_600_000_000)
}

fn power_on(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    let guest = Guest::long(done)?;
    let machine = Machine::with_processors(accelerator, &guest, 2)?;
    let signature = accelerator.supported_cpuid().get(1, 0).eax;
    for (id, cpu) in (0..).zip(&machine.cpus) {
        let mut expected = VcpuState::power_on(id, signature);
        expected.msrs.tsc = 0;
        compare(&expected, cpu.export()?)?;
    }
    Ok(())
}
