//! Instances as processes and files of this host.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use favo_agent::AgentClient;
use favo_image::export::{ExportFormat, ExportOptions, export};
use favo_image::{ImageName, NoProgress, Store as ImageStore};
use favo_types::ByteCount;
use favo_vmm::control::{Answer, Client, ClientError, Request, Status};
use favo_vmm::machine::RunState;
use jiff::Timestamp;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::unix::AsyncFd;

use crate::app::instance::Shape;
use crate::place::{Ending, ExitFile, Place};
use crate::runner::{Observation, ObservedExit, ObservedProcess, Runner, RunnerError};

/// How long a process may take until its socket is there: a slow host that
/// starts many.
const START_PATIENCE: Duration = Duration::from_secs(120);
/// How long an ended process may take to be gone.
const END_PATIENCE: Duration = Duration::from_secs(30);
/// How long a guest's agent may take for an answer.
const AGENT_PATIENCE: Duration = Duration::from_secs(10);
/// How much of its last words an error shows.
const LAST_WORDS: usize = 2000;

/// See the module.
#[derive(Clone, Debug)]
pub struct HostRunner {
    state: PathBuf,
    program: PathBuf,
    options: Vec<String>,
}

impl HostRunner {
    /// With the state in `state`; machines are run by `program vmm boot` with
    /// these options.
    pub fn new(
        state: impl Into<PathBuf>,
        program: impl Into<PathBuf>,
        options: Vec<String>,
    ) -> Self {
        Self {
            state: state.into(),
            program: program.into(),
            options,
        }
    }

    /// The directory of an instance.
    pub fn place(&self, uid: &str) -> Place {
        Place::new(self.state.join("instances").join(uid))
    }

    /// All directories there are, by uid.
    ///
    /// # Errors
    /// They can't be listed.
    pub fn uids(&self) -> std::io::Result<Vec<String>> {
        let directory = self.state.join("instances");
        let entries = match std::fs::read_dir(directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let name = |entry: std::io::Result<std::fs::DirEntry>| {
            entry.map(|entry| entry.file_name().to_string_lossy().into_owned())
        };
        entries.map(name).collect()
    }

    async fn blocking<R: Send + 'static>(
        &self,
        function: impl FnOnce(&Self) -> Result<R, RunnerError> + Send + 'static,
    ) -> Result<R, RunnerError> {
        let own = self.clone();
        tokio::task::spawn_blocking(move || function(&own)).await?
    }

    async fn ask(&self, uid: &str, request: Request) -> Result<(), RunnerError> {
        let place = self.place(uid);
        self.blocking(move |_| {
            // A process that has ended is seen at the next look.
            if let Some(mut client) = reach(&place)? {
                client.ask(&request)?;
            }
            Ok(())
        })
        .await
    }

    fn observe_now(&self, uid: &str) -> Result<Observation, RunnerError> {
        let place = self.place(uid);
        let disk = place.disk().exists();
        let Some(machine) = place.machine()? else {
            return Ok(Observation {
                disk,
                ..Observation::default()
            });
        };
        if place.is_alive()? {
            let status = status(&place);
            let running = status.as_ref().and_then(|status| status.machine.as_ref());
            return Ok(Observation {
                disk,
                process: Some(ObservedProcess {
                    shape: Shape {
                        cpus: machine.cpus,
                        memory: ByteCount(machine.memory),
                    },
                    demand: machine.demand,
                    paused: running.is_some_and(|machine| machine.state == RunState::Paused),
                    pid: status.as_ref().map(|status| status.pid),
                    engine: running.map(|machine| machine.engine.to_string()),
                }),
                exit: None,
            });
        }
        let exit = match place.exit() {
            Some(exit) => exit,
            // It is written once, so that its time stays the same.
            None => {
                let exit = ExitFile {
                    ending: Ending::Failed,
                    message: "its process was killed".to_owned(),
                    at: Timestamp::now(),
                };
                std::fs::write(place.exit_file(), serde_json::to_vec(&exit)?)?;
                exit
            }
        };
        Ok(Observation {
            disk,
            process: None,
            exit: Some(ObservedExit {
                machine,
                ending: exit.ending,
                message: exit.message,
                at: exit.at,
            }),
        })
    }

