use std::path::Path;
use std::time::Duration;

use super::*;

fn setup() -> Setup<'static> {
    let nothing = Path::new("/nonexistent");
    Setup {
        program: nothing,
        favo: nothing,
        kernel: nothing,
        initrd: nothing,
        pieces: &[],
        scale: 1.0,
        cpus: 1,
        memory_mib: 512,
        timeout: Duration::from_secs(1),
    }
}

/// A run whose pieces are (name, seconds, checksum), its clock right.
fn run(pieces: &[(&str, f64, u64)]) -> Run {
    Run {
        outcomes: pieces
            .iter()
            .map(|&(name, seconds, checksum)| {
                (name.to_owned(), Outcome::Done { seconds, checksum })
            })
            .collect(),
        machine_seconds: 10.0,
        host: Duration::from_secs(10),
    }
}

fn compare(runs: Vec<(Machine, Run)>) -> Report {
    let mut comparison = Comparison::new(&[]);
    let machines: Vec<_> = runs.iter().map(|(machine, _)| *machine).collect();
    for (machine, run) in runs {
        comparison.add(machine, Ok(run));
    }
    comparison.report(&setup(), 1, &machines)
}

#[test]
fn medians_ratios_and_their_mean() {
    let mut runs = Vec::new();
    for seconds in [3.0, 1.0, 2.0] {
        runs.push((Machine::Native, run(&[("a", 1.0, 1), ("b", 1.0, 2)])));
        runs.push((Machine::Favo, run(&[("a", seconds, 1), ("b", 1.0, 2)])));
        runs.push((Machine::Tcg, run(&[("a", 16.0, 1), ("b", 2.0, 2)])));
    }
    let report = compare(runs);
    assert_eq!(report.problems, [""; 0]);
    assert_eq!(report.work[0].favo, Some(2.0));
    assert_eq!(report.work[0].tcg_over_favo, Some(8.0));
    let mean = report.geometric_mean_tcg_over_favo.unwrap();
    assert!((mean - 4.0).abs() < 1e-9, "{mean}");
}

#[test]
fn an_even_number_of_rounds_has_a_median() {
    assert_eq!(median(&mut [4.0, 1.0, 2.0, 100.0]), Some(3.0));
    assert_eq!(median(&mut []), None);
}

#[test]
fn a_checksum_that_differs_is_a_problem() {
    let report = compare(vec![
        (Machine::Native, run(&[("a", 1.0, 1)])),
        (Machine::Favo, run(&[("a", 1.0, 3)])),
        (Machine::Tcg, run(&[("a", 1.0, 1)])),
    ]);
    assert_eq!(report.problems.len(), 1);
    assert!(
        report.problems[0].contains("favo 0000000000000003"),
        "{}",
        report.problems[0]
    );
}

#[test]
fn a_checksum_that_changes_between_rounds_is_a_problem() {
    let report = compare(vec![
        (Machine::Favo, run(&[("a", 1.0, 1)])),
        (Machine::Favo, run(&[("a", 1.0, 2)])),
    ]);
    assert_eq!(report.problems.len(), 1);
}

#[test]
fn a_missing_result_is_a_problem() {
    let report = compare(vec![
        (Machine::Native, run(&[("a", 1.0, 1), ("b", 1.0, 2)])),
        (Machine::Favo, run(&[("a", 1.0, 1)])),
    ]);
    assert_eq!(report.problems, ["favo: no result of b"]);

    let report = Comparison::new(&["c".to_owned()]).report(&setup(), 1, &[Machine::Favo]);
    assert_eq!(report.problems.len(), 1);
}

#[test]
fn a_clock_that_is_off_by_more_than_a_tenth_is_a_problem() {
    for (seconds, right) in [(9.5, true), (10.5, true), (8.0, false), (12.0, false)] {
        let mut run = run(&[("a", 1.0, 1)]);
        run.machine_seconds = seconds;
        assert_eq!(
            compare(vec![(Machine::Favo, run)]).problems.is_empty(),
            right,
            "{seconds}"
        );
    }
}

#[test]
fn a_piece_a_machine_lacks_is_named_and_left_out_of_the_mean() {
    let mut without = run(&[("a", 1.0, 1)]);
    without.outcomes.insert(
        "b".to_owned(),
        Outcome::Unsupported {
            reason: "no AVX2".to_owned(),
        },
    );
    let report = compare(vec![
        (Machine::Favo, without),
        (Machine::Tcg, run(&[("a", 2.0, 1), ("b", 9.0, 2)])),
    ]);
    assert_eq!(report.problems, [""; 0]);
    assert_eq!(
        report.geometric_mean_tcg_over_favo.map(f64::round),
        Some(2.0)
    );
    assert!(report.to_string().contains("b not done on favo: no AVX2"));
}
