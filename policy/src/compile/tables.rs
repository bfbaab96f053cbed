//! The bound on the tables of `ConsistentHash`: each is small enough by itself, but a policy may have a thousand routes.

use super::Check;
use crate::effective::{HashAlgorithm, Route, Strategy};
use crate::spec::Spec;

/// What the tables of all routes take together at most, in bytes. Routes of the same algorithm and size share one.
const MOST: u64 = 16 << 20;
/// A point of a ring takes so many bytes, a place of a Maglev table one.
const POINT: u64 = 5;
/// Workers that a pod may have; those that the policy does not list have weight 1.
const WORKERS: u64 = 256;
/// Siblings in reach are at most as many, in two levels.
const LEVELS: u64 = 2;

impl Check {
    /// `routes` are those of `spec` in its order, without the default one.
    pub(super) fn tables(&mut self, spec: &Spec, default: &Route, routes: &[Route]) {
        let specs = spec.routes.as_deref().unwrap_or_default();
        let own = routes.iter().enumerate().filter(|(i, _)| specs[*i].load_balancer.is_some());
        let own = own.map(|(i, route)| (format!("spec.routes[{i}].loadBalancer"), route));
        let mut counted = Vec::new();
        let mut sum = 0;
        for (at, route) in std::iter::once((String::from("spec.loadBalancer"), default)).chain(own) {
            let Strategy::ConsistentHash(settings) = &route.load_balancer.strategy else { continue };
            let kind = (settings.algorithm, route.spillover.is_some());
            if counted.contains(&kind) {
                continue;
            }
            counted.push(kind);
            sum += self.bytes_of(kind, spec);
            if MOST < sum {
                let field = match settings.algorithm {
                    HashAlgorithm::Ring(_) => "virtualNodes",
                    HashAlgorithm::Maglev(_) => "tableSize",
                };
                self.violation(
                    &format!("{at}.consistentHash.{field}"),
                    format!(
                        "must leave the tables of all routes within {MOST} bytes: with this one they would take {sum}; \
                         give routes the same `{field}`, for they share a table then, or lower it or the weights of \
                         spec.workers"
                    ),
                );
                return;
            }
        }
    }

    /// What the tables of one algorithm take: over all workers, over those of each version while one takes over, and over
    /// siblings.
    fn bytes_of(&self, (algorithm, reaches_siblings): (HashAlgorithm, bool), spec: &Spec) -> u64 {
        let listed = spec.workers.iter().flatten().count() as u64;
        let weights = self.total_weight + WORKERS.saturating_sub(listed);
        let (workers, versions, level) = match algorithm {
            // Two versions have the weights of all between them.
            HashAlgorithm::Ring(nodes) => {
                let nodes = u64::from(nodes) * POINT;
                (nodes * weights, nodes * weights, nodes * WORKERS)
            }
            HashAlgorithm::Maglev(size) => (size.into(), 2 * u64::from(size), size.into()),
        };
        let canary = spec.canary.is_some();
        let siblings = if reaches_siblings { LEVELS * level } else { 0 };
        let times = if canary { 3 } else { 1 };
        workers + if canary { versions } else { 0 } + siblings * times
    }
}
