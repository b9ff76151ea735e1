//! What only an etcd can do to us: go away and come back, ask who we are.

mod common;

use std::path::Path;
use std::time::Duration;

use common::{Etcd, PATIENCE, key, put, soon};
use etcd_client::{Client, Permission, PermissionType};
use favo_store::{Error, EtcdOptions, EtcdStore, EtcdTls, Prefix, Revision, Store};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

/// Long enough for an answer, short enough to wait for none.
const BRIEFLY: Duration = Duration::from_secs(2);

async fn refused(options: &EtcdOptions) -> Error {
    soon(EtcdStore::connect(options)).await.unwrap_err()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_etcd_that_is_not_there_is_unavailable() {
    let mut options = EtcdOptions::new(["http://127.0.0.1:1".to_owned()]);
    options.timeout = BRIEFLY;
    let error = refused(&options).await;
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    assert!(error.retryable());
    assert!(error.to_string().contains("127.0.0.1:1"), "{error}");
    for wrong in [vec![], vec!["no URL at all".to_owned()]] {
        let error = refused(&EtcdOptions::new(wrong)).await;
        assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_goes_on_when_etcd_comes_back() {
    let Some(mut etcd) = Etcd::start() else {
        return;
    };
    let mut options = etcd.options();
    options.timeout = Duration::from_secs(10);
    let store = EtcdStore::connect(&options).await.unwrap();
    let from = store.revision().await.unwrap().next();
    let mut watch = store.watch(&Prefix::ALL, from).await.unwrap();
    let lease = store.grant(Duration::from_secs(600)).await.unwrap().id;
    let first = put(&store, "before", "").await;
    assert_eq!(watch.next().await.unwrap().revision, first);

    // The watch waits meanwhile; both must do without a new call of `watch`.
    let watching = tokio::spawn(async move {
        let mut seen = Vec::new();
        let mut outages = 0;
        while seen.len() < 2 {
            match watch.next().await {
                Ok(batch) => seen.push(batch.revision),
                Err(Error::Unavailable { .. }) => outages += 1,
                Err(other) => panic!("{other:?}"),
            }
        }
        (seen, outages)
    });
    etcd.kill();
    let error = store.revision().await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    let error = store.put(&key("during"), vec![]).await.unwrap_err();
    assert!(
        matches!(error, Error::Unavailable { .. } | Error::Uncertain { .. }),
        "{error:?}"
    );
    tokio::time::sleep(Duration::from_millis(500)).await;
    etcd.restart();
    // Our own connection may need a moment to notice.
    let until = tokio::time::Instant::now() + PATIENCE;
    let one = loop {
        match store.put(&key("after"), vec![]).await {
            Ok(revision) => break revision,
            Err(error) => assert!(tokio::time::Instant::now() < until, "{error:?}"),
        }
    };
    let two = put(&store, "after", "again").await;
    let (seen, outages) = soon(watching).await.unwrap();
    assert!(outages > 0, "nobody said that it was away");
    // Had an uncertain change been made after all, it would be seen first.
    let made = store.get(&key("during")).await.unwrap();
    let expected: Vec<Revision> = made
        .map(|entry| entry.modified)
        .into_iter()
        .chain([one, two])
        .collect();
    assert_eq!(seen, expected[..2]);
    store.keep_alive(lease).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn users_are_told_apart() {
    let Some(etcd) = Etcd::start() else {
        return;
    };
    let url = format!("http://127.0.0.1:{}", etcd.port);
    let mut client = Client::connect([&url], None).await.unwrap();
    client.user_add("root", "secret", None).await.unwrap();
    client.user_grant_role("root", "root").await.unwrap();
    client.role_add("favo").await.unwrap();
    let ours = Permission::new(PermissionType::Readwrite, "favo/").with_prefix();
    client.role_grant_permission("favo", ours).await.unwrap();
    client.user_add("favo", "password", None).await.unwrap();
    client.user_grant_role("favo", "favo").await.unwrap();
    client.auth_enable().await.unwrap();

    let mut options = etcd.options();
    options.timeout = PATIENCE;
    let user = |password: &str| Some(("favo".to_owned(), password.to_owned()));
    for wrong in [None, user("guess")] {
        options.user = wrong;
        let error = refused(&options).await;
        assert!(matches!(error, Error::Denied { .. }), "{error:?}");
    }
    options.user = user("password");
    assert!(!format!("{options:?}").contains("password"));
    let store = EtcdStore::connect(&options).await.unwrap();
    let revision = put(&store, "k", "v").await;
    let mut watch = store.watch(&Prefix::ALL, revision).await.unwrap();
    assert_eq!(soon(watch.next()).await.unwrap().revision, revision);
    // Others' keys are not ours to touch.
    options.namespace = common::prefix("others/");
    let error = refused(&options).await;
    assert!(matches!(error, Error::Denied { .. }), "{error:?}");
}

/// An authority, and what it signs.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// A certificate for these names, and its key.
    fn sign(&self, names: &[&str]) -> (String, String) {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(names).unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    fn tls(&self) -> EtcdTls {
        EtcdTls {
            authority: self.0.pem().into_bytes(),
            identity: None,
            server_name: None,
        }
    }
}

fn file(directory: &Path, name: &str, content: &str) -> String {
    let path = directory.join(name);
    std::fs::write(&path, content).unwrap();
    path.to_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_checked_both_ways() {
    let directory = tempfile::tempdir().unwrap();
    let write = |name, content: &str| file(directory.path(), name, content);
    let ours = Authority::new();
    let (certificate, server_key) = ours.sign(&["127.0.0.1", "localhost", "store.example"]);
    let arguments = [
        "--cert-file".to_owned(),
        write("server.pem", &certificate),
        "--key-file".to_owned(),
        write("server.key", &server_key),
        "--trusted-ca-file".to_owned(),
        write("authority.pem", &ours.0.pem()),
        "--client-cert-auth".to_owned(),
    ];
    let Some(etcd) = Etcd::start_with("https", &arguments) else {
        return;
    };
    let identity = |authority: &Authority| {
        let (certificate, key) = authority.sign(&["favo"]);
        Some((certificate.into_bytes(), key.into_bytes()))
    };
    let mut options = etcd.options();
    options.timeout = PATIENCE;
    options.tls = Some(EtcdTls {
        identity: identity(&ours),
        ..ours.tls()
    });
    let store = EtcdStore::connect(&options).await.unwrap();
    let revision = put(&store, "k", "v").await;
    let mut watch = store.watch(&Prefix::ALL, revision).await.unwrap();
    assert_eq!(soon(watch.next()).await.unwrap().revision, revision);
    // The name in the certificate, said by hand.
    let named = |name: &str| EtcdTls {
        identity: identity(&ours),
        server_name: Some(name.to_owned()),
        ..ours.tls()
    };
    options.tls = Some(named("store.example"));
    EtcdStore::connect(&options).await.unwrap();

    options.timeout = BRIEFLY;
    let other = Authority::new();
    let wrong = [
        ("no certificate of ours", Some(ours.tls())),
        (
            "a stranger's certificate",
            Some(EtcdTls {
                identity: identity(&other),
                ..ours.tls()
            }),
        ),
        (
            "another authority",
            Some(EtcdTls {
                identity: identity(&ours),
                ..other.tls()
            }),
        ),
        ("another name", Some(named("other.example"))),
        (
            "a certificate that is none",
            Some(EtcdTls {
                authority: b"-----BEGIN CERTIFICATE-----\nx\n".to_vec(),
                ..ours.tls()
            }),
        ),
        ("no authority", None),
    ];
    for (what, tls) in wrong {
        options.tls = tls;
        let error = refused(&options).await;
        assert!(
            matches!(error, Error::Unavailable { .. }),
            "{what}: {error:?}"
        );
    }
    // Plain text to a port that wants TLS.
    let mut plain = EtcdOptions::new([format!("http://127.0.0.1:{}", etcd.port)]);
    plain.timeout = BRIEFLY;
    let error = refused(&plain).await;
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
}
