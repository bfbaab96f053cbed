//! `healthCheck`: how workers are checked.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::units::DurationText;

/// How workers are checked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HealthCheckSpec {
    /// The proxy reports ready while at least this percentage of its workers is usable, and always at least one: 0 to
    /// 100. Default 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_threshold_percent: Option<u32>,
    /// Requests that the proxy sends on its own. Absent: none; a worker is then healthy until its breaker opens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active: Option<ActiveHealthCheckSpec>,
}

/// How each worker is checked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ActiveHealthCheckSpec {
    /// What is asked. Default `HTTP`.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<HealthCheckType>,
    /// The method of type `HTTP`: GET, HEAD, OPTIONS or POST. Default `GET`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// The `Host` of type `HTTP`. Default: the worker's address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// The service of type `GRPC`: at most 127 letters, digits, `.`, `_`, `-` and `/`. Default: the worker as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// The path of type `HTTP`. Default `/healthz`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Time between two checks of a worker: 100ms to 10m. Default `3s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<DurationText>,
    /// Up to how much longer or shorter than `interval` each wait is at random, in percent of it: 0 to 50. Default 10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval_jitter_percent: Option<u32>,
    /// Up to how long the first check waits at random: 0s to 10m. Default: `interval` for a worker that gets requests
    /// already, and 0s for one that gets none before it has passed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initial_jitter: Option<DurationText>,
    /// How long an answer may take: 10ms to 1m. Default `1s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<DurationText>,
    /// Failed checks in a row until a worker gets no more requests: 1 to 100. Default 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unhealthy_threshold: Option<u32>,
    /// Passed checks in a row until it gets them again: 1 to 100. Default 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub healthy_threshold: Option<u32>,
    /// Statuses that pass with type `HTTP`, each 100 to 599. Default: 200 to 299. At most 16.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_statuses: Option<Vec<u16>>,
}

/// What a check asks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum HealthCheckType {
    /// An HTTP request, in the worker's protocol.
    #[default]
    #[serde(rename = "HTTP")]
    Http,
    /// The gRPC health protocol (`grpc.health.v1.Health/Check`), over HTTP/2 without TLS.
    #[serde(rename = "GRPC")]
    Grpc,
    /// Whether the worker accepts a connection.
    #[serde(rename = "TCP")]
    Tcp,
}
