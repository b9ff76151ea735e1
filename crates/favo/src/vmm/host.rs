//! Does what a control socket asks for, with the machine of this process.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use favo_agent::protocol::DEFAULT_VSOCK_PORT;
use favo_vmm::clone::{self, MachineClone};
use favo_vmm::control::{Answer, ControlError, Handler, Reply, Request, Server, Status};
use favo_vmm::machine::{Machine, MachineHandle};
use favo_vmm::snapshot::{self, SnapshotOptions};

use super::console::Console;
use super::owner::Owner;
use crate::Failure;

/// How long a guest's agent may take to be there again: it reconnects at once,
/// when its processor gets to it.
const AGENT_PATIENCE: Duration = Duration::from_secs(30);

/// An agent may keep so many connections for commands to come.
const MOST_WAITING: usize = 8;

/// The machine that a control socket is about.
pub struct Current {
    /// By what it is steered.
    pub handle: MachineHandle,
    /// What its snapshots keep.
    pub owner: Owner,
    /// Where its agent arrives, if nobody else talks to it.
    pub agent: Option<Arc<AgentDoor>>,
    /// Its console, if it has one that can be attached to.
    pub console: Option<Console>,
}

/// What a machine is made of in a process that has none.
pub enum Origin {
    /// A snapshot in this directory.
    Snapshot(PathBuf),
    /// A clone, with its descriptors.
    Clone(Box<MachineClone>, Vec<OwnedFd>),
}

/// Makes a machine.
pub type Restore = dyn Fn(Origin) -> Result<Current, ControlError> + Send + Sync;

/// See the module.
pub struct Host {
    current: Mutex<Option<Current>>,
    restore: Option<Box<Restore>>,
}

impl Host {
    /// With a machine that somebody else runs.
    pub fn of(current: Current) -> Self {
        Self {
            current: Mutex::new(Some(current)),
            restore: None,
        }
    }

    /// Without a machine; `restore` makes one.
    pub fn waiting(restore: Box<Restore>) -> Self {
        Self {
            current: Mutex::new(None),
            restore: Some(restore),
        }
    }

