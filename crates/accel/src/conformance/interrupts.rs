//! Interrupts by message, and the local APIC's rules for them.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use super::guest::{
    ApicMode, EXTRA_CODE, Guest, INTERRUPT, apic_read, apic_write, done, end_of_interrupt, idle,
    report, report_constant, sync, window, write_msr,
};
use super::harness::{Answer, Machine, RESUME, X2APIC, unexpected};
use super::{Case, Failure, expect};
use crate::engine::{Accelerator, Msi, Partition, VcpuEntry, VcpuExit};
use crate::state::{InterruptShadow, VcpuState};

pub(super) const CASES: &[Case] = &[
    Case::new("interrupts/fixed", fixed),
    Case::new("interrupts/fixed-x2apic", fixed_x2apic),
    Case::new("interrupts/logical-destination", logical_destination),
    Case::new("interrupts/logical-destination-x2apic", logical_x2apic),
    Case::new("interrupts/lowest-priority", lowest_priority),
    Case::new(
        "interrupts/other-destinations-are-dropped",
        other_destinations,
    ),
    Case::new("interrupts/nmi-comes-through", nmi),
    Case::new("interrupts/nmi-is-blocked-until-iret", nmi_blocked),
    Case::new("interrupts/disabled-apic-drops-them", disabled_apic),
    Case::new("interrupts/priority-order", priority_order),
    Case::new("interrupts/a-higher-one-nests", nesting)
        .excused("after a nested one it lets in an interrupt whose class is still in service"),
    Case::new("interrupts/task-priority-holds-them-back", task_priority),
    Case::new("interrupts/level-triggered-eoi-exits", level_triggered),
    Case::new("interrupts/sti-shadow", sti_shadow).excused(LATE),
    Case::new("interrupts/shadow-at-import", shadow_at_import)
        .excused(LATE)
        .excused_on_tcg("a nested guest loses the shadow it is entered with"),
    Case::new("interrupts/hlt-wakes-up", hlt_wakes_up),
    Case::new("interrupts/self-ipi", self_ipi),
    Case::new("interrupts/self-ipi-x2apic", self_ipi_x2apic),
    Case::new("interrupts/apic-registers", apic_registers),
    Case::new("interrupts/apic-registers-x2apic", apic_registers_x2apic),
    Case::new("interrupts/pending-in-exported-state", pending_in_state),
];

const LATE: &str = "it looks for interrupts only when it comes back from an exit";

const LOWEST_PRIORITY: u32 = 1 << 8;
const NMI: u32 = 4 << 8;
const LEVEL: u32 = 1 << 15;
const ASSERT: u32 = 1 << 14;
const LOGICAL: u64 = 1 << 2;
const REDIRECTION_HINT: u64 = 1 << 3;

fn address(destination: u64) -> u64 {
    0xfee0_0000 | (destination & 0xff) << 12 | (destination >> 8) << 40
}

/// To processor 0, fixed, edge.
pub(super) fn to_first(vector: u8) -> Msi {
    Msi {
        address: address(0),
        data: u32::from(vector),
    }
}

/// A `SYNC` sends these messages, in order; the step is the index.
fn run_with_messages(machine: &mut Machine, steps: &[&[Msi]]) -> Result<(), Failure> {
    machine.run_with(|partition: &dyn Partition, exit| match exit {
        VcpuExit::PortWrite {
            port: super::guest::SYNC,
            value,
            ..
        } => {
            for msi in steps.get(value as usize).copied().unwrap_or_default() {
                partition.signal_msi(*msi)?;
            }
            Ok(RESUME)
        }
        other => Err(unexpected(other)),
    })
}

/// Asks for step 0 with interrupts off, then lets them in.
fn one_step(a: &mut CodeAssembler) -> Result<(), IcedError> {
    sync(a, 0)?;
    report_constant(a, 1)?;
    window(a)?;
    report_constant(a, 2)?;
    done(a)
}

fn one_message(
    accelerator: &dyn Accelerator,
    guest: &Guest,
    messages: &[Msi],
    interrupts: &[u32],
) -> Result<(), Failure> {
    let mut machine = Machine::new(accelerator, guest)?;
    run_with_messages(&mut machine, &[messages])?;
    let mut expected = vec![1];
    expected.extend(interrupts.iter().map(|vector| INTERRUPT | vector));
    expected.push(2);
    machine.compare_reports(&expected)
}

fn fixed(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    one_message(
        accelerator,
        &Guest::long(one_step)?,
        &[to_first(0x41)],
        &[0x41],
    )
}

fn fixed_x2apic(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    X2APIC.require(accelerator)?;
    let guest = Guest::long_with(ApicMode::X2Apic, one_step)?;
    one_message(accelerator, &guest, &[to_first(0x41)], &[0x41])
}

