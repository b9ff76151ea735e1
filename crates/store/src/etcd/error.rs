//! etcd's errors, sorted by what the caller can do.
//!
//! etcd says what went wrong by a gRPC code and, where one code means several
//! things, by a fixed sentence; the sentences are part of its API
//! (`api/v3rpc/rpctypes/error.go`).

use tonic::Code;

use crate::{Cause, Error, LeaseId, Revision};

/// What was asked, as far as it matters to what a failure means.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// Something that may be asked again.
    Read,
    /// Something about this revision, which may be asked again.
    ReadAt(Revision),
    /// A change.
    Write,
    /// Something about this lease, which may be asked again.
    Lease(LeaseId),
    /// The end of this lease.
    EndLease(LeaseId),
}

/// The error of a request that got no answer.
pub fn lost(store: &str, kind: Kind, cause: Cause) -> Error {
    let store = store.to_owned();
    match kind {
        Kind::Write | Kind::EndLease(_) => Error::Uncertain { store, cause },
        Kind::Read | Kind::ReadAt(_) | Kind::Lease(_) => Error::Unavailable { store, cause },
    }
}

/// Sorts an error of the client.
pub fn sort(store: &str, kind: Kind, error: etcd_client::Error) -> Error {
    let status = match error {
        etcd_client::Error::GRpcStatus(status) => status,
        // The client's word for a lease that has ended.
        etcd_client::Error::LeaseKeepAliveError(text) => {
            return match kind {
                Kind::Lease(lease) => Error::LeaseNotFound { lease },
                _ => lost(store, kind, text.into()),
            };
        }
        // Wrong options, or no connection: nothing was sent.
        other => {
            return Error::Unavailable {
                store: store.to_owned(),
                cause: Box::new(other),
            };
        }
    };
    let code = status.code();
    let says = |text: &str| status.message().contains(text);
    let asked = match kind {
        Kind::ReadAt(revision) => revision,
        _ => Revision::ZERO,
    };
    if says("required revision has been compacted") {
        return Error::Compacted { asked };
    }
    if says("required revision is a future revision") {
        return Error::FutureRevision { asked };
    }
    if says("requested lease not found") {
        let lease = match kind {
            Kind::Lease(lease) | Kind::EndLease(lease) => lease,
            _ => LeaseId(0),
        };
        return Error::LeaseNotFound { lease };
    }
    let unsent = never_sent(&status) || says("no leader") || says("too many requests");
    let denied = matches!(code, Code::PermissionDenied | Code::Unauthenticated)
        || says("authentication failed")
        || says("authentication is not enabled")
        || says("user name is empty");
    let store_name = store.to_owned();
    let full = says("database space exceeded");
    let cause: Cause = Box::new(status);
    if denied {
        Error::Denied {
            store: store_name,
            cause,
        }
    } else if full {
        Error::Full {
            store: store_name,
            cause,
        }
    } else if unsent {
        Error::Unavailable {
            store: store_name,
            cause,
        }
    } else if matches!(
        code,
        Code::DataLoss | Code::InvalidArgument | Code::Unimplemented
    ) {
        Error::Storage {
            store: store_name,
            cause,
        }
    } else {
        lost(store, kind, cause)
    }
}

/// Whether the connection itself failed, so that nothing was sent.
fn never_sent(status: &tonic::Status) -> bool {
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}
