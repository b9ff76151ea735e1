//! How fast an engine really runs.
//!
//! That a host has `/dev/kvm` says little: where KVM itself is emulated, a
//! guest crawls, and the software engine is many times faster. So whoever
//! picks an engine measures, with a guest that does nothing but count.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use favo_types::{ByteCount, GuestAddress};
use serde::Serialize;

use crate::engine::{AccelError, Accelerator, PartitionConfig, VcpuEntry, VcpuExit, VcpuId};
use crate::memory::{GuestMemory, MemoryBacking};
use crate::state::VcpuState;

/// How long the guest counts at a time. The fastest time counts: in the others
/// a busy host may have had something else to do.
const WINDOW: Duration = Duration::from_millis(2);
/// How many times.
const WINDOWS: u32 = 5;
/// How many times if all of them were slow.
const SLOW_WINDOWS: u32 = 25;
/// Instructions per second that no busy host takes for slow.
const SLOW: u64 = 20_000_000;
/// How long an engine may take to come back before it counts as hung.
const PATIENCE: Duration = Duration::from_secs(2);

const RAM: ByteCount = ByteCount(64 << 10);
const CODE: u64 = 0x1000;
const PML4: u64 = 0x2000;
const PDPT: u64 = 0x3000;
const DIRECTORY: u64 = 0x4000;
const DATA: u64 = 0x8000;

/// A load and a store among arithmetic, as in real code. The quadword at RDI
/// holds the rounds so far.
const LOOP: [u8; 16] = [
    0x48, 0xff, 0xc0, // l: inc rax
    0x48, 0x89, 0x07, // mov [rdi], rax
    0x48, 0x33, 0x17, // xor rdx, [rdi]
    0x48, 0xff, 0xc9, // dec rcx
    0x75, 0xf2, // jnz l
    0xeb, 0xf0, // jmp l
];
const INSTRUCTIONS_PER_ROUND: u64 = 5;

/// What the probe found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Speed {
    /// Guest instructions per second of a small loop, one processor.
    pub instructions_per_second: u64,
}

/// Measures `accelerator`, which takes 10 to 50 ms and never more than a few
/// seconds, however broken the engine is.
///
/// An engine that does not come back is [`AccelError::Unsupported`]; its
/// thread is left behind.
pub fn probe(accelerator: &dyn Accelerator) -> Result<Speed, AccelError> {
    let memory = GuestMemory::new(&[(GuestAddress(0), RAM)], MemoryBacking::Anonymous)?;
    let entry = |flags: u64, to: u64| (to | flags).to_le_bytes();
    memory.write(GuestAddress(CODE), &LOOP)?;
    memory.write(GuestAddress(PML4), &entry(3, PDPT))?;
    memory.write(GuestAddress(PDPT), &entry(3, DIRECTORY))?;
    // One 2 MiB page.
    memory.write(GuestAddress(DIRECTORY), &entry(0x83, 0))?;

    let partition = accelerator.create_partition(PartitionConfig {
        vcpus: 1,
        memory: memory.clone(),
    })?;
    let mut vcpu = partition.create_vcpu(VcpuId(0), accelerator.supported_cpuid().clone())?;
    let mut state = VcpuState::flat_long_mode(0, PML4, CODE);
    state.general.rdi = DATA;
    vcpu.import_state(&state)?;

    let kicker = vcpu.kicker();
    let (sender, receiver) = mpsc::channel();
    std::thread::Builder::new()
        .name("probe".into())
        .spawn(move || {
            // Nobody listens any more if it took too long.
            let _ = sender.send(vcpu.run(VcpuEntry::Resume));
        })
        .map_err(|source| AccelError::Host {
            operation: "starting the thread of the probe guest",
            source,
        })?;
    let speed = measure(&memory);
    kicker.kick();
    let hung = |_| {
        AccelError::Unsupported(format!(
            "the {} engine did not come back from a guest that counts",
            accelerator.kind()
        ))
    };
    match receiver.recv_timeout(PATIENCE).map_err(hung)?? {
        VcpuExit::Interrupted => speed,
        other => Err(AccelError::Unsupported(format!(
            "a guest that counts stopped with {other:?}"
        ))),
    }
}

/// Watches the guest count, from when it has begun: a processor's first
/// instructions may cost milliseconds that say nothing of the rest.
fn measure(memory: &GuestMemory) -> Result<Speed, AccelError> {
    let rounds = || -> Result<u64, AccelError> {
        let mut bytes = [0; 8];
        memory.read(GuestAddress(DATA), &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    };
    let asked = Instant::now();
    let mut begin = (Instant::now(), rounds()?);
    while begin.1 == 0 && asked.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_micros(200));
        begin = (Instant::now(), rounds()?);
    }
    let mut fastest = 0;
    for window in 1..=SLOW_WINDOWS {
        std::thread::sleep(WINDOW);
        let end = (Instant::now(), rounds()?);
        let counted = end.1.wrapping_sub(begin.1);
        let elapsed = (end.0 - begin.0).as_nanos().max(1);
        begin = end;
        let instructions = u128::from(counted) * u128::from(INSTRUCTIONS_PER_ROUND);
        let speed = instructions * 1_000_000_000 / elapsed;
        fastest = fastest.max(u64::try_from(speed).unwrap_or(u64::MAX));
        if window >= WINDOWS && fastest > SLOW {
            break;
        }
    }
    Ok(Speed {
        instructions_per_second: fastest,
    })
}