fn logical_destination(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    let mut guest = Guest::long(one_step)?;
    // Flat model, our bit is 2.
    guest.state.local_apic.ldr = 0x04 << 24;
    guest.state.local_apic.dfr = u32::MAX;
    let to = |mask: u64, vector| Msi {
        address: address(mask) | LOGICAL,
        data: vector,
    };
    one_message(
        accelerator,
        &guest,
        &[to(0x0b, 0x51), to(0x0c, 0x61)],
        &[0x61],
    )?;
    // Cluster model: cluster 3, member 1.
    guest.state.local_apic.ldr = 0x32 << 24;
    guest.state.local_apic.dfr = 0x0fff_ffff;
    one_message(
        accelerator,
        &guest,
        &[to(0x22, 0x51), to(0x31, 0x61), to(0x33, 0x71)],
        &[0x71],
    )
}

fn logical_x2apic(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    X2APIC.require(accelerator)?;
    let guest = Guest::long_with(ApicMode::X2Apic, one_step)?;
    // Cluster 0, member 0; then cluster 0, member 1.
    let to = |destination: u64, vector| Msi {
        address: address(destination) | LOGICAL,
        data: vector,
    };
    one_message(accelerator, &guest, &[to(2, 0x51), to(1, 0x61)], &[0x61])
}

fn lowest_priority(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    let mut guest = Guest::long(one_step)?;
    guest.state.local_apic.ldr = 1 << 24;
    let message = Msi {
        address: address(0xff) | LOGICAL | REDIRECTION_HINT,
        data: 0x44 | LOWEST_PRIORITY,
    };
    one_message(accelerator, &guest, &[message], &[0x44])
}

fn other_destinations(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    let elsewhere = Msi {
        address: address(7),
        data: 0x41,
    };
    let not_an_apic = Msi {
        address: 0xfef0_0000,
        data: 0x42,
    };
    let broadcast = Msi {
        address: address(0xff),
        data: 0x43,
    };
    one_message(
        accelerator,
        &Guest::long(one_step)?,
        &[elsewhere, not_an_apic, broadcast],
        &[0x43],
    )
}

fn nmi(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    // Interrupts are off: it comes all the same.
    let guest = Guest::long(|a| {
        sync(a, 0)?;
        a.nop()?;
        report_constant(a, 1)?;
        done(a)
    })?;
    let mut machine = Machine::new(accelerator, &guest)?;
    let message = Msi {
        address: address(0),
        data: NMI,
    };
    run_with_messages(&mut machine, &[&[message]])?;
    machine.compare_reports(&[INTERRUPT | 2, 1])
}

fn nmi_blocked(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    let guest = Guest::long(|a| {
        sync(a, 0)?;
        idle(a)?;
        report_constant(a, 9)?;
        done(a)
    })?;
    // The second NMI comes while the handler of the first runs.
    guest.code(64, EXTRA_CODE, |a| {
        let mut second = a.create_label();
        a.push(rdx)?;
        a.inc(r13)?;
        report(a, r13d)?;
        a.cmp(r13, 2)?;
        a.je(second)?;
        sync(a, 0)?;
        idle(a)?;
        report_constant(a, 0x100)?;
        a.set_label(&mut second)?;
        a.pop(rdx)?;
        a.iretq()
    })?;
    guest.gate(2, EXTRA_CODE, 0)?;
    let mut machine = Machine::new(accelerator, &guest)?;
    let message = Msi {
        address: address(0),
        data: NMI,
    };
    run_with_messages(&mut machine, &[&[message]])?;
    machine.compare_reports(&[1, 0x100, 2, 9])
}

fn disabled_apic(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    // By software: fixed ones are dropped, an NMI still comes.
    let mut guest = Guest::long(one_step)?;
    guest.state.local_apic.svr = 0xff;
    one_message(accelerator, &guest, &[to_first(0x41)], &[])?;
    // By IA32_APIC_BASE: nothing comes.
    let mut guest = Guest::long(one_step)?;
    guest.state.msrs.apic_base &= !(1 << 11);
    guest.state.local_apic = VcpuState::power_on(0, 0).local_apic;
    let nmi = Msi {
        address: address(0),
        data: NMI,
    };
    one_message(accelerator, &guest, &[to_first(0x41), nmi], &[])
}

fn priority_order(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    one_message(
        accelerator,
        &Guest::long(one_step)?,
        &[
            to_first(0x31),
            to_first(0x81),
            to_first(0x35),
            to_first(0x31),
            to_first(0xf1),
        ],
        &[0xf1, 0x81, 0x35, 0x31],
    )
}

