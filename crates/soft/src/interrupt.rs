//! How interrupts and exceptions reach the guest's handler, and IRET back
//! (SDM vol. 3, chapter 6).
//!
//! Delivery reads the gate, the target segment and the new stack, writes the
//! frame, and only then changes the processor; a fault on the way becomes the
//! next exception, a double fault, or the end.

use crate::cpu::{CodeSize, Cpu, Segment, gpr, rflags};
use crate::mmu::Access;
use crate::segment::null_stack;
use crate::stack::{SS, Stack};
use crate::trap::{Exception, Exec, Trap};

/// Where an event comes from; decides what is checked and what is saved.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// From outside: the local APIC or an NMI.
    External,
    /// An exception the processor raised; INT1 counts as one.
    Exception,
    /// INT n, INT3, INTO: the gate's DPL must allow it.
    Software,
}

/// Which exceptions add up to a double fault (SDM vol. 3, table 6-5).
#[derive(PartialEq)]
enum Class {
    Benign,
    Contributory,
    PageFault,
    DoubleFault,
}

fn class(exception: Exception) -> Class {
    match exception {
        Exception::DivideError
        | Exception::InvalidTss(_)
        | Exception::SegmentNotPresent(_)
        | Exception::Stack(_)
        | Exception::GeneralProtection(_) => Class::Contributory,
        Exception::PageFault { .. } => Class::PageFault,
        Exception::DoubleFault => Class::DoubleFault,
        _ => Class::Benign,
    }
}

/// A gate of the interrupt descriptor table.
struct Gate {
    selector: u16,
    offset: u64,
    /// Clears IF.
    interrupt: bool,
    /// Bytes per pushed word.
    width: u8,
    /// Interrupt stack table index, 0 for none.
    ist: u8,
}

impl Cpu {
    /// Delivers an exception raised at the current RIP, escalating to a
    /// double fault and to [`Trap::TripleFault`] as the SDM says.
    pub fn deliver_exception(&mut self, exception: Exception) -> Exec {
        self.record(exception);
        let mut saved_flags = self.rflags();
        if exception.is_fault() {
            saved_flags |= rflags::RF;
        }
        let source = match exception {
            Exception::Breakpoint | Exception::Overflow => Source::Software,
            _ => Source::Exception,
        };
        let outcome = self.deliver(
            exception.vector(),
            exception.error_code(),
            source,
            saved_flags,
        );
        self.escalate(Some(exception), outcome, saved_flags)
    }

    /// Delivers an interrupt from outside, or an INT n whose RIP has already
    /// moved on.
    pub fn deliver_interrupt(&mut self, vector: u8, source: Source) -> Exec {
        let saved_flags = self.rflags();
        let outcome = self.deliver(vector, None, source, saved_flags);
        if source == Source::Software {
            // A fault belongs to the INT instruction, which then starts over:
            // the caller puts RIP back and delivers it like any other.
            return outcome;
        }
        self.escalate(None, outcome, saved_flags)
    }

    /// CR2, DR6: what an exception leaves behind before it is delivered.
    fn record(&mut self, exception: Exception) {
        match exception {
            Exception::PageFault { .. } => self.cr2 = self.fault_address,
            Exception::Debug(bits) | Exception::DebugFault(bits) => {
                self.debug.dr6 |= u64::from(bits);
                self.debug.dr7 &= !DR7_GD;
            }
            _ => {}
        }
    }

    fn escalate(&mut self, first: Option<Exception>, outcome: Exec, saved_flags: u64) -> Exec {
        let mut previous = first;
        let mut outcome = outcome;
        loop {
            let next = match outcome {
                Ok(()) => return Ok(()),
                Err(Trap::Exception(next)) => next,
                // A stack or table in device memory: nothing sensible runs there.
                Err(Trap::Exit) => {
                    tracing::warn!(exit = ?self.exit, rip = self.rip, "event delivery left RAM");
                    return Err(Trap::TripleFault);
                }
                Err(trap) => return Err(trap),
            };
            self.record(next);
            let double = match previous.map(class) {
                Some(Class::DoubleFault) => return Err(Trap::TripleFault),
                Some(Class::Contributory) => class(next) == Class::Contributory,
                Some(Class::PageFault) => {
                    matches!(class(next), Class::Contributory | Class::PageFault)
                }
                Some(Class::Benign) | None => false,
            };
            let now = if double { Exception::DoubleFault } else { next };
            previous = Some(now);
            outcome = self.deliver(
                now.vector(),
                now.error_code(),
                Source::Exception,
                saved_flags | rflags::RF,
            );
        }
    }

    fn deliver(
        &mut self,
        vector: u8,
        error_code: Option<u32>,
        source: Source,
        saved_flags: u64,
    ) -> Exec {
        if self.protected() {
            self.deliver_protected(vector, error_code, source, saved_flags)
        } else {
            self.deliver_real(vector, saved_flags)
        }
    }

