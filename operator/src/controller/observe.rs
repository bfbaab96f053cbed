//! What the API server has, kept up to date by three watches: policies, pods with a proxy, namespaces.
//!
//! Only the facts that decide something are kept of each object, and a change of anything else is no change. A
//! policy is parsed and compiled once, when it arrives; one that cannot be read at all (written for a newer
//! release) is a violation of that policy, not an error of the watch.

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::Arc;

use futures_util::StreamExt;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::api::{ApiResource, DynamicObject};
use kube::core::PartialObjectMeta;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt};
use outrigger_policy::drain::{DRAIN_ANNOTATION, PodDrain};
use outrigger_policy::effective::run;
use outrigger_policy::selector::Labels;
use outrigger_policy::wire::CanaryShare;
use outrigger_policy::{Spec, Violation};
use parking_lot::RwLock;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::watch;

use super::workload::{self, Place, ZONE_LABEL};
use crate::canary;
use crate::crd::{ClusterPolicy, Status};
use crate::essential::Essential;
use crate::metrics::Metrics;
use crate::webhook::inject::INJECTED_LABEL;

/// What decides about one policy.
#[derive(Clone, Debug)]
pub struct PolicyFacts {
    /// Its name.
    pub name: String,
    /// Tells it from a later one of the same name.
    pub uid: String,
    /// The generation of its spec.
    pub generation: i64,
    /// When it was created, in seconds since 1970.
    pub created: i64,
    /// Its spec, if it is valid.
    pub spec: Result<Spec, Vec<Violation>>,
    /// What its status says.
    pub status: Option<Status>,
}

/// What decides about one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodFacts {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Tells it from a later one of the same name.
    pub uid: Arc<str>,
    /// Its labels.
    pub labels: Labels,
    /// How far it is in its life.
    pub phase: Phase,
    /// Whether it was told to stop.
    pub terminating: bool,
    /// Its ServiceAccount.
    pub service_account: String,
    /// What it is to its siblings, if it can have any.
    pub place: Option<Place>,
    /// Which of its workers its annotation drains. Most pods have none, and it costs them a word.
    pub drain: Option<Box<PodDrain>>,
}

/// How far a pod is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Not all containers started yet.
    Pending,
    /// Running, or unknown because its node is away.
    Running,
    /// Succeeded or failed: it never runs again.
    Finished,
}

/// Everything at one moment.
#[derive(Clone, Debug, Default)]
pub struct World {
    /// All policies, by name.
    pub policies: Vec<Arc<PolicyFacts>>,
    /// All pods that have a proxy, in no order.
    pub pods: Vec<Arc<PodFacts>>,
    /// Labels of all namespaces.
    pub namespaces: HashMap<String, Arc<Labels>>,
    /// The zones of all nodes that name one.
    pub zones: HashMap<String, String>,
}

/// The watches' result; cheap to clone.
#[derive(Clone)]
pub struct Observed(Arc<Caches>);

struct Caches {
    policies: RwLock<Cache<PolicyFacts>>,
    pods: RwLock<Cache<PodFacts>>,
    namespaces: RwLock<Cache<Labels>>,
    nodes: RwLock<Cache<Zone>>,
    changes: watch::Sender<u64>,
}

/// The objects of one kind, by `namespace/name`.
struct Cache<V> {
    live: HashMap<String, Arc<V>>,
    /// The new list while it is being read; the old one stays in use.
    incoming: HashMap<String, Arc<V>>,
    synced: bool,
}

/// The zone of a node; empty where it names none.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Zone(String);

/// Whether a change of these facts decides anything.
trait Facts: Sized {
    fn differs(&self, other: &Self) -> bool;
}

// === impl Observed ===

impl Observed {
    /// Starts the watches. They try again for ever.
    pub fn start(client: &Client, metrics: &Arc<Metrics>, essential: &mut Essential) -> Self {
        let observed = Self::empty();
        let caches = &observed.0;
        let resource = ApiResource::erase::<ClusterPolicy>(&());
        let policies: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
        let pods: Api<Pod> = Api::all(client.clone());
        let namespaces: Api<PartialObjectMeta<Namespace>> = Api::all(client.clone());
        let nodes: Api<PartialObjectMeta<Node>> = Api::all(client.clone());
        let injected = watcher::Config::default().labels(&format!("{INJECTED_LABEL}=true"));
        let all = watcher::Config::default;
        let policies = follow(policies, all(), policy_facts, Sink::new(caches, metrics, |c| &c.policies));
        essential.spawn("watch of policies", policies);
        let pods = follow(pods, injected, pod_facts, Sink::new(caches, metrics, |c| &c.pods));
        essential.spawn("watch of pods", pods);
        let namespaces = follow(namespaces, all(), labels, Sink::new(caches, metrics, |c| &c.namespaces));
        essential.spawn("watch of namespaces", namespaces);
        let nodes = follow(nodes, all(), zone, Sink::new(caches, metrics, |c| &c.nodes));
        essential.spawn("watch of nodes", nodes);
        observed
    }

