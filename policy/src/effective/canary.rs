//! Canaries, as the operator leads them and proxies follow.

use std::time::Duration;

pub use crate::spec::CanaryStickiness;

/// How a new version takes over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Canary {
    /// The new version.
    pub version: String,
    /// The label whose value is a pod's version; none where workers of each pod have versions.
    pub pod_label: Option<String>,
    /// Tells one try of it from another.
    pub attempt: u32,
    /// Never empty; weights never fall.
    pub steps: Vec<CanaryStep>,
    /// What stays with the version it began with.
    pub stickiness: CanaryStickiness,
    /// The header, in lower case, that tells clients apart before their address does.
    pub client_header: Option<String>,
    /// Requests with this header, its name in lower case, go to the new version.
    pub preview: Option<(String, String)>,
    /// When the new version counts as worse.
    pub analysis: CanaryAnalysis,
}

/// One step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CanaryStep {
    /// The new version's share, in percent.
    pub weight: u32,
    /// How long the step lasts at least.
    pub pause: Duration,
}

/// When the new version counts as worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CanaryAnalysis {
    /// In percentage points.
    pub max_error_rate_margin: u32,
    /// In percent.
    pub max_latency_margin: u32,
    /// In percent.
    pub latency_percentile: u32,
    /// That each version must have answered in a step.
    pub minimum_requests: u64,
    /// Between two comparisons.
    pub interval: Duration,
}

impl Canary {
    /// What tells this try from every other: what was decided of one says nothing of another.
    pub fn run(&self) -> String {
        run(&self.version, self.attempt)
    }
}

/// What tells this try of this version from every other.
pub fn run(version: &str, attempt: u32) -> String {
    format!("{version}.{attempt}")
}
