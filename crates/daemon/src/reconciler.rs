//! Makes each instance what it should be: one worker per instance, which asks
//! the plan for the next step, takes it, and looks again.
//!
//! A worker sleeps until its instance is changed, its machine's process ends,
//! or the time the plan named has come. It remembers only what can be
//! forgotten: when it asked a guest to stop, and that a step failed, which is
//! tried again when something changes.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use favo_api::instance::State;
use favo_api::task::TaskState;
use favo_store::{CollectionError, Versioned};
use jiff::Timestamp;
use tokio::sync::Notify;

use crate::app::instance::{Action, Exit, Life, Observed, Phase, Process, Step, plan};
use crate::place::{Ending, MachineFile};
use crate::records::Records;
use crate::resource::{StoredInstance, StoredStatus};
use crate::runner::{Observation, ObservedExit, Runner, RunnerError};

/// A machine that ran for so long did not fail because of how it was started.
const LONG: Duration = Duration::from_secs(600);
/// How long to wait after the store or the host could not be asked.
const TROUBLE: Duration = Duration::from_secs(2);

/// See the module.
pub struct Reconciler<R> {
    records: Records,
    runner: R,
    workers: Mutex<HashMap<String, Arc<Worker>>>,
}

/// How a worker is told that its instance changed.
#[derive(Default)]
struct Worker {
    notify: Notify,
    /// It was told, and has not looked yet. Changed under the workers' lock,
    /// so that none ends while it is told.
    told: AtomicBool,
}

/// What a worker remembers.
#[derive(Default)]
struct Memory {
    /// When the guest was asked to stop, and the demand of its process.
    asked: Option<(Timestamp, u64)>,
    /// The generation at which a step failed, and why.
    failed: Option<(u64, String)>,
    /// The generation whose tasks are ended, and how.
    finished: Option<(u64, TaskState)>,
}

impl<R: Runner> Reconciler<R> {
    /// Over these records, by this runner.
    pub fn new(records: Records, runner: R) -> Arc<Self> {
        Arc::new(Self {
            records,
            runner,
            workers: Mutex::default(),
        })
    }

    /// The runner.
    pub const fn runner(&self) -> &R {
        &self.runner
    }

    fn workers(&self) -> MutexGuard<'_, HashMap<String, Arc<Worker>>> {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has an instance looked at: it was made or changed.
    pub fn wake(self: &Arc<Self>, name: &str) {
        let mut workers = self.workers();
        if let Some(worker) = workers.get(name) {
            worker.told.store(true, Ordering::SeqCst);
            worker.notify.notify_one();
            return;
        }
        let worker = Arc::new(Worker::default());
        workers.insert(name.to_owned(), worker.clone());
        drop(workers);
        let (own, name) = (self.clone(), name.to_owned());
        tokio::spawn(async move { own.work(&name, &worker).await });
    }

    async fn work(&self, name: &str, worker: &Worker) {
        let mut memory = Memory::default();
        loop {
            worker.told.store(false, Ordering::SeqCst);
            match self.look(name, &mut memory, &worker.notify).await {
                Ok(true) => {}
                Ok(false) => {
                    let mut workers = self.workers();
                    // The name may have been taken again meanwhile.
                    if !worker.told.load(Ordering::SeqCst) {
                        workers.remove(name);
                        return;
                    }
                    memory = Memory::default();
                }
                Err(error) => {
                    tracing::warn!(instance = name, %error, "looking again later");
                    tokio::time::sleep(TROUBLE).await;
                }
            }
        }
    }