    /// Nothing, and it stays so: for tests that add what they need.
    pub fn empty() -> Self {
        Self(Arc::new(Caches {
            policies: RwLock::default(),
            pods: RwLock::default(),
            namespaces: RwLock::default(),
            nodes: RwLock::default(),
            changes: watch::Sender::new(0),
        }))
    }

    /// Replaces everything, as if it had been observed so: for tests.
    pub fn replace(&self, world: World) {
        let Caches { policies, pods, namespaces, nodes, changes } = &*self.0;
        policies.write().set(world.policies.into_iter().map(|policy| (format!("/{}", policy.name), policy)));
        pods.write().set(world.pods.into_iter().map(|pod| (key(&pod.namespace, &pod.name), pod)));
        namespaces
            .write()
            .set(world.namespaces.into_iter().map(|(name, labels)| (format!("/{name}"), labels)));
        let zones = world.zones.into_iter();
        nodes.write().set(zones.map(|(name, zone)| (format!("/{name}"), Arc::new(Zone(zone)))));
        changes.send_modify(|count| *count += 1);
    }

    /// Changes when anything that decides does.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    /// Whether every list was read once.
    pub fn is_synced(&self) -> bool {
        let Caches { policies, pods, namespaces, nodes, .. } = &*self.0;
        policies.read().synced && pods.read().synced && namespaces.read().synced && nodes.read().synced
    }

    /// Returns when every list was read once.
    pub async fn wait_until_synced(&self) {
        let mut changes = self.changes();
        while !self.is_synced() {
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// Everything as it is now.
    pub fn world(&self) -> World {
        let mut policies: Vec<_> = self.0.policies.read().live.values().cloned().collect();
        policies.sort_by(|a, b| a.name.cmp(&b.name));
        let pods = self.0.pods.read().live.values().cloned().collect();
        let namespaces = self.0.namespaces.read();
        let named =
            |(key, labels): (&String, &Arc<Labels>)| (key.trim_start_matches('/').to_owned(), labels.clone());
        let nodes = self.0.nodes.read();
        let zoned = |(key, zone): (&String, &Arc<Zone>)| {
            (!zone.0.is_empty()).then(|| (key.trim_start_matches('/').to_owned(), zone.0.clone()))
        };
        World {
            policies,
            pods,
            namespaces: namespaces.live.iter().map(named).collect(),
            zones: nodes.live.iter().filter_map(zoned).collect(),
        }
    }

    /// The pod of this name, if it has a proxy.
    pub fn pod(&self, namespace: &str, name: &str) -> Option<Arc<PodFacts>> {
        self.0.pods.read().live.get(&key(namespace, name)).cloned()
    }

    /// The policy of this name.
    pub fn policy(&self, name: &str) -> Option<Arc<PolicyFacts>> {
        self.0.policies.read().live.get(&key("", name)).cloned()
    }
}

/// Picks the cache of one kind.
type Select<V> = fn(&Caches) -> &RwLock<Cache<V>>;

/// Where a watch puts what it sees.
struct Sink<V> {
    caches: Arc<Caches>,
    metrics: Arc<Metrics>,
    cache: Select<V>,
}

impl<V> Sink<V> {
    fn new(caches: &Arc<Caches>, metrics: &Arc<Metrics>, cache: Select<V>) -> Self {
        Self { caches: caches.clone(), metrics: metrics.clone(), cache }
    }
}

async fn follow<K, V>(api: Api<K>, config: watcher::Config, facts: fn(K) -> V, sink: Sink<V>)
where
    K: kube::Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    V: Facts,
{
    let mut events = std::pin::pin!(watcher(api, config).default_backoff());
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                if (sink.cache)(&sink.caches).write().apply(event, facts) {
                    sink.caches.changes.send_modify(|count| *count += 1);
                }
            }
            Err(error) => {
                sink.metrics.watch_errors.inc();
                tracing::warn!(%error, "a watch failed, trying again");
            }
        }
    }
}

fn key(namespace: &str, name: &str) -> String {
    format!("{namespace}/{name}")
}

// === impl Cache ===

impl<V> Default for Cache<V> {
    fn default() -> Self {
        Self { live: HashMap::new(), incoming: HashMap::new(), synced: false }
    }
}

