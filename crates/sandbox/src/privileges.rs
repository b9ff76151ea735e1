//! What the process may not have: core dumps, readers of its memory, and
//! capabilities.

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType};
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit,
};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};

use crate::SandboxError;

/// Limits of the process. A core dump would have the guest's memory in it, and
/// so would whoever attaches a debugger. Descriptors: as many as there may be
/// now, and no more ever.
pub(crate) fn limit_process() -> Result<(), SandboxError> {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, none)
        .map_err(|error| SandboxError::new("forbidding core dumps", error))?;
    let descriptors = getrlimit(Resource::Nofile).current;
    let fixed = Rlimit {
        current: descriptors,
        maximum: descriptors,
    };
    setrlimit(Resource::Nofile, fixed)
        .map_err(|error| SandboxError::new("fixing the number of descriptors", error))?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|error| SandboxError::new("hiding memory from debuggers", error))
}

/// Whether the host gives this user sockets for echo requests, which need no
/// capability (`net.ipv4.ping_group_range`).
pub(crate) fn has_ping_sockets() -> bool {
    let protocol = Some(rustix::net::ipproto::ICMP);
    rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, protocol).is_ok()
}

/// Gives up every capability of the calling thread, for good.
pub(crate) fn drop_capabilities() -> Result<(), SandboxError> {
    limit_capabilities(CapabilitySet::empty())
}

/// The same, but for the one that raw sockets need, if the caller has it. What
/// kinds there may be of them is up to the filter.
pub(crate) fn keep_raw_sockets() -> Result<(), SandboxError> {
    let own = rustix::thread::capabilities(None)
        .map_err(|error| SandboxError::new("reading capabilities", error))?;
    limit_capabilities(own.permitted & CapabilitySet::NET_RAW)
}

fn limit_capabilities(kept: CapabilitySet) -> Result<(), SandboxError> {
    let failed = |error| SandboxError::new("giving up capabilities", error);
    match rustix::thread::clear_ambient_capability_set() {
        // Linux before 4.3 has none.
        Ok(()) | Err(Errno::INVAL) => {}
        Err(error) => return Err(failed(error)),
    }
    for number in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // The caller has none to give up, and with no new privileges none
            // comes back.
            Err(Errno::PERM) => break,
            // Behind the last.
            Err(Errno::INVAL) => break,
            Err(error) => return Err(failed(error)),
        }
    }
    set_capabilities(
        None,
        CapabilitySets {
            effective: kept,
            permitted: kept,
            inheritable: CapabilitySet::empty(),
        },
    )
    .map_err(failed)
}
