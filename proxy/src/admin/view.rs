//! What `/api/snapshot` shows. It has no field for a secret: session keys are not in it by construction.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use outrigger_policy::effective::{LoadBalancerType, WorkerProtocol};
use outrigger_policy::merge::Origin;
use outrigger_policy::{Spec, Violation};
use serde::Serialize;

use super::{Admin, strategy};
use crate::control::stream;
use crate::drain::Phase;
use crate::drain::worker::Serves;
use crate::health::acceptance::Acceptance;
use crate::health::score::Health;
use crate::snapshot::{Snapshot, Source};
use crate::worker;

/// Everything.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct View {
    /// The hash of the policy in force.
    version: String,
    source: Source,
    /// The sections in force, as they were written.
    policy: Spec,
    /// Which policy each section came from.
    origins: BTreeMap<String, Origin>,
    /// The new version that takes over, if one does.
    #[serde(skip_serializing_if = "Option::is_none")]
    canary: Option<Canary>,
    workers: Vec<Worker>,
    routes: Vec<Route>,
    /// Strategies put in force for a while, over the policy's.
    switches: Vec<strategy::View>,
    /// What is valid in the policy and yet cannot be meant for these workers.
    warnings: Vec<Violation>,
    /// The proxies of the same workload, where the operator named some.
    #[serde(skip_serializing_if = "Option::is_none")]
    siblings: Option<Siblings>,
    refusals: Refusals,
    /// How the operator's stream stands, where there is an operator.
    #[serde(skip_serializing_if = "Option::is_none")]
    push: Option<stream::View>,
    process: Process,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Worker {
    name: String,
    address: SocketAddr,
    /// Whether it may be sent a request: it accepts connections, is healthy, not draining, and its breaker lets requests through.
    usable: bool,
    acceptance: Acceptance,
    healthy: bool,
    draining: bool,
    /// How its drain stands, where it is drained.
    #[serde(skip_serializing_if = "Option::is_none")]
    drain: Option<Drain>,
    /// How well it does, and why not better.
    health: Health,
    weight: u32,
    cost: u32,
    protocol: WorkerProtocol,
    in_flight: u32,
    requests: u64,
    failures: u64,
    breaker: Breaker,
}