impl<V> Cache<V> {
    fn set(&mut self, objects: impl Iterator<Item = (String, Arc<V>)>) {
        self.live = objects.collect();
        self.synced = true;
    }
}

impl<V: Facts> Cache<V> {
    /// Takes in one event of a watch. Returns whether anything changed that decides something.
    fn apply<K: kube::Resource>(&mut self, event: Event<K>, facts: fn(K) -> V) -> bool {
        let key_of = |object: &K| key(&object.namespace().unwrap_or_default(), &object.name_any());
        match event {
            Event::Init => self.incoming.clear(),
            Event::InitApply(object) => {
                self.incoming.insert(key_of(&object), Arc::new(facts(object)));
            }
            Event::InitDone => return self.replace_all(),
            Event::Apply(object) => {
                let key = key_of(&object);
                let new = Arc::new(facts(object));
                let old = self.live.insert(key, new.clone());
                return old.is_none_or(|old| old.differs(&new));
            }
            Event::Delete(object) => return self.live.remove(&key_of(&object)).is_some(),
        }
        false
    }

    fn replace_all(&mut self) -> bool {
        let old = std::mem::replace(&mut self.live, std::mem::take(&mut self.incoming));
        let first = !std::mem::replace(&mut self.synced, true);
        let same = |(key, new): (&String, &Arc<V>)| old.get(key).is_some_and(|old| !old.differs(new));
        first || old.len() != self.live.len() || !self.live.iter().all(same)
    }
}

// === the facts of each kind ===

impl Facts for PolicyFacts {
    fn differs(&self, other: &Self) -> bool {
        // Of the status only the canary's share decides anything.
        self.uid != other.uid || self.generation != other.generation || self.share() != other.share()
    }
}

impl PolicyFacts {
    /// What proxies are told of the canary that this policy leads.
    pub fn share(&self) -> Option<CanaryShare> {
        let section = self.spec.as_ref().ok()?.canary.as_ref()?;
        let state = self.status.as_ref()?.canary.as_ref()?;
        let run = run(&section.version, section.attempt.unwrap_or(1));
        (state.run == run).then(|| canary::share(state))
    }
}

impl Facts for PodFacts {
    fn differs(&self, other: &Self) -> bool {
        self != other
    }
}

impl Facts for Zone {
    fn differs(&self, other: &Self) -> bool {
        self != other // a node's heartbeat is no change
    }
}

impl Facts for Labels {
    fn differs(&self, other: &Self) -> bool {
        self != other
    }
}

fn policy_facts(object: DynamicObject) -> PolicyFacts {
    let status = object.data.get("status").and_then(|status| serde::Deserialize::deserialize(status).ok());
    PolicyFacts {
        name: object.name_any(),
        uid: object.uid().unwrap_or_default(),
        generation: object.metadata.generation.unwrap_or(0),
        created: object.creation_timestamp().map_or(0, |time| time.0.as_second()),
        spec: read_spec(object.data.get("spec")),
        status,
    }
}

/// The spec, if it is one and no rule is violated.
fn read_spec(spec: Option<&Value>) -> Result<Spec, Vec<Violation>> {
    let Some(spec) = spec else { return Ok(Spec::default()) };
    let spec: Spec = serde::Deserialize::deserialize(spec).map_err(|error: serde_json::Error| {
        vec![Violation { path: "spec".to_owned(), reason: error.to_string() }]
    })?;
    outrigger_policy::compile(&spec)?;
    Ok(spec)
}

fn pod_facts(pod: Pod) -> PodFacts {
    let phase = match pod.status.as_ref().and_then(|status| status.phase.as_deref()) {
        Some("Succeeded" | "Failed") => Phase::Finished,
        Some("Running" | "Unknown") => Phase::Running,
        _ => Phase::Pending,
    };
    let drain = pod.metadata.annotations.as_ref().and_then(|all| PodDrain::parse(all.get(DRAIN_ANNOTATION)?));
    PodFacts {
        place: workload::place(&pod),
        drain: drain.map(Box::new),
        name: pod.name_any(),
        namespace: pod.namespace().unwrap_or_default(),
        uid: pod.uid().unwrap_or_default().into(),
        phase,
        terminating: pod.metadata.deletion_timestamp.is_some(),
        service_account: pod.spec.and_then(|spec| spec.service_account_name).unwrap_or_default(),
        labels: pod.metadata.labels.unwrap_or_default(),
    }
}

fn labels(namespace: PartialObjectMeta<Namespace>) -> Labels {
    namespace.metadata.labels.unwrap_or_default()
}

