//! The sandbox of a machine's process: what is in force, what an intruder
//! gets, and that no list allows what nobody needs.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use favo_e2e::trace::{Trace, stopped};
use favo_e2e::{FOREVER, elf, favo, favo_program, has_image, power_off, say};
use favo_sandbox::table::{ANY, Action, own};
use favo_thread::ThreadKind;
use rustix::process::{Pid, Signal, kill_process};

const REFUSED: i32 = favo_sandbox::violation::STATUS as i32;

fn kernel(directory: &Path, code: &[u8]) -> PathBuf {
    let path = directory.join("kernel");
    fs::write(&path, elf(code)).unwrap();
    path
}

/// The confinement of each thread, by its name: capabilities, no new
/// privileges, filters.
fn confinement(process: u32) -> Vec<(String, [String; 3])> {
    let mut threads = Vec::new();
    for task in fs::read_dir(format!("/proc/{process}/task")).unwrap() {
        // A thread may end meanwhile.
        let Ok(status) = fs::read_to_string(task.unwrap().path().join("status")) else {
            continue;
        };
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap_or_default().trim().to_owned()
        };
        // The kernel's own threads for io_uring make no system calls.
        let name = field("Name:");
        if !name.starts_with("iou-") {
            threads.push((
                name,
                [field("CapEff:"), field("NoNewPrivs:"), field("Seccomp:")],
            ));
        }
    }
    threads
}

#[test]
fn every_thread_is_confined_unless_it_is_switched_off() {
    let directory = tempfile::tempdir().unwrap();
    let kernel = kernel(directory.path(), &[say("up").as_slice(), &FOREVER].concat());
    for (sandbox, filtered) in [("on", "2"), ("off", "0")] {
        let mut child = favo(directory.path())
            .args([
                "run",
                "--sandbox",
                sandbox,
                "--accel",
                "soft",
                "--cpus",
                "2",
            ])
            .args(["--memory", "16M", "--kernel"])
            .arg(&kernel)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        let threads = loop {
            let threads = confinement(child.id());
            let all = threads.iter().all(|(_, [.., seccomp])| seccomp == filtered);
            if all
                && threads
                    .iter()
                    .filter(|(name, _)| name.starts_with("vcpu-"))
                    .count()
                    == 2
            {
                break threads;
            }
            assert!(Instant::now() < deadline, "{threads:?}");
            std::thread::sleep(Duration::from_millis(20));
        };
        kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
        let status = child.wait().unwrap();
        let error = std::io::read_to_string(child.stderr.take().unwrap()).unwrap();
        assert_eq!(status.code(), Some(143), "{error}");
        if sandbox == "on" {
            for (name, [capabilities, no_new_privileges, _]) in threads {
                // CAP_NET_RAW, where echoes can't leave otherwise.
                let mask = if name == "net" { !(1u64 << 13) } else { !0 };
                let capabilities = u64::from_str_radix(&capabilities, 16).unwrap();
                assert_eq!(capabilities & mask, 0, "{name}");
                assert_eq!(no_new_privileges, "1", "{name}");
            }
        } else {
            assert!(error.contains("warning: without the sandbox"), "{error}");
        }
    }
}

#[test]
fn doctor_tells_what_is_in_force() {
    let directory = tempfile::tempdir().unwrap();
    let output = favo(directory.path())
        .args(["doctor", "-o", "json"])
        .output()
        .unwrap();
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let layers = report["sandbox"].as_array().unwrap();
    let is_in_force = |name: &str| {
        let layer = layers.iter().find(|layer| layer["layer"] == name).unwrap();
        assert!(!layer["detail"].as_str().unwrap().is_empty());
        layer["in_force"] == true
    };
    for layer in ["memory", "no new privileges", "capabilities", "seccomp"] {
        assert!(is_in_force(layer), "{layer}: {layers:?}");
    }
    println!("landlock: {}", is_in_force("landlock"));
}

/// The program that plays a thread taken over.
fn intruder() -> PathBuf {
    let built = Command::new(env!("CARGO"))
        .args([
            "build",
            "--quiet",
            "--package",
            "favo-sandbox",
            "--example",
            "intruder",
        ])
        .status();
    assert!(built.is_ok_and(|status| status.success()));
    favo_program().with_file_name("examples").join("intruder")
}

