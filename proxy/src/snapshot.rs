//! The immutable view that one request sees: the policy, made into the parts that enforce it.
//!
//! `next` is pure and says what survives a change: limiter buckets and strategies whose definition is the same
//! are the same objects, workers keep their breakers, and the same policy pushed again changes nothing.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::HeaderMap;
use outrigger_policy::effective::{self, Policy, WorkerProtocol};
use outrigger_policy::merge::{Merged, Origin};
use outrigger_policy::wire::{CanaryShare, KeyRing, Update};
use outrigger_policy::{Violation, compile};
use serde::Serialize;

use crate::balance::{self, Balance, Member, Usable};
use crate::canary::{self, Canary, Lane};
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
    /// How far the operator says the canary is.
    share: Option<CanaryShare>,
    /// Splits requests between two versions, while one takes over from the other.
    pub canary: Option<Arc<Canary>>,
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
    /// Choose a worker of the old version and one of the new, while one takes over from the other. Each has turns of
    /// its own: one strategy that is asked about now these and now those would skip the turns of the others.
    by_version: Option<[Weighted; 2]>,
    /// Every limit that a request must pass.
    pub limits: Vec<Arc<TokenBucket>>,
    /// Sticky sessions, if there are any.
    pub cookie: Option<Arc<Cookie>>,
    /// The route's place in the metrics.
    pub slot: usize,
}

/// A strategy and the weights it was made of.
#[derive(Clone)]
struct Weighted {
    weights: Vec<u32>,
    balance: Arc<dyn Balance>,
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
        Update {
            version: self.version.clone(),
            policy: self.merged.clone(),
            session_keys: self.keys.clone(),
            canary: self.share.clone(),
        }
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
        let canary = self.canary.as_deref();
        let pinned = wish.pinned.and_then(|session_id| self.place_of(session_id));
        let pinned = pinned.filter(|i| canary.is_none_or(|canary| canary.keeps(*i, wish.lane)));
        if let Some(i) = pinned.filter(|i| wish.usable.contains(*i)) {
            match self.acquire(i, wish.lane, now) {
                Some(permit) => return Some(permit),
                None => wish.usable.remove(i),
            }
        }
        loop {
            let i = match (canary, &route.by_version) {
                (Some(canary), Some(by_version)) => {
                    let (usable, new) = canary.narrow(wish.usable, wish.lane);
                    by_version[usize::from(new)].balance.pick(&usable, wish.random)?
                }
                _ => route.balance.pick(wish.usable, wish.random)?,
            };
            match self.acquire(i, wish.lane, now) {
                Some(permit) => return Some(permit),
                None => wish.usable.remove(i),
            }
        }
    }

    /// The permit of the worker at this place; what comes of it counts for its version.
    fn acquire(&self, place: usize, lane: Lane, now: Instant) -> Option<Permit> {
        let permit = self.workers[place].acquire(now)?;
        let tally = self.canary.as_ref().and_then(|canary| canary.tally(place, lane));
        Some(permit.counted(tally))
    }

    /// Which version a request goes to, while one takes over from the other.
    pub fn lane(&self, headers: &HeaderMap, client: IpAddr) -> Lane {
        self.canary.as_ref().map_or(Lane::Old, |canary| canary.lane(headers, client, fastrand::u64(..)))
    }

    fn place_of(&self, session_id: u64) -> Option<usize> {
        self.workers.iter().position(|worker| worker.session_id == session_id)
    }

    /// Takes a worker out of those that may be chosen for a request: it was tried.
    pub fn exclude(&self, usable: &mut Usable, worker: &Worker) {
        if let Some(i) = self.workers.iter().position(|other| other.id == worker.id) {
            usable.remove(i);
        }
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
    /// The version it is for.
    pub lane: Lane,
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
        by_version: policy.canary.as_ref().map(|canary| by_version(&rules, &canary.version)),
        workers: &workers,
        keys: &update.session_keys,
    };
    let routes = policy.routes.iter().map(|route| Arc::new(parts.route(route))).collect();
    let protocols = rules.iter().map(|rule| rule.protocol).collect();
    let weights = parts.weights;
    let keys = update.session_keys.clone();
    let members: Vec<_> = rules
        .iter()
        .map(|rule| canary::Member { version: rule.version.as_deref(), weight: rule.weight })
        .collect();
    let before = previous.and_then(|previous| previous.canary.as_deref());
    let canary =
        policy.canary.as_ref().map(|rules| Canary::next(before, rules, update.canary.as_ref(), &members));
    let (share, canary) = (update.canary.clone(), canary.map(Arc::new));
    let (version, merged) = (update.version.clone(), update.policy.clone());
    Snapshot { version, source, policy, merged, keys, share, canary, workers, weights, protocols, routes }
}

