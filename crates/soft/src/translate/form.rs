//! How an instruction is translated.

mod flags;
mod x87;

pub(crate) use flags::flags;
pub(super) use x87::touches_x87;

use iced_x86::{
    ConditionCode, FlowControl, Instruction, Mnemonic, OpCodeOperandKind, OpKind, Register,
};

use super::encoding::Encoding;
use crate::exec::x87::opcode;
use crate::exec::{system, vector_special};
use crate::native::{self, MemoryAccess, Unit};
use crate::operation::Operation;

/// The fields of an encoding that name general registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Fields {
    pub reg: Option<Field>,
    pub rm: Option<Field>,
    pub vvvv: Option<Field>,
}

/// A general register as an operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Field {
    /// One byte wide.
    pub byte: bool,
    /// It may be written.
    pub written: bool,
}

/// A memory operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Memory {
    pub size: u16,
    pub write: bool,
    /// 1, or what the address must be a multiple of.
    pub alignment: u8,
}

/// How an instruction is translated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Form<'a> {
    /// It does nothing.
    Nothing,
    /// Its bytes as they are.
    Raw,
    /// Its bytes with other registers and another address.
    Copy {
        encoding: Encoding<'a>,
        fields: Fields,
        memory: Option<Memory>,
        /// It uses vector registers or MXCSR.
        vector: bool,
    },
    /// DIV or IDIV of 32 or 64 bits.
    Divide {
        signed: bool,
        wide: bool,
    },
    /// BT, BTS, BTR, BTC in memory with the bit's number in a register: what
    /// the immediate form has as its extension, and 32 or 64 bits.
    BitInMemory {
        extension: u8,
        wide: bool,
    },
    /// BSWAP of a register without a host register.
    SwapBytes {
        register: u8,
        wide: bool,
    },
    /// MOV of a segment register to a general register of 32 or 64 bits.
    Selector {
        register: u8,
        segment: u8,
    },
    /// 64-bit PUSHF.
    PushFlags,
    /// CLI at level 0.
    ClearInterrupts,
    /// SWAPGS at level 0.
    SwapGs,
    /// MOV of a constant into 32 or 64 bits of a register.
    Constant {
        register: u8,
        value: u64,
    },
    /// 64-bit PUSH.
    Push(PushOf),
    /// 64-bit POP of a register.
    Pop(u8),
    /// LEAVE.
    Leave,
    /// Jcc, JMP, CALL to a place relative to RIP.
    ConditionalJump(u8),
    Jump,
    Call,
    /// JMP or CALL to what a register or memory says.
    JumpIndirect {
        call: bool,
    },
    /// RET; so many bytes are released.
    Return(u16),
    /// An x87 instruction: copied, its memory operand replaced.
    X87 {
        encoding: Option<Encoding<'a>>,
        memory: Option<Memory>,
        /// The opcode, if it is noted as the last x87 instruction.
        noted: Option<u16>,
    },
    /// PAUSE.
    Pause,
    /// The interpreter does it.
    Interpret,
}

/// What is pushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PushOf {
    Register(u8),
    Constant(i32),
    Memory,
}

/// How to translate an instruction whose bytes and operation are given.
/// `vectors` says whether vector instructions may run as they are.
pub(super) fn of<'a>(
    instruction: &Instruction,
    bytes: &'a [u8],
    operation: &Operation,
    vectors: bool,
    user: bool,
) -> Form<'a> {
    let handler = operation.handler as usize;
    let absent = [
        system::undefined as *const () as usize,
        system::missing as *const () as usize,
        system::too_long as *const () as usize,
    ];
    if absent.contains(&handler) {
        return Form::Interpret;
    }
    if instruction.mnemonic() == Mnemonic::Cli && !user {
        return Form::ClearInterrupts;
    }
    if instruction.mnemonic() == Mnemonic::Swapgs && !user {
        return Form::SwapGs;
    }
    if let Some(form) = flow(instruction) {
        return form;
    }
    if let Some(form) = simple(instruction, bytes) {
        return form;
    }
    if integer(instruction) {
        return copy(instruction, bytes, memory_of_integer(instruction), false);
    }
    if vectors {
        return vector(instruction, bytes);
    }
    Form::Interpret
}

