//! The levels around a proxy: its own workers, siblings in its zone, all others.

use std::sync::Arc;
use std::time::Instant;

use outrigger_policy::effective::{self, HashAlgorithm, LoadBalancer, Strategy};

use super::{Parts, Route, Snapshot};
use crate::balance::{self, Balance, Level, Load, Member, Spillover, Usable};
use crate::canary::Lane;
use crate::siblings::{Arrival, Siblings};
use crate::worker::Worker;

/// The highest weight of a sibling.
const MAX_WEIGHT: u32 = 16;

impl Snapshot {
    /// Who may be sent a request that came from there: workers of the pod and, for a client's request of a route
    /// that reaches them, siblings. Nothing else ever puts a sibling among those that are chosen from.
    ///
    /// `usable` are the workers of the pod that may be sent one.
    pub fn candidates(&self, mut usable: Usable, arrival: Arrival, route: &Route, now: Instant) -> Usable {
        if arrival == Arrival::Client && route.policy.spillover.is_some() {
            for (i, worker) in self.siblings.members().iter().enumerate() {
                let reachable = worker.sibling.as_ref().is_some_and(|sibling| sibling.reachable(now));
                if reachable && worker.usable(now) {
                    usable.insert(self.workers.len() + i);
                }
            }
        }
        usable
    }

    /// Takes the workers of the pod out, if that leaves a sibling: the last attempt is not for them. Where pods have
    /// versions, it must be one of the version that the request goes to.
    pub fn leave_the_pod(&self, usable: &mut Usable, lane: Lane) {
        let by_pods = self.canary.as_ref().filter(|canary| canary.by_pods());
        let mut siblings = match by_pods.and_then(|canary| canary.narrow(usable, lane)) {
            Some((of_version, _)) => of_version,
            None => usable.clone(),
        };
        (0..self.workers.len()).for_each(|place| siblings.remove(place));
        if !siblings.is_empty() {
            *usable = siblings;
        }
    }
}

impl Parts<'_> {
    /// Where requests may leave the pod: the levels around it, unless nothing about them changed.
    pub(super) fn spillover(
        &self,
        policy: &effective::Route,
        previous: Option<&Route>,
        local: &Arc<dyn Balance>,
    ) -> Arc<dyn Balance> {
        let Some(settings) = policy.spillover else { return local.clone() };
        match previous.filter(|route| self.same_around(policy, route, local)) {
            Some(route) => route.balance.clone(),
            None => self.around(policy, settings, local, &self.all_weights()),
        }
    }

    /// Whether the levels around the pod are the same.
    pub(super) fn same_around(
        &self,
        policy: &effective::Route,
        previous: &Route,
        local: &Arc<dyn Balance>,
    ) -> bool {
        let Some(snapshot) = self.previous else { return false };
        let ids = |siblings: &Siblings| siblings.members().iter().map(|member| member.id).collect::<Vec<_>>();
        ids(&snapshot.siblings) == ids(self.siblings)
            && snapshot.siblings.zone() == self.siblings.zone()
            && snapshot.policy.workers == self.policy.workers
            && previous.policy.spillover == policy.spillover
            && Arc::ptr_eq(&previous.local, local)
    }

    /// The levels around the pod, of the members that have a weight among these.
    pub(super) fn around(
        &self,
        policy: &effective::Route,
        settings: effective::Spillover,
        local: &Arc<dyn Balance>,
        weights: &[u32],
    ) -> Arc<dyn Balance> {
        let all = self.workers.iter().chain(self.siblings.members());
        let loads: Vec<_> = all.clone().map(|worker| worker.load.clone()).collect();
        let keys: Vec<_> = all.map(|worker| worker.session_id).collect();
        let near = |place: usize| match self.siblings.members().get(place.wrapping_sub(self.workers.len())) {
            None => 0,
            Some(worker) => {
                let zone = worker.sibling.as_ref().map_or("", |sibling| &sibling.zone);
                if zone == self.siblings.zone() { 1 } else { 2 }
            }
        };
        let level = |nearness| {
            let weight = |place: usize| if near(place) == nearness { weights[place] } else { 0 };
            let members = loads.iter().enumerate();
            let member = |(place, load): (usize, &Arc<Load>)| Member {
                key: keys[place],
                weight: weight(place),
                cost: self.costs.get(place).copied().unwrap_or(1),
                load: load.clone(),
            };
            let members: Vec<_> = members.map(member).collect();
            let places = (0..loads.len()).filter(|place| weight(*place) != 0).collect();
            let strategy = match nearness {
                0 => local.clone(),
                _ => balance::build(&among_siblings(&policy.load_balancer), &members),
            };
            Level { places, strategy }
        };
        Arc::new(Spillover::new(settings, (0..3).map(level).collect(), loads))
    }

    /// The weights of the pod's workers, and of siblings: as those of all their workers together, in small numbers, for
    /// there may be many siblings and some strategies make room for each unit of weight.
    pub(super) fn all_weights(&self) -> Vec<u32> {
        let weight = |worker: &Arc<Worker>| match &worker.sibling {
            None => 0,
            Some(sibling) => sibling.workers.iter().map(|name| self.policy.worker(name).weight).sum(),
        };
        let siblings: Vec<_> = self.siblings.members().iter().map(weight).collect();
        let divisor = siblings.iter().copied().fold(0, gcd).max(1);
        let highest = siblings.iter().map(|weight| weight / divisor).max().unwrap_or(0).max(MAX_WEIGHT);
        let small = siblings.iter().map(|weight| (weight / divisor * MAX_WEIGHT).div_ceil(highest));
        self.weights.iter().copied().chain(small).collect()
    }
}

