//! An x86-64 processor in software.
//!
//! Where there is no hardware virtualization, this engine runs the guest. It
//! is a complete interpreter over a cache of decoded instructions; a
//! translator will stand on the same decoder, MMU and state.
//!
//! How an instruction gets executed:
//!
//! 1. [`vcpu`] runs blocks until something needs attention: an interrupt, a
//!    timer, a kick, an exit.
//! 2. [`decode`] turns guest bytes, once, into a block of operations: a
//!    function pointer and its operands. Blocks are found by physical address
//!    and mode, and stay valid while their page's version is unchanged.
//! 3. [`exec`] holds the operations. One that can fault commits nothing before
//!    its last possible fault, so that it can simply be run again.
//! 4. [`mmu`] turns linear addresses into host addresses.
//! 5. [`native`] executes x87, SSE and AVX on the host's own units.
//!
//! Memory that is not RAM ends an operation with an exit. The answer goes into
//! a log, and the operation runs again from its start with the log at hand
//! ([`mmio`]); so no operation needs to be cut in two.

mod apic;
mod buslock;
mod cache;
mod clock;
pub mod counters;
pub mod cpu;
mod cpuid;
mod decode;
#[cfg(any(test, feature = "difftest"))]
pub mod difftest;
mod exec;
pub mod flags;
pub mod interrupt;
mod mailbox;
mod mmio;
pub mod mmu;
mod msr;
pub mod native;
mod operation;
mod partition;
pub mod scalar;
pub mod segment;
mod stack;
mod state;
pub mod system;
#[cfg(any(test, feature = "difftest"))]
pub mod testing;
pub mod trap;
mod vcpu;