fn flow<'a>(instruction: &Instruction) -> Option<Form<'a>> {
    use iced_x86::Code;
    Some(match instruction.code() {
        code if code.is_jcc_short_or_near() => {
            if instruction.op0_kind() != OpKind::NearBranch64 {
                return Some(Form::Interpret);
            }
            Form::ConditionalJump(condition(instruction.condition_code())?)
        }
        Code::Jmp_rel8_64 | Code::Jmp_rel32_64 => Form::Jump,
        Code::Call_rel32_64 => Form::Call,
        Code::Jmp_rm64 => Form::JumpIndirect { call: false },
        Code::Call_rm64 => Form::JumpIndirect { call: true },
        Code::Retnq => Form::Return(0),
        Code::Retnq_imm16 => Form::Return(instruction.immediate16()),
        Code::Pushq_imm8 | Code::Pushq_imm32 => {
            Form::Push(PushOf::Constant(instruction.immediate(0) as i32))
        }
        Code::Push_r64 => Form::Push(PushOf::Register(number(instruction.op0_register()))),
        Code::Push_rm64 if instruction.op0_kind() == OpKind::Register => {
            Form::Push(PushOf::Register(number(instruction.op0_register())))
        }
        Code::Push_rm64 => Form::Push(PushOf::Memory),
        Code::Pop_r64 => Form::Pop(number(instruction.op0_register())),
        Code::Leaveq => Form::Leave,
        Code::Pushfq => Form::PushFlags,
        Code::Pause => Form::Pause,
        _ if instruction.flow_control() != FlowControl::Next => Form::Interpret,
        _ => return None,
    })
}

fn condition(code: ConditionCode) -> Option<u8> {
    use ConditionCode::*;
    Some(match code {
        ConditionCode::None => return Option::None,
        o => 0,
        no => 1,
        b => 2,
        ae => 3,
        e => 4,
        ne => 5,
        be => 6,
        a => 7,
        s => 8,
        ns => 9,
        p => 10,
        np => 11,
        l => 12,
        ge => 13,
        le => 14,
        g => 15,
    })
}

/// The number of a general register: 0 to 15.
pub(super) fn number(register: Register) -> u8 {
    register.full_register().number() as u8
}

/// Registers that have their name in the host.
pub(super) const fn is_resident(register: u8) -> bool {
    !matches!(register, 4 | 9 | 10 | 11)
}

/// Instructions without a ModRM byte, or that do nothing.
fn simple<'a>(instruction: &Instruction, bytes: &'a [u8]) -> Option<Form<'a>> {
    use Mnemonic::*;
    let code = instruction.code();
    use iced_x86::Code;
    Some(match instruction.mnemonic() {
        Nop | Endbr64 | Endbr32 | Prefetcht0 | Prefetcht1 | Prefetcht2 | Prefetchnta
        | Prefetchw | Prefetch => Form::Nothing,
        Cbw | Cwde | Cdqe | Cwd | Cdq | Cqo | Clc | Stc | Cmc | Lahf | Sahf | Lfence | Mfence
        | Sfence => Form::Raw,
        Mov => match code {
            Code::Mov_r32_imm32 => Form::Constant {
                register: number(instruction.op0_register()),
                value: instruction.immediate32().into(),
            },
            Code::Mov_r64_imm64 => Form::Constant {
                register: number(instruction.op0_register()),
                value: instruction.immediate64(),
            },
            Code::Mov_r8_imm8 | Code::Mov_r16_imm16 => raw_if_resident(instruction),
            Code::Mov_r32m16_Sreg | Code::Mov_r64m16_Sreg
                if instruction.op0_kind() == OpKind::Register =>
            {
                Form::Selector {
                    register: number(instruction.op0_register()),
                    segment: instruction.op1_register() as u8 - Register::ES as u8,
                }
            }
            Code::Mov_AL_moffs8
            | Code::Mov_AX_moffs16
            | Code::Mov_EAX_moffs32
            | Code::Mov_RAX_moffs64
            | Code::Mov_moffs8_AL
            | Code::Mov_moffs16_AX
            | Code::Mov_moffs32_EAX
            | Code::Mov_moffs64_RAX => Form::Interpret,
            _ => return None,
        },
        Xchg if matches!(
            code,
            Code::Xchg_r16_AX | Code::Xchg_r32_EAX | Code::Xchg_r64_RAX
        ) =>
        {
            raw_if_resident(instruction)
        }
        Bswap => match (code, number(instruction.op0_register())) {
            (Code::Bswap_r16, _) => Form::Interpret,
            (_, register) if is_resident(register) => Form::Raw,
            (_, register) => Form::SwapBytes {
                register,
                wide: code == Code::Bswap_r64,
            },
        },
        Bt | Bts | Btr | Btc
            if instruction.op0_kind() == OpKind::Memory
                && instruction.op1_kind() == OpKind::Register =>
        {
            let size = instruction.op1_register().size();
            if size == 2 {
                Form::Interpret
            } else {
                Form::BitInMemory {
                    extension: match instruction.mnemonic() {
                        Bt => 4,
                        Bts => 5,
                        Btr => 6,
                        _ => 7,
                    },
                    wide: size == 8,
                }
            }
        }
        Div | Idiv => {
            if matches!(
                code,
                Code::Div_rm8 | Code::Idiv_rm8 | Code::Div_rm16 | Code::Idiv_rm16
            ) {
                Form::Interpret
            } else {
                Form::Divide {
                    signed: instruction.mnemonic() == Idiv,
                    wide: matches!(code, Code::Div_rm64 | Code::Idiv_rm64),
                }
            }
        }
        _ => {
            let accumulator = (0..instruction.op_count()).any(|n| {
                matches!(
                    instruction.op_code().op_kind(n),
                    OpCodeOperandKind::al
                        | OpCodeOperandKind::ax
                        | OpCodeOperandKind::eax
                        | OpCodeOperandKind::rax
                )
            });
            let opcode = bytes.last().is_some();
            if accumulator && opcode && integer(instruction) {
                return Some(Form::Raw);
            }
            return None;
        }
    })
}

