//! The policy as a user writes it: optional fields, units as text. `compile` turns it into what a
//! proxy enforces. A field is here only when a proxy enforces it.
//!
//! The doc comments become the descriptions that `kubectl explain` shows: they are written for users.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::selector::LabelSelector;
use crate::units::DurationText;

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
    /// Weights of workers, by name. A worker that is not listed has weight 1. At most 256.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workers: Option<Vec<WorkerSpec>>,
    /// How a worker is chosen for a request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_balancer: Option<LoadBalancerSpec>,
    /// Sticky sessions: a client's later requests go to the worker of its first. Absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_persistence: Option<SessionPersistenceSpec>,
    /// When to stop sending requests to a worker that fails. Absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub circuit_breaker: Option<CircuitBreakerSpec>,
    /// Limits on what one client may send. Absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<RateLimitSpec>,
    /// What is tried again, and how often.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<RetrySpec>,
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
    /// matches wins, and a request that matches none takes the sections above. At most 64.
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

/// One worker of the pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WorkerSpec {
    /// The worker's name: the name of its container port, or `worker-1`, `worker-2`, … where the
    /// proxy starts the workers itself.
    pub name: String,
    /// Its share of the requests, relative to the others: 0 to 100, default 1. 0 takes no new requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    /// The protocol it speaks. Default `Auto`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<WorkerProtocol>,
}

/// The protocol between the proxy and a worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum WorkerProtocol {
    /// HTTP/2 for gRPC (a request of `content-type: application/grpc`), HTTP/1.1 for the rest.
    #[default]
    Auto,
    /// HTTP/1.1.
    #[serde(rename = "HTTP1")]
    Http1,
    /// HTTP/2 without TLS, by prior knowledge.
    #[serde(rename = "H2C")]
    H2c,
}

/// How a worker is chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LoadBalancerSpec {
    /// The strategy. Default `RoundRobin`.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<LoadBalancerType>,
}

/// The strategies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum LoadBalancerType {
    /// In turn, as often as the weights say, evenly spread.
    #[default]
    RoundRobin,
    /// At random, as often as the weights say.
    Random,
    /// The worker with the fewest requests in flight for its weight.
    LeastRequest,
}

/// Sticky sessions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SessionPersistenceSpec {
    /// How the session is carried. Default `Cookie`.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<SessionPersistenceType>,
    /// How long a session may last from its first request: 1s to 400 days. Default `24h`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub absolute_timeout: Option<DurationText>,
    /// The cookie.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cookie: Option<CookieSpec>,
}

/// How a session is carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SessionPersistenceType {
    /// In a cookie that is encrypted and authenticated (AES-256-GCM); the proxy stores nothing.
    #[default]
    Cookie,
}

/// The session cookie. It always has `HttpOnly`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CookieSpec {
    /// The cookie's name. Default `outrigger-session`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The cookie's path. Default `/`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Whether the browser keeps the cookie until it is closed (`Session`) or until the session
    /// ends (`Permanent`). Default `Session`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lifetime_type: Option<CookieLifetime>,
    /// Whether the cookie is for requests over TLS only. `Auto`, the default, sets `Secure` when the
    /// request came over TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secure: Option<CookieSecure>,
    /// The cookie's `SameSite` attribute. Default `Lax`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub same_site: Option<SameSite>,
}

/// How long a browser keeps the cookie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum CookieLifetime {
    /// Until the browser is closed.
    #[default]
    Session,
    /// Until the session's absolute timeout.
    Permanent,
}

/// When the cookie has `Secure`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum CookieSecure {
    /// When the request came over TLS, as the proxy or a trusted hop before it saw.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// The cookie's `SameSite` attribute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SameSite {
    /// Sent with top-level navigation from other sites.
    #[default]
    Lax,
    /// Sent from the same site only.
    Strict,
    /// Sent from everywhere; needs `secure: Always`.
    None,
}

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

/// Limits on what one client may send.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RateLimitSpec {
    /// The limits; a request must pass all. At most 16.
    #[serde(default)]
    pub rules: Vec<RateLimitRuleSpec>,
}

/// One limit: a token bucket per client, in each proxy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RateLimitRuleSpec {
    /// The rule's name, as the `RateLimit` header and the metrics show it: letters, digits, `-`, `_`. At most 63.
    pub name: String,
    /// What tells clients apart. Default: their address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_selector: Option<ClientSelectorSpec>,
    /// How much is allowed.
    pub limit: LimitSpec,
}

/// What tells clients apart.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClientSelectorSpec {
    /// Default `SourceAddress`.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<ClientSelectorType>,
    /// The header of type `Header`. Requests without it are not limited by the rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<String>,
}

/// Kinds of client selectors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ClientSelectorType {
    /// The client's address, as the trusted hops report it. IPv6 clients are told apart by their /64.
    #[default]
    SourceAddress,
    /// The value of a header.
    Header,
}

/// An amount per unit of time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LimitSpec {
    /// Requests per unit: 1 to 10000000.
    pub requests: u32,
    /// The unit. Default `Second`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<LimitUnit>,
    /// Requests that may come at once: 1 to 10000000. Default: `requests`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<u32>,
}

/// Units of time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum LimitUnit {
    /// One second.
    #[default]
    Second,
    /// Sixty seconds.
    Minute,
    /// Sixty minutes.
    Hour,
}

/// What is tried again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RetrySpec {
    /// How often a request of which nothing reached a worker is tried again, on another worker where
    /// there is one: 0 to 10. Default 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_retries: Option<u32>,
}

/// How long each part of a request may take.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TimeoutSpec {
    /// Until a worker accepts a connection: 1ms to 1m. Default `1s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect: Option<DurationText>,
    /// Until the head of the worker's answer, counted from the end of the request's head: 1ms to 24h, `0s`
    /// for no limit. Default `60s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<DurationText>,
    /// How long a body or a tunnel may stand still: 1s to 24h. Default `5m`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle: Option<DurationText>,
}

/// How workers are checked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HealthCheckSpec {
    /// Requests that the proxy sends on its own. Absent: none; a worker is then healthy until its breaker opens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active: Option<ActiveHealthCheckSpec>,
}

/// An HTTP request that each worker must answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ActiveHealthCheckSpec {
    /// The path. Default `/healthz`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Time between two checks of a worker: 100ms to 10m, with up to a tenth of jitter. Default `3s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<DurationText>,
    /// How long an answer may take: 10ms to 1m. Default `1s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<DurationText>,
    /// Failed checks in a row until a worker gets no more requests: 1 to 100. Default 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unhealthy_threshold: Option<u32>,
    /// Passed checks in a row until it gets them again: 1 to 100. Default 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub healthy_threshold: Option<u32>,
    /// Statuses that pass, each 100 to 599. Default: 200 to 299. At most 16.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_statuses: Option<Vec<u16>>,
}

/// How a proxy stops.
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
}

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
    /// Limits for these requests, in place of the policy's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<RateLimitSpec>,
    /// What is tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<RetrySpec>,
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
