//! The operations, one file per family, and the loop that runs them.

pub(crate) mod alu;
pub(crate) mod bcd;
pub(crate) mod bits;
pub(crate) mod flow;
pub(crate) mod moves;
pub(crate) mod muldiv;
pub(crate) mod operand;
pub(crate) mod shift;
pub(crate) mod stack;
pub(crate) mod string;
pub(crate) mod system;
pub(crate) mod vector;
pub(crate) mod vector_special;
pub(crate) mod x87;
pub(crate) mod xsave;

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use favo_accel::state::InterruptShadow;

use crate::cache::Block;
use crate::clock::host_tsc;
use crate::cpu::{CodeSize, Cpu, rflags};
use crate::decode;
use crate::mailbox::{Mailbox, Pages, attention};
use crate::operation::{Operation, prefix};
use crate::partition::Shared;
use crate::segment::is_canonical;
use crate::translate::Left;
use crate::trap::{Exception, Exec, GP0, Trap};

impl Cpu {
    /// Runs until something needs the caller: a trap, somebody who wants
    /// attention, or the host TSC reaches a deadline, `limit` or the local
    /// APIC's.
    pub fn run(&mut self, limit: Option<u64>) -> Trap {
        let shared = self.shared.clone();
        let mailbox = shared.mailbox(self.id);
        mailbox.set_running(true);
        let trap = self.run_blocks(&shared, mailbox, limit.unwrap_or(u64::MAX));
        mailbox.set_running(false);
        if limit.is_some() {
            // The caller's own alarm.
            mailbox.take(attention::TIMER);
        }
        trap
    }

    fn run_blocks(&mut self, shared: &Arc<Shared>, mailbox: &Mailbox, limit: u64) -> Trap {
        let mut left = Left::Here;
        let mut rounds = 0u32;
        if mailbox.must_revoke() {
            self.attend_caches(mailbox);
        }
        loop {
            let attention = mailbox.attention().load(Ordering::Relaxed);
            if attention != 0 {
                if attention & !attention::CACHES != 0 {
                    return Trap::EndBlock;
                }
                self.attend_caches(mailbox);
                // What was left may be gone.
                left = Left::Here;
            }
            let deadline = limit.min(self.apic.expires().unwrap_or(u64::MAX));
            rounds = rounds.wrapping_add(1);
            if rounds.is_multiple_of(BLOCKS_PER_CLOCK_READ) && host_tsc() >= deadline {
                return Trap::EndBlock;
            }
            // After a trap, and after an instruction that was run alone, the
            // run loop looks whether something became deliverable.
            if self.needs_care() {
                return self.run_one().err().unwrap_or(Trap::EndBlock);
            }
            let block = match self.next_block() {
                Ok(block) => block,
                Err(trap) => return trap,
            };
            let unit = match left {
                _ if !self.translator.is_on() || self.code_size != CodeSize::Bits64 => None,
                Left::Interpret => None,
                Left::Edge(edge) => {
                    let generation = self.translator.generation();
                    let unit = self.unit_for_edge(edge, block);
                    if let Some(unit) = unit
                        && self.translator.generation() == generation
                    {
                        self.link_edge(edge, unit);
                    }
                    unit
                }
                Left::Jump => {
                    let unit = self.unit_of(block);
                    if let Some(unit) = unit {
                        self.remember_jump(unit);
                    }
                    unit
                }
                Left::Here | Left::Interpreted(_) => self.unit_of(block),
            };
            let outcome = match unit {
                Some(unit) => {
                    shared.set_alarm(self.id, deadline);
                    mailbox.set_jump_mask(crate::translate::JUMP_MASK);
                    self.check_jump_tables();
                    self.counters.units_entered += 1;
                    left = self.run_unit(unit);
                    match left {
                        Left::Interpreted(outcome) => outcome,
                        _ => Ok(()),
                    }
                }
                None => {
                    left = Left::Here;
                    self.run_block(block)
                }
            };
            match outcome {
                Ok(()) => {}
                Err(Trap::EndBlock) if self.may_go_on() => {}
                Err(trap) => return trap,
            }
        }
    }