    fn deliver_real(&mut self, vector: u8, saved_flags: u64) -> Exec {
        let entry = u64::from(vector) * 4;
        if entry + 3 > u64::from(self.idtr.limit) {
            return Err(Exception::GeneralProtection(0).into());
        }
        let pointer =
            self.read_linear::<u32>(self.idtr.base.wrapping_add(entry), Access::System)?;
        let mut stack = self.stack();
        stack.push(self, saved_flags, 2)?;
        stack.push(self, self.cs().selector.into(), 2)?;
        stack.push(self, self.rip, 2)?;
        let offset = u64::from(pointer & 0xffff);
        let segment = self.real_mode_target((pointer >> 16) as u16, offset)?;
        stack.commit(self);
        self.enter_code(segment, offset);
        self.clear_flags(rflags::IF | rflags::TF | rflags::AC | rflags::RF);
        Ok(())
    }

    fn deliver_protected(
        &mut self,
        vector: u8,
        error_code: Option<u32>,
        source: Source,
        saved_flags: u64,
    ) -> Exec {
        let external = u16::from(source != Source::Software);
        let gate = self.gate(vector, source, external)?;
        let (code, level) = self.handler_segment(&gate, external)?;
        let (mut stack, stack_segment) = self.handler_stack(&gate, level)?;

        let (old_ss, old_rsp) = (self.ss().selector, self.gpr[gpr::RSP]);
        if stack_segment.is_some() || self.long_mode {
            stack.push(self, old_ss.into(), gate.width)?;
            stack.push(self, old_rsp, gate.width)?;
        }
        stack.push(self, saved_flags, gate.width)?;
        stack.push(self, self.cs().selector.into(), gate.width)?;
        stack.push(self, self.rip, gate.width)?;
        if let Some(code) = error_code {
            stack.push(self, code.into(), gate.width)?;
        }

        if let Some(segment) = stack_segment {
            self.segments[SS] = segment;
        }
        self.enter_code(code, gate.offset);
        stack.commit(self);
        let mut cleared = rflags::TF | rflags::NT | rflags::RF | rflags::VM;
        if gate.interrupt {
            cleared |= rflags::IF;
        }
        self.clear_flags(cleared);
        Ok(())
    }

    fn gate(&mut self, vector: u8, source: Source, external: u16) -> Exec<Gate> {
        let size: u64 = if self.long_mode { 16 } else { 8 };
        let entry = u64::from(vector) * size;
        let code = u16::from(vector) * 8 + 2;
        let bad = Trap::Exception(Exception::GeneralProtection(code | external));
        if entry + size - 1 > u64::from(self.idtr.limit) {
            return Err(bad);
        }
        let address = self.idtr.base.wrapping_add(entry);
        let raw = self.read_linear::<u64>(address, Access::System)?;
        let upper = if self.long_mode {
            self.read_linear::<u64>(address.wrapping_add(8), Access::System)?
        } else {
            0
        };
        let (interrupt, width) = match raw >> 40 & 0x1f {
            0xe => (true, 4),
            0xf => (false, 4),
            0x6 if !self.long_mode => (true, 2),
            0x7 if !self.long_mode => (false, 2),
            _ => return Err(bad),
        };
        let dpl = (raw >> 45 & 3) as u8;
        if source == Source::Software && dpl < self.cpl {
            return Err(Exception::GeneralProtection(code).into());
        }
        if raw >> 47 & 1 == 0 {
            return Err(Exception::SegmentNotPresent(code | external).into());
        }
        let low = raw & 0xffff;
        let high = if width == 2 {
            0
        } else {
            raw >> 32 & 0xffff_0000
        };
        Ok(Gate {
            selector: (raw >> 16) as u16,
            offset: low | high | upper << 32,
            interrupt,
            width: if self.long_mode { 8 } else { width },
            ist: if self.long_mode {
                (raw >> 32 & 7) as u8
            } else {
                0
            },
        })
    }

    /// The handler's code segment, its RPL set, and the level it runs at.
    fn handler_segment(&mut self, gate: &Gate, external: u16) -> Exec<(Segment, u8)> {
        let selector = gate.selector;
        let with_external = |selector: u16| selector & !3 | external;
        if selector & !3 == 0 {
            return Err(Exception::GeneralProtection(external).into());
        }
        let descriptor = match self.descriptor(selector, Exception::GeneralProtection) {
            Err(Trap::Exception(Exception::GeneralProtection(code))) => {
                return Err(Exception::GeneralProtection(code | external).into());
            }
            other => other?,
        };
        let mut segment = descriptor.unpack();
        let code = segment.kind() & 0x18 == 0x18;
        let wrong_size = self.long_mode && (!segment.long() || segment.big());
        if !code || segment.dpl() > self.cpl || wrong_size {
            return Err(Exception::GeneralProtection(with_external(selector)).into());
        }
        if !segment.present() {
            return Err(Exception::SegmentNotPresent(with_external(selector)).into());
        }
        self.check_target(&segment, gate.offset)?;
        self.mark_accessed(&descriptor)?;
        let conforming = segment.kind() & 4 != 0;
        let level = if conforming { self.cpl } else { segment.dpl() };
        segment.access |= 1;
        segment.selector = selector & !3 | u16::from(level);
        Ok((segment, level))
    }

