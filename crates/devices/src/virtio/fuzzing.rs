//! A hostile driver: turns arbitrary bytes into rings, descriptors and
//! registers, and lets a device loose on them. For fuzzers and property tests.
//!
//! Each function returns when the device has stopped; a panic, a hang, or a
//! write to memory that no descriptor named is what a fuzzer looks for. What
//! the device counted tells how deep an input came.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use favo_accel::{AccessSize, EventCounter, GuestMemory, MemoryBacking, Msi, PAGE_SIZE};
use favo_net::link::{Link, Offload, PartialChecksum, SegmentKind, Segmentation};
use favo_types::{ByteCount, GuestAddress};

use super::balloon::BalloonSpec;
use super::blk::BlkSpec;
use super::blk::backend::{BlockCompletion, BlockDevice, BlockInfo, BlockOperation, BlockQueue};
use super::console::backend::{FdPort, PortBackend};
use super::console::{ConsoleSpec, PortSpec};
use super::device::{
    DeviceType, QueueResources, TRANSPORT_FEATURES, VirtioDevice, VirtioInterrupt,
};
use super::event::EventFd;
use super::net::NetSpec;
use super::pci::VirtioPci;
use super::queue::{QueueState, pending};
use super::rng::RngSpec;
use super::vsock::VsockSpec;
use crate::interrupt::MsiSender;
use crate::pci::{BarIndex, PciDevice};

/// RAM from address 0; descriptors name addresses up to twice as far.
const RAM: u64 = 2 << 20;
/// RAM that no descriptor names.
const CANARY: GuestAddress = GuestAddress(1 << 30);
const CANARY_SIZE: u64 = 64 << 10;
const QUEUE_SIZE: u16 = 16;
const RECORD: usize = 64;
const ROUNDS: usize = 3;

struct Ignore;

impl VirtioInterrupt for Ignore {
    fn signal_queue(&self, _queue: u16) {}
    fn signal_config(&self) {}
    fn needs_reset(&self) {}
}

impl MsiSender for Ignore {
    fn send(&self, _msi: Msi) {}
}

/// Takes bytes from the input, zeroes when it is used up.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        match self.0.split_first() {
            Some((&first, rest)) => {
                self.0 = rest;
                first
            }
            None => 0,
        }
    }

    fn word(&mut self) -> u64 {
        (u64::from(self.byte()) << 8) | u64::from(self.byte())
    }

    fn long(&mut self) -> u64 {
        (0..4).fold(0, |value, _| (value << 16) | self.word())
    }
}

/// Runs `device` on rings made of `input`. `shape` makes a 64-byte record of
/// data more plausible; records are what buffers begin with. `header` is the
/// length of a sensible chain's first buffer.
fn drive(
    device: &mut dyn VirtioDevice,
    input: &[u8],
    header: u32,
    shape: fn(&mut [u8]),
) -> Vec<EventCounter> {
    let memory = GuestMemory::new(
        &[
            (GuestAddress(0), ByteCount(RAM)),
            (CANARY, ByteCount(CANARY_SIZE)),
        ],
        MemoryBacking::Anonymous,
    )
    .expect("mapping test memory");
    let canary = vec![0xc5; CANARY_SIZE as usize];
    memory.write(CANARY, &canary).expect("writing the canary");

    let mut image = vec![0; RAM as usize];
    for (byte, &source) in image.iter_mut().zip(input.iter().cycle()) {
        *byte = source;
    }
    image.chunks_exact_mut(RECORD).for_each(shape);
    memory.write(GuestAddress(0), &image).expect("filling RAM");

    let mut input = Input(input);
    let features = (device.features() | TRANSPORT_FEATURES) & !(input.long() & input.long());
    device.set_features(features);
    let queues = device.queue_sizes().len() as u16;
    let kicks: Vec<_> = (0..queues)
        .map(|_| Arc::new(EventFd::new().expect("an event descriptor")))
        .collect();
    let mut states: Vec<_> = (0..queues).map(queue_state).collect();
    for round in 0..ROUNDS {
        for (index, state) in (0u16..).zip(&states) {
            write_rings(&memory, state, header, &mut input);
            let resources = QueueResources {
                memory: memory.clone(),
                state: *state,
                kick: kicks[usize::from(index)].clone(),
                interrupt: Arc::new(Ignore),
            };
            device
                .start_queue(index, resources)
                .expect("the rings lie in RAM");
            kicks[usize::from(index)].signal();
        }
        let patience = Instant::now() + Duration::from_millis(1);
        while Instant::now() < patience
            && states
                .iter()
                .any(|state| used(&memory, state) == state.next_used)
        {
            std::thread::yield_now();
        }
        let mut data = [0; 8];
        device.read_config(input.byte().into(), &mut data);
        device.write_config(input.byte().into(), &data[..4]);
        for (index, state) in (0u16..).zip(&mut states) {
            *state = device
                .stop_queue(index)
                .expect("the device's thread lives")
                .expect("the queue was running");
            debug_assert!(round < ROUNDS && pending(&memory, state).is_some());
        }
    }
    let state = device.save().expect("a stopped device is saved");
    device.reset();
    device.restore(&state).expect("its own state fits");

    let mut now = vec![0; CANARY_SIZE as usize];
    memory.read(CANARY, &mut now).expect("reading the canary");
    // A balloon's page numbers can name these pages: it may discard them whole.
    let discards = device.device_type() == DeviceType::Balloon;
    for page in now.chunks_exact(PAGE_SIZE as usize) {
        let kept = page.iter().all(|&byte| byte == 0xc5);
        let discarded = discards && page.iter().all(|&byte| byte == 0);
        assert!(
            kept || discarded,
            "a device wrote where no descriptor points"
        );
    }
    device.counters()
}

