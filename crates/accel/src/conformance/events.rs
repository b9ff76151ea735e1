//! Event descriptors, where an engine has them: guest writes that signal one,
//! and ones that raise an interrupt.

use std::os::fd::{AsFd, OwnedFd};

use favo_types::GuestAddress;
use iced_x86::code_asm::*;

use super::guest::{Guest, INTERRUPT, MMIO, done, report_constant, sync, window};
use super::harness::{Machine, RESUME, unexpected};
use super::interrupts::to_first;
use super::{Case, Failure, expect};
use crate::engine::{Accelerator, AccessSize, IoEventAddress, VcpuExit};

pub(super) const CASES: &[Case] = &[
    Case::new("events/port-write", port_write),
    Case::new("events/mmio-write", mmio_write),
    Case::new("events/interrupt", interrupt),
];

const PORT: u16 = 0x3f0;

fn event() -> Result<OwnedFd, Failure> {
    rustix::event::eventfd(0, rustix::event::EventfdFlags::NONBLOCK)
        .map_err(|error| Failure::Skipped(format!("the host has no event descriptors: {error}")))
}

/// How often the event was signalled since the last look.
fn signals(event: &OwnedFd) -> u64 {
    let mut count = [0; 8];
    match rustix::io::read(event, &mut count) {
        Ok(8) => u64::from_ne_bytes(count),
        _ => 0,
    }
}

fn signal(event: &OwnedFd) -> Result<(), Failure> {
    rustix::io::write(event, &1_u64.to_ne_bytes())
        .map(|_| ())
        .map_err(|error| Failure::mismatch("signalling an event", "8 bytes", error))
}

fn none(what: &str) -> Failure {
    Failure::Skipped(format!("the engine has no {what}"))
}

/// Runs to the end and returns the values of the exits that are left.
fn exits(machine: &mut Machine) -> Result<Vec<u64>, Failure> {
    let mut values = Vec::new();
    machine.run_with(|_, exit| match exit {
        VcpuExit::PortWrite {
            port: PORT, value, ..
        } => {
            values.push(value.into());
            Ok(RESUME)
        }
        VcpuExit::MmioWrite { value, .. } => {
            values.push(value);
            Ok(RESUME)
        }
        other => Err(unexpected(other)),
    })?;
    Ok(values)
}

fn port_write(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    let guest = Guest::long(|a| {
        for value in [5, 6, 5] {
            a.mov(dx, u32::from(PORT))?;
            a.mov(eax, value)?;
            a.out(dx, eax)?;
        }
        a.out(dx, ax)?;
        sync(a, 0)?;
        a.mov(dx, u32::from(PORT))?;
        a.mov(eax, 5)?;
        a.out(dx, eax)?;
        done(a)
    })?;
    let mut machine = Machine::new(accelerator, &guest)?;
    let partition = machine.partition.clone();
    let view = partition
        .io_event_fd()
        .ok_or_else(|| none("write events"))?;
    let event = event()?;
    let matching = Some((AccessSize::Dword, 5));
    view.register(IoEventAddress::Port(PORT), matching, event.as_fd())?;
    let mut left = Vec::new();
    machine.run_with(|_, exit| match exit {
        VcpuExit::PortWrite {
            port: PORT,
            value,
            size,
        } => {
            left.push((size, value));
            Ok(RESUME)
        }
        VcpuExit::PortWrite {
            port: super::guest::SYNC,
            ..
        } => {
            view.unregister(IoEventAddress::Port(PORT), matching, event.as_fd())?;
            Ok(RESUME)
        }
        other => Err(unexpected(other)),
    })?;
    expect("the event's count", 2, signals(&event))?;
    expect(
        "the writes that exited",
        vec![
            (AccessSize::Dword, 6),
            (AccessSize::Word, 5),
            (AccessSize::Dword, 5),
        ],
        left,
    )
}

fn mmio_write(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    let guest = Guest::long(|a| {
        a.mov(rdi, MMIO)?;
        a.mov(eax, 7)?;
        a.mov(byte_ptr(rdi), al)?;
        a.mov(word_ptr(rdi), ax)?;
        a.mov(dword_ptr(rdi), eax)?;
        a.mov(dword_ptr(rdi + 4), eax)?;
        done(a)
    })?;
    let mut machine = Machine::new(accelerator, &guest)?;
    let partition = machine.partition.clone();
    let view = partition
        .io_event_fd()
        .ok_or_else(|| none("write events"))?;
    let event = event()?;
    let address = IoEventAddress::Mmio(GuestAddress(MMIO));
    view.register(address, None, event.as_fd())?;
    expect("the writes that exited", vec![7], exits(&mut machine)?)?;
    expect("the event's count", 3, signals(&event))?;
    view.unregister(address, None, event.as_fd())?;
    Ok(())
}

fn interrupt(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    let guest = Guest::long(|a| {
        for step in 0..3 {
            sync(a, step)?;
            window(a)?;
            report_constant(a, step)?;
        }
        done(a)
    })?;
    let mut machine = Machine::new(accelerator, &guest)?;
    let partition = machine.partition.clone();
    let view = partition.irq_fd().ok_or_else(|| none("interrupt events"))?;
    let (first, second) = (event()?, event()?);
    let routes = [
        view.register(first.as_fd(), to_first(0x41))?,
        view.register(second.as_fd(), to_first(0x42))?,
    ];
    machine.run_with(|_, exit| match exit {
        VcpuExit::PortWrite {
            port: super::guest::SYNC,
            value,
            ..
        } => {
            match value {
                0 => signal(&first)?,
                1 => {
                    signal(&second)?;
                    signal(&first)?;
                }
                _ => {
                    view.unregister(first.as_fd(), routes[0])?;
                    signal(&first)?;
                    signal(&second)?;
                }
            }
            // Delivery runs on a kernel thread of its own where it must wait.
            std::thread::sleep(std::time::Duration::from_millis(5));
            Ok(RESUME)
        }
        other => Err(unexpected(other)),
    })?;
    view.unregister(second.as_fd(), routes[1])?;
    machine.compare_reports(&[
        INTERRUPT | 0x41,
        0,
        INTERRUPT | 0x42,
        INTERRUPT | 0x41,
        1,
        INTERRUPT | 0x42,
        2,
    ])
}
