//! Tasks: what was asked for and takes its time.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::instance::Instance;

/// Something that was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Task {
    /// Which.
    pub id: String,
    /// What was asked: create, start, stop and so on.
    pub action: String,
    /// Of which instance.
    pub instance: String,
    /// Its uid: names change.
    pub uid: String,
    /// The instance's generation that it asked for.
    pub generation: u64,
    /// How far it is.
    pub state: TaskState,
    /// What it does now, or why it failed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// When it was asked for.
    #[schema(value_type = String, format = DateTime)]
    pub created: Timestamp,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub finished: Option<Timestamp>,
}

/// How far a task is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TaskState {
    /// Under way.
    Running,
    /// What was asked for is so.
    Done,
    /// It could not be.
    Failed,
}

impl TaskState {
    /// As it is written.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
        }
    }
}

/// What a change of an instance answers: how it is, and what to wait for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Accepted {
    /// The instance.
    pub instance: Instance,
    /// What makes it so; none if it is so already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<Task>,
}