fn queue_state(index: u16) -> QueueState {
    let base = 0x1000 * u64::from(index);
    QueueState {
        size: QUEUE_SIZE,
        descriptor_table: GuestAddress(base),
        available_ring: GuestAddress(base + 0x400),
        used_ring: GuestAddress(base + 0x800),
        ..QueueState::default()
    }
}

fn used(memory: &GuestMemory, state: &QueueState) -> u16 {
    let mut index = [0; 2];
    let _ = memory.read(GuestAddress(state.used_ring.0 + 2), &mut index);
    u16::from_le_bytes(index)
}

/// Rings for one round: every fourth time any descriptors at all, else chains
/// like a driver's.
fn write_rings(memory: &GuestMemory, state: &QueueState, header: u32, input: &mut Input<'_>) {
    let put = |address: u64, bytes: &[u8]| {
        let _ = memory.write(GuestAddress(address), bytes);
    };
    let wild = input.byte().is_multiple_of(4);
    for slot in 0..QUEUE_SIZE {
        let (address, length, flags, next) = if wild {
            wild_descriptor(input)
        } else {
            tame_descriptor(slot, header, input)
        };
        let at = state.descriptor_table.0 + 16 * u64::from(slot);
        put(at, &address.to_le_bytes());
        put(at + 8, &length.to_le_bytes());
        put(at + 12, &flags.to_le_bytes());
        put(at + 14, &next.to_le_bytes());
    }
    for slot in 0..u64::from(QUEUE_SIZE) {
        let head = u16::from(input.byte() % 16);
        let head = if wild { head } else { head % 5 * 3 };
        put(state.available_ring.0 + 4 + 2 * slot, &head.to_le_bytes());
    }
    let new = u16::from(input.byte() % 18);
    let index = state.next_avail.wrapping_add(new);
    put(state.available_ring.0 + 2, &index.to_le_bytes());
}

/// Address, length, flags, next.
fn wild_descriptor(input: &mut Input<'_>) -> (u64, u32, u16, u16) {
    let address = match input.byte() {
        255 => input.long(),
        high => ((u64::from(high) << 8) | u64::from(input.byte())) * RECORD as u64,
    };
    let length = match input.byte() {
        255 => input.long() as u32,
        small @ 0..128 => u32::from(small),
        large => u32::from(large) * 64,
    };
    let (flags, next) = (input.byte() & 7, input.byte() % 18);
    (address, length, flags.into(), next.into())
}

/// Chains of three: a header, whole sectors either way, one byte to write.
fn tame_descriptor(slot: u16, header: u32, input: &mut Input<'_>) -> (u64, u32, u16, u16) {
    const NEXT: u16 = 1;
    const WRITE: u16 = 2;
    // Behind the rings, so that they stay what they are.
    let address = 0x8000 + input.word() * 16 % (RAM - 0x1_0000);
    let address = address & !(RECORD as u64 - 1);
    match slot % 3 {
        0 => (address, header, NEXT, slot + 1),
        1 => {
            let flags = NEXT | if input.byte() & 1 == 0 { WRITE } else { 0 };
            (address, u32::from(input.byte() % 8) * 512, flags, slot + 1)
        }
        _ => (address, 1, WRITE, 0),
    }
}

fn keep(_record: &mut [u8]) {}

/// The entropy device.
pub fn fuzz_rng(input: &[u8]) -> Vec<EventCounter> {
    let mut device = RngSpec {}.build().expect("building");
    drive(&mut device, input, 16, keep)
}

