//! A processor with a little memory, for tests: it starts in a mode of one's
//! choice, runs machine code, and says how that ended.

use favo_accel::cpuid::CpuidTable;
use favo_accel::{GuestMemory, MemoryBacking, PartitionConfig};
use favo_types::{ByteCount, GuestAddress};

use crate::cpu::{Cpu, Segment, SegmentRegister, cr0, cr4, efer, gpr};
use crate::low::LowBox;
use crate::partition::Shared;
use crate::trap::{Exec, Trap};

/// Where code is put.
pub const CODE: u64 = 0x10_0000;
/// Where the stack begins, going down.
pub const STACK: u64 = 0x20_0000;
/// Room for data.
pub const DATA: u64 = 0x30_0000;
/// Where code is put in real mode.
pub const REAL_CODE: u64 = 0x8000;
/// Bytes of RAM, from address 0.
pub const MEMORY: u64 = 8 << 20;

/// The top of the page tables of [`TestCpu::long_mode`]: all RAM is mapped to
/// itself in pages of 2 MiB, for level 0 and for level 3.
const TABLES: u64 = 0x1000;

/// A processor and its RAM.
pub struct TestCpu {
    /// The processor.
    pub cpu: LowBox<Cpu>,
    /// Its RAM.
    pub memory: GuestMemory,
}

fn flat(selector: u16, access: u32) -> Segment {
    Segment {
        selector,
        base: 0,
        limit: u32::MAX,
        access,
    }
}

impl TestCpu {
    /// A processor with everything this engine offers, in real mode with all
    /// segments at 0.
    pub fn real_mode() -> Self {
        Self::with_cpuid(crate::cpuid::supported())
    }

    /// The same with another CPUID.
    pub fn with_cpuid(cpuid: CpuidTable) -> Self {
        let ranges = [(GuestAddress(0), ByteCount(MEMORY))];
        let memory =
            GuestMemory::new(&ranges, MemoryBacking::Anonymous).expect("a few MiB of memory");
        let config = PartitionConfig {
            vcpus: 1,
            memory: memory.clone(),
        };
        let shared = Shared::start(config).expect("low memory");
        let mut cpu = Cpu::new(0, cpuid, shared).expect("low memory");
        let real = Segment {
            selector: 0,
            base: 0,
            limit: 0xffff,
            access: 0x93,
        };
        cpu.segments = [real; 6];
        cpu.segments[SegmentRegister::Cs as usize].access = 0x9b;
        cpu.idtr.limit = 0x3ff;
        cpu.rip = REAL_CODE;
        cpu.gpr[gpr::RSP] = REAL_CODE;
        cpu.update_mode();
        Self { cpu, memory }
    }

    /// 32-bit protected mode, flat, level 0, without paging.
    pub fn protected_mode() -> Self {
        let mut test = Self::real_mode();
        let cpu = &mut test.cpu;
        cpu.segments = [flat(0x10, 0xc093); 6];
        cpu.segments[SegmentRegister::Cs as usize] = flat(8, 0xc09b);
        cpu.cr0 = cr0::PE | cr0::ET | cr0::NE;
        cpu.cr4 = cr4::OSFXSR | cr4::OSXMMEXCPT;
        cpu.rip = CODE;
        cpu.gpr[gpr::RSP] = STACK;
        cpu.update_mode();
        test
    }

    /// 64-bit mode at level 0.
    pub fn long_mode() -> Self {
        let mut test = Self::protected_mode();
        test.put(TABLES, TABLES + 0x1007);
        test.put(TABLES + 0x1000, TABLES + 0x2007);
        for page in 0..MEMORY >> 21 {
            test.put(TABLES + 0x2000 + 8 * page, page << 21 | 0x87);
        }
        let cpu = &mut test.cpu;
        cpu.segments[SegmentRegister::Cs as usize] = flat(8, 0xa09b);
        cpu.cr3 = TABLES;
        cpu.cr4 |= cr4::PAE | cr4::PGE | cr4::OSXSAVE | cr4::FSGSBASE;
        cpu.efer = efer::LME | efer::LMA | efer::NXE | efer::SCE;
        cpu.cr0 |= cr0::PG | cr0::WP;
        cpu.update_mode();
        test
    }

    /// 64-bit mode at level 3.
    pub fn user_mode() -> Self {
        let mut test = Self::long_mode();
        test.cpu.segments[SegmentRegister::Cs as usize] = flat(0x33, 0xa0fb);
        test.cpu.segments[SegmentRegister::Ss as usize] = flat(0x2b, 0xc0f3);
        test.cpu.update_mode();
        test
    }

    /// Writes eight bytes of physical memory.
    pub fn put(&mut self, address: u64, value: u64) {
        self.write(address, &value.to_le_bytes());
    }

    /// Writes physical memory.
    pub fn write(&mut self, address: u64, bytes: &[u8]) {
        self.memory
            .write(GuestAddress(address), bytes)
            .expect("an address in RAM");
    }

    /// Reads eight bytes of physical memory.
    pub fn get(&self, address: u64) -> u64 {
        let mut bytes = [0; 8];
        self.memory
            .read(GuestAddress(address), &mut bytes)
            .expect("an address in RAM");
        u64::from_le_bytes(bytes)
    }

    /// Puts code where RIP points.
    pub fn load(&mut self, code: &[u8]) -> &mut Self {
        let address = self.cpu.segments[SegmentRegister::Cs as usize].base + self.cpu.rip;
        self.write(address, code);
        self
    }

    /// Has everything translated when it first runs.
    pub fn translate_at_once(&mut self) -> &mut Self {
        self.cpu.translator.set_threshold(0);
        self
    }

    /// Translates the code at RIP: where its host code lies, and its bytes.
    pub fn translation(&mut self) -> Option<(u64, Vec<u8>)> {
        self.translate_at_once();
        self.cpu.translate_here()
    }

    /// Runs one instruction.
    pub fn step(&mut self) -> Exec {
        match self.cpu.run_one() {
            Err(Trap::EndBlock) => Ok(()),
            other => other,
        }
    }

    /// Runs `code`, which ends with HLT or with something else that stops it,
    /// and says what stopped it. Exceptions are not delivered.
    pub fn run(&mut self, code: &[u8]) -> Trap {
        self.load(code);
        self.go()
    }

    /// Runs from RIP on. Gives up after some ten thousand rounds, with
    /// [`Trap::EndBlock`].
    pub fn go(&mut self) -> Trap {
        for _ in 0..10_000 {
            match self.cpu.run(Some(0)) {
                Trap::EndBlock => {}
                trap => return trap,
            }
        }
        Trap::EndBlock
    }

    /// A register as 64 bits.
    pub fn reg(&self, number: usize) -> u64 {
        self.cpu.gpr[number]
    }
}
