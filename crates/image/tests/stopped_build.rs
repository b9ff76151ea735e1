//! A build that is stopped, politely or not, leaves nothing behind: no file, no mount, no
//! process. Skipped, with the reason printed, where the tools are missing.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use favo_image::build::{BuildOptions, build};
use favo_image::{ImageError, ImageName, Progress, Store};
use favo_types::ByteCount;

/// Prints stages; from the stage `stop_at` on it wants to stop.
struct Stopper {
    stop_at: &'static str,
    stop: AtomicBool,
}

impl Progress for Stopper {
    fn stage(&self, name: &str, _: Option<ByteCount>) {
        println!("stage: {name}");
        if name == self.stop_at {
            self.stop.store(true, Ordering::Relaxed);
        }
    }
    fn done(&self, _: ByteCount) {}
    fn note(&self, _: &str) {}
    fn is_cancelled(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

fn stopped_at(store: &Store, stop_at: &'static str) -> Result<(), ImageError> {
    let progress = Stopper {
        stop_at,
        stop: false.into(),
    };
    let name: ImageName = "debian:12".parse().unwrap();
    build(store, &name, &BuildOptions::default(), &progress).map(|_| ())
}

fn is_skipped(result: &Result<(), ImageError>) -> bool {
    match result {
        Err(e @ (ImageError::MissingTools { .. } | ImageError::NoAptSource { .. })) => {
            println!("skipped: {e}");
            true
        }
        _ => false,
    }
}

/// Command lines of processes and mounts that name `state`.
fn traces(state: &Path) -> Vec<String> {
    let state = state.to_string_lossy().into_owned();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let own = std::process::id().to_string();
    let processes = fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            let is_other = name.parse::<u32>().is_ok() && name != own;
            is_other.then(|| fs::read(entry.path().join("cmdline")).unwrap_or_default())
        });
    let processes = processes.map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
    let mounts = mounts.lines().map(str::to_string);
    processes
        .chain(mounts)
        .filter(|t| t.contains(&state))
        .collect()
}

fn assert_nothing_left(store: &Store) {
    let state = store.state_directory();
    let until = Instant::now() + Duration::from_secs(15);
    while !traces(state).is_empty() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(traces(state), Vec::<String>::new());
    for directory in ["tmp", "blobs/sha256"] {
        let left: Vec<_> = fs::read_dir(state.join(directory)).unwrap().collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

#[test]
fn a_stopped_build_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path().join("state")).unwrap();
    for stop_at in [
        "downloading packages",
        "installing packages",
        "making the disk",
    ] {
        let result = stopped_at(&store, stop_at);
        if is_skipped(&result) {
            return;
        }
        assert!(
            matches!(result, Err(ImageError::Cancelled)),
            "{stop_at}: {result:?}"
        );
        assert_nothing_left(&store);
    }
}

/// The process the next test kills.
#[test]
fn child_that_builds() {
    let Some(state) = std::env::var_os("FAVO_TEST_BUILD_CHILD") else {
        return;
    };
    let store = Store::open(state).unwrap();
    if is_skipped(&stopped_at(&store, "never")) {
        println!("stage: skipped");
    }
}

#[test]
fn a_killed_build_leaves_nothing_for_long() {
    use std::io::{BufRead, BufReader};
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path().join("state")).unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_that_builds", "--nocapture"])
        .env("FAVO_TEST_BUILD_CHILD", store.state_directory())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    for line in output.lines().map_while(Result::ok) {
        if line.contains("stage: skipped") {
            println!("skipped: the build's tools are missing");
            child.wait().unwrap();
            return;
        }
        if line.contains("stage: installing packages") {
            break;
        }
    }
    std::thread::sleep(Duration::from_millis(300));
    child.kill().unwrap();
    child.wait().unwrap();
    // Its tools end by themselves; the directory goes with the next change of the store.
    let state = store.state_directory();
    let until = Instant::now() + Duration::from_secs(30);
    while !traces(state).is_empty() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(100));
    }
    store.clean().unwrap();
    assert_nothing_left(&store);
}