/// What the threads of a control socket do for the machine's owner: his files.
const OWNER_MAY: &[&str] = &[
    "read-file",
    "write-file",
    "read-passwords",
    "write-own-memory-file",
    "open",
    "openat2",
    "creat",
    "unlink",
    "unlinkat",
    "rename",
    "chmod",
    "truncate",
    "memfd",
    "unix-socket",
];

#[test]
fn an_intruder_is_refused_all_that_leads_out() {
    let intruder = intruder();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("secret");
    fs::write(&file, "a word").unwrap();
    let listed = Command::new(&intruder).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let names = |what: &str| -> Vec<String> {
        let lines = listed.lines().filter_map(|line| line.strip_prefix(what));
        lines.map(str::to_owned).collect()
    };
    for act in names("act ") {
        let mut answers: Vec<(String, Vec<String>)> = Vec::new();
        for kind in names("kind ") {
            if kind == "control" && OWNER_MAY.contains(&act.as_str()) {
                continue;
            }
            let output = Command::new(&intruder)
                .args([&kind, &act])
                .arg(&file)
                .stdin(Stdio::null())
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            let error = String::from_utf8_lossy(&output.stderr);
            let answer = match output.status.code() {
                Some(REFUSED) => {
                    let message = format!("a {kind} thread called");
                    assert!(error.contains(&message), "{kind} {act}: {error}");
                    "stopped".to_owned()
                }
                // The launcher makes the rings of disks; what a ring does is
                // up to Landlock.
                Some(0) if (kind.as_str(), act.as_str()) == ("launcher", "io-uring") => continue,
                // Of raw sockets only those for echoes, where there is no other.
                Some(0) if (kind.as_str(), act.as_str()) == ("network", "raw-socket") => continue,
                Some(0) if said != "done" && !said.is_empty() => said,
                status => panic!("{kind} {act}: {status:?} {said} {error}"),
            };
            match answers.iter_mut().find(|(other, _)| *other == answer) {
                Some((_, kinds)) => kinds.push(kind),
                None => answers.push((answer, vec![kind])),
            }
        }
        answers.sort_by_key(|(_, kinds)| std::cmp::Reverse(kinds.len()));
        let text: Vec<String> = answers
            .iter()
            .map(|(answer, kinds)| format!("{answer}: {}", kinds.join(" ")))
            .collect();
        println!("{act:24}{}", text.join("; "));
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), "a word");
}

/// `favo run`, watched.
fn run(state: &Path, arguments: &[&str]) -> Command {
    let mut command = favo(state);
    command.arg("run").args(arguments);
    command
}

/// Machines of every sort, watched: each call must have a rule, and each rule
/// a call or a reason.
#[test]
fn no_rule_is_idle_and_none_is_missing() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path();
    let mut trace = Trace::default();
    bare_guests(state, &mut trace);
    let is_built = has_image(state, "minimal");
    if is_built {
        disks_and_network(state, &mut trace);
        shared_network(state, &mut trace);
        control_socket(state, &mut trace);
        let shell = ["--accel", "soft", "minimal"];
        // Typed ahead: the guest's terminal keeps it until its shell reads.
        terminal(run(state, &shell), b"exit 3\n", 3, &mut trace);
    }
    println!("statuses: {:?}", trace.statuses);

    let mut idle = Vec::new();
    for rule in ANY {
        let used = ThreadKind::ALL
            .into_iter()
            .any(|kind| trace.has_used(kind, rule));
        if !used {
            idle.push(("any", rule));
        }
    }
    for kind in ThreadKind::ALL {
        for rule in own(kind) {
            if !trace.has_used(kind, rule) {
                idle.push((kind.name(), rule));
            }
        }
    }
    let mut without_reason = Vec::new();
    for (kind, rule) in idle {
        match rule.rare {
            Some(reason) => println!("not used: {kind}: {} ({reason})", rule.call.name()),
            None => without_reason.push(format!("{kind}: {rule:?}")),
        }
    }
    for kind in ThreadKind::ALL {
        let rules = favo_sandbox::table::rules(kind);
        let allowed = rules.iter().filter(|rule| rule.action == Action::Allow);
        let calls: std::collections::BTreeSet<_> = allowed.clone().map(|rule| rule.call).collect();
        println!(
            "{:10}{:3} rules, {:3} calls",
            kind.name(),
            allowed.count(),
            calls.len()
        );
    }
    assert!(trace.missing.is_empty(), "{:#?}", trace.missing);
    if is_built {
        assert!(without_reason.is_empty(), "{without_reason:#?}");
    }
}