    /// Serves `path` for the machine of `favo run --control`.
    pub fn serve_run(path: &Path, machine: &Machine, owner: Owner) -> Result<Server, Failure> {
        let host = Self::of(Current {
            handle: machine.handle(),
            owner,
            agent: None,
            console: None,
        });
        start(path, Arc::new(host))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Current>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn machine(&self) -> Result<(MachineHandle, Owner, Option<Arc<AgentDoor>>), ControlError> {
        let current = self.lock();
        let current = current.as_ref().ok_or_else(|| {
            ControlError::new("no-machine", "no machine is here", "restore one first")
        })?;
        Ok((
            current.handle.clone(),
            current.owner.clone(),
            current.agent.clone(),
        ))
    }

    fn status(&self) -> Result<Reply, ControlError> {
        let machine = match self.machine() {
            Ok((handle, ..)) => Some(handle.status()?),
            Err(_) => None,
        };
        Ok(Answer::Status(Status {
            pid: std::process::id(),
            favo: env!("CARGO_PKG_VERSION").to_owned(),
            machine,
        })
        .into())
    }

    fn snapshot(&self, directory: &Path, incremental: bool) -> Result<Reply, ControlError> {
        let (handle, owner, _) = self.machine()?;
        let owner = owner
            .value()
            .map_err(|error| ControlError::new("not-saveable", error, ""))?;
        let options = SnapshotOptions { incremental, owner };
        let report = snapshot::write(&handle, directory, options)?;
        Ok(Answer::from(report).into())
    }

    fn fork(&self) -> Result<Reply, ControlError> {
        let (handle, owner, _) = self.machine()?;
        let owner = owner.for_clone()?;
        let owner = owner
            .value()
            .map_err(|error| ControlError::new("not-saveable", error, ""))?;
        Ok(clone::fork(&handle, owner)?.into())
    }

    fn restore(&self, origin: Origin) -> Result<Reply, ControlError> {
        let mut current = self.lock();
        let Some(restore) = self.restore.as_ref().filter(|_| current.is_none()) else {
            return Err(ControlError::new(
                "has-machine",
                "this process has a machine",
                "start another process with 'favo vmm serve'",
            ));
        };
        *current = Some(restore(origin)?);
        Ok(Answer::Done.into())
    }

    fn console(&self) -> Result<Reply, ControlError> {
        self.machine()?;
        let console = self
            .lock()
            .as_ref()
            .and_then(|current| current.console.clone());
        let Some(console) = console else {
            return Err(ControlError::new(
                "no-console",
                "the console is the standard input and output of the machine's process",
                "only instances have consoles that can be attached to",
            ));
        };
        let attached = console
            .attach()
            .map_err(|error| ControlError::new("io", format!("attaching: {error}"), ""))?;
        Ok(Reply {
            answer: Answer::Console,
            descriptors: vec![attached],
        })
    }

    fn agent(&self) -> Result<Reply, ControlError> {
        let (_, _, agent) = self.machine()?;
        let Some(agent) = agent else {
            return Err(ControlError::new(
                "agent-in-use",
                "the guest's agent serves 'favo run'",
                "restore a snapshot with 'favo vmm serve' and run commands there",
            ));
        };
        match agent.take(AGENT_PATIENCE) {
            Some(stream) => Ok(Reply {
                answer: Answer::Agent,
                descriptors: vec![stream.into()],
            }),
            None => Err(ControlError::new(
                "no-agent",
                format!(
                    "the guest's agent did not connect within {} seconds",
                    AGENT_PATIENCE.as_secs()
                ),
                "only images that favo run runs commands in have one; is it paused?",
            )),
        }
    }
}

impl Handler for Host {
    fn handle(&self, request: Request, descriptors: Vec<OwnedFd>) -> Result<Reply, ControlError> {
        let machine = || self.machine().map(|(handle, ..)| handle);
        match request {
            Request::Status => self.status(),
            Request::Pause => {
                machine()?.pause()?;
                Ok(Answer::Done.into())
            }
            Request::Resume => {
                machine()?.resume()?;
                Ok(Answer::Done.into())
            }
            Request::Stop => {
                machine()?.stop();
                Ok(Answer::Done.into())
            }
            Request::PowerButton => {
                machine()?.press_power_button();
                Ok(Answer::Done.into())
            }
            Request::Console => self.console(),
            Request::Snapshot {
                directory,
                incremental,
            } => self.snapshot(&directory, incremental),
            Request::Restore { directory } => self.restore(Origin::Snapshot(directory)),
            Request::Fork => self.fork(),
            Request::Adopt { machine } => self.restore(Origin::Clone(machine, descriptors)),
            Request::Agent => self.agent(),
            other => Err(ControlError::new(
                "unsupported",
                format!("{other:?} is not something this favo does"),
                "use a newer favo",
            )),
        }
    }
}

/// Serves `path` with `host`.
pub fn start(path: &Path, host: Arc<Host>) -> Result<Server, Failure> {
    Server::start(path, host).map_err(|error| {
        Failure::new(format!(
            "serving the control socket {}: {error}",
            path.display()
        ))
    })
}

/// Where the connection of a guest's agent waits for somebody who wants it.
#[derive(Default)]
pub struct AgentDoor {
    arrived: Mutex<VecDeque<UnixStream>>,
    changed: Condvar,
}

impl AgentDoor {
    /// Has the agent of `machine` arrive here.
    pub fn open(machine: &Machine) -> Option<Arc<Self>> {
        let vsock = machine.vsock()?;
        let door = Arc::new(Self::default());
        let inside = door.clone();
        vsock.listen(
            DEFAULT_VSOCK_PORT,
            Arc::new(move |stream| {
                let mut arrived = inside.lock();
                arrived.push_back(stream);
                // Those of before a restore are gone.
                let surplus = arrived.len().saturating_sub(MOST_WAITING);
                arrived.drain(..surplus);
                drop(arrived);
                inside.changed.notify_all();
            }),
        );
        Some(door)
    }

    fn take(&self, patience: Duration) -> Option<UnixStream> {
        let (mut arrived, _) = self
            .changed
            .wait_timeout_while(self.lock(), patience, |arrived| arrived.is_empty())
            .unwrap_or_else(PoisonError::into_inner);
        arrived.pop_front()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<UnixStream>> {
        self.arrived.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
