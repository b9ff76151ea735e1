//! The exec server over a Unix socket pair, driven by the real client and by hand.

use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;

use super::*;
use crate::client::{AgentClient, ClientError, Control, ExecIo, ExecOutcome, Input, OutputStream};
use crate::protocol::{Exec, WindowSize};

type ServerThread = JoinHandle<Result<Outcome, ServeError>>;

fn start() -> (UnixStream, ServerThread) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let server = std::thread::spawn(move || serve(theirs.into(), ServeOptions::default()));
    (ours, server)
}

fn client() -> (AgentClient<UnixStream>, ServerThread) {
    let (stream, server) = start();
    (AgentClient::connect(stream).unwrap(), server)
}

/// Input from a socket another thread fills; everything written is kept.
struct TestIo {
    input: Option<UnixStream>,
    control: Vec<Control>,
    control_fd: Option<UnixStream>,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    /// Leave once the output holds this.
    wait_for: Option<(&'static [u8], Control)>,
}

impl TestIo {
    fn new(input: &[u8]) -> Self {
        let (mut writer, reader) = UnixStream::pair().unwrap();
        let input = input.to_vec();
        std::thread::spawn(move || writer.write_all(&input));
        Self {
            input: Some(reader),
            control: Vec::new(),
            control_fd: None,
            stdout: Vec::new(),
            stderr: Vec::new(),
            wait_for: None,
        }
    }

    /// Once the output holds `text`, does `control`.
    fn on_output(mut self, text: &'static [u8], control: Control) -> Self {
        self.wait_for = Some((text, control));
        self
    }
}

impl ExecIo for TestIo {
    fn input_fd(&self) -> Option<BorrowedFd<'_>> {
        self.input.as_ref().map(|s| s.as_fd())
    }
    fn read_input(&mut self, buffer: &mut [u8]) -> std::io::Result<Input> {
        Ok(match self.input.as_mut().unwrap().read(buffer)? {
            0 => Input::End,
            count => Input::Bytes(count),
        })
    }
    fn control_fd(&self) -> Option<BorrowedFd<'_>> {
        self.control_fd.as_ref().map(|s| s.as_fd())
    }
    fn take_control(&mut self) -> std::io::Result<Option<Control>> {
        let control = self.control.pop();
        if control.is_none() {
            self.control_fd = None;
        }
        Ok(control)
    }
    fn write_output(&mut self, stream: OutputStream, bytes: &[u8]) -> std::io::Result<()> {
        match stream {
            OutputStream::Stdout => self.stdout.extend(bytes),
            OutputStream::Stderr => self.stderr.extend(bytes),
        }
        if let Some((text, control)) = self.wait_for
            && self.stdout.windows(text.len()).any(|w| w == text)
        {
            self.wait_for = None;
            self.control.push(control);
            // A socket whose other end is gone is readable for ever.
            self.control_fd = Some(UnixStream::pair().unwrap().0);
        }
        Ok(())
    }
}

fn sh(script: &str) -> Exec {
    Exec {
        argv: vec!["sh".into(), "-c".into(), script.into()],
        cwd: Some("/".into()),
        ..Exec::default()
    }
}

fn run(exec: &Exec, input: &[u8]) -> (Exit, Vec<u8>, Vec<u8>) {
    let (mut client, server) = client();
    let mut io = TestIo::new(input);
    let outcome = client.exec(exec, &mut io).unwrap();
    drop(client);
    assert_eq!(server.join().unwrap().unwrap(), Outcome::Disconnected);
    let ExecOutcome::Exited(exit) = outcome else {
        panic!("{outcome:?}")
    };
    (exit, io.stdout, io.stderr)
}

#[test]
fn output_error_and_status_come_back() {
    let (exit, stdout, stderr) = run(&sh("echo out; echo err >&2; exit 7"), b"");
    assert_eq!(exit, Exit::Code(7));
    assert_eq!(stdout, b"out\n");
    assert_eq!(stderr, b"err\n");
}

#[test]
fn input_is_echoed_far_beyond_the_window() {
    let input: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
    let (exit, stdout, _) = run(&sh("cat"), &input);
    assert_eq!(exit, Exit::Code(0));
    assert!(stdout == input, "{} bytes back", stdout.len());
}

#[test]
fn large_output_arrives_whole_before_the_exit() {
    let (exit, stdout, stderr) = run(&sh("head -c 5000000 /dev/zero; echo end >&2; exit 3"), b"");
    assert_eq!((exit, stdout.len()), (Exit::Code(3), 5_000_000));
    assert_eq!(stderr, b"end\n");
}

