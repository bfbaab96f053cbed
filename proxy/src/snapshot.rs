//! The immutable view that one request sees: the policy, made into the parts that enforce it.
//!
//! `next` is pure and says what survives a change: limiter buckets and strategies whose definition is the same
//! are the same objects, workers keep their breakers, and the same policy pushed again changes nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::HeaderName;
use outrigger_policy::effective::{self, Policy, WorkerProtocol};
use outrigger_policy::merge::{Merged, Origin};
use outrigger_policy::wire::{KeyRing, Update};
use outrigger_policy::{Violation, compile};
use serde::Serialize;

use crate::balance::{self, Balance, Member, Usable};
use crate::forward::budget::LeastRate;
use crate::limit::TokenBucket;
use crate::metrics;
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
    /// The weight of each worker.
    pub weights: Vec<u32>,
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
    /// The header with which a client says how long it waits.
    pub deadline_header: Option<HeaderName>,
    /// Retries that are allowed in any case.
    pub least_retries: LeastRate,
    /// Hedges that are allowed in any case.
    pub least_hedges: LeastRate,
}

impl Snapshot {
    /// What is in force before any policy came.
    pub fn initial(workers: Vec<Arc<Worker>>) -> Self {
        let update = Update::new(Merged::default(), KeyRing::default());
        let policy =
            compile(&update.policy.spec).unwrap_or_else(|_| unreachable!("the default spec is valid"));
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
    pub fn usable(&self, now: Instant) -> Usable {
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
    pub fn choose(&self, route: &Route, wish: Wish<'_>, now: Instant) -> Option<Permit> {
        let pinned = wish.pinned.and_then(|session_id| self.place_of(session_id));
        if let Some(i) = pinned.filter(|i| self.workers[*i].serves_its_sessions(now)) {
            match self.workers[i].acquire(now) {
                Some(permit) => return Some(permit),
                None => wish.usable.remove(i),
            }
        }
        loop {
            let i = route.balance.pick(wish.usable, wish.random)?;
            match self.workers[i].acquire(now) {
                Some(permit) => return Some(permit),
                None => wish.usable.remove(i),
            }
        }
    }

    fn place_of(&self, session_id: u64) -> Option<usize> {
        self.workers.iter().position(|worker| worker.session_id == session_id)
    }

    /// When the first open breaker lets a request through again; a second where there is none.
    pub fn retry_after(&self, now: Instant) -> Duration {
        let open = self.workers.iter().filter_map(|worker| worker.breaker.view(now).open_remaining);
        open.min().unwrap_or(Duration::from_secs(1)).max(Duration::from_secs(1))
    }
}

/// What one request asks of the choice.
pub struct Wish<'a> {
    /// The worker of the request's session.
    pub pinned: Option<u64>,
    /// The workers that may be chosen; those found unusable are taken out.
    pub usable: &'a mut Usable,
    /// Decides ties and random strategies.
    pub random: u64,
}

struct Input<'a> {
    update: &'a Update,
    policy: Policy,
    source: Source,
    workers: Vec<Arc<Worker>>,
}

fn build(previous: Option<&Snapshot>, input: Input<'_>) -> Snapshot {
    let Input { update, policy, source, workers } = input;
    let rules: Vec<_> = workers.iter().map(|worker| policy.worker(&worker.name)).collect();
    for worker in &workers {
        worker.breaker.configure(policy.worker_breaker.as_ref());
    }
    let parts = Parts {
        previous,
        weights: rules.iter().map(|rule| rule.weight).collect(),
        workers: &workers,
        keys: &update.session_keys,
    };
    let routes = policy.routes.iter().map(|route| Arc::new(parts.route(route))).collect();
    let protocols = rules.iter().map(|rule| rule.protocol).collect();
    let weights = parts.weights;
    let keys = update.session_keys.clone();
    let (version, merged) = (update.version.clone(), update.policy.clone());
    Snapshot { version, source, policy, merged, keys, workers, weights, protocols, routes }
}

/// What the routes of a snapshot are built from.
struct Parts<'a> {
    previous: Option<&'a Snapshot>,
    weights: Vec<u32>,
    workers: &'a [Arc<Worker>],
    keys: &'a KeyRing,
}

impl Parts<'_> {
    fn route(&self, policy: &effective::Route) -> Route {
        let previous = self.previous_route(&policy.name);
        Route {
            balance: self.balance(policy, previous),
            limits: policy.limits.iter().map(|limit| limit_after(previous, limit)).collect(),
            cookie: policy.session.as_ref().and_then(|session| Cookie::new(session, self.keys)).map(Arc::new),
            slot: metrics::route_slot(&policy.name),
            deadline_header: policy.timeout.request_header.as_ref().and_then(|name| name.parse().ok()),
            least_retries: LeastRate::default(),
            least_hedges: LeastRate::default(),
            policy: policy.clone(),
        }
    }

    fn previous_route(&self, name: &str) -> Option<&Route> {
        let routes = &self.previous?.routes;
        routes.iter().find(|route| route.policy.name == name).map(AsRef::as_ref)
    }

    /// The same strategy over the same workers and weights stays the same object: its turn is not lost.
    fn balance(&self, policy: &effective::Route, previous: Option<&Route>) -> Arc<dyn Balance> {
        if let (Some(snapshot), Some(route)) = (self.previous, previous) {
            let same_workers = snapshot.workers.iter().map(|w| w.id).eq(self.workers.iter().map(|w| w.id));
            let same_strategy = route.policy.load_balancer == policy.load_balancer;
            if same_strategy && same_workers && snapshot.weights == self.weights {
                return route.balance.clone();
            }
        }
        let loads = self.workers.iter().map(|worker| worker.load.clone());
        let members: Vec<_> =
            loads.zip(&self.weights).map(|(load, weight)| Member { weight: *weight, load }).collect();
        balance::build(policy.load_balancer, &members)
    }
}

fn limit_after(previous: Option<&Route>, limit: &effective::Limit) -> Arc<TokenBucket> {
    let before =
        previous.and_then(|route| route.limits.iter().find(|bucket| bucket.limit().name == limit.name));
    match before {
        Some(bucket) if bucket.limit() == limit => bucket.clone(),
        _ => Arc::new(TokenBucket::next(before.map(AsRef::as_ref), limit)),
    }
}
