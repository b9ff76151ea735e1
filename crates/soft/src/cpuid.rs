//! What the software processor can offer a guest.
//!
//! Its family and vendor are the host's, because vector instructions run on
//! the host's units and undefined flags are the host's; its features are
//! those that both the host has and this engine implements. It is not subject
//! to the host's speculation bugs as far as its guest can tell, and says so:
//! a guest would otherwise pay for mitigations that protect nothing here.

use favo_accel::cpuid::{CpuidResult, CpuidTable, host};

/// Leaf 1, ECX: SSE3 and others come from [`crate::native`].
mod basic_ecx {
    pub const CX16: u32 = 1 << 13;
    pub const PCID: u32 = 1 << 17;
    pub const X2APIC: u32 = 1 << 21;
    pub const MOVBE: u32 = 1 << 22;
    pub const POPCNT: u32 = 1 << 23;
    pub const TSC_DEADLINE: u32 = 1 << 24;
    pub const XSAVE: u32 = 1 << 26;
    pub const RDRAND: u32 = 1 << 30;
    pub const HYPERVISOR: u32 = 1 << 31;
}

/// Leaf 1, EDX: VME is not there.
const BASIC_EDX: u32 = 1 << 0 // FPU
    | 1 << 2 // DE
    | 1 << 3 // PSE
    | 1 << 4 // TSC
    | 1 << 5 // MSR
    | 1 << 6 // PAE
    | 1 << 8 // CX8
    | 1 << 9 // APIC
    | 1 << 11 // SEP
    | 1 << 12 // MTRR
    | 1 << 13 // PGE
    | 1 << 15 // CMOV
    | 1 << 16 // PAT
    | 1 << 17 // PSE-36
    | 1 << 19 // CLFSH
    | 1 << 24; // FXSR

/// Leaf 7, EBX: what needs nothing of the host.
const EXTENDED_EBX: u32 = 1 << 0 // FSGSBASE
    | 1 << 1 // TSC_ADJUST
    | 1 << 3 // BMI1
    | 1 << 7 // SMEP
    | 1 << 8 // BMI2
    | 1 << 9 // ERMS
    | 1 << 10 // INVPCID
    | 1 << 18 // RDSEED
    | 1 << 19 // ADX
    | 1 << 20 // SMAP
    | 1 << 23 // CLFLUSHOPT
    | 1 << 24; // CLWB
/// Leaf 7, ECX: UMIP, RDPID.
const EXTENDED_ECX: u32 = 1 << 2 | 1 << 22;
/// Leaf 7, EDX: FSRM.
const EXTENDED_EDX: u32 = 1 << 4;
/// Leaf 7, EDX on Intel: SPEC_CTRL and ARCH_CAPABILITIES.
const EXTENDED_EDX_INTEL: u32 = 1 << 26 | 1 << 29;

/// Leaf 8000_0001H, EDX: SYSCALL, NX, 1 GiB pages, RDTSCP, LM.
const AMD_EDX: u32 = 1 << 11 | 1 << 20 | 1 << 26 | 1 << 27 | 1 << 29;
/// Leaf 8000_0001H, ECX: LAHF in 64-bit mode, LZCNT, PREFETCHW.
const AMD_ECX: u32 = 1 << 0 | 1 << 5 | 1 << 8;
/// Bits of 8000_0001H EDX that repeat leaf 1 on AMD.
const AMD_EDX_REPEATED: u32 = 0x0183_f3ff;
/// Leaf 8000_0021H, EAX: LFENCE serializes, null selectors clear the base,
/// automatic IBRS, SRSO_NO.
const AMD_EXTENDED_2: u32 = 1 << 2 | 1 << 6 | 1 << 8 | 1 << 29;
/// Leaf 8000_0021H, ECX: not subject to transient scheduler attacks.
const AMD_TSA_NO: u32 = 1 << 1 | 1 << 2;
/// Leaf 8000_0008H, EBX: SSB_NO.
const SSB_NO: u32 = 1 << 26;

/// Linear and physical addresses of 48 bits.
const PHYSICAL_BITS: u32 = 48;
const ARAT: u32 = 1 << 2;
const INVARIANT_TSC: u32 = 1 << 8;

/// "KVMKVMKVM": guests then use kvmclock and skip calibrations.
const KVM_SIGNATURE: [u32; 3] = [0x4b4d_564b, 0x564b_4d56, 0x0000_004d];
/// No I/O delay, kvmclock, stable kvmclock.
const KVM_FEATURES: u32 = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 24;

