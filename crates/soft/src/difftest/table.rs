//! Which instructions a guest is offered and does not get.

use iced_x86::{Code, CpuidFeature, EncodingKind};

use super::{Interpreter, Random, generate};

/// Forms of features that the host has and favo offers, which the interpreter
/// does not know. Those with a reason not to be there are left out.
pub fn missing(interpreter: &mut Interpreter) -> Vec<Code> {
    let mut random = Random::new(1);
    Code::values()
        .filter(|code| is_offered(*code) && absent(*code).is_none())
        .filter(|code| {
            let made = (0..64).find_map(|_| generate::instruction(*code, &mut random));
            made.is_some_and(|made| !interpreter.knows(&made.bytes))
        })
        .collect()
}

/// `code` exists in 64-bit mode and the features it needs are offered.
fn is_offered(code: Code) -> bool {
    let op_code = code.op_code();
    op_code.is_instruction()
        && op_code.mode64()
        && matches!(code.encoding(), EncodingKind::Legacy | EncodingKind::VEX)
        && code.cpuid_features().iter().all(|feature| {
            generate::host_has(*feature)
                || matches!(
                    feature,
                    CpuidFeature::CPUID
                        | CpuidFeature::TSC
                        | CpuidFeature::RDTSCP
                        | CpuidFeature::MSR
                        | CpuidFeature::SYSCALL
                        | CpuidFeature::SEP
                        | CpuidFeature::FXSR
                        | CpuidFeature::XSAVE
                        | CpuidFeature::XSAVEOPT
                        | CpuidFeature::XSAVEC
                        | CpuidFeature::FSGSBASE
                        | CpuidFeature::INVPCID
                        | CpuidFeature::RDRAND
                        | CpuidFeature::RDSEED
                        | CpuidFeature::CLFSH
                        | CpuidFeature::CLFLUSHOPT
                        | CpuidFeature::CLWB
                        | CpuidFeature::SMAP
                        | CpuidFeature::RDPID
                )
        })
}

/// Why a form is not there on purpose.
fn absent(code: Code) -> Option<&'static str> {
    use iced_x86::Mnemonic::*;
    match code.mnemonic() {
        Ud0 | Ud1 | Ud2 => Some("defined to be undefined"),
        Fdisi | Feni | Fsetpm | Frstpm | Fstdw | Fstsg => Some("387 and earlier only"),
        Rdpmc => Some("no performance counters are offered"),
        Reservednop => Some("#UD on AMD's processors with a register"),
        Rsm => Some("there is no system management mode"),
        Getsec | Umonitor => Some("not offered"),
        _ => None,
    }
}
