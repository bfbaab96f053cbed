//! Which policy governs which pod. Pure: the world in, what each proxy is to have out.
//!
//! Pods of the same namespace that the same policies select get the same bytes, so what is computed and encoded
//! grows with the number of such groups, not with the number of pods. Pods whose annotations drain workers are groups of
//! their own: few are at any time.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use outrigger_policy::Spec;
use outrigger_policy::drain::PodDrain;
use outrigger_policy::merge::{Candidate, Merged, Origin, merge};
use outrigger_policy::selector::{LabelSelector, Labels};
use outrigger_policy::wire::{CanaryShare, FromOperator, KeyRing, Update};

use super::observe::{Phase, PodFacts, PolicyFacts, World};
use super::workload::{self, Reaching, SiblingSet, Versions};
use crate::push::Uid;
use crate::session_keys::Master;

/// What every proxy is to have, and why.
#[derive(Debug, Default)]
pub struct Resolved {
    /// All policies, valid or not, by name.
    pub policies: Vec<Arc<PolicyFacts>>,
    /// The pods, by what they are to have.
    pub groups: Vec<Group>,
    /// The siblings of each pod whose policy reaches them.
    pub siblings: HashMap<Uid, Arc<SiblingSet>>,
}

/// Pods that are to have the same.
#[derive(Debug)]
pub struct Group {
    /// The policies that select them, as indices into `Resolved::policies`.
    pub policies: Vec<usize>,
    /// Which of these policies each section came from.
    pub origins: BTreeMap<String, Origin>,
    /// What they are to have.
    pub target: Arc<Target>,
    /// The pods: never empty.
    pub pods: Vec<Arc<PodFacts>>,
}

/// An update, encoded once for all that get it.
#[derive(Debug, PartialEq, Eq)]
pub struct Target {
    /// The update's version.
    pub version: Arc<str>,
    /// The line of the stream.
    pub line: Bytes,
}

/// A namespace, the policies that select the pod, and what its annotation drains.
type Key<'a> = (&'a str, Vec<usize>, Option<&'a PodDrain>);

/// Resolves everything anew. An invalid policy selects nothing.
pub fn resolve(world: &World, keys: &Master) -> Resolved {
    let mut grouped: BTreeMap<Key<'_>, Vec<Arc<PodFacts>>> = BTreeMap::new();
    let mut of_namespace: HashMap<&str, Vec<usize>> = HashMap::new();
    for pod in world.pods.iter().filter(|pod| pod.phase != Phase::Finished) {
        let candidates =
            of_namespace.entry(&pod.namespace).or_insert_with(|| selecting_namespace(world, &pod.namespace));
        let selecting =
            candidates.iter().copied().filter(|i| selects_pod(&world.policies[*i], pod)).collect();
        grouped.entry((&pod.namespace, selecting, pod.drain.as_deref())).or_default().push(pod.clone());
    }
    let mut reaching = Vec::new();
    let mut merges: HashMap<Vec<usize>, Merged> = HashMap::new();
    let groups = grouped.into_iter().map(|((namespace, policies, drain), pods)| {
        let merged = merges.entry(policies.clone()).or_insert_with(|| merge_these(world, &policies));
        let keys =
            if has_sessions(&merged.spec) { keys.for_namespace(namespace) } else { KeyRing::default() };
        if merged.spec.reaches_siblings() {
            reaching.push(Reaching { pods: pods.clone(), versions: versions(world, &merged.origins) });
        }
        let origins = merged.origins.clone();
        let share = origins.get("canary").and_then(|origin| share(world, origin));
        let update = Update::new(merged.clone(), keys).with_canary(share).with_drain(drain.cloned());
        let target = Arc::new(Target::new(update));
        Group { policies, origins, target, pods }
    });
    let groups = groups.collect();
    let siblings = workload::sets(&reaching, &world.zones);
    Resolved { policies: world.policies.clone(), groups, siblings }
}

/// The valid policies that select this namespace, as indices.
fn selecting_namespace(world: &World, namespace: &str) -> Vec<usize> {
    let unlabelled = Arc::new(Labels::new()); // its pods were observed first: the labels come any moment
    let labels = world.namespaces.get(namespace).unwrap_or(&unlabelled);
    let selects = |policy: &PolicyFacts| {
        let Ok(spec) = &policy.spec else { return false };
        let selector = spec.subject.as_ref().and_then(|subject| subject.namespace_selector.as_ref());
        selector.is_none_or(|selector| selector.matches(labels))
    };
    (0..world.policies.len()).filter(|i| selects(&world.policies[*i])).collect()
}

fn selects_pod(policy: &PolicyFacts, pod: &PodFacts) -> bool {
    let Ok(spec) = &policy.spec else { return false };
    let selector = spec.subject.as_ref().and_then(|subject| subject.pod_selector.as_ref());
    selector.is_none_or(|selector| selector.matches(&pod.labels))
}

fn merge_these(world: &World, policies: &[usize]) -> Merged {
    let candidates: Vec<_> = policies
        .iter()
        .filter_map(|i| {
            let PolicyFacts { name, generation, created, spec, .. } = &*world.policies[*i];
            let spec = spec.as_ref().ok()?;
            Some(Candidate { name, generation: *generation, created: *created, spec })
        })
        .collect();
    merge(&candidates)
}

/// How far the canary is that came from this policy. It stands in the policy's status, so all replicas say the same.
fn share(world: &World, origin: &Origin) -> Option<CanaryShare> {
    world.policies.iter().find(|policy| policy.name == origin.policy)?.share()
}

/// How the canary in force tells pods apart. A policy that says which pods it is for says that they belong together;
/// one for all pods does not.
fn versions<'a>(world: &'a World, origins: &BTreeMap<String, Origin>) -> Option<Versions<'a>> {
    let origin = origins.get("canary")?;
    let policy = world.policies.iter().find(|policy| policy.name == origin.policy)?;
    let spec = policy.spec.as_ref().ok()?;
    let selector = spec.subject.as_ref().and_then(|subject| subject.pod_selector.as_ref());
    let joins = selector.is_some_and(|selector| *selector != LabelSelector::default());
    Some(Versions {
        label: spec.canary.as_ref()?.pod_label.as_deref()?,
        joined_by: joins.then_some(policy.name.as_str()),
    })
}

/// Keys go to proxies that use them and to no others.
fn has_sessions(spec: &Spec) -> bool {
    let routes = spec.routes.as_deref().unwrap_or_default();
    spec.session_persistence.is_some() || routes.iter().any(|route| route.session_persistence.is_some())
}

// === impl Target ===

impl Target {
    /// Encodes an update.
    pub fn new(update: Update) -> Self {
        let version = update.version.as_str().into();
        // Serializing plain data into memory does not fail; an empty line would be skipped by proxies.
        let mut line = serde_json::to_vec(&FromOperator::Update(Box::new(update))).unwrap_or_default();
        line.push(b'\n');
        Self { version, line: line.into() }
    }
}

#[cfg(test)]
mod tests;
