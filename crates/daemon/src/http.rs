//! The API `/v1` over HTTP.
//!
//! Handlers only translate: what they do is [`Service`]'s. OpenAPI is generated
//! from them. Every response has an `x-request-id`; every failure the one body
//! ([`favo_api::error::ErrorBody`]).

pub mod access;
mod error;
mod events;
mod instances;
mod observe;
mod page;
mod streams;

use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::get;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::host_runner::HostRunner;
use crate::service::Service;

pub use error::ApiError;

/// What handlers work with.
#[derive(Clone)]
pub struct Api {
    /// The operations.
    pub service: Arc<Service<HostRunner>>,
    /// Where the state is.
    pub state: PathBuf,
    /// Who may use it over TCP, if it is served there.
    pub access: Option<access::Access>,
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "favo",
        description = "The API of a favo daemon. Over a Unix socket it belongs to the user who \
                       runs the daemon; over TCP requests need the token in the state directory."
    ),
    // Those of paths are not found by themselves.
    components(schemas(favo_api::instance::Action))
)]
struct Description;

fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(instances::list, instances::create))
        .routes(routes!(
            instances::show,
            instances::change,
            instances::delete
        ))
        .routes(routes!(instances::act))
        .routes(routes!(streams::agent))
        .routes(routes!(streams::console))
        .routes(routes!(streams::logs))
        .routes(routes!(observe::images))
        .routes(routes!(observe::host))
        .routes(routes!(observe::tasks))
        .routes(routes!(observe::task))
        .routes(routes!(observe::metrics))
        .routes(routes!(events::watch))
        .routes(routes!(access::link))
        .routes(routes!(access::sign_in))
}

/// The description of the API, as OpenAPI 3.1 in JSON.
///
/// # Errors
/// Never: it is made of texts.
pub fn openapi() -> Result<String, serde_json::Error> {
    let (_, description) = routes().split_for_parts();
    description.to_pretty_json()
}

/// The handlers.
pub fn router(api: Api) -> Router {
    handlers(api).layer(middleware::from_fn(account))
}

fn handlers(api: Api) -> Router {
    let (router, description) = routes().split_for_parts();
    let description = Arc::new(description);
    router
        .route(
            "/v1/openapi.json",
            get(move || async move { axum::Json((*description).clone()) }),
        )
        .fallback(error::no_route)
        .method_not_allowed_fallback(error::no_method)
        .with_state(api)
}

/// The same over TCP, with the page, for those who may.
pub fn guarded(api: Api, access: access::Access) -> Router {
    handlers(api)
        .merge(page::routes())
        .layer(middleware::from_fn_with_state(access, access::check))
        .layer(middleware::from_fn(account))
}

/// Gives each request an id, and an audit line to each that changes something.
async fn account(mut request: Request, next: Next) -> Response {
    let id = crate::service::new_id();
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    request
        .extensions_mut()
        .insert(error::RequestId(id.clone()));
    let begin = std::time::Instant::now();
    let response = error::REQUEST.scope(id.clone(), next.run(request)).await;
    let status = response.status().as_u16();
    let took = begin.elapsed();
    if method.is_safe() {
        tracing::debug!(request = id, %method, path, status, ?took, "request");
    } else {
        tracing::info!(target: "audit", request = id, %method, path, status, ?took, "request");
    }
    let mut response = response;
    if let Ok(value) = id.parse() {
        response.headers_mut().insert("x-request-id", value);
    }
    response
}

#[cfg(test)]
#[path = "http/http_test.rs"]
mod test;
