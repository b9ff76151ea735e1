//! The differential tester: the host's CPU says what an instruction does.
//!
//! Each case is a random instruction, or a few, and a random machine state.
//! It runs on the host ([`oracle`]) and in an [`Engine`]; every register, flag,
//! byte of memory and the kind of fault must be equal. What the manuals leave
//! undefined is masked by [`undefined`].
//!
//! Everything follows from a seed, and a failure says which.
//!
//! Code and data are mapped at the same linear addresses in this process and
//! in the guest, which runs at CPL 3 as this process does.

mod generate;
mod harness;
mod interpreter;
mod oracle;
mod random;
mod report;
mod table;
mod undefined;

use favo_accel::state::FpuState;

pub use generate::{Generated, codes, excluded, instruction, is_covered, state};
pub use harness::{Engine, Failure, Outcome, Summary, run};
pub use interpreter::Interpreter;
pub use oracle::Oracle;
pub use random::Random;
pub use table::missing;

/// Linear address of the pages with code: readable, executable.
pub const CODE: u64 = 0x1000_0000;
/// Size of the pages with code.
pub const CODE_SIZE: u64 = 0x2000;
/// Where a case starts.
pub const START: u64 = CODE + 0x800;
/// Bytes of breakpoints before a case.
const MARGIN: usize = 64;

/// `code` among breakpoints: what goes to START - MARGIN.
fn surrounded(code: &[u8]) -> [u8; 256] {
    let mut bytes = [0xcc; 256];
    bytes[MARGIN..MARGIN + code.len()].copy_from_slice(code);
    bytes
}

/// Linear address of the data. Between its pages nothing is mapped.
pub const DATA: u64 = 0x2000_0000;
/// Size of the data, unmapped pages included.
pub const DATA_SIZE: u64 = 0x6000;
/// Readable and writable pages: first and last address.
pub const READ_WRITE: [(u64, u64); 1] = [(DATA + 0x1000, DATA + 0x3000)];
/// A read-only page.
pub const READ_ONLY: (u64, u64) = (DATA + 0x4000, DATA + 0x5000);
/// Bytes of data pages, in the order writable, read-only.
pub const DATA_BYTES: usize = 0x3000;

/// What a user-mode instruction sees and changes, memory aside.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MachineState {
    /// General registers by encoding.
    pub gpr: [u64; 16],
    /// Instruction pointer.
    pub rip: u64,
    /// RFLAGS.
    pub flags: u64,
    /// x87, SSE, AVX.
    pub fpu: FpuState,
}

/// An exception.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fault {
    /// Its vector.
    pub vector: u8,
    /// Its error code, 0 if it has none.
    pub error_code: u32,
    /// For a page fault, the address.
    pub address: u64,
}

#[cfg(test)]
mod native_test;
