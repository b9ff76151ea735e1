//! Images as guests see them: built from Debian's packages, booted with a stock kernel and the
//! agent, in QEMU. Skipped, with the reason printed, where a tool or the archive is missing.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use favo_agent::client::{ExecIo, ExecOutcome, Input, OutputStream};
use favo_agent::{AgentClient, Exec, Exit, WindowSize};
use favo_image::build::{BuildOptions, build};
use favo_image::initramfs::{AgentMode, AgentOptions};
use favo_image::{ImageError, ImageName, OpenImage, Progress, Store, initramfs};
use favo_types::ByteCount;

struct Printer;

impl Progress for Printer {
    fn stage(&self, name: &str, total: Option<ByteCount>) {
        println!("stage: {name} {total:?}");
    }
    fn done(&self, _: ByteCount) {}
    fn note(&self, text: &str) {
        println!("  {text}");
    }
}

fn options(mode: AgentMode) -> AgentOptions {
    AgentOptions {
        mode,
        ..AgentOptions::default()
    }
}

fn name(text: &str) -> ImageName {
    text.parse().unwrap()
}

/// Builds an image, or says why it cannot be built here.
fn build_or_skip(store: &Store, what: &str) -> Option<OpenImage> {
    match build(store, &name(what), &BuildOptions::default(), &Printer) {
        Ok(image) => {
            println!(
                "{what}: {} packages, kernel {:?}, disk {} stored {}",
                image.manifest.provenance.packages.len(),
                image.manifest.kernel.as_ref().unwrap().release,
                image.manifest.disk.image.size.bytes(),
                image.manifest.disk.stored.bytes(),
            );
            Some(store.open_image(&name(what)).unwrap())
        }
        Err(e @ (ImageError::MissingTools { .. } | ImageError::NoAptSource { .. })) => {
            println!("skipped: {e}; {}", e.hint().unwrap_or_default());
            None
        }
        Err(e) => panic!("{e}"),
    }
}

/// A guest in QEMU without KVM, its serial console in a file.
struct Guest {
    qemu: Child,
    console: PathBuf,
    agent: Option<UnixListener>,
}

impl Guest {
    fn start(image: &OpenImage, directory: &Path, options: &AgentOptions) -> Option<Self> {
        if Command::new("qemu-system-x86_64")
            .arg("--version")
            .stdout(Stdio::null())
            .status()
            .is_err()
        {
            println!("skipped: qemu-system-x86_64 is not installed");
            return None;
        }
        let path = |name: &str| directory.join(name);
        fs::write(path("initrd"), initramfs::compose(image).unwrap()).unwrap();
        let _ = fs::remove_file(path("agent.sock"));
        let agent = UnixListener::bind(path("agent.sock")).unwrap();
        let manifest = &image.image.manifest;
        let qemu = Command::new("qemu-system-x86_64")
            .args([
                "-accel", "tcg", "-machine", "q35", "-cpu", "max", "-m", "1024",
            ])
            .args([
                "-nodefaults",
                "-no-user-config",
                "-display",
                "none",
                "-no-reboot",
            ])
            .arg("-kernel")
            .arg(image.kernel_path().unwrap())
            .arg("-initrd")
            .arg(path("initrd"))
            .arg("-append")
            .arg(initramfs::command_line(manifest, options))
            .arg("-serial")
            .arg(format!("file:{}", path("console").display()))
            .arg("-drive")
            .arg(format!(
                "if=none,id=root,format=raw,snapshot=on,file={}",
                image.disk_path().unwrap().display()
            ))
            .args(["-device", "virtio-blk-pci,drive=root"])
            .args(["-device", "virtio-rng-pci", "-device", "virtio-serial-pci"])
            .arg("-chardev")
            .arg(format!(
                "socket,id=agent,path={}",
                path("agent.sock").display()
            ))
            .args([
                "-device",
                "virtserialport,chardev=agent,name=org.favo.agent.0",
            ])
            .args(["-netdev", "user,id=net"])
            .args(["-device", "virtio-net-pci,netdev=net"])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        Some(Self {
            qemu,
            console: path("console"),
            agent: Some(agent),
        })
    }

