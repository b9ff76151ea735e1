//! Makes cases: an instruction of a given form with random operands, and a
//! machine state in which its addresses point somewhere interesting.

use iced_x86::{
    Code, CpuidFeature, Encoder, EncodingKind, Instruction, MemoryOperand, Mnemonic,
    OpCodeOperandKind, OpKind, Register,
};

use super::random::Random;
use super::{DATA, MachineState, START};

/// An encoded instruction and the general registers its addresses need.
#[derive(Clone, Debug)]
pub struct Generated {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Values for general registers, by encoding.
    pub pointers: Vec<(usize, u64)>,
}

/// Every instruction form the tester covers on this host.
pub fn codes() -> Vec<Code> {
    Code::values().filter(|code| is_covered(*code)).collect()
}

/// Whether the host can be asked about `code`: it exists in 64-bit mode, the
/// host has it, and running it in user mode tells something.
pub fn is_covered(code: Code) -> bool {
    let op_code = code.op_code();
    op_code.is_instruction()
        && op_code.mode64()
        && matches!(code.encoding(), EncodingKind::Legacy | EncodingKind::VEX)
        && code.cpuid_features().iter().all(|f| host_has(*f))
        && excluded(code).is_none()
}

/// The host has `feature`, one of those that are tested.
pub(super) fn host_has(feature: CpuidFeature) -> bool {
    use CpuidFeature as F;
    match feature {
        F::INTEL8086
        | F::INTEL186
        | F::INTEL286
        | F::INTEL386
        | F::INTEL486
        | F::X64
        | F::CMOV
        | F::FPU
        | F::FPU287
        | F::FPU387
        | F::CX8
        | F::MULTIBYTENOP
        | F::PAUSE => true,
        F::BMI1 => std::arch::is_x86_feature_detected!("bmi1"),
        F::BMI2 => std::arch::is_x86_feature_detected!("bmi2"),
        F::ADX => std::arch::is_x86_feature_detected!("adx"),
        F::LZCNT => std::arch::is_x86_feature_detected!("lzcnt"),
        F::POPCNT => std::arch::is_x86_feature_detected!("popcnt"),
        F::MOVBE => std::arch::is_x86_feature_detected!("movbe"),
        F::CMPXCHG16B => std::arch::is_x86_feature_detected!("cmpxchg16b"),
        _ => crate::native::host_supports(feature),
    }
}

/// Why a form can't be compared with the host in user mode, if it can't.
pub fn excluded(code: Code) -> Option<&'static str> {
    use Mnemonic::*;
    match code.mnemonic() {
        Cpuid | Rdtsc | Rdtscp | Rdpid | Rdpmc | Rdrand | Rdseed | Xgetbv => {
            Some("says something about the machine that is meant to differ")
        }
        Syscall | Sysenter | Sysexit | Sysexitq | Sysret | Sysretq | Int | Int1 | Int3 | Into
        | Iret | Iretd | Iretq | Vmcall | Vmmcall => Some("enters the host's kernel"),
        Sgdt | Sidt | Sldt | Str | Smsw | Lar | Lsl | Verr | Verw | Lds | Les | Lfs | Lgs | Lss
        | Retf | Arpl => Some("shows the host's descriptor tables"),
        Rdfsbase | Rdgsbase | Wrfsbase | Wrgsbase | Rdsspd | Rdsspq => {
            Some("shows the host's segment bases")
        }
        Xsave | Xsave64 | Xsavec | Xsavec64 | Xsaveopt | Xsaveopt64 | Xrstor | Xrstor64
        | Xsaves | Xsaves64 | Xrstors | Xrstors64 => Some("the host has more state components"),
        Fxsave | Fxsave64 => Some("the host's MXCSR mask and error pointers differ"),
        Fxrstor | Fxrstor64 | Fldenv | Frstor => {
            Some("takes its operand from memory that is rarely valid; has its own test")
        }
        Popf | Popfd | Popfq => Some("TF and AC from memory would trap in the signal handler"),
        In | Out | Insb | Insw | Insd | Outsb | Outsw | Outsd => Some("ports"),
        Mov if code
            .op_code()
            .op_kinds()
            .contains(&OpCodeOperandKind::seg_reg) =>
        {
            Some("selectors of the host")
        }
        Push | Pop
            if code
                .op_code()
                .op_kinds()
                .iter()
                .any(|k| matches!(k, OpCodeOperandKind::fs | OpCodeOperandKind::gs)) =>
        {
            Some("selectors of the host")
        }
        _ if code
            .op_code()
            .op_kinds()
            .iter()
            .any(|k| matches!(k, OpCodeOperandKind::br16_1 | OpCodeOperandKind::br16_2)) =>
        {
            Some("a branch out of the low 64 KiB; AMD only")
        }
        Jmp | Call
            if code.op_code().op_kinds().iter().any(|k| {
                matches!(k, OpCodeOperandKind::farbr2_2 | OpCodeOperandKind::farbr4_2)
            }) || is_far(code) =>
        {
            Some("selectors of the host")
        }
        Fndisi | Fdisi | Fneni | Feni | Fnsetpm | Fsetpm | Frstpm | Fstdw | Fstsg => {
            Some("not on this processor")
        }
        Ud0 | Ud1 | Ud2 => None,
        Monitor | Mwait | Monitorx | Mwaitx | Clzero | Rdpru | Invlpgb | Tlbsync | Skinit
        | Clgi | Stgi | Vmload | Vmsave | Vmrun | Invlpga => Some("not offered"),
        Xbegin | Xend | Xabort | Xtest => Some("not offered"),
        _ if code.op_code().is_privileged() => Some("privileged"),
        _ => None,
    }
}