    /// One look at an instance, and what follows; false if it is gone.
    async fn look(
        &self,
        name: &str,
        memory: &mut Memory,
        notify: &Notify,
    ) -> Result<bool, Trouble> {
        let Some(stored) = self.records.instances.get(name).await? else {
            return Ok(false);
        };
        let instance = &stored.value;
        let uid = &instance.uid;
        if let Some((generation, message)) = &memory.failed
            && *generation == instance.generation
        {
            let status = status(
                instance,
                &Observation::default(),
                State::Failed,
                message.clone(),
            );
            self.records.set_status(name, status).await?;
            notify.notified().await;
            return Ok(true);
        }
        memory.failed = None;
        let observation = self.runner.observe(uid).await?;
        let observed = observed(&observation, memory);
        match plan(&instance.desired(), &observed, Timestamp::now()) {
            Step::Do(action) => {
                let state = state_during(action);
                let status = status(instance, &observation, state, String::new());
                self.records.set_status(name, status).await?;
                if let Err(error) = self.act(name, instance, &observation, memory, action).await {
                    tracing::warn!(instance = name, ?action, %error, "a step failed");
                    let message = error.to_string();
                    let generation = instance.generation;
                    self.finish(instance, memory, TaskState::Failed, &message)
                        .await?;
                    memory.failed = Some((generation, message));
                }
            }
            Step::WaitUntil(time) => {
                let (state, message) = match &observation.exit {
                    None => (State::Stopping, String::new()),
                    Some(exit) => (
                        State::Waiting,
                        format!("{}; it is started again soon", exit.message),
                    ),
                };
                let status = status(instance, &observation, state, message);
                self.records.set_status(name, status).await?;
                self.rest(uid, &observation, notify, Some(time)).await;
            }
            Step::Settled(Phase::Gone) => {
                self.runner.remove(uid).await?;
                self.finish(instance, memory, TaskState::Done, "").await?;
                return self.forget(&stored).await;
            }
            Step::Settled(phase) => {
                let (state, message, task) = settled(instance, phase, &observation);
                let mut status = status(instance, &observation, state, message.clone());
                status.needs_restart = phase
                    == Phase::Up {
                        restart_for_shape: true,
                    };
                self.records.set_status(name, status).await?;
                self.finish(instance, memory, task, &message).await?;
                self.rest(uid, &observation, notify, None).await;
            }
        }
        Ok(true)
    }

    /// Ends the instance's tasks, which are looked for once a generation.
    async fn finish(
        &self,
        instance: &StoredInstance,
        memory: &mut Memory,
        state: TaskState,
        message: &str,
    ) -> Result<(), Trouble> {
        let finished = (instance.generation, state);
        if memory.finished != Some(finished) {
            self.records
                .finish_tasks(&instance.uid, instance.generation, state, message)
                .await?;
            memory.finished = Some(finished);
        }
        Ok(())
    }

