//! Instruction forms: what a stub does, and what its caller has to do.
//!
//! A form is an instruction without its register numbers and its address. The
//! set of forms is finite; each is analysed, assembled and kept once per
//! process.

use std::collections::HashMap;
use std::sync::{Mutex, OnceLock, PoisonError};

use iced_x86::{
    Code, Encoder, EncodingKind, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind,
    Register,
};

use super::arena::{Arena, ArenaError};
use super::features;
use super::state::ExtendedState;
use super::stub::{Slot, SlotUse, StubShape, assemble};

/// Which units an instruction needs; says what gates it (SDM vol. 3, 2.5,
/// 13.1 and 14.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unit {
    /// x87 arithmetic, loads and stores: waits for pending exceptions.
    X87,
    /// MMX registers only.
    Mmx,
    /// MMX and XMM registers.
    MmxSse,
    /// Legacy SSE.
    Sse,
    /// VEX-encoded.
    Avx,
}

/// What an instruction does to its memory operand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MemoryAccess {
    /// It has none.
    None,
    /// Reads it.
    Read,
    /// Writes it.
    Write,
}

/// The address of a stub.
pub(super) type Entry = unsafe extern "sysv64" fn(
    *mut u8,
    *mut u8,
    *mut u8,
    *mut u8,
    *mut u8,
    *mut ExtendedState,
) -> u64;

/// An instruction without its register numbers and its address.
#[derive(Debug)]
pub struct Form {
    pub(super) entry: Entry,
    pub(super) shape: StubShape,
    /// Which units it needs.
    pub unit: Unit,
    /// What it does to memory.
    pub access: MemoryAccess,
    /// Size of the memory operand in bytes.
    pub size: u8,
    /// Alignment the memory operand must have, in bytes; else #GP(0).
    pub alignment: u8,
    /// The results are half-precision numbers.
    pub(super) half_results: bool,
}

impl Form {
    /// All six arithmetic flags are written.
    pub const fn writes_flags(&self) -> bool {
        self.shape.flags_out
    }

    /// The arithmetic flags are operands.
    pub const fn reads_flags(&self) -> bool {
        self.shape.flags_in
    }
}

/// An instruction, ready to run: its form and its register numbers.
#[derive(Clone, Copy, Debug)]
pub struct Native {
    /// The form.
    pub form: &'static Form,
    /// Register number of each slot.
    pub registers: [u8; 4],
}

type Key = (Code, [u8; 16]);

struct Forms {
    arena: Arena,
    known: HashMap<Key, &'static Form>,
}

static FORMS: OnceLock<Result<Mutex<Forms>, ArenaError>> = OnceLock::new();

fn forms() -> Result<&'static Mutex<Forms>, &'static ArenaError> {
    FORMS
        .get_or_init(|| {
            Arena::new().map(|arena| {
                Mutex::new(Forms {
                    arena,
                    known: HashMap::new(),
                })
            })
        })
        .as_ref()
}

/// Makes sure that stubs can be made at all. The engine calls this before it
/// creates a machine.
pub fn initialize() -> Result<(), &'static ArenaError> {
    forms().map(|_| ())
}

/// The stub for `instruction`, made now if it is the first of its form. None
/// if it is not one that runs natively, or if the host does not have it.
pub fn lookup(instruction: &Instruction) -> Option<Native> {
    let unit = unit(instruction)?;
    let mut analysis = Analysis::new(instruction, unit)?;
    analysis.add_implicit_registers();
    let encoded = analysis.encode()?;
    let mut key = [0; 16];
    key[..encoded.len()].copy_from_slice(&encoded);
    key[15] = encoded.len() as u8;
    let forms = forms().ok()?;
    let mut forms = forms.lock().unwrap_or_else(PoisonError::into_inner);
    let key = (instruction.code(), key);
    let form = match forms.known.get(&key) {
        Some(form) => form,
        None => {
            let code = assemble(&analysis.shape, &encoded);
            let address = forms
                .arena
                .publish(&code)
                .inspect_err(|error| tracing::error!(%error, ?instruction, "no stub"))
                .ok()?;
            // SAFETY: the address is of executable memory that holds, for as
            // long as the process lives, a function of this signature.
            let entry = unsafe { std::mem::transmute::<*const u8, Entry>(address) };
            let form: &'static Form = Box::leak(Box::new(analysis.form(entry)));
            forms.known.insert(key, form);
            form
        }
    };
    Some(Native {
        form,
        registers: analysis.registers,
    })
}

