//! Every metric family of the proxy, declared once, in OpenMetrics text.

mod breakers;
mod memory;
mod tasks;

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use outrigger_telemetry::log;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use super::{BUCKETS, Counter, Metrics, Names, ROUTES, Requests, Shard, WORKERS};
use crate::control::Control;
use crate::control::stream::Status as PushStatus;
use crate::drain::worker::Serves;
use crate::essential::Tasks;
use crate::memory::Memory;
use crate::rejection::Rejection;
use crate::worker::Worker;

/// What a scrape reads.
pub struct Exposition {
    registry: Registry,
}

impl Exposition {
    /// Declares the families over what is counted and what is in force.
    pub fn new(families: Families) -> Self {
        let mut registry = Registry::with_prefix("outrigger");
        registry.register_collector(Box::new(families));
        Self { registry }
    }

    /// The text of one scrape.
    pub fn text(&self) -> String {
        let mut text = String::new();
        match prometheus_client::encoding::text::encode(&mut text, &self.registry) {
            Ok(()) => text,
            Err(_) => String::from("# EOF\n"), // a String never refuses what is written to it
        }
    }
}

/// What the families are read from.
pub struct Families {
    /// What the request path counts.
    pub metrics: Arc<Metrics>,
    /// What is in force.
    pub control: Arc<Control>,
    /// How the operator's stream stands.
    pub push: Arc<PushStatus>,
    /// Whether what must run does.
    pub tasks: Arc<Tasks>,
    /// What the process may have of memory, and what it uses.
    pub memory: Arc<Memory>,
}

impl fmt::Debug for Families {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Families")
    }
}

impl Collector for Families {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let encoder = &mut encoder;
        self.requests(encoder)?;
        self.connections(encoder)?;
        self.workers(encoder)?;
        breakers::encode(encoder, &self.control.snapshot())?;
        self.siblings(encoder)?;
        self.policy(encoder)?;
        memory::encode(encoder, &self.memory)?;
        tasks::encode(encoder, &self.tasks)
    }
}

impl Families {
    fn requests(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let shards = self.metrics.shards.lock();
        let routes = By { shards: &shards, label: "route", names: &ROUTES, of: |shard| &shard.routes };
        let workers = By { shards: &shards, label: "worker", names: &WORKERS, of: |shard| &shard.workers };
        routes.codes(encoder, "http_requests", "Answers to clients")?;
        routes.latency(encoder, "http_request_duration", "From a request's head to the end of its answer")?;
        workers.codes(encoder, "worker_requests", "Answers of workers")?;
        workers.latency(
            encoder,
            "worker_response_duration",
            "From a request's head to the head of the worker's answer",
        )?;
        let mut rejections = encoder.encode_descriptor(
            "rejections",
            "Answers of the proxy itself, by reason",
            None,
            MetricType::Counter,
        )?;
        for (i, label) in Rejection::LABELS.iter().enumerate() {
            let sum = shards.iter().map(|shard| shard.rejections[i].get()).sum();
            number(rejections.encode_family(&[("reason", *label)])?, Number::Count(sum))?;
        }
        Ok(())
    }

    fn connections(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let sum = |counter: fn(&Shard) -> &Counter| self.metrics.sum(counter);
        let log = log::counts();
        let counts: [(&str, &str, u64); 19] = [
            ("connections_accepted", "Connections accepted from clients", sum(|s| &s.accepted)),
            ("retries", "Requests that were sent once more", sum(|s| &s.retries)),
            ("retries_over_budget", "Retries that the budget did not allow", sum(|s| &s.retries_over_budget)),
            (
                "stale_connections",
                "Requests sent once more over a new connection, for the worker had closed the one they were sent on",
                sum(|s| &s.stale_connections),
            ),
            ("hedges", "Requests sent to a second worker because the first was late", sum(|s| &s.hedges)),
            ("hedges_won", "Hedges that the second worker answered first", sum(|s| &s.hedges_won)),
            ("worker_connects", "Connections opened to workers", sum(|s| &s.connects)),
            (
                "worker_connects_exhausted",
                "Connections to workers for which this machine had no descriptor, port or memory",
                sum(|s| &s.connects_exhausted),
            ),
            ("sessions_started", "Sticky sessions that began", sum(|s| &s.sessions[0])),
            ("sessions_repinned", "Sticky sessions whose worker was gone", sum(|s| &s.sessions[1])),
            ("sibling_requests_sent", "Requests that a sibling answered", sum(|s| &s.siblings[0])),
            ("sibling_requests_served", "Requests of siblings", sum(|s| &s.siblings[1])),
            (
                "sibling_connections_refused",
                "Connections to the sibling port without a certificate of the workload",
                sum(|s| &s.strangers),
            ),
            (
                "answers_broken_off",
                "Answers of workers that began well and broke off",
                sum(|s| &s.broken_off),
            ),
            ("request_body_bytes", "Bytes of bodies from clients", sum(|s| &s.bytes[0])),
            ("response_body_bytes", "Bytes of bodies to clients", sum(|s| &s.bytes[1])),
            ("policy_refused", "Policies that were refused", self.control.refusals().count),
            ("log_lines_lost", "Log lines that stdout did not take", log.lost),
            ("log_lines_suppressed", "Log lines over the limit of one place in the code", log.suppressed),
        ];
        for (name, help, count) in counts {
            let metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            number(metric, Number::Count(count))?;
        }
        let gauges: [(&str, &str, u64); 2] = [
            ("connections", "Connections of clients that are open", sum(|s| &s.connections)),
            ("http_requests_active", "Requests being served", sum(|s| &s.active)),
        ];
        for (name, help, value) in gauges {
            number(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?, Number::Gauge(value))?;
        }
        Ok(())
    }

