//! Which instructions a guest has, by its CPUID.

use favo_accel::cpuid::CpuidTable;
use iced_x86::{Instruction, Mnemonic};

/// Registers of a CPUID result.
#[derive(Clone, Copy)]
enum Register {
    Ebx,
    Ecx,
    Edx,
}

fn bit(cpuid: &CpuidTable, leaf: u32, register: Register, bit: u32) -> bool {
    let result = cpuid.get(leaf, 0);
    let word = match register {
        Register::Ebx => result.ebx,
        Register::Ecx => result.ecx,
        Register::Edx => result.edx,
    };
    word >> bit & 1 != 0
}

const EXTENDED: u32 = 0x8000_0001;

pub(super) fn has_bmi1(cpuid: &CpuidTable) -> bool {
    bit(cpuid, 7, Register::Ebx, 3)
}

pub(super) fn has_lzcnt(cpuid: &CpuidTable) -> bool {
    bit(cpuid, EXTENDED, Register::Ecx, 5)
}

/// Whether CPUID offers an instruction that is not in every 64-bit processor
/// and that this crate executes itself. Vector instructions are asked for
/// elsewhere.
pub(super) fn available(cpuid: &CpuidTable, instruction: &Instruction) -> bool {
    use Mnemonic::{
        Adcx, Adox, Andn, Bextr, Blsi, Blsmsk, Blsr, Bzhi, Clac, Clflush, Clflushopt, Clwb,
        Cmpxchg8b, Cmpxchg16b, Crc32, Invpcid, Lfence, Mfence, Movbe, Movnti, Mulx, Pdep, Pext,
        Popcnt, Rdpid, Rdrand, Rdseed, Rdtscp, Rorx, Sarx, Sfence, Shlx, Shrx, Stac, Wbnoinvd,
    };
    use Register::{Ebx, Ecx, Edx};
    let (leaf, register, number) = match instruction.mnemonic() {
        Andn | Bextr | Blsi | Blsmsk | Blsr => (7, Ebx, 3),
        Bzhi | Mulx | Pdep | Pext | Rorx | Sarx | Shlx | Shrx => (7, Ebx, 8),
        Invpcid => (7, Ebx, 10),
        Rdseed => (7, Ebx, 18),
        Adcx | Adox => (7, Ebx, 19),
        Stac | Clac => (7, Ebx, 20),
        Clflushopt => (7, Ebx, 23),
        Clwb => (7, Ebx, 24),
        Rdpid => (7, Ecx, 22),
        Cmpxchg16b => (1, Ecx, 13),
        Crc32 => (1, Ecx, 20),
        Movbe => (1, Ecx, 22),
        Popcnt => (1, Ecx, 23),
        Rdrand => (1, Ecx, 30),
        Cmpxchg8b => (1, Edx, 8),
        Clflush => (1, Edx, 19),
        Sfence => (1, Edx, 25),
        Lfence | Mfence | Movnti => (1, Edx, 26),
        Rdtscp => (EXTENDED, Edx, 27),
        Wbnoinvd => (0x8000_0008, Ebx, 9),
        _ => return true,
    };
    bit(cpuid, leaf, register, number)
}
