//! Several processors: starting them, and interrupts between them.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use super::guest::{
    ApicMode, DATA, EXTRA_CODE, Guest, REPORT, apic_write, done, enable_apic, end_of_interrupt,
    report, report_constant,
};
use super::harness::{Machine, X2APIC};
use super::{Case, DEADLINE, Failure, expect};
use crate::engine::{Accelerator, AccessSize, Msi, VcpuEntry, VcpuExit};
use crate::state::{Activity, VcpuState};

pub(super) const CASES: &[Case] = &[
    Case::new("processors/init-and-sipi", init_and_sipi),
    Case::new("processors/init-and-sipi-x2apic", init_and_sipi_x2apic),
    Case::new("processors/ipis-to-and-fro", ipis),
    Case::new("processors/ipis-to-and-fro-x2apic", ipis_x2apic),
    Case::new("processors/ipi-to-all-but-self", ipi_to_others),
    Case::new("processors/waiting-states-come-back", waiting_states),
    Case::new("processors/init-resets-a-running-one", init_resets),
];

/// Where a start-up IPI with vector 50H begins.
const TRAMPOLINE: u64 = 0x5_0000;
const INIT: u32 = 0x4500;
const START_UP: u32 = 0x4650;
/// Where the second processor's stack begins in 64-bit mode.
const SECOND_STACK: u64 = 0x6_8000;

/// Sends an interrupt command to processor `to`; changes RAX, RCX and RDX.
fn send(a: &mut CodeAssembler, apic: ApicMode, to: u32, command: u32) -> Result<(), IcedError> {
    match apic {
        ApicMode::XApic => {
            apic_write(a, apic, 0x310, to << 24)?;
            apic_write(a, apic, 0x300, command)
        }
        ApicMode::X2Apic => {
            a.mov(ecx, 0x830)?;
            a.mov(eax, command)?;
            a.mov(edx, to)?;
            a.wrmsr()
        }
    }
}

/// Real-mode code at the trampoline: leaves a mark, reports CS.
fn write_trampoline(guest: &Guest) -> Result<(), Failure> {
    guest.code(16, TRAMPOLINE, |a| {
        a.mov(bx, 0x3000)?;
        a.mov(ds, bx)?;
        a.mov(dword_ptr(0x10_u16), 0xaa55_u32)?;
        a.mov(cx, cs)?;
        a.movzx(eax, cx)?;
        a.mov(dx, u32::from(REPORT))?;
        a.out(dx, eax)
    })
}

/// Where [`write_trampoline`] leaves its mark.
const MARK: u64 = 0x3_0010;

fn start_second(accelerator: &dyn Accelerator, apic: ApicMode) -> Result<(), Failure> {
    let guest = Guest::long_with(apic, |a| {
        let mut again = a.create_label();
        send(a, apic, 1, INIT)?;
        send(a, apic, 1, START_UP)?;
        // The second one is ignored by a processor that runs.
        send(a, apic, 1, START_UP)?;
        a.mov(rdi, MARK)?;
        a.set_label(&mut again)?;
        a.pause()?;
        a.cmp(dword_ptr(rdi), 0)?;
        a.je(again)?;
        a.mov(esi, dword_ptr(rdi))?;
        report(a, esi)?;
        done(a)
    })?;
    write_trampoline(&guest)?;
    let mut machine = Machine::with_processors(accelerator, &guest, 2)?;
    machine.cpus[0].import(&guest.state)?;
    let second = machine.cpus[1].begin_run(VcpuEntry::Resume);
    machine.expect_reports(&[0xaa55])?;
    expect(
        "the second processor's exit",
        started(),
        second.wait(DEADLINE)??,
    )
}

fn started() -> VcpuExit {
    VcpuExit::PortWrite {
        port: REPORT,
        size: AccessSize::Dword,
        value: (TRAMPOLINE >> 4) as u32,
    }
}

fn init_and_sipi(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    start_second(accelerator, ApicMode::XApic)
}

fn init_and_sipi_x2apic(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    X2APIC.require(accelerator)?;
    start_second(accelerator, ApicMode::X2Apic)
}

/// A state for the second processor, at `rip` in 64-bit mode.
pub(super) fn second_state(guest: &Guest, apic: ApicMode, rip: u64) -> VcpuState {
    let mut state = guest.state.clone();
    let fresh = VcpuState::power_on(1, 0);
    state.local_apic = fresh.local_apic;
    state.msrs.apic_base = fresh.msrs.apic_base;
    enable_apic(&mut state, apic);
    state.general.rip = rip;
    state.general.rsp = SECOND_STACK;
    // Each processor has its own task segment, as it is marked busy.
    state
}

const HALT_LOOP: u64 = EXTRA_CODE;
const ON_61: u64 = EXTRA_CODE + 0x1000;
const ON_62: u64 = EXTRA_CODE + 0x2000;
const ROUNDS: u64 = 10;

/// Counts in memory at DATA + `counter`, ends the interrupt, and answers if
/// there is something to answer.
fn counting_handler(
    a: &mut CodeAssembler,
    apic: ApicMode,
    counter: u64,
    answer: Option<(u32, u32)>,
) -> Result<(), IcedError> {
    a.push(rax)?;
    a.push(rcx)?;
    a.push(rdx)?;
    a.mov(rax, DATA + counter)?;
    a.inc(qword_ptr(rax))?;
    end_of_interrupt(a, apic)?;
    if let Some((to, command)) = answer {
        send(a, apic, to, command)?;
    }
    a.pop(rdx)?;
    a.pop(rcx)?;
    a.pop(rax)?;
    a.iretq()
}

