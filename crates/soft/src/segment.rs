//! Segment registers and what loads them: MOV, POP, far jumps, calls and
//! returns, LLDT, LTR, and the instructions that ask about descriptors.
//!
//! Every load checks everything before it changes anything (SDM vol. 3,
//! chapter 5). Call gates, task gates and V86 mode are not there: no 64-bit
//! operating system uses them, and meeting one raises #GP.

use crate::cpu::{CodeSize, Cpu, Segment, SegmentRegister, cr0};
use crate::mmu::Access;
use crate::trap::{Exception, Exec, GP0, Trap};

/// Descriptor types with S = 1 (bits 4:0 of the access byte).
mod kind {
    pub const CODE: u32 = 0x18;
    pub const CODE_MASK: u32 = 0x18;
    pub const CONFORMING: u32 = 0x04;
    /// Writable for data, readable for code.
    pub const WRITABLE: u32 = 0x02;
    pub const ACCESSED: u32 = 0x01;
    pub const LDT: u32 = 0x02;
    pub const TSS16_AVAILABLE: u32 = 0x01;
    pub const TSS_AVAILABLE: u32 = 0x09;
    pub const TSS_BUSY_BIT: u32 = 0x02;
}

/// A descriptor as it lies in a table, and where it lies.
#[derive(Clone, Copy)]
pub(crate) struct Descriptor {
    pub raw: u64,
    pub address: u64,
    pub selector: u16,
}

impl Descriptor {
    /// The hidden part a register gets from it, the accessed bit not yet set.
    pub(crate) fn unpack(&self) -> Segment {
        let raw = self.raw;
        let limit = (raw & 0xffff | raw >> 32 & 0xf_0000) as u32;
        let granular = raw >> 55 & 1 != 0;
        Segment {
            selector: self.selector,
            base: raw >> 16 & 0xff_ffff | raw >> 32 & 0xff00_0000,
            limit: if granular { limit << 12 | 0xfff } else { limit },
            access: (raw >> 40 & 0xff) as u32 | ((raw >> 52 & 0xf) as u32) << 12,
        }
    }

    fn is_code(&self) -> bool {
        self.unpack().kind() & kind::CODE_MASK == kind::CODE
    }
}

/// A segment with flat limits, as SYSCALL and friends load it.
pub(crate) fn flat(selector: u16, access: u32) -> Segment {
    Segment {
        selector,
        base: 0,
        limit: u32::MAX,
        access: access | 1 << 15,
    }
}

impl Cpu {
    /// Protected mode is on.
    #[inline]
    pub(crate) fn protected(&self) -> bool {
        self.cr0 & cr0::PE != 0
    }

    /// The code segment register.
    #[inline]
    pub(crate) fn cs(&self) -> &Segment {
        &self.segments[SegmentRegister::Cs as usize]
    }

    /// The stack segment register.
    #[inline]
    pub(crate) fn ss(&self) -> &Segment {
        &self.segments[SegmentRegister::Ss as usize]
    }

    /// Reads the descriptor a selector names. `error` makes the exception for
    /// a selector outside its table.
    pub(crate) fn descriptor(
        &mut self,
        selector: u16,
        error: fn(u16) -> Exception,
    ) -> Exec<Descriptor> {
        let (base, limit) = if selector & 4 == 0 {
            (self.gdtr.base, u32::from(self.gdtr.limit))
        } else if self.ldtr.unusable() {
            return Err(error(selector & !3).into());
        } else {
            (self.ldtr.base, self.ldtr.limit)
        };
        let index = u32::from(selector & !7);
        if index + 7 > limit {
            return Err(error(selector & !3).into());
        }
        let address = base.wrapping_add(index.into());
        let raw = self.read_linear::<u64>(address, Access::System)?;
        Ok(Descriptor {
            raw,
            address,
            selector,
        })
    }

    /// Sets the accessed bit of a descriptor in its table.
    pub(crate) fn mark_accessed(&mut self, descriptor: &Descriptor) -> Exec {
        if descriptor.raw >> 40 & u64::from(kind::ACCESSED) == 0 {
            let byte = (descriptor.raw >> 40) as u8 | kind::ACCESSED as u8;
            self.write_linear::<u8>(descriptor.address + 5, byte, Access::System)?;
        }
        Ok(())
    }

