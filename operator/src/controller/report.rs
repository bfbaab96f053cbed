//! Says in each policy's status how far it got and how its pods' workers are: by the lease holder only, when something
//! changed, and not too often.

mod breakers;
mod budget;
mod conditions;
mod events;
mod progress;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use futures_util::StreamExt;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use outrigger_policy::document::{API_VERSION, KIND};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{Duration, Instant, sleep, timeout};

use self::breakers::{Change, Heard, Ledger, heard};
pub use self::conditions::{Transition, status, transitions};
use self::events::Events;
pub use self::progress::{Progress, progress};
use super::observe::{Observed, PolicyFacts};
use super::resolve::Resolved;
use crate::canary;
use crate::crd::{Canary, CanaryPhase, ClusterPolicy, PROGRAMMED, Status, reason};
use crate::metrics::Metrics;
use crate::push::Hub;
use crate::push::fleet::Fleet;

/// The name under which the status is applied, and Events are reported.
pub const MANAGER: &str = "outrigger-operator";

/// Changes are gathered for so long: a fleet that answers at once is one write.
const GATHER: Duration = Duration::from_millis(150);
/// A policy's status is written at most so often, unless a condition changed.
const THROTTLE: Duration = Duration::from_secs(1);
/// And a condition that goes back and forth, at most so often.
const FLAPPING: Duration = Duration::from_millis(200);
/// How often everything is looked at though nothing changed: stragglers grow old.
const LOOK: Duration = Duration::from_secs(5);
/// And how often while a canary goes on.
const CANARY: Duration = Duration::from_secs(1);
/// Deferred or failed writes are tried again after this.
const RETRY: Duration = Duration::from_millis(500);
/// A new lease holder hears of the fleet bit by bit. For so long it does not take back what the last one said.
const SETTLING: Duration = Duration::from_secs(15);
/// After this, what was written is compared with what is there: somebody may have changed it.
const REPAIR: Duration = Duration::from_secs(300);
const WRITE: Duration = Duration::from_secs(10);
const WRITES: usize = 8;

/// Writes the status.
pub struct Reporter {
    client: Client,
    sources: Sources,
    events: Events,
    metrics: Arc<Metrics>,
    /// What was written, by the policy's UID.
    written: HashMap<String, Written>,
    /// The breakers that are not closed, by the policy's UID.
    ledgers: HashMap<String, Ledger>,
    /// When each version became a target, to tell for how long a proxy has owed an answer.
    targets: HashMap<Arc<str>, Instant>,
    leading_since: Option<Instant>,
}

/// Where the reporter looks.
pub struct Sources {
    /// The policies as they are now.
    pub observed: Observed,
    /// What was resolved last.
    pub resolved: watch::Receiver<Option<Arc<Resolved>>>,
    /// This replica's proxies.
    pub hub: Arc<Hub>,
    /// The other replicas' proxies.
    pub fleet: Arc<Fleet>,
    /// Whether this replica holds the lease.
    pub leadership: watch::Receiver<bool>,
}

struct Written {
    status: Status,
    at: Instant,
}

impl Reporter {
    /// Nothing is written yet.
    pub fn new(client: Client, sources: Sources, replica: String, metrics: Arc<Metrics>) -> Self {
        let events = Events::new(client.clone(), replica, metrics.clone());
        let (written, ledgers, targets) = (HashMap::new(), HashMap::new(), HashMap::new());
        Self { client, sources, events, metrics, written, ledgers, targets, leading_since: None }
    }

    /// Runs until dropped.
    pub async fn run(mut self) {
        let (mut own, mut remote) = (self.sources.hub.changes(), self.sources.fleet.changes());
        let mut leadership = self.sources.leadership.clone();
        let mut resolved = self.sources.resolved.clone();
        let mut wait = LOOK;
        loop {
            tokio::select! {
                () = sleep(wait) => {}
                Ok(()) = own.changed() => {}
                Ok(()) = remote.changed() => {}
                Ok(()) = leadership.changed() => {}
                Ok(()) = resolved.changed() => {}
                else => return,
            }
            sleep(GATHER).await;
            own.borrow_and_update();
            remote.borrow_and_update();
            let latest = resolved.borrow_and_update().clone();
            let leads = *leadership.borrow_and_update();
            wait = match latest {
                Some(resolved) if leads => self.report(&resolved).await,
                _ => {
                    self.rest();
                    LOOK
                }
            };
        }
    }

