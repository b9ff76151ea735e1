//! A stopped machine leaves no thread and no descriptor. The only test of its
//! process, so that nothing else comes and goes beside it.

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use favo_accel::EngineKind;
use favo_accel::MemoryBacking;
use favo_types::{ByteCount, GuestAddress};
use favo_vmm::engine::{self, EngineChoice};
use favo_vmm::kernel::{Kernel, Segment};
use favo_vmm::machine::{BootSource, DirectBoot, EndReport, Machine, MachineSpec};
use favo_vmm::outcome::Outcome;
use favo_vmm::serial_io::{ConsoleTail, SerialIo, SerialOutput};

#[test]
fn a_machine_is_stopped_from_outside_and_leaves_no_thread_and_no_descriptor() {
    for kind in [EngineKind::Soft, EngineKind::Kvm] {
        let engine = match engine::open(EngineChoice::Only(kind)) {
            Ok(engine) => engine,
            Err(error) => {
                println!("skipped: {error}");
                continue;
            }
        };
        let before = threads_and_descriptors();
        let (sender, ended) = channel();
        let report: EndReport = Arc::new(move |outcome| sender.send(outcome).unwrap());
        let serial = SerialIo {
            input: None,
            output: SerialOutput::Tail(ConsoleTail::default()),
        };
        let machine = Machine::start(spec(), engine.accelerator.as_ref(), serial, report).unwrap();
        assert!(threads_and_descriptors().0 > before.0);
        machine.handle().stop();
        let outcome = ended.recv_timeout(Duration::from_secs(60));
        assert_eq!(outcome, Ok(Outcome::Stopped));
        // A second end is not told.
        machine.handle().stop();
        drop(machine);
        assert!(ended.recv().is_err());
        assert_eq!(threads_and_descriptors(), before, "{kind}");
    }
}

/// Two processors, one of which runs `jmp $`.
fn spec() -> MachineSpec {
    let image = vec![0xeb, 0xfe];
    MachineSpec {
        cpus: 2,
        features: None,
        memory: ByteCount::mib(16),
        boot: BootSource::Kernel(DirectBoot {
            kernel: Kernel {
                segments: vec![Segment {
                    address: GuestAddress(1 << 20),
                    file: 0..image.len(),
                    memory_size: ByteCount(4096),
                }],
                entry: GuestAddress(1 << 20),
                image,
                setup_header: None,
            },
            initrd: Vec::new(),
            command_line: String::new(),
        }),
        backing: MemoryBacking::Anonymous,
        disks: Vec::new(),
        cards: Vec::new(),
        vsock_cid: Some(3),
        rng: true,
        balloon: true,
        console: None,
    }
}

fn threads_and_descriptors() -> (usize, usize) {
    let count = |path| std::fs::read_dir(path).unwrap().count();
    (count("/proc/self/task"), count("/proc/self/fd"))
}
