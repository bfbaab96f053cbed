//! `ClusterPolicy` as the API server knows it: the body is `outrigger_policy::Spec`, the status is here.

mod schema;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::CustomResource;
use outrigger_policy::Spec;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::schema::definition;

/// The condition that says whether the spec is valid.
pub const ACCEPTED: &str = "Accepted";
/// The condition that says whether every proxy has the policy in force.
pub const PROGRAMMED: &str = "Programmed";
/// Accepted and programmed: what `kubectl wait --for=condition=Ready` waits for.
pub const READY: &str = "Ready";

/// Reasons of conditions.
pub mod reason {
    /// Accepted: the spec is valid.
    pub const ACCEPTED: &str = "Accepted";
    /// Not accepted: the spec violates a rule; no proxy ever sees it.
    pub const INVALID: &str = "Invalid";
    /// Programmed: every live proxy acknowledged this generation.
    pub const PROGRAMMED: &str = "Programmed";
    /// Programmed, vacuously: no live pod is selected.
    pub const NO_PROXIES: &str = "NoProxies";
    /// Not programmed: some proxies have not acknowledged yet.
    pub const RECONCILING: &str = "Reconciling";
    /// Not programmed: some proxies rejected this generation and keep their last good policy.
    pub const PARTIALLY_PROGRAMMED: &str = "PartiallyProgrammed";
    /// Ready.
    pub const READY: &str = "Ready";
}

/// The most stragglers a status names.
pub const MAX_STRAGGLERS: usize = 10;
/// The most breakers a status names.
pub const MAX_BREAKERS: usize = 10;

/// How the proxies of the selected pods treat requests.
#[expect(clippy::duplicated_attributes, reason = "each printer column has a type of its own")]
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "outrigger.dev",
    version = "v1alpha1",
    kind = "ClusterPolicy",
    plural = "clusterpolicies",
    shortname = "orp",
    category = "outrigger",
    status = "Status",
    derive = "Default",
    derive = "PartialEq",
    doc = "How the Outrigger proxies of the selected pods treat the requests to their workers.",
    printcolumn(
        name = "Accepted",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Accepted\")].status",
        description = "Whether the spec is valid."
    ),
    printcolumn(
        name = "Programmed",
        type_ = "string",
        json_path = ".status.proxies.summary",
        description = "Proxies that have this generation in force, of those that should."
    ),
    printcolumn(
        name = "Workers",
        type_ = "string",
        json_path = ".status.workers.summary",
        description = "Workers that may be sent requests, of all."
    ),
    printcolumn(
        name = "Breakers",
        type_ = "integer",
        json_path = ".status.openBreakers",
        description = "Circuit breakers that are not closed."
    ),
    printcolumn(
        name = "Canary",
        type_ = "string",
        json_path = ".status.canary.phase",
        description = "Whether the new version takes over.",
        priority = 1
    ),
    printcolumn(name = "Strategy", type_ = "string", json_path = ".spec.loadBalancer.type"),
    printcolumn(name = "Priority", type_ = "integer", json_path = ".spec.priority"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].message",
        priority = 1
    )
)]
#[serde(transparent)]
pub struct ClusterPolicySpec(pub Spec);

/// How far the policy got.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The generation of the spec that this status is about.
    #[serde(default)]
    pub observed_generation: i64,
    /// `Accepted`: the spec is valid. `Programmed`: every live proxy has it in force. `Ready`: both.
    #[serde(default)]
    pub conditions: Vec<Condition>,
    /// The proxies of the selected pods.
    #[serde(default)]
    pub proxies: Proxies,
    /// Proxies that do not have it in force, and why: at most 10 of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stragglers: Vec<Straggler>,
    /// The workers of the selected pods, as far as their proxies told of them.
    #[serde(default)]
    pub workers: Workers,
    /// How many circuit breakers of this policy are not closed.
    #[serde(default)]
    pub open_breakers: u32,
    /// Circuit breakers that are not closed, the newest first: at most 10 of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub breakers: Vec<Breaker>,
    /// How far the canary is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<Canary>,
}

/// How far a canary is. It is all that is remembered of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Canary {
    /// The new version and the attempt: `v2.1`.
    pub run: String,
    /// Whether it goes on, and how it ended.
    pub phase: CanaryPhase,
    /// What it waits for, or why it ended.
    pub message: String,
    /// The step, from 1; 0 while the old version is measured before a switch at once.
    pub step: u32,
    /// How many steps there are.
    pub steps: u32,
    /// The new version's share, in percent.
    pub weight: u32,
    /// Since when it has been in this step or phase.
    pub since: Time,
    /// When the versions were compared last.
    pub analyzed: Time,
    /// What the old version answered in this step.
    #[serde(default)]
    pub old: Figures,
    /// What the new version answered in this step.
    #[serde(default)]
    pub new: Figures,
    /// What the old version answered in the last step in which it had a share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baseline: Option<Baseline>,
}

/// Whether a canary goes on, and how it ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum CanaryPhase {
    /// It goes on.
    #[default]
    Progressing,
    /// The new version took over.
    Succeeded,
    /// The new version was switched back.
    Failed,
}

/// What a version answered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Figures {
    /// Requests.
    pub requests: i64,
    /// The share of failures.
    pub error_rate: String,
    /// The percentile of the latency that is compared.
    pub latency: String,
}

/// What the old version is remembered by.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Baseline {
    /// Requests.
    pub requests: i64,
    /// Failures.
    pub failures: i64,
    /// The upper bound of the percentile of the latency that is compared, in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency_micros: Option<i64>,
}

/// Counts of workers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Workers {
    /// The workers of all selected pods.
    pub total: u32,
    /// Of those, the workers that may be sent requests: they accept connections, are healthy and not draining, and their breaker is not open.
    pub usable: u32,
    /// `usable/total`.
    #[serde(default)]
    pub summary: String,
}

/// A circuit breaker that is not closed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Breaker {
    /// The pod, as `namespace/name`.
    pub pod: String,
    /// What it stands in front of: `worker worker-a`, `route api`, or `service` for all workers of the pod.
    pub breaker: String,
    /// `open`: no requests flow. `half-open`: a few do, and their outcome decides.
    pub state: String,
    /// Why it left the closed state.
    pub cause: String,
    /// Since when it has been in this state.
    pub since: Time,
    /// When it lets a request through next. Absent while one is let through already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_probe: Option<Time>,
}

/// Counts of proxies.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Proxies {
    /// Live pods with a proxy that the policy selects.
    pub matched: u32,
    /// Of those, the proxies that acknowledged this generation.
    pub programmed: u32,
    /// Of those, the proxies that rejected it.
    pub rejected: u32,
    /// `programmed/matched`.
    #[serde(default)]
    pub summary: String,
}

/// A proxy that does not have the policy in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Straggler {
    /// The pod, as `namespace/name`.
    pub pod: String,
    /// Why.
    pub reason: String,
}

impl Status {
    /// The condition of this type.
    pub fn condition(&self, kind: &str) -> Option<&Condition> {
        self.conditions.iter().find(|condition| condition.type_ == kind)
    }

    /// Whether the condition of this type is `True`.
    pub fn is_true(&self, kind: &str) -> bool {
        self.condition(kind).is_some_and(|condition| condition.status == "True")
    }
}
