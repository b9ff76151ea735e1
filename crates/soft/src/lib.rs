//! An x86-64 processor in software.
//!
//! Where there is no hardware virtualization, this engine runs the guest. It
//! is a complete interpreter over a cache of decoded instructions; a
//! translator will stand on the same decoder, MMU and state.
//!
//! How an instruction gets executed:
//!
//! 1. [`vcpu`] runs blocks until something needs attention: an interrupt, a
//!    timer, a kick, an exit.
//! 2. [`decode`] turns guest bytes, once, into a block of operations: a
//!    function pointer and its operands. Blocks are found by physical address
//!    and mode, and stay valid while their page's version is unchanged.
//! 3. [`exec`] holds the operations. One that can fault commits nothing before
//!    its last possible fault, so that it can simply be run again.
//! 4. [`mmu`] turns linear addresses into host addresses.
//! 5. [`native`] executes x87, SSE and AVX on the host's own units.
//!
//! Memory that is not RAM ends an operation with an exit. The answer goes into
//! a log, and the operation runs again from its start with the log at hand
//! ([`mmio`]); so no operation needs to be cut in two.

mod alarm;
mod apic;
mod breakpoint;
mod buslock;
mod cache;
mod clock;
pub mod counters;
pub mod cpu;
mod cpuid;
mod decode;
#[cfg(any(test, feature = "difftest"))]
pub mod difftest;
mod exec;
pub mod flags;
pub mod interrupt;
mod low;
mod mailbox;
mod mmio;
pub mod mmu;
mod msr;
pub mod native;
mod operation;
mod partition;
pub mod scalar;
pub mod segment;
mod stack;
mod state;
pub mod system;
#[cfg(any(test, feature = "difftest"))]
pub mod testing;
mod translate;
pub mod trap;
mod vcpu;

use std::sync::Arc;

use favo_accel::cpuid::CpuidTable;
use favo_accel::{AccelError, Accelerator, EngineKind, Partition, PartitionConfig};

/// The software engine on this host.
pub struct SoftAccelerator {
    cpuid: CpuidTable,
}

impl SoftAccelerator {
    /// The most processors of one machine: each is a thread.
    const MAX_VCPUS: u32 = 64;

    /// Prepares the engine: there is always one, unless the host forbids
    /// executable memory.
    pub fn new() -> Result<Self, AccelError> {
        native::initialize().map_err(|error| AccelError::Unavailable {
            engine: EngineKind::Soft,
            reason: error.to_string(),
        })?;
        Ok(Self {
            cpuid: cpuid::supported(),
        })
    }
}

impl Accelerator for SoftAccelerator {
    fn kind(&self) -> EngineKind {
        EngineKind::Soft
    }

    fn max_vcpus(&self) -> u32 {
        Self::MAX_VCPUS
    }

    fn supported_cpuid(&self) -> &CpuidTable {
        &self.cpuid
    }

    fn create_partition(&self, config: PartitionConfig) -> Result<Arc<dyn Partition>, AccelError> {
        if config.vcpus == 0 || config.vcpus > Self::MAX_VCPUS {
            return Err(AccelError::Unsupported(format!(
                "a machine on the soft engine has 1 to {} processors, not {}",
                Self::MAX_VCPUS,
                config.vcpus
            )));
        }
        let partition = partition::SoftPartition::new(config).map_err(low_memory)?;
        Ok(Arc::new(partition))
    }
}

/// Translated code and what it uses could not be put into low memory.
pub(crate) fn low_memory(error: std::io::Error) -> AccelError {
    AccelError::Unsupported(format!(
        "can't get memory below 2 GiB for the software CPU: {error}; allow favo more address \
         space (ulimit -v) or executable memory"
    ))
}