    /// Removes the records of what is gone; whether it is still there.
    async fn forget(&self, stored: &Versioned<StoredInstance>) -> Result<bool, Trouble> {
        match self.records.forget(stored).await {
            Ok(()) | Err(CollectionError::NotFound { .. }) => Ok(false),
            Err(CollectionError::Conflict { .. }) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }

    /// Until something may have changed.
    async fn rest(
        &self,
        uid: &str,
        observation: &Observation,
        notify: &Notify,
        until: Option<Timestamp>,
    ) {
        let due = async {
            match until {
                Some(time) => {
                    let left = time.duration_since(Timestamp::now());
                    tokio::time::sleep(Duration::try_from(left).unwrap_or_default()).await;
                }
                None => std::future::pending().await,
            }
        };
        let ended = async {
            match observation.process {
                Some(_) => {
                    if let Err(error) = self.runner.ended(uid).await {
                        tracing::warn!(uid, %error, "waiting for a process to end");
                        tokio::time::sleep(TROUBLE).await;
                    }
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = notify.notified() => {}
            () = due => {}
            () = ended => {}
        }
    }

    async fn act(
        &self,
        name: &str,
        instance: &StoredInstance,
        observation: &Observation,
        memory: &mut Memory,
        action: Action,
    ) -> Result<(), RunnerError> {
        let uid = &instance.uid;
        match action {
            Action::PrepareDisk => self.runner.prepare_disk(uid, &instance.spec.image).await,
            Action::Start => {
                let machine = machine(name, instance, observation.exit.as_ref());
                self.runner.start(uid, &machine).await
            }
            Action::Pause => self.runner.pause(uid).await,
            Action::Resume => self.runner.resume(uid).await,
            Action::AskToStop => {
                self.runner.ask_to_stop(uid).await?;
                let demand = observation.process.as_ref().map(|process| process.demand);
                memory.asked = demand.map(|demand| (Timestamp::now(), demand));
                Ok(())
            }
            Action::Kill => self.runner.kill(uid).await,
            Action::RemoveDisk => self.runner.remove(uid).await,
        }
    }
}

/// The store's trouble, or the host's.
#[derive(Debug)]
struct Trouble(String);

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<CollectionError> for Trouble {
    fn from(error: CollectionError) -> Self {
        Self(error.to_string())
    }
}

impl From<RunnerError> for Trouble {
    fn from(error: RunnerError) -> Self {
        Self(error.0)
    }
}

fn observed(observation: &Observation, memory: &Memory) -> Observed {
    Observed {
        disk: observation.disk,
        process: observation.process.as_ref().map(|process| Process {
            shape: process.shape,
            demand: process.demand,
            paused: process.paused,
            asked_to_stop: memory
                .asked
                .filter(|(_, demand)| *demand == process.demand)
                .map(|(time, _)| time),
        }),
        exit: observation.exit.as_ref().map(|exit| Exit {
            demand: exit.machine.demand,
            at: exit.at,
            failures: failures(exit),
            reset: exit.ending == Ending::Reset,
        }),
    }
}

/// How many times in a row a machine failed, with the last one.
fn failures(exit: &ObservedExit) -> u32 {
    if exit.ending != Ending::Failed {
        return 0;
    }
    let ran = Duration::try_from(exit.at.duration_since(exit.machine.started));
    match ran.unwrap_or_default() > LONG {
        true => 1,
        false => exit.machine.failures.saturating_add(1),
    }
}

fn machine(name: &str, instance: &StoredInstance, exit: Option<&ObservedExit>) -> MachineFile {
    let spec = &instance.spec;
    MachineFile {
        name: name.to_owned(),
        image: spec.image.clone(),
        cpus: spec.cpus,
        memory: spec.memory,
        network: spec.network.clone(),
        publish: spec.publish.clone(),
        rate: spec.rate.clone(),
        demand: instance.demand,
        failures: exit
            .filter(|exit| exit.machine.demand == instance.demand)
            .map_or(0, failures),
        started: Timestamp::now(),
    }
}

const fn state_during(action: Action) -> State {
    match action {
        Action::PrepareDisk => State::Creating,
        Action::Start => State::Starting,
        Action::Pause => State::Running,
        Action::Resume => State::Paused,
        Action::AskToStop | Action::Kill => State::Stopping,
        Action::RemoveDisk => State::Deleting,
    }
}

/// How an instance is shown that needs nothing done, and what its tasks came
/// to.
fn settled(
    instance: &StoredInstance,
    phase: Phase,
    observation: &Observation,
) -> (State, String, TaskState) {
    let message = || {
        let exit = observation.exit.as_ref();
        exit.map_or_else(String::new, |exit| exit.message.clone())
    };
    match phase {
        Phase::Up { .. } => {
            let paused = observation
                .process
                .as_ref()
                .is_some_and(|process| process.paused);
            let state = if paused {
                State::Paused
            } else {
                State::Running
            };
            (state, String::new(), TaskState::Done)
        }
        Phase::Off if instance.life == Life::Trashed => {
            (State::Trashed, String::new(), TaskState::Done)
        }
        Phase::Off => (State::Stopped, String::new(), TaskState::Done),
        Phase::Ended { failed: false } => (State::Stopped, message(), TaskState::Done),
        Phase::Ended { failed: true } => (State::Failed, message(), TaskState::Failed),
        Phase::Gone => (State::Deleting, String::new(), TaskState::Done),
    }
}

fn status(
    instance: &StoredInstance,
    observation: &Observation,
    state: State,
    message: String,
) -> StoredStatus {
    let process = observation.process.as_ref();
    StoredStatus {
        uid: instance.uid.clone(),
        state,
        message,
        pid: process.and_then(|process| process.pid),
        engine: process.and_then(|process| process.engine.clone()),
        needs_restart: false,
    }
}
