//! What the policy allows once, however many routes there are: those that say nothing of their own share it.

use std::sync::Arc;

use outrigger_policy::effective;

use super::Route;
use crate::forward::budget::LeastRate;
use crate::limit::{Keys, TokenBucket};

/// What requests count against, of the policy or of one route.
#[derive(Clone, Default)]
pub struct Allowance {
    /// Every limit that a request must pass.
    pub limits: Vec<Arc<TokenBucket>>,
    /// Retries that are allowed in any case.
    pub least_retries: Arc<LeastRate>,
    /// Hedges that are allowed in any case.
    pub least_hedges: Arc<LeastRate>,
    /// The clients of every limit of the process.
    clients: Arc<Keys>,
}

impl Allowance {
    /// The policy's, of which `default` is the route that takes what no other does. Of `previous` stays what has the same name.
    pub(super) fn of_policy(previous: Option<&Self>, default: &effective::Route) -> Self {
        let kept = previous.cloned().unwrap_or_default();
        Self { limits: kept.after(previous, &default.limits), ..kept }
    }

    /// A route's: what it says itself is its own, the rest is the policy's. What a route had from the policy is not its own
    /// before, so it begins anew when the route says it itself.
    pub(super) fn of_route(policys: &Self, previous: Option<&Route>, route: &effective::Route) -> Self {
        let before = |is_own: fn(&effective::Own) -> bool| {
            previous.filter(|previous| is_own(&previous.policy.own)).map(|previous| &previous.allowance)
        };
        let least = |own: bool, before: Option<&Arc<LeastRate>>, policys: &Arc<LeastRate>| match own {
            true => before.cloned().unwrap_or_default(),
            false => policys.clone(),
        };
        let own = route.own;
        Self {
            limits: match own.limits {
                true => policys.after(before(|own| own.limits), &route.limits),
                false => policys.limits.clone(),
            },
            least_retries: least(
                own.retry,
                before(|own| own.retry).map(|before| &before.least_retries),
                &policys.least_retries,
            ),
            least_hedges: least(
                own.hedge,
                before(|own| own.hedge).map(|before| &before.least_hedges),
                &policys.least_hedges,
            ),
            clients: policys.clients.clone(),
        }
    }

    /// The buckets of these limits; those of the same name before go on.
    fn after(&self, previous: Option<&Self>, limits: &[effective::Limit]) -> Vec<Arc<TokenBucket>> {
        let after = |limit: &effective::Limit| {
            let mut before = previous.iter().flat_map(|previous| &previous.limits);
            match before.find(|bucket| bucket.limit().name == limit.name) {
                Some(bucket) if bucket.limit() == limit => bucket.clone(),
                before => Arc::new(TokenBucket::next(before.map(AsRef::as_ref), limit, &self.clients)),
            }
        };
        limits.iter().map(after).collect()
    }
}
