//! The ways between Rust and translated code.
//!
//! In translated code the guest's registers lie in the host's: RSP in R9; R9,
//! R10 and R11 in memory, because R10 and R11 are what translated code
//! computes with; all others in the register of the same name. The arithmetic
//! flags are the host's. The host's stack stays the host's. Vector registers
//! are loaded when a block first needs them ([`Hot`] says whether
//! they are) and saved before Rust runs, which may use them.
//!
//! A thunk is entered by a jump or a call from translated code and saves what
//! Rust must see. None of them touches guest memory.

use favo_accel::state::InterruptShadow;

use super::assembler::{Assembler, Opcode, Rm, absolute, at, condition, host, narrow, two, wide};
use super::hot::{Hot, NO_UNDO};

use crate::cpu::{Cpu, rflags};
use crate::low;
use crate::native::{EXCEPTION_FLAGS, MXCSR_MASKS};
use crate::operation::{Operation, prefix};
use crate::trap::Trap;

/// Why translated code came back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub(crate) enum Return {
    /// An interpreted operation ended the block; its outcome is in the
    /// translator.
    Interpreted = 1,
    /// A jump inside the page whose target is not linked: [`Hot::edge`].
    Edge = 2,
    /// A jump to RIP whose target is not in the jump table: [`Hot::undo`].
    Indirect = 3,
    /// RIP says where to go on; somebody may want attention.
    Poll = 4,
    /// The instruction at RIP must be interpreted.
    Interpret = 5,
    /// As `Poll`, and the jump table must not lead here any more.
    Stale = 6,
}

/// Addresses of the thunks.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Thunks {
    /// `extern "C" fn() -> u32`: to [`Hot::entry`].
    pub enter: u32,
    /// Called with R10 the operation and R11 its offset in the page: has it
    /// interpreted, and returns behind it. The first index says whether vector
    /// registers are as before or not loaded afterwards, the second what
    /// becomes of x87.
    pub interpret: [[u32; 3]; 2],
    /// Called with R11 the offset: loads the vector registers.
    pub load_vectors: u32,
    /// Called with R11 the offset: loads the x87 registers.
    pub load_x87: u32,
    /// Jumped to with R11 the offset to go on at.
    pub poll: u32,
    /// Jumped to with R11 the target's offset and R10 the edge.
    pub edge: u32,
    /// Jumped to with R11 the target and R10 what to undo.
    pub indirect: u32,
    /// Jumped to with R11 the offset of the instruction to interpret.
    pub must_interpret: u32,
    /// Jumped to with R11 the offset of a block that holds no more.
    pub stale: u32,
    /// Jumped to with R11 a target that nobody knows how to undo.
    pub lost: u32,
}

/// What becomes of the x87 registers while Rust runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum X87 {
    /// They stay in the host's: Rust does not touch them.
    Stay,
    /// The operation needs them; they are not loaded afterwards.
    Save,
    /// The operation needs them, and so does what follows.
    Keep,
}

/// Where a processor keeps what translated code uses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Places {
    cpu: i32,
    gpr: i32,
    rip: i32,
    vectors: i32,
    mxcsr: i32,
    x87: i32,
    header: i32,
    fip: i32,
    fdp: i32,
    fop: i32,
    fcs: i32,
    fds: i32,
    selectors: i32,
    gs_base: i32,
    kernel_gs_base: i32,
    hot: i32,
}

macro_rules! hot {
    ($self:expr, $field:ident) => {
        $self.hot + std::mem::offset_of!(Hot, $field) as i32
    };
}

impl Places {
    pub(super) fn of(cpu: &Cpu) -> Self {
        Self {
            cpu: low::address(cpu),
            gpr: low::address(&raw const cpu.gpr),
            rip: low::address(&raw const cpu.rip),
            vectors: low::address(&raw const cpu.extended.ymm),
            mxcsr: low::address(&raw const cpu.extended.mxcsr),
            x87: low::address(&raw const cpu.extended.x87),
            header: low::address(&raw const cpu.extended.header),
            fip: low::address(&raw const cpu.extended.fip),
            fdp: low::address(&raw const cpu.extended.fdp),
            fop: low::address(&raw const cpu.extended.fop),
            fcs: low::address(&raw const cpu.extended.fcs),
            fds: low::address(&raw const cpu.extended.fds),
            selectors: low::address(&raw const cpu.segments[0].selector),
            gs_base: low::address(&raw const cpu.segments[GS].base),
            kernel_gs_base: low::address(&raw const cpu.msrs.kernel_gs_base),
            hot: low::address(&raw const cpu.hot),
        }
    }

