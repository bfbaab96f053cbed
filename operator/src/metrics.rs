//! Every metric family of the operator, declared once.

use outrigger_telemetry::log;
use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::push::session::Reception;
use crate::webhook;

/// The families and where they are registered.
pub struct Metrics {
    registry: Mutex<Registry>,
    /// Streams open at this replica.
    pub connected_proxies: Gauge,
    /// Updates sent.
    pub push_updates: Counter,
    acks: Family<AckLabels, Counter>,
    /// Reports of proxies taken in.
    pub reports: Counter,
    token_reviews: Family<ReviewLabels, Counter>,
    /// 1 at the replica that holds the lease.
    pub leader: Gauge,
    /// How long it takes to resolve and publish everything.
    pub reconcile_seconds: Histogram,
    /// Watches that broke off.
    pub watch_errors: Counter,
    /// Writes of status and Events that failed.
    pub report_errors: Counter,
    policy_generation: Family<PolicyLabels, Gauge>,
    policy_proxies: Family<StateLabels, Gauge>,
    policy_workers: Family<StateLabels, Gauge>,
    policy_breakers: Family<StateLabels, Gauge>,
    certificate_expiration: Family<CertificateLabels, Gauge>,
    /// Admission requests.
    pub webhook: webhook::Metrics,
}

/// What became of log lines that nobody read.
#[derive(Debug)]
struct LogLines;

impl Collector for LogLines {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        let counts = log::counts();
        for (name, help, count) in [
            ("outrigger_operator_log_lines_lost", "Log lines that stdout did not take", counts.lost),
            (
                "outrigger_operator_log_lines_suppressed",
                "Log lines over the limit of one place in the code",
                counts.suppressed,
            ),
        ] {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            family.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
        }
        Ok(())
    }
}

