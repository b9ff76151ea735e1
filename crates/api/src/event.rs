//! Events: what changed, in order.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A change of a resource. `GET /v1/events` streams them as server-sent
/// events, whose id is the revision: a stream that broke goes on with
/// `Last-Event-ID`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// When, among all changes.
    pub revision: u64,
    /// What kind of resource: `instances`, `status`, `tasks`.
    pub noun: String,
    /// Its name.
    pub name: String,
    /// What happened to it.
    pub kind: EventKind,
    /// How it is now, as it is stored; none if it is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource: Option<serde_json::Value>,
}

/// What happened to a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// It came to be, or changed.
    Put,
    /// It is gone.
    Deleted,
}
