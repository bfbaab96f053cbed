//! The policy as a user writes it: optional fields, units as text. `compile` turns it into what a
//! proxy enforces. A field is here only when a proxy enforces it.
//!
//! The doc comments become the descriptions that `kubectl explain` shows: they are written for users.

mod breaker_overrides;
mod canary;
mod circuit_breaker;
mod drain;
mod grpc_code;
mod health_check;
mod hedge;
mod load_balancer;
mod rate_limit;
mod retry;
mod route;
mod session_persistence;
mod timeout;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::selector::LabelSelector;

pub use breaker_overrides::{BreakerOverrideSpec, OverrideState};
pub use canary::{CanaryAnalysisSpec, CanarySpec, CanaryStepSpec, CanaryStickiness};
pub use circuit_breaker::{
    AdaptiveSpec, BreakerMode, BreakerSpec, CircuitBreakerSpec, SlidingWindowType, WindowSize,
};
pub use drain::DrainSpec;
pub use grpc_code::GrpcCode;
pub use health_check::{ActiveHealthCheckSpec, HealthCheckSpec, HealthCheckType};
pub use hedge::HedgeSpec;
pub use load_balancer::{
    BackendUtilizationSpec, ConsistentHashAlgorithm, ConsistentHashSpec, ConsistentHashType, CostAwareSpec,
    LeastRequestSpec, LoadBalancerScope, LoadBalancerSpec, LoadBalancerType, PeakEwmaSpec, PredictiveSpec,
    SelectionMethod, SlowStartSpec, SpilloverSpec,
};
pub use rate_limit::{
    ClientSelectorSpec, ClientSelectorType, LimitSpec, LimitUnit, RateLimitRuleSpec, RateLimitSpec,
};
pub use retry::{BackOffSpec, PerRetrySpec, RetryBudgetSpec, RetryOnSpec, RetrySpec, RetryTrigger};
pub use route::{HeaderMatchSpec, PathMatchSpec, PathMatchType, RouteMatchSpec, RouteSpec};
pub use session_persistence::{
    CookieLifetime, CookieSecure, CookieSpec, SameSite, SessionPersistenceSpec, SessionPersistenceType,
};
pub use timeout::TimeoutSpec;

/// How the proxies of the selected pods treat the requests to their workers.
///
/// Several policies may select a pod: each section then comes whole from the first policy, in order
/// of priority, that sets it; defaults fill the rest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spec {
    /// Which policy's section wins where several select a pod: higher first, then the older policy,
    /// then the name. -1000000 to 1000000, default 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<i32>,
    /// The pods this policy applies to. Absent: every pod that has a proxy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Subject>,
    /// Weights and costs of workers, by name. A worker that is not listed has weight 1 and cost 1. At most 256.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workers: Option<Vec<WorkerSpec>>,
    /// How a new version of the workers takes over from the old one. Absent: versions mean nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<CanarySpec>,
    /// How a worker is chosen for a request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_balancer: Option<LoadBalancerSpec>,
    /// Sticky sessions: a client's later requests go to the worker of its first. Absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_persistence: Option<SessionPersistenceSpec>,
    /// When to stop sending requests to what fails. Absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub circuit_breaker: Option<CircuitBreakerSpec>,
    /// Breakers that are held open or closed, for a time. A section of its own, so that a policy made in an
    /// emergency leaves the settings of the breakers as they are. At most 64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub breaker_overrides: Option<Vec<BreakerOverrideSpec>>,
    /// Limits on what one client may send. Absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<RateLimitSpec>,
    /// What is tried again, and how often.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<RetrySpec>,
    /// A second request to another worker when the first answers late. Absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hedge: Option<HedgeSpec>,
    /// How long each part of a request may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<TimeoutSpec>,
    /// How workers are checked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check: Option<HealthCheckSpec>,
    /// How a proxy stops.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<DrainSpec>,
    /// Kinds of requests that are treated differently, most specific first: the first route that
    /// matches wins, and a request that matches none takes the sections above. At most 1,000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub routes: Option<Vec<RouteSpec>>,
}

/// Which pods a policy applies to: those that both selectors select.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Subject {
    /// Namespaces by their labels. Absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace_selector: Option<LabelSelector>,
    /// Pods by their labels. Absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_selector: Option<LabelSelector>,
}

impl Spec {
    /// Whether some request may be sent to siblings.
    pub fn reaches_siblings(&self) -> bool {
        let routes = self.routes.iter().flatten().filter_map(|route| route.load_balancer.as_ref());
        let mut sections = self.load_balancer.iter().chain(routes);
        sections.any(|section| section.scope == Some(LoadBalancerScope::Workload))
    }
}

/// One worker of the pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WorkerSpec {
    /// The worker's name: the name of its container port, or `worker-1`, `worker-2`, … where the
    /// proxy starts the workers itself.
    pub name: String,
    /// Its share of the requests, relative to the others: 0 to 100, default 1. 0 takes no new requests; where
    /// all have 0 the proxy answers 503.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    /// What a request to it costs, relative to the others, for the strategy `CostAware`: 0 to 1000000, default 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<u32>,
    /// Takes the worker out of service: it gets no new requests but those of its sessions, and what runs goes on for
    /// `drain.workerTimeout`. Default false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<bool>,
    /// The version it runs, for `canary`: letters, digits, `-`, `_`. At most 63. Absent: the old one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The protocol it speaks. Default `Auto`: the worker is asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<WorkerProtocol>,
}

/// The protocol between the proxy and a worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum WorkerProtocol {
    /// The worker is asked, on a connection of its own, before its first request and when it was away. Where it speaks
    /// both, HTTP/2 is for gRPC and HTTP/1.1 for the rest.
    #[default]
    Auto,
    /// HTTP/1.1.
    #[serde(rename = "HTTP1")]
    Http1,
    /// HTTP/2 without TLS, by prior knowledge.
    #[serde(rename = "H2C")]
    H2c,
}
