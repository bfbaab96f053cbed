//! The policy a proxy enforces: total, units parsed, no `None` that means "default".

mod canary;
mod circuit_breaker;
mod health_check;
mod load_balancer;
mod rate_limit;
mod retry;
mod route;
mod session_persistence;
mod spillover;

use std::time::Duration;

pub use crate::spec::{CookieLifetime, CookieSecure, LoadBalancerType, SameSite, WorkerProtocol};
pub use canary::{Canary, CanaryAnalysis, CanaryStep, CanaryStickiness, run};
pub use circuit_breaker::{
    Adaptive, Breaker, BreakerMode, BreakerName, BreakerOverride, FailureStatuses, OverrideState, Wait,
    Window,
};
pub use health_check::{HealthCheck, HttpProbe, Probe};
pub use load_balancer::{
    BackendUtilization, ConsistentHash, CostAware, HashAlgorithm, HashKey, LeastRequest, LoadBalancer,
    PeakEwma, Predictive, SlowStart, Strategy,
};
pub use rate_limit::{Limit, LimitKey};
pub use retry::{Hedge, HedgeAfter, Retry, RetryBudget};
pub use route::{MAX_ROUTES, Own, PathMatch, Route, RouteMatch};
pub use session_persistence::Session;
pub use spillover::Spillover;

/// The name of the route that takes what no other route matches.
pub const DEFAULT_ROUTE: &str = "default";

/// How a proxy treats the requests to its workers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Rules for workers that the policy names; every other worker has `WorkerRule::default_for`.
    pub workers: Vec<WorkerRule>,
    /// How a new version takes over, if one does.
    pub canary: Option<Canary>,
    /// The breaker of each worker, if there is one.
    pub worker_breaker: Option<Breaker>,
    /// The breaker in front of all workers, if there is one.
    pub service_breaker: Option<Breaker>,
    /// How many of the workers' breakers may be open, in percent.
    pub max_open_percent: u32,
    /// Below what share of usable workers the breakers are passed over, in percent; 0: never.
    pub panic_threshold: u32,
    /// Breakers that are held open or closed for a time; one of each name at most.
    pub breaker_overrides: Vec<BreakerOverride>,
    /// The active health check, if there is one.
    pub health_check: Option<HealthCheck>,
    /// The proxy is ready while so many of its workers are usable, in percent, and at least one.
    pub ready_threshold_percent: u32,
    /// How the proxy stops.
    pub drain: Drain,
    /// In order of matching. The last is `default` and matches everything.
    pub routes: Vec<Route>,
}

/// What the policy says of one worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerRule {
    /// The worker's name.
    pub name: String,
    /// Its relative share, 0 to 100.
    pub weight: u32,
    /// What a request to it costs, relative to the others.
    pub cost: u32,
    /// Whether it is taken out of service.
    pub drain: bool,
    /// The version it runs, if it is named.
    pub version: Option<String>,
    /// The protocol it speaks.
    pub protocol: WorkerProtocol,
}

/// How long each part of a request may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timeout {
    /// Until a worker accepts a connection.
    pub connect: Duration,
    /// From when a worker has all of the request until the head of the answer; `None`: no limit.
    pub request: Option<Duration>,
    /// The header with which a client shortens `request`, in lower case.
    pub request_header: Option<String>,
    /// How long a request's body and its answer may both stand still, and both ways of a tunnel.
    pub idle: Duration,
}

/// How a proxy stops.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drain {
    /// How long new connections are still served after the proxy stopped being ready.
    pub delay: Duration,
    /// How long requests in flight may then take.
    pub timeout: Duration,
    /// How long a worker that is drained still serves its sessions and what runs.
    pub worker_timeout: Duration,
}

impl Policy {
    /// The override of a breaker, if there is one.
    pub fn breaker_override(&self, breaker: &BreakerName) -> Option<&BreakerOverride> {
        self.breaker_overrides.iter().find(|one| one.breaker == *breaker)
    }

    /// What the policy says of the worker of this name.
    pub fn worker(&self, name: &str) -> WorkerRule {
        self.workers
            .iter()
            .find(|rule| rule.name == name)
            .cloned()
            .unwrap_or_else(|| WorkerRule::default_for(name))
    }
}

impl WorkerRule {
    /// The rule of a worker that no policy names.
    pub fn default_for(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            weight: 1,
            cost: 1,
            drain: false,
            version: None,
            protocol: WorkerProtocol::Auto,
        }
    }
}