fn is_far(code: Code) -> bool {
    use Code::*;
    matches!(
        code,
        Jmp_m1616 | Jmp_m1632 | Jmp_m1664 | Call_m1616 | Call_m1632 | Call_m1664
    )
}

/// An address in or at the edge of the test's data.
pub fn data_address(random: &mut Random) -> u64 {
    match random.below(16) {
        0..=6 => DATA + 0x1000 + random.below(0x1fc0),
        7..=9 => DATA + 0x1000 + random.below(0x1fc) * 16,
        10 => DATA + 0x1000 + random.below(0xfe) * 32,
        11 => DATA + 0x2000 - random.below(40),
        12 => DATA + 0x3000 - random.below(40),
        13 => DATA + 0x4000 + random.below(0xfc0),
        14 => {
            let distance = random.below(34);
            random.pick(&[
                DATA + 0x1000 - distance,
                DATA + 0x3000 + distance,
                DATA + 0x4000 - distance,
                DATA + 0x5000 - distance,
            ])
        }
        _ => match random.below(8) {
            0 => random.pick(&[0x8000_0000_0000, 0xffff_7fff_ffff_fff0, 0x6000_0000_0ff9]),
            _ => DATA + 0x1800 + random.below(0x100) * 8,
        },
    }
}

/// A random instruction of form `code`. None if it can't be encoded that way.
pub fn instruction(code: Code, random: &mut Random) -> Option<Generated> {
    let mut new = Builder {
        instruction: Instruction::default(),
        pointers: Vec::new(),
    };
    new.instruction.set_code(code);
    for (n, kind) in code.op_code().op_kinds().iter().enumerate() {
        new.operand(n as u32, *kind, random)?;
    }
    let op_code = code.op_code();
    if op_code.can_use_lock_prefix()
        && new.instruction.op0_kind() == OpKind::Memory
        && random.one_in(4)
    {
        new.instruction.set_has_lock_prefix(true);
    }
    if op_code.can_use_rep_prefix() && random.one_in(2) {
        new.instruction.set_has_rep_prefix(true);
    } else if op_code.can_use_repne_prefix()
        && new.instruction.is_string_instruction()
        && random.one_in(2)
    {
        new.instruction.set_has_repne_prefix(true);
    }
    new.implicit_pointers(random);
    let mut encoder = Encoder::new(64);
    encoder.encode(&new.instruction, START).ok()?;
    Some(Generated {
        bytes: encoder.take_buffer(),
        pointers: new.pointers,
    })
}

struct Builder {
    instruction: Instruction,
    pointers: Vec<(usize, u64)>,
}