/// What became of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReviewResult {
    /// Believed.
    Accepted,
    /// Not believed.
    Refused,
    /// Known from an earlier review.
    Cached,
    /// The API server could not be asked.
    Failed,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AckLabels {
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReviewLabels {
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PolicyLabels {
    policy: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabels {
    policy: String,
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CertificateLabels {
    certificate: &'static str,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All families, at zero.
    pub fn new() -> Self {
        let metrics = Self {
            registry: Mutex::default(),
            connected_proxies: Gauge::default(),
            push_updates: Counter::default(),
            acks: Family::default(),
            reports: Counter::default(),
            token_reviews: Family::default(),
            leader: Gauge::default(),
            reconcile_seconds: Histogram::new(exponential_buckets(0.0001, 4.0, 9)),
            watch_errors: Counter::default(),
            report_errors: Counter::default(),
            policy_generation: Family::default(),
            policy_proxies: Family::default(),
            policy_workers: Family::default(),
            policy_breakers: Family::default(),
            certificate_expiration: Family::default(),
            webhook: webhook::Metrics::default(),
        };
        let mut registry = Registry::default();
        metrics.register(registry.sub_registry_with_prefix("outrigger_operator"));
        metrics.webhook.register(&mut registry);
        registry.register_collector(Box::new(LogLines));
        *metrics.registry.lock() = registry;
        metrics
    }

    fn register(&self, to: &mut Registry) {
        let Self { connected_proxies, push_updates, acks, token_reviews, leader, .. } = self;
        to.register("connected_proxies", "Proxies connected to this replica", connected_proxies.clone());
        to.register("push_updates", "Updates sent to proxies", push_updates.clone());
        to.register(
            "acks",
            "Answers of proxies to updates by result (acknowledged, rejected, stale)",
            acks.clone(),
        );
        to.register("reports", "Reports of proxies on their workers", self.reports.clone());
        to.register(
            "tokenreviews",
            "Tokens judged by result (accepted, refused, cached, failed)",
            token_reviews.clone(),
        );
        to.register("leader", "1 if this replica holds the lease", leader.clone());
        to.register_with_unit(
            "reconcile_duration",
            "Time to resolve and publish all policies",
            Unit::Seconds,
            self.reconcile_seconds.clone(),
        );
        to.register("watch_errors", "Watches of the API server that broke off", self.watch_errors.clone());
        to.register("report_errors", "Writes of status and Events that failed", self.report_errors.clone());
        to.register(
            "policy_generation",
            "The generation of each policy that this replica pushes",
            self.policy_generation.clone(),
        );
        to.register(
            "policy_proxies",
            "Proxies of each policy by state (matched, programmed, rejected); at the replica that holds the lease",
            self.policy_proxies.clone(),
        );
        to.register(
            "policy_workers",
            "Workers of each policy's pods by state (total, usable); at the replica that holds the lease",
            self.policy_workers.clone(),
        );
        to.register(
            "policy_breakers",
            "Circuit breakers of each policy by state (open, half-open); at the replica that holds the lease",
            self.policy_breakers.clone(),
        );
        to.register(
            "certificate_expiration_timestamp_seconds",
            "When the certificate ends, in seconds since 1970",
            self.certificate_expiration.clone(),
        );
    }

    /// Counts a proxy's answer.
    pub fn count_ack(&self, reception: Reception) {
        let result = match reception {
            Reception::Acknowledged => "acknowledged",
            Reception::Rejected => "rejected",
            Reception::Stale => "stale",
        };
        self.acks.get_or_create(&AckLabels { result }).inc();
    }

    /// Counts a judged token.
    pub fn count_review(&self, result: ReviewResult) {
        let result = match result {
            ReviewResult::Accepted => "accepted",
            ReviewResult::Refused => "refused",
            ReviewResult::Cached => "cached",
            ReviewResult::Failed => "failed",
        };
        self.token_reviews.get_or_create(&ReviewLabels { result }).inc();
    }

    /// The generations that are pushed; those of policies not named are forgotten.
    pub fn set_generations<'a>(&self, generations: impl Iterator<Item = (&'a str, i64)>) {
        self.policy_generation.clear();
        for (policy, generation) in generations {
            self.policy_generation.get_or_create(&PolicyLabels { policy: policy.to_owned() }).set(generation);
        }
    }

    /// Forgets the counts of proxies: this replica does not know them any more.
    pub fn clear_proxies(&self) {
        self.policy_proxies.clear();
        self.policy_workers.clear();
        self.policy_breakers.clear();
    }

    /// The counts of one policy's proxies.
    pub fn set_proxies(&self, policy: &str, proxies: &crate::crd::Proxies) {
        let states = [
            ("matched", proxies.matched),
            ("programmed", proxies.programmed),
            ("rejected", proxies.rejected),
        ];
        for (state, count) in states {
            let labels = StateLabels { policy: policy.to_owned(), state };
            self.policy_proxies.get_or_create(&labels).set(i64::from(count));
        }
    }

    /// The counts of one policy's workers and of its breakers that are not closed.
    pub fn set_workers(
        &self,
        policy: &str,
        workers: &crate::crd::Workers,
        breakers: [(&'static str, usize); 2],
    ) {
        for (state, count) in [("total", workers.total), ("usable", workers.usable)] {
            let labels = StateLabels { policy: policy.to_owned(), state };
            self.policy_workers.get_or_create(&labels).set(i64::from(count));
        }
        for (state, count) in breakers {
            let labels = StateLabels { policy: policy.to_owned(), state };
            self.policy_breakers.get_or_create(&labels).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// When the CA that ends first does.
    pub fn set_authority_expiration(&self, seconds: i64) {
        self.certificate_expiration.get_or_create(&CertificateLabels { certificate: "ca" }).set(seconds);
    }

    /// All families in the OpenMetrics text format.
    pub fn encode(&self) -> String {
        let mut page = String::new();
        if let Err(error) = text::encode(&mut page, &self.registry.lock()) {
            tracing::error!(%error, "cannot write the metrics");
        }
        page
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_have_the_names_that_dashboards_use() {
        let metrics = Metrics::new();
        metrics.count_ack(Reception::Rejected);
        metrics.count_review(ReviewResult::Cached);
        metrics.set_generations([("web", 3)].into_iter());
        metrics.set_proxies("web", &crate::crd::Proxies { matched: 2, ..Default::default() });
        metrics.set_authority_expiration(9);
        let page = metrics.encode();
        for line in [
            "outrigger_operator_connected_proxies 0",
            "outrigger_operator_push_updates_total 0",
            "outrigger_operator_acks_total{result=\"rejected\"} 1",
            "outrigger_operator_tokenreviews_total{result=\"cached\"} 1",
            "outrigger_operator_leader 0",
            "outrigger_operator_policy_generation{policy=\"web\"} 3",
            "outrigger_operator_policy_proxies{policy=\"web\",state=\"matched\"} 2",
            "outrigger_operator_certificate_expiration_timestamp_seconds{certificate=\"ca\"} 9",
            "outrigger_operator_reconcile_duration_seconds_count 0",
            "outrigger_operator_log_lines_lost_total 0",
            "outrigger_operator_reconcile_duration_seconds_bucket{le=\"+Inf\"} 0",
        ] {
            assert!(page.lines().any(|found| found == line), "no line '{line}' in\n{page}");
        }
        metrics.set_generations([].into_iter());
        assert!(!metrics.encode().contains("policy=\"web\"} 3"));
    }
}