    /// Runs one translated unit, for tests: what `run` does, one step of it.
    #[cfg(any(test, feature = "difftest"))]
    pub(crate) fn run_one_unit(&mut self) -> Exec {
        let shared = self.shared.clone();
        let mailbox = shared.mailbox(self.id);
        if mailbox.attention().load(Ordering::Relaxed) != 0 {
            self.attend_caches(mailbox);
        }
        let block = self.next_block()?;
        let Some(unit) = self.unit_of(block) else {
            return self.run_one();
        };
        self.check_jump_tables();
        let rip = self.rip;
        let mut left = self.run_unit(unit);
        if let Left::Edge(edge) = left
            && self.rip == rip
            && let Some(unit) = self.unit_for_edge(edge, block)
        {
            // The variant without windows.
            left = self.run_unit(unit);
        }
        match left {
            Left::Interpreted(outcome) => outcome,
            Left::Interpret => self.run_one(),
            Left::Edge(_) | Left::Jump | Left::Here => Ok(()),
        }
    }

    /// Nothing that the caller would have to deliver has come up.
    #[inline(always)]
    pub(crate) fn may_go_on(&self) -> bool {
        self.end_of_level.is_none()
            && (self.system_flags & rflags::IF == 0 || self.apic.deliverable().is_none())
    }

    /// Somebody wants something of this processor.
    pub(crate) fn wants_attention(&self) -> bool {
        let mailbox = self.shared.mailbox(self.id);
        mailbox.attention().load(Ordering::Relaxed) != 0
    }

    /// Does what others ask of this processor's caches.
    #[cold]
    fn attend_caches(&mut self, mailbox: &Mailbox) {
        mailbox.take(attention::CACHES);
        if mailbox.must_revoke() {
            mailbox.do_revoke(|page| self.revoke_writes(page));
        }
        match mailbox.take_changed() {
            Pages::Some(pages) => {
                self.counters.code_pages_changed += pages.len() as u64;
                for page in pages {
                    self.translator.page_changed(page);
                }
            }
            Pages::All => self.translator.pages_changed(),
        }
    }

    /// Something holds that is looked at after every instruction.
    #[inline(always)]
    fn needs_care(&self) -> bool {
        self.system_flags & (rflags::TF | rflags::RF) != 0
            || self.shadow != InterruptShadow::None
            || self.debug.dr7 & 0xff != 0
            || !self.log.is_empty()
    }

    #[inline(always)]
    fn run_block(&mut self, block: *const Block) -> Exec {
        // SAFETY: blocks go away only when another is decoded, which happens
        // between blocks and never under a handler.
        let operations: &[Operation] = unsafe { &(*block).operations };
        self.leave_block = false;
        let mut executed = 0;
        let mut outcome = Ok(());
        for operation in operations {
            executed += 1;
            outcome = (operation.handler)(self, operation);
            if outcome.is_err() || self.leave_block {
                break;
            }
        }
        let completed = !matches!(
            outcome,
            Err(Trap::Exception(_) | Trap::Exit | Trap::TripleFault)
        );
        self.counters.instructions += executed - u64::from(!completed);
        outcome
    }

