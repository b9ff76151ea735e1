//! The network a machine has of itself: addresses, the gateway, captures.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use favo_e2e::{favo, has_image};

fn run(state: &Path, arguments: &[&str]) -> Output {
    let output = favo(state).args(arguments).stdin(Stdio::null()).output();
    output.unwrap()
}

/// A state directory with the small image, built once for all tests here; or
/// says why that can't be done on this host.
fn state_with_image() -> Option<&'static Path> {
    static STATE: OnceLock<Option<PathBuf>> = OnceLock::new();
    let make = || {
        let state = Path::new(env!("CARGO_TARGET_TMPDIR")).join("network");
        // What an earlier run left is from an earlier favo.
        let _ = std::fs::remove_dir_all(&state);
        std::fs::create_dir_all(&state).unwrap();
        has_image(&state, "minimal").then_some(state)
    };
    STATE.get_or_init(make).as_deref()
}

/// Runs a script in the guest; what it said.
fn script(state: &Path, arguments: &[&str], script: &str) -> String {
    let guest = ["minimal", "--", "sh", "-c", script];
    let arguments = [&["run"], arguments, &guest].concat();
    let output = run(state, &arguments);
    let error = String::from_utf8_lossy(&output.stderr);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}\n{error}");
    // The agent would say what it could not do.
    assert!(!error.contains("favo-agent"), "{error}");
    text
}

fn contains_all(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "no '{part}' in:\n{text}");
    }
}

/// What a guest finds: addresses by DHCP and by router advertisements, the
/// gateway, names, and the metadata service, which wants a token.
const FINDS: &str = r#"
    gateway=$(ip route | sed -n 's/^default via \([0-9.]*\) .*/\1/p')
    ip -4 addr show eth0
    [ "$(sed -n 's/^nameserver //p' /etc/resolv.conf)" = "$gateway" ] && echo the gateway serves names
    ping -c 2 -q $gateway
    # Of router advertisements; a second or two after the card came up.
    for second in 1 2 3 4 5 6 7 8 9 10; do
        ip -6 route | grep -q ^default && break
        sleep 1
    done
    ip -6 addr show eth0
    ip -6 route
    ping -6 -c 1 -q -I eth0 fe80::1
    nslookup web.user.internal $gateway
    ls /sys/class/net/eth0/queues
    cat /sys/class/net/eth0/mtu
    ping -c 1 -q -s 8000 $gateway
    # busybox wget has no PUT.
    ask() { printf "$1 $2 HTTP/1.1\r\nHost: x\r\n$3Connection: close\r\n\r\n" | nc 169.254.169.254 80; }
    ask GET /latest/meta-data/hostname | head -n 1 | sed 's/^/without a token: /'
    token=$(ask PUT /latest/api/token "X-aws-ec2-metadata-token-ttl-seconds: 60\r\nContent-Length: 0\r\n" | tail -n 1)
    ask GET /latest/meta-data/hostname "X-aws-ec2-metadata-token: $token\r\n" | tail -n 1 | sed 's/^/with a token: /'
    echo
    # Nobody's address, refused by the rules, and beyond nothing.
    ping -c 1 -W 1 -q ${gateway%.*}.77 >/dev/null || echo nobody is there
    nc -w 1 192.0.2.1 25 </dev/null >/dev/null 2>&1 || echo no mail
"#;

/// One boot, many questions.
#[test]
fn a_guest_finds_addresses_names_metadata_and_a_gateway() {
    let Some(state) = state_with_image() else {
        return;
    };
    let capture = state.join("port.pcapng");
    let guest = ["minimal", "--", "sh", "-c", FINDS];
    let options = [
        "run",
        "--accel",
        "soft",
        "--stats",
        "--name",
        "web",
        "--cpus",
        "2",
        "--mtu",
        "9000",
        "--deny",
        "out:tcp:25",
        "--rate",
        "out:100M",
        "--rate",
        "in:5000pps",
        "--pcap",
    ];
    let arguments = [&options[..], &[capture.to_str().unwrap()], &guest].concat();
    let output = run(state, &arguments);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{text}\n{error}");
    assert!(!error.contains("favo-agent"), "{error}");
    contains_all(
        &text,
        &[
            "inet 10.",
            "the gateway serves names",
            "2 packets transmitted, 2 packets received",
            "inet6 fd",
            "default via fe80::1 dev eth0",
            "web.user.internal",
            "rx-1",
            "tx-1",
            "\n9000\n",
            "without a token: HTTP/1.1 401",
            "with a token: web",
            "nobody is there",
            "no mail",
        ],
    );
    let pings = text
        .matches("1 packets transmitted, 1 packets received")
        .count();
    assert_eq!(pings, 2, "of the router and a large one:\n{text}");

    // What was dropped is counted, with its reason.
    let dropped = |reason: &str| {
        let mut lines = error
            .lines()
            .filter(|line| line.contains("dropped-from-guest"));
        lines.any(|line| line.split_whitespace().any(|word| word == reason))
    };
    assert!(dropped("denied-by-rule"), "{error}");
    tshark_finds_nothing_malformed(&capture);

    let text = script(state, &["--network", "none"], "ls /sys/class/net");
    assert_eq!(text, "lo\n");
}

