//! `/v1/instances`.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use favo_api::List;
use favo_api::error::{Code, ErrorBody};
use favo_api::instance::{Action, Create, Instance, Patch};
use favo_api::task::Accepted;
use favo_store::Revision;
use serde::Deserialize;
use utoipa::IntoParams;

use super::error::{Body, Query};
use super::{Api, ApiError};
use crate::service::{Filter, ServiceError};

/// The longest idempotency key.
const LONGEST_KEY: usize = 128;

#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(super) struct ListQuery {
    /// Those in the trash, too.
    #[serde(default)]
    all: bool,
    /// Only those with this label: `KEY=VALUE`, several separated by commas.
    label: Option<String>,
    /// At most so many.
    limit: Option<usize>,
    /// Go on after the page that named this.
    page: Option<String>,
}

/// All instances, by name.
#[utoipa::path(
    get, path = "/v1/instances", tag = "instances", params(ListQuery),
    responses((status = 200, body = List<Instance>), (status = 400, body = ErrorBody))
)]
pub(super) async fn list(
    State(api): State<Api>,
    Query(query): Query<ListQuery>,
) -> Result<Json<List<Instance>>, ApiError> {
    let labels = query.label.as_deref().unwrap_or_default();
    let labels = labels
        .split(',')
        .filter(|label| !label.is_empty())
        .map(|label| match label.split_once('=') {
            Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
            None => Err(ServiceError::new(
                Code::Invalid,
                format!("label '{label}' is not KEY=VALUE"),
            )),
        })
        .collect::<Result<_, _>>()?;
    let filter = Filter {
        all: query.all,
        labels,
        limit: query.limit,
        after: query.page,
    };
    Ok(Json(api.service.list(&filter).await?))
}

/// Makes an instance; its machine starts unless `power` says otherwise.
///
/// It answers at once with an instance that is being created, and the task to
/// wait for. With an `Idempotency-Key` the request may be repeated.
#[utoipa::path(
    post, path = "/v1/instances", tag = "instances", request_body = Create,
    params(("Idempotency-Key" = Option<String>, Header)),
    responses(
        (status = 201, body = Accepted), (status = 400, body = ErrorBody),
        (status = 409, body = ErrorBody)
    )
)]
pub(super) async fn create(
    State(api): State<Api>,
    headers: HeaderMap,
    Body(create): Body<Create>,
) -> Result<Response, ApiError> {
    let key = headers.get("idempotency-key").map(HeaderValue::to_str);
    let key = match key {
        None => None,
        Some(Ok(key)) if !key.is_empty() && key.len() <= LONGEST_KEY => Some(key.to_owned()),
        Some(_) => {
            let message =
                format!("Idempotency-Key must be 1 to {LONGEST_KEY} printable characters");
            return Err(ServiceError::new(Code::Invalid, message).into());
        }
    };
    let accepted = api.service.create(create, key).await?;
    let location = format!("/v1/instances/{}", accepted.instance.name);
    let mut response = (StatusCode::CREATED, Json(&accepted)).into_response();
    if let Ok(location) = location.parse() {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(tagged(response, accepted.instance.revision))
}

/// An instance.
#[utoipa::path(
    get, path = "/v1/instances/{name}", tag = "instances",
    params(("name" = String, Path)),
    responses((status = 200, body = Instance), (status = 404, body = ErrorBody))
)]
pub(super) async fn show(
    State(api): State<Api>,
    Path(name): Path<String>,
) -> Result<Response, ApiError> {
    let instance = api.service.get(&name).await?;
    let revision = instance.revision;
    Ok(tagged(Json(instance).into_response(), revision))
}

/// Changes what an instance should be. Sizes, ports and limits count from its
/// next start.
#[utoipa::path(
    patch, path = "/v1/instances/{name}", tag = "instances", request_body = Patch,
    params(("name" = String, Path), ("If-Match" = Option<String>, Header)),
    responses(
        (status = 202, body = Accepted), (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody), (status = 412, body = ErrorBody)
    )
)]
pub(super) async fn change(
    State(api): State<Api>,
    Path(name): Path<String>,
    headers: HeaderMap,
    Body(patch): Body<Patch>,
) -> Result<Response, ApiError> {
    let expected = expected(&headers)?;
    Ok(accepted(api.service.patch(&name, patch, expected).await?))
}

#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(super) struct DeleteQuery {
    /// For good, disk and all, instead of into the trash.
    #[serde(default)]
    purge: bool,
}

/// Stops an instance and puts it into the trash, or removes it for good.
#[utoipa::path(
    delete, path = "/v1/instances/{name}", tag = "instances",
    params(("name" = String, Path), ("If-Match" = Option<String>, Header), DeleteQuery),
    responses(
        (status = 202, body = Accepted), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody), (status = 412, body = ErrorBody)
    )
)]
pub(super) async fn delete(
    State(api): State<Api>,
    Path(name): Path<String>,
    Query(query): Query<DeleteQuery>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let expected = expected(&headers)?;
    let deleted = api.service.delete(&name, query.purge, expected).await?;
    Ok(accepted(deleted))
}

/// Starts, stops, restarts, kills, pauses, resumes or undeletes an instance.
#[utoipa::path(
    post, path = "/v1/instances/{name}/{action}", tag = "instances",
    params(
        ("name" = String, Path), ("action" = Action, Path),
        ("If-Match" = Option<String>, Header)
    ),
    responses(
        (status = 202, body = Accepted), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody), (status = 412, body = ErrorBody)
    )
)]
pub(super) async fn act(
    State(api): State<Api>,
    Path((name, action)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let action = serde_json::from_value(action.clone().into()).map_err(|_| {
        ServiceError::new(
            Code::NotFound,
            format!("no instance has an action '{action}'"),
        )
        .hint("start, stop, restart, kill, pause, resume, undelete")
    })?;
    let expected = expected(&headers)?;
    Ok(accepted(api.service.act(&name, action, expected).await?))
}

fn accepted(accepted: Accepted) -> Response {
    let revision = accepted.instance.revision;
    tagged(
        (StatusCode::ACCEPTED, Json(accepted)).into_response(),
        revision,
    )
}

/// With the revision as entity tag (RFC 9110 §8.8.3).
fn tagged(mut response: Response, revision: u64) -> Response {
    if let Ok(tag) = format!("\"{revision}\"").parse() {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response
}

/// The revision of `If-Match`; `*` is any.
fn expected(headers: &HeaderMap) -> Result<Option<Revision>, ServiceError> {
    let Some(tag) = headers.get(header::IF_MATCH) else {
        return Ok(None);
    };
    let text = tag.to_str().unwrap_or_default();
    if text == "*" {
        return Ok(None);
    }
    let revision = text.trim_matches('"').parse().map_err(|_| {
        ServiceError::new(Code::Invalid, "If-Match is not a revision")
            .hint("send the ETag of the answer the change was made from")
    })?;
    Ok(Some(Revision(revision)))
}