fn raw_if_resident<'a>(instruction: &Instruction) -> Form<'a> {
    let resident = (0..instruction.op_count()).all(|n| {
        instruction.op_kind(n) != OpKind::Register
            || is_high_byte(instruction.op_register(n))
            || is_resident(number(instruction.op_register(n)))
    });
    if resident { Form::Raw } else { Form::Interpret }
}

fn is_high_byte(register: Register) -> bool {
    matches!(
        register,
        Register::AH | Register::BH | Register::CH | Register::DH
    )
}

/// Integer instructions whose copy does the same on the host.
fn integer(instruction: &Instruction) -> bool {
    use Mnemonic::*;
    match instruction.mnemonic() {
        // With an index in a register they reach beyond their operand.
        Bt | Bts | Btr | Btc => {
            instruction.op0_kind() == OpKind::Register || instruction.op1_kind() != OpKind::Register
        }
        // The host reads more than the operand.
        Movsxd => instruction.code() != iced_x86::Code::Movsxd_r16_rm16,
        Mov => {
            !instruction.op0_register().is_segment_register()
                && !instruction.op1_register().is_segment_register()
                && !is_system(instruction.op0_register())
                && !is_system(instruction.op1_register())
        }
        Add | Adc | Sub | Sbb | And | Or | Xor | Cmp | Test | Inc | Dec | Neg | Not | Movzx
        | Movsx | Mul | Imul | Shl | Shr | Sar | Sal | Rol | Ror | Rcl | Rcr | Shld | Shrd
        | Bsf | Bsr | Tzcnt | Lzcnt | Popcnt | Seta | Setae | Setb | Setbe | Sete | Setg
        | Setge | Setl | Setle | Setne | Setno | Setnp | Setns | Seto | Setp | Sets | Cmova
        | Cmovae | Cmovb | Cmovbe | Cmove | Cmovg | Cmovge | Cmovl | Cmovle | Cmovne | Cmovno
        | Cmovnp | Cmovns | Cmovo | Cmovp | Cmovs | Xchg | Xadd | Cmpxchg | Movbe | Crc32
        | Andn | Bextr | Blsi | Blsr | Blsmsk | Bzhi | Mulx | Pdep | Pext | Rorx | Sarx | Shlx
        | Shrx | Adcx | Adox | Movnti | Lea | Cmpxchg8b | Cmpxchg16b => true,
        _ => false,
    }
}

fn is_system(register: Register) -> bool {
    register.is_cr() || register.is_dr()
}

fn memory_of_integer(instruction: &Instruction) -> Option<Memory> {
    use Mnemonic::*;
    let operand =
        (0..instruction.op_count()).find(|n| instruction.op_kind(*n) == OpKind::Memory)?;
    let reads_only = matches!(instruction.mnemonic(), Cmp | Test | Bt | Mul)
        || instruction.mnemonic() == Imul && instruction.op_count() == 1;
    Some(Memory {
        size: instruction.memory_size().size() as u16,
        write: operand == 0 && !reads_only || instruction.mnemonic() == Xchg,
        alignment: if instruction.mnemonic() == Cmpxchg16b {
            16
        } else {
            1
        },
    })
}