    fn prepare_now(&self, uid: &str, image: &str) -> Result<(), RunnerError> {
        let place = self.place(uid);
        std::fs::create_dir_all(place.directory())?;
        let store = ImageStore::open(&self.state)?;
        let name: ImageName = image.parse()?;
        let stored = store.show(&name)?;
        // The kernel is read at every start, from blobs that must stay.
        let blobs = stored.manifest.blobs().map(|blob| blob.digest);
        store.pin(&holder(uid)?, blobs)?;
        std::fs::write(place.image(), serde_json::to_vec(&stored)?)?;
        let options = ExportOptions {
            file: place.disk(),
            format: ExportFormat::Raw,
            replace: true,
        };
        export(&store, &name, &options, &NoProgress)?;
        Ok(())
    }

    fn start_now(&self, uid: &str, machine: &crate::place::MachineFile) -> Result<(), RunnerError> {
        let place = self.place(uid);
        if place.is_alive()? {
            return Ok(());
        }
        place.set_machine(machine)?;
        place.forget_exit()?;
        let log = File::create(place.process_log())?;
        let mut command = Command::new(&self.program);
        command
            .args(["vmm", "boot"])
            .args(&self.options)
            .arg(place.directory())
            .env("FAVO_STATE_DIR", &self.state)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Signals to the daemon's group are not for it.
            .process_group(0);
        let mut child = command.spawn()?;
        let begin = Instant::now();
        loop {
            if status(&place).is_some() {
                reap_later(child);
                return Ok(());
            }
            if let Some(ended) = child.try_wait()? {
                let words = match place.exit() {
                    Some(exit) => exit.message,
                    None => last_words(&place).unwrap_or_else(|| ended.to_string()),
                };
                return Err(RunnerError(words));
            }
            if begin.elapsed() > START_PATIENCE {
                child.kill()?;
                child.wait()?;
                return Err(RunnerError(format!(
                    "its process could not be reached for {} seconds",
                    START_PATIENCE.as_secs()
                )));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends the process: as it likes it, and then as it doesn't.
    fn kill_now(&self, uid: &str) -> Result<(), RunnerError> {
        let place = self.place(uid);
        let Some(mut client) = reach(&place)? else {
            return Ok(());
        };
        let pid = status(&place).map(|status| status.pid);
        let process = match pid {
            Some(pid) => process(&place, pid)?,
            None => None,
        };
        match client.ask(&Request::Stop) {
            // It ends in the middle of its answer.
            Ok(_) | Err(ClientError::Io { .. } | ClientError::Protocol { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        self.wait_for_end(&place, process.as_ref())
    }

    fn wait_for_end(&self, place: &Place, process: Option<&OwnedFd>) -> Result<(), RunnerError> {
        let begin = Instant::now();
        let mut killed = false;
        while place.is_alive()? {
            if begin.elapsed() > END_PATIENCE
                && !killed
                && let Some(process) = process
            {
                pidfd_send_signal(process, Signal::KILL)?;
                killed = true;
            }
            if begin.elapsed() > 2 * END_PATIENCE {
                return Err(RunnerError("its process doesn't end".to_owned()));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    fn remove_now(&self, uid: &str) -> Result<(), RunnerError> {
        let place = self.place(uid);
        match std::fs::remove_dir_all(place.directory()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        ImageStore::open(&self.state)?.unpin(&holder(uid)?)?;
        Ok(())
    }
}

#[async_trait]
impl Runner for HostRunner {
    async fn observe(&self, uid: &str) -> Result<Observation, RunnerError> {
        let uid = uid.to_owned();
        self.blocking(move |own| own.observe_now(&uid)).await
    }

    async fn prepare_disk(&self, uid: &str, image: &str) -> Result<(), RunnerError> {
        let (uid, image) = (uid.to_owned(), image.to_owned());
        self.blocking(move |own| own.prepare_now(&uid, &image))
            .await
    }

    async fn start(
        &self,
        uid: &str,
        machine: &crate::place::MachineFile,
    ) -> Result<(), RunnerError> {
        let (uid, machine) = (uid.to_owned(), machine.clone());
        self.blocking(move |own| own.start_now(&uid, &machine))
            .await
    }

    async fn pause(&self, uid: &str) -> Result<(), RunnerError> {
        self.ask(uid, Request::Pause).await
    }

    async fn resume(&self, uid: &str) -> Result<(), RunnerError> {
        self.ask(uid, Request::Resume).await
    }

    async fn ask_to_stop(&self, uid: &str) -> Result<(), RunnerError> {
        self.ask(uid, Request::PowerButton).await?;
        // Not every init listens to the button.
        let place = self.place(uid);
        tokio::task::spawn_blocking(move || {
            if let Err(error) = ask_agent_to_stop(&place) {
                tracing::debug!(%error, "a guest's agent was not asked to power off");
            }
        });
        Ok(())
    }

    async fn kill(&self, uid: &str) -> Result<(), RunnerError> {
        let uid = uid.to_owned();
        self.blocking(move |own| own.kill_now(&uid)).await
    }

    async fn remove(&self, uid: &str) -> Result<(), RunnerError> {
        let uid = uid.to_owned();
        self.blocking(move |own| own.remove_now(&uid)).await
    }

    async fn ended(&self, uid: &str) -> Result<(), RunnerError> {
        let place = self.place(uid);
        let opened = self
            .blocking(move |_| match status(&place) {
                Some(status) => process(&place, status.pid),
                None => Ok(None),
            })
            .await?;
        match opened {
            Some(process) => {
                #[expect(deprecated, reason = "the other one is unsafe; an OwnedFd stays open")]
                let process = AsyncFd::new(process)?;
                let _ready = process.readable().await?;
            }
            // It starts or ends just now.
            None => tokio::time::sleep(Duration::from_millis(100)).await,
        }
        Ok(())
    }
}

/// Under which an instance keeps the blobs of its image.
fn holder(uid: &str) -> Result<ImageName, RunnerError> {
    Ok(format!("instance-{uid}").parse()?)
}

fn status(place: &Place) -> Option<Status> {
    let reply = Client::connect(&place.control())
        .and_then(|mut client| client.ask(&Request::Status))
        .ok()?;
    match reply.answer {
        Answer::Status(status) => Some(status),
        _ => None,
    }
}

/// A connection to an instance's process, which may have been started just
/// now; none if it has ended.
fn reach(place: &Place) -> Result<Option<Client>, RunnerError> {
    let begin = Instant::now();
    loop {
        match Client::connect(&place.control()) {
            Ok(client) => return Ok(Some(client)),
            Err(error) => {
                if !place.is_alive()? {
                    return Ok(None);
                }
                if begin.elapsed() > START_PATIENCE {
                    return Err(error.into());
                }
            }
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn ask_agent_to_stop(place: &Place) -> Result<(), RunnerError> {
    let reply = Client::connect(&place.control())?.ask(&Request::Agent)?;
    if let Some(descriptor) = reply.descriptors.into_iter().next() {
        let stream = UnixStream::from(descriptor);
        stream.set_read_timeout(Some(AGENT_PATIENCE))?;
        AgentClient::connect(stream)?.power_off()?;
    }
    Ok(())
}

/// The process of an instance; none if it has ended.
fn process(place: &Place, pid: u32) -> Result<Option<OwnedFd>, RunnerError> {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return Ok(None);
    };
    match pidfd_open(pid, PidfdFlags::NONBLOCK) {
        // It held its lock after it was opened, so it is the right one.
        Ok(process) => Ok(place.is_alive()?.then_some(process)),
        Err(rustix::io::Errno::SRCH) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// A process that ended must be waited for by who started it, if that lives.
fn reap_later(mut child: std::process::Child) {
    let reaper = std::thread::Builder::new()
        .name("reaper".to_owned())
        .stack_size(64 << 10)
        .spawn(move || child.wait());
    if let Err(error) = reaper {
        tracing::warn!(%error, "an ended process will stay a zombie");
    }
}

fn last_words(place: &Place) -> Option<String> {
    let words = std::fs::read_to_string(place.process_log()).ok()?;
    let words = words.trim();
    let begin = words.len().saturating_sub(LAST_WORDS);
    let begin = (begin..=words.len()).find(|at| words.is_char_boundary(*at))?;
    (!words.is_empty()).then(|| words[begin..].to_owned())
}

#[cfg(test)]
#[path = "host_runner_test.rs"]
mod test;
