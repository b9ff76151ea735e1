//! What the host's units offer, and with it what a guest may be offered.

use std::sync::LazyLock;

use iced_x86::{Code, CpuidFeature, Mnemonic};

/// A bit of CPUID: leaf, subleaf, register (0 to 3: EAX to EDX), bit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CpuidBit {
    /// EAX on input.
    pub leaf: u32,
    /// ECX on input.
    pub subleaf: u32,
    /// Result register: 0 EAX, 1 EBX, 2 ECX, 3 EDX.
    pub register: u8,
    /// Bit number.
    pub bit: u8,
}

const fn bit(leaf: u32, subleaf: u32, register: u8, bit: u8) -> CpuidBit {
    CpuidBit {
        leaf,
        subleaf,
        register,
        bit,
    }
}

/// The features that run on the host's units, by their CPUID bits. Those a
/// dependency of which is absent are absent too.
const FEATURES: [(CpuidFeature, CpuidBit, Needs); 20] = {
    use CpuidFeature as F;
    use Needs::{Avx, Nothing};
    [
        (F::FPU, bit(1, 0, 3, 0), Nothing),
        (F::MMX, bit(1, 0, 3, 23), Nothing),
        (F::SSE, bit(1, 0, 3, 25), Nothing),
        (F::SSE2, bit(1, 0, 3, 26), Nothing),
        (F::SSE3, bit(1, 0, 2, 0), Nothing),
        (F::PCLMULQDQ, bit(1, 0, 2, 1), Nothing),
        (F::SSSE3, bit(1, 0, 2, 9), Nothing),
        (F::FMA, bit(1, 0, 2, 12), Avx),
        (F::SSE4_1, bit(1, 0, 2, 19), Nothing),
        (F::SSE4_2, bit(1, 0, 2, 20), Nothing),
        (F::AES, bit(1, 0, 2, 25), Nothing),
        (F::AVX, bit(1, 0, 2, 28), Avx),
        (F::F16C, bit(1, 0, 2, 29), Avx),
        (F::AVX2, bit(7, 0, 1, 5), Avx),
        (F::SHA, bit(7, 0, 1, 29), Nothing),
        (F::GFNI, bit(7, 0, 2, 8), Nothing),
        (F::VAES, bit(7, 0, 2, 9), Avx),
        (F::VPCLMULQDQ, bit(7, 0, 2, 10), Avx),
        (F::AVX_VNNI, bit(7, 1, 0, 4), Avx),
        (F::SSE4A, bit(0x8000_0001, 0, 2, 6), Nothing),
    ]
};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Needs {
    Nothing,
    /// The host's OS must save YMM registers.
    Avx,
}

static HOST: LazyLock<Vec<(CpuidFeature, CpuidBit)>> = LazyLock::new(|| {
    let avx = std::arch::is_x86_feature_detected!("avx");
    FEATURES
        .iter()
        .filter(|(_, bit, needs)| host_has(*bit) && (avx || *needs == Needs::Nothing))
        .map(|(feature, bit, _)| (*feature, *bit))
        .collect()
});

/// Whether the host reports `bit`.
fn host_has(bit: CpuidBit) -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    let highest = __cpuid(bit.leaf & 0x8000_0000).eax;
    if highest < bit.leaf {
        return false;
    }
    let result = __cpuid_count(bit.leaf, bit.subleaf);
    let word = [result.eax, result.ebx, result.ecx, result.edx][usize::from(bit.register & 3)];
    word >> bit.bit & 1 != 0
}

/// The CPUID bits of the features that work because the host has them:
/// x87, MMX, SSE, AVX and their kin. What a guest's CPUID may offer of these
/// is this and nothing else.
pub fn features() -> impl Iterator<Item = CpuidBit> {
    HOST.iter().map(|(_, bit)| *bit)
}

/// The host has AVX and its OS saves YMM registers.
pub fn host_has_avx() -> bool {
    HOST.iter()
        .any(|(feature, _)| *feature == CpuidFeature::AVX)
}

/// The host's vendor is AMD, or Hygon, whose processors are AMD's design.
pub fn host_is_amd() -> bool {
    static AMD: LazyLock<bool> = LazyLock::new(|| {
        let leaf = std::arch::x86_64::__cpuid(0);
        let name = [leaf.ebx, leaf.edx, leaf.ecx]
            .map(u32::to_le_bytes)
            .concat();
        name == b"AuthenticAMD" || name == b"HygonGenuine"
    });
    *AMD
}

/// XCR0 bits a guest may set: x87 and SSE, and AVX if the host has it.
pub fn xcr0() -> u64 {
    if host_has_avx() { 7 } else { 3 }
}

/// Whether a processor with these CPUID registers has all of the features in
/// this list that `code` needs.
pub fn offered(code: Code, cpuid: impl Fn(u32, u32) -> [u32; 4]) -> bool {
    code.cpuid_features().iter().all(|feature| {
        let known = FEATURES.iter().find(|(known, ..)| known == feature);
        known.is_none_or(|(_, bit, _)| {
            let word = cpuid(bit.leaf, bit.subleaf)[usize::from(bit.register & 3)];
            word >> bit.bit & 1 != 0
        })
    })
}

/// The host has every feature that `code` needs, and it is one of those in
/// this list.
pub fn supports(code: Code) -> bool {
    use CpuidFeature as F;
    let features = code.cpuid_features();
    !features.is_empty()
        && features.iter().all(|feature| {
            // Parts of every 64-bit processor's x87.
            matches!(
                *feature,
                F::FPU287 | F::FPU387 | F::CMOV | F::INTEL8086 | F::INTEL386 | F::X64
            ) || HOST.iter().any(|(known, _)| known == feature)
        })
}

/// x87 instructions, FISTTP included.
pub fn is_x87(code: Code) -> bool {
    use CpuidFeature as F;
    code.mnemonic() == Mnemonic::Fisttp
        || code
            .cpuid_features()
            .iter()
            .any(|f| matches!(f, F::FPU | F::FPU287 | F::FPU387))
}

/// Instructions that must not run natively: they show the host's x87 pointers,
/// touch more than one address, or are simpler in Rust.
pub fn is_emulated(code: Code) -> bool {
    use Mnemonic::*;
    matches!(
        code.mnemonic(),
        Fldcw
            | Fnstcw
            | Fstcw
            | Fnstsw
            | Fstsw
            | Fnclex
            | Fclex
            | Fninit
            | Finit
            | Fnstenv
            | Fstenv
            | Fldenv
            | Fnsave
            | Fsave
            | Frstor
            | Wait
            | Feni
            | Fneni
            | Fdisi
            | Fndisi
            | Fsetpm
            | Fnsetpm
            | Frstpm
            | Fnop
            | Emms
            | Ldmxcsr
            | Stmxcsr
            | Vldmxcsr
            | Vstmxcsr
            | Vzeroupper
            | Vzeroall
            | Maskmovq
            | Maskmovdqu
            | Vmaskmovdqu
            | Vmaskmovps
            | Vmaskmovpd
            | Vpmaskmovd
            | Vpmaskmovq
            | Vgatherdps
            | Vgatherdpd
            | Vgatherqps
            | Vgatherqpd
            | Vpgatherdd
            | Vpgatherdq
            | Vpgatherqd
            | Vpgatherqq
    )
}

/// The host has `feature`, and it is one of those that run natively.
#[cfg(any(test, feature = "difftest"))]
pub fn host_supports(feature: CpuidFeature) -> bool {
    HOST.iter().any(|(known, _)| *known == feature)
}
