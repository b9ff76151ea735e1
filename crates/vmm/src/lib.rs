//! One machine: memory, buses, boot, lifecycle.
pub mod kernel;
pub mod linux_boot;
pub mod processors;
