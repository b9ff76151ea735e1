//! The words of the API `/v1`: what the daemon, the command line, the page and
//! anybody's program say to each other.
//!
//! Types only: no network, no logic but defaults. JSON has snake_case names,
//! times as RFC 3339, sizes as integers of bytes. Fields are only added; an
//! unknown field of a request is refused, so that a mistyped one is not
//! silently ignored.
#![forbid(unsafe_code)]

pub mod error;
pub mod event;
pub mod host;
pub mod image;
pub mod instance;
pub mod sign_in;
pub mod task;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A page of a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct List<T> {
    /// The items, by name.
    pub items: Vec<T>,
    /// The store's revision it is true of: watching from the one after it
    /// misses nothing.
    pub revision: u64,
    /// For `?page=`, if there are more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_page: Option<String>,
}
