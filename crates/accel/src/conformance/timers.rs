//! The local APIC's timer in its three modes.

use std::time::{Duration, Instant};

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use super::guest::{
    ApicMode, Guest, INTERRUPT, apic_read, apic_write, done, report, report_constant, sync, window,
    write_msr,
};
use super::harness::{Answer, Machine, RESUME, TSC_DEADLINE, X2APIC, unexpected};
use super::{Case, Failure, expect_within};
use crate::engine::{Accelerator, VcpuExit};

pub(super) const CASES: &[Case] = &[
    Case::new("timers/one-shot", one_shot),
    Case::new("timers/one-shot-x2apic", one_shot_x2apic),
    Case::new("timers/periodic", periodic),
    Case::new("timers/masked", masked),
    Case::new("timers/count-falls-and-stops", count_falls),
    Case::new("timers/takes-the-time-it-should", takes_its_time),
    Case::new("timers/tsc-deadline", tsc_deadline),
    Case::new("timers/tsc-deadline-in-the-past", tsc_deadline_past),
    Case::new("timers/tsc-deadline-of-zero-disarms", tsc_deadline_disarmed),
];

const LVT_TIMER: u32 = 0x320;
const INITIAL: u32 = 0x380;
const CURRENT: u32 = 0x390;
const DIVIDE: u32 = 0x3e0;
const PERIODIC: u32 = 1 << 17;
const DEADLINE_MODE: u32 = 1 << 18;
const MASKED: u32 = 1 << 16;
const DEADLINE_MSR: u32 = 0x6e0;

fn arm(a: &mut CodeAssembler, apic: ApicMode, lvt: u32, count: u32) -> Result<(), IcedError> {
    // Divide by 1.
    apic_write(a, apic, DIVIDE, 0xb)?;
    apic_write(a, apic, LVT_TIMER, lvt)?;
    apic_write(a, apic, INITIAL, count)
}

/// Waits for one interrupt.
fn wait(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.sti()?;
    a.hlt()?;
    a.cli()
}

fn one_shot_in(apic: ApicMode) -> Result<Guest, Failure> {
    Guest::long_with(apic, |a| {
        arm(a, apic, 0x41, 100_000)?;
        wait(a)?;
        report_constant(a, 1)?;
        // It fires once.
        apic_read(a, apic, CURRENT)?;
        report(a, eax)?;
        window(a)?;
        done(a)
    })
}

fn one_shot(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    Machine::new(accelerator, &one_shot_in(ApicMode::XApic)?)?.expect_reports(&[
        INTERRUPT | 0x41,
        1,
        0,
    ])
}

fn one_shot_x2apic(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    X2APIC.require(accelerator)?;
    Machine::new(accelerator, &one_shot_in(ApicMode::X2Apic)?)?.expect_reports(&[
        INTERRUPT | 0x41,
        1,
        0,
    ])
}

fn periodic(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    let guest = Guest::long(|a| {
        // Slow enough for an emulated engine to end in time.
        arm(a, ApicMode::XApic, 0x41 | PERIODIC, 20_000_000)?;
        for _ in 0..3 {
            wait(a)?;
        }
        apic_write(a, ApicMode::XApic, INITIAL, 0)?;
        window(a)?;
        report_constant(a, 1)?;
        window(a)?;
        done(a)
    })?;
    let mut machine = Machine::new(accelerator, &guest)?;
    machine.run_with(|_, exit| Err(unexpected(exit)))?;
    let ticks = machine
        .reports
        .iter()
        .filter(|value| **value == INTERRUPT | 0x41);
    // A tick may fall between the last wait and the stop.
    expect_within("the ticks", 3..5, ticks.count() as u64)?;
    super::expect("the last report", Some(&1), machine.reports.last())
}

fn masked(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    let guest = Guest::long(|a| {
        let mut again = a.create_label();
        arm(a, ApicMode::XApic, 0x41 | MASKED, 1000)?;
        // It counts down all the same.
        a.set_label(&mut again)?;
        apic_read(a, ApicMode::XApic, CURRENT)?;
        a.test(eax, eax)?;
        a.jnz(again)?;
        window(a)?;
        report_constant(a, 1)?;
        done(a)
    })?;
    Machine::new(accelerator, &guest)?.expect_reports(&[1])
}