/// Two machines, each in a process of its own, on one network.
#[test]
fn machines_on_a_network_reach_each_other_by_name() {
    let Some(state) = state_with_image() else {
        return;
    };
    let mut server = favo(state)
        .args([
            "run",
            "--accel",
            "soft",
            "--network",
            "lab",
            "--name",
            "data",
        ])
        .args(["minimal", "--", "sh", "-c"])
        .arg("mkdir /www; echo a page >/www/index.html; httpd -f -p 80 -h /www")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    // Not wget: the static busybox's crashes on names of its C library.
    let fetch = r#"
        for second in $(seq 60); do
            address=$(nslookup data | sed -n 's/^Address: *\(10[0-9.]*\)$/\1/p')
            printf 'GET / HTTP/1.0\r\n\r\n' | nc -w 5 $address 80 2>/dev/null | grep page && break
            sleep 1
        done
        ping -c 1 -q data.lab.internal
        # The address comes with the first router advertisement, some seconds in.
        for second in $(seq 30); do ping -6 -c 1 -q data && break; sleep 1; done"#;
    let guest = ["minimal", "--", "sh", "-c", fetch];
    let client = [
        "run",
        "--accel",
        "soft",
        "--network",
        "lab",
        "--name",
        "web",
    ];
    let output = run(state, &[&client[..], &guest].concat());
    // It is the name of one machine at a time.
    let twice = [
        "run",
        "--network",
        "lab",
        "--name",
        "data",
        "minimal",
        "--",
        "true",
    ];
    let twice = run(state, &twice);
    server.kill().unwrap();
    server.wait().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    contains_all(&text, &["a page"]);
    let pings = text.matches("1 packets transmitted, 1 packets received");
    assert_eq!(pings.count(), 2, "{text}");
    assert_eq!(twice.status.code(), Some(125));
    contains_all(
        &String::from_utf8_lossy(&twice.stderr),
        &["already on network"],
    );

    // Both have their addresses still, so a trace knows them.
    let trace = [
        "net",
        "trace",
        "--network",
        "lab",
        "--name",
        "web",
        "guest",
        "data:80",
    ];
    let trace = run(state, &trace);
    contains_all(
        &String::from_utf8_lossy(&trace.stdout),
        &["at web", "to the port with", "at data", "to the guest"],
    );
}

#[test]
fn a_trace_names_the_rule_that_decides() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path();
    let trace = |arguments: &[&str]| {
        let output = run(
            state,
            &[&["net", "trace", "-o", "json"], arguments].concat(),
        );
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    contains_all(
        &trace(&["guest", "1.1.1.1:443"]),
        &[
            "\"verdict\": \"uplink\"",
            "beyond the network, by the gateway",
        ],
    );
    let deny = ["--deny", "out", "--allow", "out:tcp:443"];
    contains_all(
        &trace(&[&deny[..], &["guest", "1.1.1.1:443"]].concat()),
        &["\"verdict\": \"uplink\"", "group 'options', priority 100"],
    );
    contains_all(
        &trace(&[&deny[..], &["guest", "1.1.1.1:53/udp"]].concat()),
        &[
            "\"reason\": \"denied-by-rule\"",
            "group 'options', priority 200",
        ],
    );
    contains_all(
        &trace(&["10.0.2.15:1234", "1.1.1.1:443/tcp"]),
        &["\"reason\": \"spoofed-ipv4\"", "\"layer\": \"source\""],
    );
    contains_all(
        &trace(&[
            "--source-mac",
            "52:54:00:00:00:09",
            "-6",
            "guest",
            "gateway",
        ]),
        &["\"reason\": \"spoofed-mac\""],
    );
    let beyond = ["--from", "beyond", "9.9.9.9:5555", "guest:80"];
    contains_all(&trace(&beyond), &["\"reason\": \"denied\""]);
    contains_all(
        &trace(&[&["--publish", "8080:80", "--answer"], &beyond[..]].concat()),
        &[
            "forward to TCP port 80",
            "\"answer\": true",
            "\"verdict\": \"uplink\"",
        ],
    );
    let nobody = run(state, &["net", "trace", "--network", "lab", "guest", "web"]);
    assert!(!nobody.status.success());
    contains_all(
        &String::from_utf8_lossy(&nobody.stderr),
        &["nobody was ever on"],
    );
}

