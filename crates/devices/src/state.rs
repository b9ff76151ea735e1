//! Why a device's saved state can't be restored.
//!
//! Every device's state type carries a `version` beside its fields. A field is
//! only ever added, with a serde default that means "as it was before the
//! field existed"; the version counts what can't be said so.

/// Why a device refuses a saved state. The device is unchanged.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StateError {
    /// A newer favo wrote it.
    #[error(
        "the saved state of {device} has version {found}, this favo reads up to {supported}; \
         restore it with the favo that saved it or a newer one"
    )]
    UnsupportedVersion {
        /// Which device.
        device: &'static str,
        /// The version in the state.
        found: u32,
        /// The newest version known here.
        supported: u32,
    },
    /// No device can be in this state, or not this one as it is configured.
    #[error("the saved state of {device} can't be restored: {reason}")]
    Invalid {
        /// Which device.
        device: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

impl StateError {
    /// An [`StateError::Invalid`].
    pub fn invalid(device: &'static str, reason: impl Into<String>) -> Self {
        Self::Invalid {
            device,
            reason: reason.into(),
        }
    }
}

/// Refuses a version this favo doesn't know: 0 or above `supported`.
pub fn check_version(device: &'static str, found: u32, supported: u32) -> Result<(), StateError> {
    if (1..=supported).contains(&found) {
        Ok(())
    } else {
        Err(StateError::UnsupportedVersion {
            device,
            found,
            supported,
        })
    }
}
