//! The threads that run a machine's virtual processors.
//!
//! One thread each. A thread answers its processor's exits from the buses and
//! does nothing else; whatever else must happen arrives as a command and a
//! kick. Commands win over exits: a stop is seen after at most one exit. While
//! paused a processor is parked where [`Processors::visit`] reaches it.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

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

/// What a processor's thread does after it looked for commands.
enum Next {
    Run(Box<dyn Vcpu>),
    Stop(Box<dyn Vcpu>),
}

struct Orders {
    command: Command,
    /// Where each processor is while it stands still, between two runs.
    parked: Vec<Option<Box<dyn Vcpu>>>,
}

struct Control {
    orders: Mutex<Orders>,
    changed: Condvar,
}

impl Control {
    fn lock(&self) -> MutexGuard<'_, Orders> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Parks the processor while paused, or, once it `ended`, until the stop.
    fn next(&self, slot: usize, vcpu: Box<dyn Vcpu>, ended: bool) -> Next {
        let mut orders = self.lock();
        if orders.command == Command::Run && !ended {
            return Next::Run(vcpu);
        }
        let mut own = Some(vcpu);
        loop {
            let goes_on = match orders.command {
                Command::Run => !ended,
                Command::Pause => false,
                Command::Stop => true,
            };
            if goes_on && let Some(vcpu) = own.take().or_else(|| orders.parked[slot].take()) {
                return match orders.command {
                    Command::Stop => Next::Stop(vcpu),
                    _ => Next::Run(vcpu),
                };
            }
            if let Some(vcpu) = own.take() {
                orders.parked[slot] = Some(vcpu);
                self.changed.notify_all();
            }
            orders = self
                .changed
                .wait(orders)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// How often a pause looks whether a thread has died.
const LOOK: Duration = Duration::from_millis(100);

/// The running processors of a machine. Dropping stops them.
pub struct Processors {
    control: Arc<Control>,
    kickers: Vec<Arc<dyn VcpuKicker>>,
    threads: Mutex<Vec<JoinHandle<Box<dyn Vcpu>>>>,
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
            orders: Mutex::new(Orders {
                command: Command::Run,
                parked: vcpus.iter().map(|_| None).collect(),
            }),
            changed: Condvar::new(),
        });
        let mut processors = Self {
            control,
            kickers: Vec::new(),
            threads: Mutex::default(),
        };
        for (slot, vcpu) in vcpus.into_iter().enumerate() {
            let (control, buses, report) =
                (processors.control.clone(), buses.clone(), report.clone());
            processors.kickers.push(vcpu.kicker());
            let name = format!("vcpu-{}", vcpu.id());
            let thread = spawn(ThreadKind::Vcpu, name, move || {
                run(vcpu, slot, &control, &buses, report)
            })?;
            processors.lock_threads().push(thread);
        }
        Ok(processors)
    }

    /// Makes every processor stand still and waits until they do: nothing of
    /// the guest executes when this returns true. False if one of them is
    /// lost, or they were stopped.
    pub fn pause(&self) -> bool {
        self.command(Command::Pause);
        let mut orders = self.control.lock();
        loop {
            if orders.command != Command::Pause {
                return false;
            }
            if orders.parked.iter().all(Option::is_some) {
                return true;
            }
            (orders, _) = self
                .control
                .changed
                .wait_timeout(orders, LOOK)
                .unwrap_or_else(PoisonError::into_inner);
            if self.lock_threads().iter().any(JoinHandle::is_finished) {
                return false;
            }
        }
    }

    /// Lets paused processors go on.
    pub fn resume(&self) {
        self.command(Command::Run);
    }

    /// Calls `look` with each processor in order, while they stand still.
    /// `None` if they don't.
    pub fn visit<R>(&self, mut look: impl FnMut(&mut dyn Vcpu) -> R) -> Option<Vec<R>> {
        let mut orders = self.control.lock();
        if orders.command != Command::Pause || !orders.parked.iter().all(Option::is_some) {
            return None;
        }
        let parked = orders.parked.iter_mut().flatten();
        Some(parked.map(|vcpu| look(vcpu.as_mut())).collect())
    }

    /// Stops the processors and hands them back in order, each between two
    /// runs. A processor whose thread died is left out.
    pub fn stop(&self) -> Vec<Box<dyn Vcpu>> {
        self.command(Command::Stop);
        let threads = std::mem::take(&mut *self.lock_threads());
        threads
            .into_iter()
            .filter_map(|thread| thread.join().ok())
            .collect()
    }

    fn command(&self, command: Command) {
        let mut orders = self.control.lock();
        // A stop is for good.
        if orders.command != Command::Stop {
            orders.command = command;
        }
        drop(orders);
        self.control.changed.notify_all();
        for kicker in &self.kickers {
            kicker.kick();
        }
    }

    fn lock_threads(&self) -> MutexGuard<'_, Vec<JoinHandle<Box<dyn Vcpu>>>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Processors {
    fn drop(&mut self) {
        self.stop();
    }
}

fn run(
    mut vcpu: Box<dyn Vcpu>,
    slot: usize,
    control: &Control,
    buses: &Buses,
    report: impl Fn(ProcessorEvent),
) -> Box<dyn Vcpu> {
    let id = vcpu.id();
    let mut entry = VcpuEntry::Resume;
    loop {
        // A read must be answered before the processor may be taken apart, so
        // commands are looked at between exits that need no answer.
        if entry == VcpuEntry::Resume {
            vcpu = match control.next(slot, vcpu, false) {
                Next::Run(vcpu) => vcpu,
                Next::Stop(vcpu) => return vcpu,
            };
        }
        let end = match vcpu.run(entry) {
            Ok(VcpuExit::Shutdown) => ProcessorEvent::Shutdown(id),
            Ok(exit) => {
                entry = handle(exit, buses);
                continue;
            }
            Err(error) => ProcessorEvent::Failed(id, error),
        };
        report(end);
        let (Next::Run(vcpu) | Next::Stop(vcpu)) = control.next(slot, vcpu, true);
        return vcpu;
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

#[cfg(test)]
#[path = "processors_test.rs"]
mod test;
