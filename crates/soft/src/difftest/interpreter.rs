//! The interpreter as an [`Engine`]: a processor in user mode whose page
//! tables map the test's pages where the oracle has them.

use favo_accel::cpuid::{CpuidTable, host};
use favo_accel::{GuestMemory, MemoryBacking, PartitionConfig};
use favo_types::{ByteCount, GuestAddress};

use super::{
    CODE, CODE_SIZE, DATA, DATA_SIZE, Engine, Fault, MARGIN, MachineState, Outcome, READ_ONLY,
    READ_WRITE, START, surrounded,
};
use crate::cpu::{Cpu, Segment, cr0, cr4, efer};
use crate::low::LowBox;
use crate::native::{self, ExtendedState};
use crate::partition::Shared;
use crate::trap::{Exception, Trap};

/// Guest-physical addresses of the page tables, of the code and of the data.
const LEVEL_4: u64 = 0x1000;
const LEVEL_3: u64 = 0x2000;
const LEVEL_2: u64 = 0x3000;
const CODE_TABLE: u64 = 0x4000;
const DATA_TABLE: u64 = 0x5000;
const CODE_PHYSICAL: u64 = 0x10000;
const DATA_PHYSICAL: u64 = 0x20000;

/// Present, writable, user.
const TABLE: u64 = 7;
const PAGE: u64 = 4096;

/// Selectors as Linux gives them to a 64-bit process, so that an instruction
/// that shows them shows the same.
const USER_CODE: u16 = 0x33;
const USER_DATA: u16 = 0x2b;

/// A processor and its memory.
pub struct Interpreter {
    cpu: LowBox<Cpu>,
    memory: GuestMemory,
    code_length: usize,
    translates: bool,
}

impl Interpreter {
    /// A processor with every feature that the host has and favo implements.
    pub fn new() -> Result<Self, Box<dyn std::error::Error>> {
        let memory = GuestMemory::new(
            &[(GuestAddress(0), ByteCount::mib(1))],
            MemoryBacking::Anonymous,
        )?;
        map_pages(&memory)?;
        let mut cpu = processor(memory.clone())?;
        enter_user_mode(&mut cpu);
        Ok(Self {
            cpu,
            memory,
            code_length: 0,
            translates: false,
        })
    }

    /// The same, and everything is translated at once.
    pub fn translating() -> Result<Self, Box<dyn std::error::Error>> {
        let mut new = Self::new()?;
        new.cpu.translator.set_threshold(0);
        new.translates = true;
        Ok(new)
    }

    /// Runs units until RIP leaves the code or something traps. The
    /// breakpoint behind the code is its end.
    fn run_units(&mut self, most: usize, end: u64) -> Option<Fault> {
        let cpu = &mut *self.cpu;
        for _ in 0..most {
            if !(START..end).contains(&cpu.rip) {
                break;
            }
            match cpu.run_one_unit() {
                Ok(()) | Err(Trap::EndBlock) => {}
                Err(Trap::Exception(Exception::Breakpoint)) if cpu.rip == end + 1 => {
                    cpu.rip = end;
                }
                Err(trap) => return Some(describe(cpu, trap)),
            }
        }
        None
    }

    /// Whether the decoder knows the instruction in `bytes`.
    pub fn knows(&mut self, bytes: &[u8]) -> bool {
        let unknown = |cpu: &Cpu| cpu.counters.undefined.values().sum::<u64>();
        let before = unknown(&self.cpu);
        // SYSCALL and its like change the mode.
        enter_user_mode(&mut self.cpu);
        self.load_code(bytes);
        let state = MachineState {
            rip: START,
            flags: 0x202,
            ..MachineState::default()
        };
        self.run(&state, 1);
        unknown(&self.cpu) == before
    }

    fn data_physical(address: u64) -> GuestAddress {
        GuestAddress(address - DATA + DATA_PHYSICAL)
    }
}

fn map_pages(memory: &GuestMemory) -> Result<(), favo_accel::MemoryError> {
    let put = |table: u64, index: u64, entry: u64| {
        memory.write(GuestAddress(table + 8 * index), &entry.to_le_bytes())
    };
    put(LEVEL_4, CODE >> 39 & 511, LEVEL_3 | TABLE)?;
    put(LEVEL_3, CODE >> 30 & 511, LEVEL_2 | TABLE)?;
    put(LEVEL_2, CODE >> 21 & 511, CODE_TABLE | TABLE)?;
    put(LEVEL_2, DATA >> 21 & 511, DATA_TABLE | TABLE)?;
    for page in 0..CODE_SIZE / PAGE {
        put(CODE_TABLE, page, (CODE_PHYSICAL + page * PAGE) | TABLE & !2)?;
    }
    memory.write(GuestAddress(CODE_PHYSICAL), &[0xcc; CODE_SIZE as usize])?;
    for page in 0..DATA_SIZE / PAGE {
        let address = DATA + page * PAGE;
        let inside = |range: &(u64, u64)| range.0 <= address && address < range.1;
        let physical = DATA_PHYSICAL + page * PAGE;
        if READ_WRITE.iter().any(inside) {
            put(DATA_TABLE, page, physical | TABLE)?;
        } else if inside(&READ_ONLY) {
            put(DATA_TABLE, page, physical | TABLE & !2)?;
        }
    }
    Ok(())
}

