//! Images built here, and real guests from them. The slow file: it builds
//! Debian 12 and boots it several times.

use std::path::Path;
use std::process::{Output, Stdio};

use favo_e2e::favo;

fn run(state: &Path, arguments: &[&str]) -> Output {
    let output = favo(state).args(arguments).stdin(Stdio::null()).output();
    output.unwrap()
}

/// Builds an image, or says why that can't be done here.
fn build(state: &Path, image: &str) -> bool {
    let output = run(state, &["image", "build", image]);
    let error = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        return true;
    }
    let is_missing = error.contains("not installed") || error.contains("not configured");
    assert!(is_missing, "{error}");
    println!("skipped: {error}");
    false
}

fn check(output: &Output, status: i32) -> String {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{text}\n{error}");
    text
}

#[test]
fn minimal_runs_commands() {
    let directory = tempfile::tempdir().unwrap();
    if !build(directory.path(), "minimal") {
        return;
    }
    let script = "echo out; echo err >&2; exit 7";
    let output = run(
        directory.path(),
        &["run", "minimal", "--", "sh", "-c", script],
    );
    assert_eq!(check(&output, 7), "out\n");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "err\n");
    let output = run(
        directory.path(),
        &["run", "minimal", "--", "/no/such/program"],
    );
    check(&output, 127);
}

#[test]
fn debian_12_runs_commands() {
    let directory = tempfile::tempdir().unwrap();
    if !build(directory.path(), "debian:12") {
        return;
    }
    let script = "apt-get --version && nproc && dmesg | tail -3; exit 7";
    let output = run(
        directory.path(),
        &["run", "debian:12", "--cpus", "4", "--", "sh", "-c", script],
    );
    let text = check(&output, 7);
    assert!(text.starts_with("apt "), "{text}");
    assert!(text.contains("\n4\n"), "{text}");
}
