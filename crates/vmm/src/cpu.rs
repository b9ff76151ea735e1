//! What each processor of a machine says of itself.
//!
//! An engine offers leaves; a machine shows its guest those, with what differs
//! from processor to processor filled in: ids, and how many there are. The
//! topology is one package of as many cores as there are processors, without
//! hyperthreads (SDM vol. 3, 9.9; APM vol. 3, E.4).

use favo_accel::VcpuId;
use favo_accel::cpuid::{CpuidResult, CpuidTable};

/// Leaf 1, ECX: a hypervisor is there.
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1, EDX: the count of logical processors is valid.
const HTT: u32 = 1 << 28;
/// Leaf 8000_0001H, ECX: HTT means cores, not hyperthreads.
const CMP_LEGACY: u32 = 1 << 1;
/// Physical address bits of a processor that doesn't say (APM vol. 3, E.4.7).
const DEFAULT_ADDRESS_BITS: u32 = 36;

/// Leaf 0BH, ECX bits 15:8: what a level consists of.
const LEVEL_THREAD: u32 = 1 << 8;
const LEVEL_CORE: u32 = 2 << 8;

/// The CPUID table of processor `id` of `count`, from what the engine offers.
pub fn table(offered: &CpuidTable, id: VcpuId, count: u32) -> CpuidTable {
    let mut table = offered.clone();
    let id = id.0;
    // Bits of an APIC id that tell processors of the package apart.
    let id_bits = count.next_power_of_two().trailing_zeros();

    table.update(1, None, |leaf| {
        leaf.ebx = leaf.ebx & 0xffff | (1u32 << id_bits).min(255) << 16 | id.min(255) << 24;
        leaf.ecx |= HYPERVISOR;
        leaf.edx = leaf.edx & !HTT | if count > 1 { HTT } else { 0 };
    });
    if table.get(0, 0).eax < 0xb {
        table.update(0, None, |leaf| leaf.eax = 0xb);
    }
    for function in [0xb, 0x1f] {
        table.remove(function);
    }
    let level = |shift, processors, kind| CpuidResult {
        eax: shift,
        ebx: processors,
        ecx: kind,
        edx: id,
    };
    table.set(0xb, Some(0), level(0, 1, LEVEL_THREAD));
    table.set(0xb, Some(1), level(id_bits, count, LEVEL_CORE | 1));
    // Beyond the last level only the number of the level and the id are there.
    table.set(0xb, Some(2), level(0, 0, 2));

    share_caches(&mut table, 4, count, true);
    share_caches(&mut table, 0x8000_001d, count, false);
    table.update(0x8000_0001, None, |leaf| {
        leaf.ecx = leaf.ecx & !CMP_LEGACY | if count > 1 { CMP_LEGACY } else { 0 };
    });
    table.update(0x8000_0008, None, |leaf| {
        leaf.ecx = id_bits << 12 | (count - 1).min(0xff);
    });
    // Core id, one thread each; node 0 of one.
    table.update(0x8000_001e, None, |leaf| {
        *leaf = CpuidResult {
            eax: id,
            ebx: id & 0xff,
            ecx: 0,
            edx: 0,
        };
    });
    table
}

/// How many physical address bits the processor has.
pub fn physical_address_bits(offered: &CpuidTable) -> u32 {
    match offered.get(0x8000_0008, 0).eax & 0xff {
        0 => DEFAULT_ADDRESS_BITS,
        bits => bits,
    }
}

/// Registers that list features, one bit each: leaf, subleaf, which register,
/// and the bits of it that are not a matter of what the engine can do: what
/// the machine or the operating system sets.
const FEATURES: [(u32, u32, Register, u32); 11] = [
    // The hypervisor's own bit, and OSXSAVE.
    (1, 0, Register::Ecx, HYPERVISOR | 1 << 27),
    (1, 0, Register::Edx, HTT),
    (7, 0, Register::Ebx, 0),
    // OSPKE.
    (7, 0, Register::Ecx, 1 << 4),
    (7, 0, Register::Edx, 0),
    (7, 1, Register::Eax, 0),
    (0xd, 0, Register::Eax, 0),
    (0xd, 1, Register::Eax, 0),
    (0x8000_0001, 0, Register::Ecx, CMP_LEGACY),
    (0x8000_0001, 0, Register::Edx, 0),
    (0x8000_0007, 0, Register::Edx, 0),
];

#[derive(Clone, Copy, Debug)]
enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

impl Register {
    fn of(self, result: &CpuidResult) -> u32 {
        match self {
            Self::Eax => result.eax,
            Self::Ebx => result.ebx,
            Self::Ecx => result.ecx,
            Self::Edx => result.edx,
        }
    }
}

/// What a processor with the table `shown` promised its guest and an engine
/// that offers `offered` does not have: `CPUID 7:0 EBX bit 5`, and so on.
pub fn missing(shown: &CpuidTable, offered: &CpuidTable) -> Vec<String> {
    let mut missing = Vec::new();
    for (function, index, register, ignored) in FEATURES {
        let promised = register.of(&shown.get(function, index));
        let there = register.of(&offered.get(function, index));
        let lacking = promised & !there & !ignored;
        let bits = (0..32).filter(|bit| lacking >> bit & 1 != 0);
        let register = format!("{register:?}").to_uppercase();
        missing.extend(bits.map(|bit| format!("CPUID {function:x}:{index} {register} bit {bit}")));
    }
    missing
}

/// What `offered` and `other` both have: a machine shown this can move between
/// the two. What is no list of features is as in `offered`.
pub fn common(offered: &CpuidTable, other: &CpuidTable) -> CpuidTable {
    let mut table = offered.clone();
    for (function, index, register, _) in FEATURES {
        let there = register.of(&other.get(function, index));
        for index in [None, Some(index)] {
            table.update(function, index, |result| match register {
                Register::Eax => result.eax &= there,
                Register::Ebx => result.ebx &= there,
                Register::Ecx => result.ecx &= there,
                Register::Edx => result.edx &= there,
            });
        }
    }
    table
}

/// Caches of the first and second level are a core's own, the third is
/// everyone's. `cores`: whether the leaf counts the package's cores, too
/// (leaf 4 does, AMD's 8000_001DH doesn't).
fn share_caches(table: &mut CpuidTable, function: u32, count: u32, cores: bool) {
    let leaves: Vec<_> = table
        .leaves()
        .iter()
        .filter(|leaf| leaf.function == function && leaf.result.eax & 0x1f != 0)
        .copied()
        .collect();
    for leaf in leaves {
        table.update(function, leaf.index, |result| {
            let level = result.eax >> 5 & 7;
            let sharing = if level >= 3 { count - 1 } else { 0 };
            result.eax = result.eax & 0x3fff | sharing.min(0xfff) << 14;
            if cores {
                result.eax |= (count - 1).min(0x3f) << 26;
            }
        });
    }
}

#[cfg(test)]
#[path = "cpu_test.rs"]
mod test;
