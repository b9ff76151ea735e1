//! `favo cp`: files and directories into an instance and out of it.
//!
//! A tar stream between here and tar(1) in the guest, which every image with a
//! shell has. What comes out of a guest is not trusted: nothing of it leaves
//! the directory it is unpacked in, which is then renamed.

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;

use favo_agent::client::{Control, ExecIo, ExecOutcome, Input, OutputStream};
use favo_agent::protocol::Exit;
use favo_agent::{AgentClient, Exec};

use super::Daemon;
use super::session::agent;
use crate::{Failure, exit};

/// What a failed tar said, that is shown.
const LAST_WORDS: usize = 2000;

/// `favo cp`.
#[derive(clap::Args)]
pub struct CopyArgs {
    /// What to copy, with all that is in it: a path here, or NAME:PATH in an instance.
    source: String,
    /// Where to: the same. An existing directory takes it under its own name.
    destination: String,
}

/// A path here or in an instance.
#[derive(Debug, PartialEq, Eq)]
enum End<'a> {
    Here(&'a Path),
    Instance(&'a str, &'a str),
}

impl<'a> End<'a> {
    /// Only what looks like an instance's name before the colon is one: ./a:b
    /// is a file.
    fn of(text: &'a str) -> Self {
        match text.split_once(':') {
            Some((name, path)) if !name.is_empty() && !name.contains('/') => {
                Self::Instance(name, path)
            }
            _ => Self::Here(Path::new(text)),
        }
    }
}

