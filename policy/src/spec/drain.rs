//! `drain`: how a proxy and a worker stop.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::units::DurationText;

/// How a proxy stops, and a worker that is drained.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DrainSpec {
    /// How long new connections are still served after the proxy was told to stop and reports that it is
    /// not ready: 0s to 5m. Default `5s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay: Option<DurationText>,
    /// How long requests in flight may then take to finish: 0s to 1h. Default `20s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<DurationText>,
    /// How long a worker that is drained still serves its sessions and what runs; tunnels are then told to close, and
    /// a second later what still runs is cut: 0s to 24h. Default `5m`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker_timeout: Option<DurationText>,
}