#[test]
fn a_command_that_ignores_its_input_still_ends() {
    let (exit, stdout, _) = run(
        &sh("exec <&-; sleep 0.2; echo done"),
        &vec![b'x'; 1_000_000],
    );
    assert_eq!((exit, stdout), (Exit::Code(0), b"done\n".to_vec()));
}

#[test]
fn killed_by_a_signal_is_128_and_the_signal() {
    let (exit, _, _) = run(&sh("kill -9 $$"), b"");
    assert_eq!(exit, Exit::Signal(9));
    assert_eq!(exit.shell_status(), 137);
}

#[test]
fn not_found_is_127_and_not_executable_126() {
    for (program, status) in [
        ("/nowhere/at/all", 127),
        ("no-such-program-anywhere", 127),
        ("/etc/passwd", 126),
        ("/etc", 126),
    ] {
        let (mut client, _server) = client();
        let exec = Exec {
            argv: vec![program.into()],
            ..Exec::default()
        };
        match client.exec(&exec, &mut TestIo::new(b"")) {
            Err(ClientError::ExecFailed {
                status: got,
                message,
            }) => {
                assert_eq!(got, status, "{message}");
                assert!(message.contains(program), "{message}");
            }
            other => panic!("{program}: {other:?}"),
        }
        // The connection is still good.
        let outcome = client.exec(&sh("exit 5"), &mut TestIo::new(b"")).unwrap();
        assert_eq!(outcome, ExecOutcome::Exited(Exit::Code(5)));
    }
}

#[test]
fn a_missing_directory_is_named() {
    let (mut client, _server) = client();
    let exec = Exec {
        cwd: Some("/nowhere".into()),
        ..sh("true")
    };
    let error = client.exec(&exec, &mut TestIo::new(b"")).unwrap_err();
    assert!(error.to_string().contains("/nowhere"), "{error}");
}

#[test]
fn environment_and_directory_are_set() {
    let exec = Exec {
        env: vec!["GREETING=hello world".into(), "EMPTY=".into()],
        cwd: Some("/tmp".into()),
        ..sh("echo \"$GREETING|$EMPTY|$PATH|$USER\"; pwd")
    };
    let (_, stdout, _) = run(&exec, b"");
    let text = String::from_utf8(stdout).unwrap();
    assert!(text.starts_with("hello world||/usr/local/sbin:"), "{text}");
    assert!(text.ends_with("|root\n/tmp\n"), "{text}");
}

fn on_terminal(script: &str) -> Exec {
    Exec {
        tty: Some(WindowSize {
            rows: 24,
            columns: 80,
        }),
        env: vec!["TERM=xterm-256color".into()],
        ..sh(script)
    }
}

#[test]
fn a_terminal_is_a_terminal() {
    let exec =
        on_terminal("test -t 0 && test -t 1 && stty size && echo $TERM && tty -s < /dev/tty");
    let (exit, stdout, stderr) = run(&exec, b"");
    let text = String::from_utf8_lossy(&stdout).into_owned();
    assert_eq!(exit, Exit::Code(0), "{text}");
    assert!(text.contains("24 80\r\nxterm-256color\r\n"), "{text}");
    assert!(stderr.is_empty());
}

#[test]
fn a_terminal_echoes_and_ends_its_input() {
    let (exit, stdout, _) = run(
        &on_terminal("read a; echo \"got $a\"; cat; exit 4"),
        b"hi\n",
    );
    let text = String::from_utf8_lossy(&stdout).into_owned();
    assert_eq!(exit, Exit::Code(4), "{text}");
    assert!(
        text.contains("hi\r\n") && text.contains("got hi\r\n"),
        "{text}"
    );
}

#[test]
fn large_output_through_a_terminal_arrives_whole() {
    let exec = on_terminal("stty -opost; head -c 300000 /dev/zero | tr '\\0' x; exit 9");
    let (exit, stdout, _) = run(&exec, b"");
    assert_eq!(exit, Exit::Code(9));
    assert_eq!(stdout.iter().filter(|&&b| b == b'x').count(), 300_000);
}

#[test]
fn a_resize_reaches_the_command() {
    let (mut client, _server) = client();
    let script = "trap 'stty size; exit 0' WINCH; echo ready; while :; do sleep 0.05; done";
    let mut io = TestIo::new(b"").on_output(
        b"ready",
        Control::Resize(WindowSize {
            rows: 50,
            columns: 132,
        }),
    );
    io.input = None;
    let outcome = client.exec(&on_terminal(script), &mut io).unwrap();
    assert_eq!(outcome, ExecOutcome::Exited(Exit::Code(0)));
    let text = String::from_utf8_lossy(&io.stdout).into_owned();
    assert!(text.contains("50 132"), "{text}");
}