/// What the routes of a snapshot are built from.
struct Parts<'a> {
    previous: Option<&'a Snapshot>,
    weights: Vec<u32>,
    /// The weights of the old version's workers and of the new one's: those of the other version have none.
    by_version: Option<[Vec<u32>; 2]>,
    workers: &'a [Arc<Worker>],
    keys: &'a KeyRing,
}

impl Parts<'_> {
    fn route(&self, policy: &effective::Route) -> Route {
        let previous = self.previous_route(&policy.name);
        Route {
            balance: self.balance(policy, previous),
            by_version: self.by_version.as_ref().map(|weights| {
                [0, 1].map(|version| self.of_version(policy, previous, (version, &weights[version])))
            }),
            limits: policy.limits.iter().map(|limit| limit_after(previous, limit)).collect(),
            cookie: policy.session.as_ref().and_then(|session| Cookie::new(session, self.keys)).map(Arc::new),
            slot: metrics::route_slot(&policy.name),
            policy: policy.clone(),
        }
    }

    fn previous_route(&self, name: &str) -> Option<&Route> {
        let routes = &self.previous?.routes;
        routes.iter().find(|route| route.policy.name == name).map(AsRef::as_ref)
    }

    /// The same strategy over the same workers and weights stays the same object: its turn is not lost.
    fn balance(&self, policy: &effective::Route, previous: Option<&Route>) -> Arc<dyn Balance> {
        if let (Some(snapshot), Some(route)) = (self.previous, previous)
            && self.same_strategy(policy, route)
            && snapshot.weights == self.weights
        {
            return route.balance.clone();
        }
        self.build(policy, &self.weights)
    }

    fn of_version(
        &self,
        policy: &effective::Route,
        previous: Option<&Route>,
        (version, weights): (usize, &Vec<u32>),
    ) -> Weighted {
        let before = previous.filter(|route| self.same_strategy(policy, route));
        let before = before.and_then(|route| route.by_version.as_ref()).map(|before| &before[version]);
        match before.filter(|before| before.weights == *weights) {
            Some(same) => same.clone(),
            None => Weighted { weights: weights.clone(), balance: self.build(policy, weights) },
        }
    }

    /// Whether the strategy is the same over the same workers.
    fn same_strategy(&self, policy: &effective::Route, previous: &Route) -> bool {
        let ids = |workers: &[Arc<Worker>]| workers.iter().map(|worker| worker.id).collect::<Vec<_>>();
        previous.policy.load_balancer == policy.load_balancer
            && self.previous.is_some_and(|snapshot| ids(&snapshot.workers) == ids(self.workers))
    }

    fn build(&self, policy: &effective::Route, weights: &[u32]) -> Arc<dyn Balance> {
        let loads = self.workers.iter().map(|worker| worker.load.clone());
        let members: Vec<_> =
            loads.zip(weights).map(|(load, weight)| Member { weight: *weight, load }).collect();
        balance::build(policy.load_balancer, &members)
    }
}

/// The weights of each version's workers, the old one's first.
fn by_version(rules: &[effective::WorkerRule], new: &str) -> [Vec<u32>; 2] {
    [false, true].map(|of_new| {
        let of_version = |rule: &effective::WorkerRule| (rule.version.as_deref() == Some(new)) == of_new;
        rules.iter().map(|rule| if of_version(rule) { rule.weight } else { 0 }).collect()
    })
}

fn limit_after(previous: Option<&Route>, limit: &effective::Limit) -> Arc<TokenBucket> {
    let before =
        previous.and_then(|route| route.limits.iter().find(|bucket| bucket.limit().name == limit.name));
    match before {
        Some(bucket) if bucket.limit() == limit => bucket.clone(),
        _ => Arc::new(TokenBucket::next(before.map(AsRef::as_ref), limit)),
    }
}
