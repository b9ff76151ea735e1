//! The control plane of one host.
//!
//! What should be (desired state) is in the store; what is (observed state) is
//! on the host. For each noun, a file in [`app`] compares the two and names the
//! next step. That is pure: no clock, no disk, no process, so every course of
//! events can be tested. Who carries the steps out does so idempotently and
//! looks again.
//!
//! Only the planning of instances is here so far; no program uses it yet.
#![forbid(unsafe_code)]

pub mod app;
pub mod place;
