//! The canonical machine state: every register an x86-64 processor has that
//! a guest can observe, in favo's own versioned types.
//!
//! Both engines export and import these exactly. They are what a snapshot
//! stores, what a migration sends, and what lets a machine stop on one engine
//! and continue on the other; so a field here means what the Intel SDM or AMD
//! APM says it means, never what one engine finds handy.
//!
//! A field is only ever added, with a default that means "as it was before
//! the field existed"; [`VcpuState::VERSION`] counts what can't be said so.

use serde::{Deserialize, Serialize};

/// One processor.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct VcpuState {
    /// [`VcpuState::VERSION`] when it was written.
    pub version: u32,
    /// General registers, RIP and RFLAGS.
    pub general: GeneralRegisters,
    /// Segment registers and descriptor tables.
    pub segments: SegmentRegisters,
    /// Control registers.
    pub control: ControlRegisters,
    /// Debug registers.
    pub debug: DebugRegisters,
    /// Model-specific registers that are not part of another field.
    pub msrs: Msrs,
    /// x87, SSE and AVX.
    pub fpu: FpuState,
    /// The local APIC.
    pub local_apic: LocalApicState,
    /// What is about to happen to the processor.
    pub events: PendingEvents,
    /// Whether it runs at all.
    pub activity: Activity,
}

impl VcpuState {
    /// The version of the layout described here.
    pub const VERSION: u32 = 1;
}

/// General registers, RIP and RFLAGS (SDM vol. 1, 3.4).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct GeneralRegisters {
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rsp: u64,
    pub rbp: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub rip: u64,
    pub rflags: u64,
}

/// A segment register with its hidden part (SDM vol. 3, 3.4.3).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Segment {
    /// The visible selector.
    pub selector: u16,
    /// Base address.
    pub base: u64,
    /// Limit in bytes, granularity already applied.
    pub limit: u32,
    /// Type, S, DPL, P, AVL, L, D/B, G as the VMCS access-rights format has
    /// them: bits 3:0 type, 4 S, 6:5 DPL, 7 P, 12 AVL, 13 L, 14 D/B, 15 G,
    /// 16 unusable (SDM vol. 3, 25.4.1).
    pub access: u32,
}

impl Segment {
    /// Bit of [`Segment::access`]: the register was loaded with a null selector.
    /// P (bit 7) is clear then; the other bits keep what they were.
    pub const UNUSABLE: u32 = 1 << 16;
}

/// GDTR or IDTR.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct DescriptorTable {
    /// Linear base address.
    pub base: u64,
    /// Limit in bytes, that is size − 1.
    pub limit: u16,
}

/// Segment registers and descriptor tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct SegmentRegisters {
    pub es: Segment,
    pub cs: Segment,
    pub ss: Segment,
    pub ds: Segment,
    pub fs: Segment,
    pub gs: Segment,
    pub ldtr: Segment,
    pub tr: Segment,
    pub gdtr: DescriptorTable,
    pub idtr: DescriptorTable,
}

/// Control registers. CR8 is the local APIC's task priority.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct ControlRegisters {
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    /// Extended feature enables (MSR C000_0080H).
    pub efer: u64,
    /// XCR0: which extended states XSAVE manages.
    pub xcr0: u64,
}

/// Debug registers (SDM vol. 3, 18.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct DebugRegisters {
    /// DR0 to DR3: linear addresses.
    pub address: [u64; 4],
    pub dr6: u64,
    pub dr7: u64,
}

impl Default for DebugRegisters {
    fn default() -> Self {
        Self {
            address: [0; 4],
            dr6: 0xffff_0ff0,
            dr7: 0x400,
        }
    }
}

/// Model-specific registers. Those that mirror another field (FS.base,
/// GS.base, EFER, the x2APIC's) are not repeated here.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Msrs {
    /// 10H, as the guest would read it at the moment of export.
    pub tsc: u64,
    /// 3BH.
    pub tsc_adjust: u64,
    /// 6E0H: 0 when the timer is not armed.
    pub tsc_deadline: u64,
    /// C000_0103H.
    pub tsc_aux: u64,
    /// 1BH: base, enable, x2APIC enable, bootstrap processor.
    pub apic_base: u64,
    /// 174H to 176H.
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    /// C000_0081H to C000_0084H.
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub sfmask: u64,
    /// C000_0102H.
    pub kernel_gs_base: u64,
    /// 277H.
    pub pat: u64,
    /// 1A0H.
    pub misc_enable: u64,
    /// 48H.
    pub spec_ctrl: u64,
    /// Memory type range registers.
    pub mtrr: Mtrrs,
    /// KVM's paravirtual registers.
    pub paravirtual: ParavirtualMsrs,
}

/// Memory type range registers (SDM vol. 3, 12.11).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Mtrrs {
    /// 2FFH.
    pub default_type: u64,
    /// 250H, 258H, 259H, 268H to 26FH.
    pub fixed: [u64; 11],
    /// 200H to 20FH: base and mask of eight ranges.
    pub variable: [(u64, u64); 8],
}

