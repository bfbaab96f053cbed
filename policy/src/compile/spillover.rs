//! The rules of `loadBalancer.scope` and `loadBalancer.spillover`.

use super::Check;
use crate::effective::Spillover;
use crate::spec::{LoadBalancerScope, LoadBalancerSpec};

impl Check {
    /// When requests leave the pod; `None` where the scope is the pod.
    pub(super) fn spillover(&mut self, at: &str, section: &LoadBalancerSpec) -> Option<Spillover> {
        let at = format!("{at}.spillover");
        if section.scope.unwrap_or_default() == LoadBalancerScope::Pod {
            if section.spillover.is_some() {
                self.violation(&at, "must be absent unless `scope` is 'Workload': no request leaves the pod");
            }
            return None;
        }
        let spec = section.spillover.clone().unwrap_or_default();
        let factor = spec.overprovisioning_factor.unwrap_or(140);
        let parallel = spec.max_parallel_requests;
        Some(Spillover {
            overprovisioning_factor: self.number(&format!("{at}.overprovisioningFactor"), factor, 100..=1000),
            max_parallel_requests: parallel
                .map(|most| self.number(&format!("{at}.maxParallelRequests"), most, 1..=100_000)),
        })
    }
}