fn vector<'a>(instruction: &Instruction, bytes: &'a [u8]) -> Form<'a> {
    if matches!(
        instruction.mnemonic(),
        Mnemonic::Vzeroupper | Mnemonic::Vzeroall
    ) {
        return Form::Raw;
    }
    let mut unused = Operation {
        handler: system::nothing,
        immediate: 0,
        displacement: 0,
        first: 0,
        second: 0,
        base: 0,
        index: 0,
        scale: 0,
        segment: 0,
        address_shift: 0,
        length: 0,
        third: 0,
        width: 0,
        prefixes: 0,
        checks_segment: false,
    };
    if vector_special::prepare(instruction, &mut unused).is_some() {
        return Form::Interpret;
    }
    if let Some(form) = x87::control(instruction, bytes) {
        return form;
    }
    let Some(native) = native::lookup(instruction) else {
        return Form::Interpret;
    };
    if native.form.unit == Unit::X87 {
        return x87::plain(bytes, native.form, Some(opcode(bytes) & 0x7ff));
    }
    if !matches!(native.form.unit, Unit::Sse | Unit::Avx) {
        return Form::Interpret;
    }
    let memory = match native.form.access {
        MemoryAccess::None => None,
        access => Some(Memory {
            size: native.form.size.into(),
            write: access == MemoryAccess::Write,
            alignment: native.form.alignment,
        }),
    };
    copy(instruction, bytes, memory, true)
}

/// The form of an instruction with a ModRM byte.
fn copy<'a>(
    instruction: &Instruction,
    bytes: &'a [u8],
    memory: Option<Memory>,
    vector: bool,
) -> Form<'a> {
    let Some(encoding) = Encoding::of(bytes) else {
        return Form::Interpret;
    };
    let is_lea = instruction.mnemonic() == Mnemonic::Lea;
    if memory.is_some() == encoding.rm.is_some() && !is_lea {
        return Form::Interpret;
    }
    let mut fields = Fields::default();
    let both = matches!(
        instruction.mnemonic(),
        Mnemonic::Xchg | Mnemonic::Xadd | Mnemonic::Mulx
    );
    for operand in 0..instruction.op_count() {
        let kind = instruction.op_code().op_kind(operand);
        let written = operand == 0 || both && operand == 1;
        let Some(place) = place(kind) else {
            return Form::Interpret;
        };
        let field = Field {
            byte: matches!(
                kind,
                OpCodeOperandKind::r8_or_mem | OpCodeOperandKind::r8_reg
            ),
            written,
        };
        match place {
            Place::Reg => fields.reg = Some(field),
            Place::Rm if encoding.rm.is_some() => fields.rm = Some(field),
            Place::Vvvv => fields.vvvv = Some(field),
            Place::Rm | Place::Other => {}
        }
        if instruction.op_kind(operand) == OpKind::Register
            && is_high_byte(instruction.op_register(operand))
        {
            return if memory.is_none() {
                raw_if_resident(instruction)
            } else {
                Form::Interpret
            };
        }
    }
    Form::Copy {
        encoding,
        fields,
        memory,
        vector,
    }
}

enum Place {
    Reg,
    Rm,
    Vvvv,
    Other,
}

/// Which field an operand lies in, if it is a general register; None for
/// kinds the translator does not know.
fn place(kind: OpCodeOperandKind) -> Option<Place> {
    use OpCodeOperandKind as K;
    Some(match kind {
        K::r8_or_mem
        | K::r16_or_mem
        | K::r32_or_mem
        | K::r64_or_mem
        | K::r16_rm
        | K::r32_rm
        | K::r64_rm => Place::Rm,
        K::r8_reg | K::r16_reg | K::r32_reg | K::r64_reg => Place::Reg,
        K::r32_vvvv | K::r64_vvvv => Place::Vvvv,
        K::mem
        | K::xmm_reg
        | K::xmm_rm
        | K::xmm_or_mem
        | K::xmm_vvvv
        | K::xmm_is4
        | K::ymm_reg
        | K::ymm_rm
        | K::ymm_or_mem
        | K::ymm_vvvv
        | K::ymm_is4
        | K::imm8
        | K::imm8_const_1
        | K::imm8sex16
        | K::imm8sex32
        | K::imm8sex64
        | K::imm16
        | K::imm32
        | K::imm32sex64
        | K::cl => Place::Other,
        _ => return None,
    })
}
