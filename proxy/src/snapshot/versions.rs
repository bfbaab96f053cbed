//! Two versions of the workers, while one takes over from the other.

use std::net::IpAddr;
use std::sync::Arc;

use http::HeaderMap;
use outrigger_policy::effective::{self, Policy, WorkerRule};
use outrigger_policy::wire::CanaryShare;

use super::{Parts, Route, Snapshot};
use crate::balance::Balance;
use crate::canary::{Canary, Lane, Member};

/// A strategy and the weights it was made of.
#[derive(Clone)]
pub(super) struct Weighted {
    weights: Vec<u32>,
    pub(super) balance: Arc<dyn Balance>,
}

impl Snapshot {
    /// Which version a request goes to, while one takes over from the other.
    pub fn lane(&self, headers: &HeaderMap, client: IpAddr) -> Lane {
        self.canary.as_ref().map_or(Lane::Old, |canary| canary.lane(headers, client, fastrand::u64(..)))
    }
}

/// The canary of a policy, if it has one.
pub(super) fn canary(
    previous: Option<&Snapshot>,
    policy: &Policy,
    rules: &[WorkerRule],
    share: Option<&CanaryShare>,
) -> Option<Arc<Canary>> {
    let canary = policy.canary.as_ref()?;
    let members: Vec<_> =
        rules.iter().map(|rule| Member { version: rule.version.as_deref(), weight: rule.weight }).collect();
    let before = previous.and_then(|previous| previous.canary.as_deref());
    Some(Arc::new(Canary::next(before, canary, share, &members)))
}

/// The weights of each version's workers, the old one's first.
pub(super) fn weights(rules: &[WorkerRule], new: &str) -> [Vec<u32>; 2] {
    [false, true].map(|of_new| {
        let of_version = |rule: &WorkerRule| (rule.version.as_deref() == Some(new)) == of_new;
        rules.iter().map(|rule| if of_version(rule) { rule.weight } else { 0 }).collect()
    })
}

impl Parts<'_> {
    /// The strategies of a route for the old version and for the new one. The same strategy over the same workers and
    /// weights stays the same object.
    pub(super) fn of_versions(
        &self,
        policy: &effective::Route,
        previous: Option<&Route>,
    ) -> Option<[Weighted; 2]> {
        let weights = self.by_version.as_ref()?;
        let before = previous.filter(|route| self.same_strategy(policy, route));
        let before = before.and_then(|route| route.by_version.as_ref());
        Some([0, 1].map(|version| {
            let weights = &weights[version];
            match before.map(|before| &before[version]).filter(|before| before.weights == *weights) {
                Some(same) => same.clone(),
                None => Weighted { weights: weights.clone(), balance: self.build(policy, weights) },
            }
        }))
    }
}
