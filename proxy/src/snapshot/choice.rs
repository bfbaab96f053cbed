//! Which worker a request goes to: who may be chosen, and who is.

use std::sync::Arc;
use std::time::Instant;

use outrigger_policy::effective::Breaker;

use super::{Route, Snapshot};
use crate::balance::{Balance, Choice, Usable};
use crate::breaker::any_takes_a_share;
use crate::canary::Lane;
use crate::health::acceptance::Acceptance;
use crate::worker::{Permit, Worker};

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
    /// The hash of the request's key, for strategies by key.
    pub key: Option<u64>,
}

impl Snapshot {
    /// Which workers of the pod may be sent a request now.
    pub fn usable(&self, now: Instant) -> Usable {
        let usable = self.admitting(now);
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
        if !any_takes_a_share() {
            return None;
        }
        let mut taking = usable.clone();
        for i in usable.iter() {
            let random = random.wrapping_add(i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            if self.at(i).is_some_and(|worker| !worker.breaker.takes_share(now, random ^ random >> 32)) {
                taking.remove(i);
            }
        }
        (!taking.is_empty() && taking != *usable).then_some(taking)
    }

    /// Chooses a worker and takes its permit: the session's worker where it is usable, else the strategy's choice.
    /// A lost race for a half-open breaker's last permit takes that worker out and chooses again.
    pub fn choose(&self, route: &Route, wish: Wish<'_>, now: Instant) -> Option<Permit> {
        let pinned = wish.pinned.and_then(|session_id| self.place_of(route, session_id));
        // A worker that is drained still takes the requests of its sessions.
        let takes = |i: &usize| {
            wish.usable.contains(*i)
                || self.workers.get(*i).is_some_and(|worker| self.serves_its_sessions(worker, now))
        };
        let keeps = |i: &usize| self.canary.as_ref().is_none_or(|canary| canary.keeps(*i, wish.lane));
        if let Some(i) = pinned.filter(keeps).filter(takes) {
            match self.acquire(i, wish.lane, now) {
                Some(permit) => return Some(permit),
                None => wish.usable.remove(i),
            }
        }
        loop {
            let i = self.pick(route, &wish, now)?;
            match self.acquire(i, wish.lane, now) {
                Some(permit) => return Some(permit),
                None => wish.usable.remove(i),
            }
        }
    }

    /// The strategy's choice: of the request's version, while one takes over from the other. Where the versions stand
    /// side by side in each pod, a sibling is chosen then only where the pod has no worker for it, and splits its
    /// requests itself.
    fn pick(&self, route: &Route, wish: &Wish<'_>, now: Instant) -> Option<usize> {
        let (Some(canary), Some(by_version)) = (&self.canary, &route.by_version) else {
            return self.pick_of(wish.usable, route.balance.as_ref(), wish, now);
        };
        let Some((usable, new)) = canary.narrow(wish.usable, wish.lane) else {
            return self.pick_of(wish.usable, route.balance.as_ref(), wish, now);
        };
        let version = by_version[usize::from(new)].balance.as_ref();
        self.pick_of(&usable, version, wish, now).or_else(|| {
            if canary.by_pods() {
                return None;
            }
            let siblings = wish.usable.iter().filter(|i| self.workers.len() <= *i).collect();
            self.pick_of(&siblings, route.balance.as_ref(), wish, now)
        })
    }

    fn pick_of(
        &self,
        usable: &Usable,
        balance: &dyn Balance,
        wish: &Wish<'_>,
        now: Instant,
    ) -> Option<usize> {
        let pick =
            |usable: &Usable| balance.pick(&Choice { usable, now, random: wish.random, key: wish.key });
        let taking = self.taking_shares(usable, wish.random, now);
        taking.and_then(|taking| pick(&taking)).or_else(|| pick(usable))
    }

    /// The permit of a usable worker. One that is usable although its breaker is open is so because too few are.
    /// What comes of it counts for the worker's version.
    fn acquire(&self, place: usize, lane: Lane, now: Instant) -> Option<Permit> {
        let worker = self.at(place)?;
        let passed_over = || match self.policy.panic_threshold {
            0 => None,
            _ => worker.pass_over(now).filter(|_| self.unless_too_few(self.admitting(now)).contains(place)),
        };
        let permit = worker.acquire(now).or_else(passed_over)?;
        let canary = self.canary.as_ref().filter(|canary| canary.by_pods() || worker.sibling.is_none());
        Some(permit.counted(canary.and_then(|canary| canary.tally(place, lane))))
    }

    fn admitting(&self, now: Instant) -> Usable {
        let places = self.workers.iter().enumerate();
        let admitting: Usable = places.filter(|(_, worker)| worker.admits(now)).map(|(i, _)| i).collect();
        if self.asks_workers() {
            return admitting;
        }
        let accepts = |i: &usize| self.workers[*i].acceptance() == Acceptance::Accepting;
        let accepting: Usable = admitting.iter().filter(accepts).collect();
        // Where none does, one may be back since it was asked.
        if accepting.is_empty() { admitting } else { accepting }
    }

    /// Whether a breaker or a health check says which worker is down. Where none does, what the proxy's own connections met
    /// does.
    fn asks_workers(&self) -> bool {
        self.policy.health_check.is_some()
            || self.policy.worker_breaker.as_ref().is_some_and(Breaker::is_enforced)
    }

    fn serves_its_sessions(&self, worker: &Worker, now: Instant) -> bool {
        worker.serves_its_sessions(now)
            && (self.asks_workers() || worker.acceptance() == Acceptance::Accepting)
    }

    fn place_of(&self, route: &Route, session_id: u64) -> Option<usize> {
        let own = self.session_ids(route).iter().position(|id| *id == session_id);
        if own.is_some() || route.policy.spillover.is_none() {
            return own;
        }
        let holds = |worker: &Arc<Worker>| {
            worker.sibling.as_ref().is_some_and(|sibling| sibling.session_ids.contains(&session_id))
        };
        Some(self.workers.len() + self.siblings.members().iter().position(holds)?)
    }

    /// What sessions of a route know a worker of the pod by.
    pub fn session_id(&self, route: &Route, worker: &Worker) -> u64 {
        if route.policy.spillover.is_none() {
            return worker.session_id;
        }
        let place = self.session_ids.iter().position(|id| *id == worker.session_id);
        place.map_or(worker.session_id, |place| self.session_ids(route)[place])
    }

    /// The same of every worker of the pod.
    fn session_ids(&self, route: &Route) -> &[u64] {
        if route.policy.spillover.is_none() || self.session_ids_beside_siblings.is_empty() {
            &self.session_ids
        } else {
            &self.session_ids_beside_siblings
        }
    }

    /// Takes a worker out of those that may be chosen for a request: it was tried.
    pub fn exclude(&self, usable: &mut Usable, id: u32) {
        let mut all = self.workers.iter().chain(self.siblings.members());
        if let Some(i) = all.position(|worker| worker.id == id) {
            usable.remove(i);
        }
    }

    /// Keeps those of the workers that may be chosen which `suit`.
    pub fn keep(&self, usable: &mut Usable, suit: impl Fn(&Worker) -> bool) {
        *usable = usable.iter().filter(|i| self.at(*i).is_some_and(|worker| suit(worker))).collect();
    }

    /// The worker at a place of the choice.
    fn at(&self, place: usize) -> Option<&Arc<Worker>> {
        self.workers.get(place).or_else(|| self.siblings.members().get(place - self.workers.len()))
    }
}