fn tshark_finds_nothing_malformed(capture: &Path) {
    let tshark = |arguments: &[&str]| {
        let output = Command::new("tshark")
            .arg("-r")
            .arg(capture)
            .args(arguments)
            .output();
        output.map(|output| {
            assert!(output.status.success());
            String::from_utf8_lossy(&output.stdout).into_owned()
        })
    };
    let Ok(all) = tshark(&["-o", "ip.check_checksum:TRUE"]) else {
        println!("skipped: there is no tshark (Debian package tshark)");
        return;
    };
    contains_all(&all, &["DHCP Discover", "DHCP ACK", "Router Advertisement"]);
    contains_all(&all, &["Echo (ping) request", "Echo (ping) reply", "ARP"]);
    let bad = tshark(&["-Y", "_ws.malformed || ip.checksum.status == 0"]).unwrap();
    assert_eq!(bad, "");
}

#[test]
fn what_a_network_can_not_be_is_refused_before_the_machine_starts() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path();
    let kernel = state.join("kernel");
    std::fs::write(&kernel, favo_e2e::elf(&favo_e2e::power_off())).unwrap();
    let kernel = ["run", "--kernel", kernel.to_str().unwrap()];
    for (arguments, reason) in [
        (&["--mtu", "1000"][..], "1280..=65520"),
        (&["--network", "a_b"], "no network"),
        (&["--pcap", "/no/such/directory/x"], "/no/such/directory/x"),
        (
            &["--network", "none", "--pcap", "x"],
            "--pcap x needs a network",
        ),
        (
            &["--network", "none", "--publish", "80:80"],
            "--publish 80:80/tcp needs a network",
        ),
        (
            &["--network", "none", "--deny", "out:tcp:25"],
            "--deny out:tcp:25 needs a network",
        ),
        (
            &["--network", "none", "--rate", "out:1M"],
            "needs a network",
        ),
        (
            &["--rate", "out:1M", "--rate", "out:2M"],
            "second of its kind",
        ),
        (&["--rate", "out:0"], "would stop all traffic"),
        (&["--allow", "80"], "no direction"),
        (&["--publish", "80"], "give the host's port"),
    ] {
        let output = run(state, &[&kernel[..], arguments].concat());
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{arguments:?}");
        assert!(error.contains(reason), "{arguments:?}: {error}");
    }
    // The machine itself is all right.
    assert!(run(state, &kernel).status.success());
}

/// A guest that serves a page, and what fetches it.
#[test]
fn a_published_port_answers_and_the_guest_reaches_out() {
    let Some(state) = state_with_image() else {
        return;
    };
    // A port that is free now; somebody else may take it, hardly ever.
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    let taken = run(
        state,
        &[
            "run",
            "--publish",
            &format!("127.0.0.1:{port}:80"),
            "minimal",
            "--",
            "true",
        ],
    );
    assert_eq!(taken.status.code(), Some(125));
    contains_all(&String::from_utf8_lossy(&taken.stderr), &["is in use"]);
    drop(free);

    let mut server = favo(state)
        .args(["run", "--accel", "soft", "--publish"])
        .arg(format!("127.0.0.1:{port}:80"))
        .args(["minimal", "--", "sh", "-c"])
        .arg("mkdir /www; echo a page >/www/index.html; httpd -f -p 80 -h /www")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let pages: Vec<String> = (0..20).map(|_| fetch(port)).collect();
    server.kill().unwrap();
    server.wait().unwrap();
    for page in pages {
        contains_all(&page, &["200 OK", "a page"]);
    }
}

/// The page a server gives, waiting for the server to be there.
fn fetch(port: u16) -> String {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let answer = TcpStream::connect(("127.0.0.1", port)).and_then(|mut stream| {
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        });
        match answer {
            Ok(answer) if !answer.is_empty() => return answer,
            // The guest has not come so far.
            other => assert!(Instant::now() < deadline, "{other:?}"),
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}
