//! KVM's CPUID as favo's table, and back.
//!
//! What a guest can switch on but the canonical state can't carry is not
//! offered, or the guest would lose it when its machine is moved.

use favo_accel::AccelError;
use favo_accel::cpuid::{CpuidResult, CpuidTable};
use kvm_bindings::{
    CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2,
};
use kvm_ioctls::{Cap, Kvm};

use crate::error::host;

/// x87, SSE and AVX: the extended states `FpuState` holds.
const XCR0_CARRIED: u32 = 0b111;
/// Size of the XSAVE area with these states, standard format
/// (SDM vol. 1, 13.4): legacy region, header, upper halves of YMM.
const XSAVE_AREA: u32 = 512 + 64 + 256;

/// Leaves of features whose state is not carried: performance counters (AH),
/// trace (14H), AMX tiles (1DH, 1EH), AVX10 (24H), SVM (8000_000AH), AMD's
/// performance counters (8000_0022H), memory encryption (8000_001FH).
const DROPPED_LEAVES: [u32; 8] = [
    0xa,
    0x14,
    0x1d,
    0x1e,
    0x24,
    0x8000_000a,
    0x8000_0022,
    0x8000_001f,
];

/// Everything this host's KVM can offer a guest of favo's.
pub(crate) fn supported(kvm: &Kvm) -> Result<CpuidTable, AccelError> {
    let entries = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(host(
            "asking what CPUID KVM supports (KVM_GET_SUPPORTED_CPUID)",
        ))?;
    let mut table = CpuidTable::new();
    for entry in entries.as_slice() {
        let index = (entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0).then_some(entry.index);
        table.set(entry.function, index, result(entry));
    }
    table.update(1, None, |leaf| {
        leaf.ecx |= 1 << 31;
        if kvm.check_extension(Cap::TscDeadlineTimer) {
            leaf.ecx |= 1 << 24;
        }
    });
    Ok(only_what_state_carries(&table))
}

fn only_what_state_carries(table: &CpuidTable) -> CpuidTable {
    let mut carried = CpuidTable::new();
    for leaf in table.leaves() {
        let mut result = leaf.result;
        let subleaf = leaf.index.unwrap_or(0);
        match leaf.function {
            function if DROPPED_LEAVES.contains(&function) => continue,
            // VMX; performance capabilities.
            1 => result.ecx &= !(1 << 5 | 1 << 15),
            7 => drop_from_leaf_7(subleaf, &mut result),
            0xd => match subleaf {
                0 => {
                    result.eax &= XCR0_CARRIED;
                    result.ecx = XSAVE_AREA;
                    result.edx = 0;
                }
                1 => {
                    // XSAVES needs IA32_XSS; XFD belongs to AMX.
                    result.eax &= !(1 << 3 | 1 << 4);
                    result.ecx = 0;
                    result.edx = 0;
                }
                2 => {}
                _ => continue,
            },
            // SVM, IBS, SKINIT, LWP, performance counters.
            0x8000_0001 => {
                result.ecx &= !(1 << 2 | 1 << 10 | 1 << 12 | 1 << 15 | 1 << 23 | 1 << 24 | 1 << 28);
            }
            // VIRT_SSBD: its MSR is not carried.
            0x8000_0008 => result.ebx &= !(1 << 25),
            // KVM's asynchronous page faults; poll control needs a default of 1.
            0x4000_0001 => result.eax &= !(1 << 4 | 1 << 10 | 1 << 14),
            _ => {}
        }
        carried.set(leaf.function, leaf.index, result);
    }
    carried
}

/// Leaf 7: MPX, AVX-512, processor trace, PKU, WAITPKG, CET, AMX, user
/// interrupts, PKS, and everything of the later subleaves that has state.
fn drop_from_leaf_7(subleaf: u32, result: &mut CpuidResult) {
    const EBX: u32 = 1 << 14
        | 1 << 16
        | 1 << 17
        | 1 << 21
        | 1 << 25
        | 1 << 26
        | 1 << 27
        | 1 << 28
        | 1 << 30
        | 1 << 31
        | 1 << 2;
    const ECX: u32 =
        1 << 1 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 11 | 1 << 12 | 1 << 14 | 1 << 31;
    const EDX: u32 = 1 << 2
        | 1 << 3
        | 1 << 5
        | 1 << 8
        | 1 << 19
        | 1 << 20
        | 1 << 22
        | 1 << 23
        | 1 << 24
        | 1 << 25;
    match subleaf {
        0 => {
            result.ebx &= !EBX;
            result.ecx &= !ECX;
            result.edx &= !EDX;
        }
        1 => {
            // AVX-512 BF16, AMX FP16, FRED, LKGS, LAM; AMX complex, AVX10.
            result.eax &= !(1 << 5 | 1 << 17 | 1 << 18 | 1 << 21 | 1 << 26);
            result.edx &= !(1 << 8 | 1 << 18 | 1 << 19);
        }
        _ => {}
    }
}

/// A guest's table in KVM's form.
pub(crate) fn to_kvm(table: &CpuidTable) -> Result<CpuId, AccelError> {
    let entries: Vec<kvm_cpuid_entry2> = table
        .leaves()
        .iter()
        .map(|leaf| kvm_cpuid_entry2 {
            function: leaf.function,
            index: leaf.index.unwrap_or(0),
            flags: leaf.index.map_or(0, |_| KVM_CPUID_FLAG_SIGNIFCANT_INDEX),
            eax: leaf.result.eax,
            ebx: leaf.result.ebx,
            ecx: leaf.result.ecx,
            edx: leaf.result.edx,
            ..Default::default()
        })
        .collect();
    CpuId::from_entries(&entries).map_err(|_| {
        AccelError::Unsupported(format!(
            "a CPUID table of {} leaves: KVM takes {KVM_MAX_CPUID_ENTRIES}",
            entries.len()
        ))
    })
}

fn result(entry: &kvm_cpuid_entry2) -> CpuidResult {
    CpuidResult {
        eax: entry.eax,
        ebx: entry.ebx,
        ecx: entry.ecx,
        edx: entry.edx,
    }
}

#[cfg(test)]
#[path = "cpuid_test.rs"]
mod test;