/// KVM's paravirtual registers (Linux, Documentation/virt/kvm/x86/msr.rst).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ParavirtualMsrs {
    /// 4B56_4D00H: guest address of the wall clock.
    pub wall_clock: u64,
    /// 4B56_4D01H: guest address of this processor's clock, bit 0 enables.
    pub system_time: u64,
    /// 4B56_4D02H.
    pub async_pf: u64,
    /// 4B56_4D03H: guest address of the steal time, bit 0 enables.
    pub steal_time: u64,
    /// 4B56_4D04H: guest address of the EOI flag, bit 0 enables.
    pub pv_eoi: u64,
    /// 4B56_4D05H.
    pub poll_control: u64,
}

/// x87, SSE and AVX state (SDM vol. 1, 13.4 and 10.5).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct FpuState {
    /// x87 control word.
    pub fcw: u16,
    /// x87 status word.
    pub fsw: u16,
    /// x87 tag word, abridged: bit n set when physical register n is not empty.
    pub ftw: u8,
    /// Last x87 opcode, 11 bits.
    pub fop: u16,
    /// Last x87 instruction pointer.
    pub fip: u64,
    /// Last x87 operand pointer.
    pub fdp: u64,
    /// ST(0) to ST(7), 80 bits each, also MM0 to MM7.
    pub st: [[u8; 10]; 8],
    pub mxcsr: u32,
    /// YMM0 to YMM15; the low halves are XMM0 to XMM15.
    pub ymm: [[u8; 32]; 16],
}

impl Default for FpuState {
    /// As after RESET.
    fn default() -> Self {
        Self {
            fcw: 0x37f,
            fsw: 0,
            ftw: 0,
            fop: 0,
            fip: 0,
            fdp: 0,
            st: [[0; 10]; 8],
            mxcsr: 0x1f80,
            ymm: [[0; 32]; 16],
        }
    }
}

/// The local APIC (SDM vol. 3, chapter 11). Its base and mode are
/// [`Msrs::apic_base`], its TSC deadline [`Msrs::tsc_deadline`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct LocalApicState {
    /// xAPIC id in bits 31:24, or the x2APIC id, whichever mode is on.
    pub id: u32,
    /// Task priority; also CR8 (its bits 7:4).
    pub tpr: u32,
    /// Logical destination. In x2APIC mode derived from the id.
    pub ldr: u32,
    /// Destination format; xAPIC mode only.
    pub dfr: u32,
    /// Spurious interrupt vector and software enable.
    pub svr: u32,
    /// In service, trigger mode, request: 256 bits each.
    pub isr: [u32; 8],
    pub tmr: [u32; 8],
    pub irr: [u32; 8],
    pub esr: u32,
    /// Interrupt command, destination in the upper half as the mode has it.
    pub icr: u64,
    pub lvt_cmci: u32,
    pub lvt_timer: u32,
    pub lvt_thermal: u32,
    pub lvt_performance: u32,
    pub lvt_lint0: u32,
    pub lvt_lint1: u32,
    pub lvt_error: u32,
    pub timer_initial_count: u32,
    /// What a read of the current count returned at export.
    pub timer_current_count: u32,
    pub timer_divide: u32,
}

/// What is about to happen to the processor.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct PendingEvents {
    /// An exception whose delivery has not finished.
    pub exception: Option<PendingException>,
    /// An interrupt that left the local APIC and whose delivery has not
    /// finished.
    pub interrupt: Option<PendingInterrupt>,
    /// Interrupts are held back for one instruction.
    pub shadow: InterruptShadow,
    /// An NMI waits.
    pub nmi_pending: bool,
    /// NMIs are blocked until IRET.
    pub nmi_masked: bool,
    /// The vector of a SIPI that was received and not yet acted on.
    pub sipi_vector: Option<u8>,
    /// An INIT was received and not yet acted on.
    pub init_pending: bool,
}

/// An exception on its way to the guest's handler.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PendingException {
    /// Vector, 0 to 31.
    pub vector: u8,
    /// Pushed on the stack, for vectors that have one.
    pub error_code: Option<u32>,
}

/// An interrupt on its way to the guest's handler.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PendingInterrupt {
    /// Vector.
    pub vector: u8,
    /// From INT n rather than from the local APIC.
    pub software: bool,
}

/// Why interrupts are held back for one instruction (SDM vol. 3, 6.8.3).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum InterruptShadow {
    /// They are not.
    #[default]
    None,
    /// STI came before.
    Sti,
    /// MOV SS or POP SS came before.
    MovSs,
}

/// Whether a processor runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum Activity {
    /// It executes instructions.
    #[default]
    Running,
    /// HLT: waits for an interrupt.
    Halted,
    /// An application processor before its first INIT.
    WaitForInit,
    /// After INIT: waits for a start-up IPI.
    WaitForSipi,
}

/// The machine's paravirtual clock.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ClockState {
    /// kvmclock, in nanoseconds since the machine was made.
    pub kvmclock_ns: u64,
    /// The host's real-time clock at the same moment, nanoseconds since 1970.
    pub realtime_ns: u64,
}

mod flat;
mod reset;
mod validate;
