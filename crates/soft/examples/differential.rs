//! Runs the differential tester for as long as wanted:
//! `cargo run --release -p favo-soft --features difftest --example differential -- CASES [SEED] [LONGEST] [translate]`

use favo_soft::difftest::{self, Interpreter};

/// Cases between two lines of output.
const ROUND: u64 = 10_000_000;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args()
        .skip(1)
        .take(3)
        .map(|text| text.parse::<u64>());
    let cases = arguments.next().transpose()?.unwrap_or(ROUND);
    let mut seed = arguments.next().transpose()?.unwrap_or(0x5eed);
    let longest = arguments.next().transpose()?.unwrap_or(1).clamp(1, 8);
    let translates = std::env::args()
        .nth(4)
        .is_some_and(|word| word == "translate");
    let codes = difftest::codes();
    let mut interpreter = if translates {
        Interpreter::translating()?
    } else {
        Interpreter::new()?
    };
    let mut done = 0;
    let mut failures = 0;
    while done < cases {
        let round = ROUND.min(cases - done);
        let summary = difftest::run(&mut interpreter, &codes, seed, round, longest as usize)?;
        done += round;
        for failure in &summary.failures {
            println!("{}", failure.report);
        }
        failures += summary.failures.len();
        println!("{done} cases, {failures} differences, last seed {seed:#x}");
        seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    }
    if failures == 0 {
        Ok(())
    } else {
        Err(format!("{failures} differences").into())
    }
}