fn bare_guests(state: &Path, trace: &mut Trace) {
    let off = kernel(
        state,
        &[say("bytes\n").as_slice(), &power_off(), &FOREVER].concat(),
    );
    let off = off.to_str().unwrap();
    let engines: &[&str] = match File::options().read(true).write(true).open("/dev/kvm") {
        Ok(_) => &["soft", "kvm"],
        Err(error) => {
            println!("skipped: KVM: {error}");
            &["soft"]
        }
    };
    for engine in engines {
        trace.run(
            run(
                state,
                &["--memory", "16M", "--accel", engine, "--kernel", off],
            ),
            |_| {},
        );
    }
    fs::rename(off, state.join("off")).unwrap();
    let forever = kernel(state, &[say("up").as_slice(), &FOREVER].concat());
    for engine in engines {
        let command = run(
            state,
            &[
                "--memory",
                "16M",
                "--cpus",
                "2",
                "--accel",
                engine,
                "--kernel",
                forever.to_str().unwrap(),
            ],
        );
        trace.run(command, |process| {
            std::thread::sleep(Duration::from_secs(3));
            kill_process(Pid::from_raw(process as i32).unwrap(), Signal::TERM).unwrap();
        });
    }
    let arguments = [
        "--memory",
        "16M",
        "--accel",
        "soft",
        "--kernel",
        forever.to_str().unwrap(),
    ];
    terminal(run(state, &arguments), b"\x1d", 93, trace);
}

