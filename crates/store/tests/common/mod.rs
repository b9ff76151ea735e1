//! What the tests of both providers share: a real etcd, and fresh stores.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::io::Write as _;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use favo_store::{
    EmbeddedOptions, EmbeddedStore, EtcdOptions, EtcdStore, Key, Prefix, Revision, Store,
};
use tempfile::TempDir;

/// How long anything that must happen may take. A test that passes never waits
/// so long.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

pub fn prefix(text: &str) -> Prefix {
    Prefix::new(text).unwrap()
}

/// An etcd of our own, gone when this is dropped or the test dies.
pub struct Etcd {
    child: Child,
    directory: TempDir,
    pub port: u16,
    arguments: Vec<String>,
    pub scheme: &'static str,
}

impl Etcd {
    /// Starts Debian's etcd, or says why not.
    pub fn start() -> Option<Self> {
        Self::start_with("http", &[])
    }

    /// The same with more arguments.
    pub fn start_with(scheme: &'static str, arguments: &[String]) -> Option<Self> {
        let found = Command::new("etcd")
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if found.is_err() {
            assert!(
                std::env::var_os("REQUIRE_ETCD").is_none(),
                "REQUIRE_ETCD is set and there is no etcd"
            );
            eprintln!("skipped: no etcd in PATH (apt-get install etcd-server)");
            return None;
        }
        // A port that was free a moment ago may be taken: then once more.
        for _ in 0..5 {
            let directory = tempfile::tempdir().unwrap();
            let [client, peer] = free_ports();
            let mut child = spawn(directory.path(), scheme, client, peer, arguments);
            let until = Instant::now() + PATIENCE;
            while Instant::now() < until {
                if child.try_wait().unwrap().is_some() {
                    break;
                }
                if serves(directory.path()) {
                    return Some(Self {
                        child,
                        directory,
                        port: client,
                        arguments: arguments.to_vec(),
                        scheme,
                    });
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            stop(&mut child);
            let log = std::fs::read_to_string(directory.path().join("log"));
            eprintln!("etcd did not start: {}", log.unwrap_or_default());
        }
        panic!("etcd did not start");
    }

    pub fn options(&self) -> EtcdOptions {
        EtcdOptions::new([format!("{}://127.0.0.1:{}", self.scheme, self.port)])
    }

    /// A store in it that nobody else uses.
    pub async fn store(&self) -> EtcdStore {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let mut options = self.options();
        options.timeout = PATIENCE;
        options.namespace = prefix(&format!("test{}/", NEXT.fetch_add(1, Ordering::Relaxed)));
        EtcdStore::connect(&options).await.unwrap()
    }

    /// Kills it, without a chance to say goodbye.
    pub fn kill(&mut self) {
        stop(&mut self.child);
    }

    /// Starts it again with what it had on disk.
    pub fn restart(&mut self) {
        self.kill();
        let path = self.directory.path();
        std::fs::remove_file(path.join("log")).unwrap();
        let [_, peer] = free_ports();
        self.child = spawn(path, self.scheme, self.port, peer, &self.arguments);
        let until = Instant::now() + PATIENCE;
        while !serves(path) {
            assert!(Instant::now() < until, "etcd did not come back");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        stop(&mut self.child);
    }
}

fn free_ports() -> [u16; 2] {
    // Both at once, or they would be the same.
    let listeners = [(); 2].map(|()| TcpListener::bind(("127.0.0.1", 0)).unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}

/// Starts etcd under a shell that kills it when our end of the pipe closes,
/// however that comes about.
fn spawn(directory: &Path, scheme: &str, client: u16, peer: u16, more: &[String]) -> Child {
    const SCRIPT: &str = r#"
        log=$1; shift
        exec 3<&0
        etcd "$@" </dev/null 3<&- >"$log" 2>&1 & etcd=$!
        ( cat <&3 >/dev/null; kill -9 $etcd ) 2>/dev/null &
        wait $etcd
    "#;
    let client = format!("{scheme}://127.0.0.1:{client}");
    let peer = format!("http://127.0.0.1:{peer}");
    Command::new("sh")
        .args(["-c", SCRIPT, "sh"])
        .arg(directory.join("log"))
        .arg("--data-dir")
        .arg(directory.join("data"))
        .args(["--name", "test", "--logger", "zap"])
        .args(["--listen-client-urls", &client])
        .args(["--advertise-client-urls", &client])
        .args(["--listen-peer-urls", &peer])
        .args(["--initial-advertise-peer-urls", &peer])
        .args(["--initial-cluster", &format!("test={peer}")])
        // The shortest lease is one and a half elections.
        .args(["--heartbeat-interval", "50", "--election-timeout", "500"])
        .args(more)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn serves(directory: &Path) -> bool {
    std::fs::read_to_string(directory.join("log"))
        .is_ok_and(|log| log.contains("serving client traffic"))
}

fn stop(child: &mut Child) {
    if let Some(mut stdin) = child.stdin.take() {
        let _ = stdin.flush();
    }
    child.wait().unwrap();
}

/// An embedded store in a directory of its own.
pub struct Embedded {
    pub store: Arc<dyn Store>,
    _directory: TempDir,
}

impl Embedded {
    pub fn open() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = EmbeddedStore::open(directory.path(), &EmbeddedOptions::default()).unwrap();
        Self {
            store: Arc::new(store),
            _directory: directory,
        }
    }
}

/// Waits for something that must happen.
pub async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what)
        .await
        .expect("it should have happened long ago")
}

pub async fn put(store: &dyn Store, name: &str, value: &str) -> Revision {
    store
        .put(&key(name), value.as_bytes().to_vec())
        .await
        .unwrap()
}
