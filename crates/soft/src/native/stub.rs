//! Writes a stub: load the operands, one instruction, store the results, ret.
//!
//! A stub is called as `extern "sysv64" fn(slot0, slot1, slot2, slot3, memory,
//! state) -> flags`. A slot is a pointer to the guest register that the
//! instruction's operand number n is; so stubs don't depend on register
//! numbers and there are few of them. Within a stub
//!
//! * vector operand n is xmm/ymm(n+1), the implicit XMM0 is xmm0;
//! * MMX operand n is mm(n+1), in the host's otherwise empty x87 unit;
//! * the first general register operand is r10, the second r11;
//! * the memory operand is `[r8]`; the state is at r9.
//!
//! Only call-clobbered registers are used. The x87 unit is as FNINIT leaves it
//! before and after; MXCSR is whatever the instruction left: the caller
//! restores it.

use std::mem::offset_of;

use super::state::ExtendedState;

/// A register operand of an instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Slot {
    /// There is none, or it is fixed (ST).
    #[default]
    None,
    /// XMM or YMM.
    Vector,
    /// MMX.
    Mmx,
    /// A general register.
    General,
    /// The XMM0 that some instructions use without naming it.
    ImplicitXmm0,
    /// All general registers: RAX and RDX are read, RCX is written.
    Compare,
}

/// A register operand and what happens to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SlotUse {
    /// What it is.
    pub slot: Slot,
    /// Loaded before the instruction.
    pub load: bool,
    /// Stored after it.
    pub store: bool,
}

/// What a stub is made of.
#[derive(Clone, Copy, Debug, Default)]
pub struct StubShape {
    /// The register operands, in the instruction's order.
    pub slots: [SlotUse; 4],
    /// The x87 state is loaded and stored.
    pub x87: bool,
    /// MXCSR is loaded before and read after.
    pub mxcsr: bool,
    /// The arithmetic flags are loaded before.
    pub flags_in: bool,
    /// The arithmetic flags are returned.
    pub flags_out: bool,
    /// Vectors are moved by AVX instructions, upper halves included.
    pub avx: bool,
}

impl StubShape {
    /// MMX registers are among the operands, so x87 becomes MMX state.
    pub fn mmx(&self) -> bool {
        self.slots.iter().any(|s| s.slot == Slot::Mmx)
    }
}

/// Encodings of rdi, rsi, rdx, rcx, which hold the slot pointers.
const POINTERS: [u8; 4] = [7, 6, 2, 1];

struct Code(Vec<u8>);

impl Code {
    fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// ModRM and disp32 for `reg, [r9 + displacement]`.
    fn state_operand(&mut self, reg: u8, displacement: usize) {
        self.0.push(0x81 | reg << 3);
        self.bytes(&(displacement as u32).to_le_bytes());
    }

    /// Moves vector `register` from or to `[base]`.
    fn vector(&mut self, avx: bool, store: bool, register: u8, base: u8) {
        // VMOVUPS ymm or MOVUPS xmm.
        self.bytes(if avx { &[0xc5, 0xfc] } else { &[0x0f] });
        self.bytes(&[0x10 + u8::from(store), register << 3 | base]);
    }

    /// MOVQ mm, `[base]` or back.
    fn mmx(&mut self, store: bool, register: u8, base: u8) {
        self.bytes(&[0x0f, if store { 0x7f } else { 0x6f }]);
        self.0.push(register << 3 | base);
    }

    /// MOV r10 or r11, `[base]` or back.
    fn general(&mut self, store: bool, second: bool, base: u8) {
        self.bytes(&[0x4c, if store { 0x89 } else { 0x8b }]);
        self.0.push((2 + u8::from(second)) << 3 | base);
    }
}

/// Position of the general register operand before `slot`.
fn is_second_general(slots: &[SlotUse; 4], slot: usize) -> bool {
    slots[..slot].iter().any(|s| s.slot == Slot::General)
}

