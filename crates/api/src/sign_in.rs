//! Signing in to the page.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A link that signs in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SignInLink {
    /// It works once, for ten minutes.
    pub url: String,
}

/// What the page makes of such a link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SignIn {
    /// The code in the link.
    pub code: String,
}
