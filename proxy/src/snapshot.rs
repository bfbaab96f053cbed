//! The immutable view that one request sees: the policy, made into the parts that enforce it.
//!
//! `next` is pure and says what survives a change: limiter buckets and strategies whose definition is the same
//! are the same objects, workers keep their breakers, and the same policy pushed again changes nothing.

mod allowance;
mod breakers;
mod choice;
mod seen;
mod spillover;
mod switch;
mod versions;
mod warnings;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use http::HeaderName;
use outrigger_policy::drain::PodDrain;
use outrigger_policy::effective::{self, BreakerName, Policy, WorkerProtocol};
use outrigger_policy::merge::{Merged, Origin};
use outrigger_policy::wire::{CanaryShare, KeyRing, Update};
use outrigger_policy::{Violation, compile};
use serde::Serialize;

use crate::balance::measure::Measure;
use crate::balance::{self, Balance, Member};
use crate::breaker::{Gate, Pool};
use crate::canary::Canary;
use crate::metrics;
use crate::route;
use crate::session::Cookie;
use crate::siblings::Siblings;
use crate::worker::Worker;

pub use self::allowance::Allowance;
pub use self::choice::Wish;
pub use self::seen::Seen;
pub use self::switch::Switch;
use self::versions::Weighted;

/// Where the policy in force came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// No policy came yet, and it is not settled that there is none: no request is served.
    Awaited,
    /// There is no policy: the defaults.
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
    /// Unique among the snapshots of the process.
    pub serial: u64,
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
    /// Which workers the pod itself wants drained.
    pod_drain: Option<PodDrain>,
    /// Splits requests between two versions, while one takes over from the other.
    pub canary: Option<Arc<Canary>>,
    /// Every worker, in the order of the settings.
    pub workers: Vec<Arc<Worker>>,
    /// The names of the workers that this process starts: they are there as soon as they accept connections.
    pub awaited: Arc<[String]>,
    /// The weight of each worker.
    pub weights: Vec<u32>,
    /// What a request to each worker costs.
    pub costs: Vec<u32>,
    /// The protocol of each worker.
    pub protocols: Vec<WorkerProtocol>,
    /// The protocol of all workers, where it is the same.
    same_protocol: Option<WorkerProtocol>,
    /// The pods beside this one. Their places in a choice come after those of the workers.
    pub siblings: Arc<Siblings>,
    /// What sessions know the workers by.
    session_ids: Vec<u64>,
    /// The same on routes that reach siblings; empty where this instance has no name.
    session_ids_beside_siblings: Vec<u64>,
    /// In order of matching; the last matches everything.
    pub routes: Vec<Arc<Route>>,
    /// Finds the route of a request, of all but the last.
    pub index: route::Index,
    /// What is valid in the policy and yet cannot be meant for these workers.
    pub warnings: Vec<Violation>,
    /// Strategies put in force for a while, over what the policy says.
    pub switches: Vec<Switch>,
    /// The breaker in front of all workers.
    pub service: Arc<Gate>,
    /// What the workers' breakers know of each other.
    pool: Arc<Pool>,
    /// What the requests of all routes count against that do not say it themselves.
    allowance: Allowance,
}

/// One kind of requests, made into the parts that treat it.
pub struct Route {
    /// What the policy says.
    pub policy: effective::Route,
    /// Chooses a worker; where the scope is the workload, a sibling too.
    pub balance: Arc<dyn Balance>,
    /// Chooses among the workers of the pod.
    local: Arc<dyn Balance>,
    /// Choose a member of the old version and one of the new, while one takes over from the other. Each has turns of
    /// its own: one strategy that is asked about now these and now those would skip the turns of the others.
    by_version: Option<[Weighted; 2]>,
    /// What its requests count against.
    pub allowance: Allowance,
    /// Sticky sessions, if there are any.
    pub cookie: Option<Arc<Cookie>>,
    /// Its breaker.
    pub gate: Arc<Gate>,
    /// Its place among the routes.
    pub place: usize,
    /// The route's place in the metrics.
    pub slot: usize,
    /// The header with which a client says how long it waits.
    pub deadline_header: Option<HeaderName>,
}

impl Snapshot {
    /// What is in force before any policy came.
    pub fn initial(workers: Vec<Arc<Worker>>, siblings: Siblings) -> Self {
        let update = Update::new(Merged::default(), KeyRing::default());
        let policy =
            compile(&update.policy.spec).unwrap_or_else(|_| unreachable!("the default spec is valid"));
        let siblings = Arc::new(siblings);
        let (source, switches) = (Source::Default, Vec::new());
        build(None, Input { update: &update, policy, source, workers, siblings, switches })
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
        let siblings = self.siblings.clone();
        Ok(build(Some(self), Input { update, policy, source, workers, siblings, switches: Vec::new() }))
    }