    /// Another replica reports now.
    fn rest(&mut self) {
        self.written.clear();
        self.ledgers.clear();
        self.leading_since = None;
        self.metrics.clear_proxies();
    }

    /// Brings every status up to date. Returns when to look again at the latest.
    async fn report(&mut self, resolved: &Resolved) -> Duration {
        let now = Instant::now();
        let settled = SETTLING < now.duration_since(*self.leading_since.get_or_insert(now));
        self.forget(resolved, now);
        let answers = self.sources.fleet.answers(&self.sources.hub);
        let mut progress = progress(resolved, &answers, |version| {
            now.duration_since(self.targets.get(version).copied().unwrap_or(now))
        });
        let mut due = Vec::new();
        let mut events = Vec::new();
        let mut deferred = false;
        self.metrics.clear_proxies();
        let heard = heard(resolved, &answers);
        for ((policy, progress), heard) in resolved.policies.iter().zip(&mut progress).zip(&heard) {
            let seen = self.sources.observed.policy(&policy.name).and_then(|policy| policy.status.clone());
            let found = self.look_at_workers(policy, seen.as_ref(), (progress, heard));
            events.extend(self.events.of_breakers(policy, found, now));
            let written = self.written.get(&policy.uid);
            let previous = written.map(|written| &written.status).or(seen.as_ref());
            let next = status(policy, progress, previous, Timestamp::now());
            self.metrics.set_proxies(&policy.name, &next.proxies);
            match pace(previous, &next, written.map(|written| now.duration_since(written.at)), settled) {
                Pace::Now => due.push(Due { policy: policy.clone(), previous: previous.cloned(), next }),
                Pace::Later => deferred = true,
                Pace::Never => {}
            }
        }
        let failed = self.write(due).await;
        self.events.make(events).await;
        if deferred || failed {
            RETRY
        } else if leads_a_canary(&progress) {
            CANARY
        } else {
            LOOK
        }
    }

