//! The daemon: its store, its reconciler, its socket.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use favo_store::{EmbeddedOptions, EmbeddedStore, OpenError};
use tokio::net::{TcpListener, UnixListener};

use crate::host_runner::HostRunner;
use crate::http::access::Access;
use crate::http::{Api, guarded, router};
use crate::reconciler::Reconciler;
use crate::records::Records;
use crate::service::{Service, ServiceError};

/// What a daemon is told.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where everything is kept.
    pub state: PathBuf,
    /// The program whose `vmm boot` runs machines: this one.
    pub program: PathBuf,
    /// Options of `vmm boot`.
    pub machine_options: Vec<String>,
    /// Where the page is served, and the API for those who have its token;
    /// another free port, if this one is taken.
    pub listen: Option<SocketAddr>,
}

/// Why a daemon can't run.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The store.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// The socket or a directory.
    #[error("{action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// The page.
    #[error("serving the page on {address}: {source}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What the host said.
        source: io::Error,
    },
    /// What is stored can't be read.
    #[error("{0}")]
    Records(String),
}

/// Where the daemon of a state directory listens.
pub fn socket(state: &Path) -> PathBuf {
    state.join("api.sock")
}

/// Runs until `end` is ready. Machines run on.
///
/// # Errors
/// Another daemon runs; the state can't be used.
pub async fn run(
    options: Options,
    end: impl Future<Output = ()> + Send + 'static,
) -> Result<(), DaemonError> {
    let failed = |action, path: &Path| {
        let path = path.to_owned();
        move |source| DaemonError::Io {
            action,
            path,
            source,
        }
    };
    let state = options.state;
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true).mode(0o700);
    let (database, instances) = (state.join("store"), state.join("instances"));
    for directory in [&state, &database, &instances] {
        builder
            .create(directory)
            .map_err(failed("creating", directory))?;
    }
    let store = EmbeddedStore::open(&database, &EmbeddedOptions::default())?;
    let records =
        Records::new(Arc::new(store)).map_err(|error| DaemonError::Records(error.to_string()))?;
    let runner = HostRunner::new(&state, options.program, options.machine_options);
    let reconciler = Reconciler::new(records.clone(), runner);
    let service = Arc::new(Service::new(records, reconciler));
    let records_failed = |error: ServiceError| DaemonError::Records(error.message);
    let host_is_new = is_new_host(&state).map_err(failed("writing", &state))?;
    service.resume(host_is_new).await.map_err(records_failed)?;
    // Whoever holds the store may replace the socket of one who is gone.
    let path = socket(&state);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed("removing", &path)(error));
        }
        _ => {}
    }
    let listener = UnixListener::bind(&path).map_err(failed("listening on", &path))?;
    // The directory keeps others out until then.
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))
        .map_err(failed("protecting", &path))?;
    tracing::info!("the API is at {}", path.display());
    let mut api = Api {
        service,
        state,
        access: None,
    };
    if let Some(address) = options.listen {
        let (listener, access) = listen(&api.state, address).await?;
        tracing::info!("the page is at http://{}", access.host());
        api.access = Some(access.clone());
        let page = guarded(api.clone(), access);
        tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, page).await {
                tracing::error!(%error, "the page is served no longer");
            }
        });
    }
    let served = axum::serve(listener, router(api))
        .with_graceful_shutdown(end)
        .await;
    let removed = std::fs::remove_file(&path);
    served.map_err(failed("serving", &path))?;
    removed.map_err(failed("removing", &path))
}

/// A listener for the page. Only this host may reach it: there is no TLS yet.
async fn listen(state: &Path, address: SocketAddr) -> Result<(TcpListener, Access), DaemonError> {
    let failed = |source| DaemonError::Listen { address, source };
    if !address.ip().is_loopback() {
        let message = "only addresses of this host are served, for there is no TLS yet";
        return Err(failed(io::Error::other(message)));
    }
    let listener = match TcpListener::bind(address).await {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            TcpListener::bind(SocketAddr::new(address.ip(), 0)).await
        }
        other => other,
    };
    let listener = listener.map_err(failed)?;
    let host = listener.local_addr().map_err(failed)?.to_string();
    let access = Access::open(state, &host).map_err(failed)?;
    Ok((listener, access))
}

/// Whether the host was started since the last daemon of this state.
fn is_new_host(state: &Path) -> io::Result<bool> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let remembered = state.join("boot_id");
    let before = match std::fs::read_to_string(&remembered) {
        Ok(before) => Some(before),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    if before.as_ref() != Some(&boot) {
        std::fs::write(&remembered, &boot)?;
    }
    Ok(before.is_some_and(|before| before != boot))
}