fn exchange(accelerator: &dyn Accelerator, apic: ApicMode, command: u32) -> Result<(), Failure> {
    let guest = Guest::long_with(apic, |a| {
        let mut round = a.create_label();
        let mut again = a.create_label();
        let mut answered = a.create_label();
        a.mov(rdi, DATA + 24)?;
        a.xor(r15, r15)?;
        a.set_label(&mut round)?;
        a.inc(r15)?;
        send(a, apic, 1, command)?;
        a.set_label(&mut again)?;
        a.cmp(qword_ptr(rdi), r15)?;
        a.jae(answered)?;
        a.sti()?;
        a.hlt()?;
        a.cli()?;
        a.jmp(again)?;
        a.set_label(&mut answered)?;
        a.cmp(r15, ROUNDS as i32)?;
        a.jb(round)?;
        for offset in [16, 24] {
            a.mov(rsi, DATA + offset)?;
            a.mov(esi, dword_ptr(rsi))?;
            report(a, esi)?;
        }
        done(a)
    })?;
    guest.code(64, HALT_LOOP, |a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.sti()?;
        a.hlt()?;
        a.jmp(again)
    })?;
    guest.code(64, ON_61, |a| {
        counting_handler(a, apic, 16, Some((0, 0x4062)))
    })?;
    guest.code(64, ON_62, |a| counting_handler(a, apic, 24, None))?;
    guest.gate(0x61, ON_61, 0)?;
    guest.gate(0x62, ON_62, 0)?;
    let mut machine = Machine::with_processors(accelerator, &guest, 2)?;
    machine.cpus[0].import(&guest.state)?;
    machine.cpus[1].import(&second_state(&guest, apic, HALT_LOOP))?;
    let second = machine.cpus[1].begin_run(VcpuEntry::Resume);
    machine.expect_reports(&[ROUNDS as u32, ROUNDS as u32])?;
    machine.cpus[1].kicker.kick();
    expect(
        "the second processor's exit",
        VcpuExit::Interrupted,
        second.wait(DEADLINE)??,
    )
}

fn ipis(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    exchange(accelerator, ApicMode::XApic, 0x4061)
}

fn ipis_x2apic(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    X2APIC.require(accelerator)?;
    exchange(accelerator, ApicMode::X2Apic, 0x4061)
}

fn ipi_to_others(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    exchange(accelerator, ApicMode::XApic, 0x000c_4061)
}

/// From outside, to processor 1.
fn to_second(data: u32) -> Msi {
    Msi {
        address: 0xfee0_0000 | 1 << 12,
        data,
    }
}

/// Lets processor 1 run until a kick and returns its state.
fn settle(machine: &Machine) -> Result<VcpuState, Failure> {
    machine.cpus[1].stop_and_export()
}

fn waiting_states(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    let guest = Guest::long(done)?;
    write_trampoline(&guest)?;
    let machine = Machine::with_processors(accelerator, &guest, 2)?;
    let state = settle(&machine)?;
    expect("before INIT", Activity::WaitForInit, state.activity)?;

    let second = Machine::with_processors(accelerator, &guest, 2)?;
    second.cpus[1].import(&state)?;
    second.partition.signal_msi(to_second(INIT))?;
    let state = settle(&second)?;
    expect("after INIT", Activity::WaitForSipi, state.activity)?;

    let third = Machine::with_processors(accelerator, &guest, 2)?;
    third.cpus[1].import(&state)?;
    third.partition.signal_msi(to_second(START_UP))?;
    let exit = third.cpus[1].run(VcpuEntry::Resume)?;
    expect("after SIPI", started(), exit)?;

    // A SIPI that was received and not acted on.
    let mut received = state;
    received.events.sipi_vector = Some((TRAMPOLINE >> 12) as u8);
    let fourth = Machine::with_processors(accelerator, &guest, 2)?;
    fourth.cpus[1].import(&received)?;
    let exit = fourth.cpus[1].run(VcpuEntry::Resume)?;
    expect("after an imported SIPI", started(), exit)
}

fn init_resets(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    let guest = Guest::long(|a| {
        report_constant(a, 1)?;
        done(a)
    })?;
    write_trampoline(&guest)?;
    guest.code(64, HALT_LOOP, |a| {
        let mut again = a.create_label();
        a.mov(rbx, 0x1234_u64)?;
        a.set_label(&mut again)?;
        a.pause()?;
        a.jmp(again)
    })?;
    let machine = Machine::with_processors(accelerator, &guest, 2)?;
    machine.cpus[1].import(&second_state(&guest, ApicMode::XApic, HALT_LOOP))?;
    let run = machine.cpus[1].begin_run(VcpuEntry::Resume);
    std::thread::sleep(std::time::Duration::from_millis(10));
    machine.partition.signal_msi(to_second(INIT))?;
    std::thread::sleep(std::time::Duration::from_millis(10));
    machine.cpus[1].kicker.kick();
    expect("the exit", VcpuExit::Interrupted, run.wait(DEADLINE)??)?;
    let state = machine.cpus[1].export()?;
    expect("the activity", Activity::WaitForSipi, state.activity)?;
    expect("RIP", 0xfff0, state.general.rip)?;
    expect("CR0", 0x10, state.control.cr0 & !0x6000_0000)?;
    expect("RBX", 0, state.general.rbx)?;
    machine.partition.signal_msi(to_second(START_UP))?;
    let exit = machine.cpus[1].run(VcpuEntry::Resume)?;
    expect("after SIPI", started(), exit)
}
