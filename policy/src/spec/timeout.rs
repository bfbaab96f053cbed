//! `timeout`: how long each part of a request may take.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::units::DurationText;

/// How long each part of a request may take.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TimeoutSpec {
    /// Until a worker accepts a connection: 1ms to 1m. Default `1s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect: Option<DurationText>,
    /// Until the head of the worker's answer, counted from when a worker has all of the request; without a body, from
    /// the end of its head: 1ms to 24h, `0s` for no limit. While the body is on its way `idle` counts. Default `60s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<DurationText>,
    /// The request header with which a client says how long it waits for the answer's head: a number of
    /// milliseconds (`250`) or a duration (`1s500ms`). It shortens `request` and never lengthens it, and the worker
    /// receives what is left; while the body is on its way it receives what the client said. `grpc-timeout` is
    /// understood without being named here. Absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_header: Option<String>,
    /// How long the body of a request and its answer may both stand still, and both ways of a tunnel: 1s to 24h.
    /// Default `5m`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle: Option<DurationText>,
}
