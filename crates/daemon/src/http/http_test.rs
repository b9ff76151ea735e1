use axum::body::Body;
use axum::http::{Request, StatusCode};
use favo_store::{EmbeddedOptions, EmbeddedStore};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::*;
use crate::reconciler::Reconciler;
use crate::records::Records;

/// The API over a host on which no machine starts.
fn api() -> (Router, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(directory.path(), &EmbeddedOptions::default()).unwrap();
    let records = Records::new(Arc::new(store)).unwrap();
    let runner = HostRunner::new(directory.path(), "/bin/false", Vec::new());
    let reconciler = Reconciler::new(records.clone(), runner);
    let service = Arc::new(Service::new(records, reconciler));
    let state = directory.path().to_owned();
    (
        router(Api {
            service,
            state,
            access: None,
        }),
        directory,
    )
}

async fn ask(
    api: &Router,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: Option<Value>,
) -> (StatusCode, axum::http::HeaderMap, Value) {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let body = match body {
        Some(body) => {
            request = request.header("content-type", "application/json");
            Body::from(body.to_string())
        }
        None => Body::empty(),
    };
    let response = api
        .clone()
        .oneshot(request.body(body).unwrap())
        .await
        .unwrap();
    let (parts, body) = response.into_parts();
    let bytes = body.collect().await.unwrap().to_bytes();
    let value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
    (parts.status, parts.headers, value)
}

#[tokio::test]
async fn a_creation_answers_201_with_a_task_and_a_tag() {
    let (api, _directory) = api();
    let body = json!({"name": "web", "spec": {"image": "minimal", "power": "stopped"}});
    let path = "/v1/instances";
    let (status, headers, answer) = ask(&api, "POST", path, &[], Some(body.clone())).await;
    assert_eq!(status, StatusCode::CREATED);
    assert_eq!(headers["location"], "/v1/instances/web");
    assert_eq!(answer["instance"]["status"]["state"], "creating");
    assert_eq!(answer["instance"]["spec"]["memory"], 1 << 30);
    assert_eq!(answer["task"]["action"], "create");
    let (status, _, answer) = ask(&api, "POST", path, &[], Some(body)).await;
    assert_eq!(
        (status, &answer["code"]),
        (StatusCode::CONFLICT, &json!("exists"))
    );
    assert!(!answer["request_id"].as_str().unwrap().is_empty());
    let (_, headers, shown) = ask(&api, "GET", "/v1/instances/web", &[], None).await;
    let tag = headers["etag"].to_str().unwrap().to_owned();
    assert_eq!(tag, format!("\"{}\"", shown["revision"]));
    let patch = || Some(json!({"cpus": 2, "labels": {"role": "web"}}));
    let matching = [("if-match", tag.as_str())];
    let (status, ..) = ask(&api, "PATCH", "/v1/instances/web", &matching, patch()).await;
    assert_eq!(status, StatusCode::ACCEPTED);
    let (status, _, answer) = ask(&api, "PATCH", "/v1/instances/web", &matching, patch()).await;
    assert_eq!(
        (status, &answer["code"]),
        (StatusCode::PRECONDITION_FAILED, &json!("changed"))
    );
}

#[tokio::test]
async fn every_failure_has_the_one_body() {
    let (api, _directory) = api();
    let bad = json!({"name": "web", "spec": {"image": "minimal", "cpu": 1}});
    for (method, path, body, status, code) in [
        ("GET", "/v1/instances/none", None, 404, "not-found"),
        ("GET", "/v2", None, 404, "not-found"),
        ("PUT", "/v1/instances", None, 405, "invalid"),
        ("POST", "/v1/instances", Some(bad), 400, "invalid"),
        ("POST", "/v1/instances", Some(json!([])), 400, "invalid"),
        ("POST", "/v1/instances", None, 400, "invalid"),
        ("POST", "/v1/instances/none/start", None, 404, "not-found"),
        ("POST", "/v1/instances/none/fly", None, 404, "not-found"),
        ("GET", "/v1/instances?limit=many", None, 400, "invalid"),
        ("GET", "/v1/instances?label=x", None, 400, "invalid"),
        ("GET", "/v1/instances/none/agent", None, 400, "invalid"),
        ("GET", "/v1/tasks/none", None, 404, "not-found"),
        ("GET", "/v1/events?from=0", None, 410, "history-gone"),
        ("DELETE", "/v1/instances/%2e%2e", None, 404, "not-found"),
    ] {
        let (found, headers, answer) = ask(&api, method, path, &[], body).await;
        assert_eq!(found.as_u16(), status, "{method} {path} {answer}");
        assert_eq!(answer["code"], code, "{method} {path} {answer}");
        assert!(answer["message"].is_string() && answer["hint"].is_string());
        assert_eq!(
            answer["request_id"].as_str().unwrap(),
            headers["x-request-id"]
        );
    }
}

