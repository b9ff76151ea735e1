//! Snapshots of real guests, through the favo program.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use favo_e2e::{FOREVER, elf, favo, has_image, out, say};

const PATIENCE: Duration = Duration::from_secs(180);

/// A place for a test's files; its machines are ended with it.
struct Place {
    directory: tempfile::TempDir,
    state: PathBuf,
    machines: Vec<Child>,
}

impl Drop for Place {
    fn drop(&mut self) {
        // Clones are nobody's children here.
        let entries = std::fs::read_dir(self.directory.path())
            .into_iter()
            .flatten();
        for path in entries.flatten().map(|entry| entry.path()) {
            if std::os::unix::net::UnixStream::connect(&path).is_ok() {
                self.vmm(&["stop", utf8(&path)]);
            }
        }
        for machine in &mut self.machines {
            let _ = machine.kill();
            let _ = machine.wait();
        }
    }
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("state");
        std::fs::create_dir(&state).unwrap();
        Self {
            directory,
            state,
            machines: Vec::new(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn start(&mut self, output: &Path, arguments: &[&str]) -> usize {
        let file = std::fs::File::create(output).unwrap();
        let child = favo(&self.state)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap();
        self.machines.push(child);
        self.machines.len() - 1
    }

    fn vmm(&self, arguments: &[&str]) -> Output {
        favo(&self.state)
            .arg("vmm")
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// What `favo vmm` says; it must succeed.
    fn ok(&self, arguments: &[&str]) -> String {
        let output = self.vmm(arguments);
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            text(&output.stderr)
        );
        text(&output.stdout)
    }

    /// What `favo vmm` complains about; it must fail.
    fn refused(&self, arguments: &[&str]) -> String {
        let output = self.vmm(arguments);
        assert!(!output.status.success(), "{arguments:?}");
        text(&output.stderr)
    }

    fn exit_of(&mut self, machine: usize) -> Option<i32> {
        self.machines[machine].wait().unwrap().code()
    }

    /// A process that waits for a machine.
    fn serve(&mut self, name: &str) -> (String, PathBuf, usize) {
        let socket = self.path(name).to_str().unwrap().to_owned();
        let output = self.path(&format!("{name}.out"));
        let machine = self.start(&output, &["vmm", "serve", &socket, "--accel", "soft"]);
        wait_until(|| Path::new(&socket).exists());
        (socket, output, machine)
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn wait_until(condition: impl Fn() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < PATIENCE, "it did not happen");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn said(file: &Path) -> String {
    text(&std::fs::read(file).unwrap_or_default())
}

fn utf8(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Says a letter now and then, 'a' to 'z' and again; it is in memory.
fn alphabet() -> Vec<u8> {
    let mut code = say("begin:");
    code.extend([0xbf, 0, 0, 0x20, 0, 0xc6, 0x07, b'a']); // mov edi, 200000h; mov byte [rdi], 'a'
    let again = code.len();
    code.extend([0xb9, 0, 0, 4, 0, 0xff, 0xc9, 0x75, 0xfc]); // mov ecx, 40000h; dec; jnz
    code.extend([0x66, 0xba, 0xf8, 0x03, 0x8a, 0x07, 0xee]); // mov dx, 3f8h; mov al, [rdi]; out
    code.extend([0xfe, 0xc0, 0x3c, b'z' + 1, 0x75, 2, 0xb0, b'a', 0x88, 0x07]);
    let back = again as i64 - (code.len() as i64 + 2);
    code.extend([0xeb, back as i8 as u8]);
    code
}

fn follows(text: &str) -> bool {
    let next = |byte: u8| if byte == b'z' { b'a' } else { byte + 1 };
    text.as_bytes()
        .windows(2)
        .all(|pair| pair[1] == next(pair[0]))
}

/// A machine that says the alphabet.
fn alphabet_machine(place: &mut Place) -> (String, PathBuf, usize) {
    let kernel = place.path("kernel");
    std::fs::write(&kernel, elf(&alphabet())).unwrap();
    let (socket, output) = (place.path("control"), place.path("output"));
    let arguments = ["run", "--kernel", utf8(&kernel), "--memory", "16M"];
    let rest = ["--accel", "soft", "--control", utf8(&socket)];
    let machine = place.start(&output, &[&arguments[..], &rest].concat());
    wait_until(|| said(&output).len() > 8);
    (utf8(&socket).to_owned(), output, machine)
}

#[test]
fn a_machine_is_paused_saved_restored_and_stopped() {
    let mut place = Place::new();
    let (socket, output, machine) = alphabet_machine(&mut place);
    assert!(place.ok(&["status", &socket]).starts_with("running"));
    let snapshot = place.path("snapshot");
    place.ok(&["pause", &socket]);
    assert!(place.ok(&["status", &socket]).starts_with("paused"));
    place.ok(&["snapshot", &socket, utf8(&snapshot)]);
    place.ok(&["resume", &socket]);
    let then = said(&output).len();
    wait_until(|| said(&output).len() > then + 2);
    assert!(
        place
            .refused(&["snapshot", &socket, utf8(&snapshot)])
            .contains("exists")
    );
    let added = place.path("added");
    place.ok(&["snapshot", &socket, utf8(&added), "--incremental"]);
    place.ok(&["stop", &socket]);
    assert_eq!(place.exit_of(machine), Some(93));
    assert!(!Path::new(&socket).exists());
    let original = said(&output);

    for directory in [&snapshot, &snapshot, &added] {
        assert!(
            place
                .ok(&["verify", utf8(directory)])
                .contains("as it was written")
        );
        let (socket, output, machine) = place.serve("restored");
        assert!(place.ok(&["status", &socket]).contains("no machine"));
        assert!(
            place
                .refused(&["pause", &socket])
                .contains("restore one first")
        );
        place.ok(&["restore", &socket, utf8(directory)]);
        assert!(
            place
                .refused(&["restore", &socket, utf8(directory)])
                .contains("has a machine")
        );
        wait_until(|| said(&output).len() > 3);
        place.ok(&["stop", &socket]);
        assert_eq!(place.exit_of(machine), Some(93));
        let restored = said(&output);
        assert!(follows(&restored), "{restored}");
        // It goes on with a letter the original said then or just afterwards.
        assert!(original.contains(&restored[..1]), "{original} {restored}");
    }
}

#[test]
fn a_killed_snapshot_is_there_whole_or_not_at_all() {
    let mut place = Place::new();
    let (socket, _, machine) = alphabet_machine(&mut place);
    let (mut whole, mut none) = (0, 0);
    for round in 0..12u32 {
        let directory = place.path(&format!("s{round}"));
        let mut client = favo(&place.state)
            .args(["vmm", "snapshot", &socket, utf8(&directory)])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // The client's death must not matter; the machine's is below.
        std::thread::sleep(Duration::from_millis(u64::from(round) * 2));
        client.kill().unwrap();
        client.wait().unwrap();
    }
    let last = place.path("last");
    let (server, target) = (socket.clone(), utf8(&last).to_owned());
    let state = place.state.clone();
    let client = std::thread::spawn(move || {
        let mut command: Command = favo(&state);
        command.args(["vmm", "snapshot", &server, &target]).output()
    });
    std::thread::sleep(Duration::from_millis(25));
    place.machines[machine].kill().unwrap();
    place.exit_of(machine);
    let _ = client.join();
    let rounds = (0..12).map(|round| place.path(&format!("s{round}")));
    let all: Vec<PathBuf> = rounds.chain([last]).collect();
    for directory in all {
        if directory.exists() {
            whole += 1;
            place.ok(&["verify", utf8(&directory)]);
            let (socket, output, machine) = place.serve("restored");
            place.ok(&["restore", &socket, utf8(&directory)]);
            wait_until(|| said(&output).len() > 1);
            place.ok(&["stop", &socket]);
            place.exit_of(machine);
        } else {
            none += 1;
        }
    }
    println!("{whole} whole, {none} none");
    // The name can be used again whatever the kill left.
    let (socket, _, _) = alphabet_machine(&mut place);
    let again = place.path("again");
    place.ok(&["snapshot", &socket, utf8(&again)]);
}

#[test]
fn a_damaged_snapshot_is_refused_and_the_process_waits_on() {
    let mut place = Place::new();
    let (socket, _, _) = alphabet_machine(&mut place);
    let snapshot = place.path("snapshot");
    place.ok(&["snapshot", &socket, utf8(&snapshot)]);
    let (served, output, _) = place.serve("served");
    let manifest = snapshot.join("manifest");
    let good = std::fs::read(&manifest).unwrap();
    let mut bad = good.clone();
    let middle = bad.len() / 2;
    bad[middle] ^= 1;
    std::fs::write(&manifest, &bad).unwrap();
    let error = place.refused(&["restore", &served, utf8(&snapshot)]);
    assert!(
        error.contains("damaged") && error.contains("manifest"),
        "{error}"
    );
    let error = place.refused(&["restore", &served, "/no/such/snapshot"]);
    assert!(error.contains("/no/such/snapshot"), "{error}");
    assert!(place.ok(&["status", &served]).contains("no machine"));
    std::fs::write(&manifest, &good).unwrap();
    place.ok(&["restore", &served, utf8(&snapshot)]);
    wait_until(|| said(&output).len() > 1);
}

#[test]
fn what_can_not_be_done_is_said() {
    let mut place = Place::new();
    let error = place.refused(&["status", "/no/such/socket"]);
    assert!(error.contains("/no/such/socket"), "{error}");
    let kernel = place.path("kernel");
    let code = [say("up").as_slice(), &FOREVER, &out(0x600, 0x34)].concat();
    std::fs::write(&kernel, elf(&code)).unwrap();
    let (socket, output) = (place.path("control"), place.path("output"));
    let run = [
        "run",
        "--kernel",
        utf8(&kernel),
        "--memory",
        "16M",
        "--accel",
        "soft",
    ];
    place.start(&output, &[&run[..], &["--control", utf8(&socket)]].concat());
    wait_until(|| said(&output).contains("up"));
    let socket = utf8(&socket).to_owned();
    let error = place.refused(&["snapshot", &socket, "/no/such/place", "--incremental"]);
    assert!(error.contains("whole snapshot first"), "{error}");
    let error = place.refused(&["snapshot", &socket, "/no/such/place/x"]);
    assert!(error.contains("/no/such/place"), "{error}");
    let error = place.refused(&["exec", &socket, "--", "true"]);
    assert!(error.contains("agent"), "{error}");
    // A second machine can't have the socket.
    let other = place.path("other.out");
    let second = place.start(&other, &[&run[..], &["--control", &socket]].concat());
    assert_eq!(place.exit_of(second), Some(1));
    assert!(said(&other).contains("control socket"), "{}", said(&other));
}

/// Counts in a file for ever, a line every 50 ms or so, each on the disk.
const COUNTER: &str = "
    cat > /root/counter <<'END'
    i=0
    while :; do
        i=$((i + 1))
        echo $i >> /root/log
        sync
        sleep 0.05
    done
END
    setsid sh /root/counter > /dev/null 2>&1 &
    head -c 3000000 /dev/urandom > /root/data
    sha256sum /root/data > /root/sum
    echo ready
    sleep 1000";

/// The lines are 1, 2, 3 and so on, on the disk too, and more come.
const CHECK: &str = "
    set -e
    echo 3 > /proc/sys/vm/drop_caches
    sha256sum -c /root/sum
    one=$(wc -l < /root/log)
    sleep 2
    two=$(wc -l < /root/log)
    [ $two -gt $one ]
    i=0
    while [ $i -lt $one ] && read line; do i=$((i + 1)); [ $line = $i ]; done < /root/log
    [ $i = $one ]
    gateway=$(ip route | sed -n 's/^default via \\([0-9.]*\\) .*/\\1/p')
    ping -c 1 -W 10 -q $gateway > /dev/null
    echo mine >> /root/own
    echo first $one, $(wc -l < /root/own) own";

#[test]
fn a_linux_guest_goes_on_with_its_processes_disk_network_and_agent() {
    let mut place = Place::new();
    if !has_image(&place.state, "minimal") {
        return;
    }
    let (socket, output) = (place.path("control"), place.path("output"));
    let socket = utf8(&socket).to_owned();
    let arguments = ["run", "minimal", "--accel", "soft", "--cpus", "2"];
    let rest = [
        "--memory",
        "192M",
        "--control",
        &socket,
        "--",
        "sh",
        "-c",
        COUNTER,
    ];
    place.start(&output, &[&arguments[..], &rest].concat());
    wait_until(|| said(&output).contains("ready"));
    let (whole, added) = (place.path("whole"), place.path("added"));
    place.ok(&["snapshot", &socket, utf8(&whole)]);
    std::thread::sleep(Duration::from_secs(1));
    place.ok(&["snapshot", &socket, utf8(&added), "--incremental"]);
    place.ok(&["stop", &socket]);

    // Two of one snapshot at once, and one of what was added.
    let mut served = Vec::new();
    for (number, directory) in [&whole, &whole, &added].into_iter().enumerate() {
        let (socket, output, machine) = place.serve(&format!("served{number}"));
        place.ok(&["restore", &socket, utf8(directory)]);
        served.push((socket, output, machine));
    }
    for (socket, output, _) in &served {
        let said_there = place.ok(&["exec", socket, "--", "sh", "-c", CHECK]);
        println!("{said_there}");
        assert!(
            said_there.contains("1 own"),
            "{said_there}\n{}",
            said(output)
        );
        let status = place
            .vmm(&["exec", socket, "--", "sh", "-c", "exit 7"])
            .status;
        assert_eq!(status.code(), Some(7));
    }
    clones_differ(&place, &served[0].0);
    // What was restored can be saved, and that restored.
    let again = place.path("again");
    place.ok(&["snapshot", &served[2].0, utf8(&again)]);
    for (socket, _, machine) in served {
        place.ok(&["stop", &socket]);
        place.exit_of(machine);
    }
    let (socket, _, _) = place.serve("last");
    place.ok(&["restore", &socket, utf8(&again)]);
    let said_there = place.ok(&["exec", &socket, "--", "sh", "-c", CHECK]);
    assert!(said_there.contains("2 own"), "{said_there}");
}

/// Clones of a machine and of a clone: each goes on by itself, with a disk,
/// random numbers and a clock of its own.
fn clones_differ(place: &Place, socket: &str) {
    place.ok(&["fork", socket, "2"]);
    let (first, second) = (format!("{socket}.1"), format!("{socket}.2"));
    place.ok(&["fork", &first]);
    let clones = [first.clone(), second, format!("{first}.1")];
    let mut random = Vec::new();
    for clone in &clones {
        let said_there = place.ok(&["exec", clone, "--", "sh", "-c", CHECK]);
        assert!(said_there.contains("2 own"), "{said_there}");
        let script = "od -An -tx8 -N8 /dev/urandom; date +%s";
        let said_there = place.ok(&["exec", clone, "--", "sh", "-c", script]);
        let mut lines = said_there.lines();
        random.push(lines.next().unwrap().to_owned());
        let clock: u64 = lines.next().unwrap().parse().unwrap();
        let now = std::time::SystemTime::UNIX_EPOCH
            .elapsed()
            .unwrap()
            .as_secs();
        assert!(now.abs_diff(clock) < 10, "{now} {clock}");
    }
    assert!(random[0] != random[1] && random[1] != random[2] && random[0] != random[2]);
    for clone in &clones {
        place.ok(&["stop", clone]);
        wait_until(|| !Path::new(clone).exists());
    }
}