    /// Where a guest register lies that has no host register.
    pub(super) fn home(&self, register: u8) -> Rm {
        absolute(self.gpr + 8 * i32::from(register))
    }

    pub(super) fn page(&self) -> Rm {
        absolute(hot!(self, page))
    }

    pub(super) fn target(&self) -> Rm {
        absolute(hot!(self, target))
    }

    pub(super) fn window(&self) -> Rm {
        absolute(hot!(self, window))
    }

    pub(super) fn window_tag(&self) -> Rm {
        absolute(hot!(self, window_tag))
    }

    pub(super) fn window_limit(&self) -> Rm {
        absolute(hot!(self, window_limit))
    }

    pub(super) fn vectors(&self) -> i32 {
        hot!(self, vectors)
    }

    pub(super) fn x87(&self) -> i32 {
        hot!(self, x87)
    }

    /// Notes an operand of an x87 instruction: its offset is in R11. Uses R10.
    pub(super) fn note_operand(&self, a: &mut Assembler, segment: u8) {
        a.store(absolute(self.fdp), host::R11);
        self.copy_selector(a, segment, self.fds);
    }

    /// Notes an x87 instruction. Uses R10.
    pub(super) fn note_instruction(&self, a: &mut Assembler, offset: u32, opcode: u16) {
        a.load(host::R10, self.page());
        a.lea(host::R10, at(host::R10, offset as i32));
        a.store(absolute(self.fip), host::R10);
        let word = Opcode {
            operand_size: true,
            ..narrow(0xc7)
        };
        a.op(word, 0, absolute(self.fop), &opcode.to_le_bytes());
        self.copy_selector(a, CS, self.fcs);
    }

    /// The base of GS among `bases`, in its segment, and the one SWAPGS
    /// brings.
    pub(super) fn gs(&self, bases: i32) -> (Rm, Rm, Rm) {
        (
            absolute(bases + 8 * GS as i32),
            absolute(self.gs_base),
            absolute(self.kernel_gs_base),
        )
    }

    /// Where the selector of a segment register lies, 16 bits.
    pub(super) fn selector(&self, segment: u8) -> Rm {
        let size = size_of::<crate::cpu::Segment>() as i32;
        absolute(self.selectors + i32::from(segment) * size)
    }

    fn copy_selector(&self, a: &mut Assembler, segment: u8, to: i32) {
        a.load32(host::R10, self.selector(segment));
        let word = Opcode {
            operand_size: true,
            ..narrow(0x89)
        };
        a.op(word, host::R10, absolute(to), &[]);
    }

    pub(super) fn spill_count(&self) -> Rm {
        absolute(hot!(self, spill_count))
    }

    /// Puts the arithmetic flags aside. Keeps all registers.
    pub(super) fn put_flags_aside(&self, a: &mut Assembler) {
        self.save_flags(a, hot!(self, aside));
    }

    /// Takes them back. Keeps all registers.
    pub(super) fn take_flags_back(&self, a: &mut Assembler) {
        self.load_flags(a, hot!(self, aside));
    }

    fn save_flags(&self, a: &mut Assembler, to: i32) {
        a.store(absolute(hot!(self, spill)), host::RAX);
        // LAHF; SETO AL.
        a.raw(&[0x9f, 0x0f, 0x90, 0xc0]);
        a.store(absolute(to), host::RAX);
        a.load(host::RAX, absolute(hot!(self, spill)));
    }

    fn load_flags(&self, a: &mut Assembler, from: i32) {
        a.store(absolute(hot!(self, spill)), host::RAX);
        a.load(host::RAX, absolute(from));
        // ADD AL, 7FH gives OF; SAHF the others.
        a.raw(&[0x04, 0x7f, 0x9e]);
        a.load(host::RAX, absolute(hot!(self, spill)));
    }

    /// Registers and flags to where Rust sees them. R10 and R11 survive.
    fn save_registers(&self, a: &mut Assembler) {
        self.save_flags(a, hot!(self, flags));
        for register in RESIDENT {
            a.store(self.home(register), register);
        }
        a.store(self.home(4), host::R9);
    }