/// The balloon.
pub fn fuzz_balloon(input: &[u8]) -> Vec<EventCounter> {
    let mut device = BalloonSpec::default().build().expect("building");
    drive(&mut device, input, 16, |record| {
        for number in record.chunks_exact_mut(4) {
            number[2] = 0;
            if number[3] < 250 {
                number[3] = 0;
            }
        }
    })
}

/// The console, with a console port and a named one.
pub fn fuzz_console(input: &[u8]) -> Vec<EventCounter> {
    let spec = ConsoleSpec {
        ports: vec![
            PortSpec {
                name: None,
                console: true,
            },
            PortSpec {
                name: Some("org.favo.agent.0".into()),
                console: false,
            },
        ],
        size: (80, 24),
    };
    let mut hosts = Vec::new();
    let backends = (0..2)
        .map(|_| {
            let (ours, theirs) = UnixStream::pair().expect("a socket pair");
            let _ = io::Write::write_all(&mut &theirs, b"hello");
            hosts.push(theirs);
            let port = FdPort::duplex(OwnedFd::from(ours)).expect("a port");
            Box::new(port) as Box<dyn PortBackend>
        })
        .collect();
    let mut device = spec.build(backends).expect("building");
    drive(&mut device, input, 16, |record| {
        record[0] %= 3;
        record[1..4].fill(0);
        record[4] %= 9;
        record[5] = 0;
    })
}

/// The socket device; port 1 of the host listens.
pub fn fuzz_vsock(input: &[u8]) -> Vec<EventCounter> {
    let mut device = VsockSpec {
        max_connections: 4,
        ..VsockSpec::new(3)
    }
    .build()
    .expect("building");
    let accept = |stream: UnixStream| {
        let _ = io::Write::write_all(&mut &stream, b"welcome");
    };
    device.handle().listen(1, Arc::new(accept));
    drive(&mut device, input, 64, |record| {
        record[..8].copy_from_slice(&3u64.to_le_bytes());
        record[8..16].copy_from_slice(&2u64.to_le_bytes());
        record[16] %= 2;
        record[17..20].fill(0);
        record[20] = u8::from(record[20] < 200);
        record[21..24].fill(0);
        record[25] %= 4;
        record[26..28].fill(0);
        record[28] = u8::from(record[28] < 250);
        record[29] = 0;
        // Connecting and sending, more often than ending it.
        const OPERATIONS: [u8; 16] = [1, 1, 1, 5, 5, 5, 5, 5, 6, 7, 2, 4, 3, 0, 8, 255];
        record[30] = OPERATIONS[usize::from(record[30] % 16)];
        record[31] = 0;
    })
}

/// The block device, over a disk of zeroes.
pub fn fuzz_blk(input: &[u8]) -> Vec<EventCounter> {
    let mut device = BlkSpec::default()
        .build(Arc::new(ZeroDisk))
        .expect("building");
    drive(&mut device, input, 16, |record| {
        record[0] %= 16;
        record[1..4].fill(0);
        record[9..16].fill(0);
    })
}

/// The network card, with one queue pair or two, on a network that sends all
/// kinds of frames.
pub fn fuzz_net(input: &[u8]) -> Vec<EventCounter> {
    let pairs = 1 + usize::from(input.first().is_some_and(|byte| byte & 1 == 1));
    let links = (0..pairs)
        .map(|_| {
            let link = BusyLink::new(input).expect("an event descriptor");
            Box::new(link) as Box<dyn Link>
        })
        .collect();
    let mut device = NetSpec::new([2, 0, 0, 0, 0, 1])
        .build(links)
        .expect("building");
    drive(&mut device, input, NET_HEADERS, |record| {
        match record[0] % 4 {
            // A header, and TCP over IPv4 in an Ethernet frame.
            0 => {
                record[..12].copy_from_slice(&[1, 1, 54, 0, 200, 0, 34, 0, 16, 0, 0, 0]);
                record[24..26].copy_from_slice(&[8, 0]);
                record[26] = 0x45;
                record[32..34].fill(0);
                record[35] = 6;
                record[58] = 0x50;
            }
            // A plain frame, and a command.
            1 => record[..12].fill(0),
            2 => {
                record[0] = record[4] % 5;
                record[1] = record[5] % 3;
            }
            _ => record[1] %= 6,
        }
    })
}

/// What a driver puts into the first buffer: enough for a header and those of
/// Ethernet, IPv4 and TCP.
const NET_HEADERS: u32 = 12 + 54;

/// A network that always has frames, up to a number.
struct BusyLink {
    ready: EventFd,
    input: Vec<u8>,
    sent: usize,
}

impl BusyLink {
    fn new(input: &[u8]) -> io::Result<Self> {
        let ready = EventFd::new()?;
        ready.signal();
        Ok(Self {
            ready,
            input: input.to_vec(),
            sent: 0,
        })
    }
}