/// Every leaf the engine can offer on this host.
pub(crate) fn supported() -> CpuidTable {
    let mut table = CpuidTable::new();
    let vendor = host(0, 0);
    let amd = matches!(vendor.ebx, 0x6874_7541 | 0x6f67_7948);
    table.set(0, None, CpuidResult { eax: 0xd, ..vendor });
    table.set(1, None, basic());
    table.set(6, None, CpuidResult { eax: ARAT, ..Default::default() });
    let edx = EXTENDED_EDX | if amd { 0 } else { EXTENDED_EDX_INTEL };
    let extended =
        CpuidResult { eax: 1, ebx: EXTENDED_EBX, ecx: EXTENDED_ECX, edx };
    table.set(7, Some(0), extended);
    table.set(7, Some(1), CpuidResult::default());
    paravirtual(&mut table);
    high(&mut table, amd);
    for bit in crate::native::features() {
        let index = (bit.leaf == 7).then_some(bit.subleaf);
        table.update(bit.leaf, index, |result| {
            let register = match bit.register {
                0 => &mut result.eax,
                1 => &mut result.ebx,
                2 => &mut result.ecx,
                _ => &mut result.edx,
            };
            *register |= 1 << bit.bit;
        });
    }
    xsave(&mut table);
    table
}

fn basic() -> CpuidResult {
    use basic_ecx::*;
    CpuidResult {
        eax: host(1, 0).eax,
        // CLFLUSH lines of 64 bytes; ids are filled in per processor.
        ebx: 8 << 8,
        ecx: CX16
            | PCID
            | X2APIC
            | MOVBE
            | POPCNT
            | TSC_DEADLINE
            | XSAVE
            | RDRAND
            | HYPERVISOR,
        edx: BASIC_EDX,
    }
}

fn paravirtual(table: &mut CpuidTable) {
    let [ebx, ecx, edx] = KVM_SIGNATURE;
    table.set(0x4000_0000, None, CpuidResult { eax: 0x4000_0001, ebx, ecx, edx });
    table.set(0x4000_0001, None, CpuidResult { eax: KVM_FEATURES, ..Default::default() });
}

fn high(table: &mut CpuidTable, amd: bool) {
    let vendor = if amd { host(0x8000_0000, 0) } else { CpuidResult::default() };
    let highest = if amd { 0x8000_0021 } else { 0x8000_0008 };
    table.set(0x8000_0000, None, CpuidResult { eax: highest, ..vendor });
    let edx = AMD_EDX | if amd { BASIC_EDX & AMD_EDX_REPEATED } else { 0 };
    let eax = if amd { host(0x8000_0001, 0).eax } else { 0 };
    table.set(0x8000_0001, None, CpuidResult { eax, ebx: 0, ecx: AMD_ECX, edx });
    // The processor's name.
    for leaf in 0x8000_0002..=0x8000_0004 {
        table.set(leaf, None, host(leaf, 0));
    }
    if amd {
        for leaf in [0x8000_0005, 0x8000_0006] {
            table.set(leaf, None, host(leaf, 0));
        }
    }
    table.set(0x8000_0007, None, CpuidResult { edx: INVARIANT_TSC, ..Default::default() });
    let addresses = PHYSICAL_BITS | 48 << 8;
    let ebx = if amd { SSB_NO } else { 0 };
    table.set(0x8000_0008, None, CpuidResult { eax: addresses, ebx, ecx: 0, edx: 0 });
    if amd {
        let eax = AMD_EXTENDED_2;
        let ecx = AMD_TSA_NO;
        table.set(0x8000_0021, None, CpuidResult { eax, ecx, ..Default::default() });
    }
}

/// Leaf DH: the XSAVE area in its standard layout.
fn xsave(table: &mut CpuidTable) {
    let components = crate::native::xcr0();
    let avx = components & 4 != 0;
    let size = if avx { 576 + 256 } else { 576 };
    let eax = components as u32;
    table.set(0xd, Some(0), CpuidResult { eax, ebx: size, ecx: size, edx: 0 });
    // XSAVEOPT, XSAVEC, XGETBV with ECX = 1.
    table.set(0xd, Some(1), CpuidResult { eax: 7, ebx: size, ecx: 0, edx: 0 });
    if avx {
        table.set(0xd, Some(2), CpuidResult { eax: 256, ebx: 576, ecx: 0, edx: 0 });
    }
}