fn nesting(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    let guest = Guest::long(|a| {
        sync(a, 0)?;
        window(a)?;
        done(a)
    })?;
    // 50H lets interrupts in before its EOI: 5FH is of its own class and
    // waits, 60H nests.
    guest.code(64, EXTRA_CODE, |a| {
        a.push(rdx)?;
        report_constant(a, 0x50)?;
        sync(a, 1)?;
        window(a)?;
        report_constant(a, 0x51)?;
        end_of_interrupt(a, ApicMode::XApic)?;
        a.pop(rdx)?;
        a.iretq()
    })?;
    guest.gate(0x50, EXTRA_CODE, 0)?;
    let mut machine = Machine::new(accelerator, &guest)?;
    run_with_messages(
        &mut machine,
        &[&[to_first(0x50)], &[to_first(0x5f), to_first(0x60)]],
    )?;
    machine.compare_reports(&[0x50, INTERRUPT | 0x60, 0x51, INTERRUPT | 0x5f])
}

fn task_priority(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    let guest = Guest::long(|a| {
        a.mov(eax, 5)?;
        a.mov(cr8, rax)?;
        apic_read(a, ApicMode::XApic, 0x80)?;
        report(a, eax)?;
        sync(a, 0)?;
        window(a)?;
        report_constant(a, 1)?;
        apic_write(a, ApicMode::XApic, 0x80, 0x40)?;
        window(a)?;
        a.mov(rsi, cr8)?;
        report(a, esi)?;
        done(a)
    })?;
    let mut machine = Machine::new(accelerator, &guest)?;
    run_with_messages(
        &mut machine,
        &[&[to_first(0x58), to_first(0x61), to_first(0x4f)]],
    )?;
    // 61H is above class 5; 58H comes when the priority falls to 4; 4FH never.
    machine.compare_reports(&[0x50, INTERRUPT | 0x61, 1, INTERRUPT | 0x58, 4])
}

fn level_triggered(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    let guest = Guest::long(|a| {
        sync(a, 0)?;
        window(a)?;
        done(a)
    })?;
    let mut machine = Machine::new(accelerator, &guest)?;
    let level = Msi {
        address: address(0),
        data: 0x71 | LEVEL | ASSERT,
    };
    machine
        .partition
        .set_level_triggered_pins(&[None, None, Some(level)])?;
    let mut ends = Vec::new();
    machine.run_with(|partition, exit| match exit {
        VcpuExit::PortWrite {
            port: super::guest::SYNC,
            ..
        } => {
            partition.signal_msi(level)?;
            partition.signal_msi(to_first(0x72))?;
            Ok(RESUME)
        }
        VcpuExit::IoapicEoi { vector } => {
            ends.push(vector);
            Ok(RESUME)
        }
        other => Err(unexpected(other)),
    })?;
    machine.compare_reports(&[INTERRUPT | 0x72, INTERRUPT | 0x71])?;
    expect("the vectors whose EOI exited", vec![0x71], ends)
}

fn sti_shadow(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    // STI; CLI lets nothing in; STI; INC; CLI lets it in after INC.
    let guest = Guest::long(|a| {
        sync(a, 0)?;
        a.xor(esi, esi)?;
        a.sti()?;
        a.cli()?;
        report_constant(a, 1)?;
        a.sti()?;
        a.inc(esi)?;
        a.cli()?;
        report(a, esi)?;
        done(a)
    })?;
    guest.code(64, EXTRA_CODE, |a| {
        a.or(esi, 0x100)?;
        report(a, esi)?;
        end_of_interrupt(a, ApicMode::XApic)?;
        a.iretq()
    })?;
    guest.gate(0x41, EXTRA_CODE, 0)?;
    let mut machine = Machine::new(accelerator, &guest)?;
    run_with_messages(&mut machine, &[&[to_first(0x41)]])?;
    machine.compare_reports(&[1, 0x101, 0x101])
}

fn shadow_at_import(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    for (shadow, before) in [
        (InterruptShadow::None, 0x100),
        (InterruptShadow::Sti, 0x101),
    ] {
        let mut guest = Guest::long(|a| {
            a.inc(esi)?;
            a.cli()?;
            done(a)
        })?;
        guest.code(64, EXTRA_CODE, |a| {
            a.or(esi, 0x100)?;
            report(a, esi)?;
            end_of_interrupt(a, ApicMode::XApic)?;
            a.iretq()
        })?;
        guest.gate(0x41, EXTRA_CODE, 0)?;
        guest.state.general.rflags |= 0x200;
        guest.state.local_apic.irr[2] = 1 << 1;
        guest.state.events.shadow = shadow;
        let mut machine = Machine::new(accelerator, &guest)?;
        let loaded = machine.cpus[0].export()?.events.shadow;
        expect("the shadow after import", shadow, loaded)?;
        machine.expect_reports(&[before])?;
    }
    Ok(())
}

