//! `/v1/events`: changes as they happen.

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::sse::{self, KeepAlive, Sse};
use favo_api::error::{Code, ErrorBody};
use favo_api::event::{Event, EventKind};
use favo_store::{Prefix, Revision, Watch};
use futures_core::Stream;
use serde::Deserialize;
use utoipa::IntoParams;

use super::error::Query;
use super::{Api, ApiError};
use crate::service::ServiceError;

/// How long a watch waits after the store could not be asked.
const TROUBLE: Duration = Duration::from_secs(1);

#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(super) struct EventsQuery {
    /// Begin with the changes of this revision; without it, with those to come.
    from: Option<u64>,
}

/// What changes, as server-sent events: each has the revision as id and an
/// [`Event`] as data. A stream that broke goes on with `Last-Event-ID`.
#[utoipa::path(
    get, path = "/v1/events", tag = "events",
    params(EventsQuery, ("Last-Event-ID" = Option<String>, Header)),
    responses(
        (status = 200, body = Event, content_type = "text/event-stream"),
        (status = 410, body = ErrorBody)
    )
)]
pub(super) async fn watch(
    State(api): State<Api>,
    Query(query): Query<EventsQuery>,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Result<sse::Event, Infallible>>>, ApiError> {
    let store = api.service.records().store.clone();
    let last = headers.get("last-event-id").and_then(|id| id.to_str().ok());
    let last: Option<u64> = last.and_then(|id| id.parse().ok());
    let internal = |error: favo_store::Error| ServiceError::new(Code::Internal, error);
    let from = match (last, query.from) {
        (Some(last), _) => Revision(last).next(),
        (None, Some(from)) => Revision(from),
        (None, None) => store.revision().await.map_err(internal)?.next(),
    };
    let prefix = Prefix::new("").map_err(|error| ServiceError::new(Code::Internal, error))?;
    let watch = store
        .watch(&prefix, from)
        .await
        .map_err(|error| match error {
            favo_store::Error::Compacted { .. } => ServiceError::new(Code::HistoryGone, error)
                .hint("list again, and watch from the list's revision"),
            other => internal(other),
        })?;
    Ok(Sse::new(stream(watch)).keep_alive(KeepAlive::default()))
}

fn stream(mut watch: Box<dyn Watch>) -> impl Stream<Item = Result<sse::Event, Infallible>> {
    async_stream::stream! {
        loop {
            let batch = match watch.next().await {
                Ok(batch) => batch,
                Err(favo_store::Error::Unavailable { .. }) => {
                    tokio::time::sleep(TROUBLE).await;
                    continue;
                }
                // The client asks again, and is told why.
                Err(_) => return,
            };
            // The id comes with the last of a transaction's changes: who goes
            // on from it has seen them all.
            let count = batch.events.len();
            for (index, event) in batch.events.into_iter().enumerate() {
                let event = shown(batch.revision, event);
                let Ok(shown) = sse::Event::default().json_data(event) else {
                    continue;
                };
                yield Ok(match index + 1 == count {
                    true => shown.id(batch.revision.0.to_string()),
                    false => shown,
                });
            }
        }
    }
}

fn shown(revision: Revision, event: favo_store::Event) -> Event {
    let key = event.key().to_string();
    let (noun, name) = key.split_once('/').unwrap_or((&key, ""));
    let (kind, resource) = match &event {
        favo_store::Event::Put(entry) => {
            (EventKind::Put, serde_json::from_slice(&entry.value).ok())
        }
        favo_store::Event::Delete(_) => (EventKind::Deleted, None),
    };
    Event {
        revision: revision.0,
        noun: noun.to_owned(),
        name: name.to_owned(),
        kind,
        resource,
    }
}
