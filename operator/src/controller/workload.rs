//! Which pods are siblings of which: those that one controller made, in one namespace.
//!
//! A Deployment makes its pods through a ReplicaSet for each revision. The pods of all its ReplicaSets are siblings,
//! so the ReplicaSet's name counts without the hash of the pod template that ends it. A pod without a controller has
//! no siblings. What a pod can be reached by comes from its spec as the injector wrote it, and from its status; what
//! is written in it by hand can only do harm within the workload that its controller made it for.
//!
//! A policy whose canary tells pods apart by a label joins the pods that its `subject.podSelector` selects in a namespace,
//! whichever controllers made them. What a pod *is*, in its certificate, stays its controller's: the list says of each
//! sibling which workload's it must show.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use k8s_openapi::api::core::v1::{Container, Pod};
use outrigger_policy::siblings::{Sibling, Siblings, workload_id};
use outrigger_policy::wire::FromOperator;
use parking_lot::Mutex;

use super::observe::{Phase, PodFacts};
use crate::push::Uid;
use crate::webhook::inject::{CONTAINER, SIBLING_PORT_NAME};

/// The label that tells a node's zone.
pub const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
/// The label with which a Deployment marks the pods of one revision.
const TEMPLATE_HASH: &str = "pod-template-hash";
/// The environment variable in which the injector names the workers.
const WORKERS: &str = "OUTRIGGER_WORKERS";

/// What a pod is to its siblings. A pod whose proxy has no sibling port, or that no controller made, is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The workload, as `siblings::workload_id` hashes it.
    pub workload: String,
    /// The address of the pod; none before it has a network.
    pub ip: Option<IpAddr>,
    /// The port on which its proxy takes requests of siblings.
    pub port: u16,
    /// Its node.
    pub node: String,
    /// Whether its proxy's container is ready.
    pub ready: bool,
    /// The names of its workers.
    pub workers: Vec<String>,
}

/// The list of one workload, encoded once for all proxies that get it.
#[derive(Debug)]
pub struct SiblingSet {
    /// The list.
    pub siblings: Siblings,
    /// All of it, once somebody asked.
    whole: OnceLock<Bytes>,
    /// The difference asked for last, by the version that it is from: mostly all proxies have the same one.
    difference: Mutex<Option<(String, Bytes)>>,
}

/// What a pod is to its siblings.
pub(super) fn place(pod: &Pod) -> Option<Place> {
    let spec = pod.spec.as_ref()?;
    let containers = || spec.init_containers.iter().flatten().chain(&spec.containers);
    let proxy = containers().find(|container| container.name == CONTAINER)?;
    let status = pod.status.clone().unwrap_or_default();
    let statuses = [status.init_container_statuses, status.container_statuses];
    let ready = statuses.iter().flatten().flatten().any(|status| status.name == CONTAINER && status.ready);
    Some(Place {
        workload: workload(pod)?,
        ip: status.pod_ip.and_then(|ip| ip.parse().ok()),
        port: sibling_port(proxy)?,
        node: spec.node_name.clone().unwrap_or_default(),
        ready,
        workers: workers(proxy),
    })
}

fn workload(pod: &Pod) -> Option<String> {
    let metadata = &pod.metadata;
    let owner = metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))?;
    let hash = metadata.labels.as_ref().and_then(|labels| labels.get(TEMPLATE_HASH));
    let deployment = hash
        .filter(|_| owner.kind == "ReplicaSet")
        .and_then(|hash| owner.name.strip_suffix(hash.as_str())?.strip_suffix('-'));
    let (kind, name) = match deployment {
        Some(name) => ("Deployment", name),
        None => (owner.kind.as_str(), owner.name.as_str()),
    };
    Some(workload_id(&[metadata.namespace.as_deref().unwrap_or_default(), kind, name]))
}

fn sibling_port(proxy: &Container) -> Option<u16> {
    let mut ports = proxy.ports.iter().flatten();
    let port = ports.find(|port| port.name.as_deref() == Some(SIBLING_PORT_NAME))?;
    u16::try_from(port.container_port).ok()
}