/// Copies.
pub fn copy(args: &CopyArgs) -> Result<ExitCode, Failure> {
    match (End::of(&args.source), End::of(&args.destination)) {
        (End::Here(source), End::Instance(name, path)) => put(source, name, path)?,
        (End::Instance(name, path), End::Here(destination)) => get(name, path, destination)?,
        _ => {
            let message = "one of the two is in an instance (NAME:PATH), the other one is here";
            return Err(Failure::with_status(message, exit::FAILED));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Into an instance.
fn put(source: &Path, name: &str, path: &str) -> Result<(), Failure> {
    let about = |error: io::Error| Failure::new(format!("{}: {error}", source.display()));
    let is_directory = fs::metadata(source).map_err(about)?.is_dir();
    let daemon = Daemon::of_state()?;
    let mut guest = agent(&daemon, name)?;
    let path = if path.is_empty() { "." } else { path };
    let (parent, called) = if guest_has_directory(&mut guest, path)? {
        let own = source.canonicalize().map_err(about)?;
        let own = own.file_name().unwrap_or_default().to_owned();
        (path.to_owned(), PathBuf::from(own))
    } else {
        let (parent, last) = split(path)?;
        (parent, PathBuf::from(last))
    };
    let (mut writer, reader) = UnixStream::pair()?;
    let (from, as_what) = (source.to_owned(), called);
    let packer = thread::spawn(move || -> io::Result<()> {
        let mut archive = tar::Builder::new(&mut writer);
        archive.follow_symlinks(false);
        match is_directory {
            true => archive.append_dir_all(&as_what, &from)?,
            false => archive.append_path_with_name(&from, &as_what)?,
        }
        archive.finish()
    });
    let command = ["tar", "-x", "-f", "-", "-C", &parent];
    let mut io = Transfer::reading(reader);
    let ended = run(&mut guest, &command, &mut io);
    // A guest that stopped reading has ended the packer, too.
    drop(io.input.take());
    let packed = packer.join().map_err(|_| Failure::new("packing failed"))?;
    check(ended?, &io.said, name)?;
    packed.map_err(about)
}

/// Out of an instance.
fn get(name: &str, path: &str, destination: &Path) -> Result<(), Failure> {
    let (parent, last) = split(path)?;
    let target = match destination.is_dir() {
        true => destination.join(&last),
        false => destination.to_owned(),
    };
    let beside = match target.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    if target.is_dir() {
        let message = format!("{} is there already", target.display());
        return Err(Failure::with_status(message, exit::CONFLICT));
    }
    let about = |error: io::Error| Failure::new(format!("{}: {error}", target.display()));
    let scratch = tempfile::Builder::new()
        .prefix(".favo-cp-")
        .tempdir_in(beside)
        .map_err(about)?;
    let daemon = Daemon::of_state()?;
    let mut guest = agent(&daemon, name)?;
    let (writer, mut reader) = UnixStream::pair()?;
    let inside = scratch.path().to_owned();
    let unpacker = thread::spawn(move || -> io::Result<()> {
        let mut archive = tar::Archive::new(&mut reader);
        archive.set_preserve_mtime(true);
        // It refuses what would lie elsewhere, by its name or by a link.
        archive.unpack(&inside)?;
        // What tar pads the end with.
        io::copy(&mut reader, &mut io::sink()).map(drop)
    });
    let command = ["tar", "-c", "-f", "-", "-C", &parent, "--", &last];
    let mut io = Transfer::writing(writer);
    let ended = run(&mut guest, &command, &mut io);
    drop(io.output.take());
    let unpacked = unpacker
        .join()
        .map_err(|_| Failure::new("unpacking failed"))?;
    check(ended?, &io.said, name)?;
    unpacked.map_err(about)?;
    fs::rename(scratch.path().join(&last), &target).map_err(about)
}

/// A path in a guest as its directory and its last name.
fn split(path: &str) -> Result<(String, String), Failure> {
    let trimmed = path.trim_end_matches('/');
    let (parent, last) = match trimmed.rsplit_once('/') {
        Some(("", last)) => ("/", last),
        Some(parts) => parts,
        None => (".", trimmed),
    };
    if matches!(last, "" | "." | "..") {
        return Err(Failure::new(format!("'{path}' names no file or directory")));
    }
    Ok((parent.to_owned(), last.to_owned()))
}

fn guest_has_directory(guest: &mut AgentClient<UnixStream>, path: &str) -> Result<bool, Failure> {
    let mut io = Transfer::default();
    Ok(run(guest, &["test", "-d", path], &mut io)? == Exit::Code(0))
}

fn run(
    guest: &mut AgentClient<UnixStream>,
    command: &[&str],
    io: &mut Transfer,
) -> Result<Exit, Failure> {
    let exec = Exec {
        argv: command
            .iter()
            .map(|word| (*word).to_owned().into())
            .collect(),
        ..Exec::default()
    };
    match guest.exec(&exec, io)? {
        ExecOutcome::Exited(exit) => Ok(exit),
        ExecOutcome::Left => Err(Failure::new("the copy was left before its end")),
    }
}

fn check(ended: Exit, said: &[u8], name: &str) -> Result<(), Failure> {
    if ended == Exit::Code(0) {
        return Ok(());
    }
    let said = String::from_utf8_lossy(said);
    Err(Failure::new(format!("tar in {name}: {}", said.trim())))
}

/// A command's input from a stream, its output to one, its errors kept.
#[derive(Default)]
struct Transfer {
    input: Option<UnixStream>,
    output: Option<UnixStream>,
    said: Vec<u8>,
}

impl Transfer {
    fn reading(input: UnixStream) -> Self {
        Self {
            input: Some(input),
            ..Self::default()
        }
    }

    fn writing(output: UnixStream) -> Self {
        Self {
            output: Some(output),
            ..Self::default()
        }
    }
}

impl ExecIo for Transfer {
    fn input_fd(&self) -> Option<BorrowedFd<'_>> {
        self.input.as_ref().map(AsFd::as_fd)
    }

    fn read_input(&mut self, buffer: &mut [u8]) -> io::Result<Input> {
        let Some(input) = &mut self.input else {
            return Ok(Input::End);
        };
        Ok(match input.read(buffer)? {
            0 => Input::End,
            count => Input::Bytes(count),
        })
    }

    fn control_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn take_control(&mut self) -> io::Result<Option<Control>> {
        Ok(None)
    }

    fn write_output(&mut self, stream: OutputStream, bytes: &[u8]) -> io::Result<()> {
        match (stream, &mut self.output) {
            // An unpacker that failed reads no more; its error is told.
            (OutputStream::Stdout, Some(output)) => match output.write_all(bytes) {
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
                other => other,
            },
            (OutputStream::Stdout, None) => Ok(()),
            (OutputStream::Stderr, _) => {
                let room = LAST_WORDS.saturating_sub(self.said.len());
                self.said.extend(&bytes[..bytes.len().min(room)]);
                Ok(())
            }
        }
    }
}

#[cfg(test)]
#[path = "copy_test.rs"]
mod test;
