//! Images built here, and real guests from them. The slow file: it builds
//! Debian 12 and boots it several times.

use std::path::Path;
use std::process::{Output, Stdio};

use favo_e2e::{favo, has_image};

fn run(state: &Path, arguments: &[&str]) -> Output {
    let output = favo(state).args(arguments).stdin(Stdio::null()).output();
    output.unwrap()
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
    if !has_image(directory.path(), "minimal") {
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
    if !has_image(directory.path(), "debian:12") {
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
    disks_written_by_the_guest_are_sound(directory.path());
}

/// The guest makes ext4 on a raw and on a qcow2 disk and fills them; the host
/// checks both, with the tools everybody has.
fn disks_written_by_the_guest_are_sound(state: &Path) {
    let raw = state.join("data.raw");
    let qcow2 = state.join("data.qcow2");
    let made = tool(
        "qemu-img",
        &["create", "-q", "-f", "qcow2", path(&qcow2), "64M"],
    );
    let Some(made) = made else {
        println!("skipped: disks: qemu-img is not installed");
        return;
    };
    assert!(made.status.success());
    std::fs::File::create(&raw)
        .unwrap()
        .set_len(64 << 20)
        .unwrap();
    let script = "for disk in vdb vdc; do mkfs.ext4 -q /dev/$disk && mount /dev/$disk /mnt && \
                  cp -r /etc /mnt/ && echo comb > /mnt/word && umount /mnt || exit 1; done";
    let disks = ["--disk", path(&raw), "--disk", path(&qcow2)];
    let arguments = [
        &["run", "debian:12"],
        &disks[..],
        &["--", "sh", "-c", script],
    ]
    .concat();
    check(&run(state, &arguments), 0);

    let checked = tool("qemu-img", &["check", path(&qcow2)]).unwrap();
    check(&checked, 0);
    let copy = state.join("copy.raw");
    let convert = ["convert", "-O", "raw", path(&qcow2), path(&copy)];
    check(&tool("qemu-img", &convert).unwrap(), 0);
    for disk in [&raw, &copy] {
        let Some(checked) = tool("e2fsck", &["-fn", path(disk)]) else {
            println!("skipped: e2fsck is not installed");
            continue;
        };
        check(&checked, 0);
        let word = tool("debugfs", &["-R", "cat /word", path(disk)]).unwrap();
        assert_eq!(check(&word, 0), "comb\n");
    }
}

fn path(file: &Path) -> &str {
    file.to_str().unwrap()
}

/// Runs a program of the host's; `None` if it is not there. Debian keeps file
/// system tools where users don't look.
fn tool(name: &str, arguments: &[&str]) -> Option<Output> {
    let search = format!(
        "{}:/usr/sbin:/sbin",
        std::env::var("PATH").unwrap_or_default()
    );
    let output = std::process::Command::new("env")
        .arg(name)
        .args(arguments)
        .env("PATH", search)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    (output.status.code() != Some(127)).then_some(output)
}