    fn workers(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let snapshot = self.control.snapshot();
        let now = Instant::now();
        type Of = fn(&Worker, Instant) -> u64;
        let gauges: [(&str, &str, Of); 4] = [
            ("worker_in_flight", "Requests in flight", |worker, _| u64::from(worker.in_flight())),
            ("worker_usable", "Whether it may be sent requests", |worker, now| u64::from(worker.usable(now))),
            (
                "worker_health_score",
                "How well it does, from 0 to 100; /api/snapshot says why",
                |worker, _| u64::from(worker.health().score),
            ),
            ("worker_drained", "Whether it is taken out of service by policy or order", |worker, _| {
                u64::from(worker.drain.serves() != Serves::All)
            }),
        ];
        for (name, help, of) in gauges {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for worker in &snapshot.workers {
                let value = Number::Gauge(of(worker, now));
                number(family.encode_family(&[("worker", worker.name.as_str())])?, value)?;
            }
        }
        let mut family = encoder.encode_descriptor(
            "worker_load_reports_ignored",
            "Headers `endpoint-load-metrics` that could not be read",
            None,
            MetricType::Counter,
        )?;
        for worker in &snapshot.workers {
            let ignored = worker.load.utilization.ignored();
            number(family.encode_family(&[("worker", worker.name.as_str())])?, Number::Count(ignored))?;
        }
        Ok(())
    }

    fn siblings(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let snapshot = self.control.snapshot();
        let (siblings, now) = (&snapshot.siblings, Instant::now());
        let help =
            "Proxies of the same workload, by whether they are in the same zone and may be sent requests";
        let mut family = encoder.encode_descriptor("siblings", help, None, MetricType::Gauge)?;
        for (zone, near) in [("same", true), ("other", false)] {
            for (usable, wanted) in [("true", true), ("false", false)] {
                let counted = siblings.members().iter().filter(|worker| {
                    let Some(sibling) = &worker.sibling else { return false };
                    let found = worker.usable(now) && sibling.reachable(now);
                    (sibling.zone == siblings.zone()) == near && found == wanted
                });
                let count = counted.count() as u64;
                number(family.encode_family(&[("zone", zone), ("usable", usable)])?, Number::Gauge(count))?;
            }
        }
        Ok(())
    }

    fn policy(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let snapshot = self.control.snapshot();
        let mut family = encoder.encode_descriptor(
            "policy_generation",
            "The generation in force of each policy that a section came from",
            None,
            MetricType::Gauge,
        )?;
        let mut origins: Vec<_> = snapshot.origins().values().collect();
        origins.sort();
        origins.dedup();
        for origin in origins {
            let generation = u64::try_from(origin.generation).unwrap_or_default();
            number(family.encode_family(&[("policy", origin.policy.as_str())])?, Number::Gauge(generation))?;
        }
        let mut family = encoder.encode_descriptor(
            "strategy",
            "1 for the strategy that a route follows: the policy's, or one that was put in force for a while",
            None,
            MetricType::Gauge,
        )?;
        for route in &snapshot.routes {
            let name = route.policy.name.as_str();
            let kind = route.policy.load_balancer.strategy.kind().name();
            let by = if snapshot.is_switched(name) { "switch" } else { "policy" };
            let labels = [("route", name), ("type", kind), ("by", by)];
            number(family.encode_family(&labels)?, Number::Gauge(1))?;
        }
        let mut family = encoder.encode_descriptor(
            "canary_weight",
            "The new version's share of the requests, in percent",
            None,
            MetricType::Gauge,
        )?;
        if let Some(canary) = &snapshot.canary {
            let weight = u64::from(canary.weight());
            number(family.encode_family(&[("version", canary.version())])?, Number::Gauge(weight))?;
        }
        let push = encoder.encode_descriptor(
            "push_connected",
            "Whether the operator's stream is open",
            None,
            MetricType::Gauge,
        )?;
        number(push, Number::Gauge(u64::from(self.push.connected())))
    }
}