fn hlt_wakes_up(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    let guest = Guest::long(|a| {
        sync(a, 0)?;
        a.sti()?;
        a.hlt()?;
        a.cli()?;
        report_constant(a, 1)?;
        done(a)
    })?;
    let mut machine = Machine::new(accelerator, &guest)?;
    expect("the step", 0, machine.run_to_sync()?)?;
    let run = machine.cpus[0].begin_run(VcpuEntry::Resume);
    let early = run.poll(std::time::Duration::from_millis(30));
    if let Some(exit) = early {
        return Err(Failure::mismatch("a halted processor", "no exit", exit));
    }
    machine.partition.signal_msi(to_first(0x41))?;
    match run.wait(super::DEADLINE)?? {
        VcpuExit::PortWrite {
            port: super::guest::REPORT,
            value,
            ..
        } => machine.reports.push(value),
        other => return Err(unexpected(other)),
    }
    machine.expect_reports(&[INTERRUPT | 0x41, 1])
}

fn send_to_self(a: &mut CodeAssembler, apic: ApicMode) -> Result<(), IcedError> {
    // By the shorthand "self", fixed, edge, asserted.
    apic_write(a, apic, 0x300, 0x0004_4052)?;
    report_constant(a, 1)?;
    window(a)?;
    if apic == ApicMode::X2Apic {
        write_msr(a, 0x83f, 0x63)?;
        window(a)?;
    }
    done(a)
}

fn self_ipi(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    let guest = Guest::long(|a| send_to_self(a, ApicMode::XApic))?;
    Machine::new(accelerator, &guest)?.expect_reports(&[1, INTERRUPT | 0x52])
}

fn self_ipi_x2apic(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    X2APIC.require(accelerator)?;
    let guest = Guest::long_with(ApicMode::X2Apic, |a| send_to_self(a, ApicMode::X2Apic))?;
    Machine::new(accelerator, &guest)?.expect_reports(&[1, INTERRUPT | 0x52, INTERRUPT | 0x63])
}

fn read_registers(a: &mut CodeAssembler, apic: ApicMode) -> Result<(), IcedError> {
    apic_read(a, apic, 0x20)?;
    report(a, eax)?;
    apic_read(a, apic, 0x30)?;
    a.and(eax, 0xf0)?;
    report(a, eax)?;
    apic_read(a, apic, 0xf0)?;
    report(a, eax)?;
    apic_write(a, apic, 0x350, 0x8700)?;
    apic_read(a, apic, 0x350)?;
    report(a, eax)?;
    apic_write(a, apic, 0x80, 0x20)?;
    a.mov(rsi, cr8)?;
    report(a, esi)?;
    sync(a, 0)?;
    // IRR of vector 41H, with interrupts off.
    apic_read(a, apic, 0x220)?;
    report(a, eax)?;
    done(a)
}

fn apic_registers(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    let guest = Guest::long(|a| read_registers(a, ApicMode::XApic))?;
    let mut machine = Machine::new(accelerator, &guest)?;
    run_with_messages(&mut machine, &[&[to_first(0x41)]])?;
    machine.compare_reports(&[0, 0x10, 0x1ff, 0x8700, 2, 2])
}

fn apic_registers_x2apic(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    X2APIC.require(accelerator)?;
    let guest = Guest::long_with(ApicMode::X2Apic, |a| read_registers(a, ApicMode::X2Apic))?;
    let mut machine = Machine::new(accelerator, &guest)?;
    run_with_messages(&mut machine, &[&[to_first(0x41)]])?;
    machine.compare_reports(&[0, 0x10, 0x1ff, 0x8700, 2, 2])
}

fn pending_in_state(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    let guest = Guest::long(one_step)?;
    let mut machine = Machine::new(accelerator, &guest)?;
    machine.run_with(|partition, exit| match exit {
        VcpuExit::PortWrite {
            port: super::guest::SYNC,
            ..
        } => {
            partition.signal_msi(to_first(0x41))?;
            Ok(Answer::Stop)
        }
        other => Err(unexpected(other)),
    })?;
    let state = machine.cpus[0].export()?;
    expect(
        "the request register",
        [0, 0, 2, 0, 0, 0, 0, 0],
        state.local_apic.irr,
    )?;
    // It travels with the state, and only with it.
    let mut fresh = Machine::new(accelerator, &guest)?;
    fresh.cpus[0].import(&state)?;
    fresh.expect_reports(&[1, INTERRUPT | 0x41, 2])
}
