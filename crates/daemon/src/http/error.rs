//! The one body of a failure.

use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts};
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use favo_api::error::{Code, ErrorBody};

use crate::service::ServiceError;

tokio::task_local! {
    /// The id of the request that is being answered.
    pub(super) static REQUEST: String;
}

/// The same, for handlers.
#[derive(Clone)]
pub(super) struct RequestId(#[expect(dead_code, reason = "for handlers that log")] pub String);

/// A failure, as a response.
#[derive(Debug)]
pub struct ApiError(pub ServiceError);

impl From<ServiceError> for ApiError {
    fn from(error: ServiceError) -> Self {
        Self(error)
    }
}

impl From<JsonRejection> for ApiError {
    fn from(rejection: JsonRejection) -> Self {
        Self(ServiceError::new(Code::Invalid, rejection.body_text()))
    }
}

impl From<QueryRejection> for ApiError {
    fn from(rejection: QueryRejection) -> Self {
        Self(ServiceError::new(Code::Invalid, rejection.body_text()))
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let ServiceError {
            code,
            message,
            hint,
        } = self.0;
        let request_id = REQUEST.try_with(Clone::clone).unwrap_or_default();
        if code == Code::Internal {
            tracing::error!(request = request_id, message, "internal error");
        }
        let status = StatusCode::from_u16(code.http_status());
        let body = ErrorBody {
            request_id,
            code,
            message,
            hint,
        };
        let status = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(body)).into_response()
    }
}

/// JSON whose refusal is [`ApiError`].
#[derive(FromRequest)]
#[from_request(via(axum::Json), rejection(ApiError))]
pub(super) struct Body<T>(pub T);

/// A query whose refusal is [`ApiError`].
#[derive(FromRequestParts)]
#[from_request(via(axum::extract::Query), rejection(ApiError))]
pub(super) struct Query<T>(pub T);

pub(super) async fn no_route(uri: Uri) -> ApiError {
    let message = format!("there is nothing at {}", uri.path());
    ApiError(ServiceError::new(Code::NotFound, message).hint("/v1/openapi.json describes the API"))
}

pub(super) async fn no_method(method: Method, uri: Uri) -> Response {
    let message = format!("{method} is not done at {}", uri.path());
    let mut response = ApiError(ServiceError::new(Code::Invalid, message)).into_response();
    *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
    response
}