impl Link for BusyLink {
    fn send(&mut self, frame: &[u8], offload: Offload) {
        assert!((14..=favo_net::link::MAX_FRAME_LENGTH).contains(&frame.len()));
        if let Some(checksum) = offload.checksum {
            let end = usize::from(checksum.start) + usize::from(checksum.offset) + 2;
            assert!(end <= frame.len());
        }
        if let Some(segmentation) = offload.segmentation {
            assert!(segmentation.size > 0 && usize::from(segmentation.header) <= frame.len());
        }
    }

    fn flush(&mut self) {}

    fn receive(&mut self, frame: &mut Vec<u8>) -> Option<Offload> {
        if self.sent == 200 {
            self.ready.take();
            return None;
        }
        self.sent += 1;
        let byte = |at: usize| self.input.get(at % self.input.len().max(1)).copied();
        let kind = byte(self.sent).unwrap_or(0);
        let length = usize::from(kind) * 11 + 14;
        frame.resize(length, kind);
        let checksum = PartialChecksum {
            start: 34,
            offset: 16,
        };
        let segmentation = Segmentation {
            kind: SegmentKind::Tcp4,
            size: u16::from(kind) * 2,
            header: 54,
        };
        if length >= 54 {
            frame[12..16].copy_from_slice(&[8, 0, 0x45, 0]);
            frame[20..24].copy_from_slice(&[0, 0, 64, 6]);
            frame[46] = 0x50;
        }
        Some(Offload {
            checksum: (kind % 3 > 0).then_some(checksum),
            segmentation: (kind % 3 > 1).then_some(segmentation),
            checked: kind % 7 == 0,
        })
    }

    fn ready(&self) -> BorrowedFd<'_> {
        self.ready.as_fd()
    }
}

/// The registers of a PCI function, and its configuration access capability.
pub fn fuzz_pci(input: &[u8]) {
    let device = Box::new(VsockSpec::new(3).build().expect("building"));
    let memory = GuestMemory::new(
        &[(GuestAddress(0), ByteCount(RAM))],
        MemoryBacking::Anonymous,
    )
    .expect("mapping test memory");
    let pci = VirtioPci::new("fuzz".into(), device, memory, Arc::new(Ignore)).expect("building");
    let bar = BarIndex::new(0).expect("a BAR");
    let mut input = Input(input);
    while !input.0.is_empty() {
        let what = input.byte();
        let size = [
            AccessSize::Byte,
            AccessSize::Word,
            AccessSize::Dword,
            AccessSize::Qword,
        ][usize::from((what >> 4) & 3)];
        match what & 7 {
            0 => drop(pci.read_bar(bar, input.word() & 0x3fff, size)),
            1 => pci.write_bar(bar, input.word() & 0x3fff, size, input.long()),
            2 => pci.set_bus_master(input.byte() & 1 == 0),
            3 => {
                pci.write_capability(4, input.word() as u16 % 18, size, input.long() as u32);
            }
            4 => drop(pci.read_capability(4, input.word() as u16 % 18, size)),
            _ => pci.write_bar(bar, u64::from(input.byte() & 63), size, input.word()),
        }
    }
    pci.pause();
    let state = pci.save().expect("a paused device is saved");
    pci.restore(&state).expect("its own state fits");
    pci.reset();
}

struct ZeroDisk;

struct ZeroQueue {
    done: Vec<u64>,
    event: EventFd,
}

impl BlockDevice for ZeroDisk {
    fn info(&self) -> BlockInfo {
        BlockInfo {
            capacity: 1 << 20,
            logical_block_size: 512,
            physical_block_size: 512,
            read_only: false,
            discard: true,
            write_zeroes: true,
        }
    }

    fn queue(&self, _depth: u16) -> io::Result<Box<dyn BlockQueue>> {
        Ok(Box::new(ZeroQueue {
            done: Vec::new(),
            event: EventFd::new()?,
        }))
    }
}

impl BlockQueue for ZeroQueue {
    unsafe fn submit(&mut self, token: u64, operation: BlockOperation<'_>) {
        if let BlockOperation::Read { buffers, .. } = operation {
            for buffer in buffers {
                // SAFETY: the caller vouches for the buffers.
                unsafe { buffer.pointer.write_bytes(0, buffer.length) };
            }
        }
        self.done.push(token);
    }

    fn commit(&mut self) -> io::Result<()> {
        self.event.signal();
        Ok(())
    }

    fn complete(&mut self, completions: &mut Vec<BlockCompletion>) {
        self.event.take();
        completions.extend(self.done.drain(..).map(|token| BlockCompletion {
            token,
            result: Ok(()),
        }));
    }

    fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

#[cfg(test)]
#[path = "fuzzing_test.rs"]
mod test;
