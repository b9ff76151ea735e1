//! Instances: a real daemon, real machines, and what survives when the daemon
//! is killed.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant};

use favo_e2e::{favo, has_image};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// A state directory with the small image, and its daemon.
struct Cloud {
    state: tempfile::TempDir,
    daemon: Child,
}

impl Cloud {
    /// None, with the reason printed, where the image can't be built.
    fn new() -> Option<Self> {
        let state = tempfile::tempdir().unwrap();
        if !has_image(state.path(), "minimal") {
            return None;
        }
        let daemon = start_daemon(state.path());
        Some(Self { state, daemon })
    }

    fn try_run(&self, arguments: &[&str]) -> Output {
        let mut command = favo(self.state.path());
        command.args(arguments).stdin(Stdio::null());
        command.output().unwrap()
    }

    /// What favo prints; it must succeed.
    fn run(&self, arguments: &[&str]) -> String {
        let output = self.try_run(arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {error}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn status(&self, arguments: &[&str]) -> Option<i32> {
        self.try_run(arguments).status.code()
    }

    fn show(&self, name: &str) -> Value {
        serde_json::from_str(&self.run(&["show", name, "-o", "json"])).unwrap()
    }

    fn pid(&self, name: &str) -> i32 {
        self.show(name)["status"]["pid"].as_i64().unwrap() as i32
    }

    /// kill -9, and another one.
    fn replace_daemon(&mut self) {
        self.kill_daemon();
        self.daemon = start_daemon(self.state.path());
    }

    fn kill_daemon(&mut self) {
        self.daemon.kill().unwrap();
        self.daemon.wait().unwrap();
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        for (pid, _) in machines(self.state.path()) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

fn start_daemon(state: &Path) -> Child {
    let mut child = favo(state)
        .args(["daemon", "--accel", "soft"])
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let begin = Instant::now();
    while !favo(state)
        .args(["list"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap()
        .success()
    {
        assert!(child.try_wait().unwrap().is_none(), "the daemon ended");
        assert!(begin.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(20));
    }
    child
}

/// The machines' processes of a state: each with its instance's uid.
fn machines(state: &Path) -> Vec<(Pid, String)> {
    let instances = state.join("instances");
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let pid = entry.file_name().to_string_lossy().parse().ok();
        let Some(pid) = pid.and_then(Pid::from_raw) else {
            continue;
        };
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let arguments: Vec<_> = command.split(|byte| *byte == 0).collect();
        let last = arguments.iter().rev().find(|argument| !argument.is_empty());
        let path = PathBuf::from(String::from_utf8_lossy(last.unwrap_or(&&[][..])).into_owned());
        if arguments.contains(&&b"boot"[..]) && path.parent() == Some(&instances) {
            found.push((
                pid,
                path.file_name().unwrap().to_string_lossy().into_owned(),
            ));
        }
    }
    found
}

#[test]
fn an_instance_is_made_used_and_deleted() {
    let Some(cloud) = Cloud::new() else { return };
    cloud.run(&[
        "launch", "minimal", "web", "--memory", "128M", "-l", "role=web",
    ]);
    cloud.run(&["wait", "web", "--for", "agent"]);
    let output = cloud.try_run(&[
        "exec",
        "web",
        "--",
        "sh",
        "-c",
        "hostname; echo no >&2; exit 9",
    ]);
    assert_eq!(output.status.code(), Some(9));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "web\n");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "no\n");
    files_go_in_and_out(&cloud);
    // What it wrote is there after it was stopped.
    cloud.run(&[
        "exec",
        "web",
        "--",
        "sh",
        "-c",
        "echo kept >/root/file; sync",
    ]);
    cloud.run(&["stop", "web"]);
    assert_eq!(cloud.show("web")["status"]["state"], "stopped");
    assert_eq!(cloud.status(&["exec", "web", "--", "true"]), Some(4));
    cloud.run(&["start", "web"]);
    cloud.run(&["wait", "web", "--for", "agent"]);
    assert_eq!(
        cloud.run(&["exec", "web", "--", "cat", "/root/file"]),
        "kept\n"
    );
    cloud.run(&["pause", "web"]);
    assert_eq!(cloud.show("web")["status"]["state"], "paused");
    cloud.run(&["resume", "web"]);
    assert!(cloud.run(&["logs", "web"]).contains("Linux version"));
    // It reboots by itself.
    let before = cloud.pid("web");
    cloud.try_run(&["exec", "web", "--", "reboot"]);
    let begin = Instant::now();
    while cloud.show("web")["status"]["pid"]
        .as_i64()
        .is_none_or(|pid| pid as i32 == before)
    {
        assert!(begin.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(100));
    }
    // Shells complete its name.
    let mut complete = favo(cloud.state.path());
    complete
        .args(["--", "favo", "stop", "w"])
        .env("COMPLETE", "bash");
    let output = complete.env("_CLAP_COMPLETE_INDEX", "2").output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "web");
    // Names are said in every form.
    assert_eq!(cloud.run(&["list", "-o", "name"]), "web\n");
    let yaml = cloud.run(&["list", "-o", "yaml"]);
    assert!(yaml.starts_with("- name: web\n"), "{yaml}");
    let csv = cloud.run(&["list", "-o", "csv", "-l", "role=web"]);
    assert!(csv.starts_with("name,state,image,"), "{csv}");
    assert_eq!(
        cloud.run(&["list", "-o", "json", "-l", "role=db"]).trim(),
        "[]"
    );
    let missing = cloud.try_run(&["show", "wep"]);
    assert_eq!(missing.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("did you mean web?"));
    cloud.run(&["set", "web", "--protect=true"]);
    assert_eq!(cloud.status(&["delete", "web"]), Some(4));
    cloud.run(&["set", "web", "--protect=false"]);
    cloud.run(&["delete", "web"]);
    assert!(machines(cloud.state.path()).is_empty());
    cloud.run(&["undelete", "web"]);
    cloud.run(&["delete", "--purge", "web"]);
    let left = std::fs::read_dir(cloud.state.path().join("instances")).unwrap();
    assert_eq!(left.count(), 0);
}

#[test]
fn an_environment_is_applied_exported_and_applied_again() {
    let Some(cloud) = Cloud::new() else { return };
    let file = cloud.state.path().join("office.yaml");
    let write = |cpus: u32, memory: &str| {
        let text = format!(
            "instances:\n- name: mail\n  spec: {{image: minimal, power: stopped, cpus: {cpus}, \
             memory: {memory}}}\n- name: portal\n  spec: {{image: minimal, power: stopped}}\n"
        );
        std::fs::write(&file, text).unwrap();
    };
    let path = file.to_str().unwrap();
    write(1, "512M");
    assert!(
        cloud
            .run(&["apply", "-f", path, "--dry-run"])
            .contains("mail is created")
    );
    assert_eq!(cloud.run(&["list", "-o", "name"]), "");
    cloud.run(&["apply", "-f", path]);
    assert_eq!(cloud.show("mail")["spec"]["memory"], 512 << 20);
    write(2, "512M");
    let said = cloud.run(&["apply", "-f", path]);
    assert_eq!(said, "mail: cpus: 1 → 2\nportal is as it should be\n");
    let exported = cloud.run(&["export"]);
    std::fs::write(&file, exported).unwrap();
    let said = cloud.run(&["apply", "-f", path]);
    assert_eq!(said, "mail is as it should be\nportal is as it should be\n");
    std::fs::write(&file, "instances: [{name: mail, spec: {image: other}}]").unwrap();
    assert_eq!(cloud.status(&["apply", "-f", path]), Some(4));
    std::fs::write(
        &file,
        "instances: [{name: mail, spec: {image: other, cpu: 1}}]",
    )
    .unwrap();
    assert_eq!(cloud.status(&["apply", "-f", path]), Some(1));
}

fn files_go_in_and_out(cloud: &Cloud) {
    let here = tempfile::tempdir().unwrap();
    let tree = here.path().join("tree");
    std::fs::create_dir_all(tree.join("deep/er")).unwrap();
    let large: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
    std::fs::write(tree.join("deep/er/large"), &large).unwrap();
    std::os::unix::fs::symlink("deep/er/large", tree.join("link")).unwrap();
    let path = |name: &str| here.path().join(name).to_str().unwrap().to_owned();
    // Beside nothing it gets the name, in a directory it keeps its own.
    cloud.run(&["cp", &path("tree"), "web:/root/wood"]);
    cloud.run(&["cp", &path("tree"), "web:/root/wood"]);
    let inside = cloud.run(&["exec", "web", "--", "ls", "/root/wood"]);
    assert_eq!(inside, "deep\nlink\ntree\n");
    cloud.run(&["cp", "web:/root/wood", &path("back")]);
    let back = here.path().join("back");
    assert!(std::fs::read(back.join("tree/deep/er/large")).unwrap() == large);
    let link = std::fs::read_link(back.join("link")).unwrap();
    assert_eq!(link, Path::new("deep/er/large"));
    cloud.run(&["cp", "web:/root/wood/link", here.path().to_str().unwrap()]);
    let missing = cloud.try_run(&["cp", "web:/root/none", &path("none")]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("none"));
    assert!(!here.path().join("none").exists());
    assert_eq!(cloud.status(&["cp", "a", "b"]), Some(1));
    // Nothing is left beside.
    let left = std::fs::read_dir(here.path()).unwrap();
    let left: BTreeSet<_> = left.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["back", "link", "tree"].map(Into::into).into());
}

/// The fields programs may depend on: they are only added to.
#[test]
fn the_fields_of_an_instance_are_stable() {
    let Some(cloud) = Cloud::new() else { return };
    cloud.run(&["create", "minimal", "web"]);
    let shown = cloud.show("web");
    let names = |value: &Value| -> BTreeSet<String> {
        value.as_object().unwrap().keys().cloned().collect()
    };
    let expect = |value: &Value, fields: &[&str]| {
        let fields = fields.iter().map(|field| (*field).to_owned()).collect();
        let missing: BTreeSet<String> = &fields - &names(value);
        assert!(missing.is_empty(), "{missing:?} of {value}");
    };
    expect(
        &shown,
        &["name", "uid", "revision", "created", "spec", "status"],
    );
    expect(
        &shown["spec"],
        &[
            "image",
            "cpus",
            "memory",
            "network",
            "publish",
            "rate",
            "power",
            "restart",
            "autostart",
            "protect",
            "labels",
        ],
    );
    expect(&shown["status"], &["state", "needs_restart"]);
    assert_eq!(shown["status"]["state"], "stopped");
    assert_eq!(shown["spec"]["memory"], 1 << 30);
}

#[test]
fn machines_outlive_their_daemon() {
    let Some(mut cloud) = Cloud::new() else {
        return;
    };
    cloud.run(&["launch", "minimal", "one", "--memory", "128M"]);
    cloud.run(&["launch", "minimal", "two", "--memory", "128M"]);
    cloud.run(&["wait", "one", "two", "--for", "agent"]);
    let (one, two) = (cloud.pid("one"), cloud.pid("two"));
    cloud.kill_daemon();
    // One is killed while nobody looks; its successor starts it again.
    kill_process(Pid::from_raw(two).unwrap(), Signal::KILL).unwrap();
    cloud.daemon = start_daemon(cloud.state.path());
    assert_eq!(cloud.pid("one"), one);
    assert_eq!(cloud.run(&["exec", "one", "--", "hostname"]), "one\n");
    cloud.run(&["wait", "two", "--for", "agent"]);
    assert_ne!(cloud.pid("two"), two);
    // A daemon that found a machine hears of its end.
    cloud.try_run(&["exec", "one", "--", "poweroff"]);
    cloud.run(&["wait", "one", "--for", "stopped"]);
    assert_eq!(
        cloud.show("one")["status"]["message"],
        "the guest powered off"
    );
    // Two daemons over one state can't be.
    let second = cloud.try_run(&["daemon"]);
    assert!(!second.status.success());
    assert!(String::from_utf8_lossy(&second.stderr).contains("in use"));
}

/// Numbers that are the same in every run (Knuth's MMIX generator).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

/// The daemon is killed at random moments while instances are made, started,
/// stopped and deleted. `FAVO_KILLS` says how often, 20 if nobody does.
#[test]
fn a_storm_of_kills_leaves_everything_in_order() {
    let Some(mut cloud) = Cloud::new() else {
        return;
    };
    let kills = std::env::var("FAVO_KILLS").ok();
    let kills: u32 = kills.and_then(|kills| kills.parse().ok()).unwrap_or(20);
    let mut dice = Dice(7);
    for _ in 0..kills {
        for _ in 0..=dice.roll(4) {
            let name = format!("i{}", dice.roll(4));
            let verb = match dice.roll(8) {
                0..=2 => "launch",
                3 => "start",
                4 => "stop",
                5 => "restart",
                6 => "delete",
                _ => "undelete",
            };
            // It may be in no state for it.
            match verb {
                "launch" => {
                    let size = ["--memory", "96M", "--no-wait"];
                    cloud.try_run(&[&["launch", "minimal", &name][..], &size].concat());
                }
                "delete" if dice.roll(2) == 0 => {
                    cloud.try_run(&["delete", "--purge", "--no-wait", &name]);
                }
                "stop" => drop(cloud.try_run(&["stop", "--force", "--no-wait", &name])),
                verb => drop(cloud.try_run(&[verb, "--no-wait", &name])),
            }
        }
        std::thread::sleep(Duration::from_millis(dice.roll(400)));
        cloud.replace_daemon();
    }
    settle(&cloud);
    let listed: Value = serde_json::from_str(&cloud.run(&["list", "--all", "-o", "json"])).unwrap();
    let instances = listed.as_array().unwrap();
    println!("{} instances after {kills} kills", instances.len());
    let uid = |instance: &Value| instance["uid"].as_str().unwrap().to_owned();
    let known: BTreeSet<String> = instances.iter().map(uid).collect();
    let directories = std::fs::read_dir(cloud.state.path().join("instances")).unwrap();
    let directories: BTreeSet<String> = directories
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    assert!(
        directories.is_subset(&known),
        "disks nobody has: {directories:?} {listed}"
    );
    let up: BTreeSet<String> = instances
        .iter()
        .filter(|instance| instance["status"]["state"] == "running")
        .map(uid)
        .collect();
    let processes = machines(cloud.state.path());
    let running: BTreeSet<String> = processes.iter().map(|(_, uid)| uid.clone()).collect();
    assert_eq!(
        processes.len(),
        running.len(),
        "two machines of one instance"
    );
    assert_eq!(running, up, "{listed}");
    let tasks: Value = serde_json::from_str(&cloud.run(&["tasks", "-o", "json"])).unwrap();
    for task in tasks.as_array().unwrap() {
        assert_ne!(task["state"], "running", "{task}");
    }
}

/// Until no instance is on its way somewhere.
fn settle(cloud: &Cloud) {
    let begin = Instant::now();
    loop {
        let listed = cloud.run(&["list", "--all", "-o", "json"]);
        let listed: Value = serde_json::from_str(&listed).unwrap();
        let is_settled = |instance: &Value| {
            let state = instance["status"]["state"].as_str().unwrap();
            ["running", "stopped", "trashed", "failed"].contains(&state)
        };
        let tasks: Value = serde_json::from_str(&cloud.run(&["tasks", "-o", "json"])).unwrap();
        let mut tasks = tasks.as_array().unwrap().iter();
        if listed.as_array().unwrap().iter().all(is_settled)
            && tasks.all(|task| task["state"] != "running")
        {
            return;
        }
        assert!(begin.elapsed() < Duration::from_secs(180), "{listed:#}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn shells_and_man_have_what_they_need() {
    let directory = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let output = favo(directory.path())
            .args(["completion", shell])
            .output()
            .unwrap();
        let script = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success() && script.contains("COMPLETE"),
            "{script}"
        );
    }
    let pages = directory.path().join("man");
    let status = favo(directory.path())
        .arg("man")
        .arg(&pages)
        .status()
        .unwrap();
    assert!(status.success());
    let launch = std::fs::read_to_string(pages.join("favo-launch.1")).unwrap();
    assert!(launch.starts_with(".") && launch.contains("favo launch debian:12 web"));
}
