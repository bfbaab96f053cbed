//! `canary`: how a new version takes over from the old one, step by step.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::HeaderMatchSpec;
use crate::units::DurationText;

/// How a new version takes over from the old one: step by step, and back to the old one by itself when it is worse.
///
/// The workers whose `workers[].version` is `version` are the new version, all others the old one; with `podLabel`
/// whole pods are. A version whose share is 0 gets no request at all; otherwise a version that has no usable worker
/// leaves its requests to the other one. After the last step the new version gets everything. Progress and verdict are in `status.canary`. Needs the
/// operator: without one the share stays at 0.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CanarySpec {
    /// The new version, as `workers[].version` names it: letters, digits, `-`, `_`; as `podLabel` has it: a label's
    /// value. At most 63 characters. Another name here begins another canary.
    pub version: String,
    /// The label whose value is a pod's version, such as `app.kubernetes.io/version`: the versions are then pods, as
    /// of two Deployments under one Service, and no worker may have a `version`. A pod without the label is of the
    /// old version. Applies to routes of the `loadBalancer.scope` `Workload`, which some route must have: there,
    /// requests go to pods of their version. All pods in a namespace that get this canary from this policy serve for
    /// each other, whichever controllers made them, if the policy has a `subject.podSelector`, which must select
    /// the pods of one Service and no others; without one, only pods of the same controller do. Absent: the versions
    /// stand side by side in each pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_label: Option<String>,
    /// Another number here tries the same version again: 1 to 1000000, default 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// The steps, with weights that never fall: 1 to 32. One step of weight 100 is a blue-green switch: before it the
    /// old version is measured while the new one gets only what `preview` lets through, and for the length of its
    /// pause it can still go back.
    pub steps: Vec<CanaryStepSpec>,
    /// What stays with the version it began with. Default `Request`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stickiness: Option<CanaryStickiness>,
    /// With the stickiness `Client`: the header that tells clients apart, such as a user's name. Absent, and for
    /// requests without it: the client's address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_header: Option<String>,
    /// Requests with this header go to the new version whatever its share, for tests before it gets any. They do not
    /// count in the analysis.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preview: Option<HeaderMatchSpec>,
    /// When the new version counts as worse.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub analysis: Option<CanaryAnalysisSpec>,
}

/// One step of a canary.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CanaryStepSpec {
    /// The new version's share of the requests, in percent: 0 to 100.
    pub weight: u32,
    /// How long the step lasts at least: 1s to 30d. It lasts longer where `analysis.minimumRequests` are not
    /// reached. Default `1m`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause: Option<DurationText>,
}

/// What stays with the version it began with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum CanaryStickiness {
    /// Nothing: each request is drawn anew.
    #[default]
    Request,
    /// A client: it changes at most once, from the old version to the new one, as the share grows.
    Client,
}

/// When the new version counts as worse: when it is worse than the old one by more than a margin, of which 99.5 % are
/// sure. Both are measured at the same time, from the requests they answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CanaryAnalysisSpec {
    /// How much higher its error rate may be, in percentage points: 0 to 100, default 1. Failures are what the
    /// circuit breaker takes for failures.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_error_rate_margin: Option<u32>,
    /// How much longer its latency may be, in percent of the old version's: 0 to 10000, default 25.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_latency_margin: Option<u32>,
    /// Of which percentile the latency is compared: 50 to 99, default 95.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency_percentile: Option<u32>,
    /// Requests that each version must have answered in a step before anything is said of it: 20 to 1000000,
    /// default 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minimum_requests: Option<u32>,
    /// How often the two are compared: 1s to 1h. Default `10s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<DurationText>,
}