/// The host's CPUID; what the interpreter does not have is never asked for.
fn host_cpuid() -> CpuidTable {
    let mut table = CpuidTable::new();
    for function in (0..=0x10).chain(0x8000_0000..=0x8000_0008) {
        match function {
            4 | 7 | 0xb | 0xd => {
                for index in 0..3 {
                    table.set(function, Some(index), host(function, index));
                }
            }
            _ => table.set(function, None, host(function, 0)),
        }
    }
    table
}

fn processor(memory: GuestMemory) -> std::io::Result<LowBox<Cpu>> {
    let config = PartitionConfig { vcpus: 1, memory };
    Cpu::new(0, host_cpuid(), Shared::start(config)?)
}

fn enter_user_mode(cpu: &mut Cpu) {
    let flat = |selector, access| Segment {
        selector,
        base: 0,
        limit: u32::MAX,
        access,
    };
    let data = flat(USER_DATA, 0xc0f3);
    let null = Segment {
        access: favo_accel::state::Segment::UNUSABLE,
        ..Segment::default()
    };
    cpu.segments = [null, flat(USER_CODE, 0xa0fb), data, null, null, null];
    cpu.cr0 = cr0::PE | cr0::MP | cr0::ET | cr0::NE | cr0::WP | cr0::PG;
    cpu.cr3 = LEVEL_4;
    cpu.cr4 = cr4::PAE | cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::OSXSAVE;
    cpu.efer = efer::LME | efer::LMA | efer::NXE | efer::SCE;
    cpu.xcr0 = native::xcr0();
    cpu.update_mode();
}

impl Engine for Interpreter {
    fn load_code(&mut self, code: &[u8]) {
        self.code_length = code.len();
        let start = GuestAddress(START - CODE + CODE_PHYSICAL - MARGIN as u64);
        let written = self.memory.write(start, &surrounded(code));
        debug_assert!(written.is_ok());
    }

    fn write(&mut self, address: u64, bytes: &[u8]) {
        let written = self.memory.write(Self::data_physical(address), bytes);
        debug_assert!(written.is_ok());
    }

    fn read(&mut self, address: u64, bytes: &mut [u8]) {
        let read = self.memory.read(Self::data_physical(address), bytes);
        debug_assert!(read.is_ok());
    }

    fn keeps_flags_at_faults(&self) -> bool {
        !self.translates
    }

    fn run(&mut self, before: &MachineState, instructions: usize) -> Outcome {
        let cpu = &mut *self.cpu;
        cpu.gpr[..16].copy_from_slice(&before.gpr);
        cpu.rip = before.rip;
        cpu.set_rflags_masked(before.flags, u64::MAX);
        cpu.extended = ExtendedState::from(&before.fpu);
        let end = START + self.code_length as u64;
        let mut fault = None;
        if self.translates {
            fault = self.run_units(instructions * 256, end);
        }
        let cpu = &mut *self.cpu;
        // A string instruction may take several steps; none takes this many.
        for _ in 0..instructions * 256 {
            if self.translates || !(START..end).contains(&cpu.rip) {
                break;
            }
            match cpu.run_one() {
                Ok(()) | Err(Trap::EndBlock) => {}
                Err(trap) => {
                    fault = Some(describe(cpu, trap));
                    break;
                }
            }
        }
        let mut gpr = [0; 16];
        gpr.copy_from_slice(&cpu.gpr[..16]);
        Outcome {
            state: MachineState {
                gpr,
                rip: cpu.rip,
                flags: cpu.rflags(),
                fpu: (&cpu.extended).into(),
            },
            fault,
        }
    }
}

/// A vector that no exception has: the interpreter wants something that user
/// mode code without devices can't ask for.
const NOT_AN_EXCEPTION: u8 = 0xff;

fn describe(cpu: &Cpu, trap: Trap) -> Fault {
    match trap {
        Trap::Exception(exception) => Fault {
            vector: exception.vector(),
            error_code: exception.error_code().unwrap_or(0),
            address: match exception {
                Exception::PageFault { .. } => cpu.fault_address,
                _ => 0,
            },
        },
        _ => Fault {
            vector: NOT_AN_EXCEPTION,
            error_code: 0,
            address: 0,
        },
    }
}
