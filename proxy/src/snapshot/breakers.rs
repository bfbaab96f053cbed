//! The breakers that a policy configures: they are never made anew, only told what holds from now on.

use std::sync::Arc;
use std::time::Instant;

use outrigger_policy::effective::{Breaker, BreakerName, Policy};

use super::{Route, Snapshot};
use crate::breaker::{Gate, Pool, PoolRules};
use crate::siblings::Siblings;
use crate::worker::Worker;

/// Puts the policy's breakers in force, at every level. Returns that of the service, and what the workers' know of each
/// other. A sibling has a breaker as a worker has, but is none of the pod's: it counts in no share, and overrides are not
/// for it.
pub(super) fn configured(
    previous: Option<&Snapshot>,
    policy: &Policy,
    workers: &[Arc<Worker>],
    siblings: &Siblings,
    routes: &[Arc<Route>],
) -> (Arc<Gate>, Arc<Pool>) {
    let now = Instant::now();
    let pool = previous.map_or_else(Arc::default, |previous| previous.pool.clone());
    pool.configure(PoolRules {
        members: workers.iter().map(|worker| worker.breaker.standing().clone()).collect(),
        max_open_percent: policy.max_open_percent,
        has_service_breaker: policy.service_breaker.as_ref().is_some_and(Breaker::is_enforced),
    });
    for worker in workers {
        worker.breaker.join(&pool);
        let held = policy.breaker_override(worker.breaker.name());
        worker.breaker.configure(policy.worker_breaker.as_ref(), held, now);
    }
    for sibling in siblings.members() {
        sibling.breaker.configure(policy.worker_breaker.as_ref(), None, now);
    }
    let service = previous
        .map_or_else(|| Arc::new(Gate::new(BreakerName::Service)), |previous| previous.service.clone());
    service.configure(policy.service_breaker.as_ref(), policy.breaker_override(service.name()), now);
    for route in routes {
        let held = policy.breaker_override(route.gate.name());
        route.gate.configure(route.policy.breaker.as_ref(), held, now);
    }
    (service, pool)
}