/// Runs favo on a terminal, on which `keys` are typed.
fn terminal(command: Command, keys: &[u8], status: i32, trace: &mut Trace) {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap();
    let name = name.to_str().unwrap();
    let slave = File::options().read(true).write(true).open(name).unwrap();
    let size = rustix::termios::Winsize {
        ws_row: 24,
        ws_col: 80,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    rustix::termios::tcsetwinsize(&slave, size).unwrap();
    let mut master = File::from(master);
    let settings = master.try_clone().unwrap();
    let before = rustix::termios::tcgetattr(&settings).unwrap();
    let mut stopped = stopped(&command);
    stopped.stdin(slave.try_clone().unwrap());
    // Only favo has it now: the master fails when favo is gone.
    stopped.stdout(slave);
    let begin = trace.statuses.len();
    trace.run_stopped(stopped, move |_| {
        let mut said: Vec<u8> = Vec::new();
        let mut buffer = [0; 1024];
        // Its first words say that it listens.
        while said.len() < 2 {
            let count = master.read(&mut buffer).unwrap();
            said.extend(&buffer[..count]);
        }
        master.write_all(keys).unwrap();
        // Whatever else it says.
        while matches!(master.read(&mut buffer), Ok(1..)) {}
    });
    assert_eq!(trace.statuses[begin..], [status], "{:#?}", trace.missing);
    let after = rustix::termios::tcgetattr(&settings).unwrap();
    assert_eq!(format!("{before:?}"), format!("{after:?}"));
}

const DISKS_AND_NETWORK: &str = "
    for disk in vdb vdc; do
        dd if=/dev/zero of=/dev/$disk bs=64k count=64 conv=fsync 2>/dev/null
        dd if=/dev/$disk of=/dev/null bs=64k iflag=direct 2>/dev/null
    done
    dd if=/dev/zero of=/large bs=1M count=8 2>/dev/null; sync; rm /large; fstrim / 2>/dev/null
    blkdiscard /dev/vdb 2>/dev/null
    gateway=$(ip route | sed -n 's/^default via \\([0-9.]*\\) .*/\\1/p')
    ping -c 1 -q $gateway >/dev/null
    sleep 3
    for to in 192.0.2.1 2001:db8::1; do
        ping -c 1 -W 1 -q $to >/dev/null 2>&1
        echo x | timeout 1 nc -u -w 1 $to 9 >/dev/null 2>&1
    done
    timeout 3 wget -q -O /dev/null http://192.0.2.1/ 2>/dev/null
    timeout 3 wget -q -O /dev/null 'http://[2001:db8::1]/' 2>/dev/null
    timeout 3 nslookup name.example >/dev/null 2>&1
    cat >/dev/null
    dd if=/dev/urandom of=/dev/null bs=1M count=1 2>/dev/null
    exit 7
";

fn disks_and_network(state: &Path, trace: &mut Trace) {
    let raw = state.join("data.raw");
    File::create(&raw).unwrap().set_len(8 << 20).unwrap();
    let mut arguments = vec!["--accel", "soft", "--disk", raw.to_str().unwrap()];
    let qcow2 = state.join("data.qcow2");
    let made = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", qcow2.to_str().unwrap(), "8M"])
        .status();
    match made {
        Ok(status) if status.success() => arguments.extend(["--disk", qcow2.to_str().unwrap()]),
        _ => println!("skipped: qcow2: qemu-img is not installed"),
    }
    let pcap = state.join("net.pcapng");
    arguments.extend(["--pcap", pcap.to_str().unwrap()]);
    arguments.extend(["--publish", "127.0.0.1:18080:80"]);
    arguments.extend(["minimal", "--", "sh", "-c", DISKS_AND_NETWORK]);
    let before = trace.statuses.len();
    trace.run(run(state, &arguments), |_| {
        // Nobody answers in the guest.
        for _ in 0..30 {
            let _ = std::net::TcpStream::connect("127.0.0.1:18080");
            std::thread::sleep(Duration::from_millis(500));
        }
    });
    assert_eq!(trace.statuses[before..], [7], "{:#?}", trace.missing);
}

/// Asks a machine's process for something, and for nothing more in vain.
fn ask(state: &Path, arguments: &[&str]) -> bool {
    let output = favo(state).arg("vmm").args(arguments).output().unwrap();
    if !output.status.success() {
        println!("{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    output.status.success()
}

/// A machine that is saved, cloned and stopped, and one that was restored.
/// What the socket's own threads do is not watched: they have no list.
fn control_socket(state: &Path, trace: &mut Trace) {
    let (socket, snapshot) = (state.join("control"), state.join("snapshot"));
    let paths = [&socket, &snapshot].map(|path| path.to_str().unwrap());
    let [socket, snapshot] = paths;
    let stop = |process| {
        // It is open when the machine ends.
        let _idle = std::os::unix::net::UnixStream::connect(socket).unwrap();
        if !ask(state, &["stop", socket]) {
            kill_process(Pid::from_raw(process as i32).unwrap(), Signal::KILL).unwrap();
        }
    };
    let guest = "dd if=/dev/zero of=/x bs=1M count=64; rm /x; echo 3 >/proc/sys/vm/drop_caches
        sleep 300";
    let before = trace.statuses.len();
    let mut command = run(state, &["--accel", "soft", "--control", socket]);
    command.args(["--memory", "256M", "minimal", "--", "sh", "-c", guest]);
    trace.run(command, |process| {
        let begin = Instant::now();
        while !ask(state, &["status", socket]) && begin.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(200));
        }
        // Until the guest has given memory back.
        std::thread::sleep(Duration::from_secs(15));
        assert!(ask(state, &["snapshot", socket, snapshot]));
        assert!(ask(state, &["fork", socket]));
        let clone = format!("{socket}.1");
        assert!(ask(state, &["status", &clone]));
        assert!(ask(state, &["stop", &clone]));
        stop(process);
    });
    let mut command = favo(state);
    command.args(["vmm", "serve", "--accel", "soft", "--restore", snapshot]);
    command.arg(socket);
    trace.run(command, |process| {
        let begin = Instant::now();
        while !ask(state, &["exec", socket, "--", "true"])
            && begin.elapsed() < Duration::from_secs(60)
        {
            std::thread::sleep(Duration::from_millis(200));
        }
        let threads = confinement(process);
        for (name, [.., seccomp]) in threads {
            assert_eq!(seccomp, "2", "{name}");
        }
        stop(process);
    });
    assert_eq!(trace.statuses[before..], [125, 93], "{:#?}", trace.missing);
}

fn shared_network(state: &Path, trace: &mut Trace) {
    let guest = |name: &'static str, script: &'static str| {
        let mut command = run(
            state,
            &[
                "--accel",
                "soft",
                "--network",
                "lab",
                "--name",
                name,
                "minimal",
                "--",
                "sh",
                "-c",
            ],
        );
        command.arg(script);
        command
    };
    let mut other = guest("one", "sleep 40")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let ping =
        "for i in 1 2 3 4 5 6 7 8; do ping -c 1 -W 1 one >/dev/null && exit 5; sleep 1; done";
    let before = trace.statuses.len();
    trace.run(guest("two", ping), |_| {});
    assert_eq!(trace.statuses[before..], [5], "{:#?}", trace.missing);
    other.kill().unwrap();
    other.wait().unwrap();
}