/// The code of a stub around `instruction`, which is encoded for the registers
/// given above.
pub fn assemble(shape: &StubShape, instruction: &[u8]) -> Vec<u8> {
    let mut code = Code(Vec::with_capacity(128));
    let state = |field| field;
    if shape.x87 {
        code.bytes(&[0x49, 0x0f, 0xae, 0x09]); // fxrstor64 [r9]
    }
    load_operands(&mut code, shape);
    if shape.mxcsr {
        code.bytes(&[0x41, 0x0f, 0xae]); // ldmxcsr
        code.state_operand(2, state(offset_of!(ExtendedState, mxcsr_in)));
    }
    if shape.flags_in {
        code.bytes(&[0x41, 0xff]); // push qword
        code.state_operand(6, state(offset_of!(ExtendedState, flags_in)));
        code.bytes(&[0x9d]); // popfq
    }
    code.bytes(instruction);
    if shape.flags_out {
        code.bytes(&[0x9c, 0x58]); // pushfq; pop rax
    }
    if shape.mxcsr {
        code.bytes(&[0x41, 0x0f, 0xae]); // stmxcsr
        code.state_operand(3, state(offset_of!(ExtendedState, mxcsr_out)));
    }
    store_results(&mut code, shape);
    if shape.x87 {
        code.bytes(&[0x49, 0x0f, 0xae, 0x01]); // fxsave64 [r9]
        code.bytes(&[0xdb, 0xe3]); // fninit
    }
    if shape.mmx() {
        code.bytes(&[0x0f, 0x77]); // emms
    }
    if shape.avx {
        code.bytes(&[0xc5, 0xf8, 0x77]); // vzeroupper
    }
    code.bytes(&[0xc3]); // ret
    code.0
}

fn load_operands(code: &mut Code, shape: &StubShape) {
    for (n, operand) in shape.slots.iter().enumerate() {
        let (base, register) = (POINTERS[n], n as u8 + 1);
        match operand.slot {
            _ if !operand.load => {}
            Slot::None => {}
            Slot::Vector => code.vector(shape.avx, false, register, base),
            Slot::ImplicitXmm0 => code.vector(shape.avx, false, 0, base),
            Slot::Mmx => code.mmx(false, register, base),
            Slot::General => code.general(false, is_second_general(&shape.slots, n), base),
            // Last: takes rdx, rcx and rax. The pointers survive in r10, r11.
            Slot::Compare => code.bytes(&[
                0x49, 0x89, 0xd2, // mov r10, rdx
                0x49, 0x89, 0xcb, // mov r11, rcx
                0x49, 0x8b, 0x03, // mov rax, [r11]
                0x49, 0x8b, 0x53, 0x10, // mov rdx, [r11 + 16]
            ]),
        }
    }
}

fn store_results(code: &mut Code, shape: &StubShape) {
    let compare = shape.slots.iter().any(|s| s.slot == Slot::Compare);
    for (n, operand) in shape.slots.iter().enumerate() {
        let (base, register) = (POINTERS[n], n as u8 + 1);
        match operand.slot {
            _ if !operand.store => {}
            Slot::None => {}
            Slot::Vector => code.vector(shape.avx, true, register, base),
            Slot::ImplicitXmm0 if compare => {
                // The pointer was rdx and is in r10 now.
                code.bytes(if shape.avx {
                    &[0xc4, 0xc1, 0x7c, 0x11, 0x02] // vmovups [r10], ymm0
                } else {
                    &[0x41, 0x0f, 0x11, 0x02] // movups [r10], xmm0
                });
            }
            Slot::ImplicitXmm0 => code.vector(shape.avx, true, 0, base),
            Slot::Mmx => code.mmx(true, register, base),
            Slot::General => code.general(true, is_second_general(&shape.slots, n), base),
            Slot::Compare => code.bytes(&[0x49, 0x89, 0x4b, 0x08]), // mov [r11 + 8], rcx
        }
    }
}
