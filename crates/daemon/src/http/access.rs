//! Who may use the API over TCP.
//!
//! On the Unix socket the file's mode decides. Over TCP, which is for the page
//! and only on this host (there is no TLS yet), a request has the owner's
//! token, which lies in a file only the owner can read, or a session's cookie.
//! A session begins with a link that works once: whoever can use the socket
//! gets one (`favo up`).
//!
//! A page of somebody else in the owner's browser reaches this port, too.
//! It can't read the token; its requests have no session cookie
//! (`SameSite=Strict`), a foreign `Origin`, or a foreign `Host` if it made its
//! own name lead here; each is refused.

use std::collections::HashMap;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use favo_api::error::Code;
use favo_api::sign_in::{SignIn, SignInLink};

use super::error::{ApiError, Body};
use crate::service::ServiceError;

/// How long a link works.
const LINK_LIFE: Duration = Duration::from_secs(600);
/// How long a session lasts.
const SESSION_LIFE: Duration = Duration::from_secs(12 * 3600);
/// Links and sessions at a time; the oldest go.
const MOST: usize = 64;
const COOKIE: &str = "favo_session";

/// What lets callers in.
#[derive(Clone)]
pub struct Access {
    token: Arc<str>,
    grants: Arc<Mutex<Grants>>,
    /// Where the page is.
    origin: Arc<str>,
}

#[derive(Default)]
struct Grants {
    links: HashMap<String, Instant>,
    sessions: HashMap<String, Instant>,
}

impl Access {
    /// With the token in `state`, which is made if it isn't there, for a page
    /// at `http://host`.
    ///
    /// # Errors
    /// The token can't be read or written.
    pub fn open(state: &Path, host: &str) -> io::Result<Self> {
        let path = state.join("token");
        let token = match std::fs::read_to_string(&path) {
            Ok(token) if token.trim().len() >= 32 => token.trim().to_owned(),
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {
                let token = secret();
                let new = state.join("token.new");
                let mut options = std::fs::OpenOptions::new();
                options.write(true).create(true).truncate(true).mode(0o600);
                let mut file = options.open(&new)?;
                file.write_all(format!("{token}\n").as_bytes())?;
                file.sync_all()?;
                std::fs::rename(new, &path)?;
                token
            }
        };
        Ok(Self {
            token: token.into(),
            grants: Arc::default(),
            origin: format!("http://{host}").into(),
        })
    }

    /// The host and port of the page.
    pub fn host(&self) -> &str {
        self.origin.strip_prefix("http://").unwrap_or_default()
    }

    fn grants(&self) -> MutexGuard<'_, Grants> {
        self.grants.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_owner(&self, headers: &HeaderMap) -> bool {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let bearer = text(header::AUTHORIZATION).and_then(|value| value.strip_prefix("Bearer "));
        if bearer.is_some_and(|token| same(token, &self.token)) {
            return true;
        }
        let cookies = text(header::COOKIE).unwrap_or_default();
        let session = cookies
            .split(';')
            .filter_map(|cookie| cookie.trim().split_once('='))
            .find(|(name, _)| *name == COOKIE);
        let Some((_, session)) = session else {
            return false;
        };
        let ends = self.grants().sessions.get(session).copied();
        ends.is_some_and(|ends| ends > Instant::now())
    }

    /// Whether a request comes from the page, or from no page.
    fn is_from_here(&self, headers: &HeaderMap) -> bool {
        let named = headers
            .get(header::HOST)
            .and_then(|host| host.to_str().ok());
        let origin = headers.get(header::ORIGIN);
        named == Some(self.host()) && origin.is_none_or(|origin| *origin == *self.origin)
    }
}

/// 256 random bits.
fn secret() -> String {
    (0..4).map(|_| crate::service::new_id()).collect()
}

/// Takes the same time wherever they differ.
fn same(one: &str, other: &str) -> bool {
    let pairs = one.bytes().zip(other.bytes());
    one.len() == other.len() && pairs.fold(0, |all, (a, b)| all | (a ^ b)) == 0
}

fn insert(grants: &mut HashMap<String, Instant>, secret: String, ends: Instant) {
    grants.retain(|_, ends| *ends > Instant::now());
    if grants.len() >= MOST
        && let Some(oldest) = grants.iter().min_by_key(|(_, ends)| **ends)
    {
        let oldest = oldest.0.clone();
        grants.remove(&oldest);
    }
    grants.insert(secret, ends);
}

/// Lets in who may.
pub(super) async fn check(State(access): State<Access>, request: Request, next: Next) -> Response {
    let headers = request.headers();
    let refuse = |message: &str, hint: &str| {
        ApiError(ServiceError::new(Code::Denied, message).hint(hint)).into_response()
    };
    if !access.is_from_here(headers) {
        return refuse("the request comes from another page", "");
    }
    let path = request.uri().path();
    let is_open = !path.starts_with("/v1/") && path != "/metrics" || path == "/v1/sign-in";
    if !is_open && !access.is_owner(headers) {
        let hint = "'favo up' prints a link that signs in; programs send the token in the state \
                    directory's file 'token' as Authorization: Bearer";
        let mut response = refuse("nobody is signed in", hint);
        // RFC 9110 §15.5.2: who it is is not known.
        *response.status_mut() = axum::http::StatusCode::UNAUTHORIZED;
        if let Ok(scheme) = "Bearer".parse() {
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, scheme);
        }
        return response;
    }
    next.run(request).await
}

/// A link that signs in, once.
#[utoipa::path(
    post, path = "/v1/sign-in-links", tag = "access", responses((status = 201, body = SignInLink))
)]
pub(super) async fn link(
    State(api): State<super::Api>,
) -> Result<(axum::http::StatusCode, Json<SignInLink>), ApiError> {
    let Some(access) = &api.access else {
        let message = "this daemon serves no page";
        return Err(ServiceError::new(Code::Unavailable, message)
            .hint("start it with --listen 127.0.0.1:8420")
            .into());
    };
    let code = secret();
    let url = format!("{}/#code={code}", access.origin);
    insert(&mut access.grants().links, code, Instant::now() + LINK_LIFE);
    Ok((axum::http::StatusCode::CREATED, Json(SignInLink { url })))
}

/// Begins a session with the code of a link, in a cookie.
#[utoipa::path(
    post, path = "/v1/sign-in", tag = "access", request_body = SignIn,
    responses((status = 204), (status = 403, body = favo_api::error::ErrorBody))
)]
pub(super) async fn sign_in(
    State(api): State<super::Api>,
    Body(sign_in): Body<SignIn>,
) -> Result<Response, ApiError> {
    let denied = || {
        ServiceError::new(Code::Denied, "this link does not work, or not any more")
            .hint("'favo up' prints another")
    };
    let access = api.access.as_ref().ok_or_else(denied)?;
    let ends = access.grants().links.remove(&sign_in.code);
    ends.filter(|ends| *ends > Instant::now())
        .ok_or_else(denied)?;
    let session = secret();
    let seconds = SESSION_LIFE.as_secs();
    let cookie =
        format!("{COOKIE}={session}; Path=/; HttpOnly; SameSite=Strict; Max-Age={seconds}");
    insert(
        &mut access.grants().sessions,
        session,
        Instant::now() + SESSION_LIFE,
    );
    Ok((
        axum::http::StatusCode::NO_CONTENT,
        [(header::SET_COOKIE, cookie)],
    )
        .into_response())
}
