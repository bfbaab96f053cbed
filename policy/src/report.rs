//! What a proxy tells the operator of its workers: `POST /push/v1/report`, beside the stream.
//!
//! A report is the whole state, so a lost one costs nothing but time, and the latest is the only one that counts. It
//! changes only when there is news: nothing in it counts time. An operator that does not know the path answers 404,
//! and the proxy leaves it at that; a proxy that never reports is one of which nothing is known.

use serde::{Deserialize, Serialize};

use crate::sample::{BUCKETS, Sample};

/// The path that takes a `Report`.
pub const REPORT_PATH: &str = "/push/v1/report";

/// The most workers a report names.
pub const MAX_WORKERS: usize = 256;
/// The most breakers a report names.
pub const MAX_BREAKERS: usize = 32;
/// The longest name of anything, in characters.
const NAME: usize = 63;
/// The longest cause, in characters.
const CAUSE: usize = 200;

/// How a proxy's workers are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// The version of the policy in force.
    pub version: String,
    /// Every worker, at most `MAX_WORKERS`.
    pub workers: Vec<WorkerReport>,
    /// The breakers that are not closed, at most `MAX_BREAKERS`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub breakers: Vec<BreakerReport>,
    /// What the versions of a canary answered, since its epoch began here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<CanaryReport>,
}

/// What the versions of a canary answered in one epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CanaryReport {
    /// The epoch, as the operator named it.
    pub epoch: String,
    /// The old version.
    pub old: Sample,
    /// The new version.
    pub new: Sample,
}

/// How one worker is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkerReport {
    /// Its name.
    pub name: String,
    /// Whether its health check passes.
    pub healthy: bool,
    /// Whether it may be sent a request: it accepts connections, is healthy and not draining, and its breaker is not open.
    pub usable: bool,
}

/// A breaker that is not closed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BreakerReport {
    /// What it stands in front of.
    pub level: Level,
    /// The name of the worker or the route; of a service's breaker `service`.
    pub name: String,
    /// `open`, `half-open`, or another word for a state that is not closed.
    pub state: String,
    /// Why it left the closed state.
    pub cause: String,
    /// Since when it has been in this state, in milliseconds since 1970.
    pub since: i64,
    /// When it lets a request through next, in milliseconds since 1970; none while one is let through already, or
    /// where that is not for the breaker to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_probe: Option<i64>,
}

/// What a breaker stands in front of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// One worker.
    Worker,
    /// The requests of one route.
    Route,
    /// All workers.
    Service,
}

impl Report {
    /// The same within the bounds: what comes from a proxy ends in statuses and Events.
    #[must_use]
    pub fn bounded(mut self) -> Self {
        short(&mut self.version, NAME);
        self.workers.truncate(MAX_WORKERS);
        for worker in &mut self.workers {
            short(&mut worker.name, NAME);
        }
        self.breakers.truncate(MAX_BREAKERS);
        for breaker in &mut self.breakers {
            short(&mut breaker.name, NAME);
            short(&mut breaker.state, NAME);
            short(&mut breaker.cause, CAUSE);
        }
        if let Some(CanaryReport { epoch, old, new }) = &mut self.canary {
            short(epoch, 2 * NAME);
            for sample in [old, new] {
                sample.latency.retain(|bucket, _| usize::from(*bucket) < BUCKETS);
            }
        }
        self
    }

    /// Whether all but counts is the same.
    pub fn differs_in_counts_only(&self, other: &Self) -> bool {
        let epoch = |report: &Self| report.canary.as_ref().map(|canary| canary.epoch.clone());
        let same = self.version == other.version && self.workers == other.workers;
        same && self.breakers == other.breakers && epoch(self) == epoch(other)
    }

    /// How many workers may be sent requests.
    pub fn usable(&self) -> usize {
        self.workers.iter().filter(|worker| worker.usable).count()
    }
}

impl Level {
    /// Its name, as users see it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Worker => "worker",
            Self::Route => "route",
            Self::Service => "service",
        }
    }
}

/// Not longer than `most` characters, and none that would break a line.
fn short(text: &mut String, most: usize) {
    if most < text.len() || text.contains(char::is_control) {
        *text = text.chars().take(most).map(|c| if c.is_control() { ' ' } else { c }).collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        Report {
            version: "v".to_owned(),
            workers: vec![WorkerReport { name: "a".to_owned(), healthy: true, usable: false }],
            breakers: vec![BreakerReport {
                level: Level::Worker,
                name: "a".to_owned(),
                state: "open".to_owned(),
                cause: "5 failures in a row".to_owned(),
                since: 1,
                next_probe: Some(2),
            }],
            canary: None,
        }
    }

    #[test]
    fn a_report_reads_back() {
        let text = serde_json::to_string(&report()).expect("serializes");
        assert_eq!(serde_json::from_str::<Report>(&text).expect("reads back"), report());
    }

    #[test]
    fn what_a_newer_proxy_adds_is_passed_over() {
        let text = r#"{"version": "v", "workers": [], "weather": "fine"}"#;
        let report: Report = serde_json::from_str(text).expect("a report");
        assert_eq!(report.usable(), 0);
    }

    #[test]
    fn a_report_is_bounded_whatever_the_proxy_says() {
        let mut wild = report();
        wild.workers = vec![WorkerReport { name: "é".repeat(9999), ..wild.workers[0].clone() }; 9999];
        wild.breakers = vec![BreakerReport { cause: "\n".repeat(9999), ..wild.breakers[0].clone() }; 9999];
        let bounded = wild.bounded();
        assert_eq!((bounded.workers.len(), bounded.breakers.len()), (MAX_WORKERS, MAX_BREAKERS));
        assert_eq!(bounded.workers[0].name.chars().count(), NAME);
        assert_eq!(bounded.breakers[0].cause, " ".repeat(CAUSE));
        assert_eq!(report().bounded(), report(), "what is within the bounds stays as it is");
    }
}