/// As the policy says, but that a ring has as many points for a sibling of the highest weight as for one unit of a worker's:
/// there may be hundreds of siblings.
fn among_siblings(policys: &LoadBalancer) -> LoadBalancer {
    let mut load_balancer = policys.clone();
    if let Strategy::ConsistentHash(settings) = &mut load_balancer.strategy
        && let HashAlgorithm::Ring(virtual_nodes) = &mut settings.algorithm
    {
        *virtual_nodes = virtual_nodes.div_ceil(MAX_WEIGHT);
    }
    load_balancer
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::time::Instant;

    use outrigger_policy::merge::Merged;
    use outrigger_policy::siblings::{Sibling, Siblings as List};
    use outrigger_policy::wire::{KeyRing, Update};
    use proptest::prelude::*;

    use crate::canary::Lane;
    use crate::siblings::{Arrival, Siblings};
    use crate::snapshot::{Snapshot, Source, Wish};
    use crate::worker::Worker;

    const SPEC: &str = "{loadBalancer: {scope: Workload}, routes: [{name: own, match: {path: {value: /own}}, loadBalancer: {}}]}";

    fn sibling(i: u16) -> Sibling {
        Sibling {
            instance: format!("uid-{i}"),
            pod: format!("web-{i}"),
            address: SocketAddr::from(([10, 0, 0, 1], i)),
            zone: String::from(["west", "east"][usize::from(i % 2)]),
            ready: true,
            workers: vec![String::from("worker-1"), String::from("worker-2")],
            version: None,
            workload: None,
        }
    }

    fn update(spec: &str) -> Update {
        let spec = serde_yaml::from_str(spec).expect("the test's YAML is a spec");
        Update::new(Merged { spec, ..Merged::default() }, KeyRing::default())
    }

    /// Pod 0 of `pods`, with two workers.
    fn snapshot(pods: u16) -> Snapshot {
        let siblings = Siblings::none(Some(String::from("uid-0")), std::sync::Arc::default());
        siblings.identity().install_for_tests();
        let list = List::new((0..pods).map(sibling));
        let siblings = siblings.after(list.change_from(None)).expect("a whole list applies");
        let workers = (1..=2).map(|i| Worker::new(&format!("worker-{i}"), ([127, 0, 0, 1], i).into()));
        let snapshot = Snapshot::initial(workers.collect(), siblings);
        let workers = snapshot.workers.clone();
        snapshot.next(&update(SPEC), Source::Operator, workers).expect("valid")
    }

    proptest! {
        /// What came from a sibling never goes to one: whoever is up, whatever the session says, however often it is
        /// chosen anew.
        #[test]
        fn what_came_from_a_sibling_stays_in_the_pod(
            pods in 1..6u16,
            up in any::<u8>(),
            pinned in prop::option::of(0..12usize),
            random in any::<u64>(),
        ) {
            let (snapshot, now) = (snapshot(pods), Instant::now());
            let members = snapshot.siblings.members();
            for (i, worker) in snapshot.workers.iter().chain(members).enumerate() {
                worker.set_healthy(up & (1 << i) != 0);
            }
            let all: Vec<u64> = snapshot
                .workers
                .iter()
                .map(|worker| snapshot.session_id(&snapshot.routes[1], worker))
                .chain(members.iter().flat_map(|m| m.sibling.as_ref().unwrap().session_ids.to_vec()))
                .collect();
            let pinned = pinned.and_then(|i| all.get(i).copied());
            for route in &snapshot.routes {
                let mut usable = snapshot.candidates(snapshot.usable(now), Arrival::Sibling, route, now);
                snapshot.leave_the_pod(&mut usable, Lane::Old);
                let mut tries = 0;
                loop {
                    let pinned = pinned.filter(|_| tries == 0); // as requests have it: its worker is the first
                    let wish = Wish { pinned, usable: &mut usable, random, key: None, lane: Lane::Old };
                    let Some(permit) = snapshot.choose(route, wish, now) else { break };
                    prop_assert!(permit.worker().sibling.is_none());
                    snapshot.exclude(&mut usable, permit.worker().id);
                    tries += 1;
                }
                prop_assert_eq!(tries, (up & 3).count_ones(), "each usable worker once");
            }
        }

        /// A client's request finds whoever is up, wherever; where the scope is the pod, nobody elsewhere.
        #[test]
        fn a_clients_request_goes_as_far_as_the_scope(pods in 1..6u16, up in any::<u8>(), random in any::<u64>()) {
            let (snapshot, now) = (snapshot(pods), Instant::now());
            let all = snapshot.workers.iter().chain(snapshot.siblings.members());
            let count = all.enumerate().map(|(i, worker)| {
                worker.set_healthy(up & (1 << i) != 0);
                u32::from(worker.healthy())
            });
            let count: u32 = count.sum();
            for (route, expected) in [(&snapshot.routes[0], (up & 3).count_ones()), (&snapshot.routes[1], count)] {
                let mut usable = snapshot.candidates(snapshot.usable(now), Arrival::Client, route, now);
                let mut tries = 0;
                while let Some(permit) =
                    snapshot.choose(route, Wish { pinned: None, usable: &mut usable, random, key: None, lane: Lane::Old }, now)
                {
                    snapshot.exclude(&mut usable, permit.worker().id);
                    tries += 1;
                }
                prop_assert_eq!(tries, expected);
            }
        }
    }

    #[test]
    fn a_session_goes_to_its_pod() {
        let (snapshot, now) = (snapshot(4), Instant::now());
        let route = &snapshot.routes[1];
        for member in snapshot.siblings.members() {
            for session in &member.sibling.as_ref().unwrap().session_ids {
                let mut usable = snapshot.candidates(snapshot.usable(now), Arrival::Client, route, now);
                let wish = Wish {
                    pinned: Some(*session),
                    usable: &mut usable,
                    random: 0,
                    key: None,
                    lane: Lane::Old,
                };
                assert_eq!(snapshot.choose(route, wish, now).expect("usable").worker().id, member.id);
            }
        }
        let own = snapshot.session_id(route, &snapshot.workers[1]);
        assert_ne!(own, snapshot.workers[1].session_id, "in each pod another");
        assert_eq!(
            snapshot.session_id(&snapshot.routes[0], &snapshot.workers[1]),
            snapshot.workers[1].session_id
        );
    }

    #[test]
    fn while_a_version_takes_over_a_sibling_is_chosen_only_where_the_pod_has_no_worker_for_the_request() {
        let before = snapshot(3);
        let spec = "{loadBalancer: {scope: Workload}, workers: [{name: worker-2, version: v2}],
            canary: {version: v2, steps: [{weight: 50}]}}";
        let snapshot = before.next(&update(spec), Source::Operator, before.workers.clone()).expect("valid");
        let (route, now) = (&snapshot.routes[0], Instant::now());
        let choose = |lane| {
            let mut usable = snapshot.candidates(snapshot.usable(now), Arrival::Client, route, now);
            let wish = Wish { pinned: None, usable: &mut usable, random: 7, key: None, lane };
            snapshot.choose(route, wish, now).expect("usable").worker().clone()
        };
        assert_eq!(choose(Lane::Old).id, snapshot.workers[0].id);
        assert_eq!(choose(Lane::New).id, snapshot.workers[0].id, "the new version has no share yet");
        assert_eq!(choose(Lane::Preview).id, snapshot.workers[1].id);
        snapshot.workers[0].set_healthy(false);
        assert!(choose(Lane::Old).sibling.is_some(), "not the version without a share");
    }

    #[test]
    fn the_same_again_changes_nothing_and_a_change_of_siblings_no_turn_in_the_pod() {
        let before = snapshot(3);
        let again = before.next(&update(SPEC), Source::Operator, before.workers.clone()).expect("valid");
        assert!(std::sync::Arc::ptr_eq(&before.routes[1].balance, &again.routes[1].balance));
        let list = List::new((0..5).map(sibling));
        let more = before.with_siblings(before.siblings.after(list.change_from(None)).expect("applies"));
        assert!(std::sync::Arc::ptr_eq(&before.routes[1].local, &more.routes[1].local));
        assert!(!std::sync::Arc::ptr_eq(&before.routes[1].balance, &more.routes[1].balance));
        assert!(
            std::sync::Arc::ptr_eq(&before.routes[0].balance, &more.routes[0].balance),
            "stays in the pod"
        );
    }
}
