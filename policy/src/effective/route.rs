//! Routes, as a proxy follows them.

use super::{Breaker, Hedge, Limit, LoadBalancer, Retry, Session, Spillover, Timeout};

/// Routes that a policy may have, besides the default one.
pub const MAX_ROUTES: usize = 1000;

/// One kind of requests and its treatment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Unique in the policy.
    pub name: String,
    /// Which requests it takes.
    pub matches: RouteMatch,
    /// The strategy that chooses a worker.
    pub load_balancer: LoadBalancer,
    /// When requests go to siblings; `None`: they stay in the pod.
    pub spillover: Option<Spillover>,
    /// Sticky sessions, if there are any.
    pub session: Option<Session>,
    /// Its breaker, if there is one.
    pub breaker: Option<Breaker>,
    /// Every limit that a request must pass.
    pub limits: Vec<Limit>,
    /// What is tried again.
    pub retry: Retry,
    /// A second request when the first answers late, if there is one.
    pub hedge: Option<Hedge>,
    /// How long each part may take.
    pub timeout: Timeout,
    /// Which of the sections that count something are its own.
    pub own: Own,
}

/// Which sections a route says itself. What the others allow is the policy's, and one amount for all routes that do not say
/// it themselves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Own {
    /// `rateLimit`.
    pub limits: bool,
    /// `retry`.
    pub retry: bool,
    /// `hedge`.
    pub hedge: bool,
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
