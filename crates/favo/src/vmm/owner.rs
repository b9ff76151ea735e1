//! What a snapshot keeps for favo, beside the machine: how it was connected.

use favo_vmm::control::ControlError;
use serde::{Deserialize, Serialize};

use crate::run::network::NetworkArgs;

/// Goes into the manifest as `owner`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Owner {
    /// What the guest is called on its network.
    pub name: String,
    /// Its network.
    pub network: NetworkArgs,
}

impl Owner {
    /// What a clone has of it. On a network of its own it keeps the original's
    /// address: nobody else is there. Published ports stay with the original.
    pub fn for_clone(mut self) -> Result<Self, ControlError> {
        if self.network.is_shared() {
            return Err(ControlError::new(
                "not-cloneable",
                format!(
                    "{} is on a network with others, where a clone would have its address",
                    self.name
                ),
                "clone machines that are on the network 'user' or on none",
            ));
        }
        self.network.publish_nothing();
        Ok(self)
    }

    /// As JSON.
    pub fn value(&self) -> Result<serde_json::Value, serde_json::Error> {
        serde_json::to_value(self)
    }
}
