//! Instances: machines that exist until they are deleted.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// An instance, as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Instance {
    /// What it is called: a DNS label.
    pub name: String,
    /// What it was and will be called by no other, whatever its name.
    pub uid: String,
    /// Counts changes; for `If-Match`.
    pub revision: u64,
    /// When it came to be.
    #[schema(value_type = String, format = DateTime)]
    pub created: Timestamp,
    /// What it should be.
    pub spec: Spec,
    /// What it is.
    pub status: Status,
}

/// What an instance should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// The image its disk was made from.
    pub image: String,
    /// Virtual processors.
    #[serde(default = "one")]
    #[schema(minimum = 1, maximum = 64)]
    pub cpus: u32,
    /// Memory, in bytes.
    #[serde(default = "default_memory")]
    pub memory: u64,
    /// The network it is on: `user`, `none`, or the name of a shared one.
    #[serde(default = "default_network")]
    pub network: String,
    /// Ports of the host joined to its own: `[ADDR:]HOSTPORT:GUESTPORT[/udp]`.
    #[serde(default)]
    pub publish: Vec<String>,
    /// Limits of its network: `in|out:RATE[/BURST]`.
    #[serde(default)]
    pub rate: Vec<String>,
    /// Whether it is to run.
    #[serde(default)]
    pub power: Power,
    /// What to do when its guest ends on its own.
    #[serde(default)]
    pub restart: Restart,
    /// Whether it is started with the daemon if it ran when the host went
    /// down.
    #[serde(default = "yes")]
    pub autostart: bool,
    /// It can't be deleted.
    #[serde(default)]
    pub protect: bool,
    /// Anything its owner wants to find it by.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

const fn one() -> u32 {
    1
}

const fn yes() -> bool {
    true
}

const fn default_memory() -> u64 {
    1 << 30
}

fn default_network() -> String {
    "user".to_owned()
}

impl Spec {
    /// What an instance of an image is if nothing else is said.
    pub fn of_image(image: impl Into<String>) -> Self {
        Self {
            image: image.into(),
            cpus: one(),
            memory: default_memory(),
            network: default_network(),
            publish: Vec::new(),
            rate: Vec::new(),
            power: Power::default(),
            restart: Restart::default(),
            autostart: yes(),
            protect: false,
            labels: BTreeMap::new(),
        }
    }
}

/// Whether an instance is to run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Power {
    /// It is.
    #[default]
    Running,
    /// Its processors stand still, its memory is kept.
    Paused,
    /// It is off.
    Stopped,
}

/// What to do when a guest ends on its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Restart {
    /// Leave it off.
    Never,
    /// Start it again if it failed or rebooted, leave it off if it shut down.
    #[default]
    OnFailure,
    /// Start it again.
    Always,
}

/// What an instance is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// In one word.
    pub state: State,
    /// Why, if there is more to say.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// The process of its machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// What runs it: `soft` or `kvm`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<String>,
    /// It was started with another size than it should have by now; the next
    /// start takes that.
    #[serde(default)]
    pub needs_restart: bool,
    /// Resident memory of its process, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resident: Option<u64>,
    /// Processor time of its process since it started, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_ms: Option<u64>,
}

/// What an instance is, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Its disk is being made.
    Creating,
    /// Its machine is being started.
    Starting,
    /// It runs.
    Running,
    /// Its processors stand still.
    Paused,
    /// Its guest was asked to shut down.
    Stopping,
    /// It is off.
    Stopped,
    /// It should run, but its guest ended and its restart policy leaves it so;
    /// or it can't be started.
    Failed,
    /// It waits until it may be started again.
    Waiting,
    /// It is in the trash.
    Trashed,
    /// It is being removed for good.
    Deleting,
}

impl State {
    /// As it is written.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
            Self::Waiting => "waiting",
            Self::Trashed => "trashed",
            Self::Deleting => "deleting",
        }
    }
}

/// A request for an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Create {
    /// What it is to be called.
    pub name: String,
    /// What it should be.
    pub spec: Spec,
}

/// A change of an instance: what is there is set (RFC 7396's idea, for the
/// fields that can change).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Patch {
    /// Virtual processors, from the next start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<u32>,
    /// Memory in bytes, from the next start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// Published ports, from the next start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub publish: Option<Vec<String>>,
    /// Limits of its network, from the next start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<Vec<String>>,
    /// What to do when its guest ends on its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart: Option<Restart>,
    /// Whether it starts with the daemon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autostart: Option<bool>,
    /// Whether it is protected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protect: Option<bool>,
    /// Labels to set; null removes one.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, Option<String>>,
}

/// What is done to an instance by `POST /v1/instances/NAME/ACTION`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Let it run; again, if its guest ended.
    Start,
    /// Shut it down: ask its guest, and end it after a while.
    Stop,
    /// Stop it, then start it.
    Restart,
    /// End it at once.
    Kill,
    /// Let its processors stand still.
    Pause,
    /// Let them go on.
    Resume,
    /// Take it out of the trash.
    Undelete,
}

impl Action {
    /// As it is written.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Restart => "restart",
            Self::Kill => "kill",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Undelete => "undelete",
        }
    }
}