impl Builder {
    fn register(&mut self, n: u32, base: Register, count: u64, random: &mut Random) {
        self.instruction.set_op_kind(n, OpKind::Register);
        let number = random.below(count) as u32;
        self.instruction.set_op_register(n, base + number);
    }

    fn fixed(&mut self, n: u32, register: Register) {
        self.instruction.set_op_kind(n, OpKind::Register);
        self.instruction.set_op_register(n, register);
    }

    fn operand(&mut self, n: u32, kind: OpCodeOperandKind, random: &mut Random) -> Option<()> {
        use OpCodeOperandKind::*;
        match kind {
            r8_or_mem | r16_or_mem | r32_or_mem | r64_or_mem | mm_or_mem | xmm_or_mem
            | ymm_or_mem
                if random.one_in(2) =>
            {
                self.memory(n, Option::None, random)
            }
            r8_or_mem | r8_reg | r8_opcode => {
                // AH to BH can't be used with REX; iced checks, so pick both.
                self.register(n, Register::AL, 20, random);
            }
            r16_or_mem | r16_reg | r16_reg_mem | r16_rm | r16_opcode => {
                self.register(n, Register::AX, 16, random);
            }
            r32_or_mem | r32_reg | r32_reg_mem | r32_rm | r32_opcode | r32_vvvv => {
                self.register(n, Register::EAX, 16, random);
            }
            r64_or_mem | r64_reg | r64_reg_mem | r64_rm | r64_opcode | r64_vvvv => {
                self.register(n, Register::RAX, 16, random);
            }
            mm_or_mem | mm_reg | mm_rm => self.register(n, Register::MM0, 8, random),
            xmm_or_mem | xmm_reg | xmm_rm | xmm_vvvv | xmm_is4 => {
                self.register(n, Register::XMM0, 16, random);
            }
            ymm_or_mem | ymm_reg | ymm_rm | ymm_vvvv | ymm_is4 => {
                self.register(n, Register::YMM0, 16, random);
            }
            al => self.fixed(n, Register::AL),
            cl => self.fixed(n, Register::CL),
            ax => self.fixed(n, Register::AX),
            dx => self.fixed(n, Register::DX),
            eax => self.fixed(n, Register::EAX),
            rax => self.fixed(n, Register::RAX),
            st0 => self.fixed(n, Register::ST0),
            sti_opcode => self.register(n, Register::ST0, 8, random),
            mem | mem_mib => self.memory(n, Option::None, random),
            mem_vsib32x | mem_vsib64x => self.memory(n, Some(Register::XMM0), random),
            mem_vsib32y | mem_vsib64y => self.memory(n, Some(Register::YMM0), random),
            mem_offs => {
                self.instruction.set_op_kind(n, OpKind::Memory);
                self.instruction.set_memory_displ_size(8);
                self.instruction
                    .set_memory_displacement64(data_address(random));
            }
            imm8 | imm4_m2z => self.immediate(n, OpKind::Immediate8, random.integer() & 0xff),
            imm8_const_1 => self.immediate(n, OpKind::Immediate8, 1),
            imm8sex16 => self.sign_extended(n, OpKind::Immediate8to16, random),
            imm8sex32 => self.sign_extended(n, OpKind::Immediate8to32, random),
            imm8sex64 => self.sign_extended(n, OpKind::Immediate8to64, random),
            imm16 => self.immediate(n, OpKind::Immediate16, random.integer() & 0xffff),
            imm32 => self.immediate(n, OpKind::Immediate32, random.integer() & 0xffff_ffff),
            imm32sex64 => {
                let value = random.integer() as i32 as i64 as u64;
                self.immediate(n, OpKind::Immediate32to64, value);
            }
            imm64 => self.immediate(n, OpKind::Immediate64, random.integer()),
            seg_rSI | es_rDI | seg_rDI | seg_rBX_al => self.string(n, kind, random),
            br64_1 | br64_4 => {
                let distance = random.below(40) as i64 + 20;
                let target = START.wrapping_add_signed(if random.one_in(2) {
                    distance
                } else {
                    -distance
                });
                self.instruction.set_op_kind(n, OpKind::NearBranch64);
                self.instruction.set_near_branch64(target);
            }
            _ => return Option::None,
        }
        Some(())
    }

