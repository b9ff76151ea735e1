//! Images: what instances are made from.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// An image on this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Image {
    /// Its name, with its tag.
    pub name: String,
    /// Bytes of its disk, as the guest sees it.
    pub disk_size: u64,
    /// When it was made, in seconds since 1970.
    pub created: i64,
}
