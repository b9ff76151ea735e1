//! What the store keeps of an instance, and what it becomes.

use favo_api::instance::{Instance, Power, Restart, Spec, State, Status};
use favo_store::Versioned;
use favo_types::ByteCount;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::app::instance::{self as plan, Desired, Life, RestartPolicy, Shape};

/// An instance as it is stored, under `instances/NAME`: all that is desired.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredInstance {
    /// See [`Instance::uid`].
    pub uid: String,
    /// See [`Instance::created`].
    pub created: Timestamp,
    /// The key of the request that made it, if it had one: the same request
    /// again gets the same answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idempotency_key: Option<String>,
    /// What its owner wants of it.
    pub spec: Spec,
    /// Whether it exists.
    pub life: Life,
    /// See [`Desired::demand`].
    pub demand: u64,
    /// See [`Desired::fresh`].
    pub fresh: u64,
    /// See [`Desired::hard`].
    pub hard: bool,
    /// Counts changes of any of this that the reconciler acts on.
    pub generation: u64,
}

/// What became of it, under `status/NAME`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredStatus {
    /// Whose: a name may be taken again.
    pub uid: String,
    /// See [`Status::state`].
    pub state: State,
    /// See [`Status::message`].
    #[serde(default)]
    pub message: String,
    /// See [`Status::pid`].
    #[serde(default)]
    pub pid: Option<u32>,
    /// See [`Status::engine`].
    #[serde(default)]
    pub engine: Option<String>,
    /// See [`Status::needs_restart`].
    #[serde(default)]
    pub needs_restart: bool,
}

impl StoredInstance {
    /// What the plan is asked about.
    pub fn desired(&self) -> Desired {
        Desired {
            life: self.life,
            power: match self.spec.power {
                Power::Running => plan::Power::Running,
                Power::Paused => plan::Power::Paused,
                Power::Stopped => plan::Power::Stopped,
            },
            demand: self.demand,
            fresh: self.fresh,
            hard: self.hard,
            restart: match self.spec.restart {
                Restart::Never => RestartPolicy::Never,
                Restart::OnFailure => RestartPolicy::OnFailure,
                Restart::Always => RestartPolicy::Always,
            },
            shape: Shape {
                cpus: self.spec.cpus,
                memory: ByteCount(self.spec.memory),
            },
        }
    }
}

/// As the API shows it. Without a status the reconciler has not come to it.
pub fn shown(stored: Versioned<StoredInstance>, status: Option<StoredStatus>) -> Instance {
    let instance = stored.value;
    let status = status.filter(|status| status.uid == instance.uid);
    let (resident, cpu_ms) = status
        .as_ref()
        .and_then(|status| status.pid)
        .map_or((None, None), crate::usage::of_process);
    Instance {
        name: stored.name,
        uid: instance.uid,
        revision: stored.revision.0,
        created: instance.created,
        spec: instance.spec,
        status: match status {
            None => Status {
                state: State::Creating,
                message: String::new(),
                pid: None,
                engine: None,
                needs_restart: false,
                resident,
                cpu_ms,
            },
            Some(status) => Status {
                state: status.state,
                message: status.message,
                pid: status.pid,
                engine: status.engine,
                needs_restart: status.needs_restart,
                resident,
                cpu_ms,
            },
        },
    }
}
