//! One machine: memory, buses, boot, lifecycle.
//!
//! * [`engine`]: which CPU engine runs it, and why that one.
//! * [`cpu`]: what each of its processors says of itself.
//! * [`kernel`], [`linux_boot`]: a Linux kernel, read and placed.
//! * [`machine`]: all of it put together, started, watched and stopped.
//! * [`control`]: the socket by which a VM process is steered.
//! * [`snapshot`]: a machine in a directory; [`clone`](mod@clone): one as another.
//! * [`processors`], [`serial_io`], [`outcome`]: its threads and its end.
//!
//! Called by the command line; knows nothing of images, agents or terminals.

pub mod clone;
pub mod control;
pub mod cpu;
pub mod engine;
pub mod kernel;
pub mod linux_boot;
pub mod machine;
pub mod outcome;
pub mod processors;
pub mod serial_io;
pub mod snapshot;