#[test]
fn a_signal_reaches_the_whole_group() {
    let (mut client, _server) = client();
    let mut io = TestIo::new(b"").on_output(b"ready", Control::Signal(15));
    let outcome = client
        .exec(
            &sh("sh -c 'echo ready; sleep 60'; echo not reached"),
            &mut io,
        )
        .unwrap();
    assert_eq!(outcome, ExecOutcome::Exited(Exit::Signal(15)));
    assert_eq!(io.stdout, b"ready\n");
}

#[test]
fn leaving_and_disconnecting_hangs_the_command_up() {
    let marker = std::env::temp_dir().join(format!("favo-agent-hup-{}", std::process::id()));
    let _ = std::fs::remove_file(&marker);
    let (mut client, server) = client();
    let script = format!(
        "exec 2>/dev/null; trap 'echo hup > {}; exit' HUP; echo ready; while :; do sleep 0.05; done",
        marker.display()
    );
    let mut io = TestIo::new(b"").on_output(b"ready", Control::Leave);
    assert_eq!(
        client.exec(&sh(&script), &mut io).unwrap(),
        ExecOutcome::Left
    );
    drop(client);
    assert_eq!(server.join().unwrap().unwrap(), Outcome::Disconnected);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while std::fs::read(&marker).unwrap_or_default() != b"hup\n" {
        assert!(std::time::Instant::now() < deadline, "no SIGHUP");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    std::fs::remove_file(&marker).unwrap();
}

#[test]
fn an_orphan_with_the_pipe_does_not_delay_the_exit() {
    let started = std::time::Instant::now();
    let (exit, stdout, _) = run(&sh("sleep 30 & echo $!"), b"");
    assert_eq!(exit, Exit::Code(0));
    assert!(started.elapsed() < std::time::Duration::from_secs(25));
    let orphan: i32 = String::from_utf8(stdout).unwrap().trim().parse().unwrap();
    let orphan = rustix::process::Pid::from_raw(orphan).unwrap();
    rustix::process::kill_process(orphan, rustix::process::Signal::KILL).unwrap();
}

#[test]
fn power_off_is_announced_and_ends_the_server() {
    let (mut client, server) = client();
    client.exec(&sh("true"), &mut TestIo::new(b"")).unwrap();
    client.power_off().unwrap();
    assert_eq!(server.join().unwrap().unwrap(), Outcome::PowerOff);
}

#[test]
fn a_stranger_is_turned_away() {
    let (mut stream, server) = start();
    let mut frame = Vec::new();
    encode(&Request::PowerOff, &mut frame).unwrap();
    stream.write_all(&frame).unwrap();
    assert!(matches!(
        server.join().unwrap(),
        Err(ServeError::Protocol(_))
    ));
    let (mut stream, server) = start();
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    assert!(matches!(server.join().unwrap(), Err(ServeError::Frame(_))));
}

#[test]
fn more_input_than_the_window_ends_the_connection() {
    let (mut stream, server) = start();
    let mut frames = Vec::new();
    let hello = Request::Hello {
        magic: MAGIC,
        version: PROTOCOL_VERSION,
    };
    encode(&hello, &mut frames).unwrap();
    encode(&Request::Exec(sh("exec sleep 60")), &mut frames).unwrap();
    for _ in 0..8 {
        encode(&Request::Stdin(vec![0; CHUNK]), &mut frames).unwrap();
    }
    let _ = stream.write_all(&frames);
    assert!(matches!(
        server.join().unwrap(),
        Err(ServeError::Protocol("more input than its window"))
    ));
}

#[test]
fn a_host_that_does_not_read_stops_the_command() {
    let (mut stream, server) = start();
    let mut frames = Vec::new();
    let hello = Request::Hello {
        magic: MAGIC,
        version: PROTOCOL_VERSION,
    };
    encode(&hello, &mut frames).unwrap();
    let marker = std::env::temp_dir().join(format!("favo-agent-flow-{}", std::process::id()));
    let _ = std::fs::remove_file(&marker);
    let script = format!("head -c 20000000 /dev/zero; echo > {}", marker.display());
    encode(&Request::Exec(sh(&script)), &mut frames).unwrap();
    stream.write_all(&frames).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(500));
    assert!(!marker.exists(), "20 MB were taken without a reader");
    drop(stream);
    assert_eq!(server.join().unwrap().unwrap(), Outcome::Disconnected);
    let _ = std::fs::remove_file(&marker);
}