/// Which unit runs `instruction` natively, if one does.
fn unit(instruction: &Instruction) -> Option<Unit> {
    use iced_x86::OpCodeOperandKind::{
        xmm_or_mem, xmm_reg, xmm_rm, xmm_vvvv, ymm_or_mem, ymm_reg, ymm_rm, ymm_vvvv,
    };
    let code = instruction.code();
    if !features::supports(code) || features::is_emulated(code) {
        return None;
    }
    if features::is_x87(code) {
        return Some(Unit::X87);
    }
    // CVTPI2PS and CVTPI2PD from memory do not touch the MMX registers.
    let mmx = (0..instruction.op_count())
        .any(|n| instruction.op_kind(n) == OpKind::Register && instruction.op_register(n).is_mm());
    let kinds = code.op_code().op_kinds();
    let vector = kinds.iter().any(|kind| {
        matches!(
            kind,
            xmm_reg | xmm_rm | xmm_vvvv | xmm_or_mem | ymm_reg | ymm_rm | ymm_vvvv | ymm_or_mem
        )
    });
    match code.encoding() {
        EncodingKind::VEX if vector => Some(Unit::Avx),
        EncodingKind::Legacy if vector && mmx => Some(Unit::MmxSse),
        EncodingKind::Legacy if vector => Some(Unit::Sse),
        EncodingKind::Legacy if mmx => Some(Unit::Mmx),
        _ => None,
    }
}

struct Analysis<'a> {
    instruction: &'a Instruction,
    unit: Unit,
    shape: StubShape,
    registers: [u8; 4],
    access: MemoryAccess,
    normalized: Instruction,
}

impl<'a> Analysis<'a> {
    fn new(instruction: &'a Instruction, unit: Unit) -> Option<Self> {
        let mut this = Self {
            instruction,
            unit,
            shape: StubShape {
                x87: unit == Unit::X87,
                mxcsr: unit != Unit::X87 && depends_on_mxcsr(instruction.mnemonic()),
                flags_in: unit == Unit::X87
                    && (instruction.rflags_read() | instruction.rflags_modified()) != 0,
                flags_out: instruction.rflags_modified() != 0,
                avx: features::host_has_avx()
                    && matches!(unit, Unit::Sse | Unit::MmxSse | Unit::Avx),
                ..StubShape::default()
            },
            registers: [0; 4],
            access: MemoryAccess::None,
            normalized: *instruction,
        };
        let mut factory = InstructionInfoFactory::new();
        let info = factory.info(instruction);
        for n in 0..instruction.op_count() {
            let access = info.op_access(n);
            match instruction.op_kind(n) {
                OpKind::Register => this.register(n, access)?,
                OpKind::Memory => this.memory(access)?,
                OpKind::Immediate8 | OpKind::Immediate8_2nd => {}
                _ => return None,
            }
        }
        Some(this)
    }

    fn register(&mut self, n: u32, access: OpAccess) -> Option<()> {
        let register = self.instruction.op_register(n);
        if register.is_st() {
            return Some(());
        }
        let host = n + 1;
        let (slot, host) = if register.is_xmm() {
            (Slot::Vector, Register::XMM0 + host)
        } else if register.is_ymm() {
            (Slot::Vector, Register::YMM0 + host)
        } else if register.is_mm() {
            (Slot::Mmx, Register::MM0 + host)
        } else {
            (Slot::General, self.general(register)?)
        };
        let store = matches!(
            access,
            OpAccess::Write | OpAccess::ReadWrite | OpAccess::CondWrite | OpAccess::ReadCondWrite
        );
        *self.shape.slots.get_mut(n as usize)? = SlotUse {
            slot,
            // Only VEX instructions replace all of what they write.
            load: self.unit != Unit::Avx || access != OpAccess::Write || slot != Slot::Vector,
            store,
        };
        self.registers[n as usize] = register.full_register().number() as u8;
        self.normalized.set_op_register(n, host);
        Some(())
    }

    /// The host register for a general register operand.
    fn general(&self, register: Register) -> Option<Register> {
        let before = self.shape.slots.iter().filter(|s| s.slot == Slot::General);
        let second = before.count() as u32;
        if second > 1 || !register.is_gpr() {
            return None;
        }
        Some(
            match register.size() {
                8 => Register::R10,
                4 => Register::R10D,
                2 => Register::R10W,
                _ => return None,
            } + second,
        )
    }

