use super::*;

fn read(lines: &[(u64, &str)]) -> Progress {
    let start = Instant::now();
    let mut console = Console::default();
    for &(millis, line) in lines {
        let progress = console.line(start + Duration::from_millis(millis), line);
        if progress != Progress::Running {
            return progress;
        }
    }
    Progress::Running
}

#[test]
fn a_run_has_outcomes_and_both_clocks() {
    let progress = read(&[
        (0, "[    0.21] PCI: something\r"),
        (10, "integer 9.0 00000000000000ff"),
        (1000, "bench: begin\r"),
        (1500, "x87 0.500000 c7fd558c46075e8a\r"),
        (1600, "[    2.0] clocksource: a message"),
        (
            1700,
            "matmul unsupported the processor has no AVX2 and FMA\r",
        ),
        (2000, "bench: end 1.020000\r"),
    ]);
    let Progress::Complete(run) = progress else {
        panic!("{progress:?}");
    };
    assert_eq!(run.machine_seconds, 1.02);
    assert_eq!(run.host, Duration::from_secs(1));
    assert_eq!(
        run.outcomes.into_iter().collect::<Vec<_>>(),
        [
            (
                "matmul".to_owned(),
                Outcome::Unsupported {
                    reason: "the processor has no AVX2 and FMA".to_owned()
                }
            ),
            (
                "x87".to_owned(),
                Outcome::Done {
                    seconds: 0.5,
                    checksum: 0xc7fd_558c_4607_5e8a
                }
            ),
        ]
    );
}

#[test]
fn a_run_without_an_end_is_not_complete() {
    assert_eq!(
        read(&[
            (0, "bench: begin"),
            (1, "x87 0.5 c7fd558c46075e8a"),
            (2, "bench: end soon")
        ]),
        Progress::Running
    );
    assert_eq!(read(&[(0, "bench: end 1.0")]), Progress::Running);
}

#[test]
fn what_the_program_says_failed_is_a_failure() {
    assert_eq!(
        read(&[(0, "bench: failed: mmap: Out of memory")]),
        Progress::Failed("mmap: Out of memory".to_owned())
    );
}

#[test]
fn damaged_lines_are_no_outcomes() {
    for line in [
        "x87",
        "x87 0.5",
        "x87 0.5 123",
        "x87 -1 c7fd558c46075e8a",
        "x87 NaN c7fd558c46075e8a",
        "[ 1.0] c7fd558c46075e8a",
        "x87 0.5 c7fd558c46075e8a [ 1.0] message",
    ] {
        assert_eq!(outcome(line), None, "{line}");
    }
}