    fn immediate(&mut self, n: u32, kind: OpKind, value: u64) {
        // ENTER, EXTRQ and INSERTQ have two.
        let kind = if kind == OpKind::Immediate8 && n > 0 && self.has_immediate(n - 1) {
            OpKind::Immediate8_2nd
        } else {
            kind
        };
        self.instruction.set_op_kind(n, kind);
        match kind {
            OpKind::Immediate8 => self.instruction.set_immediate8(value as u8),
            OpKind::Immediate8_2nd => self.instruction.set_immediate8_2nd(value as u8),
            OpKind::Immediate16 => self.instruction.set_immediate16(value as u16),
            OpKind::Immediate32 => self.instruction.set_immediate32(value as u32),
            OpKind::Immediate64 => self.instruction.set_immediate64(value),
            _ => self.instruction.set_immediate32(value as u32),
        }
    }

    fn has_immediate(&self, n: u32) -> bool {
        matches!(
            self.instruction.op_kind(n),
            OpKind::Immediate8 | OpKind::Immediate16
        )
    }

    fn sign_extended(&mut self, n: u32, kind: OpKind, random: &mut Random) {
        self.instruction.set_op_kind(n, kind);
        self.instruction.set_immediate8(random.integer() as u8);
    }

    fn string(&mut self, n: u32, kind: OpCodeOperandKind, random: &mut Random) {
        use OpCodeOperandKind::*;
        let short = random.one_in(8);
        let (kind, register) = match (kind, short) {
            (seg_rSI, false) => (OpKind::MemorySegRSI, 6),
            (seg_rSI, true) => (OpKind::MemorySegESI, 6),
            (es_rDI, false) => (OpKind::MemoryESRDI, 7),
            (es_rDI, true) => (OpKind::MemoryESEDI, 7),
            (seg_rDI, false) => (OpKind::MemorySegRDI, 7),
            (seg_rDI, true) => (OpKind::MemorySegEDI, 7),
            _ => {
                self.instruction.set_op_kind(n, OpKind::Memory);
                self.instruction.set_memory_base(Register::RBX);
                self.instruction.set_memory_index(Register::AL);
                (OpKind::Memory, 3)
            }
        };
        // Both operands of one instruction have one address size.
        let other = if n > 0 {
            self.instruction.op_kind(n - 1)
        } else {
            kind
        };
        let kind = match (kind, other) {
            (OpKind::MemorySegRSI, OpKind::MemoryESEDI) => OpKind::MemorySegESI,
            (OpKind::MemorySegESI, OpKind::MemoryESRDI) => OpKind::MemorySegRSI,
            (OpKind::MemoryESRDI, OpKind::MemorySegESI) => OpKind::MemoryESEDI,
            (OpKind::MemoryESEDI, OpKind::MemorySegRSI) => OpKind::MemoryESRDI,
            (kind, _) => kind,
        };
        self.instruction.set_op_kind(n, kind);
        self.pointers.push((register, data_address(random)));
        if random.one_in(2) {
            self.pointers.push((1, random.below(24)));
        }
    }

