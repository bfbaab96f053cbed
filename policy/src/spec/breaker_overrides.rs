//! `breakerOverrides`: breakers that people hold open or closed on the whole fleet, for a time.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A breaker that is held open or closed on every proxy of the policy, until a given time. It works with and
/// without settings in `circuitBreaker`, and is over by itself on every proxy, whether the operator is there or not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BreakerOverrideSpec {
    /// Which breaker: `worker/NAME`, `route/NAME` (`route/default` for what no route matches), or `service`.
    pub breaker: String,
    /// What it is held in.
    pub state: OverrideState,
    /// Until when, as RFC 3339 has it: `2030-01-31T18:00:00Z`. Afterwards the breaker decides again.
    pub until: String,
    /// Why, for those who meet it: 1 to 256 characters.
    pub reason: String,
}

/// What a breaker is held in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OverrideState {
    /// No request passes.
    Open,
    /// Every request passes.
    Closed,
}
