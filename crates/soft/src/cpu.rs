//! The processor's state, laid out for the operations that use it.
//!
//! This is the hot form of [`favo_accel::state::VcpuState`]; `state.rs`
//! converts between the two. Values derived from others (the mode word) are
//! recomputed by [`Cpu::update_mode`] whenever a source changes; nothing else
//! may write them.

use std::sync::Arc;

use favo_accel::cpuid::CpuidTable;
use favo_accel::state::{DebugRegisters, DescriptorTable, InterruptShadow, Msrs};

use crate::apic::LocalApic;
use crate::cache::BlockCache;
use crate::counters::Counters;
use crate::flags::ArithmeticFlags;
use crate::low::LowBox;
use crate::mmio::AccessLog;
use crate::mmu::Mmu;
use crate::native::ExtendedState;
use crate::partition::Shared;
use crate::system::Limits;
use crate::translate::{Hot, Translator};

/// General registers by their encoding (SDM vol. 2, table 2-4).
#[allow(missing_docs)]
pub mod gpr {
    pub const RAX: usize = 0;
    pub const RCX: usize = 1;
    pub const RDX: usize = 2;
    pub const RBX: usize = 3;
    pub const RSP: usize = 4;
    pub const RBP: usize = 5;
    pub const RSI: usize = 6;
    pub const RDI: usize = 7;
    pub const R8: usize = 8;
    pub const R11: usize = 11;
}

/// A segment register by its encoding.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum SegmentRegister {
    Es,
    Cs,
    Ss,
    Ds,
    Fs,
    Gs,
}

/// A segment register with its hidden part, unpacked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Segment {
    /// The visible selector.
    pub selector: u16,
    /// Base address.
    pub base: u64,
    /// Limit in bytes, granularity applied.
    pub limit: u32,
    /// As [`favo_accel::state::Segment::access`].
    pub access: u32,
}

impl Segment {
    /// Descriptor type, S included (bits 4:0).
    pub const fn kind(&self) -> u32 {
        self.access & 0x1f
    }
    /// Descriptor privilege level.
    pub const fn dpl(&self) -> u8 {
        (self.access >> 5 & 3) as u8
    }
    /// Present.
    pub const fn present(&self) -> bool {
        self.access & 0x80 != 0
    }
    /// 64-bit code.
    pub const fn long(&self) -> bool {
        self.access & 1 << 13 != 0
    }
    /// D/B: 32-bit operands, stack or limit.
    pub const fn big(&self) -> bool {
        self.access & 1 << 14 != 0
    }
    /// Loaded with a null selector.
    pub const fn unusable(&self) -> bool {
        self.access & favo_accel::state::Segment::UNUSABLE != 0
    }
}

/// CR0 bits.
#[allow(missing_docs)]
pub mod cr0 {
    pub const PE: u64 = 1 << 0;
    pub const MP: u64 = 1 << 1;
    pub const EM: u64 = 1 << 2;
    pub const TS: u64 = 1 << 3;
    pub const ET: u64 = 1 << 4;
    pub const NE: u64 = 1 << 5;
    pub const WP: u64 = 1 << 16;
    pub const AM: u64 = 1 << 18;
    pub const NW: u64 = 1 << 29;
    pub const CD: u64 = 1 << 30;
    pub const PG: u64 = 1 << 31;
}

/// CR4 bits.
#[allow(missing_docs)]
pub mod cr4 {
    pub const VME: u64 = 1 << 0;
    pub const PVI: u64 = 1 << 1;
    pub const TSD: u64 = 1 << 2;
    pub const DE: u64 = 1 << 3;
    pub const PSE: u64 = 1 << 4;
    pub const PAE: u64 = 1 << 5;
    pub const MCE: u64 = 1 << 6;
    pub const PGE: u64 = 1 << 7;
    pub const PCE: u64 = 1 << 8;
    pub const OSFXSR: u64 = 1 << 9;
    pub const OSXMMEXCPT: u64 = 1 << 10;
    pub const UMIP: u64 = 1 << 11;
    pub const FSGSBASE: u64 = 1 << 16;
    pub const PCIDE: u64 = 1 << 17;
    pub const OSXSAVE: u64 = 1 << 18;
    pub const SMEP: u64 = 1 << 20;
    pub const SMAP: u64 = 1 << 21;
}

/// EFER bits.
#[allow(missing_docs)]
pub mod efer {
    pub const SCE: u64 = 1 << 0;
    pub const LME: u64 = 1 << 8;
    pub const LMA: u64 = 1 << 10;
    pub const NXE: u64 = 1 << 11;
    pub const FFXSR: u64 = 1 << 14;
}

/// RFLAGS bits.
#[allow(missing_docs)]
pub mod rflags {
    pub const CF: u64 = 1 << 0;
    pub const FIXED: u64 = 1 << 1;
    pub const PF: u64 = 1 << 2;
    pub const AF: u64 = 1 << 4;
    pub const ZF: u64 = 1 << 6;
    pub const SF: u64 = 1 << 7;
    pub const TF: u64 = 1 << 8;
    pub const IF: u64 = 1 << 9;
    pub const DF: u64 = 1 << 10;
    pub const OF: u64 = 1 << 11;
    pub const IOPL: u64 = 3 << 12;
    pub const NT: u64 = 1 << 14;
    pub const RF: u64 = 1 << 16;
    pub const VM: u64 = 1 << 17;
    pub const AC: u64 = 1 << 18;
    pub const VIF: u64 = 1 << 19;
    pub const VIP: u64 = 1 << 20;
    pub const ID: u64 = 1 << 21;
    /// CF, PF, AF, ZF, SF, OF.
    pub const ARITHMETIC: u64 = CF | PF | AF | ZF | SF | OF;
}

