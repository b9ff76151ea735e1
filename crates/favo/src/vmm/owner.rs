//! What a snapshot keeps for favo, beside the machine: how it was connected.

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
    /// As JSON.
    pub fn value(&self) -> Result<serde_json::Value, serde_json::Error> {
        serde_json::to_value(self)
    }
}
