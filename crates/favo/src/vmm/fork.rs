//! `favo vmm fork`: a machine becomes several.
//!
//! The processes are started before the machine is asked for its clone, so it
//! stands still for nothing but the clone itself.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use favo_vmm::control::{Answer, Client, ClientError, Request};
use serde::Serialize;

use super::client::{ask, strange};
use crate::Failure;
use crate::output::{Format, print_list};

/// How long a new process may take to serve its socket.
const PATIENCE: Duration = Duration::from_secs(20);

/// A clone's process.
struct Waiting {
    socket: PathBuf,
    child: Child,
    client: Option<Client>,
    adopted: bool,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // A process without a machine would wait for ever.
        if !self.adopted {
            let _ = self.child.kill();
            let _ = self.child.wait();
            let _ = std::fs::remove_file(&self.socket);
        }
    }
}

/// A clone that runs.
#[derive(Serialize)]
struct Clone {
    socket: PathBuf,
    pid: u32,
    /// From the request for it until it ran, in microseconds.
    took_us: u64,
    /// How long the original stood still, in microseconds.
    paused_us: u64,
}

/// Makes `count` clones, with control sockets `SOCKET.1` and so on.
pub fn run(socket: &Path, count: u32, format: Format) -> Result<ExitCode, Failure> {
    let status = ask(socket, &Request::Status)?.answer;
    let Answer::Status(status) = status else {
        return Err(strange(&status));
    };
    let engine = status
        .machine
        .ok_or_else(|| Failure::new("no machine is there to clone"))?
        .engine;
    let free = (1u32..).map(|number| numbered(socket, number));
    let sockets: Vec<PathBuf> = free
        .filter(|path| path.symlink_metadata().is_err())
        .take(count as usize)
        .collect();
    let mut waiting = Vec::new();
    for socket in sockets {
        waiting.push(start(socket, &engine.to_string())?);
    }
    for process in &mut waiting {
        connect(process)?;
    }
    let begin = Instant::now();
    let reply = ask(socket, &Request::Fork)?;
    let Answer::Forked { paused_us, machine } = reply.answer else {
        return Err(strange(&reply.answer));
    };
    let request = Request::Adopt { machine };
    let mut clones = Vec::new();
    for process in &mut waiting {
        if let Some(mut client) = process.client.take() {
            client.ask_with(&request, &reply.descriptors)?;
            process.adopted = true;
        }
        clones.push(Clone {
            socket: process.socket.clone(),
            pid: process.child.id(),
            took_us: begin.elapsed().as_micros() as u64,
            paused_us,
        });
    }
    let millis = |micros: u64| format!("{}.{:02} ms", micros / 1000, micros % 1000 / 10);
    let headings = ["socket", "pid", "took", "paused"];
    print_list(format, &clones, &headings, |clone| {
        vec![
            clone.socket.display().to_string(),
            clone.pid.to_string(),
            millis(clone.took_us),
            millis(clone.paused_us),
        ]
    })?;
    Ok(ExitCode::SUCCESS)
}

fn numbered(socket: &Path, number: u32) -> PathBuf {
    let mut path: OsString = socket.as_os_str().to_owned();
    path.push(format!(".{number}"));
    path.into()
}

fn start(socket: PathBuf, engine: &str) -> Result<Waiting, Failure> {
    let program = std::env::current_exe()?;
    let child = Command::new(program)
        .args(["vmm", "serve", "--accel", engine])
        .arg(&socket)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        // What goes wrong is told over its socket; a pipe that it kept open
        // would keep whoever reads our errors waiting.
        .stderr(Stdio::null())
        // Ctrl-C here is not meant for it.
        .process_group(0)
        .spawn()?;
    Ok(Waiting {
        socket,
        child,
        client: None,
        adopted: false,
    })
}

fn connect(process: &mut Waiting) -> Result<(), Failure> {
    let begin = Instant::now();
    loop {
        let error = match Client::connect(&process.socket) {
            Ok(client) => {
                process.client = Some(client);
                return Ok(());
            }
            Err(error @ ClientError::Io { .. }) if begin.elapsed() < PATIENCE => error,
            Err(error) => return Err(error.into()),
        };
        if let Some(status) = process.child.try_wait()? {
            return Err(Failure::new(format!(
                "{error}; its process ended: {status}"
            )));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}
