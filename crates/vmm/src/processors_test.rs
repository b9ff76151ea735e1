use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use favo_accel::AccessSize;
use favo_accel::state::VcpuState;
use favo_devices::bus::BusDevice;
use favo_types::GuestAddress;

use super::*;

/// A processor that plays exits back and then idles until it is kicked.
struct Script {
    id: VcpuId,
    exits: VecDeque<VcpuExit>,
    entries: mpsc::Sender<VcpuEntry>,
    kicked: Arc<Kick>,
}

#[derive(Default)]
struct Kick {
    flag: Mutex<bool>,
    raised: Condvar,
}

impl VcpuKicker for Kick {
    fn kick(&self) {
        *self.flag.lock().unwrap() = true;
        self.raised.notify_all();
    }
}

impl Vcpu for Script {
    fn id(&self) -> VcpuId {
        self.id
    }

    fn run(&mut self, entry: VcpuEntry) -> Result<VcpuExit, AccelError> {
        let _ = self.entries.send(entry);
        if let Some(exit) = self.exits.pop_front() {
            return Ok(exit);
        }
        let mut flag = self.kicked.flag.lock().unwrap();
        while !*flag {
            flag = self.kicked.raised.wait(flag).unwrap();
        }
        *flag = false;
        Ok(VcpuExit::Interrupted)
    }

    fn kicker(&self) -> Arc<dyn VcpuKicker> {
        self.kicked.clone()
    }

    fn export_state(&mut self) -> Result<VcpuState, AccelError> {
        Ok(VcpuState::power_on(self.id.0, 0))
    }

    fn import_state(&mut self, _: &VcpuState) -> Result<(), AccelError> {
        Ok(())
    }
}

fn script(exits: &[VcpuExit]) -> (Box<dyn Vcpu>, mpsc::Receiver<VcpuEntry>) {
    let (entries, seen) = mpsc::channel();
    let vcpu = Script {
        id: VcpuId(0),
        exits: exits.iter().copied().collect(),
        entries,
        kicked: Arc::default(),
    };
    (Box::new(vcpu), seen)
}

/// Reads as 0x77, remembers the last write.
#[derive(Default)]
struct Register(AtomicU64);

impl BusDevice for Register {
    fn read(&self, _: u64, _: AccessSize) -> u64 {
        0x77
    }

    fn write(&self, offset: u64, _: AccessSize, value: u64) {
        self.0.store(offset << 32 | value, Ordering::SeqCst);
    }
}

fn buses(register: &Arc<Register>, ended: &Arc<AtomicU64>) -> Buses {
    let (ports, mmio) = (Bus::ports(), Bus::mmio());
    ports.insert("register", 0x80, 4, register.clone()).unwrap();
    mmio.insert("register", 0xd000_0000, 4096, register.clone())
        .unwrap();
    let ended = ended.clone();
    Buses {
        ports: Arc::new(ports),
        mmio: Arc::new(mmio),
        end_of_interrupt: Arc::new(move |vector| ended.store(vector.into(), Ordering::SeqCst)),
    }
}

#[test]
fn exits_are_answered_from_the_buses() {
    let (register, ended) = (Arc::<Register>::default(), Arc::<AtomicU64>::default());
    let (vcpu, entries) = script(&[
        VcpuExit::PortRead {
            port: 0x80,
            size: AccessSize::Byte,
        },
        VcpuExit::PortWrite {
            port: 0x83,
            size: AccessSize::Byte,
            value: 5,
        },
        VcpuExit::MmioRead {
            address: GuestAddress(0xd000_0010),
            size: AccessSize::Dword,
        },
        VcpuExit::PortRead {
            port: 0x99,
            size: AccessSize::Word,
        },
        VcpuExit::IoapicEoi { vector: 0x31 },
    ]);
    let processors = Processors::start(vec![vcpu], &buses(&register, &ended), |_| {}).unwrap();
    let next = || entries.recv_timeout(Duration::from_secs(20)).unwrap();
    for expected in [
        VcpuEntry::Resume,
        VcpuEntry::Data(0x77),
        VcpuEntry::Resume,
        VcpuEntry::Data(0x77),
        VcpuEntry::Data(0xffff),
        VcpuEntry::Resume,
    ] {
        assert_eq!(next(), expected);
    }
    assert_eq!(register.0.load(Ordering::SeqCst), 3 << 32 | 5);
    assert_eq!(ended.load(Ordering::SeqCst), 0x31);
    assert_eq!(processors.stop().len(), 1);
}

#[test]
fn a_paused_processor_runs_again_and_a_stopped_one_comes_back() {
    let (vcpu, entries) = script(&[]);
    let buses = buses(&Arc::default(), &Arc::default());
    let processors = Processors::start(vec![vcpu], &buses, |_| {}).unwrap();
    entries.recv_timeout(Duration::from_secs(20)).unwrap();
    processors.pause();
    processors.resume();
    entries.recv_timeout(Duration::from_secs(20)).unwrap();
    let mut back = processors.stop();
    assert_eq!(back.len(), 1);
    back[0].export_state().unwrap();
}

#[test]
fn a_triple_fault_is_reported_once() {
    let (vcpu, _entries) = script(&[VcpuExit::Shutdown]);
    let (sender, events) = mpsc::channel();
    let reported = Arc::new(AtomicBool::new(false));
    let again = reported.clone();
    let report = move |event| {
        assert!(!again.swap(true, Ordering::SeqCst));
        sender.send(event).unwrap();
    };
    let buses = buses(&Arc::default(), &Arc::default());
    let processors = Processors::start(vec![vcpu], &buses, report).unwrap();
    let event = events.recv_timeout(Duration::from_secs(20)).unwrap();
    assert!(matches!(event, ProcessorEvent::Shutdown(VcpuId(0))));
    drop(processors);
}
