//! Calls stubs. The only place where guest instructions run on the host.

use std::arch::asm;

use super::form::Native;
use super::state::{EXCEPTION_FLAGS, ExtendedState, MXCSR_DEFAULT, MXCSR_MASKS};
use super::stub::Slot;
use crate::cpu::rflags::{ARITHMETIC, FIXED};

/// MXCSR: flush to zero.
const FLUSH_TO_ZERO: u32 = 1 << 15;
/// MXCSR: mask of the underflow exception.
const UNDERFLOW_MASK: u32 = 1 << 11;
/// UE.
const UNDERFLOW: u32 = 1 << 4;
/// IE, DE, ZE: found before a result is computed.
const BEFORE_COMPUTATION: u32 = 7;

/// An unmasked SIMD floating-point exception. MXCSR has its flag; nothing
/// else has changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SimdException;

impl Native {
    /// Runs the instruction on `state` and `gpr`. Gives back the arithmetic
    /// flags, meaningful if [`super::Form::writes_flags`].
    ///
    /// `flags` are the guest's arithmetic flags. The caller has checked that
    /// the instruction may run (CR0, CR4, XCR0) and that no x87 exception is
    /// pending if the instruction waits for one.
    ///
    /// # Safety
    ///
    /// If the form has a memory operand, `memory` must be valid for reading,
    /// or for writing if the form writes, of [`super::Form::size`] bytes, with
    /// the form's alignment.
    #[inline]
    pub unsafe fn run(
        &self,
        gpr: &mut [u64; 16],
        state: &mut ExtendedState,
        flags: u64,
        memory: *mut u8,
    ) -> Result<u64, SimdException> {
        let shape = &self.form.shape;
        if shape.flags_in {
            // DF would reach the host's code.
            state.flags_in = flags & ARITHMETIC | FIXED;
        }
        if !shape.mxcsr {
            // SAFETY: as this function's.
            return Ok(unsafe { self.enter(gpr, state, memory) });
        }
        if state.mxcsr & MXCSR_MASKS != MXCSR_MASKS {
            // SAFETY: as this function's.
            return unsafe { self.run_unmasked(gpr, state, memory) };
        }
        state.mxcsr_in = state.mxcsr;
        // SAFETY: as this function's.
        let flags = unsafe { self.enter(gpr, state, memory) };
        state.mxcsr = state.mxcsr_out;
        restore_mxcsr(state.mxcsr_in);
        Ok(flags)
    }

    /// As `run`, when some exception would be delivered: runs with all masked
    /// and takes everything back if one of them came up.
    #[cold]
    unsafe fn run_unmasked(
        &self,
        gpr: &mut [u64; 16],
        state: &mut ExtendedState,
        memory: *mut u8,
    ) -> Result<u64, SimdException> {
        let before = (*gpr, state.clone());
        let mxcsr = state.mxcsr;
        let unmasked = !(mxcsr & MXCSR_MASKS) >> 7 & EXCEPTION_FLAGS;
        state.mxcsr_in = mxcsr & !EXCEPTION_FLAGS | MXCSR_MASKS;
        if mxcsr & UNDERFLOW_MASK == 0 {
            // An unmasked underflow is any tiny result, a masked one only an
            // inexact one. Flushing reports every tiny result; where there is
            // none it changes nothing.
            state.mxcsr_in |= FLUSH_TO_ZERO;
        }
        let mut buffer = [0u8; 32];
        let writes = self.form.access == super::MemoryAccess::Write;
        let target = if writes { buffer.as_mut_ptr() } else { memory };
        // SAFETY: as this function's; a write goes to the buffer, which is as
        // long as the longest vector.
        let flags = unsafe { self.enter(gpr, state, target) };
        restore_mxcsr(state.mxcsr_in);
        let mut raised = state.mxcsr_out & EXCEPTION_FLAGS;
        if self.form.half_results {
            // VCVTPS2PH does not flush.
            let destination = state.ymm[usize::from(self.registers[0] & 15)];
            let result = if writes {
                &buffer[..]
            } else {
                &destination[..16]
            };
            raised |= if has_tiny_half(result) { UNDERFLOW } else { 0 };
        }
        if raised & unmasked != 0 {
            let seen = if raised & unmasked & BEFORE_COMPUTATION != 0 {
                raised & BEFORE_COMPUTATION
            } else {
                // With an unmasked overflow or underflow PE may be set though
                // the result was exact: the masked response never is.
                raised
            };
            (*gpr, *state) = before;
            state.mxcsr |= seen;
            if self.form.shape.mmx() {
                // Even then, as the host has it.
                state.x87.enter_mmx();
            }
            return Err(SimdException);
        }
        if writes {
            let size = usize::from(self.form.size).min(buffer.len());
            // SAFETY: the caller's promise about `memory`.
            unsafe { std::ptr::copy_nonoverlapping(buffer.as_ptr(), memory, size) };
        }
        state.mxcsr = mxcsr | raised;
        Ok(flags)
    }