    /// A memory operand whose address is [`data_address`].
    fn memory(&mut self, n: u32, vector_index: Option<Register>, random: &mut Random) {
        let target = data_address(random);
        let displacement = match random.below(4) {
            0 => 0,
            1 => random.below(256) as i8 as i64,
            _ => random.below(1 << 20) as i64 - (1 << 19),
        };
        let short = random.one_in(12);
        let first = if short { Register::EAX } else { Register::RAX };
        let base = random.below(16) as usize;
        let based = !random.one_in(10);
        let operand = if let Some(vector) = vector_index {
            let index = vector + random.below(16) as u32;
            let scale = random.pick(&[1, 2, 4, 8]);
            self.pointers
                .push((base, target.wrapping_sub(displacement as u64)));
            MemoryOperand::with_base_index_scale_displ_size(
                first + base as u32,
                index,
                scale,
                displacement,
                4,
            )
        } else if !based && random.one_in(2) {
            MemoryOperand::with_base_displ_size(Register::RIP, target as i64, 8)
        } else if !based {
            // Absolute, through a SIB byte.
            MemoryOperand::with_displ(u64::from(target as u32 & 0x7fff_ffff), 8)
        } else if random.one_in(2) {
            self.pointers
                .push((base, target.wrapping_sub(displacement as u64)));
            MemoryOperand::with_base_displ_size(
                first + base as u32,
                displacement,
                u32::from(displacement != 0),
            )
        } else {
            let mut index = random.below(16) as usize;
            if index == 4 || index == base {
                index = if base == 6 { 7 } else { 6 };
            }
            let scale = random.pick(&[1u32, 2, 4, 8]);
            let value = random.below(0x1_0000);
            self.pointers.push((index, value));
            let rest = target
                .wrapping_sub(displacement as u64)
                .wrapping_sub(value * u64::from(scale));
            self.pointers.push((base, rest));
            MemoryOperand::with_base_index_scale_displ_size(
                first + base as u32,
                first + index as u32,
                scale,
                displacement,
                u32::from(displacement != 0),
            )
        };
        let instruction = &mut self.instruction;
        instruction.set_op_kind(n, OpKind::Memory);
        instruction.set_memory_base(operand.base);
        instruction.set_memory_index(operand.index);
        instruction.set_memory_index_scale(operand.scale);
        let size = match (operand.displ_size, operand.base.size()) {
            (0, _) => 0,
            (_, 4) => 4,
            _ => 8,
        };
        instruction.set_memory_displ_size(size);
        instruction.set_memory_displacement64(operand.displacement as u64);
    }

    /// Registers that address memory without being named.
    fn implicit_pointers(&mut self, random: &mut Random) {
        use Mnemonic::*;
        if self.instruction.is_stack_instruction() && !random.one_in(20) {
            self.pointers.push((4, data_address(random)));
            if matches!(self.instruction.mnemonic(), Leave | Enter) {
                self.pointers.push((5, data_address(random)));
            }
        }
        if matches!(
            self.instruction.mnemonic(),
            Maskmovq | Maskmovdqu | Vmaskmovdqu
        ) {
            self.pointers.push((7, data_address(random)));
        }
    }
}

/// A random machine state for `generated`.
pub fn state(generated: &[Generated], random: &mut Random) -> MachineState {
    let mut state = MachineState {
        rip: START,
        ..MachineState::default()
    };
    for register in &mut state.gpr {
        *register = random.integer();
    }
    for (register, value) in generated.iter().rev().flat_map(|g| &g.pointers) {
        state.gpr[*register] = *value;
    }
    // CF, PF, AF, ZF, SF, OF random; DF sometimes.
    state.flags = 0x202 | random.draw() & 0x8d5;
    if random.one_in(4) {
        state.flags |= 0x400;
    }
    let fpu = &mut state.fpu;
    for ymm in &mut fpu.ymm {
        *ymm = random.vector();
    }
    let masks = if random.one_in(3) {
        random.draw() as u32 & 0x1f80
    } else {
        0x1f80
    };
    fpu.mxcsr = match random.below(3) {
        0 => 0x1f80,
        1 => masks | random.draw() as u32 & 0x3f,
        _ => masks | random.draw() as u32 & 0xe07f,
    };
    for st in &mut fpu.st {
        *st = random.extended();
    }
    let masks = if random.one_in(4) {
        random.draw() as u16 & 0x3f
    } else {
        0x3f
    };
    fpu.fcw = match random.below(3) {
        0 => 0x37f,
        _ => masks | 0x40 | random.draw() as u16 & 0xf00,
    };
    // Flags, condition codes, TOP; stack fault only as it can be.
    fpu.fsw = random.draw() as u16 & 0x7f7f;
    if random.one_in(2) {
        fpu.fsw &= !0x7f;
    }
    if fpu.fsw & !fpu.fcw & 0x3f != 0 {
        fpu.fsw |= 0x8080;
    }
    fpu.ftw = match random.below(4) {
        0 => 0xff,
        1 => 0,
        _ => random.draw() as u8,
    };
    state
}
