//! Kicks: a processor stops when asked, and no request gets lost.

use std::thread::sleep;
use std::time::Duration;

use super::guest::{Guest, done, report_constant};
use super::harness::Machine;
use super::{Case, DEADLINE, Failure, expect};
use crate::engine::{Accelerator, VcpuEntry, VcpuExit};

pub(super) const CASES: &[Case] = &[
    Case::new("kicks/before-a-run-is-not-lost", kick_before_run),
    Case::new("kicks/stop-a-loop-and-a-halt", kick_stops),
    Case::new(
        "kicks/stop-a-processor-that-waits-for-init",
        kick_stops_waiting,
    ),
    Case::new("kicks/outlive-the-processor", kick_after_drop),
];

fn kick_before_run(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    let guest = Guest::long(|a| {
        report_constant(a, 1)?;
        done(a)
    })?;
    let mut machine = Machine::new(accelerator, &guest)?;
    for _ in 0..20 {
        machine.cpus[0].kicker.kick();
        machine.cpus[0].kicker.kick();
        let exit = machine.cpus[0].run(VcpuEntry::Resume)?;
        expect("the exit", VcpuExit::Interrupted, exit)?;
        // An export in between must not swallow the next one.
        machine.cpus[0].kicker.kick();
        machine.cpus[0].export()?;
        let exit = machine.cpus[0].run(VcpuEntry::Resume)?;
        expect("the exit after an export", VcpuExit::Interrupted, exit)?;
    }
    machine.expect_reports(&[1])
}

fn kick_stops(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    let spinning = Guest::long(|a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.jmp(again)
    })?;
    let halting = Guest::long(|a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.sti()?;
        a.hlt()?;
        a.jmp(again)
    })?;
    for guest in [spinning, halting] {
        let machine = Machine::new(accelerator, &guest)?;
        for round in 0..50 {
            let run = machine.cpus[0].begin_run(VcpuEntry::Resume);
            // From before the run begins to well into it.
            sleep(Duration::from_micros(20 * round));
            machine.cpus[0].kicker.kick();
            expect("the exit", VcpuExit::Interrupted, run.wait(DEADLINE)??)?;
        }
    }
    Ok(())
}

fn kick_stops_waiting(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    let guest = Guest::long(done)?;
    let machine = Machine::with_processors(accelerator, &guest, 2)?;
    for _ in 0..5 {
        let run = machine.cpus[1].begin_run(VcpuEntry::Resume);
        sleep(Duration::from_millis(2));
        machine.cpus[1].kicker.kick();
        expect("the exit", VcpuExit::Interrupted, run.wait(DEADLINE)??)?;
    }
    Ok(())
}

fn kick_after_drop(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    let guest = Guest::long(done)?;
    let machine = Machine::new(accelerator, &guest)?;
    let kicker = machine.cpus[0].kicker.clone();
    drop(machine);
    // The processor's thread drops it some time soon.
    for _ in 0..20 {
        kicker.kick();
        sleep(Duration::from_micros(500));
    }
    Ok(())
}