    /// # Safety
    ///
    /// As [`Native::run`].
    unsafe fn enter(&self, gpr: &mut [u64; 16], state: &mut ExtendedState, memory: *mut u8) -> u64 {
        if self.form.shape.mmx() {
            state.x87.enter_mmx();
        }
        let mut slot = |n: usize| -> *mut u8 {
            let register = self.registers[n];
            match self.form.shape.slots[n].slot {
                Slot::None => std::ptr::null_mut(),
                Slot::Vector | Slot::ImplicitXmm0 => {
                    (&raw mut state.ymm[usize::from(register & 15)]).cast()
                }
                Slot::Mmx => (&raw mut state.x87.st[usize::from(register & 7)]).cast(),
                Slot::General => (&raw mut gpr[usize::from(register & 15)]).cast(),
                Slot::Compare => (&raw mut *gpr).cast(),
            }
        };
        let slots = [slot(0), slot(1), slot(2), slot(3)];
        let [first, second, third, fourth] = slots;
        // The stub keeps the ABI: it changes only call-clobbered registers and
        // leaves x87 empty. No exception can arise: SIMD exceptions are masked,
        // x87 ones are deferred to a waiting instruction and FNINIT discards
        // them, and the host has the instruction.
        //
        // SAFETY: each slot points at a register of the kind the stub expects;
        // the caller vouches for `memory`.
        let flags = unsafe { (self.form.entry)(first, second, third, fourth, memory, state) };
        if self.form.shape.mmx() {
            self.finish_mmx(state);
        }
        flags
    }

    /// Results in MMX registers have an exponent of all ones.
    fn finish_mmx(&self, state: &mut ExtendedState) {
        for (operand, register) in self.form.shape.slots.iter().zip(self.registers) {
            if operand.slot == Slot::Mmx && operand.store {
                state.x87.st[usize::from(register & 7)][8..10].fill(0xff);
            }
        }
    }
}

/// Some of the half-precision numbers in `bytes` is denormal.
fn has_tiny_half(bytes: &[u8]) -> bool {
    bytes.chunks_exact(2).any(|half| {
        let magnitude = u16::from_le_bytes([half[0], half[1]]) & 0x7fff;
        magnitude != 0 && magnitude < 0x400
    })
}

/// Puts the host's MXCSR back if an instruction ran with other rounding,
/// denormal handling or masks. Sticky exception flags may stay: nothing on the
/// host looks at them.
#[inline]
fn restore_mxcsr(was: u32) {
    if was & !EXCEPTION_FLAGS != MXCSR_DEFAULT {
        let value = MXCSR_DEFAULT;
        // SAFETY: loads the default value, with every exception masked.
        unsafe { asm!("ldmxcsr [{}]", in(reg) &raw const value, options(nostack, readonly)) };
    }
}
