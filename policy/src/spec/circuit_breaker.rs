//! `circuitBreaker`: when to stop sending requests to what fails.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::units::DurationText;

/// When to stop sending requests to what fails.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CircuitBreakerSpec {
    /// One breaker per worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<BreakerSpec>,
}

/// A circuit breaker. *Closed*: requests flow. *Open*: the worker gets none. *Half-open*: it gets a few,
/// and their outcome decides. Failures are answers of 500 and above, resets, and timeouts; what a client
/// did wrong never counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BreakerSpec {
    /// Opens after this many failures in a row: 1 to 10000, 0 for never. Default 5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consecutive_failures: Option<u32>,
    /// Opens when at least this percentage of the calls in the window failed: 1 to 100, 0 for never. Default 50.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure_rate_threshold: Option<u32>,
    /// The window over which the failure rate is taken: 1s to 10m. Default `10s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sliding_window: Option<DurationText>,
    /// Calls the window must hold before the failure rate counts: 1 to 1000000. Default 20.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minimum_number_of_calls: Option<u32>,
    /// How long the breaker stays open before it tries again: 100ms to 1h. Default `5s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait_duration_in_open_state: Option<DurationText>,
    /// Calls let through in half-open; all must succeed to close: 1 to 1000. Default 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub permitted_number_of_calls_in_half_open_state: Option<u32>,
}
