//! One machine: memory, buses, boot, lifecycle.
pub mod kernel;