    /// Runs one instruction with everything that is checked around it:
    /// breakpoints, the trap flag, the interrupt shadow, a pending answer.
    pub fn run_one(&mut self) -> Exec {
        if self.system_flags & rflags::RF == 0 {
            self.check_instruction_breakpoint()?;
        }
        let shadow = self.shadow;
        let resume_flag = self.system_flags & rflags::RF;
        let mut trap_flag = self.system_flags & rflags::TF != 0;
        let rip = self.rip;
        self.log.rewind();
        if shadow != InterruptShadow::MovSs {
            self.breakpoint_hits = 0;
        }
        let block = self.next_block()?;
        // SAFETY: as in `run_block`; blocks are never empty.
        let operation = unsafe { (&(*block).operations)[0] };
        let outcome = (operation.handler)(self, &operation);
        match outcome {
            Ok(()) | Err(Trap::EndBlock | Trap::Halt) => {}
            Err(Trap::Exit) => return Err(Trap::Exit),
            Err(trap) => {
                self.log.finish();
                return Err(trap);
            }
        }
        self.log.finish();
        self.counters.instructions += 1;
        if self.rip == rip && operation.prefixes & (prefix::REP | prefix::REPNE) != 0 {
            // Between iterations: its breakpoint has been reported.
            if self.debug.dr7 & 0xff != 0 {
                self.system_flags |= rflags::RF;
            }
        } else {
            // An RF that IRET has just loaded is for the next instruction.
            self.system_flags &= !resume_flag;
        }
        // The shadow lasts for one instruction, unless that one set it anew.
        if self.shadow == shadow {
            self.shadow = InterruptShadow::None;
        }
        if operation.prefixes & prefix::NEW_TRAP_FLAG != 0 {
            trap_flag = self.system_flags & rflags::TF != 0;
        }
        if self.shadow == InterruptShadow::MovSs {
            // Reported after the next instruction.
            return outcome;
        }
        let mut hits = std::mem::take(&mut self.breakpoint_hits);
        if trap_flag {
            hits |= DR6_SINGLE_STEP;
        }
        if hits != 0 {
            Err(Exception::Debug(hits).into())
        } else {
            outcome
        }
    }

    /// The block at RIP.
    #[inline(always)]
    pub(crate) fn next_block(&mut self) -> Exec<*const Block> {
        let linear = self.rip.wrapping_add(self.bases[1]);
        let mode = self.code_size as u64 | if self.cpl == 3 { 4 } else { 0 };
        match self.cache.near(linear, mode) {
            Some(block) if self.code_size == CodeSize::Bits64 => Ok(block),
            _ => self.find_block(linear, mode),
        }
    }

    #[inline(never)]
    fn find_block(&mut self, linear: u64, mode: u64) -> Exec<*const Block> {
        let (linear, most) = match self.code_size {
            CodeSize::Bits64 if !is_canonical(self.rip) => return Err(GP0),
            CodeSize::Bits64 => (linear, u64::MAX),
            _ => {
                let limit = u64::from(self.cs().limit);
                let left = limit.checked_sub(self.rip).ok_or(GP0)?;
                (linear & 0xffff_ffff, left + 1)
            }
        };
        let first = self.translate_code(linear)?;
        if let Some(block) = self.cache.find(first.physical, self.code_size) {
            match &block.second {
                _ if u64::from(block.length) > most => {}
                None => {
                    self.cache.remember(linear, mode, &first, &block);
                    return Ok(Rc::as_ptr(&block));
                }
                // An instruction across two pages is not remembered by its
                // linear address: both translations are checked every time.
                Some((physical, _)) => {
                    let next = (linear & !0xfff).wrapping_add(0x1000);
                    if self.translate_code(next)?.physical == *physical {
                        return Ok(Rc::as_ptr(&block));
                    }
                }
            }
        }
        let block = decode::block(self, linear, first.physical, most)?;
        self.counters.blocks_decoded += 1;
        let remember = block.second.is_none();
        let block = self.cache.insert(first.physical, self.code_size, block);
        if remember {
            self.cache.remember(linear, mode, &first, &block);
        }
        Ok(Rc::as_ptr(&block))
    }
}

/// DR6.BS.
const DR6_SINGLE_STEP: u16 = 1 << 14;

/// How many blocks run between two looks at the clock; some microseconds.
const BLOCKS_PER_CLOCK_READ: u32 = 64;
