//! The agent favo runs in its guests, and the protocol the host speaks with it.
//!
//! Three parties use this crate:
//! - the guest: the binary `favo-agent` is `/init` of the initramfs; it mounts the root disk
//!   ([`boot`]) and then either becomes the distribution's init or serves one host
//!   connection ([`server`]);
//! - the host: the VM process and the command line drive it through [`client`];
//! - both: [`protocol`] is the messages, [`frame`] how they travel over a byte stream.
//!
//! Neither side trusts the other: every length is bounded before anything is allocated, a
//! message that does not decode ends the connection, and each side's buffers are bounded
//! whatever the other one sends.

pub mod boot;
pub mod client;
pub mod frame;
pub mod protocol;
pub mod server;
mod sys;

pub use client::{AgentClient, ClientError};
pub use protocol::{Event, Exec, Exit, Request, WindowSize};
