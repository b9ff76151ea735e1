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

pub(crate) fn kernel(code: &[&[u8]]) -> Kernel {
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

pub(crate) fn spec(kernel: Kernel) -> MachineSpec {
    MachineSpec {
        cpus: 1,
        features: None,
        memory: ByteCount::mib(16),
        boot: BootSource::Kernel(DirectBoot {
            kernel,
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

fn kernel_boot(spec: &mut MachineSpec) -> &mut DirectBoot {
    match &mut spec.boot {
        BootSource::Kernel(boot) => boot,
        BootSource::Saved(_) => unreachable!(),
    }
}

pub(crate) fn engines() -> Vec<Arc<dyn Accelerator>> {
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

pub(crate) fn tail() -> (SerialIo, ConsoleTail) {
    let tail = ConsoleTail::default();
    let io = SerialIo {
        input: None,
        output: SerialOutput::Tail(tail.clone()),
    };
    (io, tail)
}

pub(crate) fn start(
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
    assert!(refused(&|spec| kernel_boot(spec).initrd = vec![0; 32 << 20]).contains("does not fit"),);
    assert!(
        refused(&|spec| kernel_boot(spec).command_line = "x".repeat(5000)).contains("command line")
    );
}

/// Says 'a' to 'z' and again for ever, a letter for every 16 Ki rounds of a
/// loop. The letter is in a register and in memory; where they differ, a
/// triple fault.
pub(crate) fn alphabet() -> Vec<u8> {
    let mut code = vec![0xb3, b'a']; // mov bl, 'a'
    code.extend([0xbf, 0, 0, 0x20, 0, 0x88, 0x1f]); // mov edi, 200000h; mov [rdi], bl
    let again = code.len();
    code.extend([0xb9, 0x00, 0x40, 0x00, 0x00]); // mov ecx, 4000h
    code.extend([0xff, 0xc9, 0x75, 0xfc]); // dec ecx; jnz
    code.extend([0x66, 0xba, 0xf8, 0x03]); // mov dx, 3f8h
    code.extend([0x8a, 0x07, 0x38, 0xd8, 0x74, TRIPLE_FAULT.len() as u8]); // mov al, [rdi]; cmp al, bl; je
    code.extend(TRIPLE_FAULT);
    code.push(0xee); // out dx, al
    code.extend([0xfe, 0xc3, 0x80, 0xfb, b'z' + 1, 0x75, 0x02, 0xb3, b'a']); // inc bl; wrap
    code.extend([0x88, 0x1f]); // mov [rdi], bl
    let back = again as i64 - (code.len() as i64 + 2);
    code.extend([0xeb, back as i8 as u8]);
    code
}

/// Waits until the console has said `count` bytes; what it said.
pub(crate) fn said(tail: &ConsoleTail, count: usize) -> String {
    let begin = std::time::Instant::now();
    loop {
        let said = tail.lines(1);
        if said.len() >= count || begin.elapsed() > PATIENCE {
            return said;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub(crate) fn follows(text: &str) -> bool {
    let next = |byte: u8| if byte == b'z' { b'a' } else { byte + 1 };
    text.as_bytes()
        .windows(2)
        .all(|pair| pair[1] == next(pair[0]))
}

#[test]
fn a_paused_machine_stands_still_and_goes_on() {
    for accelerator in engines() {
        let (io, tail) = tail();
        let (machine, _ended) =
            start(spec(kernel(&[&alphabet()])), accelerator.as_ref(), io).unwrap();
        said(&tail, 3);
        let handle = machine.handle();
        assert_eq!(handle.run_state(), RunState::Running);
        handle.pause().unwrap();
        handle.pause().unwrap();
        assert_eq!(handle.run_state(), RunState::Paused);
        std::thread::sleep(Duration::from_millis(50));
        let then = tail.lines(1);
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(tail.lines(1), then);
        handle.resume().unwrap();
        let now = said(&tail, then.len() + 5);
        assert!(now.len() > then.len() && follows(&now), "{now}");
        drop(machine);
        assert_eq!(handle.run_state(), RunState::Ended);
        assert!(matches!(handle.pause(), Err(LifecycleError::Ended)));
    }
}
