//! Strategies and their settings, as a proxy follows them.

use std::time::Duration;

use crate::spec::LoadBalancerType;
use crate::units::Decimal;

/// How a worker is chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadBalancer {
    /// The strategy.
    pub strategy: Strategy,
    /// How a worker that just became ready gets to its full share; `None`: it has it at once.
    pub slow_start: Option<SlowStart>,
}

/// A strategy and all its settings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Strategy {
    /// In turn.
    #[default]
    RoundRobin,
    /// At random.
    Random,
    /// Fewest requests in flight.
    LeastRequest(LeastRequest),
    /// Lowest response time times requests in flight.
    PeakEwma(PeakEwma),
    /// The same key to the same worker.
    ConsistentHash(ConsistentHash),
    /// By the load that workers report.
    BackendUtilization(BackendUtilization),
    /// By the response time and load to come.
    Predictive(Predictive),
    /// Cheapest first.
    CostAware(CostAware),
}

/// Settings of `LeastRequest`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeastRequest {
    /// Up to so many workers all are compared.
    pub full_scan: usize,
    /// How many are drawn of more, and once more where all of those are busy.
    pub choice_count: u32,
}

/// Settings of `PeakEwma`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeakEwma {
    /// After this time a response time counts 1/e.
    pub decay_time: Duration,
    /// What a worker that has not answered yet is taken to need.
    pub default_response_time: Duration,
    /// What a failure counts as at least.
    pub penalty: Duration,
    /// How long a `Retry-After` is honoured at most.
    pub max_retry_after: Duration,
}

/// Settings of `ConsistentHash`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsistentHash {
    /// What of a request is its key.
    pub key: HashKey,
    /// How keys are given to workers.
    pub algorithm: HashAlgorithm,
    /// How many requests in flight a worker may have, in percent of what the mean and its weight say.
    pub balance_factor: Option<u32>,
}

/// What of a request is its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashKey {
    /// The client's address.
    SourceIp,
    /// The value of this header, in lower case.
    Header(String),
    /// The value of this cookie.
    Cookie(String),
    /// The value of this query parameter.
    QueryParam(String),
    /// The path.
    Path,
}

/// How keys are given to workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HashAlgorithm {
    /// A ring with so many points for each unit of weight.
    Ring(u32),
    /// A Maglev table of so many places, a prime number.
    Maglev(u32),
}

/// Settings of `BackendUtilization`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendUtilization {
    /// The metrics of which the highest counts; empty: the application's utilization, else the CPU's.
    pub metrics: Vec<String>,
    /// How long a worker must have reported before its reports count.
    pub blackout_period: Duration,
    /// How long a report counts.
    pub expiration_period: Duration,
    /// How often shares are computed anew.
    pub update_period: Duration,
    /// What the share of requests that fail adds to the utilization, in percent.
    pub error_penalty_percent: u32,
    /// Whether clients get the header with the report.
    pub keep_response_headers: bool,
}

/// Settings of `Predictive`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Predictive {
    /// How far ahead.
    pub horizon: Duration,
    /// The time whose mean is one observation.
    pub interval: Duration,
    /// How much an observation moves the level, 1 to 100.
    pub level_percent: u32,
    /// How much a change of the level moves the trend, 1 to 100.
    pub trend_percent: u32,
    /// What a failure counts as at least.
    pub penalty: Duration,
}

/// Settings of `CostAware`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CostAware {
    /// The response time that a worker must keep to get more requests.
    pub latency_objective: Duration,
}

/// How a worker that just became ready gets to its full share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlowStart {
    /// How long it takes.
    pub window: Duration,
    /// The share it begins with, 1 to 100.
    pub min_weight_percent: u32,
    /// The share at the part `t` of the window is `t` to the power of 1 / `aggression`.
    pub aggression: Decimal,
}

impl Strategy {
    /// The name that a policy gives it.
    pub fn kind(&self) -> LoadBalancerType {
        match self {
            Self::RoundRobin => LoadBalancerType::RoundRobin,
            Self::Random => LoadBalancerType::Random,
            Self::LeastRequest(_) => LoadBalancerType::LeastRequest,
            Self::PeakEwma(_) => LoadBalancerType::PeakEwma,
            Self::ConsistentHash(_) => LoadBalancerType::ConsistentHash,
            Self::BackendUtilization(_) => LoadBalancerType::BackendUtilization,
            Self::Predictive(_) => LoadBalancerType::Predictive,
            Self::CostAware(_) => LoadBalancerType::CostAware,
        }
    }
}