    fn load_registers(&self, a: &mut Assembler) {
        self.load_flags(a, hot!(self, flags));
        for register in RESIDENT {
            a.load(register, self.home(register));
        }
        a.load(host::R9, self.home(4));
    }

    /// RIP from the offset in R11; flags change.
    fn set_rip(&self, a: &mut Assembler) {
        a.op(wide(0x03), host::R11, self.page(), &[]);
        a.store(absolute(self.rip), host::R11);
    }
}

/// The number of GS.
const GS: usize = 5;
/// The number of CS.
const CS: u8 = 1;

/// Guest registers that lie in the host register of the same name.
const RESIDENT: [u8; 12] = [0, 1, 2, 3, 5, 6, 7, 8, 12, 13, 14, 15];

/// VMOVAPS or MOVAPS, as the host has it.
fn vector_move(store: bool) -> Opcode {
    Opcode {
        vex: crate::native::host_has_avx().then_some(super::assembler::Vex {
            register: 0,
            long: true,
            prefix: 0,
        }),
        ..two(if store { 0x29 } else { 0x28 })
    }
}

/// LDMXCSR and STMXCSR.
const MXCSR: Opcode = two(0xae);
const LOAD_MXCSR: u8 = 2;
const STORE_MXCSR: u8 = 3;

/// Writes the thunks of a processor.
pub(super) fn write(a: &mut Assembler, places: &Places) -> Thunks {
    let save_vectors = save_vectors(a, places);
    let load_vectors = load_vectors(a, places);
    let save_x87 = save_x87(a, places);
    let load_x87 = load_x87(a, places);
    let mut thunks = Thunks {
        enter: enter(a, places),
        ..Thunks::default()
    };
    let leave = a.here();
    // ADD RSP, 8 and the callee-saved registers.
    a.raw(&[0x48, 0x83, 0xc4, 8]);
    a.raw(&[
        0x41, 0x5f, 0x41, 0x5e, 0x41, 0x5d, 0x41, 0x5c, 0x5d, 0x5b, 0xc3,
    ]);
    let exit = |a: &mut Assembler, reason: Return, edge: bool, undo: bool, target: bool| {
        let start = a.here();
        places.save_registers(a);
        if edge {
            a.op(narrow(0x89), host::R10, absolute(hot!(places, edge)), &[]);
        }
        if undo {
            a.op(narrow(0x89), host::R10, absolute(hot!(places, undo)), &[]);
        }
        if target {
            a.store(absolute(places.rip), host::R11);
        } else {
            places.set_rip(a);
        }
        a.call(save_vectors);
        a.call(save_x87);
        a.set32(host::RAX, reason as u32);
        a.jump(leave);
        start
    };
    thunks.poll = exit(a, Return::Poll, false, false, false);
    thunks.edge = exit(a, Return::Edge, true, false, false);
    thunks.indirect = exit(a, Return::Indirect, false, true, true);
    thunks.must_interpret = exit(a, Return::Interpret, false, false, false);
    thunks.stale = exit(a, Return::Stale, false, false, false);
    thunks.lost = a.here();
    a.set32(host::R10, NO_UNDO);
    a.jump(thunks.indirect);

    thunks.load_vectors = a.here();
    a.op(narrow(0x8b), host::R10, absolute(places.mxcsr), &[]);
    load_if_masked(a, places, MXCSR_MASKS, load_vectors, thunks.must_interpret);

    thunks.load_x87 = a.here();
    // MOVZX R10D, WORD [control word].
    a.op(two(0xb7), host::R10, absolute(places.x87), &[]);
    let masks = EXCEPTION_FLAGS;
    load_if_masked(a, places, masks, load_x87, thunks.must_interpret);

    let routines = Routines {
        leave,
        save_vectors,
        load_vectors,
        save_x87,
        load_x87,
    };
    for (keep, thunks) in thunks.interpret.iter_mut().enumerate() {
        for (thunk, x87) in thunks.iter_mut().zip([X87::Stay, X87::Save, X87::Keep]) {
            *thunk = interpret(a, places, &routines, keep == 1, x87);
        }
    }
    thunks
}

