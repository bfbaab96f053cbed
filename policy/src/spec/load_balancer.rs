//! `loadBalancer`: how a worker is chosen.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::units::{Decimal, DurationText};

/// How a worker is chosen. The settings of a strategy may be set only when `type` names it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LoadBalancerSpec {
    /// The strategy. Default `RoundRobin`.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<LoadBalancerType>,
    /// Settings of `LeastRequest`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub least_request: Option<LeastRequestSpec>,
    /// Settings of `PeakEwma`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_ewma: Option<PeakEwmaSpec>,
    /// Settings of `ConsistentHash`, which needs them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consistent_hash: Option<ConsistentHashSpec>,
    /// Settings of `BackendUtilization`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend_utilization: Option<BackendUtilizationSpec>,
    /// Settings of `Predictive`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predictive: Option<PredictiveSpec>,
    /// Settings of `CostAware`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost_aware: Option<CostAwareSpec>,
    /// A worker that just became ready gets its full share by and by. Absent: at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slow_start: Option<SlowStartSpec>,
    /// Which workers are chosen from. Default `Pod`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<LoadBalancerScope>,
    /// When requests leave the pod. Only with the scope `Workload`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spillover: Option<SpilloverSpec>,
}

/// Which workers are chosen from. `Pod`, the default: those of the proxy's own pod. `Workload`: those of sibling
/// pods too, which the same Deployment, StatefulSet or other controller made. The pod's own come first, then those of
/// pods in the same zone, then all others, and sticky sessions hold whichever pod a request reaches. It needs the
/// operator; without one the scope is the pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum LoadBalancerScope {
    /// The workers of the proxy's own pod.
    #[default]
    Pod,
    /// Those of sibling pods too.
    Workload,
}

/// When requests leave the pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SpilloverSpec {
    /// In percent, as Envoy's of the same name: the pod keeps as much of its requests as the usable share of its
    /// workers times this factor, the same zone as much of the rest, and so on. With 140 and three workers of which
    /// one is down, 93 % stay. 100 to 1000, default 140.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overprovisioning_factor: Option<u32>,
    /// Requests in flight for each usable worker of the pod from which on requests go to siblings.
    /// 1 to 100000. Absent: load alone sends none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_parallel_requests: Option<u32>,
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
    /// The worker whose response time times its requests in flight is lowest. Response times are moving
    /// averages that follow a rise at once; a failure counts as a long one.
    PeakEwma,
    /// The same key to the same worker, as long as that is usable.
    ConsistentHash,
    /// By what workers report of their load in the response header `endpoint-load-metrics` (ORCA).
    BackendUtilization,
    /// By the response time and the load that each worker will have some seconds ahead, if it goes on as now.
    Predictive,
    /// The cheapest workers first, as long as they keep the latency objective.
    CostAware,
}

impl LoadBalancerType {
    /// The name that a policy gives it.
    pub fn name(self) -> &'static str {
        match self {
            Self::RoundRobin => "RoundRobin",
            Self::Random => "Random",
            Self::LeastRequest => "LeastRequest",
            Self::PeakEwma => "PeakEwma",
            Self::ConsistentHash => "ConsistentHash",
            Self::BackendUtilization => "BackendUtilization",
            Self::Predictive => "Predictive",
            Self::CostAware => "CostAware",
        }
    }
}

/// Settings of `LeastRequest`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LeastRequestSpec {
    /// How many workers are compared. Default `Auto`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selection_method: Option<SelectionMethod>,
    /// How many workers are drawn for a comparison where not all are compared, and once more where all of them are busy:
    /// 2 to 16, default 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub choice_count: Option<u32>,
}

/// How many workers `LeastRequest` compares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SelectionMethod {
    /// All of up to eight workers, `choiceCount` of more.
    #[default]
    Auto,
    /// All.
    FullScan,
    /// `choiceCount`, drawn at random by weight.
    NChoices,
}

/// Settings of `PeakEwma`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PeakEwmaSpec {
    /// How long a response time goes on counting: after this time what is left of it is about a third.
    /// 100ms to 10m, default `10s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decay_time: Option<DurationText>,
    /// What a worker that has not answered yet is taken to need: 1ms to 1m, default `10ms`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_response_time: Option<DurationText>,
    /// What a failure counts as, however fast it came: 0s to 5m, default `5s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub penalty: Option<DurationText>,
    /// How long a worker that answers 503 with `Retry-After` is left alone at most, while others can
    /// take its requests: 0s (never) to 1h, default `5m`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_retry_after: Option<DurationText>,
}

