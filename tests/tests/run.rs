//! `favo run --kernel` with guests of a few instructions: exit statuses, bytes,
//! signals, bad input.

use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant};

use favo_e2e::{FOREVER, TRIPLE_FAULT, elf, favo, out, power_off, say};
use rustix::process::{Pid, Signal, kill_process};

struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
        }
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.directory.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let output = favo(&self.directory.path().join("state"))
            .arg("run")
            .args(arguments)
            .stdin(Stdio::null())
            .output();
        output.unwrap()
    }

    fn run_code(&self, code: &[u8], more: &[&str]) -> Output {
        let kernel = self.file("kernel", &elf(code));
        let kernel = kernel.to_str().unwrap();
        self.run(&[&["--kernel", kernel, "--memory", "16M"], more].concat())
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn the_status_tells_how_the_machine_ended() {
    let place = Place::new();
    for (code, status, said) in [
        (power_off(), 0, ""),
        (out(0xcf9, 6), 92, "reset"),
        (out(0x505, 1), 90, "panicked"),
        (TRIPLE_FAULT.to_vec(), 91, "triple fault"),
    ] {
        let code = [say("bytes\n").as_slice(), &code, &FOREVER].concat();
        for engine in ["auto", "soft"] {
            let output = place.run_code(&code, &["--accel", engine]);
            let error = text(&output.stderr);
            assert_eq!(output.status.code(), Some(status), "{error}");
            assert_eq!(text(&output.stdout), "bytes\n");
            assert!(error.contains(said), "{error}");
        }
    }
}

#[test]
fn bad_input_is_refused_with_a_reason() {
    let place = Place::new();
    let junk = place.file("junk", b"certainly not a kernel");
    let junk = junk.to_str().unwrap();
    let disk = place.file("disk", &[0; 4096]);
    let disk = disk.to_str().unwrap();
    let forever = &FOREVER[..];
    for (output, status, reason) in [
        (place.run(&["--kernel", junk]), 1, "junk"),
        (
            place.run(&["--kernel", "/no/such/file"]),
            1,
            "/no/such/file",
        ),
        (
            place.run(&["nothing:1", "--", "true"]),
            125,
            "there is no image",
        ),
        (
            place.run_code(forever, &["--memory", "1024T"]),
            2,
            "cannot be used multiple times",
        ),
        (place.run_code(forever, &["--cpus", "0"]), 1, "processors"),
        (
            place.run_code(forever, &["--initrd", "/no/such/initrd"]),
            1,
            "/no/such/initrd",
        ),
        (
            place.run_code(forever, &["--disk", "/no/such/disk"]),
            1,
            "/no/such/disk",
        ),
        (
            place.run_code(forever, &["--disk", disk, "--disk", disk]),
            1,
            "in use",
        ),
    ] {
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{error}");
        assert!(error.contains(reason), "{error}");
        assert!(output.stdout.is_empty());
    }
    let kernel = place.file("kernel", &elf(forever));
    let kernel = kernel.to_str().unwrap();
    let output = place.run(&["--kernel", kernel, "--memory", "1024T"]);
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("more than the host's"), "{error}");
}

fn spawn_forever(place: &Place) -> Child {
    let code = [say("up").as_slice(), &FOREVER].concat();
    let kernel = place.file("kernel", &elf(&code));
    let mut child = favo(&place.directory.path().join("state"))
        .args(["run", "--memory", "16M", "--kernel"])
        .arg(kernel)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = [0; 2];
    child
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut said)
        .unwrap();
    assert_eq!(&said, b"up");
    child
}

#[test]
fn a_signal_stops_the_guest() {
    for (signal, status) in [(Signal::TERM, 143), (Signal::INT, 130), (Signal::HUP, 129)] {
        let place = Place::new();
        let mut child = spawn_forever(&place);
        let begin = Instant::now();
        kill_process(Pid::from_child(&child), signal).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(status));
        assert!(begin.elapsed() < Duration::from_secs(10));
        let left: Vec<_> = std::fs::read_dir(place.directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(left, ["kernel"]);
    }
}

#[test]
fn doctor_names_an_engine_that_was_measured() {
    let place = Place::new();
    let output = favo(place.directory.path())
        .args(["doctor", "-o", "json"])
        .output()
        .unwrap();
    assert!(output.status.success());
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let engines = report["engines"].as_array().unwrap();
    let picked = engines
        .iter()
        .find(|engine| engine["engine"] == report["engine"])
        .unwrap();
    assert!(picked["instructions_per_second"].as_u64().unwrap() > 0);
}
