//! Circuit breakers, as a proxy runs them.

use std::fmt;
use std::time::Duration;

pub use crate::spec::{BreakerMode, OverrideState};

/// A circuit breaker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Breaker {
    /// Whether what it finds is enforced.
    pub mode: BreakerMode,
    /// What the rates are taken over.
    pub window: Window,
    /// Calls the window must hold before a rate counts.
    pub minimum_number_of_calls: u32,
    /// Opens when so many of the window's calls failed, in percent; `None`: never.
    pub failure_rate_threshold: Option<u32>,
    /// Opens when so many of the window's calls were slow, in percent; `None`: never.
    pub slow_call_rate_threshold: Option<u32>,
    /// A call is slow that took longer.
    pub slow_call_duration_threshold: Duration,
    /// Opens after so many failures in a row; `None`: never.
    pub consecutive_failures: Option<u32>,
    /// Opens after so many failures of the connection in a row; `None`: never.
    pub consecutive_local_origin_failures: Option<u32>,
    /// Which answers are failures.
    pub failures: FailureStatuses,
    /// How long it stays open.
    pub wait: Wait,
    /// Calls let through in half-open; all must succeed.
    pub permitted_calls_in_half_open: u32,
    /// How long half-open waits for them; `None`: for ever.
    pub max_wait_in_half_open: Option<Duration>,
    /// How long after closing the share of requests grows; zero: not at all.
    pub recovery_ramp: Duration,
    /// Thresholds that are learned, if there are any.
    pub adaptive: Option<Adaptive>,
}

impl Breaker {
    /// Whether what it finds is enforced, as far as the policy's mode says.
    pub fn is_enforced(&self) -> bool {
        self.mode == BreakerMode::Enforced
    }
}

/// What a sliding window holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// The last so many calls.
    Calls(u32),
    /// The calls of the last while.
    Time(Duration),
}

/// How long a breaker stays open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait {
    /// The first time.
    pub initial: Duration,
    /// By what it grows each time in a row.
    pub multiplier: u32,
    /// The most it grows to.
    pub max: Duration,
    /// Up to so many percent are added at random.
    pub jitter_percent: u32,
}

/// Thresholds that follow what is normal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Adaptive {
    /// How far back "normal" reaches.
    pub learning_window: Duration,
    /// How many standard deviations above normal they lie.
    pub deviations: u32,
    /// The bounds of the failure rate, in percent.
    pub failure_rate: [u32; 2],
    /// The bounds of the mean latency.
    pub latency: [Duration; 2],
}

/// Answers that are failures: sets of bits, so that asking costs no search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailureStatuses {
    /// By HTTP status, from 100.
    http: [u64; 8],
    /// By gRPC code.
    grpc: u32,
}

impl FailureStatuses {
    /// No answer is a failure.
    pub const NONE: Self = Self { http: [0; 8], grpc: 0 };

    /// Adds an HTTP status, 100 to 599.
    pub fn add_http(&mut self, status: u16) {
        let bit = usize::from(status.saturating_sub(100));
        if let Some(word) = self.http.get_mut(bit / 64) {
            *word |= 1 << (bit % 64);
        }
    }

    /// Adds a gRPC code, 0 to 16.
    pub fn add_grpc(&mut self, code: u8) {
        self.grpc |= 1u32.checked_shl(code.into()).unwrap_or(0);
    }

    /// Whether an answer of this HTTP status is a failure.
    pub fn has_http(&self, status: u16) -> bool {
        let bit = usize::from(status.saturating_sub(100));
        self.http.get(bit / 64).is_some_and(|word| word & (1 << (bit % 64)) != 0)
    }

    /// Whether an answer of this gRPC code is a failure.
    pub fn has_grpc(&self, code: u8) -> bool {
        self.grpc & 1u32.checked_shl(code.into()).unwrap_or(0) != 0
    }
}

impl Default for FailureStatuses {
    /// Server errors that a client cannot bring about at will.
    fn default() -> Self {
        let mut failures = Self::NONE;
        (500..=599).filter(|status| !matches!(status, 501 | 505)).for_each(|s| failures.add_http(s));
        [2, 13, 14, 15].into_iter().for_each(|code| failures.add_grpc(code));
        failures
    }
}

/// Which breaker is meant.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BreakerName {
    /// That of a worker.
    Worker(String),
    /// That of a route.
    Route(String),
    /// That in front of all workers.
    Service,
}

impl BreakerName {
    /// Reads `worker/NAME`, `route/NAME` or `service`.
    pub fn parse(text: &str) -> Option<Self> {
        let name = |name: &str| {
            let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
            ((1..=63).contains(&name.len()) && name.bytes().all(plain)).then(|| name.to_owned())
        };
        match text.split_once('/') {
            None => (text == "service").then_some(Self::Service),
            Some(("worker", worker)) => name(worker).map(Self::Worker),
            Some(("route", route)) => name(route).map(Self::Route),
            Some(_) => None,
        }
    }

    /// `worker`, `route` or `service`.
    pub fn level(&self) -> &'static str {
        match self {
            Self::Worker(_) => "worker",
            Self::Route(_) => "route",
            Self::Service => "service",
        }
    }

    /// The name of the worker or the route; `service` for the service.
    pub fn name(&self) -> &str {
        match self {
            Self::Worker(name) | Self::Route(name) => name,
            Self::Service => "service",
        }
    }
}

impl fmt::Display for BreakerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service => f.write_str("service"),
            _ => write!(f, "{}/{}", self.level(), self.name()),
        }
    }
}

/// A breaker that people hold open or closed for a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BreakerOverride {
    /// Which.
    pub breaker: BreakerName,
    /// What it is held in.
    pub state: OverrideState,
    /// Until when, in milliseconds since 1970.
    pub until_unix_millis: i64,
    /// Why.
    pub reason: String,
}

impl BreakerOverride {
    /// Whether it holds at this time of the wall clock, in milliseconds since 1970.
    pub fn holds(&self, unix_millis: i64) -> bool {
        unix_millis < self.until_unix_millis
    }
}
