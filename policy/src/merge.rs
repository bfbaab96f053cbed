//! Several policies may select a pod. Each section comes whole from the first policy, in order, that sets it.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::spec::Spec;

/// A policy among others that select the same pod.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// The policy's name.
    pub name: &'a str,
    /// The generation of its spec; 0 outside Kubernetes.
    pub generation: i64,
    /// When it was created, in seconds since 1970; 0 outside Kubernetes.
    pub created: i64,
    /// What it says.
    pub spec: &'a Spec,
}

/// Which policy a section came from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Origin {
    /// The policy's name.
    pub policy: String,
    /// The generation of its spec.
    pub generation: i64,
}

/// One spec out of several, and where each section came from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Merged {
    /// The sections that are in force. It has no `priority` and no `subject`.
    pub spec: Spec,
    /// Section name to origin, for the sections that some policy sets.
    pub origins: BTreeMap<String, Origin>,
}

/// Merges policies; the order they are given in does not matter.
pub fn merge(candidates: &[Candidate<'_>]) -> Merged {
    let mut ordered = candidates.to_vec();
    ordered.sort_by_key(|c| (Reverse(c.spec.priority.unwrap_or(0)), c.created, c.name.to_owned()));
    let mut merged = Merged::default();
    for candidate in ordered {
        merged.add(candidate);
    }
    merged
}

impl Merged {
    fn add(&mut self, candidate: Candidate<'_>) {
        let from = candidate.spec;
        let Self { spec, origins } = self;
        let mut origin = |section: &str| {
            let origin = Origin { policy: candidate.name.to_owned(), generation: candidate.generation };
            origins.insert(section.to_owned(), origin);
        };
        macro_rules! take_whole {
            ($($field:ident $section:literal),*) => {$(
                if spec.$field.is_none() && from.$field.is_some() {
                    spec.$field.clone_from(&from.$field);
                    origin($section);
                }
            )*};
        }
        take_whole!(
            workers "workers", canary "canary", load_balancer "loadBalancer",
            session_persistence "sessionPersistence", circuit_breaker "circuitBreaker",
            breaker_overrides "breakerOverrides", rate_limit "rateLimit", retry "retry", hedge "hedge",
            timeout "timeout",
            health_check "healthCheck", drain "drain", routes "routes"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(yaml: &str) -> Spec {
        serde_yaml::from_str(yaml).expect("the test's YAML is a spec")
    }

    #[test]
    fn each_section_comes_whole_from_the_first_that_sets_it() {
        let high = spec("{priority: 10, loadBalancer: {type: Random}}");
        let low = spec("{loadBalancer: {type: LeastRequest}, retry: {numRetries: 1}}");
        let candidate = |name, spec| Candidate { name, generation: 3, created: 0, spec };
        let merged = merge(&[candidate("low", &low), candidate("high", &high)]);
        assert_eq!(merged.spec.load_balancer, high.load_balancer);
        assert_eq!(merged.spec.retry, low.retry);
        assert_eq!(merged.origins["loadBalancer"].policy, "high");
        assert_eq!(merged.origins["retry"].policy, "low");
        assert_eq!(merged.spec.priority, None);
    }

    #[test]
    fn the_older_then_the_name_decides_among_equals() {
        let one = spec("{retry: {numRetries: 1}}");
        let two = spec("{retry: {numRetries: 2}}");
        let merged = merge(&[
            Candidate { name: "a", generation: 1, created: 20, spec: &one },
            Candidate { name: "b", generation: 1, created: 10, spec: &two },
        ]);
        assert_eq!(merged.origins["retry"].policy, "b");
        let merged = merge(&[
            Candidate { name: "b", generation: 1, created: 10, spec: &two },
            Candidate { name: "a", generation: 1, created: 10, spec: &one },
        ]);
        assert_eq!(merged.origins["retry"].policy, "a");
    }

    #[test]
    fn no_policies_leave_the_defaults() {
        assert_eq!(merge(&[]), Merged::default());
    }
}
