//! Builds tiny guests: memory with code, page tables and descriptor tables,
//! and the state a processor starts from.
//!
//! Memory, all of it identity mapped:
//!
//! | from | what |
//! |---|---|
//! | 1000H | GDT, IDT at 2000H, TSS at 3000H |
//! | 8000H | handlers of exceptions and interrupts |
//! | 10000H | page tables: 4 GiB in 2 MiB pages, then a pool for more |
//! | 60000H | stacks, growing down from `STACK` and others |
//! | 100000H | the guest's code |
//! | 200000H | data |
//! | 400000H | end of RAM |
//!
//! Registers with a meaning in 64-bit guests: an exception reports RIP − RBX
//! and continues at R12, or ends the guest if R12 is 0.

use favo_types::{ByteCount, GuestAddress};
use iced_x86::IcedError;
use iced_x86::code_asm::*;

use super::Failure;
use crate::memory::{GuestMemory, MemoryBacking};
use crate::state::{Segment, VcpuState};

/// A dword written here is collected for comparison.
pub(super) const REPORT: u16 = 0x500;
/// A write here ends the guest.
pub(super) const DONE: u16 = 0x510;
/// A dword written here asks the case to do something.
pub(super) const SYNC: u16 = 0x520;
/// A write here does nothing but exit and come back.
pub(super) const IDLE: u16 = 0x530;

pub(super) const RAM: u64 = 4 << 20;
pub(super) const GDT: u64 = 0x1000;
pub(super) const IDT: u64 = 0x2000;
pub(super) const TSS: u64 = 0x3000;
const HANDLERS: u64 = 0x8000;
const COMMON_HANDLER: u64 = 0x7e00;
pub(super) const PML4: u64 = 0x1_0000;
const PDPT: u64 = 0x1_1000;
const DIRECTORIES: u64 = 0x1_2000;
const TABLE_POOL: u64 = 0x1_8000;
pub(super) const STACK: u64 = 0x6_f000;
/// Where exceptions from user mode arrive (TSS.RSP0).
const KERNEL_STACK: u64 = 0x7_f000;
pub(super) const USER_STACK: u64 = 0x8_f000;
/// For case-specific handlers and second processors.
pub(super) const EXTRA_CODE: u64 = 0x9_0000;
pub(super) const CODE: u64 = 0x10_0000;
pub(super) const DATA: u64 = 0x20_0000;
/// Memory that is not RAM.
pub(super) const MMIO: u64 = 0xd000_0000;
pub(super) const APIC: u64 = 0xfee0_0000;

pub(super) const KERNEL_CODE: u16 = 0x08;
pub(super) const CODE_32: u16 = 0x18;
pub(super) const USER_DATA: u16 = 0x23;
pub(super) const USER_CODE: u16 = 0x2b;
const TASK: u16 = 0x30;

/// Page table entry bits.
pub(super) const PRESENT: u64 = 1;
pub(super) const WRITABLE: u64 = 2;
pub(super) const USER: u64 = 4;
pub(super) const ACCESSED: u64 = 1 << 5;
pub(super) const DIRTY: u64 = 1 << 6;
pub(super) const LARGE: u64 = 1 << 7;
pub(super) const GLOBAL: u64 = 1 << 8;
pub(super) const NO_EXECUTE: u64 = 1 << 63;

/// Reported before an exception's error code, RIP − RBX and CR2.
pub(super) const EXCEPTION: u32 = 0xe000_0000;
/// Reported by an interrupt's handler, with the vector.
pub(super) const INTERRUPT: u32 = 0x1000_0000;

/// How the handlers of interrupts end them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum ApicMode {
    XApic,
    X2Apic,
}

/// A guest before it is put on an engine.
pub(super) struct Guest {
    pub(super) memory: GuestMemory,
    /// Where processor 0 starts.
    pub(super) state: VcpuState,
    next_table: u64,
}

impl Guest {
    fn blank(state: VcpuState) -> Result<Self, Failure> {
        let memory = GuestMemory::new(
            &[(GuestAddress(0), ByteCount(RAM))],
            MemoryBacking::Anonymous,
        )?;
        Ok(Self {
            memory,
            state,
            next_table: TABLE_POOL,
        })
    }

    /// In 64-bit mode with handlers for every vector; xAPIC, enabled.
    pub(super) fn long(
        code: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    ) -> Result<Self, Failure> {
        Self::long_with(ApicMode::XApic, code)
    }

