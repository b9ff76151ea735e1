//! Streams to an instance's machine: its agent, its console; and what the
//! console said.
//!
//! The connection becomes the stream (RFC 9110 §7.8): what the agent's
//! protocol says is between the caller and the guest, the daemon only passes
//! it on.

use axum::extract::{Path, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use favo_api::error::{Code, ErrorBody};
use favo_vmm::control::{Client, ClientError, Request as Ask};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use super::{Api, ApiError};
use crate::place::Place;
use crate::service::ServiceError;

/// A connection to the guest's agent, by its own protocol
/// (`Upgrade: favo-agent`).
#[utoipa::path(
    get, path = "/v1/instances/{name}/agent", tag = "instances", params(("name" = String, Path)),
    responses(
        (status = 101), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody),
        (status = 503, body = ErrorBody)
    )
)]
pub(super) async fn agent(
    State(api): State<Api>,
    Path(name): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    upgrade(api, &name, request, "favo-agent", Ask::Agent).await
}

/// A connection to the console (`Upgrade: favo-console`). It begins with the
/// end of what was said.
#[utoipa::path(
    get, path = "/v1/instances/{name}/console", tag = "instances", params(("name" = String, Path)),
    responses(
        (status = 101), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)
    )
)]
pub(super) async fn console(
    State(api): State<Api>,
    Path(name): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    upgrade(api, &name, request, "favo-console", Ask::Console).await
}

/// What the console said: the last one to two mebibytes.
#[utoipa::path(
    get, path = "/v1/instances/{name}/logs", tag = "instances", params(("name" = String, Path)),
    responses((status = 200, content_type = "text/plain"), (status = 404, body = ErrorBody))
)]
pub(super) async fn logs(
    State(api): State<Api>,
    Path(name): Path<String>,
) -> Result<Response, ApiError> {
    let place = place(&api, &name).await?;
    let read = tokio::task::spawn_blocking(move || read_logs(&place)).await;
    let bytes = read.map_err(|error| ServiceError::new(Code::Internal, error))?;
    let content_type = [(header::CONTENT_TYPE, "text/plain; charset=utf-8")];
    Ok((content_type, bytes).into_response())
}

fn read_logs(place: &Place) -> Vec<u8> {
    let mut files: Vec<_> = place
        .console_logs()
        .into_iter()
        .filter_map(|path| Some((path.metadata().ok()?.modified().ok()?, path)))
        .collect();
    files.sort();
    let bytes = files
        .iter()
        .filter_map(|(_, path)| std::fs::read(path).ok());
    bytes.flatten().collect()
}

async fn place(api: &Api, name: &str) -> Result<Place, ServiceError> {
    let uid = api.service.uid(name).await?;
    Ok(api.service.reconciler().runner().place(&uid))
}

async fn upgrade(
    api: Api,
    name: &str,
    request: Request,
    protocol: &'static str,
    ask: Ask,
) -> Result<Response, ApiError> {
    let wanted = request.headers().get(header::UPGRADE);
    if wanted.is_none_or(|wanted| wanted != protocol) {
        let message = format!("this is a stream: send 'Connection: Upgrade, Upgrade: {protocol}'");
        return Err(ServiceError::new(Code::Invalid, message).into());
    }
    let place = place(&api, name).await?;
    let owned = name.to_owned();
    let stream = tokio::task::spawn_blocking(move || connect(&place, &owned, &ask)).await;
    let mut stream = stream.map_err(|error| ServiceError::new(Code::Internal, error))??;
    let upgraded = hyper::upgrade::on(request);
    tokio::spawn(async move {
        match upgraded.await {
            Ok(caller) => {
                let mut caller = TokioIo::new(caller);
                // Either side may just go.
                let _ = tokio::io::copy_bidirectional(&mut caller, &mut stream).await;
            }
            Err(error) => tracing::debug!(%error, "a caller went away before its stream began"),
        }
    });
    let mut response = StatusCode::SWITCHING_PROTOCOLS.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static(protocol));
    Ok(response)
}

fn connect(place: &Place, name: &str, ask: &Ask) -> Result<UnixStream, ServiceError> {
    let reply = Client::connect(&place.control())
        .and_then(|mut client| client.ask(ask))
        .map_err(|error| match error {
            ClientError::Io { .. } => {
                ServiceError::new(Code::Conflict, format!("{name} does not run"))
                    .hint(format!("'favo start {name}' starts it"))
            }
            ClientError::Refused(refused) => {
                ServiceError::new(Code::Unavailable, refused.message).hint(refused.hint)
            }
            ClientError::Protocol { .. } => ServiceError::new(Code::Internal, error),
        })?;
    let internal = |error: std::io::Error| ServiceError::new(Code::Internal, error);
    let descriptor = reply.descriptors.into_iter().next();
    let descriptor = descriptor.ok_or_else(|| {
        ServiceError::new(Code::Internal, "the machine's process passed no descriptor")
    })?;
    let stream = std::os::unix::net::UnixStream::from(descriptor);
    stream.set_nonblocking(true).map_err(internal)?;
    UnixStream::from_std(stream).map_err(internal)
}