    /// The stack a handler at `level` runs on, and the new SS if the stack
    /// changes segments.
    fn handler_stack(&mut self, gate: &Gate, level: u8) -> Exec<(Stack, Option<Segment>)> {
        let switch = level < self.cpl;
        if self.long_mode {
            let pointer = if gate.ist != 0 {
                self.tss_word(0x24 + 8 * (u64::from(gate.ist) - 1), 8)?
            } else if switch {
                self.tss_word(4 + 8 * u64::from(level), 8)?
            } else {
                self.gpr[gpr::RSP]
            };
            let access = if level < 3 {
                Access::System
            } else {
                Access::Data
            };
            let stack = Stack::switched(pointer & !0xf, 0, u64::MAX, u64::MAX, access);
            return Ok((stack, switch.then(|| null_stack(level))));
        }
        if !switch {
            return Ok((self.stack(), None));
        }
        let wide = self.tr.kind() & 8 != 0;
        let (pointer, selector) = if wide {
            let at = 4 + 8 * u64::from(level);
            (self.tss_word(at, 4)?, self.tss_word(at + 4, 2)?)
        } else {
            let at = 2 + 4 * u64::from(level);
            (self.tss_word(at, 2)?, self.tss_word(at + 2, 2)?)
        };
        let segment = self.stack_segment(selector as u16, level, Exception::InvalidTss)?;
        let mask = if segment.big() { 0xffff_ffff } else { 0xffff };
        let stack = Stack::switched(
            pointer,
            segment.base,
            mask,
            segment.limit.into(),
            Access::System,
        );
        Ok((stack, Some(segment)))
    }

    fn tss_word(&mut self, offset: u64, width: u64) -> Exec<u64> {
        if self.tr.unusable() || offset + width - 1 > u64::from(self.tr.limit) {
            return Err(Exception::InvalidTss(self.tr.selector & !3).into());
        }
        let address = self.tr.base.wrapping_add(offset);
        Ok(match width {
            2 => self.read_linear::<u16>(address, Access::System)?.into(),
            4 => self.read_linear::<u32>(address, Access::System)?.into(),
            _ => self.read_linear::<u64>(address, Access::System)?,
        })
    }

    fn clear_flags(&mut self, flags: u64) {
        self.system_flags &= !flags;
    }

    /// IRET, IRETD, IRETQ: `width` bytes per popped word.
    pub fn interrupt_return(&mut self, width: u8) -> Exec {
        if !self.protected() {
            return self.interrupt_return_real(width);
        }
        if self.system_flags & rflags::NT != 0 {
            // A task return: not in long mode, and not supported outside it.
            return Err(Exception::GeneralProtection(0).into());
        }
        let mut stack = self.stack();
        let offset = stack.pop(self, width)?;
        let selector = stack.pop(self, width)? as u16;
        let flags = stack.pop(self, width)?;
        let level = (selector & 3) as u8;
        let pops_stack = self.code_size == CodeSize::Bits64 || level > self.cpl;
        let outer = if pops_stack {
            let rsp = stack.pop(self, width)?;
            Some((rsp, stack.pop(self, width)? as u16))
        } else {
            None
        };
        let code = self.code_segment_for_return(selector, offset)?;
        let old_level = self.cpl;
        match outer {
            Some((rsp, ss)) => {
                let segment = self.stack_segment_for_return(ss, level, &code)?;
                self.set_returned_flags(flags, width, old_level);
                self.return_outward(code, offset, segment, rsp);
            }
            None => {
                stack.commit(self);
                self.set_returned_flags(flags, width, old_level);
                self.enter_code(code, offset);
            }
        }
        self.nmi_masked = false;
        Ok(())
    }

    fn interrupt_return_real(&mut self, width: u8) -> Exec {
        let mut stack = self.stack();
        let offset = stack.pop(self, width)?;
        let selector = stack.pop(self, width)? as u16;
        let flags = stack.pop(self, width)?;
        let segment = self.real_mode_target(selector, offset)?;
        stack.commit(self);
        self.enter_code(segment, offset);
        self.set_returned_flags(flags, width, 0);
        self.nmi_masked = false;
        Ok(())
    }

    /// The flags IRET restores depend on the level it ran at.
    fn set_returned_flags(&mut self, flags: u64, width: u8, level: u8) {
        use rflags::{AC, ARITHMETIC, DF, ID, IF, IOPL, NT, RF, TF, VIF, VIP};
        let mut mask = ARITHMETIC | TF | DF | NT;
        if width > 2 {
            mask |= RF | AC | ID;
        }
        if u64::from(level) <= (self.system_flags & IOPL) >> 12 {
            mask |= IF;
        }
        if level == 0 {
            mask |= IOPL | IF;
            if width > 2 {
                mask |= VIF | VIP;
            }
        }
        self.set_rflags_masked(flags, mask);
    }
}

/// DR7: any access to a debug register raises #DB.
pub(crate) const DR7_GD: u64 = 1 << 13;
