//! The immutable view that one request sees: the policy, made into the parts that enforce it.
//!
//! `next` is pure and says what survives a change: limiter buckets and strategies whose definition is the same
//! are the same objects, workers keep their breakers, and the same policy pushed again changes nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger_policy::effective::{self, BreakerName, Policy, WorkerProtocol};
use outrigger_policy::merge::{Merged, Origin};
use outrigger_policy::wire::{KeyRing, Update};
use outrigger_policy::{Violation, compile};
use serde::Serialize;

use crate::balance::{self, Balance, Member, Usable};
use crate::breaker::{Gate, Pool, PoolRules};
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
    /// The breaker in front of all workers.
    pub service: Arc<Gate>,
    /// What the workers' breakers know of each other.
    pool: Arc<Pool>,
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
    /// Its breaker.
    pub gate: Arc<Gate>,
    /// Its place among the routes.
    pub place: usize,
    /// The route's place in the metrics.
    pub slot: usize,
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
        if self.policy.panic_threshold != 0 { self.unless_too_few(usable) } else { usable }
    }

    /// All workers in service, where too small a part of them is let through by their breakers.
    fn unless_too_few(&self, usable: Usable) -> Usable {
        let places = self.workers.iter().enumerate();
        let in_service: Usable = places.filter(|(_, w)| w.in_service()).map(|(i, _)| i).collect();
        let enough = in_service.len() * self.policy.panic_threshold as usize <= usable.len() * 100;
        if enough { usable } else { in_service }
    }

    /// Those of the workers that this request may go to while others have just come back: their share grows.
    fn taking_shares(&self, usable: &Usable, random: u64, now: Instant) -> Option<Usable> {
        let mut taking = usable.clone();
        for i in usable.iter() {
            let random = random.wrapping_add(i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            if !self.workers[i].breaker.takes_share(now, random ^ random >> 32) {
                taking.remove(i);
            }
        }
        (!taking.is_empty() && taking != *usable).then_some(taking)
    }

    /// Whether the service's breaker is half-open: then is no time for retries.
    pub fn service_half_open(&self) -> bool {
        self.service.half_open()
    }

    /// The breakers of the service and of every route.
    pub fn gates(&self) -> impl Iterator<Item = &Arc<Gate>> {
        std::iter::once(&self.service).chain(self.routes.iter().map(|route| &route.gate))
    }

    /// Chooses a worker and takes its permit: the session's worker where it is usable, else the strategy's choice.
    /// A lost race for a half-open breaker's last permit takes that worker out and chooses again.
    pub fn choose(&self, route: &Route, wish: Wish<'_>, now: Instant) -> Option<Permit> {
        let pinned = wish.pinned.and_then(|session_id| self.place_of(session_id));
        if let Some(i) = pinned.filter(|i| wish.usable.contains(*i)) {
            match self.acquire(i, now) {
                Some(permit) => return Some(permit),
                None => wish.usable.remove(i),
            }
        }
        if let Some(taking) = self.taking_shares(wish.usable, wish.random, now)
            && let Some(permit) = route.balance.pick(&taking, wish.random).and_then(|i| self.acquire(i, now))
        {
            return Some(permit);
        }
        loop {
            let i = route.balance.pick(wish.usable, wish.random)?;
            match self.acquire(i, now) {
                Some(permit) => return Some(permit),
                None => wish.usable.remove(i),
            }
        }
    }

    /// The permit of a usable worker. One that is usable although its breaker is open is so because too few are.
    fn acquire(&self, place: usize, now: Instant) -> Option<Permit> {
        let worker = &self.workers[place];
        let passed_over = || match self.policy.panic_threshold {
            0 => None,
            _ => worker.pass_over(now).filter(|_| self.unless_too_few(self.admitting(now)).contains(place)),
        };
        worker.acquire(now).or_else(passed_over)
    }

    fn admitting(&self, now: Instant) -> Usable {
        let places = self.workers.iter().enumerate();
        places.filter(|(_, worker)| worker.usable(now)).map(|(i, _)| i).collect()
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
        let open = self.workers.iter().filter_map(|worker| worker.breaker.retry_after(now));
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
    let now = Instant::now();
    let pool = previous.map_or_else(Arc::default, |previous| previous.pool.clone());
    pool.configure(PoolRules {
        members: workers.iter().map(|worker| worker.breaker.standing().clone()).collect(),
        max_open_percent: policy.max_open_percent,
        has_service_breaker: policy.service_breaker.as_ref().is_some_and(effective::Breaker::is_enforced),
    });
    for worker in &workers {
        worker.breaker.join(&pool);
        let held = policy.breaker_override(worker.breaker.name());
        worker.breaker.configure(policy.worker_breaker.as_ref(), held, now);
    }
    let service = previous
        .map_or_else(|| Arc::new(Gate::new(BreakerName::Service)), |previous| previous.service.clone());
    service.configure(policy.service_breaker.as_ref(), policy.breaker_override(service.name()), now);
    let parts = Parts {
        previous,
        weights: rules.iter().map(|rule| rule.weight).collect(),
        workers: &workers,
        keys: &update.session_keys,
    };
    let routes: Vec<_> =
        policy.routes.iter().enumerate().map(|(place, route)| Arc::new(parts.route(place, route))).collect();
    for route in &routes {
        let held = policy.breaker_override(route.gate.name());
        route.gate.configure(route.policy.breaker.as_ref(), held, now);
    }
    let protocols = rules.iter().map(|rule| rule.protocol).collect();
    let weights = parts.weights;
    let keys = update.session_keys.clone();
    let (version, merged) = (update.version.clone(), update.policy.clone());
    Snapshot { version, source, policy, merged, keys, workers, weights, protocols, routes, service, pool }
}

/// What the routes of a snapshot are built from.
struct Parts<'a> {
    previous: Option<&'a Snapshot>,
    weights: Vec<u32>,
    workers: &'a [Arc<Worker>],
    keys: &'a KeyRing,
}

impl Parts<'_> {
    fn route(&self, place: usize, policy: &effective::Route) -> Route {
        let previous = self.previous_route(&policy.name);
        Route {
            balance: self.balance(policy, previous),
            limits: policy.limits.iter().map(|limit| limit_after(previous, limit)).collect(),
            cookie: policy.session.as_ref().and_then(|session| Cookie::new(session, self.keys)).map(Arc::new),
            gate: previous.map_or_else(
                || Arc::new(Gate::new(BreakerName::Route(policy.name.clone()))),
                |previous| previous.gate.clone(),
            ),
            place,
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
