//! Talks to a favo daemon over its Unix socket: requests, streams, events.
//!
//! Blocking, for programs that do one thing at a time: each call drives a small
//! runtime of its own. What the words mean is [`favo_api`]'s.
#![forbid(unsafe_code)]

use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};

use favo_api::error::{Code, ErrorBody};
use favo_api::event::Event;
use http_body_util::{BodyExt, Full};
pub use hyper::Method;
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, UPGRADE};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::runtime::{Builder, Runtime};

/// A longer answer is none of a daemon.
const LONGEST_ANSWER: usize = 64 << 20;

/// Why a daemon did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens there.
    #[error("no daemon runs here ({}: {source}); 'favo up' starts one", socket.display())]
    NoDaemon {
        /// Where it would listen.
        socket: PathBuf,
        /// What the host said.
        source: std::io::Error,
    },
    /// It refused, or it failed.
    #[error("{}", said(.0))]
    Refused(Box<ErrorBody>),
    /// The connection broke, or what came is no answer.
    #[error("talking to the daemon: {0}")]
    Broken(String),
}

fn said(body: &ErrorBody) -> String {
    let mut text = format!("error[{}]: {}", body.code.name(), body.message);
    if !body.hint.is_empty() {
        text.push_str("\nhint: ");
        text.push_str(&body.hint);
    }
    text
}

impl ClientError {
    /// The kind of a refusal.
    pub fn code(&self) -> Code {
        match self {
            Self::Refused(body) => body.code,
            Self::NoDaemon { .. } | Self::Broken(_) => Code::Unavailable,
        }
    }
}

fn broken(error: impl std::fmt::Display) -> ClientError {
    ClientError::Broken(error.to_string())
}

/// A daemon, by its socket.
pub struct Client {
    socket: PathBuf,
    runtime: Runtime,
}

impl Client {
    /// The daemon at `socket`; nothing is sent yet.
    ///
    /// # Errors
    /// The host has no descriptors left.
    pub fn new(socket: &Path) -> Result<Self, ClientError> {
        Ok(Self {
            socket: socket.to_owned(),
            runtime: Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(broken)?,
        })
    }

