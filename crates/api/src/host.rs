//! The host: what it has, and what of it is used.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The host of this daemon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Host {
    /// What it is called.
    pub name: String,
    /// The daemon's version.
    pub favo: String,
    /// Processors.
    pub cpus: u32,
    /// Memory in bytes.
    pub memory: u64,
    /// Of it, what could be had without swapping.
    pub memory_available: u64,
    /// Bytes of the file system that holds the state.
    pub disk: u64,
    /// Of them, free.
    pub disk_available: u64,
    /// Load average of a minute.
    pub load: f64,
    /// Instances that run.
    pub running: u32,
    /// Processors given to them.
    pub cpus_given: u32,
    /// Memory given to them.
    pub memory_given: u64,
    /// Resident memory of the daemon itself.
    pub daemon_resident: u64,
}
