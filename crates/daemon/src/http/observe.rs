//! What can be looked at: images, the host, tasks, metrics.

use std::fmt::Write;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use favo_api::List;
use favo_api::error::{Code, ErrorBody};
use favo_api::host::Host;
use favo_api::image::Image;
use favo_api::task::Task;
use serde::Deserialize;
use utoipa::IntoParams;

use super::error::Query;
use super::{Api, ApiError};
use crate::service::{Filter, ServiceError};
use crate::usage;

/// Tasks that are listed if nobody says how many.
const TASKS: usize = 50;

/// The images of this host.
#[utoipa::path(
    get, path = "/v1/images", tag = "images", responses((status = 200, body = List<Image>))
)]
pub(super) async fn images(State(api): State<Api>) -> Result<Json<List<Image>>, ApiError> {
    let state = api.state.clone();
    let listed = tokio::task::spawn_blocking(move || favo_image::Store::open(state)?.list()).await;
    let internal = |error: &dyn std::error::Error| ServiceError::new(Code::Internal, error);
    let images = listed
        .map_err(|error| internal(&error))?
        .map_err(|error| internal(&error))?;
    let items = images.into_iter().map(|image| Image {
        name: image.manifest.name.to_string(),
        disk_size: image.manifest.disk.image.size.bytes(),
        created: image.manifest.created.as_second(),
    });
    Ok(Json(List {
        items: items.collect(),
        revision: 0,
        next_page: None,
    }))
}

/// What the host has, and what of it is given to instances.
#[utoipa::path(get, path = "/v1/host", tag = "host", responses((status = 200, body = Host)))]
pub(super) async fn host(State(api): State<Api>) -> Result<Json<Host>, ApiError> {
    Ok(Json(api.service.host(usage::of_host(&api.state)).await?))
}

#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(super) struct TasksQuery {
    /// At most so many.
    limit: Option<usize>,
}

/// What was asked for, the youngest first.
#[utoipa::path(
    get, path = "/v1/tasks", tag = "tasks", params(TasksQuery),
    responses((status = 200, body = List<Task>))
)]
pub(super) async fn tasks(
    State(api): State<Api>,
    Query(query): Query<TasksQuery>,
) -> Result<Json<List<Task>>, ApiError> {
    Ok(Json(api.service.tasks(query.limit.unwrap_or(TASKS)).await?))
}

/// A task.
#[utoipa::path(
    get, path = "/v1/tasks/{id}", tag = "tasks", params(("id" = String, Path)),
    responses((status = 200, body = Task), (status = 404, body = ErrorBody))
)]
pub(super) async fn task(
    State(api): State<Api>,
    Path(id): Path<String>,
) -> Result<Json<Task>, ApiError> {
    Ok(Json(api.service.task(&id).await?))
}

/// Figures for Prometheus, in its text format 0.0.4.
#[utoipa::path(
    get, path = "/metrics", tag = "host", responses((status = 200, content_type = "text/plain"))
)]
pub(super) async fn metrics(State(api): State<Api>) -> Result<Response, ApiError> {
    let host = api.service.host(usage::of_host(&api.state)).await?;
    let instances = api.service.list(&Filter::default()).await?.items;
    let mut text = String::new();
    let mut metric = |name: &str, kind: &str, help: &str, samples: &[(String, f64)]| {
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, value) in samples {
            let _ = writeln!(text, "{name}{labels} {value}");
        }
    };
    let one = |value: f64| vec![(String::new(), value)];
    metric(
        "favo_host_memory_bytes",
        "gauge",
        "Memory of the host.",
        &one(host.memory as f64),
    );
    metric(
        "favo_host_memory_available_bytes",
        "gauge",
        "Memory that can be had without swapping.",
        &one(host.memory_available as f64),
    );
    metric(
        "favo_host_disk_available_bytes",
        "gauge",
        "Free bytes where the state is.",
        &one(host.disk_available as f64),
    );
    metric(
        "favo_host_load1",
        "gauge",
        "Load average of a minute.",
        &one(host.load),
    );
    metric(
        "favo_daemon_resident_bytes",
        "gauge",
        "Resident memory of the daemon.",
        &one(host.daemon_resident as f64),
    );
    let label = |name: &str| format!("{{instance=\"{name}\"}}");
    let per_instance = |value: &dyn Fn(&favo_api::instance::Instance) -> Option<f64>| {
        let samples = instances
            .iter()
            .filter_map(|i| Some((label(&i.name), value(i)?)));
        samples.collect::<Vec<_>>()
    };
    let states = instances.iter().map(|instance| {
        let state = instance.status.state.name();
        (
            format!("{{instance=\"{}\",state=\"{state}\"}}", instance.name),
            1.0,
        )
    });
    let states: Vec<_> = states.collect();
    metric(
        "favo_instance_state",
        "gauge",
        "1 for the state an instance is in.",
        &states,
    );
    metric(
        "favo_instance_resident_bytes",
        "gauge",
        "Resident memory of an instance's process.",
        &per_instance(&|instance| instance.status.resident.map(|bytes| bytes as f64)),
    );
    metric(
        "favo_instance_cpu_seconds_total",
        "counter",
        "Processor time of an instance's process since it started.",
        &per_instance(&|instance| instance.status.cpu_ms.map(|ms| ms as f64 / 1000.0)),
    );
    let content_type = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
    Ok((content_type, text).into_response())
}