    /// Adds what is heard of the workers to how far the policy got. Returns what breakers did.
    fn look_at_workers(
        &mut self,
        policy: &PolicyFacts,
        seen: Option<&Status>,
        (progress, heard): (&mut Progress, &Heard<'_>),
    ) -> Vec<Change> {
        let begin = || {
            let known = seen.map(|status| status.breakers.as_slice()).unwrap_or_default();
            Ledger::new(known, Timestamp::now().as_millisecond())
        };
        let ledger = self.ledgers.entry(policy.uid.clone()).or_insert_with(begin);
        let changes = ledger.update(&heard.pods);
        let known = self.written.get(&policy.uid).map(|written| &written.status).or(seen);
        progress.canary = lead(policy, known.and_then(|status| status.canary.as_ref()), heard);
        progress.workers = heard.workers.clone();
        (progress.open_breakers, progress.breakers) = ledger.list();
        let counts = ["open", "half-open"].map(|state| (state, ledger.count(state)));
        self.metrics.set_workers(&policy.name, &progress.workers, counts);
        changes
    }

    /// Writes these. Returns whether one failed.
    async fn write(&mut self, due: Vec<Due>) -> bool {
        let api: Api<ClusterPolicy> = Api::all(self.client.clone());
        let writes = due.into_iter().map(|due| {
            let api = api.clone();
            async move {
                let result = timeout(WRITE, apply(&api, &due.policy, &due.next)).await; // client
                let policy = due.policy.name.as_str();
                let written = match result {
                    Ok(Ok(())) => true,
                    Ok(Err(error)) => {
                        tracing::warn!(policy, %error, "cannot write a status");
                        false
                    }
                    Err(_) => {
                        tracing::warn!(policy, "writing a status took too long");
                        false
                    }
                };
                (due, written)
            }
        });
        let results: Vec<_> = futures_util::stream::iter(writes).buffer_unordered(WRITES).collect().await;
        let (mut failed, mut events) = (false, Vec::new());
        for (Due { policy, previous, next }, written) in results {
            if !written {
                self.metrics.report_errors.inc();
                failed = true;
                continue;
            }
            events.extend(self.events.of_transitions(&policy, transitions(previous.as_ref(), &next)));
            self.written.insert(policy.uid.clone(), Written { status: next, at: Instant::now() });
        }
        self.events.make(events).await;
        failed
    }

    /// Forgets what is gone, and what was written long ago.
    fn forget(&mut self, resolved: &Resolved, now: Instant) {
        let policies: HashSet<_> = resolved.policies.iter().map(|policy| policy.uid.as_str()).collect();
        self.written.retain(|uid, written| {
            policies.contains(uid.as_str()) && now.duration_since(written.at) < REPAIR
        });
        self.ledgers.retain(|uid, _| policies.contains(uid.as_str()));
        self.events.retain(&policies);
        let versions: HashSet<_> = resolved.groups.iter().map(|group| &group.target.version).collect();
        self.targets.retain(|version, _| versions.contains(version));
        for version in versions {
            self.targets.entry(version.clone()).or_insert(now);
        }
        let pods = resolved.groups.iter().flat_map(|group| &group.pods);
        self.sources.fleet.retain(&pods.map(|pod| pod.uid.clone()).collect());
    }
}

/// The canary's next state, if the policy has one. What is known of it outlives a spec that is not valid.
fn lead(policy: &PolicyFacts, known: Option<&Canary>, heard: &Heard<'_>) -> Option<Canary> {
    let Ok(spec) = &policy.spec else { return known.cloned() };
    spec.canary.as_ref()?;
    let rules = outrigger_policy::compile(spec).ok()?.canary?;
    let samples = known.map(|known| heard.samples(&canary::epoch(known))).unwrap_or_default();
    Some(canary::next(&rules, known, &samples, Timestamp::now()))
}

fn leads_a_canary(progress: &[Progress]) -> bool {
    let mut canaries = progress.iter().filter_map(|progress| progress.canary.as_ref());
    canaries.any(|canary| canary.phase == CanaryPhase::Progressing)
}

/// A status to be written.
struct Due {
    policy: Arc<PolicyFacts>,
    previous: Option<Status>,
    next: Status,
}

/// When a status is to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pace {
    Now,
    Later,
    Never,
}

/// Whether `next` is to be written over `previous`, which was written `age` ago by this replica, if it was.
fn pace(previous: Option<&Status>, next: &Status, age: Option<Duration>, settled: bool) -> Pace {
    let Some(previous) = previous else { return Pace::Now };
    if previous == next {
        return Pace::Never;
    }
    let same_generation = previous.observed_generation == next.observed_generation;
    let only_waiting = next.condition(PROGRAMMED).is_some_and(|c| c.reason == reason::RECONCILING);
    if !settled && same_generation && previous.is_true(PROGRAMMED) && only_waiting {
        return Pace::Later;
    }
    let states = |status: &Status| -> Vec<_> {
        status.conditions.iter().map(|c| (c.status.clone(), c.reason.clone())).collect()
    };
    let step = |status: &Status| {
        status.canary.as_ref().map(|canary| (canary.run.clone(), canary.phase, canary.step))
    };
    let news = !same_generation || states(previous) != states(next) || step(previous) != step(next);
    let rest = if news { FLAPPING } else { THROTTLE };
    if age.is_some_and(|age| age < rest) { Pace::Later } else { Pace::Now }
}

async fn apply(api: &Api<ClusterPolicy>, policy: &PolicyFacts, status: &Status) -> kube::Result<()> {
    let body = json!({
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": policy.name, "uid": policy.uid}, // never a later policy of the same name
        "status": status,
    });
    match api.patch_status(&policy.name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(body)).await {
        Err(kube::Error::Api(error)) if error.code == 404 || error.code == 409 => Ok(()), // it is gone
        result => result.map(drop),
    }
}

#[cfg(test)]
mod tests;
