//! The interpreter and the translator against the host's CPU; see
//! `favo_soft::difftest`.
//!
//! `FAVO_DIFF_CASES` and `FAVO_DIFF_SEED` change how many cases run and which.
//! For hundreds of millions there is the example of the same name.

use favo_soft::difftest::{self, Interpreter, Summary};

fn number(name: &str, default: u64) -> u64 {
    let value = std::env::var(name).ok();
    value.and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn check(name: &str, mut interpreter: Interpreter, longest: usize, cases: u64) -> Summary {
    let seed = number("FAVO_DIFF_SEED", 0x5eed);
    let cases = number("FAVO_DIFF_CASES", cases);
    let codes = difftest::codes();
    let summary =
        difftest::run(&mut interpreter, &codes, seed, cases, longest).expect("fixed mappings");
    println!(
        "{name}: {} forms, {} cases, {} of them faults, seed {seed:#x}, not encodable: {:?}",
        codes.len(),
        summary.cases,
        summary.faults,
        summary.not_encodable,
    );
    for failure in &summary.failures {
        println!("{}", failure.report);
    }
    assert!(
        summary.failures.is_empty(),
        "{} forms differ from the host",
        summary.failures.len()
    );
    summary
}

fn interpreting() -> Interpreter {
    Interpreter::new().expect("a megabyte of memory")
}

fn translating() -> Interpreter {
    Interpreter::translating().expect("a megabyte of memory")
}

#[test]
fn every_form_agrees_with_the_host() {
    let summary = check("single instructions", interpreting(), 1, 1_000_000);
    assert!(summary.faults < summary.cases / 2);
}

#[test]
fn sequences_agree_with_the_host() {
    check("sequences", interpreting(), 8, 200_000);
}

#[test]
fn every_translated_form_agrees_with_the_host() {
    check("translated instructions", translating(), 1, 1_000_000);
}

#[test]
fn translated_blocks_agree_with_the_host() {
    check("translated blocks", translating(), 8, 500_000);
}

#[test]
fn nothing_that_is_advertised_is_missing() {
    let mut interpreter = Interpreter::new().expect("a megabyte of memory");
    let missing = difftest::missing(&mut interpreter);
    assert!(missing.is_empty(), "not implemented: {missing:?}");
}
