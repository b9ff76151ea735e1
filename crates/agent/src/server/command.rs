//! One command the host asked for: its process, its pipes or terminal, its pending input.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::protocol::{ByteString, CHUNK, Exec, Exit, WindowSize};
use crate::sys;

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// ^D, the character that ends a terminal's input.
const END_OF_TRANSMISSION: u8 = 4;

/// Where output comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    Stdout,
    Stderr,
    Terminal,
}

/// A running command.
#[derive(Debug)]
pub struct Command {
    pub pid: Pid,
    pub pidfd: OwnedFd,
    /// How it ended, once it has been collected.
    pub exit: Option<Exit>,
    /// Input it has not taken yet.
    pub input: VecDeque<u8>,
    input_ended: bool,
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    terminal: Option<OwnedFd>,
}

/// Why a command could not be started.
#[derive(Debug)]
pub struct SpawnFailure {
    /// What a shell would return.
    pub status: u8,
    pub message: String,
}

/// What /etc/passwd says about root.
struct Login {
    home: PathBuf,
    shell: PathBuf,
}

impl Command {
    /// Starts what `exec` asks for, in a session of its own.
    pub fn spawn(exec: &Exec) -> Result<Self, SpawnFailure> {
        let login = Login::of_root();
        let (program, mut command) = prepare(exec, &login)?;
        let failed = |e: io::Error| SpawnFailure {
            // A shell's convention: 127 for what is not there, 126 for what cannot run.
            status: if e.kind() == io::ErrorKind::NotFound {
                127
            } else {
                126
            },
            message: format!("{}: {e}", program.display()),
        };
        let terminal = match exec.tty {
            Some(size) => Some(open_terminal(size, &mut command).map_err(failed)?),
            None => {
                command
                    .stdin(Stdio::piped())
                    .stdout(Stdio::piped())
                    .stderr(Stdio::piped());
                None
            }
        };
        let mut child = sys::spawn_in_session(command, terminal.is_some()).map_err(failed)?;
        let pid = Pid::from_child(&child);
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(|e| failed(e.into()))?;
        let this = Self {
            pid,
            pidfd,
            exit: None,
            input: VecDeque::new(),
            input_ended: false,
            stdin: child.stdin.take().map(OwnedFd::from),
            stdout: child.stdout.take().map(OwnedFd::from),
            stderr: child.stderr.take().map(OwnedFd::from),
            terminal,
        };
        for fd in [&this.stdin, &this.stdout, &this.stderr, &this.terminal]
            .into_iter()
            .flatten()
        {
            rustix::io::ioctl_fionbio(fd, true).map_err(|e| failed(e.into()))?;
        }
        Ok(this)
    }

    /// The descriptors output comes from, as long as they are open.
    pub fn outputs(&self) -> impl Iterator<Item = (Output, BorrowedFd<'_>)> {
        [
            (Output::Stdout, &self.stdout),
            (Output::Stderr, &self.stderr),
            (Output::Terminal, &self.terminal),
        ]
        .into_iter()
        .filter_map(|(output, fd)| fd.as_ref().map(|fd| (output, fd.as_fd())))
    }

    /// The descriptor to wait on before [`Command::feed`], if there is input to give.
    pub fn input_waiting(&self) -> Option<BorrowedFd<'_>> {
        if self.input.is_empty() {
            return None;
        }
        self.input_fd()
    }

    fn input_fd(&self) -> Option<BorrowedFd<'_>> {
        self.terminal
            .as_ref()
            .or(self.stdin.as_ref())
            .map(OwnedFd::as_fd)
    }

    /// Gives the command what input it takes now; returns how many bytes are off our hands.
    /// Input nobody will read any more counts: the host must not wait for it.
    pub fn feed(&mut self, ready: PollFlags) -> usize {
        let mut consumed = 0;
        while !self.input.is_empty() {
            let Some(fd) = self.input_fd() else {
                consumed += self.input.len();
                self.input.clear();
                break;
            };
            match rustix::io::write(fd, self.input.as_slices().0) {
                Ok(count) => {
                    self.input.drain(..count);
                    consumed += count;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) if !ready.contains(PollFlags::ERR) => break,
                Err(_) => {
                    consumed += self.input.len();
                    self.input.clear();
                    self.stdin = None;
                    break;
                }
            }
        }
        if self.input_ended && self.input.is_empty() {
            self.stdin = None;
        }
        consumed
    }

    /// No more input will come: closes it once the command has taken what is there.
    pub fn end_input(&mut self) {
        if self.input_ended {
            return;
        }
        self.input_ended = true;
        if self.terminal.is_some() {
            self.input.push_back(END_OF_TRANSMISSION);
        } else if self.input.is_empty() {
            self.stdin = None;
        }
    }

    /// Reads what output there is, at most a chunk. `None`: none now, or the end, after which
    /// the descriptor is no longer among [`Command::outputs`].
    pub fn read(&mut self, output: Output) -> Option<Vec<u8>> {
        let slot = match output {
            Output::Stdout => &mut self.stdout,
            Output::Stderr => &mut self.stderr,
            Output::Terminal => &mut self.terminal,
        };
        let fd = slot.as_ref()?;
        let mut bytes = vec![0; CHUNK];
        match rustix::io::read(fd, &mut bytes) {
            Ok(0) => *slot = None,
            Ok(count) => {
                bytes.truncate(count);
                return Some(bytes);
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            // EIO: nothing has the terminal open any more.
            Err(_) => *slot = None,
        }
        None
    }

    /// Gives the terminal, if there is one, a new size; what runs on it gets SIGWINCH.
    pub fn resize(&self, size: WindowSize) {
        if let Some(terminal) = &self.terminal {
            let _ = tcsetwinsize(terminal, winsize(size));
        }
    }

    /// Sends the command's process group a signal.
    pub fn signal(&self, signal: i32) -> Result<(), String> {
        let Some(named) = Signal::from_named_raw(signal) else {
            return Err(format!("no signal has the number {signal}"));
        };
        match kill_process_group(self.pid, named) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(e) => Err(format!("signal {signal}: {e}")),
        }
    }

    /// The host is gone: tells the command so. Its terminal goes with `self`.
    pub fn hang_up(self) {
        if self.exit.is_none() {
            let _ = kill_process_group(self.pid, Signal::HUP);
            let _ = kill_process_group(self.pid, Signal::CONT);
        }
    }
}

