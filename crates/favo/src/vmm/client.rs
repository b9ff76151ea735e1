//! The commands that ask a VM process for something.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;

use favo_agent::client::{ExecOutcome, ProcessIo};
use favo_agent::{AgentClient, ClientError as AgentError, Exec};
use favo_types::ByteCount;
use favo_vmm::control::{Answer, Client, ClientError, Reply, Request};
use favo_vmm::snapshot;
use serde::Serialize;

use crate::output::{Format, print_json, print_line};
use crate::{Failure, exit};

pub fn ask(socket: &Path, request: &Request) -> Result<Reply, Failure> {
    let answered = Client::connect(socket).and_then(|mut client| client.ask(request));
    answered.map_err(|error| {
        let status = match &error {
            ClientError::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                exit::NOT_FOUND
            }
            ClientError::Refused(error)
                if ["exists", "busy", "has-machine"].contains(&error.code.as_str()) =>
            {
                exit::CONFLICT
            }
            _ => exit::FAILED,
        };
        Failure::with_status(error, status)
    })
}

pub fn strange(answer: &Answer) -> Failure {
    Failure::new(format!(
        "the VM process answered something else: {answer:?}"
    ))
}

fn done(socket: &Path, request: &Request) -> Result<ExitCode, Failure> {
    match ask(socket, request)?.answer {
        Answer::Done => Ok(ExitCode::SUCCESS),
        other => Err(strange(&other)),
    }
}

/// `favo vmm pause`.
pub fn pause(socket: &Path) -> Result<ExitCode, Failure> {
    done(socket, &Request::Pause)
}

/// `favo vmm resume`.
pub fn resume(socket: &Path) -> Result<ExitCode, Failure> {
    done(socket, &Request::Resume)
}

/// `favo vmm stop`.
pub fn stop(socket: &Path) -> Result<ExitCode, Failure> {
    done(socket, &Request::Stop)
}

/// `favo vmm restore`.
pub fn restore(socket: &Path, directory: &Path) -> Result<ExitCode, Failure> {
    let directory = std::path::absolute(directory)?;
    done(socket, &Request::Restore { directory })
}

/// `favo vmm status`.
pub fn status(socket: &Path, format: Format) -> Result<ExitCode, Failure> {
    let status = match ask(socket, &Request::Status)?.answer {
        Answer::Status(status) => status,
        other => return Err(strange(&other)),
    };
    match (format, &status.machine) {
        (Format::Json, _) => print_json(&status)?,
        (Format::Table, None) => print_line(&format!(
            "process {} has no machine yet; favo vmm restore gives it one",
            status.pid
        )),
        (Format::Table, Some(machine)) => {
            let state = serde_json::to_value(machine.state)?;
            print_line(&format!(
                "{}: {} processors and {} of memory on the {} engine, process {}",
                state.as_str().unwrap_or_default(),
                machine.cpus,
                ByteCount(machine.memory_bytes),
                machine.engine,
                status.pid
            ));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// `favo vmm snapshot`.
pub fn snapshot(
    socket: &Path,
    directory: &Path,
    incremental: bool,
    format: Format,
) -> Result<ExitCode, Failure> {
    let request = Request::Snapshot {
        directory: std::path::absolute(directory)?,
        incremental,
    };
    let answer = ask(socket, &request)?.answer;
    match (format, &answer) {
        (Format::Json, Answer::Snapshot { .. }) => print_json(&answer)?,
        (
            Format::Table,
            Answer::Snapshot {
                id,
                paused_us,
                took_us,
                memory_bytes,
            },
        ) => print_line(&format!(
            "{id}: {} of memory written in {} ms; the guest stood still for {} ms",
            ByteCount(*memory_bytes),
            millis(*took_us),
            millis(*paused_us)
        )),
        (_, other) => return Err(strange(other)),
    }
    Ok(ExitCode::SUCCESS)
}

fn millis(micros: u64) -> String {
    format!("{}.{}", micros / 1000, micros % 1000 / 100)
}

/// `favo vmm exec`.
pub fn exec(socket: &Path, command: &[String]) -> Result<ExitCode, Failure> {
    let reply = ask(socket, &Request::Agent)?;
    let Some(descriptor) = reply.descriptors.into_iter().next() else {
        return Err(strange(&reply.answer));
    };
    let stream = UnixStream::from(descriptor);
    stream.set_nonblocking(false)?;
    let mut client = AgentClient::connect(stream)?;
    let exec = Exec {
        argv: command.iter().cloned().map(Into::into).collect(),
        ..Exec::default()
    };
    match client.exec(&exec, &mut ProcessIo) {
        Ok(ExecOutcome::Exited(exit)) => Ok(ExitCode::from(exit.shell_status())),
        Ok(ExecOutcome::Left) => Ok(ExitCode::from(exit::STOPPED)),
        Err(AgentError::ExecFailed { status, message }) => {
            Err(Failure::with_status(message, status))
        }
        Err(error) => Err(error.into()),
    }
}

/// `favo vmm verify`.
pub fn verify(directory: &Path, format: Format) -> Result<ExitCode, Failure> {
    #[derive(Serialize)]
    struct Report {
        id: snapshot::SnapshotId,
        bytes: u64,
        parents: usize,
    }
    let verified = snapshot::verify(directory)
        .map_err(|error| Failure::new(format!("{error} ({})", error.hint())))?;
    let report = Report {
        id: verified.id,
        bytes: verified.bytes,
        parents: verified.parents,
    };
    match format {
        Format::Json => print_json(&report)?,
        Format::Table => print_line(&format!(
            "{}: as it was written, {} of data with those of {} snapshots below",
            report.id,
            ByteCount(report.bytes),
            report.parents
        )),
    }
    Ok(ExitCode::SUCCESS)
}
