//! Says what a failing case was, in a form that a person can replay.

use iced_x86::{Formatter, Instruction, IntelFormatter};

use super::{Failure, MachineState, Outcome};

/// Everything about a failing case.
pub struct Case<'a> {
    pub seed: u64,
    pub number: u64,
    pub bytes: &'a [u8],
    pub instructions: &'a [Instruction],
    pub state: &'a MachineState,
    pub differences: &'a [String],
    pub host: &'a Outcome,
    pub soft: &'a Outcome,
}

/// Formats it.
pub fn failure(case: &Case<'_>) -> Failure {
    let mut formatter = IntelFormatter::new();
    let mut lines = Vec::new();
    for instruction in case.instructions {
        let mut text = String::new();
        formatter.format(instruction, &mut text);
        lines.push(format!("{text} ({:?})", instruction.code()));
    }
    let title = lines.join("; ");
    let hex: String = case.bytes.iter().map(|b| format!("{b:02x}")).collect();
    let mut report = format!(
        "{title}\n  bytes {hex}, seed {:#x}, case {}\n",
        case.seed, case.number
    );
    for difference in case.differences {
        report += &format!("  {difference}\n");
    }
    let gpr = case.state.gpr.map(|v| format!("{v:#x}")).join(" ");
    report += &format!("  before: gpr {gpr}, flags {:#x}\n", case.state.flags);
    let fpu = &case.state.fpu;
    report += &format!(
        "  mxcsr {:#x}, fcw {:#x}, fsw {:#x}, ftw {:#x}\n",
        fpu.mxcsr, fpu.fcw, fpu.fsw, fpu.ftw
    );
    for n in registers(case, |i, n| i.op_register(n).is_st()) {
        report += &format!("  st{n} {:02x?}\n", fpu.st[n]);
    }
    for n in registers(case, |i, n| {
        i.op_register(n).is_xmm() || i.op_register(n).is_ymm()
    }) {
        report += &format!("  ymm{n} {:02x?}\n", fpu.ymm[n]);
    }
    report += &format!(
        "  after: host rip {:#x} fault {:x?}, soft rip {:#x} fault {:x?}\n",
        case.host.state.rip, case.host.fault, case.soft.state.rip, case.soft.fault
    );
    Failure { title, report }
}

/// Numbers of the register operands that `wanted` picks.
fn registers(case: &Case<'_>, wanted: impl Fn(&Instruction, u32) -> bool) -> Vec<usize> {
    let mut numbers: Vec<usize> = case
        .instructions
        .iter()
        .flat_map(|i| (0..i.op_count()).map(move |n| (i, n)))
        .filter(|(i, n)| wanted(i, *n))
        .map(|(i, n)| i.op_register(n).number())
        .collect();
    numbers.sort_unstable();
    numbers.dedup();
    numbers
}