    /// The same policy over other workers.
    pub fn with_workers(&self, workers: Vec<Arc<Worker>>) -> Self {
        self.with(workers, self.siblings.clone())
    }

    /// The same policy beside other siblings.
    pub fn with_siblings(&self, siblings: Siblings) -> Self {
        self.with(self.workers.clone(), Arc::new(siblings))
    }

    fn with(&self, workers: Vec<Arc<Worker>>, siblings: Arc<Siblings>) -> Self {
        let update = self.update();
        let (policy, source, switches) = (self.policy.clone(), self.source, self.switches.clone());
        build(Some(self), Input { update: &update, policy, source, workers, siblings, switches })
    }

    /// The same policy with other strategies put in force over it.
    pub fn with_switches(&self, switches: Vec<Switch>) -> Self {
        let update = self.update();
        // It is in force, so it compiles; were it not so, what is in force stays.
        let policy = compile(&update.policy.spec).unwrap_or_else(|_| self.policy.clone());
        let (source, workers, siblings) = (self.source, self.workers.clone(), self.siblings.clone());
        build(Some(self), Input { update: &update, policy, source, workers, siblings, switches })
    }

    /// Whether the strategy of the route of this name is not the policy's.
    pub fn is_switched(&self, route: &str) -> bool {
        self.switches.iter().any(|switch| switch.is_for(route))
    }

    /// What was applied.
    pub fn update(&self) -> Update {
        Update {
            version: self.version.clone(),
            policy: self.merged.clone(),
            session_keys: self.keys.clone(),
            canary: self.share.clone(),
            drain: self.pod_drain.clone(),
        }
    }

    /// Whether the policy drains this worker, and whether the pod does.
    pub fn drains(&self, worker: &str) -> [bool; 2] {
        let by_pod = self.pod_drain.as_ref().is_some_and(|drain| drain.includes(worker));
        [self.policy.worker(worker).drain, by_pod]
    }

    /// Which policy each section came from.
    pub fn origins(&self) -> &BTreeMap<String, Origin> {
        &self.merged.origins
    }

    /// The protocol of a worker. Siblings speak HTTP/2 with each other.
    pub fn protocol(&self, worker: &Worker) -> WorkerProtocol {
        if worker.sibling.is_some() {
            return WorkerProtocol::H2c;
        }
        if let Some(protocol) = self.same_protocol {
            return protocol;
        }
        let place = self.workers.iter().position(|other| other.id == worker.id);
        place.map_or(WorkerProtocol::Auto, |place| self.protocols[place])
    }

    /// Whether the service's breaker is half-open: then is no time for retries.
    pub fn service_half_open(&self) -> bool {
        self.service.half_open()
    }

    /// The breakers of the service and of every route.
    pub fn gates(&self) -> impl Iterator<Item = &Arc<Gate>> {
        std::iter::once(&self.service).chain(self.routes.iter().map(|route| &route.gate))
    }

    /// When the first open breaker lets a request through again; a second where there is none.
    pub fn retry_after(&self, now: Instant) -> Duration {
        let open = self.workers.iter().filter_map(|worker| worker.breaker.retry_after(now));
        open.min().unwrap_or(Duration::from_secs(1)).max(Duration::from_secs(1))
    }
}

struct Input<'a> {
    update: &'a Update,
    policy: Policy,
    source: Source,
    workers: Vec<Arc<Worker>>,
    siblings: Arc<Siblings>,
    switches: Vec<Switch>,
}

static SERIAL: AtomicU64 = AtomicU64::new(0);