/// Calls `load` and returns, if R10D, a control register, has all of `masks`
/// set; drops the return address and has the operation interpreted if an
/// exception may arise. Leaves the guest's flags as they are.
fn load_if_masked(a: &mut Assembler, places: &Places, masks: u32, load: u32, interpret: u32) {
    // MOV leaves the flags alone, so they are put aside only here.
    places.save_flags(a, hot!(places, flags));
    // NOT R10D; TEST R10D, masks.
    a.raw(&[0x41, 0xf7, 0xd2]);
    a.op(
        narrow(0xf7),
        0,
        Rm::Register(host::R10),
        &masks.to_le_bytes(),
    );
    let unmasked = a.label();
    a.jump_if(condition::NOT_EQUAL, unmasked);
    a.call(load);
    places.load_flags(a, hot!(places, flags));
    a.raw(&[0xc3]);
    a.bind(unmasked);
    places.load_flags(a, hot!(places, flags));
    a.lea(host::RSP, at(host::RSP, 8));
    a.jump(interpret);
}

/// Pieces of thunks.
struct Routines {
    leave: u32,
    save_vectors: u32,
    load_vectors: u32,
    save_x87: u32,
    load_x87: u32,
}

fn enter(a: &mut Assembler, places: &Places) -> u32 {
    let start = a.here();
    // RBX, RBP, R12 to R15; then the stack is aligned.
    a.raw(&[
        0x53, 0x55, 0x41, 0x54, 0x41, 0x55, 0x41, 0x56, 0x41, 0x57, 0x48, 0x83, 0xec, 8,
    ]);
    places.load_registers(a);
    a.jump_memory(absolute(hot!(places, entry)));
    start
}

/// Saves the vector registers if they are loaded, and makes the host's usable
/// for Rust. Changes flags.
fn save_vectors(a: &mut Assembler, places: &Places) -> u32 {
    let start = a.here();
    let done = a.label();
    a.test_dword(places.vectors());
    a.jump_if(condition::EQUAL, done);
    for register in 0..16 {
        let place = absolute(places.vectors + 32 * i32::from(register));
        a.op(vector_move(true), register, place, &[]);
    }
    a.op(MXCSR, STORE_MXCSR, absolute(places.mxcsr), &[]);
    a.op(MXCSR, LOAD_MXCSR, absolute(hot!(places, mxcsr)), &[]);
    // MOV DWORD [vectors], 0.
    a.op(narrow(0xc7), 0, absolute(places.vectors()), &[0; 4]);
    if crate::native::host_has_avx() {
        // VZEROUPPER.
        a.raw(&[0xc5, 0xf8, 0x77]);
    }
    a.bind(done);
    a.raw(&[0xc3]);
    start
}

/// Loads the vector registers; every exception is masked.
fn load_vectors(a: &mut Assembler, places: &Places) -> u32 {
    let start = a.here();
    for register in 0..16 {
        let place = absolute(places.vectors + 32 * i32::from(register));
        a.op(vector_move(false), register, place, &[]);
    }
    a.op(MXCSR, LOAD_MXCSR, absolute(places.mxcsr), &[]);
    a.op(
        narrow(0xc7),
        0,
        absolute(places.vectors()),
        &1u32.to_le_bytes(),
    );
    a.raw(&[0xc3]);
    start
}

/// Saves the x87 registers if they are loaded. Changes flags and R10; RAX and
/// RDX are saved already.
fn save_x87(a: &mut Assembler, places: &Places) -> u32 {
    let start = a.here();
    let done = a.label();
    a.test_dword(places.x87());
    a.jump_if(condition::EQUAL, done);
    only_x87(a);
    // XSAVE64.
    let xsave = Opcode {
        wide: true,
        ..two(0xae)
    };
    a.op(xsave, 4, absolute(places.x87), &[]);
    a.op(narrow(0xc7), 0, absolute(places.x87()), &[0; 4]);
    a.bind(done);
    a.raw(&[0xc3]);
    start
}

/// Loads the x87 registers. Keeps RAX and RDX.
fn load_x87(a: &mut Assembler, places: &Places) -> u32 {
    let start = a.here();
    // PUSH RAX; PUSH RDX.
    a.raw(&[0x50, 0x52]);
    only_x87(a);
    a.op(wide(0xc7), 0, absolute(places.header), &1u32.to_le_bytes());
    let xrstor = Opcode {
        wide: true,
        ..two(0xae)
    };
    a.op(xrstor, 5, absolute(places.x87), &[]);
    a.op(narrow(0xc7), 0, absolute(places.x87()), &1u32.to_le_bytes());
    a.raw(&[0x5a, 0x58, 0xc3]);
    start
}