    /// MOV and POP to a segment register other than CS, LDS and friends.
    pub fn load_segment(&mut self, register: SegmentRegister, selector: u16) -> Exec {
        let segment = if !self.protected() {
            real_mode_segment(&self.segments[register as usize], selector)
        } else if register == SegmentRegister::Ss {
            self.stack_segment(selector, self.cpl, Exception::GeneralProtection)?
        } else {
            self.data_segment(selector)?
        };
        self.segments[register as usize] = segment;
        self.update_mode();
        Ok(())
    }

    fn data_segment(&mut self, selector: u16) -> Exec<Segment> {
        if selector & !3 == 0 {
            return Ok(null_segment(selector));
        }
        let descriptor = self.descriptor(selector, Exception::GeneralProtection)?;
        let mut segment = descriptor.unpack();
        let bad = Exception::GeneralProtection(selector & !3);
        let code = descriptor.is_code();
        if segment.kind() & 0x10 == 0 || code && segment.kind() & kind::WRITABLE == 0 {
            return Err(bad.into());
        }
        let conforming = code && segment.kind() & kind::CONFORMING != 0;
        if !conforming && segment.dpl() < self.cpl.max((selector & 3) as u8) {
            return Err(bad.into());
        }
        if !segment.present() {
            return Err(Exception::SegmentNotPresent(selector & !3).into());
        }
        self.mark_accessed(&descriptor)?;
        segment.access |= kind::ACCESSED;
        Ok(segment)
    }

    /// Checks a stack segment for privilege level `cpl`. `error` makes the
    /// exception: #GP for MOV and returns, #TS for a stack from the TSS.
    pub(crate) fn stack_segment(
        &mut self,
        selector: u16,
        cpl: u8,
        error: fn(u16) -> Exception,
    ) -> Exec<Segment> {
        if selector & !3 == 0 {
            let allowed = self.code_size == CodeSize::Bits64 && cpl < 3 && selector as u8 == cpl;
            return if allowed {
                Ok(null_stack(cpl))
            } else {
                Err(error(0).into())
            };
        }
        let descriptor = self.descriptor(selector, error)?;
        let mut segment = descriptor.unpack();
        let writable_data = segment.kind() & 0x1a == 0x12;
        if !writable_data || (selector & 3) as u8 != cpl || segment.dpl() != cpl {
            return Err(error(selector & !3).into());
        }
        if !segment.present() {
            return Err(Exception::Stack(selector & !3).into());
        }
        self.mark_accessed(&descriptor)?;
        segment.access |= kind::ACCESSED;
        Ok(segment)
    }

    /// Checks a code segment as the target of a far jump or call (SDM vol. 2,
    /// JMP), and an offset in it. The result has its RPL set to CPL.
    fn code_segment_for_jump(&mut self, selector: u16, offset: u64) -> Exec<Segment> {
        if selector & !3 == 0 {
            return Err(GP0);
        }
        let descriptor = self.descriptor(selector, Exception::GeneralProtection)?;
        let mut segment = descriptor.unpack();
        let bad = Trap::Exception(Exception::GeneralProtection(selector & !3));
        if !descriptor.is_code() {
            if segment.kind() & 0x10 == 0 {
                tracing::debug!(kind = segment.kind(), "far transfer through a gate or task");
            }
            return Err(bad);
        }
        let allowed = if segment.kind() & kind::CONFORMING != 0 {
            segment.dpl() <= self.cpl
        } else {
            (selector & 3) as u8 <= self.cpl && segment.dpl() == self.cpl
        };
        if !allowed || self.long_mode && segment.long() && segment.big() {
            return Err(bad);
        }
        if !segment.present() {
            return Err(Exception::SegmentNotPresent(selector & !3).into());
        }
        self.check_target(&segment, offset)?;
        self.mark_accessed(&descriptor)?;
        segment.access |= kind::ACCESSED;
        segment.selector = selector & !3 | u16::from(self.cpl);
        Ok(segment)
    }

