//! Active health checks, of every worker at an interval and on connections of their own (`probe`), and the score of
//! each worker (`score`). Where none is configured only connections are tried (`acceptance`).
//!
//! Where a check is configured a new worker is unhealthy until it has passed one: one that is still starting
//! gets no traffic. A worker that was already serving when the check was configured stays in service until it
//! fails: a policy that is pushed must not empty a pod.

pub mod acceptance;
mod grpc;
mod probe;
pub mod score;
mod threshold;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use outrigger_policy::effective::{HealthCheck, WorkerProtocol};
use tokio::task::AbortHandle;

use self::probe::Prober;
use self::score::{History, Sample};
use self::threshold::Verdict;
use crate::control::Control;
use crate::essential::{Task, Tasks};
use crate::worker::Worker;

pub use self::probe::{Failure, check_once};

/// Checks the workers as the policy in force says, or tries whether they accept connections where it does not say. Never ends.
pub async fn run(control: Arc<Control>, tasks: Arc<Tasks>) {
    let mut changes = control.changes();
    let mut checks = Checks { check: None, running: HashMap::new(), tasks };
    loop {
        checks.follow(&control);
        if changes.changed().await.is_err() {
            return; // the sender lives as long as `control`
        }
    }
}

/// Takes a sample of every worker each second and says how each does. Never ends.
pub async fn keep_score(control: Arc<Control>) {
    let mut second = tokio::time::interval(Duration::from_secs(1));
    second.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut before: HashMap<u32, History> = HashMap::new();
    loop {
        second.tick().await;
        let (snapshot, now) = (control.snapshot(), Instant::now());
        let workers = &snapshot.workers;
        let mut histories: Vec<_> =
            workers.iter().map(|worker| before.remove(&worker.id).unwrap_or_default()).collect();
        let samples: Vec<_> = workers.iter().map(|worker| sample(worker, now)).collect();
        let health = score::assess(&mut histories, &samples, now);
        for (worker, health) in workers.iter().zip(health) {
            worker.set_health(health);
        }
        before = workers.iter().map(|worker| worker.id).zip(histories).collect();
    }
}

fn sample(worker: &Worker, now: Instant) -> Sample {
    let totals = &worker.totals;
    Sample {
        requests: worker.requests(),
        failures: worker.failures(),
        answers: totals.answers.load(Relaxed),
        latency: Duration::from_micros(totals.latency_micros.load(Relaxed)),
        checks: worker.checks.all.load(Relaxed),
        failed_checks: worker.checks.failed.load(Relaxed),
        healthy: worker.healthy(),
        load: worker.load.reported(now).map(f64::from),
    }
}

/// The checks, or attempts to connect, that run, by the worker's id.
struct Checks {
    check: Option<HealthCheck>,
    running: HashMap<u32, Checking>,
    tasks: Arc<Tasks>,
}

/// One worker's check. It ends when this is dropped.
struct Checking {
    protocol: WorkerProtocol,
    handle: AbortHandle,
}

impl Checks {
    fn follow(&mut self, control: &Control) {
        let snapshot = control.snapshot();
        let check = snapshot.policy.health_check.as_ref();
        if self.check.as_ref() != check {
            self.running.clear();
            self.check = check.cloned();
        }
        let mut before = std::mem::take(&mut self.running);
        for (worker, protocol) in snapshot.workers.iter().zip(&snapshot.protocols) {
            let checking = match before.remove(&worker.id) {
                Some(checking) if checking.protocol == *protocol => checking,
                _ => start(worker, *protocol, check, &self.tasks),
            };
            self.running.insert(worker.id, checking);
        }
    }
}

fn start(
    worker: &Arc<Worker>,
    protocol: WorkerProtocol,
    check: Option<&HealthCheck>,
    tasks: &Arc<Tasks>,
) -> Checking {
    let Some(check) = check else {
        if !worker.healthy() {
            worker.set_healthy(true);
        }
        let worker = worker.clone();
        let run = move || acceptance::keep_connecting(worker.clone());
        let handle = tokio::spawn(tasks.clone().kept(Task::HealthCheck, run)).abort_handle();
        return Checking { protocol, handle };
    };
    let in_service = worker.health_known() || worker.failures() < worker.requests();
    if !in_service {
        worker.set_healthy(false);
    }
    let (worker, check) = (worker.clone(), check.clone());
    let run = move || keep_checking(worker.clone(), protocol, check.clone());
    let handle = tokio::spawn(tasks.clone().kept(Task::HealthCheck, run)).abort_handle();
    Checking { protocol, handle }
}

impl Drop for Checking {
    fn drop(&mut self) {
        self.handle.abort();
    }
}

async fn keep_checking(worker: Arc<Worker>, protocol: WorkerProtocol, check: HealthCheck) {
    let mut verdict = Verdict::new(worker.healthy());
    let mut prober = Prober::new(worker.clone(), protocol);
    tokio::time::sleep(first_wait(&check, worker.healthy(), fastrand::f64())).await;
    loop {
        let result = prober.check(&check).await;
        if result.as_ref().is_err_and(Failure::is_this_machines) {
            tracing::debug!(
                worker = worker.name,
                "no health check: this machine is out of descriptors, memory or ports"
            );
            tokio::time::sleep(next_wait(&check, fastrand::f64())).await;
            continue;
        }
        if result.is_ok() {
            worker.accepts();
        }
        worker.checks.all.fetch_add(1, Relaxed);
        worker.checks.failed.fetch_add(u64::from(result.is_err()), Relaxed);
        match verdict.observe(result.is_ok(), check.healthy_threshold, check.unhealthy_threshold) {
            Some(true) => {
                worker.set_healthy(true);
                tracing::info!(worker = worker.name, "worker is healthy");
            }
            Some(false) => {
                worker.set_healthy(false);
                if result.as_ref().is_err_and(Failure::is_refusal) {
                    worker.refuses();
                }
                let reason = result.err().map(|failure| failure.to_string());
                tracing::warn!(worker = worker.name, reason, "worker is unhealthy");
            }
            None => {
                if let Err(failure) = result {
                    tracing::debug!(worker = worker.name, reason = %failure, "health check failed");
                }
            }
        }
        tokio::time::sleep(next_wait(&check, fastrand::f64())).await;
    }
}

/// How long the first check waits. The checks of many proxies that get a policy at once must not come at once; but a
/// worker that waits for its first check is not kept from its requests.
fn first_wait(check: &HealthCheck, serves: bool, random: f64) -> Duration {
    let most = if serves { check.interval } else { Duration::ZERO };
    check.initial_jitter.unwrap_or(most).mul_f64(random)
}

/// How long a later check waits: on average the interval. Nor must they beat in time.
fn next_wait(check: &HealthCheck, random: f64) -> Duration {
    let jitter = f64::from(check.interval_jitter_percent) / 100.0;
    check.interval.mul_f64(1.0 + jitter * (2.0 * random - 1.0))
}

#[cfg(test)]
mod tests;