fn workers(proxy: &Container) -> Vec<String> {
    let variable = proxy.env.iter().flatten().find(|variable| variable.name == WORKERS);
    let text = variable.and_then(|variable| variable.value.as_deref()).unwrap_or_default();
    text.split(',').filter_map(|worker| Some(worker.split_once('=')?.0.to_owned())).collect()
}

/// A pod and what its siblings are told of it.
type Member<'a> = (&'a Uid, Sibling);

/// Pods whose policy reaches siblings.
pub(super) struct Reaching<'a> {
    /// The pods.
    pub pods: Vec<Arc<PodFacts>>,
    /// How a canary tells them apart, if one does.
    pub versions: Option<Versions<'a>>,
}

/// How a canary tells pods apart.
#[derive(Clone, Copy)]
pub(super) struct Versions<'a> {
    /// The label that a pod's version stands in.
    pub label: &'a str,
    /// The policy that joins the pods of all controllers that it selects, if it does.
    pub joined_by: Option<&'a str>,
}

/// Which pods are siblings.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Group<'a> {
    /// Those of one workload.
    Workload(&'a str),
    /// Those that a policy joins, in a namespace.
    Joined(&'a str, &'a str),
}

/// The list of siblings of each of these pods. `zones` are those of the nodes.
pub(super) fn sets(
    reaching: &[Reaching<'_>],
    zones: &HashMap<String, String>,
) -> HashMap<Uid, Arc<SiblingSet>> {
    let mut groups: BTreeMap<Group<'_>, Vec<Member<'_>>> = BTreeMap::new();
    let pods =
        reaching.iter().flat_map(|Reaching { pods, versions }| pods.iter().map(move |pod| (pod, versions)));
    for (pod, versions) in pods {
        let Some(place) = &pod.place else { continue };
        let Some(ip) = place.ip else { continue };
        let joined_by = versions.and_then(|versions| versions.joined_by);
        let sibling = Sibling {
            instance: pod.uid.to_string(),
            pod: pod.name.clone(),
            address: SocketAddr::new(ip, place.port),
            zone: zones.get(&place.node).cloned().unwrap_or_default(),
            ready: place.ready && !pod.terminating && pod.phase == Phase::Running,
            workers: place.workers.clone(),
            version: versions.and_then(|versions| pod.labels.get(versions.label)).cloned(),
            workload: joined_by.map(|_| place.workload.clone()),
        };
        let group = match joined_by {
            Some(policy) => Group::Joined(&pod.namespace, policy),
            None => Group::Workload(&place.workload),
        };
        groups.entry(group).or_default().push((&pod.uid, sibling));
    }
    let mut sets = HashMap::new();
    for members in groups.into_values() {
        let set = SiblingSet::new(Siblings::new(members.iter().map(|(_, sibling)| sibling.clone())));
        let set = Arc::new(set);
        sets.extend(members.iter().map(|(uid, _)| (Uid::clone(uid), set.clone())));
    }
    sets
}

impl SiblingSet {
    /// A list, not encoded yet.
    pub fn new(siblings: Siblings) -> Self {
        Self { siblings, whole: OnceLock::new(), difference: Mutex::default() }
    }

    /// The line that makes this list of what a proxy has.
    pub fn line_after(&self, held: Option<&Siblings>) -> Bytes {
        let Some(held) = held else {
            return self.whole.get_or_init(|| line(&self.siblings, None)).clone();
        };
        let mut difference = self.difference.lock();
        match &*difference {
            Some((base, line)) if base == held.version() => line.clone(),
            _ => {
                let line = line(&self.siblings, Some(held));
                *difference = Some((held.version().to_owned(), line.clone()));
                line
            }
        }
    }
}

fn line(siblings: &Siblings, held: Option<&Siblings>) -> Bytes {
    // Serializing plain data into memory does not fail; an empty line would be skipped by proxies.
    let message = FromOperator::Siblings(siblings.change_from(held));
    let mut line = serde_json::to_vec(&message).unwrap_or_default();
    line.push(b'\n');
    line.into()
}

#[cfg(test)]
mod tests;