    /// Checks that `offset` may be executed in `segment`: canonical in 64-bit
    /// code, within the limit otherwise.
    pub(crate) fn check_target(&self, segment: &Segment, offset: u64) -> Exec {
        let fits = if self.long_mode && segment.long() {
            is_canonical(offset)
        } else {
            offset <= u64::from(segment.limit)
        };
        if fits { Ok(()) } else { Err(GP0) }
    }

    /// JMP far. `offset` is already truncated to the operand size.
    pub fn far_jump(&mut self, selector: u16, offset: u64) -> Exec {
        let segment = if self.protected() {
            self.code_segment_for_jump(selector, offset)?
        } else {
            self.real_mode_target(selector, offset)?
        };
        self.enter_code(segment, offset);
        Ok(())
    }

    /// CALL far: pushes CS and `return_rip`, each `width` bytes wide.
    pub fn far_call(&mut self, selector: u16, offset: u64, return_rip: u64, width: u8) -> Exec {
        let segment = if self.protected() {
            self.code_segment_for_jump(selector, offset)?
        } else {
            self.real_mode_target(selector, offset)?
        };
        let mut stack = self.stack();
        stack.push(self, u64::from(self.cs().selector), width)?;
        stack.push(self, return_rip, width)?;
        stack.commit(self);
        self.enter_code(segment, offset);
        Ok(())
    }

    /// RET far, releasing `release` bytes of parameters.
    pub fn far_return(&mut self, width: u8, release: u16) -> Exec {
        let mut stack = self.stack();
        let offset = stack.pop(self, width)?;
        let selector = stack.pop(self, width)? as u16;
        stack.release(release.into());
        if !self.protected() {
            let segment = self.real_mode_target(selector, offset)?;
            stack.commit(self);
            self.enter_code(segment, offset);
            return Ok(());
        }
        let segment = self.code_segment_for_return(selector, offset)?;
        let rpl = (selector & 3) as u8;
        if rpl == self.cpl {
            stack.commit(self);
            self.enter_code(segment, offset);
            return Ok(());
        }
        let new_rsp = stack.pop(self, width)?;
        let new_ss = stack.pop(self, width)? as u16;
        let stack_segment = self.stack_segment_for_return(new_ss, rpl, &segment)?;
        self.return_outward(segment, offset, stack_segment, new_rsp);
        self.add_to_stack_pointer(release.into());
        Ok(())
    }

    /// Checks a code segment popped by RET far or IRET.
    pub(crate) fn code_segment_for_return(&mut self, selector: u16, offset: u64) -> Exec<Segment> {
        if selector & !3 == 0 {
            return Err(GP0);
        }
        let descriptor = self.descriptor(selector, Exception::GeneralProtection)?;
        let mut segment = descriptor.unpack();
        let rpl = (selector & 3) as u8;
        let conforming = segment.kind() & kind::CONFORMING != 0;
        let level_fits = if conforming {
            segment.dpl() <= rpl
        } else {
            segment.dpl() == rpl
        };
        let two_sizes = self.long_mode && segment.long() && segment.big();
        if !descriptor.is_code() || rpl < self.cpl || !level_fits || two_sizes {
            return Err(Exception::GeneralProtection(selector & !3).into());
        }
        if !segment.present() {
            return Err(Exception::SegmentNotPresent(selector & !3).into());
        }
        self.check_target(&segment, offset)?;
        self.mark_accessed(&descriptor)?;
        segment.access |= kind::ACCESSED;
        Ok(segment)
    }

    /// Checks a stack segment popped by RET far or IRET for level `cpl`. A
    /// null one is allowed only on the way to 64-bit code below level 3.
    pub(crate) fn stack_segment_for_return(
        &mut self,
        selector: u16,
        cpl: u8,
        code: &Segment,
    ) -> Exec<Segment> {
        if selector & !3 == 0 {
            let allowed = self.long_mode && code.long() && cpl < 3 && selector as u8 == cpl;
            return if allowed {
                Ok(null_stack(cpl))
            } else {
                Err(GP0)
            };
        }
        self.stack_segment(selector, cpl, Exception::GeneralProtection)
    }

