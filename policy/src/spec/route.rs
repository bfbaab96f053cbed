//! `routes`: other treatment for some requests.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    BreakerSpec, HedgeSpec, LoadBalancerSpec, RateLimitSpec, RetrySpec, SessionPersistenceSpec, TimeoutSpec,
};

/// One kind of requests, and the sections that differ for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RouteSpec {
    /// The route's name, as the metrics show it: letters, digits, `-`, `_`; not `default`. At most 63.
    pub name: String,
    /// Which requests: all conditions must hold.
    #[serde(rename = "match")]
    pub matches: RouteMatchSpec,
    /// How a worker is chosen for these requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_balancer: Option<LoadBalancerSpec>,
    /// Sticky sessions for these requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_persistence: Option<SessionPersistenceSpec>,
    /// The breaker of this route, in place of `circuitBreaker.route`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub circuit_breaker: Option<BreakerSpec>,
    /// Limits for these requests, in place of the policy's, and counted for them alone. Absent: the policy's, which count the
    /// requests of all routes that have none of their own together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<RateLimitSpec>,
    /// What is tried again. Absent: as the policy says, whose `budget.minRetryRate` is then for all such routes together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<RetrySpec>,
    /// A second request to another worker when the first answers late. Absent: as the policy says, whose
    /// `budget.minRetryRate` is then for all such routes together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hedge: Option<HedgeSpec>,
    /// How long each part may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<TimeoutSpec>,
}

/// Which requests a route takes. At least one condition.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RouteMatchSpec {
    /// The path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathMatchSpec>,
    /// The method, in capitals.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// Headers that must have these values. At most 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<HeaderMatchSpec>,
}

/// A condition on the path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PathMatchSpec {
    /// Default `PathPrefix`.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<PathMatchType>,
    /// The path or the prefix; starts with `/`. A prefix matches whole segments: `/a` matches `/a` and
    /// `/a/b`, not `/ab`.
    pub value: String,
}

/// How a path is compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PathMatchType {
    /// Whole segments from the start.
    #[default]
    PathPrefix,
    /// The whole path.
    Exact,
}

/// A condition on a header.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HeaderMatchSpec {
    /// The header's name, in any case.
    pub name: String,
    /// Its exact value.
    pub value: String,
}