impl Login {
    fn of_root() -> Self {
        let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        let mut fields = passwd
            .lines()
            .map(|line| line.split(':').collect::<Vec<_>>())
            .find(|fields| fields.len() >= 7 && fields[2] == "0")
            .map(|fields| (PathBuf::from(fields[5]), PathBuf::from(fields[6])))
            .unwrap_or_default();
        if !fields.0.is_dir() {
            fields.0 = PathBuf::from("/");
        }
        if !fields.1.is_file() {
            let shells = ["/bin/bash", "/bin/sh"];
            fields.1 = shells
                .map(PathBuf::from)
                .into_iter()
                .find(|shell| shell.is_file())
                .unwrap_or_else(|| PathBuf::from("/bin/sh"));
        }
        Self {
            home: fields.0,
            shell: fields.1,
        }
    }
}

/// The command with its arguments, environment and directory; its descriptors are still unset.
fn prepare(exec: &Exec, login: &Login) -> Result<(PathBuf, std::process::Command), SpawnFailure> {
    let os = |text: &ByteString| OsString::from_vec(text.0.clone());
    let (program, mut command) = match exec.argv.split_first() {
        Some((program, arguments)) => {
            let program = PathBuf::from(os(program));
            let mut command = std::process::Command::new(&program);
            command.args(arguments.iter().map(os));
            (program, command)
        }
        None => {
            let mut command = std::process::Command::new(&login.shell);
            // The leading dash is how a shell knows that this is a login.
            let mut name = OsString::from("-");
            name.push(login.shell.file_name().unwrap_or(OsStr::new("sh")));
            command.arg0(name);
            (login.shell.clone(), command)
        }
    };
    command
        .env_clear()
        .env("PATH", DEFAULT_PATH)
        .env("HOME", &login.home)
        .env("USER", "root")
        .env("LOGNAME", "root")
        .env("SHELL", &login.shell)
        .env("LANG", "C.UTF-8");
    if exec.tty.is_some() {
        command.env("TERM", "linux");
    }
    for variable in &exec.env {
        let Some(equals) = variable
            .0
            .iter()
            .position(|&b| b == b'=')
            .filter(|&at| at > 0)
        else {
            return Err(SpawnFailure {
                status: 126,
                message: format!("environment variable {variable:?} is not NAME=value"),
            });
        };
        command.env(
            OsStr::from_bytes(&variable.0[..equals]),
            OsStr::from_bytes(&variable.0[equals + 1..]),
        );
    }
    let cwd = match &exec.cwd {
        Some(cwd) => PathBuf::from(os(cwd)),
        None => login.home.clone(),
    };
    check_directory(&cwd)?;
    command.current_dir(cwd);
    Ok((program, command))
}

/// A missing directory would otherwise be reported as a missing program.
fn check_directory(cwd: &Path) -> Result<(), SpawnFailure> {
    let problem = match std::fs::metadata(cwd) {
        Ok(metadata) if metadata.is_dir() => return Ok(()),
        Ok(_) => io::Error::from(io::ErrorKind::NotADirectory),
        Err(e) => e,
    };
    Err(SpawnFailure {
        status: 126,
        message: format!("working directory {}: {problem}", cwd.display()),
    })
}

/// A new terminal as the command's three descriptors; returns our side of it.
fn open_terminal(size: WindowSize, command: &mut std::process::Command) -> io::Result<OwnedFd> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let ours = openpt(flags)?;
    grantpt(&ours)?;
    unlockpt(&ours)?;
    let theirs = ioctl_tiocgptpeer(&ours, flags)?;
    tcsetwinsize(&ours, winsize(size))?;
    command
        .stdin(theirs.try_clone()?)
        .stdout(theirs.try_clone()?)
        .stderr(theirs);
    Ok(ours)
}

fn winsize(size: WindowSize) -> Winsize {
    Winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}