fn zone(node: PartialObjectMeta<Node>) -> Zone {
    Zone(node.metadata.labels.and_then(|mut labels| labels.remove(ZONE_LABEL)).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn policy(value: Value) -> DynamicObject {
        serde_json::from_value(value).expect("an object")
    }

    fn object(name: &str, generation: i64, spec: Value) -> DynamicObject {
        policy(json!({
            "apiVersion": "outrigger.dev/v1alpha1", "kind": "ClusterPolicy",
            "metadata": {"name": name, "uid": name, "generation": generation, "creationTimestamp": "2026-01-02T03:04:05Z"},
            "spec": spec,
        }))
    }

    #[test]
    fn a_policy_that_cannot_be_read_is_invalid_and_nothing_more() {
        let unknown = policy_facts(object("web", 1, json!({"teleport": {}})));
        assert!(unknown.spec.expect_err("invalid")[0].reason.contains("unknown field `teleport`"));
        let wrong = policy_facts(object("web", 1, json!({"priority": 2_000_000})));
        assert_eq!(wrong.spec.expect_err("invalid")[0].path, "spec.priority");
        let fine = policy_facts(object("web", 1, json!({"priority": 2})));
        assert_eq!(fine.spec.expect("valid").priority, Some(2));
        assert_eq!(fine.created, 1_767_323_045);
    }

    fn apply(cache: &mut Cache<PolicyFacts>, event: Event<DynamicObject>) -> bool {
        cache.apply(event, policy_facts)
    }

    #[test]
    fn only_what_decides_is_a_change() {
        let mut cache = Cache::default();
        assert!(!apply(&mut cache, Event::Init));
        assert!(!apply(&mut cache, Event::InitApply(object("web", 1, json!({})))));
        assert!(cache.live.is_empty(), "a list is taken whole");
        assert!(apply(&mut cache, Event::InitDone));
        assert!(!apply(&mut cache, Event::Apply(object("web", 1, json!({})))), "status or labels only");
        assert!(apply(&mut cache, Event::Apply(object("web", 2, json!({})))));
        assert!(apply(&mut cache, Event::Delete(object("web", 2, json!({})))));
    }

    #[test]
    fn a_new_list_replaces_the_old_one_whole() {
        let mut cache = Cache::default();
        for event in [Event::Init, Event::InitApply(object("a", 1, json!({}))), Event::InitDone] {
            apply(&mut cache, event);
        }
        apply(&mut cache, Event::Init);
        apply(&mut cache, Event::InitApply(object("a", 1, json!({}))));
        assert!(!apply(&mut cache, Event::InitDone), "the same list");
        apply(&mut cache, Event::Init);
        assert_eq!(cache.live.len(), 1, "in use until the new one is complete");
        assert!(apply(&mut cache, Event::InitDone));
        assert!(cache.live.is_empty());
    }

    #[test]
    fn a_pods_facts() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "a", "namespace": "shop", "uid": "u", "labels": {"app": "web"}, "deletionTimestamp": "2026-01-02T03:04:05Z"},
            "spec": {"serviceAccountName": "web", "containers": []},
            "status": {"phase": "Running"},
        }))
        .expect("a pod");
        let facts = pod_facts(pod);
        assert_eq!((facts.phase, facts.terminating, &*facts.uid), (Phase::Running, true, "u"));
        assert_eq!(facts.service_account, "web");
        assert_eq!((facts.place, facts.drain), (None, None));
    }

    #[test]
    fn of_a_pods_annotations_only_the_drain_is_a_change() {
        let with = |key: &str, value: &str| {
            let pod = json!({"metadata": {"name": "a", "annotations": {key: value}}});
            pod_facts(serde_json::from_value(pod).expect("a pod"))
        };
        let drained = with("outrigger.dev/drain", "worker-a");
        assert_eq!(drained.drain.as_deref(), PodDrain::parse("worker-a").as_ref());
        let other = with("weather", "fine");
        assert!(!other.differs(&with("weather", "rain")) && other.differs(&drained));
        assert!(!drained.differs(&with("outrigger.dev/drain", " worker-a,")), "the same in other words");
    }

    #[test]
    fn a_nodes_zone_is_its_label_or_empty() {
        let node = |labels| {
            let node =
                json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "a", "labels": labels}});
            zone(serde_json::from_value(node).expect("a node"))
        };
        assert_eq!(node(json!({"topology.kubernetes.io/zone": "west"})), Zone("west".to_owned()));
        assert_eq!(node(json!({"zone": "west"})), Zone(String::new()));
    }

    #[tokio::test]
    async fn nothing_is_synced_until_everything_is() {
        let observed = Observed::empty();
        assert!(!observed.is_synced());
        observed.replace(World::default());
        observed.wait_until_synced().await;
    }
}