/// How wide code and addresses are by default.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u8)]
pub enum CodeSize {
    /// Real mode, virtual-8086 mode, or a 16-bit code segment.
    #[default]
    Bits16,
    /// A 32-bit code segment, compatibility mode included.
    Bits32,
    /// 64-bit mode.
    Bits64,
}

/// One virtual processor.
#[repr(C, align(64))]
pub struct Cpu {
    /// General registers, by encoding; the last one is always zero, for
    /// addresses without base or index.
    pub gpr: [u64; 17],
    /// Set by a store into cached code, so that the next instruction is looked
    /// up anew.
    pub(crate) leave_block: bool,
    /// The instruction being executed; each operation moves it at its end.
    pub rip: u64,
    /// CF, PF, AF, ZF, SF, OF, computed when somebody asks.
    pub arithmetic: ArithmeticFlags,
    /// The other bits of RFLAGS; the arithmetic ones are zero here.
    pub system_flags: u64,
    /// ES, CS, SS, DS, FS, GS.
    pub segments: [Segment; 6],
    /// Derived: how wide code is.
    pub code_size: CodeSize,
    /// Derived: current privilege level.
    pub cpl: u8,
    /// Derived: long mode is active (EFER.LMA), 64-bit or compatibility.
    pub long_mode: bool,

    /// Local descriptor table.
    pub ldtr: Segment,
    /// Task register.
    pub tr: Segment,
    /// Global descriptor table.
    pub gdtr: DescriptorTable,
    /// Interrupt descriptor table.
    pub idtr: DescriptorTable,
    /// Mode switches.
    pub cr0: u64,
    /// Where the last page fault was.
    pub cr2: u64,
    /// Root of the page tables.
    pub cr3: u64,
    /// Feature switches.
    pub cr4: u64,
    /// Extended feature enables.
    pub efer: u64,
    /// Extended states in use.
    pub xcr0: u64,
    /// Debug registers.
    pub debug: DebugRegisters,
    /// Model-specific registers.
    pub msrs: Msrs,
    /// Interrupts are held back for one instruction.
    pub shadow: InterruptShadow,
    /// NMIs are blocked until IRET.
    pub nmi_masked: bool,
    /// The address of the last #PF, until it is delivered and goes to CR2.
    pub fault_address: u64,
    /// What [`crate::trap::Trap::Exit`] asks for.
    pub exit: favo_accel::VcpuExit,
    /// DR6 bits of the data breakpoints the running instruction met.
    pub(crate) breakpoint_hits: u16,
    /// Answered accesses of the instruction that is being run again.
    pub(crate) log: AccessLog,
    /// What CPUID lets the guest switch on.
    pub limits: Limits,
    /// What CPUID says.
    pub cpuid: CpuidTable,
    /// Segment bases as addresses use them: ES, CS, SS, DS, FS, GS, and zero.
    /// Derived.
    pub(crate) bases: [u64; 7],
    /// Added to the host's TSC to give the guest's.
    pub(crate) tsc_offset: u64,
    /// A level-triggered interrupt ended; the I/O APIC must hear of it.
    pub(crate) end_of_level: Option<u8>,
    pub(crate) apic: LocalApic,
    /// x87, SSE and AVX registers.
    pub extended: ExtendedState,
    pub(crate) id: u32,
    pub(crate) shared: Arc<Shared>,
    pub(crate) mmu: Mmu,
    pub(crate) cache: BlockCache,
    pub(crate) hot: Hot,
    pub(crate) translator: Translator,
    /// What is counted; see [`crate::counters`].
    pub counters: Counters,
}

impl Cpu {
    /// Processor `id` with nothing loaded: a state must follow.
    pub(crate) fn new(
        id: u32,
        cpuid: CpuidTable,
        shared: Arc<Shared>,
    ) -> std::io::Result<LowBox<Self>> {
        let mmu = Mmu::new(shared.memory.clone())?;
        let mut cpu = LowBox::new(Self::with(id, cpuid, shared, mmu))?;
        Translator::start(&mut cpu)?;
        Ok(cpu)
    }

    fn with(id: u32, cpuid: CpuidTable, shared: Arc<Shared>, mmu: Mmu) -> Self {
        let reset = favo_accel::state::VcpuState::power_on(id, 0);
        Self {
            gpr: [0; 17],
            leave_block: false,
            rip: 0,
            arithmetic: ArithmeticFlags::default(),
            system_flags: 0,
            segments: [Segment::default(); 6],
            code_size: CodeSize::Bits16,
            cpl: 0,
            long_mode: false,
            ldtr: Segment::default(),
            tr: Segment::default(),
            gdtr: DescriptorTable::default(),
            idtr: DescriptorTable::default(),
            cr0: cr0::ET,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            efer: 0,
            xcr0: 1,
            debug: DebugRegisters::default(),
            msrs: reset.msrs.clone(),
            shadow: InterruptShadow::None,
            nmi_masked: false,
            fault_address: 0,
            exit: favo_accel::VcpuExit::Interrupted,
            breakpoint_hits: 0,
            log: AccessLog::default(),
            limits: Limits::from_cpuid(&cpuid),
            cpuid,
            bases: [0; 7],
            tsc_offset: 0,
            end_of_level: None,
            apic: LocalApic::new(id, reset.local_apic, reset.msrs.apic_base, shared.tsc_khz),
            extended: ExtendedState::default(),
            id,
            mmu,
            shared,
            cache: BlockCache::default(),
            hot: crate::translate::initial(),
            translator: Translator::off(),
            counters: Counters::default(),
        }
    }
}
