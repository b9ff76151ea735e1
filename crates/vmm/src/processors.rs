//! The threads that run a machine's virtual processors.
//!
//! One thread each. A thread answers its processor's exits from the buses and
//! does nothing else; whatever else must happen arrives as a command and a
//! kick. Commands win over exits: a stop is seen after at most one exit.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use favo_accel::{AccelError, Vcpu, VcpuEntry, VcpuExit, VcpuId, VcpuKicker};
use favo_devices::bus::Bus;
use favo_thread::{ThreadKind, spawn};

/// What processors reach besides RAM.
#[derive(Clone)]
pub struct Buses {
    /// I/O ports.
    pub ports: Arc<Bus>,
    /// Memory that is not RAM.
    pub mmio: Arc<Bus>,
    /// Hears of the end of level-triggered interrupts.
    pub end_of_interrupt: Arc<dyn Fn(u8) + Send + Sync>,
}

/// Why a processor's thread ended or asks to.
#[derive(Debug)]
pub enum ProcessorEvent {
    /// A triple fault.
    Shutdown(VcpuId),
    /// The engine failed; the machine can't go on.
    Failed(VcpuId, AccelError),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Command {
    Run,
    Pause,
    Stop,
}

struct Control {
    command: Mutex<Command>,
    changed: Condvar,
}

impl Control {
    fn lock(&self) -> MutexGuard<'_, Command> {
        self.command.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits while paused; false means stop.
    fn may_run(&self) -> bool {
        let mut command = self.lock();
        while *command == Command::Pause {
            command = self
                .changed
                .wait(command)
                .unwrap_or_else(PoisonError::into_inner);
        }
        *command == Command::Run
    }
}

/// The running processors of a machine. Dropping stops them.
pub struct Processors {
    control: Arc<Control>,
    kickers: Vec<Arc<dyn VcpuKicker>>,
    threads: Vec<JoinHandle<Box<dyn Vcpu>>>,
}

impl Processors {
    /// Starts a thread for each processor. `report` is called on a
    /// processor's thread, which then waits for the machine to stop.
    pub fn start(
        vcpus: Vec<Box<dyn Vcpu>>,
        buses: &Buses,
        report: impl Fn(ProcessorEvent) + Clone + Send + 'static,
    ) -> std::io::Result<Self> {
        let control = Arc::new(Control {
            command: Mutex::new(Command::Run),
            changed: Condvar::new(),
        });
        let mut processors = Self {
            control,
            kickers: Vec::new(),
            threads: Vec::new(),
        };
        for vcpu in vcpus {
            let (control, buses, report) =
                (processors.control.clone(), buses.clone(), report.clone());
            processors.kickers.push(vcpu.kicker());
            let name = format!("vcpu-{}", vcpu.id());
            let thread = spawn(ThreadKind::Vcpu, name, move || {
                run(vcpu, &control, &buses, report)
            })?;
            processors.threads.push(thread);
        }
        Ok(processors)
    }

    /// Makes every processor stand still soon; they keep their state.
    pub fn pause(&self) {
        self.command(Command::Pause);
    }

    /// Lets paused processors go on.
    pub fn resume(&self) {
        self.command(Command::Run);
    }

    /// Stops the processors and hands them back in order, each between two
    /// runs. A processor whose thread died is left out.
    pub fn stop(mut self) -> Vec<Box<dyn Vcpu>> {
        self.stop_threads()
    }

    fn stop_threads(&mut self) -> Vec<Box<dyn Vcpu>> {
        self.command(Command::Stop);
        self.threads
            .drain(..)
            .filter_map(|thread| thread.join().ok())
            .collect()
    }

    fn command(&self, command: Command) {
        let mut current = self.control.lock();
        // A stop is for good.
        if *current != Command::Stop {
            *current = command;
        }
        drop(current);
        self.control.changed.notify_all();
        for kicker in &self.kickers {
            kicker.kick();
        }
    }
}

impl Drop for Processors {
    fn drop(&mut self) {
        self.stop_threads();
    }
}

fn run(
    mut vcpu: Box<dyn Vcpu>,
    control: &Control,
    buses: &Buses,
    report: impl Fn(ProcessorEvent),
) -> Box<dyn Vcpu> {
    let id = vcpu.id();
    let mut entry = VcpuEntry::Resume;
    loop {
        // A read must be answered before the processor may be taken apart, so
        // commands are looked at between exits that need no answer.
        if entry == VcpuEntry::Resume && !control.may_run() {
            return vcpu;
        }
        match vcpu.run(entry) {
            Ok(exit) => {
                entry = handle(exit, buses);
                if exit == VcpuExit::Shutdown {
                    report(ProcessorEvent::Shutdown(id));
                    wait_for_stop(control);
                    return vcpu;
                }
            }
            Err(error) => {
                report(ProcessorEvent::Failed(id, error));
                wait_for_stop(control);
                return vcpu;
            }
        }
    }
}

fn handle(exit: VcpuExit, buses: &Buses) -> VcpuEntry {
    match exit {
        VcpuExit::PortRead { port, size } => {
            return VcpuEntry::Data(buses.ports.read(port.into(), size));
        }
        VcpuExit::PortWrite { port, size, value } => {
            buses.ports.write(port.into(), size, value.into());
        }
        VcpuExit::MmioRead { address, size } => {
            return VcpuEntry::Data(buses.mmio.read(address.0, size));
        }
        VcpuExit::MmioWrite {
            address,
            size,
            value,
        } => {
            buses.mmio.write(address.0, size, value);
        }
        VcpuExit::IoapicEoi { vector } => (buses.end_of_interrupt)(vector),
        VcpuExit::Shutdown | VcpuExit::Interrupted => {}
    }
    VcpuEntry::Resume
}

fn wait_for_stop(control: &Control) {
    let mut command = control.lock();
    while *command != Command::Stop {
        command = control
            .changed
            .wait(command)
            .unwrap_or_else(PoisonError::into_inner);
    }
}

#[cfg(test)]
#[path = "processors_test.rs"]
mod test;