/// EDX:EAX for XSAVE and XRSTOR.
fn only_x87(a: &mut Assembler) {
    a.set32(host::RAX, 1);
    a.set32(host::RDX, 0);
}

fn interpret(
    a: &mut Assembler,
    places: &Places,
    routines: &Routines,
    keep_vectors: bool,
    x87: X87,
) -> u32 {
    let start = a.here();
    places.save_registers(a);
    places.set_rip(a);
    // RBX and RBP are saved already, and Rust keeps them.
    if keep_vectors {
        a.load32(host::RBX, absolute(places.vectors()));
    }
    a.call(routines.save_vectors);
    if x87 != X87::Stay {
        a.load32(host::RBP, absolute(places.x87()));
        a.call(routines.save_x87);
    }
    a.set32(host::RDI, places.cpu as u32);
    // MOV RSI, R10; the stack is 8 off: SUB RSP, 8.
    a.raw(&[0x4c, 0x89, 0xd6, 0x48, 0x83, 0xec, 8]);
    a.set64(host::RAX, interpret_operation as *const () as u64);
    // CALL RAX; ADD RSP, 8; TEST EAX, EAX.
    a.raw(&[0xff, 0xd0, 0x48, 0x83, 0xc4, 8, 0x85, 0xc0]);
    let ends = a.label();
    a.jump_if(condition::NOT_EQUAL, ends);
    // Rust has seen to it that exceptions are masked.
    if keep_vectors {
        let plain = a.label();
        // TEST EBX, EBX.
        a.raw(&[0x85, 0xdb]);
        a.jump_if(condition::EQUAL, plain);
        a.call(routines.load_vectors);
        a.bind(plain);
    }
    if x87 == X87::Keep {
        let plain = a.label();
        // TEST EBP, EBP.
        a.raw(&[0x85, 0xed]);
        a.jump_if(condition::EQUAL, plain);
        a.call(routines.load_x87);
        a.bind(plain);
    }
    places.load_registers(a);
    a.raw(&[0xc3]);
    a.bind(ends);
    a.call(routines.save_x87);
    a.raw(&[0x48, 0x83, 0xc4, 8]);
    a.set32(host::RAX, Return::Interpreted as u32);
    a.jump(routines.leave);
    start
}

impl Cpu {
    /// STI or POPF has ended the block so that an interrupt can be taken, but
    /// there is none, nobody wants attention, and the mode is what it was.
    fn enabled_nothing(&mut self, operation: &Operation, variant: usize) -> bool {
        if operation.prefixes & prefix::ENABLES_INTERRUPTS == 0
            || !self.may_go_on()
            || self.variant() != variant
            || self.system_flags & (rflags::TF | rflags::RF) != 0
            || self.wants_attention()
        {
            return false;
        }
        // Nothing comes in the shadow of STI: it ends here.
        self.shadow = InterruptShadow::None;
        true
    }
}

/// Runs one operation for translated code. Zero if it is complete and the
/// next one follows; otherwise the outcome lies in the translator.
extern "C" fn interpret_operation(cpu: *mut Cpu, operation: *const Operation) -> u32 {
    // SAFETY: thunks pass the processor they were written for, which is not
    // borrowed while its translated code runs, and operations of blocks that
    // the translator keeps alive.
    let (cpu, operation) = unsafe { (&mut *cpu, &*operation) };
    cpu.arithmetic = crate::flags::ArithmeticFlags::from_bits(cpu.hot.arithmetic());
    let next = cpu.rip.wrapping_add(operation.length.into());
    cpu.leave_block = false;
    cpu.counters.interpreted_inside += 1;
    let variant = cpu.variant();
    let mut outcome = (operation.handler)(cpu, operation);
    if outcome == Err(Trap::EndBlock) && cpu.enabled_nothing(operation, variant) {
        outcome = Ok(());
    }
    let goes_on = outcome.is_ok()
        && !cpu.leave_block
        && cpu.rip == next
        && cpu.extended.mxcsr & MXCSR_MASKS == MXCSR_MASKS
        && u32::from(cpu.extended.x87.fcw) & EXCEPTION_FLAGS == EXCEPTION_FLAGS;
    if goes_on {
        let bits = cpu.arithmetic.bits();
        cpu.hot.set_arithmetic(bits);
        return 0;
    }
    cpu.translator.outcome = outcome;
    1
}
