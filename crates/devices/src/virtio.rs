//! Virtio 1.2 devices, modern interface only.
//!
//! What a guest sees as a disk, a console, an entropy source, a balloon or a
//! socket family. The vmm builds a device from its Spec, wraps it in
//! [`pci::VirtioPci`] and puts that on the PCI bus; nothing else of favo calls
//! in here.
//!
//! * [`device`]: the contract every device keeps. Queues start and stop one by
//!   one, and stopping hands back the queue's state: reset, pause, snapshot
//!   and migration are all made of that.
//! * [`queue`]: a virtqueue from the device's side. Everything read from the
//!   guest is checked here, once.
//! * [`worker`]: the thread that serves queues; [`event`], [`scatter`]: what it
//!   waits for, and how it moves bytes without a copy.
//! * [`common`], [`interrupt`] and [`pci`]: the transport.
//! * [`blk`], [`net`], [`console`], [`rng`], [`balloon`], [`vsock`]: the
//!   devices.
//!
//! A guest is hostile: no ring, descriptor, register or packet may make a
//! device panic, loop without end, buffer without bound, or touch memory that
//! is not the guest's RAM.

pub mod balloon;
pub mod blk;
pub mod common;
pub mod console;
pub mod device;
pub mod event;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod interrupt;
pub mod net;
pub mod pci;
pub mod queue;
pub mod rng;
pub mod scatter;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod vsock;
pub mod worker;

pub use device::{
    DeviceError, DeviceState, DeviceType, QueueResources, VirtioDevice, VirtioInterrupt,
};
pub use queue::QueueState;
