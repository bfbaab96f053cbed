//! `circuitBreaker`: when to stop sending requests to what fails.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::GrpcCode;
use crate::units::DurationText;

/// When to stop sending requests to what fails: at three levels, each with the same fields.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CircuitBreakerSpec {
    /// One breaker per worker: a worker whose breaker is open gets no requests, the others do. When all
    /// workers fail alike and there is a breaker for the service, it opens and theirs stay closed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<BreakerSpec>,
    /// One breaker per route: while it is open the route's requests are answered 503 at once. A route may
    /// have settings of its own, `routes[].circuitBreaker`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<BreakerSpec>,
    /// One breaker in front of all workers: while it is open every request is answered 503 at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<BreakerSpec>,
    /// Of the workers, how many breakers may be open at once, in percent, rounded down; one always may. Forced
    /// ones count and are never held back: 1 to 100. Default 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_open_percent: Option<u32>,
    /// When less than this percentage of the workers that are healthy and not draining is let through by their
    /// breakers, the breakers are passed over and all of those get requests: 0 to 100, 0 for never. A worker that
    /// is forced open gets none even then. Default 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub panic_threshold: Option<u32>,
}

/// A circuit breaker. *Closed*: requests flow. *Open*: none do. *Half-open*: a few do, and their outcome
/// decides. What a client did wrong, and what the proxy refused by itself, never counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BreakerSpec {
    /// Whether what the breaker finds is enforced. Default `Enforced`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<BreakerMode>,
    /// What the window is measured in. Default `TimeBased`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sliding_window_type: Option<SlidingWindowType>,
    /// The window over which rates are taken. `TimeBased`: a duration, 1s to 10m, default `10s`. `CountBased`: a
    /// number of calls, 1 to 10000, default 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sliding_window_size: Option<WindowSize>,
    /// Calls the window must hold before rates count: 1 to 1000000. Default 20.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minimum_number_of_calls: Option<u32>,
    /// Opens when at least this percentage of the calls in the window failed: 1 to 100, 0 for never. Default 50.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure_rate_threshold: Option<u32>,
    /// Opens when at least this percentage of the calls in the window was slow: 1 to 100, 0 for never. Default 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slow_call_rate_threshold: Option<u32>,
    /// A call is slow when the head of its answer took longer than this, the time a client took for its own body
    /// left out: 1ms to 1h. Default `10s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slow_call_duration_threshold: Option<DurationText>,
    /// Opens after this many failures in a row: 1 to 10000, 0 for never. Default 5 for workers, 0 for routes and
    /// the service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consecutive_failures: Option<u32>,
    /// Opens after this many failures in a row in which the connection failed: refused, reset, or nothing came
    /// in time: 1 to 10000, 0 for never. They count among `consecutiveFailures` too. Default 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consecutive_local_origin_failures: Option<u32>,
    /// The HTTP statuses that are failures, each a status or a range such as `500-599`. At most 32. Default:
    /// 500 to 599 but 501 and 505, which a client can bring about at will.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure_statuses: Option<Vec<String>>,
    /// The gRPC statuses that are failures. At most 16. Default: `UNKNOWN`, `INTERNAL`, `UNAVAILABLE` and
    /// `DATA_LOSS`; `DEADLINE_EXCEEDED` is not among them, for a client sets its own deadline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure_grpc_statuses: Option<Vec<GrpcCode>>,
    /// How long the breaker stays open before it tries again: 100ms to 1h. Default `5s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait_duration_in_open_state: Option<DurationText>,
    /// By what the wait grows each time the breaker opens again before it has stayed closed for as long as it
    /// was last open: 1 to 10, 1 for no growth. Default 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait_duration_multiplier: Option<u32>,
    /// Up to how many percent are added to the wait at random, so that many proxies do not probe at the same
    /// time: 0 to 100. Default 10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait_duration_jitter: Option<u32>,
    /// What the wait grows to at most, jitter left out: not less than the wait, up to 24h. Default `1m`, or the
    /// wait where that is longer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_wait_duration_in_open_state: Option<DurationText>,
    /// Calls let through in half-open; all must succeed to close: 1 to 1000. Default 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub permitted_number_of_calls_in_half_open_state: Option<u32>,
    /// How long half-open waits for calls that were let through; then it opens again: 1s to 1h, `0s` for ever.
    /// Default `30s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_wait_duration_in_half_open_state: Option<DurationText>,
    /// How long after closing the share of requests grows, from a tenth to all: up to 1h, `0s` for all at once.
    /// Default `10s` for workers, `0s` for routes and the service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovery_ramp: Option<DurationText>,
    /// Learns what is normal, and opens on what deviates from it, beside the fixed thresholds. Absent: off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adaptive: Option<AdaptiveSpec>,
}

/// Thresholds that follow what is normal: they lie so many standard deviations above it, and never outside of
/// floor and ceiling. Until something was learned they are the ceilings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AdaptiveSpec {
    /// How far back "normal" reaches: 1m to 24h. Default `10m`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learning_window: Option<DurationText>,
    /// How many standard deviations above normal the thresholds lie: 1 to 20. Default 4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deviations: Option<u32>,
    /// The failure rate, in percent, below which it never opens: 1 to 100. Default 5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure_rate_floor: Option<u32>,
    /// The failure rate, in percent, from which it always opens: the floor to 100. Default 50.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure_rate_ceiling: Option<u32>,
    /// The mean latency below which it never opens: 1ms to 1h. Default `100ms`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency_floor: Option<DurationText>,
    /// The mean latency from which it always opens: the floor to 1h. Default `10s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency_ceiling: Option<DurationText>,
}

/// Whether what a breaker finds is enforced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum BreakerMode {
    /// It is.
    #[default]
    Enforced,
    /// The breaker opens and closes in metrics, logs and API, and lets every request through.
    MetricsOnly,
    /// Open, whatever happens.
    ForcedOpen,
    /// Closed, whatever happens; calls are still counted.
    ForcedClosed,
}

/// What a sliding window is measured in (resilience4j's TIME_BASED and COUNT_BASED).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SlidingWindowType {
    /// The calls of the last while.
    #[default]
    TimeBased,
    /// The last so many calls.
    CountBased,
}

/// A number of calls, or a duration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum WindowSize {
    /// So many calls.
    Calls(u32),
    /// So long.
    Time(DurationText),
}

impl JsonSchema for WindowSize {
    fn schema_name() -> Cow<'static, str> {
        "WindowSize".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "x-kubernetes-int-or-string": true })
    }
}