    /// Ends a return to an outer level: new code, new stack, and data
    /// segments the outer level may not use become null.
    pub(crate) fn return_outward(&mut self, code: Segment, rip: u64, stack: Segment, rsp: u64) {
        self.segments[SegmentRegister::Ss as usize] = stack;
        self.enter_code(code, rip);
        self.set_stack_pointer(rsp);
        use SegmentRegister::{Ds, Es, Fs, Gs};
        for register in [Es, Ds, Fs, Gs] {
            let segment = &mut self.segments[register as usize];
            let code = segment.kind() & kind::CODE_MASK == kind::CODE;
            let conforming = code && segment.kind() & kind::CONFORMING != 0;
            if !segment.unusable() && !conforming && segment.dpl() < self.cpl {
                *segment = null_segment(0);
            }
        }
    }

    /// Makes `segment` the code segment and `rip` the next instruction.
    pub(crate) fn enter_code(&mut self, segment: Segment, rip: u64) {
        self.segments[SegmentRegister::Cs as usize] = segment;
        self.rip = rip;
        self.update_mode();
    }

    pub(crate) fn real_mode_target(&self, selector: u16, offset: u64) -> Exec<Segment> {
        let segment = real_mode_segment(self.cs(), selector);
        if offset > u64::from(segment.limit) {
            return Err(GP0);
        }
        Ok(segment)
    }

    /// LLDT.
    pub fn load_ldtr(&mut self, selector: u16) -> Exec {
        self.require_protected_ring0()?;
        if selector & !3 == 0 {
            self.ldtr = null_segment(selector);
            return Ok(());
        }
        let mut segment = self.system_segment(selector)?.0;
        if segment.kind() != kind::LDT {
            return Err(Exception::GeneralProtection(selector & !3).into());
        }
        if !segment.present() {
            return Err(Exception::SegmentNotPresent(selector & !3).into());
        }
        segment.selector = selector;
        self.ldtr = segment;
        Ok(())
    }

    /// LTR: marks the TSS busy.
    pub fn load_task_register(&mut self, selector: u16) -> Exec {
        self.require_protected_ring0()?;
        if selector & !3 == 0 {
            return Err(GP0);
        }
        let (mut segment, descriptor) = self.system_segment(selector)?;
        let available = segment.kind() == kind::TSS_AVAILABLE
            || !self.long_mode && segment.kind() == kind::TSS16_AVAILABLE;
        if !available {
            return Err(Exception::GeneralProtection(selector & !3).into());
        }
        if !segment.present() {
            return Err(Exception::SegmentNotPresent(selector & !3).into());
        }
        let busy = (descriptor.raw >> 40) as u8 | kind::TSS_BUSY_BIT as u8;
        self.write_linear::<u8>(descriptor.address + 5, busy, Access::System)?;
        segment.access |= kind::TSS_BUSY_BIT;
        self.tr = segment;
        Ok(())
    }

    /// A descriptor in the GDT for LLDT and LTR; 16 bytes in long mode.
    fn system_segment(&mut self, selector: u16) -> Exec<(Segment, Descriptor)> {
        let bad = Trap::Exception(Exception::GeneralProtection(selector & !3));
        if selector & 4 != 0 {
            return Err(bad);
        }
        let descriptor = self.descriptor(selector, Exception::GeneralProtection)?;
        let mut segment = descriptor.unpack();
        if self.long_mode {
            if u32::from(selector & !7) + 15 > u32::from(self.gdtr.limit) {
                return Err(bad);
            }
            let upper = self.read_linear::<u64>(descriptor.address + 8, Access::System)?;
            segment.base |= upper << 32;
            if upper >> 40 & 0x1f != 0 || !is_canonical(segment.base) {
                return Err(bad);
            }
        }
        Ok((segment, descriptor))
    }

