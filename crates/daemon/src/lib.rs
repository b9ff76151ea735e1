//! The control plane of one host.
//!
//! What should be (desired state) is in the store; what is (observed state) is
//! on the host. For each noun, a file in [`app`] compares the two and names the
//! next step. That is pure: no clock, no disk, no process, so every course of
//! events can be tested. Who carries the steps out does so idempotently and
//! looks again.
//!
//! ```text
//!   http      requests and answers
//!   service   what a caller may do with instances        ──▶ records: the store
//!   reconciler  a worker per instance: look, plan, step   ◀── app: the plan, pure
//!   runner    the steps on this host: processes and files ──▶ place: an instance's directory
//! ```
//!
//! Machines are processes of their own (`favo vmm boot`), which outlive the
//! daemon: it may be killed at any moment, and the next one finds everything
//! in the store and the instances' directories.
#![forbid(unsafe_code)]

pub mod app;
pub mod daemon;
pub mod host_runner;
pub mod http;
pub mod place;
pub mod reconciler;
pub mod records;
mod resource;
pub mod runner;
pub mod service;
mod usage;
