//! The one body of an error, and its codes.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What a failed request answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// Which request it was, as in the daemon's log.
    pub request_id: String,
    /// What kind of failure; stable. `favo explain CODE` says more.
    pub code: Code,
    /// What failed, on what, and why.
    pub message: String,
    /// What to do next; may be empty.
    pub hint: String,
}

/// The kinds of failure. Stable: programs may depend on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Code {
    /// The request is not one, or has a value that can't be.
    Invalid,
    /// What it names does not exist.
    NotFound,
    /// Something of this name exists.
    Exists,
    /// It was changed by someone else since the revision in `If-Match`.
    Changed,
    /// The resource is in no state for this.
    Conflict,
    /// The resource is protected.
    Protected,
    /// The caller may not do this.
    Denied,
    /// The host has no room for it.
    NoCapacity,
    /// It can't be done now; again later it may.
    Unavailable,
    /// A watch asks for history that is gone.
    HistoryGone,
    /// A defect of favo.
    Internal,
}

impl Code {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Invalid,
        Self::NotFound,
        Self::Exists,
        Self::Changed,
        Self::Conflict,
        Self::Protected,
        Self::Denied,
        Self::NoCapacity,
        Self::Unavailable,
        Self::HistoryGone,
        Self::Internal,
    ];

    /// As it is written.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::NotFound => "not-found",
            Self::Exists => "exists",
            Self::Changed => "changed",
            Self::Conflict => "conflict",
            Self::Protected => "protected",
            Self::Denied => "denied",
            Self::NoCapacity => "no-capacity",
            Self::Unavailable => "unavailable",
            Self::HistoryGone => "history-gone",
            Self::Internal => "internal",
        }
    }

    /// The HTTP status it comes with (RFC 9110).
    pub const fn http_status(self) -> u16 {
        match self {
            Self::Invalid => 400,
            Self::Denied => 403,
            Self::NotFound => 404,
            Self::Exists | Self::Conflict | Self::Protected => 409,
            Self::HistoryGone => 410,
            Self::Changed => 412,
            Self::Internal => 500,
            Self::Unavailable => 503,
            Self::NoCapacity => 507,
        }
    }

    /// The exit status of a command that fails with it.
    pub const fn exit_status(self) -> u8 {
        match self {
            Self::Invalid => 2,
            Self::NotFound => 3,
            Self::Exists | Self::Changed | Self::Conflict | Self::Protected => 4,
            Self::Denied => 5,
            Self::NoCapacity => 6,
            Self::Unavailable | Self::HistoryGone => 7,
            Self::Internal => 1,
        }
    }

    /// What it means and what to do, for `favo explain`.
    pub const fn explanation(self) -> &'static str {
        match self {
            Self::Invalid => {
                "The request can't be understood, or a value in it can't be: a name with letters \
                 that names don't have, a size of zero, a field nobody knows. The message names \
                 the field. Nothing was changed."
            }
            Self::NotFound => {
                "What the request names does not exist, or does not exist any more. 'favo list \
                 --all' shows every instance, those in the trash included; 'favo image list' the \
                 images."
            }
            Self::Exists => {
                "Something of this name exists already. An instance in the trash keeps its name: \
                 'favo undelete NAME' brings it back, 'favo delete --purge NAME' makes the name \
                 free."
            }
            Self::Changed => {
                "The request said which revision it was made from (If-Match), and the resource \
                 has been changed since. Read it again, look at what changed, and repeat the \
                 change."
            }
            Self::Conflict => {
                "The resource is in no state for this: a stopped instance can't be paused, one in \
                 the trash can't be started. The message says which state it is in."
            }
            Self::Protected => {
                "The instance is protected from being deleted: 'favo set NAME --protect=false' \
                 lifts that."
            }
            Self::Denied => {
                "The caller may not do this. The API's socket belongs to the user who runs the \
                 daemon; over TCP every request needs a token."
            }
            Self::NoCapacity => "The host has no memory or disk left for it.",
            Self::Unavailable => {
                "It can't be done right now, but may be a moment later: the guest's agent is not \
                 up yet, or the daemon is ending. Try again."
            }
            Self::HistoryGone => {
                "A watch asked for events that are older than the history that is kept. List \
                 again, and watch from the list's revision."
            }
            Self::Internal => {
                "A defect of favo. The daemon's log has the request's id and what happened."
            }
        }
    }
}