    /// The connection to the agent. QEMU connects at once, the agent when it is up.
    fn agent(&mut self) -> AgentClient<UnixStream> {
        let stream = self.agent.take().unwrap().accept().unwrap().0;
        stream
            .set_read_timeout(Some(Duration::from_secs(180)))
            .unwrap();
        AgentClient::connect(stream).unwrap_or_else(|e| panic!("{e}\n{}", self.console()))
    }

    fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.console).unwrap_or_default()).into_owned()
    }

    fn wait_for_exit(&mut self) {
        for _ in 0..600 {
            if let Some(status) = self.qemu.try_wait().unwrap() {
                assert!(status.success(), "{status}");
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        panic!("the guest did not power off:\n{}", self.console());
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

/// Gives input from a socket, keeps output.
struct Captured {
    input: UnixStream,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl Captured {
    fn new(input: &[u8]) -> Self {
        let (mut writer, reader) = UnixStream::pair().unwrap();
        let input = input.to_vec();
        std::thread::spawn(move || writer.write_all(&input));
        Self {
            input: reader,
            stdout: Vec::new(),
            stderr: Vec::new(),
        }
    }
}

impl ExecIo for Captured {
    fn input_fd(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        Some(std::os::fd::AsFd::as_fd(&self.input))
    }
    fn read_input(&mut self, buffer: &mut [u8]) -> std::io::Result<Input> {
        Ok(match self.input.read(buffer)? {
            0 => Input::End,
            count => Input::Bytes(count),
        })
    }
    fn control_fd(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        None
    }
    fn take_control(&mut self) -> std::io::Result<Option<favo_agent::client::Control>> {
        Ok(None)
    }
    fn write_output(&mut self, stream: OutputStream, bytes: &[u8]) -> std::io::Result<()> {
        match stream {
            OutputStream::Stdout => self.stdout.extend(bytes),
            OutputStream::Stderr => self.stderr.extend(bytes),
        }
        Ok(())
    }
}

fn run(client: &mut AgentClient<UnixStream>, script: &str, input: &[u8]) -> (Exit, String, String) {
    exec(client, script, input, None)
}

fn exec(
    client: &mut AgentClient<UnixStream>,
    script: &str,
    input: &[u8],
    tty: Option<WindowSize>,
) -> (Exit, String, String) {
    let mut io = Captured::new(input);
    let exec = Exec {
        argv: vec!["sh".into(), "-c".into(), script.into()],
        tty,
        ..Exec::default()
    };
    match client.exec(&exec, &mut io).unwrap() {
        ExecOutcome::Exited(exit) => (
            exit,
            String::from_utf8_lossy(&io.stdout).into_owned(),
            String::from_utf8_lossy(&io.stderr).into_owned(),
        ),
        ExecOutcome::Left => panic!("left"),
    }
}

#[test]
fn minimal_runs_commands() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path().join("state")).unwrap();
    let Some(image) = build_or_skip(&store, "minimal") else {
        return;
    };
    let Some(mut guest) = Guest::start(&image, directory.path(), &options(AgentMode::Run)) else {
        return;
    };
    let mut client = guest.agent();
    let (exit, stdout, stderr) = run(
        &mut client,
        "cat; uname -a; id; echo bad >&2; exit 7",
        b"hi\n",
    );
    println!("{stdout}");
    assert_eq!(exit, Exit::Code(7));
    assert!(stdout.starts_with("hi\nLinux minimal 6.1"), "{stdout}");
    assert!(stdout.contains("uid=0(root)"), "{stdout}");
    assert_eq!(stderr, "bad\n");
    let (_, stdout, _) = run(&mut client, "ip addr show lo; mount; hostname", b"");
    println!("{stdout}");
    assert!(stdout.contains("127.0.0.1") && stdout.contains("/dev/vda on / type ext4 (rw"));
    assert!(stdout.ends_with("minimal\n"));
    // QEMU's own network: its DHCP server is not ours.
    let (_, stdout, _) = run(
        &mut client,
        "ip addr show eth0; ip route; cat /etc/resolv.conf",
        b"",
    );
    println!("{stdout}");
    for expected in [
        "inet 10.0.2.15/24",
        "default via 10.0.2.2 dev eth0",
        "nameserver 10.0.2.3",
    ] {
        assert!(stdout.contains(expected), "{expected}: {stdout}");
    }
    let size = WindowSize {
        rows: 33,
        columns: 99,
    };
    let (_, stdout, _) = exec(&mut client, "stty size; tty", b"", Some(size));
    assert!(stdout.contains("33 99\r\n/dev/pts/0"), "{stdout}");
    let big = vec![b'x'; 1 << 20];
    let (_, stdout, _) = run(&mut client, "wc -c", &big);
    assert_eq!(stdout.trim(), "1048576");
    // Orphans are collected by process 1.
    let script = "(sleep 0.1 &) ; sleep 1; ps -o stat | grep -c Z; true";
    let (_, stdout, _) = run(&mut client, script, b"");
    assert_eq!(stdout.trim(), "0");
    client.power_off().unwrap();
    guest.wait_for_exit();
    let console = guest.console();
    assert!(!console.contains("favo-agent:"), "{console}");
    assert!(!console.contains("panic"), "{console}");
}

#[test]
fn minimal_boots_its_own_init_on_a_network() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path().join("state")).unwrap();
    let Some(image) = build_or_skip(&store, "minimal") else {
        return;
    };
    let Some(guest) = Guest::start(&image, directory.path(), &options(AgentMode::Boot)) else {
        return;
    };
    for _ in 0..600 {
        if guest.console().contains("lease of 10.0.2.15 obtained") {
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("no address from QEMU's network:\n{}", guest.console());
}

#[test]
fn a_missing_root_disk_is_said_on_the_console() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path().join("state")).unwrap();
    let Some(image) = build_or_skip(&store, "minimal") else {
        return;
    };
    let mut image = image;
    // The image knows its root; one that does not takes it from the options.
    image.image.manifest.disk.root = None;
    let options = AgentOptions {
        root: "/dev/vdz".into(),
        root_timeout: Duration::from_secs(1),
        ..options(AgentMode::Run)
    };
    let Some(mut guest) = Guest::start(&image, directory.path(), &options) else {
        return;
    };
    guest.wait_for_exit();
    let console = guest.console();
    assert!(
        console.contains("no root disk /dev/vdz after 1 s"),
        "{console}"
    );
}