/// Settings of `ConsistentHash`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ConsistentHashSpec {
    /// What of a request is its key. A request without it goes to a worker at random.
    #[serde(rename = "type")]
    pub kind: ConsistentHashType,
    /// The header of type `Header`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<String>,
    /// The cookie of type `Cookie`. The proxy does not set it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cookie: Option<String>,
    /// The query parameter of type `QueryParam`; its first value counts, as it is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query_param: Option<String>,
    /// How keys are given to workers. Default `Ring`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub algorithm: Option<ConsistentHashAlgorithm>,
    /// Points on the ring of `Ring` for each unit of a worker's weight: 16 to 1024, default 512. More points share
    /// more evenly. The whole ring may have 1048576.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub virtual_nodes: Option<u32>,
    /// Places in the table of `Maglev`: a prime number from 251 to 1048573, default 65537.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table_size: Option<u32>,
    /// How many requests in flight a worker may have, in percent of what the mean and its weight say; what is
    /// over goes to the next worker for its key. 101 to 10000; absent: no bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash_balance_factor: Option<u32>,
}

/// What of a request is its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ConsistentHashType {
    /// The client's address, as the trusted hops report it; of an IPv6 address its /64.
    SourceIP,
    /// The value of a header.
    Header,
    /// The value of a cookie.
    Cookie,
    /// The value of a query parameter.
    QueryParam,
    /// The path, without the query.
    Path,
}

/// How keys are given to workers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ConsistentHashAlgorithm {
    /// A ring with many points for each worker: when a worker leaves, the keys of the others stay.
    #[default]
    Ring,
    /// Google's Maglev: shares are nearly exact, and when a worker is removed for good a few keys of the others
    /// move too.
    Maglev,
}

/// Settings of `BackendUtilization`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BackendUtilizationSpec {
    /// The metrics that make up a worker's utilization, of which the highest counts: `cpu_utilization`,
    /// `mem_utilization`, `application_utilization`, `named_metrics.NAME` or `utilization.NAME`, each a number of
    /// which 1 means full. At most 16. Default: `application_utilization` where it is reported, else
    /// `cpu_utilization`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metric_names_for_computing_utilization: Option<Vec<String>>,
    /// How long a worker must have reported before its reports count: 0s to 10m, default `10s`. Until then it
    /// gets what a worker gets on the average.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blackout_period: Option<DurationText>,
    /// How long a report counts: 1s to 1h, default `3m`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight_expiration_period: Option<DurationText>,
    /// How often shares are computed anew: 100ms to 1m, default `1s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight_update_period: Option<DurationText>,
    /// What the share of requests that fail adds to the utilization, in percent: 0 to 1000, default 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_utilization_penalty_percent: Option<u32>,
    /// Whether clients get the header with the report. Default false: it is removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_response_headers: Option<bool>,
}

/// Settings of `Predictive`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PredictiveSpec {
    /// How far ahead: 500ms to 1m, default `5s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub horizon: Option<DurationText>,
    /// The time whose mean is one observation: 100ms to 10s, default `500ms`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<DurationText>,
    /// How much a new observation moves the level, in percent: 1 to 100, default 50.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level_smoothing_percent: Option<u32>,
    /// How much a new change of the level moves the trend, in percent: 1 to 100, default 30.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trend_smoothing_percent: Option<u32>,
    /// What a failure counts as, however fast it came: 0s to 5m, default `5s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub penalty: Option<DurationText>,
}

/// Settings of `CostAware`. What workers cost is in `workers`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CostAwareSpec {
    /// The response time that a worker must keep to get more requests: 1ms to 1m, default `100ms`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency_objective: Option<DurationText>,
}

/// How a worker that just became ready gets to its full share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SlowStartSpec {
    /// How long it takes, from when the worker was added or found healthy: 1s to 1h.
    pub window: DurationText,
    /// The share it begins with, in percent of its full one: 1 to 100, default 10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_weight_percent: Option<u32>,
    /// The shape: 1, the default, is a straight line; above it the share grows fast first, below it late. 0.1 to
    /// 10. At the part `t` of the window the share is `t` to the power of 1 / `aggression`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aggression: Option<Decimal>,
}
