//! What is valid in a policy and yet cannot be meant, as only the proxy can tell: it knows its workers, and who wrote the
//! policy may have had other pods in mind.

use std::sync::Arc;

use outrigger_policy::Violation;
use outrigger_policy::effective::Policy;

use crate::worker::Worker;

/// Every warning, in the order of the policy's fields.
pub(super) fn of(policy: &Policy, workers: &[Arc<Worker>]) -> Vec<Violation> {
    let known: Vec<_> = workers.iter().map(|worker| worker.name.as_str()).collect();
    let warning = |path: String, reason: String| Violation { path, reason };
    let mut warnings = Vec::new();
    for (i, rule) in policy.workers.iter().enumerate() {
        if !known.is_empty() && !known.contains(&rule.name.as_str()) {
            let reason = format!("no worker here is named '{}': there are {}", rule.name, list(&known));
            warnings.push(warning(format!("spec.workers[{i}].name"), reason));
        }
    }
    let weight = |name: &str| policy.worker(name).weight;
    if !known.is_empty() && known.iter().all(|name| weight(name) == 0) {
        let reason =
            String::from("every worker here has the weight 0: none takes new requests, and clients get 503");
        warnings.push(warning(String::from("spec.workers"), reason));
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
        let address = std::net::SocketAddr::from(([127, 0, 0, 1], 1));
        let workers: Vec<_> = names.iter().map(|name| Worker::new(name, address)).collect();
        of(&policy, &workers).iter().map(ToString::to_string).collect()
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
    fn weight_0_for_all_is_said() {
        let spec = "workers: [{name: a, weight: 0}, {name: b, weight: 0}]";
        assert_eq!(warnings(spec, &["a", "b"]).len(), 1);
        assert!(warnings(spec, &["a", "b", "c"]).is_empty(), "c has weight 1");
    }
}