fn build(previous: Option<&Snapshot>, input: Input<'_>) -> Snapshot {
    let Input { update, mut policy, source, workers, siblings, switches } = input;
    switch::put_in_force(&switches, &mut policy);
    let rules: Vec<_> = workers.iter().map(|worker| policy.worker(&worker.name)).collect();
    let measure = Arc::new(Measure::of(&policy));
    for worker in workers.iter().chain(siblings.members()) {
        worker.load.configure(&measure);
    }
    let default = policy.routes.last().unwrap_or_else(|| unreachable!("`default` is always there"));
    let allowance = Allowance::of_policy(previous.map(|previous| &previous.allowance), default);
    let mut parts = Parts {
        previous,
        previous_routes: routes_by_name(previous),
        weights: rules.iter().map(|rule| rule.weight).collect(),
        costs: rules.iter().map(|rule| rule.cost).collect(),
        by_version: None,
        allowance: allowance.clone(),
        workers: &workers,
        siblings: &siblings,
        policy: &policy,
        keys: &update.session_keys,
    };
    parts.by_version = parts.weights_by_version(&rules);
    let canary = parts.canary(&rules, update.canary.as_ref());
    let routes: Vec<_> =
        policy.routes.iter().enumerate().map(|(place, route)| Arc::new(parts.route(place, route))).collect();
    let (service, pool) = breakers::configured(previous, &policy, &workers, &siblings, &routes);
    let awaited = previous.map(|previous| previous.awaited.clone()).unwrap_or_default();
    let warnings = warnings::of(&policy, update.drain.as_ref(), &warnings::names(&workers, &awaited));
    let protocols: Vec<_> = rules.iter().map(|rule| rule.protocol).collect();
    let same_protocol = protocols.first().filter(|first| protocols.iter().all(|one| one == *first)).copied();
    let (weights, costs) = (parts.weights, parts.costs);
    // A worker's name is known from the start, and so is the instance: the operator need not be there for these.
    let beside_siblings = workers.iter().filter_map(|worker| siblings.session_id(&worker.name)).collect();
    let session_ids = workers.iter().map(|worker| worker.session_id).collect();
    Snapshot {
        serial: SERIAL.fetch_add(1, Relaxed),
        same_protocol,
        version: update.version.clone(),
        source,
        index: route::Index::of(&policy),
        policy,
        merged: update.policy.clone(),
        keys: update.session_keys.clone(),
        share: update.canary.clone(),
        pod_drain: update.drain.clone(),
        canary,
        workers,
        awaited,
        weights,
        costs,
        protocols,
        siblings,
        session_ids,
        session_ids_beside_siblings: beside_siblings,
        routes,
        warnings,
        switches,
        service,
        pool,
        allowance,
    }
}

fn routes_by_name(snapshot: Option<&Snapshot>) -> HashMap<&str, &Route> {
    let routes = snapshot.into_iter().flat_map(|snapshot| &snapshot.routes);
    routes.map(|route| (route.policy.name.as_str(), &**route)).collect()
}

/// What the routes of a snapshot are built from.
struct Parts<'a> {
    previous: Option<&'a Snapshot>,
    previous_routes: HashMap<&'a str, &'a Route>,
    weights: Vec<u32>,
    costs: Vec<u32>,
    /// The weights of the old version's members and of the new one's: those of the other version have none.
    by_version: Option<[Vec<u32>; 2]>,
    allowance: Allowance,
    workers: &'a [Arc<Worker>],
    siblings: &'a Siblings,
    policy: &'a Policy,
    keys: &'a KeyRing,
}

impl Parts<'_> {
    fn route(&self, place: usize, policy: &effective::Route) -> Route {
        let previous = self.previous_routes.get(policy.name.as_str()).copied();
        let local = self.balance(policy, previous);
        Route {
            balance: self.spillover(policy, previous, &local),
            by_version: self.of_versions(policy, previous, &local),
            local,
            allowance: Allowance::of_route(&self.allowance, previous, policy),
            cookie: policy.session.as_ref().and_then(|session| Cookie::new(session, self.keys)).map(Arc::new),
            gate: previous.map_or_else(
                || Arc::new(Gate::new(BreakerName::Route(policy.name.clone()))),
                |previous| previous.gate.clone(),
            ),
            place,
            slot: metrics::route_slot(&policy.name),
            deadline_header: policy.timeout.request_header.as_ref().and_then(|name| name.parse().ok()),
            policy: policy.clone(),
        }
    }

    /// The same strategy over the same workers and weights stays the same object: its turn is not lost.
    fn balance(&self, policy: &effective::Route, previous: Option<&Route>) -> Arc<dyn Balance> {
        if let (Some(snapshot), Some(route)) = (self.previous, previous)
            && self.same_strategy(policy, route)
            && snapshot.weights == self.weights
        {
            return route.local.clone();
        }
        self.build(policy, &self.weights)
    }

    /// Whether the strategy is the same over the same workers.
    fn same_strategy(&self, policy: &effective::Route, previous: &Route) -> bool {
        let ids = |workers: &[Arc<Worker>]| workers.iter().map(|worker| worker.id).collect::<Vec<_>>();
        let same =
            |before: &Snapshot| ids(&before.workers) == ids(self.workers) && before.costs == self.costs;
        previous.policy.load_balancer == policy.load_balancer && self.previous.is_some_and(same)
    }

    fn build(&self, policy: &effective::Route, weights: &[u32]) -> Arc<dyn Balance> {
        let rules = weights.iter().zip(&self.costs);
        let member = |(worker, (weight, cost)): (&Arc<Worker>, (&u32, &u32))| Member {
            key: worker.session_id,
            weight: *weight,
            cost: *cost,
            load: worker.load.clone(),
        };
        let members: Vec<_> = self.workers.iter().zip(rules).map(member).collect();
        balance::build(&policy.load_balancer, &members)
    }
}

#[cfg(test)]
mod tests;