#[tokio::test]
async fn what_is_there_can_be_looked_at() {
    let (api, _directory) = api();
    let (status, _, host) = ask(&api, "GET", "/v1/host", &[], None).await;
    assert_eq!(status, StatusCode::OK);
    assert!(host["memory"].as_u64().unwrap() > 1 << 20);
    assert!(host["daemon_resident"].as_u64().unwrap() > 1 << 20);
    let (_, _, images) = ask(&api, "GET", "/v1/images", &[], None).await;
    assert_eq!(images["items"], json!([]));
    let response = api
        .clone()
        .oneshot(Request::get("/metrics").body(Body::empty()).unwrap())
        .await
        .unwrap();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    let text = String::from_utf8(bytes.to_vec()).unwrap();
    assert!(text.contains("# TYPE favo_host_memory_bytes gauge\nfavo_host_memory_bytes "));
}

#[tokio::test]
async fn over_tcp_only_the_owner_gets_in() {
    let (_, directory) = api();
    let store = EmbeddedStore::open(&directory.path().join("s"), &EmbeddedOptions::default());
    let records = Records::new(Arc::new(store.unwrap())).unwrap();
    let runner = HostRunner::new(directory.path(), "/bin/false", Vec::new());
    let reconciler = Reconciler::new(records.clone(), runner);
    let host = "127.0.0.1:8420";
    let access = access::Access::open(directory.path(), host).unwrap();
    let api = Api {
        service: Arc::new(Service::new(records, reconciler)),
        state: directory.path().to_owned(),
        access: Some(access.clone()),
    };
    let (socket, tcp) = (router(api.clone()), guarded(api, access));
    let token = std::fs::read_to_string(directory.path().join("token")).unwrap();
    let bearer = format!("Bearer {}", token.trim());
    let longer = format!("{bearer}0");
    let path = "/v1/host";
    for (headers, status) in [
        (vec![], 403),
        (vec![("host", host)], 401),
        (
            vec![("host", host), ("authorization", bearer.as_str())],
            200,
        ),
        (
            vec![("host", host), ("authorization", longer.as_str())],
            401,
        ),
        (vec![("host", host), ("authorization", "Bearer ")], 401),
        (vec![("host", host), ("cookie", "favo_session=0")], 401),
        (
            vec![("host", "evil.example"), ("authorization", bearer.as_str())],
            403,
        ),
        (
            vec![
                ("host", host),
                ("authorization", bearer.as_str()),
                ("origin", "http://evil.example"),
            ],
            403,
        ),
    ] {
        let (found, _, answer) = ask(&tcp, "GET", path, &headers, None).await;
        assert_eq!(found.as_u16(), status, "{headers:?} {answer}");
        if status != 200 {
            assert_eq!(answer["code"], "denied");
        }
    }
    // The files of the page are nobody's secret; a link works once.
    let here = [("host", host)];
    assert_eq!(ask(&tcp, "GET", "/", &here, None).await.0, StatusCode::OK);
    let (status, _, link) = ask(&socket, "POST", "/v1/sign-in-links", &[], None).await;
    assert_eq!(status, StatusCode::CREATED);
    let (_, code) = link["url"].as_str().unwrap().split_once("#code=").unwrap();
    let body = || Some(json!({ "code": code }));
    let (status, headers, _) = ask(&tcp, "POST", "/v1/sign-in", &here, body()).await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    let cookie = headers["set-cookie"].to_str().unwrap();
    assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict"));
    let session = cookie.split(';').next().unwrap();
    let with_session = [("host", host), ("cookie", session)];
    assert_eq!(
        ask(&tcp, "GET", path, &with_session, None).await.0,
        StatusCode::OK
    );
    let (status, ..) = ask(&tcp, "POST", "/v1/sign-in", &here, body()).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
}

/// The description in the repository is the one the handlers give:
/// `UPDATE_OPENAPI=1 cargo test -p favo-daemon openapi` writes it anew.
#[test]
fn the_committed_openapi_is_current() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/openapi.json");
    let now = openapi().unwrap() + "\n";
    if std::env::var_os("UPDATE_OPENAPI").is_some() {
        std::fs::create_dir_all(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs")).unwrap();
        std::fs::write(path, &now).unwrap();
    }
    let description: Value = serde_json::from_str(&now).unwrap();
    for reference in references(&description) {
        let pointer = reference.strip_prefix('#').unwrap();
        assert!(
            description.pointer(pointer).is_some(),
            "{reference} leads nowhere"
        );
    }
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        committed == now,
        "docs/openapi.json is not what the handlers say"
    );
}

/// What an OpenAPI document refers to inside itself.
fn references(value: &Value) -> Vec<String> {
    match value {
        Value::Object(fields) => fields
            .iter()
            .flat_map(|(name, value)| match (name.as_str(), value) {
                ("$ref", Value::String(reference)) => vec![reference.clone()],
                _ => references(value),
            })
            .collect(),
        Value::Array(items) => items.iter().flat_map(references).collect(),
        _ => Vec::new(),
    }
}
