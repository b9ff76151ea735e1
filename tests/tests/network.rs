//! The network a machine has of itself: addresses, the gateway, captures.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use favo_e2e::favo;

fn run(state: &Path, arguments: &[&str]) -> Output {
    let output = favo(state).args(arguments).stdin(Stdio::null()).output();
    output.unwrap()
}

/// Builds the small image, or says why that can't be done here.
fn build(state: &Path) -> bool {
    let output = run(state, &["image", "build", "minimal"]);
    let error = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        return true;
    }
    let is_missing = error.contains("not installed") || error.contains("not configured");
    assert!(is_missing, "{error}");
    println!("skipped: {error}");
    false
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

const ADDRESSES: &str = "
    gateway=$(ip route | sed -n 's/^default via \\([0-9.]*\\) .*/\\1/p')
    ip -4 addr show eth0
    cat /etc/resolv.conf
    [ \"$(sed -n 's/^nameserver //p' /etc/resolv.conf)\" = \"$gateway\" ] && echo the gateway serves names
    ping -c 2 -q $gateway
    # Of router advertisements; a second or two after the card came up.
    for second in 1 2 3 4 5 6 7 8 9 10; do
        ip -6 route | grep -q ^default && break
        sleep 1
    done
    ip -6 addr show eth0
    ip -6 route
    ping -6 -c 1 -q -I eth0 fe80::1
";

#[test]
fn a_guest_has_addresses_and_a_gateway() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path();
    if !build(state) {
        return;
    }
    let capture = state.join("port.pcapng");
    let pcap = ["--accel", "soft", "--pcap", capture.to_str().unwrap()];
    let text = script(state, &pcap, ADDRESSES);
    contains_all(
        &text,
        &[
            "inet 10.",
            "the gateway serves names",
            "2 packets transmitted, 2 packets received",
            "inet6 fd",
            "default via fe80::1 dev eth0",
            "1 packets transmitted, 1 packets received",
        ],
    );
    tshark_finds_nothing_malformed(&capture);

    // Several queue pairs, and large packets.
    let text = script(
        state,
        &["--accel", "soft", "--cpus", "2", "--mtu", "9000"],
        "ls /sys/class/net/eth0/queues; cat /sys/class/net/eth0/mtu
         ping -c 1 -q -s 8000 $(ip route | sed -n 's/^default via \\([0-9.]*\\) .*/\\1/p')",
    );
    contains_all(
        &text,
        &[
            "rx-1",
            "tx-1",
            "\n9000\n",
            "1 packets transmitted, 1 packets received",
        ],
    );

    let text = script(state, &["--network", "none"], "ls /sys/class/net");
    assert_eq!(text, "lo\n");
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
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path();
    if !build(state) {
        return;
    }
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