    /// `GET`.
    ///
    /// # Errors
    /// As [`ClientError`] says.
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.ask::<(), T>(Method::GET, path, None)
    }

    /// A request with or without a body, and its answer.
    ///
    /// # Errors
    /// As [`ClientError`] says.
    pub fn ask<B: Serialize, T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> Result<T, ClientError> {
        let bytes = self.bytes(method, path, body)?;
        serde_json::from_slice(&bytes).map_err(broken)
    }

    /// The same for an answer that is not JSON.
    ///
    /// # Errors
    /// As [`ClientError`] says.
    pub fn bytes<B: Serialize>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> Result<Vec<u8>, ClientError> {
        let mut request = Request::builder().method(method).uri(path);
        let bytes = match body {
            Some(body) => {
                request = request.header(CONTENT_TYPE, "application/json");
                serde_json::to_vec(body).map_err(broken)?
            }
            None => Vec::new(),
        };
        self.runtime.block_on(async {
            let mut sender = self.connect().await?;
            let request = request
                .header(HOST, "favo")
                .body(Full::new(Bytes::from(bytes)));
            let response = sender.send_request(request.map_err(broken)?).await;
            let response = response.map_err(broken)?;
            let status = response.status();
            let bytes = collect(response).await?;
            match status.is_success() {
                true => Ok(bytes),
                false => Err(refused(status, &bytes)),
            }
        })
    }

    /// A connection that becomes a stream of `protocol`.
    ///
    /// # Errors
    /// As [`ClientError`] says.
    pub fn upgrade(&self, path: &str, protocol: &str) -> Result<StdStream, ClientError> {
        self.runtime.block_on(async {
            let mut sender = self.connect().await?;
            let request = Request::builder()
                .uri(path)
                .header(HOST, "favo")
                .header(CONNECTION, "upgrade")
                .header(UPGRADE, protocol)
                .body(Full::new(Bytes::new()));
            let response = sender.send_request(request.map_err(broken)?).await;
            let response = response.map_err(broken)?;
            let status = response.status();
            if status != StatusCode::SWITCHING_PROTOCOLS {
                return Err(refused(status, &collect(response).await?));
            }
            let upgraded = hyper::upgrade::on(response).await.map_err(broken)?;
            let parts = upgraded
                .downcast::<TokioIo<UnixStream>>()
                .map_err(|_| broken("the stream is none"))?;
            let stream = parts.io.into_inner().into_std().map_err(broken)?;
            stream.set_nonblocking(false).map_err(broken)?;
            match parts.read_buf.is_empty() {
                true => Ok(stream),
                false => preceded(&parts.read_buf, stream).map_err(broken),
            }
        })
    }

    /// Has `each` see events until it returns false or the daemon ends them.
    /// `from`: the first revision of interest; none for what is to come.
    ///
    /// # Errors
    /// As [`ClientError`] says.
    pub fn events(
        &self,
        from: Option<u64>,
        mut each: impl FnMut(Event) -> bool,
    ) -> Result<(), ClientError> {
        let path = match from {
            Some(from) => format!("/v1/events?from={from}"),
            None => "/v1/events".to_owned(),
        };
        self.runtime.block_on(async {
            let mut sender = self.connect().await?;
            let request = Request::builder().uri(path).header(HOST, "favo");
            let request = request.body(Full::new(Bytes::new())).map_err(broken)?;
            let response = sender.send_request(request).await.map_err(broken)?;
            let status = response.status();
            if !status.is_success() {
                return Err(refused(status, &collect(response).await?));
            }
            let mut body = response.into_body();
            let mut received: Vec<u8> = Vec::new();
            while let Some(frame) = body.frame().await {
                if let Ok(data) = frame.map_err(broken)?.into_data() {
                    received.extend_from_slice(&data);
                }
                while let Some(end) = received.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = received.drain(..=end).collect();
                    // Of server-sent events the daemon uses one data line each.
                    if let Some(json) = line.strip_prefix(b"data:")
                        && !each(serde_json::from_slice(json).map_err(broken)?)
                    {
                        return Ok(());
                    }
                }
                if received.len() > LONGEST_ANSWER {
                    return Err(broken("an event that is too long"));
                }
            }
            Ok(())
        })
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, ClientError> {
        let stream = UnixStream::connect(&self.socket).await;
        let stream = stream.map_err(|source| ClientError::NoDaemon {
            socket: self.socket.clone(),
            source,
        })?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(broken)?;
        // Errors reach the request's own answer.
        tokio::spawn(connection.with_upgrades());
        Ok(sender)
    }
}

/// A stream of which some was read already with the answer before it: another
/// one, whose ends are joined.
fn preceded(begin: &[u8], stream: StdStream) -> std::io::Result<StdStream> {
    use std::io::Write;
    let (mut inside, outside) = StdStream::pair()?;
    inside.write_all(begin)?;
    let (mut from, mut to) = (stream.try_clone()?, inside.try_clone()?);
    let pump = |from: &mut StdStream, to: &mut StdStream| {
        // Either side may just go.
        let _ = std::io::copy(from, to);
        let _ = to.shutdown(std::net::Shutdown::Write);
    };
    std::thread::Builder::new().spawn(move || pump(&mut from, &mut to))?;
    let mut stream = stream;
    std::thread::Builder::new().spawn(move || pump(&mut inside, &mut stream))?;
    Ok(outside)
}

async fn collect(response: Response<Incoming>) -> Result<Vec<u8>, ClientError> {
    let limited = http_body_util::Limited::new(response.into_body(), LONGEST_ANSWER);
    let collected = limited.collect().await.map_err(broken)?;
    Ok(collected.to_bytes().to_vec())
}

fn refused(status: StatusCode, bytes: &[u8]) -> ClientError {
    match serde_json::from_slice::<ErrorBody>(bytes) {
        Ok(body) => ClientError::Refused(Box::new(body)),
        Err(_) => broken(format!("it answered {status} without saying why")),
    }
}