    /// The descriptor LAR, LSL, VERR and VERW ask about, if the selector
    /// names one this privilege level may see.
    fn visible_descriptor(&mut self, selector: u16) -> Exec<Option<Segment>> {
        if !self.protected() {
            return Err(Exception::InvalidOpcode.into());
        }
        if selector & !3 == 0 {
            return Ok(None);
        }
        let descriptor = match self.descriptor(selector, Exception::GeneralProtection) {
            Ok(descriptor) => descriptor,
            // Outside the table: "not visible", no exception.
            Err(Trap::Exception(Exception::GeneralProtection(_))) => return Ok(None),
            Err(trap) => return Err(trap),
        };
        let segment = descriptor.unpack();
        let conforming = segment.kind() & 0x1c == kind::CODE | kind::CONFORMING;
        let level = self.cpl.max((selector & 3) as u8);
        Ok((conforming || segment.dpl() >= level).then_some(segment))
    }

    /// LAR: the access rights as they lie in the descriptor's second dword.
    pub fn access_rights(&mut self, selector: u16) -> Exec<Option<u32>> {
        let long_mode = self.long_mode;
        Ok(self
            .visible_descriptor(selector)?
            .filter(|segment| match segment.kind() {
                1 | 4 | 5 => !long_mode,
                2 | 9 | 11 | 12 => true,
                3 => !long_mode,
                kind => kind & 0x10 != 0,
            })
            .map(|segment| {
                (segment.access & 0xff) << 8
                    | (segment.access >> 12 & 0xf) << 20
                    | limit_bits(&segment)
            }))
    }

    /// LSL: the limit in bytes.
    pub fn segment_limit(&mut self, selector: u16) -> Exec<Option<u32>> {
        let long_mode = self.long_mode;
        Ok(self
            .visible_descriptor(selector)?
            .filter(|segment| match segment.kind() {
                1 | 3 => !long_mode,
                2 | 9 | 11 => true,
                kind => kind & 0x10 != 0,
            })
            .map(|segment| segment.limit))
    }

    /// VERR and VERW.
    pub fn verify_segment(&mut self, selector: u16, write: bool) -> Exec<bool> {
        Ok(self.visible_descriptor(selector)?.is_some_and(|segment| {
            let code = segment.kind() & kind::CODE_MASK == kind::CODE;
            let writable = segment.kind() & kind::WRITABLE != 0;
            segment.kind() & 0x10 != 0
                && if write {
                    !code && writable
                } else {
                    !code || writable
                }
        }))
    }

    fn require_protected_ring0(&self) -> Exec {
        if !self.protected() {
            return Err(Exception::InvalidOpcode.into());
        }
        if self.cpl != 0 { Err(GP0) } else { Ok(()) }
    }
}

/// Limit bits 19:16 as they lie in the descriptor.
fn limit_bits(segment: &Segment) -> u32 {
    let limit = if segment.access & 1 << 15 != 0 {
        segment.limit >> 12
    } else {
        segment.limit
    };
    limit & 0xf_0000
}

/// What a register holds after a null selector was loaded.
pub(crate) fn null_segment(selector: u16) -> Segment {
    Segment {
        selector,
        base: 0,
        limit: 0,
        access: favo_accel::state::Segment::UNUSABLE,
    }
}

/// SS after a null selector in 64-bit mode; its DPL is what CPL is read from.
pub(crate) fn null_stack(cpl: u8) -> Segment {
    let mut segment = null_segment(cpl.into());
    segment.access |= u32::from(cpl) << 5;
    segment
}

/// A real-mode load changes selector and base only; what limits protected
/// mode left behind stay, as "big real mode" expects.
fn real_mode_segment(old: &Segment, selector: u16) -> Segment {
    let mut segment = *old;
    if segment.unusable() {
        segment = Segment {
            selector: 0,
            base: 0,
            limit: 0xffff,
            access: 0x93,
        };
    }
    segment.selector = selector;
    segment.base = u64::from(selector) << 4;
    segment
}

/// Bits 63:47 are all equal (48-bit linear addresses).
#[inline(always)]
pub(crate) fn is_canonical(address: u64) -> bool {
    ((address as i64) << 16 >> 16) as u64 == address
}
