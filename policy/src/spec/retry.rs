//! `retry`: what is tried again.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What is tried again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RetrySpec {
    /// How often a request of which nothing reached a worker is tried again, on another worker where
    /// there is one: 0 to 10. Default 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_retries: Option<u32>,
}
