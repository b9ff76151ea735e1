//! Programs favo runs to make an image: found, watched, stopped with favo.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use crate::error::IoContext;
use crate::{ImageError, NoProgress, Progress};

/// How long a program may take to clean up after SIGTERM.
const GRACE: Duration = Duration::from_secs(10);

/// How much of what a program said goes into the error.
const TAIL_LINES: usize = 15;

/// Where administration programs are, which a user's PATH may lack.
const SYSTEM_DIRECTORIES: [&str; 3] = ["/usr/sbin", "/sbin", "/usr/local/sbin"];

/// A program to run.
#[derive(Debug)]
pub(crate) struct Tool {
    program: String,
    command: Command,
}

impl Tool {
    pub fn new(program: &str) -> Self {
        // setpriv: should favo be killed, its tools end too.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "TERM", "--"])
            .arg(find(program).unwrap_or_else(|| program.into()))
            .env("LC_ALL", "C")
            .env("PATH", search_path())
            .stdin(Stdio::null())
            .process_group(0);
        Self {
            program: program.into(),
            command,
        }
    }

    /// A program that mounts file systems and starts many others, such as mmdebstrap. Where the
    /// rights allow it runs in mount and process namespaces of its own: whatever ends it, no
    /// mount and no process of it remains.
    pub fn isolated(program: &str) -> Self {
        let unshare = ["--mount", "--mount-proc", "--pid", "--fork", "--kill-child"];
        let is_root = rustix::process::geteuid().is_root();
        let probe = || Self::new("unshare").args(unshare).arg("true");
        if !is_root || probe().run(&NoProgress, |_| {}).is_err() {
            return Self::new(program);
        }
        Self {
            program: program.into(),
            // The shell is process 1 there: signals reach the program as they do elsewhere.
            ..Self::new("unshare").args(unshare).args([
                "sh",
                "-c",
                "\"$@\"; exit $?",
                "sh",
                program,
            ])
        }
    }

    pub fn arg(mut self, argument: impl Into<OsString>) -> Self {
        self.command.arg(argument.into());
        self
    }

    pub fn args<I: IntoIterator<Item = A>, A: Into<OsString>>(mut self, arguments: I) -> Self {
        self.command.args(arguments.into_iter().map(Into::into));
        self
    }

    pub fn env(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.command.env(name, value.into());
        self
    }

    pub fn directory(mut self, directory: &Path) -> Self {
        self.command.current_dir(directory);
        self
    }

    /// Runs it to its end and returns its standard output. Every line of its standard error
    /// goes to `line`.
    pub fn run(
        mut self,
        progress: &dyn Progress,
        mut line: impl FnMut(&str),
    ) -> Result<String, ImageError> {
        let mut child = self
            .command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .during("run", &self.program)?;
        let (lines, output) = read_in_threads(&mut child);
        let mut tail = Vec::new();
        let mut stopped: Option<Instant> = None;
        let status = loop {
            while let Ok(text) = lines.try_recv() {
                line(&text);
                tail.push(text);
                if tail.len() > TAIL_LINES {
                    tail.remove(0);
                }
            }
            if let Some(status) = child.try_wait().during("wait for", &self.program)? {
                break status;
            }
            if progress.is_cancelled() {
                let since = *stopped.get_or_insert_with(|| {
                    signal(&child, Signal::TERM);
                    Instant::now()
                });
                if since.elapsed() > GRACE {
                    signal(&child, Signal::KILL);
                }
            }
            sleep(Duration::from_millis(20));
        };
        if stopped.is_some() {
            return Err(ImageError::Cancelled);
        }
        // What is left in the pipe; the reader ends with it.
        for text in lines {
            line(&text);
            tail.push(text);
        }
        let output = output.join().unwrap_or_default();
        if !status.success() {
            let from = tail.len().saturating_sub(TAIL_LINES);
            return Err(ImageError::Tool {
                program: self.program,
                status: status.to_string(),
                output: tail[from..].join("\n"),
            });
        }
        Ok(output)
    }
}

fn read_in_threads(child: &mut Child) -> (mpsc::Receiver<String>, thread::JoinHandle<String>) {
    let (sender, lines) = mpsc::channel();
    let stderr = child.stderr.take();
    thread::spawn(move || {
        let Some(stderr) = stderr else { return };
        for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
            if sender
                .send(String::from_utf8_lossy(&line).into_owned())
                .is_err()
            {
                return;
            }
        }
    });
    let stdout = child.stdout.take();
    let output = thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut stdout) = stdout {
            let _ = stdout.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    });
    (lines, output)
}

fn signal(child: &Child, signal: Signal) {
    let _ = kill_process_group(Pid::from_child(child), signal);
}

/// Fails with the one command that installs what is missing. `needed`: programs and the
/// Debian packages they are in.
pub(crate) fn require(what: &str, needed: &[(&str, &str)]) -> Result<(), ImageError> {
    let missing: Vec<_> = needed.iter().filter(|(p, _)| find(p).is_none()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(ImageError::MissingTools {
        what: what.into(),
        programs: missing.iter().map(|(p, _)| p.to_string()).collect(),
        packages: missing.iter().map(|(_, p)| p.to_string()).collect(),
    })
}

/// What a build that makes a disk needs on this machine, as this user.
pub(crate) fn disk_tools() -> Vec<(&'static str, &'static str)> {
    let mut tools = vec![
        ("mke2fs", "e2fsprogs"),
        ("tar", "tar"),
        ("setpriv", "util-linux"),
    ];
    if !rustix::process::geteuid().is_root() {
        tools.push(("fakeroot", "fakeroot"));
    }
    tools
}

fn find(program: &str) -> Option<PathBuf> {
    std::env::split_paths(&search_path())
        .map(|directory| directory.join(program))
        .find(|path| rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok())
}

fn search_path() -> OsString {
    let own = std::env::var_os("PATH").unwrap_or_default();
    let directories = std::env::split_paths(&own).chain(SYSTEM_DIRECTORIES.map(PathBuf::from));
    std::env::join_paths(directories).unwrap_or(own)
}