    /// The same in either mode of the local APIC.
    pub(super) fn long_with(
        apic: ApicMode,
        code: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    ) -> Result<Self, Failure> {
        let mut state = VcpuState::flat_long_mode(0, PML4, CODE);
        state.general.rsp = STACK;
        state.segments.gdtr.base = GDT;
        state.segments.gdtr.limit = 0x6f;
        state.segments.idtr.base = IDT;
        state.segments.idtr.limit = 0xfff;
        state.segments.tr = Segment {
            selector: TASK,
            base: TSS,
            limit: 0x67,
            access: 0x8b,
        };
        state.segments.ldtr = Segment {
            access: Segment::UNUSABLE | 0x02,
            ..Segment::default()
        };
        enable_apic(&mut state, apic);
        let guest = Self::blank(state)?;
        guest.write_descriptors()?;
        guest.write_page_tables()?;
        guest.write_handlers(apic)?;
        guest.code(64, CODE, code)?;
        Ok(guest)
    }

    /// In 32-bit protected mode, flat, without paging or an IDT.
    pub(super) fn protected(
        code: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    ) -> Result<Self, Failure> {
        let mut state = VcpuState::flat_long_mode(0, 0, CODE);
        state.control.cr0 = 0x33;
        state.control.cr4 = 0x600;
        state.control.efer = 0;
        state.general.rsp = STACK;
        state.segments.cs.selector = CODE_32;
        state.segments.cs.access = 0xc09b;
        state.segments.gdtr.base = GDT;
        state.segments.gdtr.limit = 0x6f;
        state.segments.idtr.base = IDT;
        state.segments.idtr.limit = 0x7ff;
        state.segments.tr = Segment {
            selector: TASK,
            base: TSS,
            limit: 0x67,
            access: 0x8b,
        };
        state.segments.ldtr = Segment {
            access: Segment::UNUSABLE | 0x02,
            ..Segment::default()
        };
        enable_apic(&mut state, ApicMode::XApic);
        let guest = Self::blank(state)?;
        guest.write_descriptors()?;
        guest.code(32, CODE, code)?;
        Ok(guest)
    }

    /// In real mode with all segments at 0 and the code at 9000H; the vector
    /// table is at 0.
    pub(super) fn real(
        code: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    ) -> Result<Self, Failure> {
        let mut state = VcpuState::power_on(0, 0);
        state.segments.cs.selector = 0;
        state.segments.cs.base = 0;
        state.segments.idtr.limit = 0x3ff;
        state.general.rip = 0x9000;
        state.general.rsp = 0x7000;
        state.control.cr0 = 0x10;
        let guest = Self::blank(state)?;
        guest.code(16, 0x9000, code)?;
        Ok(guest)
    }

    /// Assembles code for `address`.
    pub(super) fn code(
        &self,
        bits: u32,
        address: u64,
        code: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    ) -> Result<(), Failure> {
        let bytes = assemble(bits, address, code)?;
        self.put(address, &bytes)
    }

    pub(super) fn put(&self, address: u64, bytes: &[u8]) -> Result<(), Failure> {
        Ok(self.memory.write(GuestAddress(address), bytes)?)
    }

    pub(super) fn put_u64(&self, address: u64, value: u64) -> Result<(), Failure> {
        self.put(address, &value.to_le_bytes())
    }

