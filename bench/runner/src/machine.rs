//! The machines measured: the host itself, a guest of favo, a guest of QEMU.

use std::fmt;
use std::io::{BufRead, BufReader, Read, Seek};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use serde::Serialize;

use crate::console::{Console, Progress, Run};

/// Where the pieces of work run.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Machine {
    /// The host, the same program.
    Native,
    /// favo's software CPU.
    Favo,
    /// QEMU's translator, `-cpu max`.
    Tcg,
}

impl Machine {
    /// Every one, in the order of the table.
    pub const ALL: [Self; 3] = [Self::Native, Self::Favo, Self::Tcg];
}

impl fmt::Display for Machine {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Native => "native",
            Self::Favo => "favo",
            Self::Tcg => "TCG",
        })
    }
}

/// What all machines are given.
pub struct Setup<'a> {
    /// The program of the pieces of work.
    pub program: &'a Path,
    /// The favo command.
    pub favo: &'a Path,
    /// The kernel of both guests.
    pub kernel: &'a Path,
    /// The RAM disk of both guests; the program is its init.
    pub initrd: &'a Path,
    /// The pieces to do; none named is all.
    pub pieces: &'a [String],
    /// How much of each.
    pub scale: f64,
    /// Processors.
    pub cpus: u32,
    /// A guest's memory.
    pub memory_mib: u32,
    /// The longest a run may take.
    pub timeout: Duration,
}

/// Why there is no run.
#[derive(thiserror::Error, Debug)]
pub enum Error {
    /// The program isn't there or can't be run.
    #[error("{program} can't be started: {source}", program = program.display())]
    Start {
        /// Which.
        program: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// No temporary file.
    #[error("no temporary file for its errors: {0}")]
    NoTemporary(std::io::Error),
    /// It ended or hung before the work was done.
    #[error("{what} before the work was done; its last lines:\n  {last_lines}")]
    Stopped {
        /// How.
        what: String,
        /// Of its console and its standard error.
        last_lines: String,
    },
    /// The program said so.
    #[error("the program failed: {0}")]
    Failed(String),
}

impl Setup<'_> {
    fn names(&self) -> String {
        if self.pieces.is_empty() {
            "all".to_owned()
        } else {
            self.pieces.join(",")
        }
    }

    fn kernel_command_line(&self) -> String {
        let (names, scale) = (self.names(), self.scale);
        format!("console=ttyS0 quiet panic=-1 bench.only={names} bench.scale={scale}")
    }

    /// The command that starts `machine`.
    pub fn command(&self, machine: Machine) -> Command {
        let (cpus, memory) = (self.cpus.to_string(), self.memory_mib.to_string());
        let mut command;
        match machine {
            Machine::Native => {
                command = Command::new(self.program);
                command.args([&self.names(), &self.scale.to_string(), &cpus]);
            }
            Machine::Favo => {
                command = Command::new(self.favo);
                command
                    .args(["run", "--accel", "soft", "--cpus", &cpus])
                    .args(["--memory", &format!("{memory}M"), "--kernel"])
                    .arg(self.kernel)
                    .arg("--initrd")
                    .arg(self.initrd)
                    .args(["--cmdline", &self.kernel_command_line()]);
            }
            Machine::Tcg => {
                command = Command::new(QEMU);
                command
                    .args(["-M", "q35", "-accel", "tcg", "-cpu", "max", "-smp", &cpus])
                    .args(["-m", &memory, "-nodefaults", "-display", "none"])
                    .args(["-serial", "stdio", "-no-reboot", "-kernel"])
                    .arg(self.kernel)
                    .arg("-initrd")
                    .arg(self.initrd)
                    .args(["-append", &self.kernel_command_line()]);
            }
        }
        command
    }

    /// Starts `machine`, has the work done, and waits until it is gone.
    pub fn run(&self, machine: Machine) -> Result<Run, Error> {
        let mut errors = tempfile::tempfile().map_err(Error::NoTemporary)?;
        let mut command = self.command(machine);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(errors.try_clone().map_err(Error::NoTemporary)?);
        let deadline = Instant::now() + self.timeout;
        let mut process = Process(command.spawn().map_err(|source| Error::Start {
            program: command.get_program().into(),
            source,
        })?);
        let lines = process.lines();
        let mut console = Console::default();
        let what = loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match lines.recv_timeout(left) {
                Ok((time, line)) => match console.line(time, &line) {
                    Progress::Running => {}
                    Progress::Failed(why) => return Err(Error::Failed(why)),
                    Progress::Complete(run) => {
                        process.end_by(deadline);
                        return Ok(run);
                    }
                },
                Err(mpsc::RecvTimeoutError::Disconnected) => break "it ended".to_owned(),
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    break format!("{} s were over", self.timeout.as_secs());
                }
            }
        };
        let mut last_lines = console.last_lines();
        let mut said = Vec::new();
        if errors.rewind().is_ok() && errors.read_to_end(&mut said).is_ok() && !said.is_empty() {
            let said = String::from_utf8_lossy(&said[said.len().saturating_sub(2000)..]);
            last_lines = format!("{last_lines}\n  {}", said.trim().replace('\n', "\n  "));
        }
        Err(Error::Stopped { what, last_lines })
    }
}

/// The peer, as Debian's qemu-system-x86 has it.
const QEMU: &str = "qemu-system-x86_64";

/// The first line `program --version` prints, or what is wrong with it.
pub fn version(program: &Path) -> String {
    match Command::new(program).arg("--version").output() {
        Ok(output) => String::from_utf8_lossy(&output.stdout)
            .lines()
            .next()
            .unwrap_or("unknown")
            .to_owned(),
        Err(error) => format!("unknown: {error}"),
    }
}

/// The peer's version.
pub fn qemu_version() -> String {
    version(Path::new(QEMU))
}

/// A process that doesn't outlive its handle.
struct Process(Child);

impl Process {
    /// What it prints, with the time each line came. Ends when it ends.
    fn lines(&mut self) -> mpsc::Receiver<(Instant, String)> {
        let (sender, receiver) = mpsc::channel();
        if let Some(output) = self.0.stdout.take() {
            std::thread::spawn(move || {
                let mut output = BufReader::new(output);
                let mut line = Vec::new();
                // Bytes, not text: a guest can print anything.
                while output.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
                    let text = String::from_utf8_lossy(&line).into_owned();
                    if sender.send((Instant::now(), text)).is_err() {
                        break;
                    }
                    line.clear();
                }
            });
        }
        receiver
    }

    /// Lets it end by itself, so that the next machine has the host alone; not
    /// longer than ten seconds, nor past `deadline`.
    fn end_by(&mut self, deadline: Instant) {
        let patience = deadline.min(Instant::now() + Duration::from_secs(10));
        while Instant::now() < patience && !matches!(self.0.try_wait(), Ok(Some(_)) | Err(_)) {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails only if it is gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