/// The requests of every route, or of every worker.
struct By<'a> {
    shards: &'a [Arc<Shard>],
    label: &'static str,
    names: &'static Names,
    of: fn(&Shard) -> &Requests,
}

impl By<'_> {
    /// Calls `with` with each name that was counted, and with what sums over the shards.
    fn each(&self, mut with: impl FnMut(&str, &dyn Fn(Of) -> u64) -> fmt::Result) -> fmt::Result {
        for (slot, name) in self.names.all().iter().enumerate() {
            let sum = |of: Of| self.shards.iter().map(|shard| of.among((self.of)(shard), slot)).sum();
            if (0..=BUCKETS.len()).any(|bucket| sum(Of::Latency(bucket)) != 0) {
                with(name, &sum)?;
            }
        }
        Ok(())
    }

    fn codes(&self, encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str) -> fmt::Result {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        self.each(|name, sum| {
            for status in 100..600 {
                let sum = sum(Of::Status(status));
                if sum != 0 {
                    let code = status.to_string();
                    number(
                        family.encode_family(&[(self.label, name), ("code", code.as_str())])?,
                        Number::Count(sum),
                    )?;
                }
            }
            Ok(())
        })
    }

    fn latency(&self, encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str) -> fmt::Result {
        let mut family =
            encoder.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Histogram)?;
        self.each(|name, sum| {
            let bounds = BUCKETS.iter().copied().chain([f64::INFINITY]);
            let buckets: Vec<_> = bounds.enumerate().map(|(i, bound)| (bound, sum(Of::Latency(i)))).collect();
            let count = buckets.iter().map(|(_, count)| count).sum();
            #[expect(clippy::cast_precision_loss, reason = "nanoseconds of 100 days fit f64 exactly")]
            let seconds = sum(Of::Nanos) as f64 / 1e9;
            let labels = [(self.label, name)];
            let mut metric = family.encode_family(&labels)?;
            metric.encode_histogram::<NoLabelSet>(seconds, count, &buckets, None)
        })
    }
}

/// Which of the counts of a name.
#[derive(Clone, Copy)]
enum Of {
    Status(u16),
    Latency(usize),
    Nanos,
}

impl Of {
    fn among(self, requests: &Requests, slot: usize) -> u64 {
        match self {
            Self::Status(status) => requests.of_status(slot, status),
            Self::Latency(bucket) => requests.of_latency(slot, bucket),
            Self::Nanos => requests.nanos(slot),
        }
    }
}

enum Number {
    Count(u64),
    Gauge(u64),
}

fn number(mut metric: MetricEncoder<'_>, number: Number) -> fmt::Result {
    match number {
        Number::Count(count) => metric.encode_counter::<NoLabelSet, _, u64>(&count, None),
        Number::Gauge(value) => metric.encode_gauge(&i64::try_from(value).unwrap_or(i64::MAX)),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_last_bucket_of_a_histogram_has_all_answers() {
        let metrics = Arc::new(Metrics::default());
        let (shard, route) = (metrics.shard(), crate::metrics::route_slot("of-the-exposition"));
        for millis in [1, 30, 60_000] {
            shard.answered(route, 200, Duration::from_millis(millis));
        }
        let page = Exposition::new(Families {
            memory: Memory::new(crate::memory::Limit::of(256 << 20), 2),
            metrics,
            control: Control::new(Vec::new()),
            push: Arc::default(),
            tasks: Tasks::new(crate::drain::Lifecycle::default()),
        })
        .text();
        let of = |le: &str| {
            format!(
                "outrigger_http_request_duration_seconds_bucket{{le=\"{le}\",route=\"of-the-exposition\"}} "
            )
        };
        for (le, count) in [("0.001", 1), ("0.05", 2), ("10.0", 2), ("+Inf", 3)] {
            let line = format!("{}{count}", of(le));
            assert!(page.lines().any(|found| found == line), "no line '{line}' in\n{page}");
        }
    }
}
