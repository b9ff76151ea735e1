//! The CPU engine on Linux KVM.
//!
//! Where `/dev/kvm` is real, guests run on the host's processor. This crate
//! turns KVM's interface into favo's: a [`KvmAccelerator`] opens the device
//! and says what it can do; partitions and processors follow through the
//! traits of `favo_accel`. Nothing of KVM or of a library leaves the crate.
//!
//! What lives where:
//!
//! * `accelerator`: what this host's KVM offers; `cpuid` cuts its
//!   CPUID down to what the canonical state can carry.
//! * `partition`: memory slots, interrupt routing, clock. The local APICs are
//!   the kernel's (split irqchip), the I/O APIC is favo's own.
//! * `vcpu`: the run loop and the exits; `kick` stops it from outside.
//! * `state`: canonical state to KVM's structures and back.
//!
//! `unsafe` is confined to `slots`, `exits`, `kick`, `state::tsc` and one function each of
//! `event_fd` and `state::fpu`.

#![deny(unsafe_code)]

mod accelerator;
mod cpuid;
mod dirty_log;
mod error;
mod event_fd;
mod exits;
mod kick;
mod partition;
mod routing;
mod slots;
mod state;
mod vcpu;

pub use accelerator::KvmAccelerator;