fn count_falls(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    let guest = Guest::long(|a| {
        arm(a, ApicMode::XApic, 0x41, 0x8000_0000)?;
        apic_read(a, ApicMode::XApic, CURRENT)?;
        a.mov(esi, eax)?;
        sync(a, 1)?;
        apic_read(a, ApicMode::XApic, CURRENT)?;
        a.mov(edi, eax)?;
        report(a, esi)?;
        report(a, edi)?;
        // A count of 0 stops it.
        apic_write(a, ApicMode::XApic, INITIAL, 0)?;
        apic_read(a, ApicMode::XApic, CURRENT)?;
        report(a, eax)?;
        done(a)
    })?;
    let mut machine = Machine::new(accelerator, &guest)?;
    machine.run_with(|_, exit| match exit {
        VcpuExit::PortWrite {
            port: super::guest::SYNC,
            ..
        } => {
            std::thread::sleep(Duration::from_millis(2));
            Ok(RESUME)
        }
        other => Err(unexpected(other)),
    })?;
    let &[first, second, third] = machine.reports.as_slice() else {
        return Err(Failure::mismatch("the reports", "three", machine.reports));
    };
    super::expect("it falls", true, first <= 0x8000_0000 && second < first)?;
    super::expect("the count of a stopped timer", 0, third)
}

fn takes_its_time(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    // Both engines run the timer at 1 GHz: 50 ms.
    let guest = Guest::long(|a| {
        sync(a, 1)?;
        arm(a, ApicMode::XApic, 0x41, 50_000_000)?;
        wait(a)?;
        done(a)
    })?;
    let mut machine = Machine::new(accelerator, &guest)?;
    machine.run_to_sync()?;
    let begin = Instant::now();
    machine.expect_reports(&[INTERRUPT | 0x41])?;
    // Never early, and late only because the host is busy.
    expect_within(
        "milliseconds",
        49..10_000,
        begin.elapsed().as_millis() as u64,
    )
}

/// Arms the deadline `ahead` from now.
fn arm_deadline(a: &mut CodeAssembler, ahead: i32) -> Result<(), IcedError> {
    apic_write(a, ApicMode::XApic, LVT_TIMER, 0x41 | DEADLINE_MODE)?;
    a.mfence()?;
    a.rdtsc()?;
    a.shl(rdx, 32)?;
    a.or(rax, rdx)?;
    a.add(rax, ahead)?;
    a.mov(rdx, rax)?;
    a.shr(rdx, 32)?;
    a.mov(ecx, DEADLINE_MSR)?;
    a.wrmsr()
}

fn tsc_deadline(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    TSC_DEADLINE.require(accelerator)?;
    let guest = Guest::long(|a| {
        arm_deadline(a, 3_000_000)?;
        a.mov(ecx, DEADLINE_MSR)?;
        wait(a)?;
        report_constant(a, 1)?;
        // Having fired, it reads as 0.
        a.mov(ecx, DEADLINE_MSR)?;
        a.rdmsr()?;
        a.or(eax, edx)?;
        report(a, eax)?;
        done(a)
    })?;
    Machine::new(accelerator, &guest)?.expect_reports(&[INTERRUPT | 0x41, 1, 0])
}

fn tsc_deadline_past(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    TSC_DEADLINE.require(accelerator)?;
    let guest = Guest::long(|a| {
        arm_deadline(a, -1000)?;
        wait(a)?;
        report_constant(a, 1)?;
        done(a)
    })?;
    Machine::new(accelerator, &guest)?.expect_reports(&[INTERRUPT | 0x41, 1])
}

fn tsc_deadline_disarmed(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    TSC_DEADLINE.require(accelerator)?;
    let guest = Guest::long(|a| {
        arm_deadline(a, 100_000_000)?;
        write_msr(a, DEADLINE_MSR, 0)?;
        sync(a, 1)?;
        window(a)?;
        report_constant(a, 1)?;
        done(a)
    })?;
    let mut machine = Machine::new(accelerator, &guest)?;
    machine.run_with(|_, exit| match exit {
        VcpuExit::PortWrite {
            port: super::guest::SYNC,
            ..
        } => {
            std::thread::sleep(Duration::from_millis(150));
            Ok(Answer::Entry(crate::engine::VcpuEntry::Resume))
        }
        other => Err(unexpected(other)),
    })?;
    machine.compare_reports(&[1])
}