    fn memory(&mut self, access: OpAccess) -> Option<()> {
        self.access = match access {
            OpAccess::Read => MemoryAccess::Read,
            OpAccess::Write => MemoryAccess::Write,
            _ => return None,
        };
        let normalized = &mut self.normalized;
        normalized.set_segment_prefix(Register::None);
        normalized.set_memory_base(Register::R8);
        normalized.set_memory_index(Register::None);
        normalized.set_memory_index_scale(1);
        normalized.set_memory_displacement64(0);
        normalized.set_memory_displ_size(0);
        Some(())
    }

    /// Registers the instruction uses without naming them.
    fn add_implicit_registers(&mut self) {
        use Mnemonic::*;
        let always = |slot| SlotUse {
            slot,
            load: true,
            store: false,
        };
        let stored = |slot| SlotUse {
            store: true,
            ..always(slot)
        };
        let slots = &mut self.shape.slots;
        match self.instruction.mnemonic() {
            Blendvps | Blendvpd | Pblendvb | Sha256rnds2 => {
                slots[3] = always(Slot::ImplicitXmm0);
            }
            Pcmpestri | Pcmpestri64 | Pcmpistri | Vpcmpestri | Vpcmpestri64 | Vpcmpistri => {
                slots[3] = stored(Slot::Compare);
            }
            Pcmpestrm | Pcmpestrm64 | Pcmpistrm | Vpcmpestrm | Vpcmpestrm64 | Vpcmpistrm => {
                slots[2] = stored(Slot::ImplicitXmm0);
                slots[3] = always(Slot::Compare);
            }
            _ => {}
        }
    }

    /// The instruction for the stub's registers.
    fn encode(&self) -> Option<Vec<u8>> {
        let mut encoder = Encoder::new(64);
        encoder
            .encode(&self.normalized, 0)
            .inspect_err(|error| {
                tracing::error!(%error, code = ?self.instruction.code(), "no stub");
            })
            .ok()?;
        let bytes = encoder.take_buffer();
        (bytes.len() < 16).then_some(bytes)
    }

    fn form(&self, entry: Entry) -> Form {
        let size = if self.access == MemoryAccess::None {
            0
        } else {
            self.instruction.memory_size().size()
        };
        Form {
            entry,
            shape: self.shape,
            unit: self.unit,
            access: self.access,
            size: size as u8,
            alignment: self.alignment(size),
            half_results: self.instruction.mnemonic() == Mnemonic::Vcvtps2ph,
        }
    }

    /// SDM vol. 2, 2.4: which memory operands must be aligned.
    fn alignment(&self, size: usize) -> u8 {
        use Mnemonic::*;
        let mnemonic = self.instruction.mnemonic();
        let required = match self.unit {
            Unit::X87 | Unit::Mmx => false,
            // CVTPD2PI and CVTTPD2PI.
            Unit::MmxSse => size == 16,
            Unit::Sse => match mnemonic {
                Movups | Movupd | Movdqu | Lddqu | Pcmpestri | Pcmpestri64 | Pcmpestrm
                | Pcmpestrm64 | Pcmpistri | Pcmpistrm => false,
                // AMD's SHA extensions take any address.
                Sha1msg1 | Sha1msg2 | Sha1nexte | Sha1rnds4 | Sha256msg1 | Sha256msg2
                | Sha256rnds2 => !features::host_is_amd(),
                _ => size == 16,
            },
            Unit::Avx => matches!(
                mnemonic,
                Vmovaps | Vmovapd | Vmovdqa | Vmovntps | Vmovntpd | Vmovntdq | Vmovntdqa
            ),
        };
        if required { size as u8 } else { 1 }
    }
}

/// Whether an SSE or AVX instruction is floating-point arithmetic: only those
/// read or write MXCSR.
fn depends_on_mxcsr(mnemonic: Mnemonic) -> bool {
    const STARTS: [&str; 22] = [
        "Add", "Sub", "Mul", "Div", "Min", "Max", "Sqrt", "Cmp", "Comis", "Ucomis", "Cvt", "Round",
        "Dpp", "Hadd", "Hsub", "Fmadd", "Fmsub", "Fnmadd", "Fnmsub", "Rcp", "Rsqrt", "Addsub",
    ];
    let name = format!("{mnemonic:?}").to_ascii_lowercase();
    let name = name.strip_prefix('v').unwrap_or(&name);
    STARTS
        .iter()
        .any(|start| name.starts_with(&start.to_ascii_lowercase()))
}

#[cfg(test)]
#[path = "form_test.rs"]
mod test;
