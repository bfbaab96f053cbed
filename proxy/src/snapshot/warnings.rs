//! What is valid in a policy or in the pod's annotation and yet cannot be meant, as only the proxy can tell: it knows its
//! workers, and who wrote the policy may have had other pods in mind.

use std::collections::HashSet;
use std::sync::Arc;

use outrigger_policy::Violation;
use outrigger_policy::drain::{ALL, DRAIN_ANNOTATION, PodDrain};
use outrigger_policy::effective::Policy;

use crate::worker::Worker;

/// The names of all workers, with those that are still starting or are started again.
pub(super) fn names<'a>(workers: &'a [Arc<Worker>], awaited: &'a [String]) -> Vec<&'a str> {
    let mut names: Vec<_> = awaited.iter().map(String::as_str).collect();
    names.extend(workers.iter().map(|worker| worker.name.as_str()));
    let mut seen = HashSet::new();
    names.retain(|name| seen.insert(*name));
    names
}

/// Every warning over workers of these names, in the order of the policy's fields; those of the annotation last.
pub(super) fn of(policy: &Policy, drain: Option<&PodDrain>, known: &[&str]) -> Vec<Violation> {
    let warning = |path: String, reason: String| Violation { path, reason };
    let mut warnings = Vec::new();
    for (i, rule) in policy.workers.iter().enumerate() {
        if !known.is_empty() && !known.contains(&rule.name.as_str()) {
            let reason = format!("no worker here is named '{}': there are {}", rule.name, list(known));
            warnings.push(warning(format!("spec.workers[{i}].name"), reason));
        }
    }
    let weight = |name: &str| policy.worker(name).weight;
    if !known.is_empty() && known.iter().all(|name| weight(name) == 0) {
        let reason =
            String::from("every worker here has the weight 0: none takes new requests, and clients get 503");
        warnings.push(warning(String::from("spec.workers"), reason));
    }
    for name in drain.iter().flat_map(|drain| drain.names()) {
        if !known.is_empty() && !known.contains(&name) {
            let reason = format!(
                "no worker here is named '{name}': there are {}, and '{ALL}' is for all",
                list(known)
            );
            warnings.push(warning(format!("metadata.annotations[{DRAIN_ANNOTATION}]"), reason));
        }
    }
    warnings
}

/// The first of the names, and how many more there are.
fn list(names: &[&str]) -> String {
    const SHOWN: usize = 8;
    let shown: Vec<_> = names.iter().take(SHOWN).map(|name| format!("'{name}'")).collect();
    let more = names.len().saturating_sub(SHOWN);
    if more == 0 { shown.join(", ") } else { format!("{} and {more} more", shown.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn warnings(spec: &str, names: &[&str]) -> Vec<String> {
        let spec = serde_yaml::from_str(spec).expect("a spec");
        let policy = outrigger_policy::compile(&spec).expect("a valid policy");
        of(&policy, None, names).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_name_that_no_worker_has_is_said() {
        let spec = "workers: [{name: a}, {name: c, weight: 5}]";
        assert_eq!(
            warnings(spec, &["a", "b"]),
            ["spec.workers[1].name: no worker here is named 'c': there are 'a', 'b'"]
        );
        assert!(warnings(spec, &["a", "c"]).is_empty());
        assert!(warnings(spec, &[]).is_empty(), "the workers are still to come");
        let many: Vec<_> = (0..12).map(|i| format!("w{i}")).collect();
        let many: Vec<_> = many.iter().map(String::as_str).collect();
        assert!(warnings("workers: [{name: x}]", &many)[0].ends_with("'w7' and 4 more"));
    }

    #[test]
    fn a_worker_that_is_still_starting_is_no_mistake() {
        let worker = |name: &str| Worker::new(name, ([127, 0, 0, 1], 1).into());
        let awaited = ["worker-1", "worker-2"].map(str::to_owned);
        assert_eq!(names(&[worker("worker-2")], &awaited), ["worker-1", "worker-2"]);
        assert_eq!(names(&[worker("b"), worker("a")], &[]), ["b", "a"]);
        let started = [worker("worker-2")];
        let both = names(&started, &awaited);
        assert!(warnings("workers: [{name: worker-1}]", &both).is_empty());
        assert!(
            warnings("workers: [{name: worker-2, weight: 0}]", &both).is_empty(),
            "the other takes requests"
        );
        assert_eq!(warnings("workers: [{name: worker-3}]", &both).len(), 1);
    }

    #[test]
    fn a_drain_of_nobody_is_said() {
        let policy = outrigger_policy::compile(&outrigger_policy::Spec::default()).expect("valid");
        let warnings = |text| of(&policy, PodDrain::parse(text).as_ref(), &["a", "b"]);
        assert_eq!(
            warnings("true,b").iter().map(ToString::to_string).collect::<Vec<_>>(),
            [
                "metadata.annotations[outrigger.dev/drain]: no worker here is named 'true': there are 'a', 'b', and 'all' is for all"
            ]
        );
        assert!(warnings("a,b").is_empty() && warnings("all").is_empty());
    }

    #[test]
    fn weight_0_for_all_is_said() {
        let spec = "workers: [{name: a, weight: 0}, {name: b, weight: 0}]";
        assert_eq!(warnings(spec, &["a", "b"]).len(), 1);
        assert!(warnings(spec, &["a", "b", "c"]).is_empty(), "c has weight 1");
    }
}
