//! What `/api/snapshot` shows. It has no field for a secret: session keys are not in it by construction.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use outrigger_policy::effective::WorkerProtocol;
use outrigger_policy::merge::Origin;
use outrigger_policy::{Spec, Violation};
use serde::Serialize;

use super::Admin;
use crate::control::stream;
use crate::drain::Phase;
use crate::snapshot::{Snapshot, Source};

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
    /// Whether it may be sent a request: healthy, not draining, and its breaker lets requests through.
    usable: bool,
    healthy: bool,
    draining: bool,
    weight: u32,
    protocol: WorkerProtocol,
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

fn workers(snapshot: &Snapshot, now: Instant) -> Vec<Worker> {
    let rules = snapshot.weights.iter().zip(&snapshot.protocols);
    let workers = snapshot.workers.iter().zip(rules);
    workers
        .map(|(worker, (weight, protocol))| {
            let breaker = worker.breaker.view(now);
            Worker {
                name: worker.name.clone(),
                address: worker.address,
                usable: worker.usable(now),
                healthy: worker.healthy(),
                draining: worker.draining(),
                weight: *weight,
                protocol: *protocol,
                in_flight: worker.in_flight(),
                requests: worker.totals.requests.load(Relaxed),
                failures: worker.totals.failures.load(Relaxed),
                breaker: Breaker {
                    state: breaker.state,
                    times_opened: breaker.times_opened,
                    open_remaining_millis: breaker.open_remaining.map(|remaining| remaining.as_millis()),
                },
            }
        })
        .collect()
}

fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Serving => "serving",
        Phase::NotReady => "not-ready",
        Phase::Closing => "closing",
        Phase::Ended => "ended",
    }
}
