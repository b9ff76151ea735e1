//! How a machine ends.

use std::fmt;

use favo_accel::VcpuId;

/// How a machine came to its end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The guest powered off.
    PoweredOff,
    /// The guest reset the machine.
    Reset,
    /// The guest's kernel panicked and said so (pvpanic).
    Panicked,
    /// A processor shut down: a triple fault.
    TripleFault(VcpuId),
    /// Somebody outside the guest stopped it.
    Stopped,
    /// The engine or a device failed; the text says how.
    Failed(String),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PoweredOff => f.write_str("the guest powered off"),
            Self::Reset => f.write_str("the guest reset the machine"),
            Self::Panicked => f.write_str("the guest's kernel panicked"),
            Self::TripleFault(id) => write!(f, "processor {id} shut down by a triple fault"),
            Self::Stopped => f.write_str("the machine was stopped"),
            Self::Failed(reason) => f.write_str(reason),
        }
    }
}
