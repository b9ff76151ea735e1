//! x87, MMX, SSE and AVX on the host's own units.
//!
//! The guest's processor is of the host's kind, so the cheapest exact way to
//! execute a vector instruction is to execute it. For each instruction form a
//! stub is generated once: it loads the operands from the guest's registers in
//! memory, executes the instruction with its address rewritten, and stores the
//! results. [`crate::exec::vector`] and [`crate::exec::x87`] check what the
//! manual says is checked, resolve the address, and call the stub; the
//! translator will copy the same instructions.
//!
//! What must never happen: a signal out of a stub. Exceptions are masked while
//! it runs and looked at afterwards, addresses are validated before, and only
//! instructions the host reports in CPUID are turned into stubs.

mod arena;
mod call;
mod features;
mod form;
mod state;
mod stub;

pub use arena::ArenaError;
pub use call::SimdException;
#[cfg(any(test, feature = "difftest"))]
pub use features::host_supports;
pub use features::{
    CpuidBit, features, host_has_avx, host_is_amd, is_emulated, is_x87, offered, supports, xcr0,
};
pub use form::{Form, MemoryAccess, Native, Unit, initialize, lookup};
pub use state::{
    EXCEPTION_FLAGS, ExtendedState, FSW_B, FSW_ES, MXCSR_DEFAULT, MXCSR_MASKS, MXCSR_VALID,
    X87Image,
};