/// Debian: its own user space runs under the agent, and its own init boots.
fn debian(what: &str, kernel: &str) {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path().join("state")).unwrap();
    let Some(image) = build_or_skip(&store, what) else {
        return;
    };
    let disk = image.disk_path().unwrap();
    let check = Command::new("/sbin/e2fsck").arg("-fn").arg(disk).output();
    let check = check.expect("e2fsck, from the package that has mke2fs");
    assert!(
        check.status.success(),
        "{}",
        String::from_utf8_lossy(&check.stdout)
    );
    let Some(mut guest) = Guest::start(&image, directory.path(), &options(AgentMode::Run)) else {
        return;
    };
    let mut client = guest.agent();
    let script = "cat /etc/os-release; uname -r; apt-get --version | head -1; ping -V; getcap /bin/ping; ls -ld /tmp; exit 5";
    let (exit, stdout, _) = run(&mut client, script, b"");
    println!("{stdout}");
    assert_eq!(exit, Exit::Code(5));
    assert!(
        stdout.contains("Debian GNU/Linux") && stdout.contains(kernel),
        "{stdout}"
    );
    client.power_off().unwrap();
    guest.wait_for_exit();
    assert!(
        !guest.console().contains("favo-agent:"),
        "{}",
        guest.console()
    );

    let Some(guest) = Guest::start(&image, directory.path(), &options(AgentMode::Boot)) else {
        return;
    };
    for _ in 0..1800 {
        if guest.console().contains("root@debian:~# ") {
            println!(
                "{}",
                guest
                    .console()
                    .lines()
                    .rev()
                    .take(12)
                    .collect::<Vec<_>>()
                    .join("\n")
            );
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("no shell from Debian's own init:\n{}", guest.console());
}

#[test]
fn debian_12_boots() {
    debian("debian:12", "6.1.");
}

#[test]
fn debian_12_boots_with_kernel_6_12() {
    debian("debian:12-6.12", "6.12.");
}

#[test]
fn debian_13_boots() {
    debian("debian:13", "6.12.");
}