    pub(super) fn u64_at(&self, address: u64) -> Result<u64, Failure> {
        let mut bytes = [0; 8];
        self.memory.read(GuestAddress(address), &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Sends vector `vector` to `handler` instead: an interrupt gate, reachable
    /// from ring `dpl`.
    pub(super) fn gate(&self, vector: u8, handler: u64, dpl: u64) -> Result<(), Failure> {
        let at = IDT + 16 * u64::from(vector);
        let low = handler & 0xffff
            | u64::from(KERNEL_CODE) << 16
            | (0x8e | dpl << 5) << 40
            | (handler >> 16 & 0xffff) << 48;
        self.put_u64(at, low)?;
        self.put_u64(at + 8, handler >> 32)
    }

    /// The same for a 32-bit guest.
    pub(super) fn gate_32(&self, vector: u8, handler: u64) -> Result<(), Failure> {
        let low = handler & 0xffff
            | u64::from(CODE_32) << 16
            | 0x8e << 40
            | (handler >> 16 & 0xffff) << 48;
        self.put_u64(IDT + 8 * u64::from(vector), low)
    }

    /// Maps one page of `size` bytes (4 KiB, 2 MiB or 1 GiB) and returns the
    /// address of its entry. The tables above allow everything.
    pub(super) fn map(
        &mut self,
        linear: u64,
        physical: u64,
        size: u64,
        flags: u64,
    ) -> Result<u64, Failure> {
        self.map_in(PML4, linear, physical, size, flags)
    }

    /// The same in the tables at `root`.
    pub(super) fn map_in(
        &mut self,
        root: u64,
        linear: u64,
        physical: u64,
        size: u64,
        flags: u64,
    ) -> Result<u64, Failure> {
        let mut table = root;
        for (shift, covers) in [(39, 1 << 39), (30, 1 << 30), (21, 2 << 20), (12, 4 << 10)] {
            let entry = table + 8 * (linear >> shift & 0x1ff);
            if covers == size {
                let large = if size > 4096 { LARGE } else { 0 };
                self.put_u64(entry, physical | flags | large)?;
                return Ok(entry);
            }
            let present = self.u64_at(entry)?;
            if present & PRESENT == 0 {
                let next = self.table();
                self.put_u64(entry, next | PRESENT | WRITABLE | USER)?;
                table = next;
            } else {
                table = present & 0x000f_ffff_ffff_f000;
            }
        }
        Err(Failure::mismatch("a page size", "4K, 2M or 1G", size))
    }

    /// A fresh page for a table.
    pub(super) fn table(&mut self) -> u64 {
        let table = self.next_table;
        self.next_table += 4096;
        table
    }

    fn write_descriptors(&self) -> Result<(), Failure> {
        let descriptors = [
            0,
            0x00af_9b00_0000_ffff,
            0x00cf_9300_0000_ffff,
            0x00cf_9b00_0000_ffff,
            0x00cf_f300_0000_ffff,
            0x00af_fb00_0000_ffff,
            0x0000_8b00_0000_0067 | (TSS & 0xff_ffff) << 16,
            0,
        ];
        for (slot, descriptor) in (0..).zip(descriptors) {
            self.put_u64(GDT + 8 * slot, descriptor)?;
        }
        self.put_u64(TSS + 4, KERNEL_STACK)?;
        // The I/O permission map lies beyond the limit: none.
        self.put(TSS + 0x66, &0x68_u16.to_le_bytes())
    }

    fn write_page_tables(&self) -> Result<(), Failure> {
        let upper = PRESENT | WRITABLE | USER;
        self.put_u64(PML4, PDPT | upper)?;
        for gigabyte in 0..4 {
            let directory = DIRECTORIES + gigabyte * 0x1000;
            self.put_u64(PDPT + 8 * gigabyte, directory | upper)?;
            for page in 0..512 {
                let physical = gigabyte << 30 | page << 21;
                self.put_u64(directory + 8 * page, physical | PRESENT | WRITABLE | LARGE)?;
            }
        }
        Ok(())
    }

    fn write_handlers(&self, apic: ApicMode) -> Result<(), Failure> {
        self.code(64, COMMON_HANDLER, exception_handler)?;
        for vector in 0..=255 {
            let at = HANDLERS + 0x40 * u64::from(vector);
            self.code(64, at, |a| {
                if vector < 32 && vector != 2 {
                    exception_stub(a, vector)
                } else {
                    interrupt_handler(a, vector, apic)
                }
            })?;
            self.gate(vector, at, 0)?;
        }
        Ok(())
    }
}

/// Assembles code for `address`.
pub(super) fn assemble(
    bits: u32,
    address: u64,
    code: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Result<Vec<u8>, Failure> {
    let mut a = CodeAssembler::new(bits)?;
    code(&mut a)?;
    Ok(a.assemble(address)?)
}

pub(super) fn enable_apic(state: &mut VcpuState, mode: ApicMode) {
    state.local_apic.svr = 0x1ff;
    if mode == ApicMode::X2Apic {
        let id = state.local_apic.id >> 24;
        state.msrs.apic_base |= 1 << 10;
        state.local_apic.id = id;
        state.local_apic.ldr = (id >> 4) << 16 | 1 << (id & 0xf);
    }
}

/// Reports a value; changes EAX and DX.
pub(super) fn report(a: &mut CodeAssembler, value: AsmRegister32) -> Result<(), IcedError> {
    if value != eax {
        a.mov(eax, value)?;
    }
    a.mov(dx, u32::from(REPORT))?;
    a.out(dx, eax)
}

/// Reports a constant; changes EAX and DX.
pub(super) fn report_constant(a: &mut CodeAssembler, value: u32) -> Result<(), IcedError> {
    a.mov(eax, value)?;
    report(a, eax)
}

/// Asks the case for `step`; changes EAX and DX.
pub(super) fn sync(a: &mut CodeAssembler, step: u32) -> Result<(), IcedError> {
    a.mov(eax, step)?;
    a.mov(dx, u32::from(SYNC))?;
    a.out(dx, eax)
}

/// Lets interrupts in for a while: long enough for several, also where an
/// engine looks for them only when it comes back from an exit. Changes DX.
pub(super) fn window(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.sti()?;
    a.nop()?;
    idle(a)?;
    a.cli()
}

/// Exits a few times, for nothing; changes DX.
pub(super) fn idle(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(dx, u32::from(IDLE))?;
    for _ in 0..8 {
        a.out(dx, al)?;
    }
    Ok(())
}

/// Ends the guest.
pub(super) fn done(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.mov(dx, u32::from(DONE))?;
    a.set_label(&mut again)?;
    a.out(dx, al)?;
    a.jmp(again)
}

/// Whether the processor pushes an error code for this exception.
fn has_error_code(vector: u8) -> bool {
    matches!(vector, 8 | 10..=14 | 17 | 21)
}

fn exception_stub(a: &mut CodeAssembler, vector: u8) -> Result<(), IcedError> {
    if !has_error_code(vector) {
        a.push(0)?;
    }
    a.push(i32::from(vector))?;
    a.jmp(COMMON_HANDLER)
}

/// Entered with vector and error code on the stack. Reports four values and
/// goes on at R12 with TF clear.
fn exception_handler(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut end = a.create_label();
    a.push(rax)?;
    a.push(rdx)?;
    a.mov(eax, dword_ptr(rsp + 16))?;
    a.or(eax, EXCEPTION)?;
    report(a, eax)?;
    a.mov(eax, dword_ptr(rsp + 24))?;
    report(a, eax)?;
    a.mov(rax, qword_ptr(rsp + 32))?;
    a.sub(rax, rbx)?;
    report(a, eax)?;
    a.mov(rax, cr2)?;
    report(a, eax)?;
    a.test(r12, r12)?;
    a.jz(end)?;
    a.mov(qword_ptr(rsp + 32), r12)?;
    a.and(dword_ptr(rsp + 48), !0x100_i32)?;
    a.pop(rdx)?;
    a.pop(rax)?;
    a.add(rsp, 16)?;
    a.iretq()?;
    a.set_label(&mut end)?;
    done(a)
}

/// Reports itself and ends the interrupt, if it is one that needs it.
fn interrupt_handler(a: &mut CodeAssembler, vector: u8, apic: ApicMode) -> Result<(), IcedError> {
    a.push(rax)?;
    a.push(rdx)?;
    a.push(rcx)?;
    report_constant(a, INTERRUPT | u32::from(vector))?;
    if vector >= 32 && vector != 0xff {
        end_of_interrupt(a, apic)?;
    }
    a.pop(rcx)?;
    a.pop(rdx)?;
    a.pop(rax)?;
    a.iretq()
}

/// Changes RAX, and RCX and RDX in x2APIC mode.
pub(super) fn end_of_interrupt(a: &mut CodeAssembler, apic: ApicMode) -> Result<(), IcedError> {
    apic_write(a, apic, 0xb0, 0)
}

/// Writes a register of the local APIC, by its xAPIC offset. Changes RAX, and
/// RCX and RDX in x2APIC mode.
pub(super) fn apic_write(
    a: &mut CodeAssembler,
    apic: ApicMode,
    offset: u32,
    value: u32,
) -> Result<(), IcedError> {
    match apic {
        ApicMode::XApic => {
            a.mov(rax, APIC + u64::from(offset))?;
            a.mov(dword_ptr(rax), value)
        }
        ApicMode::X2Apic => {
            a.mov(ecx, 0x800 + (offset >> 4))?;
            a.mov(eax, value)?;
            a.xor(edx, edx)?;
            a.wrmsr()
        }
    }
}

/// Reads a register of the local APIC into EAX; changes RCX and RDX in x2APIC
/// mode.
pub(super) fn apic_read(
    a: &mut CodeAssembler,
    apic: ApicMode,
    offset: u32,
) -> Result<(), IcedError> {
    match apic {
        ApicMode::XApic => {
            a.mov(rax, APIC + u64::from(offset))?;
            a.mov(eax, dword_ptr(rax))
        }
        ApicMode::X2Apic => {
            a.mov(ecx, 0x800 + (offset >> 4))?;
            a.rdmsr()
        }
    }
}

/// Writes a model-specific register; changes RAX, RCX and RDX.
pub(super) fn write_msr(a: &mut CodeAssembler, index: u32, value: u64) -> Result<(), IcedError> {
    a.mov(ecx, index)?;
    a.mov(eax, value as u32)?;
    a.mov(edx, (value >> 32) as u32)?;
    a.wrmsr()
}
