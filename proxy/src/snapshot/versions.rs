//! Two versions, while one takes over from the other: of the workers of each pod, or of whole pods.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use http::HeaderMap;
use outrigger_policy::effective::{self, WorkerRule};
use outrigger_policy::wire::CanaryShare;

use super::{Parts, Route, Snapshot};
use crate::balance::Balance;
use crate::canary::{Canary, Lane, Member};
use crate::siblings::Arrival;

/// A strategy and the weights it was made of.
#[derive(Clone)]
pub(super) struct Weighted {
    weights: Vec<u32>,
    pub(super) balance: Arc<dyn Balance>,
}

impl Snapshot {
    /// Which version a request goes to, while one takes over from the other. Where pods have versions, one that cannot go
    /// to whichever pod is of its version goes to whoever is there.
    pub fn lane(
        &self,
        headers: &HeaderMap,
        client: IpAddr,
        (arrival, route): (Arrival, &Route),
        now: Instant,
    ) -> Lane {
        let Some(canary) = &self.canary else { return Lane::Old };
        let reaches = || {
            arrival == Arrival::Client && route.policy.spillover.is_some() && self.siblings.tell_versions(now)
        };
        if canary.by_pods() && !reaches() {
            return Lane::Any;
        }
        canary.lane(headers, client, fastrand::u64(..))
    }
}

impl Parts<'_> {
    /// The canary of the policy, if it has one.
    pub(super) fn canary(&self, rules: &[WorkerRule], share: Option<&CanaryShare>) -> Option<Arc<Canary>> {
        let canary = self.policy.canary.as_ref()?;
        let before = self.previous.and_then(|previous| previous.canary.as_deref());
        Some(Arc::new(Canary::next(before, canary, share, &self.members(canary, rules))))
    }

    /// The weights of each version's members, the old one's first: those of the other version have none.
    pub(super) fn weights_by_version(&self, rules: &[WorkerRule]) -> Option<[Vec<u32>; 2]> {
        let canary = self.policy.canary.as_ref()?;
        let members = self.members(canary, rules);
        Some([false, true].map(|of_new| {
            let of_version = |member: &Member<'_>| (member.version == Some(&canary.version)) == of_new;
            members.iter().map(|member| if of_version(member) { member.weight } else { 0 }).collect()
        }))
    }

    /// The workers of the pod and, where pods have versions, its siblings after them.
    fn members<'a>(&'a self, canary: &effective::Canary, rules: &'a [WorkerRule]) -> Vec<Member<'a>> {
        if canary.pod_label.is_none() {
            let member =
                |rule: &'a WorkerRule| Member { version: rule.version.as_deref(), weight: rule.weight };
            return rules.iter().map(member).collect();
        }
        let here = self.workers.iter().map(|_| self.siblings.pod_version());
        let siblings = self.siblings.members().iter();
        let there = siblings.map(|member| member.sibling.as_ref()?.version.as_deref());
        let weighted = here.chain(there).zip(self.all_weights());
        weighted.map(|(version, weight)| Member { version, weight }).collect()
    }

    /// The strategies of a route for the old version and for the new one; where pods have versions, only of a route that
    /// leaves the pod. The same strategy over the same members and weights stays the same object.
    pub(super) fn of_versions(
        &self,
        policy: &effective::Route,
        previous: Option<&Route>,
        local: &Arc<dyn Balance>,
    ) -> Option<[Weighted; 2]> {
        let weights = self.by_version.as_ref()?;
        let by_pods = self.policy.canary.as_ref().is_some_and(|canary| canary.pod_label.is_some());
        let settings = if by_pods { Some(policy.spillover?) } else { None };
        let same = |route: &&Route| match by_pods {
            true => self.same_around(policy, route, local),
            false => self.same_strategy(policy, route),
        };
        let before = previous.filter(same).and_then(|route| route.by_version.as_ref());
        let build = |weights: &[u32]| match settings {
            Some(settings) => self.around(policy, settings, local, weights),
            None => self.build(policy, weights),
        };
        Some([0, 1].map(|version| {
            let weights = &weights[version];
            match before.map(|before| &before[version]).filter(|before| before.weights == *weights) {
                Some(same) => same.clone(),
                None => Weighted { weights: weights.clone(), balance: build(weights) },
            }
        }))
    }
}

#[cfg(test)]
mod tests;
