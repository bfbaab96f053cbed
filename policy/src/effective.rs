//! The policy a proxy enforces: total, units parsed, no `None` that means "default".

use std::time::Duration;

pub use crate::spec::{CookieLifetime, CookieSecure, LoadBalancerType, SameSite, WorkerProtocol};

/// The name of the route that takes what no other route matches.
pub const DEFAULT_ROUTE: &str = "default";

/// How a proxy treats the requests to its workers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Rules for workers that the policy names; every other worker has `WorkerRule::default_for`.
    pub workers: Vec<WorkerRule>,
    /// The breaker of each worker, if there is one.
    pub worker_breaker: Option<Breaker>,
    /// The active health check, if there is one.
    pub health_check: Option<HealthCheck>,
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
    /// The protocol it speaks.
    pub protocol: WorkerProtocol,
}

/// One kind of requests and its treatment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Unique in the policy.
    pub name: String,
    /// Which requests it takes.
    pub matches: RouteMatch,
    /// The strategy that chooses a worker.
    pub load_balancer: LoadBalancerType,
    /// Sticky sessions, if there are any.
    pub session: Option<Session>,
    /// Every limit that a request must pass.
    pub limits: Vec<Limit>,
    /// How often what never reached a worker is tried again.
    pub retries: u32,
    /// How long each part may take.
    pub timeout: Timeout,
}

/// Conditions on a request; all must hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteMatch {
    /// On the path.
    pub path: PathMatch,
    /// The method, if it matters.
    pub method: Option<String>,
    /// Header names in lower case, with the value each must have.
    pub headers: Vec<(String, String)>,
}

/// A condition on the path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathMatch {
    /// Every path.
    Any,
    /// Whole segments from the start; no slash at the end.
    Prefix(String),
    /// The whole path.
    Exact(String),
}

/// Sticky sessions by cookie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// The cookie's name.
    pub cookie: String,
    /// The cookie's path.
    pub path: String,
    /// How long a session lasts from its first request.
    pub absolute_timeout: Duration,
    /// How long the browser keeps the cookie.
    pub lifetime: CookieLifetime,
    /// When the cookie has `Secure`.
    pub secure: CookieSecure,
    /// The cookie's `SameSite`.
    pub same_site: SameSite,
}

/// A worker's circuit breaker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Breaker {
    /// Opens after so many failures in a row; `None`: never.
    pub consecutive_failures: Option<u32>,
    /// Opens when so many of the window's calls failed, in percent; `None`: never.
    pub failure_rate_threshold: Option<u32>,
    /// The window's length.
    pub sliding_window: Duration,
    /// Calls the window must hold before the rate counts.
    pub minimum_number_of_calls: u32,
    /// How long it stays open.
    pub wait_duration_in_open_state: Duration,
    /// Calls let through in half-open; all must succeed.
    pub permitted_calls_in_half_open: u32,
}

/// A token bucket per client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Unique among the route's limits.
    pub name: String,
    /// What tells clients apart.
    pub key: LimitKey,
    /// Tokens that come back per `period`.
    pub requests: u32,
    /// The period of `requests`.
    pub period: Duration,
    /// Tokens the bucket holds.
    pub burst: u32,
}

/// What tells clients apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LimitKey {
    /// The client's address; an IPv6 client is its /64.
    SourceAddress,
    /// The value of this header, in lower case; requests without it are not limited.
    Header(String),
}

/// How long each part of a request may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timeout {
    /// Until a worker accepts a connection.
    pub connect: Duration,
    /// Until the head of the answer; `None`: no limit.
    pub request: Option<Duration>,
    /// How long a body or a tunnel may stand still.
    pub idle: Duration,
}

/// An HTTP request that each worker must answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// The path.
    pub path: String,
    /// Time between two checks.
    pub interval: Duration,
    /// How long an answer may take.
    pub timeout: Duration,
    /// Failed checks in a row until a worker is unhealthy.
    pub unhealthy_threshold: u32,
    /// Passed checks in a row until it is healthy again.
    pub healthy_threshold: u32,
    /// Statuses that pass; empty: 200 to 299.
    pub expected_statuses: Vec<u16>,
}

/// How a proxy stops.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drain {
    /// How long new connections are still served after the proxy stopped being ready.
    pub delay: Duration,
    /// How long requests in flight may then take.
    pub timeout: Duration,
}

impl Policy {
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
        Self { name: name.to_owned(), weight: 1, protocol: WorkerProtocol::Auto }
    }
}

impl HealthCheck {
    /// Whether an answer of this status passes.
    pub fn passes(&self, status: u16) -> bool {
        if self.expected_statuses.is_empty() {
            (200..300).contains(&status)
        } else {
            self.expected_statuses.contains(&status)
        }
    }
}
