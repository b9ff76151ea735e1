//! Machines with guests of a few instructions, on every engine of this host.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use favo_accel::EngineKind;

use super::*;
use crate::engine::{self, EngineChoice};
use crate::serial_io::{ConsoleTail, SerialOutput};

const PATIENCE: Duration = Duration::from_secs(60);

/// `mov dx, port; mov al, value; out dx, al`
fn out(port: u16, value: u8) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    vec![0x66, 0xba, low, high, 0xb0, value, 0xee]
}

/// `jmp $`
const FOREVER: [u8; 2] = [0xeb, 0xfe];

/// `lidt [rip + nothing]; ud2`: the exception finds no handler, nor does the
/// one about that.
const TRIPLE_FAULT: [u8; 9] = [0x0f, 0x01, 0x1d, 2, 0, 0, 0, 0x0f, 0x0b];

fn kernel(code: &[&[u8]]) -> Kernel {
    let mut image: Vec<u8> = code.concat();
    // What TRIPLE_FAULT loads as an IDT of no entries.
    image.extend([0; 16]);
    Kernel {
        segments: vec![crate::kernel::Segment {
            address: favo_types::GuestAddress(1 << 20),
            file: 0..image.len(),
            memory_size: ByteCount(4096),
        }],
        entry: favo_types::GuestAddress(1 << 20),
        image,
        setup_header: None,
    }
}

fn spec(kernel: Kernel) -> MachineSpec {
    MachineSpec {
        cpus: 1,
        memory: ByteCount::mib(16),
        boot: DirectBoot {
            kernel,
            initrd: Vec::new(),
            command_line: String::new(),
        },
        disks: Vec::new(),
        cards: Vec::new(),
        vsock_cid: Some(3),
        rng: true,
        balloon: true,
        console: None,
    }
}

fn engines() -> Vec<Arc<dyn Accelerator>> {
    [EngineKind::Soft, EngineKind::Kvm]
        .into_iter()
        .filter_map(|kind| match engine::open(EngineChoice::Only(kind)) {
            Ok(engine) => Some(engine.accelerator),
            Err(error) => {
                println!("skipped: {error}");
                None
            }
        })
        .collect()
}

fn tail() -> (SerialIo, ConsoleTail) {
    let tail = ConsoleTail::default();
    let io = SerialIo {
        input: None,
        output: SerialOutput::Tail(tail.clone()),
    };
    (io, tail)
}

fn start(
    spec: MachineSpec,
    accelerator: &dyn Accelerator,
    serial: SerialIo,
) -> Result<(Machine, Receiver<Outcome>), MachineError> {
    let (sender, ended) = channel();
    let report: EndReport = Arc::new(move |outcome| sender.send(outcome).unwrap());
    Machine::start(spec, accelerator, serial, report).map(|machine| (machine, ended))
}

fn outcome_of(code: &[&[u8]]) -> Vec<(EngineKind, Outcome, String)> {
    engines()
        .iter()
        .map(|accelerator| {
            let (io, tail) = tail();
            let (machine, ended) = start(spec(kernel(code)), accelerator.as_ref(), io).unwrap();
            let outcome = ended.recv_timeout(PATIENCE).unwrap();
            machine.stop();
            (accelerator.kind(), outcome, tail.lines(10))
        })
        .collect()
}

#[test]
fn a_guest_powers_off_after_it_has_said_something() {
    let hello: Vec<u8> = b"hello".iter().flat_map(|byte| out(0x3f8, *byte)).collect();
    for (engine, outcome, said) in outcome_of(&[&hello, &out(0x600, 0x34), &FOREVER]) {
        assert_eq!(outcome, Outcome::PoweredOff, "{engine}");
        assert_eq!(said, "hello", "{engine}");
    }
}

#[test]
fn every_end_is_told_from_the_others() {
    for (code, expected) in [
        (vec![out(0xcf9, 6), FOREVER.to_vec()], Outcome::Reset),
        (vec![out(0x64, 0xfe), FOREVER.to_vec()], Outcome::Reset),
        (vec![out(0x505, 1), FOREVER.to_vec()], Outcome::Panicked),
        (vec![TRIPLE_FAULT.to_vec()], Outcome::TripleFault(VcpuId(0))),
    ] {
        let code: Vec<&[u8]> = code.iter().map(Vec::as_slice).collect();
        for (engine, outcome, _) in outcome_of(&code) {
            assert_eq!(outcome, expected, "{engine}");
        }
    }
}

#[test]
fn output_reaches_a_descriptor_byte_for_byte() {
    let text: Vec<u8> = (0..=255u8).collect();
    let code: Vec<u8> = text.iter().flat_map(|byte| out(0x3f8, *byte)).collect();
    for accelerator in engines() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let io = SerialIo {
            input: None,
            output: SerialOutput::Fd(theirs.into()),
        };
        let reader = std::thread::spawn(move || {
            let mut seen = Vec::new();
            (&ours).read_to_end(&mut seen).map(|_| seen)
        });
        let kernel = kernel(&[&code, &out(0x600, 0x34), &FOREVER]);
        let (machine, ended) = start(spec(kernel), accelerator.as_ref(), io).unwrap();
        assert_eq!(ended.recv_timeout(PATIENCE), Ok(Outcome::PoweredOff));
        drop(machine);
        assert_eq!(reader.join().unwrap().unwrap(), text);
    }
}

#[test]
fn impossible_machines_are_refused() {
    let accelerator = engines().remove(0);
    let refused = |change: &dyn Fn(&mut MachineSpec)| {
        let mut spec = spec(kernel(&[&FOREVER]));
        change(&mut spec);
        let (io, _) = tail();
        start(spec, accelerator.as_ref(), io)
            .unwrap_err()
            .to_string()
    };
    let host = host_memory();
    assert!(
        refused(&|spec| spec.memory = ByteCount((host.bytes() + 4096) & !4095))
            .contains("more than the host's")
    );
    assert!(refused(&|spec| spec.memory = ByteCount(4097)).contains("too little"));
    assert!(refused(&|spec| spec.cpus = 0).contains("processors"));
    assert!(refused(&|spec| spec.cpus = 100_000).contains("processors"));
    assert!(refused(&|spec| spec.boot.initrd = vec![0; 32 << 20]).contains("does not fit"),);
    assert!(refused(&|spec| spec.boot.command_line = "x".repeat(5000)).contains("command line"));
}