/// Which strategy a route follows.
#[derive(Serialize)]
struct Route {
    name: String,
    strategy: LoadBalancerType,
    /// Whether it was put in force over the policy's.
    switched: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Siblings {
    version: String,
    /// This proxy's own instance, and the zone of its node.
    instance: Option<String>,
    zone: String,
    /// The version of this pod, where a canary tells pods apart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pod_version: Option<String>,
    /// For how long this proxy's certificate is still valid; absent: it has none, and no sibling can be reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate_expires_after_seconds: Option<u64>,
    /// Nearest first.
    members: Vec<Sibling>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Sibling {
    pod: String,
    instance: String,
    address: SocketAddr,
    zone: String,
    /// Its version, where a canary tells pods apart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pod_version: Option<String>,
    workers: Vec<String>,
    /// Whether it said that it is ready.
    ready: bool,
    /// Whether it may be sent a request: ready, reachable, and its breaker lets requests through.
    usable: bool,
    in_flight: u32,
    requests: u64,
    failures: u64,
    breaker: Breaker,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Breaker {
    state: &'static str,
    times_opened: u64,
    /// How long it stays open.
    #[serde(skip_serializing_if = "Option::is_none")]
    open_remaining_millis: Option<u128>,
}

/// A worker's drain.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Drain {
    /// What it still serves: `sessions` or `nothing`.
    serves: &'static str,
    for_seconds: u64,
    /// Who wants it: `policy`, `annotation`, `order`.
    by: Vec<&'static str>,
    /// What an operator asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    order: Option<Order>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Order {
    reason: String,
    expires_in_seconds: u64,
}

impl Drain {
    pub(super) fn of(snapshot: &Snapshot, worker: &worker::Worker, now: Instant) -> Option<Self> {
        let (order, since) = worker.drain.view(now);
        let since = since?;
        let [by_policy, by_pod] = snapshot.drains(&worker.name);
        let by = [(by_policy, "policy"), (by_pod, "annotation"), (order.is_some(), "order")];
        Some(Self {
            by: by.into_iter().filter_map(|(wanted, who)| wanted.then_some(who)).collect(),
            serves: if worker.drain.serves() == Serves::Sessions { "sessions" } else { "nothing" },
            for_seconds: now.saturating_duration_since(since).as_secs(),
            order: order.map(|order| Order {
                reason: order.reason,
                expires_in_seconds: order.until.saturating_duration_since(now).as_secs(),
            }),
        })
    }
}

#[derive(Serialize)]
struct Canary {
    version: String,
    /// Its share, in percent.
    weight: u32,
}

/// Updates, or edits of the file, that were refused.
#[derive(Serialize)]
struct Refusals {
    count: u64,
    /// Why the last one was; empty when a later one was accepted.
    last: Vec<Violation>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Process {
    version: &'static str,
    uptime_seconds: u64,
    phase: &'static str,
}

impl Admin {
    pub(super) fn view(&self, now: Instant) -> View {
        let snapshot = self.control.snapshot();
        let refusals = self.control.refusals();
        View {
            version: snapshot.version.clone(),
            source: snapshot.source,
            policy: snapshot.merged.spec.clone(),
            origins: snapshot.origins().clone(),
            canary: snapshot
                .canary
                .as_ref()
                .map(|canary| Canary { version: canary.version().to_owned(), weight: canary.weight() }),
            workers: workers(&snapshot, now),
            routes: routes(&snapshot),
            switches: strategy::views(&snapshot, now),
            warnings: snapshot.warnings.clone(),
            siblings: siblings(&snapshot, now),
            refusals: Refusals { count: refusals.count, last: refusals.last },
            push: self.push.view(now),
            process: Process {
                version: env!("CARGO_PKG_VERSION"),
                uptime_seconds: now.saturating_duration_since(self.started).as_secs(),
                phase: phase(self.lifecycle.phase()),
            },
        }
    }
}

fn routes(snapshot: &Snapshot) -> Vec<Route> {
    let route = |route: &Arc<crate::snapshot::Route>| Route {
        name: route.policy.name.clone(),
        strategy: route.policy.load_balancer.strategy.kind(),
        switched: snapshot.is_switched(&route.policy.name),
    };
    snapshot.routes.iter().map(route).collect()
}

fn workers(snapshot: &Snapshot, now: Instant) -> Vec<Worker> {
    let rules = snapshot.weights.iter().zip(&snapshot.costs).zip(&snapshot.protocols);
    let workers = snapshot.workers.iter().zip(rules);
    workers
        .map(|(worker, ((weight, cost), protocol))| Worker {
            name: worker.name.clone(),
            address: worker.address,
            usable: worker.usable(now),
            acceptance: worker.acceptance(),
            healthy: worker.healthy(),
            draining: worker.draining(),
            drain: Drain::of(snapshot, worker, now),
            health: worker.health(),
            weight: *weight,
            cost: *cost,
            protocol: *protocol,
            in_flight: worker.in_flight(),
            requests: worker.requests(),
            failures: worker.failures(),
            breaker: breaker(worker, now),
        })
        .collect()
}

fn breaker(worker: &worker::Worker, now: Instant) -> Breaker {
    let breaker = worker.breaker.view(now);
    Breaker {
        state: breaker.state,
        times_opened: breaker.times_opened,
        open_remaining_millis: breaker.open_remaining.map(|remaining| remaining.as_millis()),
    }
}

fn siblings(snapshot: &Snapshot, now: Instant) -> Option<Siblings> {
    let siblings = &snapshot.siblings;
    let member = |worker: &Arc<worker::Worker>| {
        let sibling = worker.sibling.as_ref()?;
        Some(Sibling {
            pod: worker.name.clone(),
            instance: sibling.instance.clone(),
            address: worker.address,
            zone: sibling.zone.clone(),
            pod_version: sibling.version.clone(),
            workers: sibling.workers.clone(),
            ready: worker.healthy(),
            usable: worker.usable(now) && sibling.reachable(now),
            in_flight: worker.in_flight(),
            requests: worker.requests(),
            failures: worker.failures(),
            breaker: breaker(worker, now),
        })
    };
    let credentials = siblings.identity().current(now);
    Some(Siblings {
        version: siblings.version()?.to_owned(),
        instance: siblings.instance().map(ToOwned::to_owned),
        zone: siblings.zone().to_owned(),
        pod_version: siblings.pod_version().map(ToOwned::to_owned),
        certificate_expires_after_seconds: credentials
            .map(|credentials| credentials.expires().saturating_duration_since(now).as_secs()),
        members: siblings.members().iter().filter_map(member).collect(),
    })
}

fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Starting => "starting",
        Phase::Serving => "serving",
        Phase::NotReady => "not-ready",
        Phase::Closing => "closing",
        Phase::Goodbye => "goodbye",
        Phase::Ended | Phase::Cut => "ended",
    }
}
