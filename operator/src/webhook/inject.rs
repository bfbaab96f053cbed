//! Adds the proxy to a pod. Pure: a pod and settings in, a JSON patch out.
//!
//! The patch only adds. A pod that has the proxy already is left alone, so being asked again after other
//! webhooks changed the pod is safe.

mod overrides;
mod sidecar;

use std::collections::BTreeMap;

use json_patch::jsonptr::PointerBuf;
use json_patch::{AddOperation, Patch, PatchOperation};
use k8s_openapi::api::core::v1::{Pod, PodSpec};
use outrigger_policy::Violation;
use serde_json::{Value, json};

use self::overrides::Overrides;

/// The label that asks for a proxy, on a namespace or a pod: `enabled` or `disabled`.
pub const INJECT_LABEL: &str = "outrigger.dev/inject";
/// The label of every pod that has a proxy.
pub const INJECTED_LABEL: &str = "outrigger.dev/injected";
/// The annotation that tells which release injected the proxy.
pub const VERSION_ANNOTATION: &str = "outrigger.dev/injected-version";
/// The name of the proxy's container.
pub const CONTAINER: &str = "outrigger-proxy";
/// The name of the port on which the proxy takes requests of siblings.
pub const SIBLING_PORT_NAME: &str = "outrigger-peers";

/// Container ports of this prefix are workers.
const WORKER_PREFIX: &str = "worker-";
const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";

/// The proxy that pods get.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub struct Settings {
    /// The proxy's image.
    #[arg(long, env = "OUTRIGGER_PROXY_IMAGE", default_value = concat!("outrigger-proxy:", env!("CARGO_PKG_VERSION")))]
    pub proxy_image: String,
    /// When the proxy's image is pulled.
    #[arg(long, env = "OUTRIGGER_PROXY_IMAGE_PULL_POLICY", default_value = "IfNotPresent")]
    pub proxy_image_pull_policy: String,
    /// Where proxies find the operator.
    #[arg(long, env = "OUTRIGGER_PUSH_ADDRESS", default_value = "outrigger-push.outrigger.svc:8443")]
    pub push_address: String,
    /// The proxy's log filter.
    #[arg(long, env = "OUTRIGGER_PROXY_LOG", default_value = "info")]
    pub proxy_log: String,
    /// The port on which the proxy takes requests.
    #[arg(long, env = "OUTRIGGER_PROXY_PORT", default_value_t = 8000)]
    pub proxy_port: u16,
    /// The port of the proxy's metrics and health.
    #[arg(long, env = "OUTRIGGER_PROXY_ADMIN_PORT", default_value_t = 9900)]
    pub proxy_admin_port: u16,
    /// The port on which the proxy takes requests of its siblings in other pods.
    #[arg(long, env = "OUTRIGGER_PROXY_SIBLING_PORT", default_value_t = 9902)]
    pub proxy_sibling_port: u16,
    /// The CPU a proxy asks for. Empty: none.
    #[arg(long, env = "OUTRIGGER_PROXY_CPU_REQUEST", default_value = "100m")]
    pub proxy_cpu_request: String,
    /// The CPU a proxy may use; also the number of its data threads. Empty: no limit.
    #[arg(long, env = "OUTRIGGER_PROXY_CPU_LIMIT", default_value = "1")]
    pub proxy_cpu_limit: String,
    /// The memory a proxy asks for. Empty: none.
    #[arg(long, env = "OUTRIGGER_PROXY_MEMORY_REQUEST", default_value = "32Mi")]
    pub proxy_memory_request: String,
    /// The memory a proxy may use. Empty: no limit.
    #[arg(long, env = "OUTRIGGER_PROXY_MEMORY_LIMIT", default_value = "256Mi")]
    pub proxy_memory_limit: String,
    /// How many proxies before this one are believed what they say of the client. Empty: none.
    #[arg(long, env = "OUTRIGGER_PROXY_TRUSTED_HOPS", default_value = "")]
    pub proxy_trusted_hops: String,
    /// The networks of proxies that are believed, separated by commas. Empty: none.
    #[arg(long, env = "OUTRIGGER_PROXY_TRUSTED_NETWORKS", default_value = "")]
    pub proxy_trusted_networks: String,
    /// Connections of clients that a proxy holds at once. Empty: the proxy's own default.
    #[arg(long, env = "OUTRIGGER_PROXY_MAX_CONNECTIONS", default_value = "")]
    pub proxy_max_connections: String,
}

/// What becomes of a pod.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// It gets a proxy.
    Inject(Patch),
    /// It runs without one; the reason is worth telling the user when there is one.
    Skip(Option<String>),
    /// It asks for something that cannot be. A pod without the limits its owner wrote down would be worse.
    Refuse(Vec<Violation>),
}

/// One process behind the proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Worker {
    name: String,
    port: u16,
}

/// Decides and builds the patch.
pub fn inject(pod: &Pod, settings: &Settings, trust_bundle: &str) -> Outcome {
    let Some(spec) = &pod.spec else { return Outcome::Skip(None) };
    if let Some(reason) = unsuitable(pod, spec) {
        return Outcome::Skip(reason);
    }
    let annotations = pod.metadata.annotations.clone().unwrap_or_default();
    let overrides = match Overrides::read(&annotations) {
        Ok(overrides) => overrides,
        Err(violations) => return Outcome::Refuse(violations),
    };
    let workers = overrides.workers.clone().unwrap_or_else(|| worker_ports(spec));
    if workers.is_empty() {
        return Outcome::Skip(Some(format!(
            "no proxy was injected: the pod has neither a container port named '{WORKER_PREFIX}…' nor the annotation '{}'",
            overrides::WORKERS
        )));
    }
    let settings = overrides.apply(settings);
    let violations = clashes(spec, &workers, &settings);
    if !violations.is_empty() {
        return Outcome::Refuse(violations);
    }
    Outcome::Inject(patch(pod, spec, &settings, &workers, trust_bundle))
}

/// Why a pod gets no proxy whatever it asks for: `Some(None)` when there is nothing to tell.
fn unsuitable(pod: &Pod, spec: &PodSpec) -> Option<Option<String>> {
    let label = |name: &str| pod.metadata.labels.as_ref().and_then(|labels| labels.get(name));
    let mirror = pod.metadata.annotations.as_ref().is_some_and(|all| all.contains_key(MIRROR_ANNOTATION));
    let mut containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    if label(INJECT_LABEL).is_some_and(|value| value == "disabled") || mirror {
        return Some(None);
    }
    if containers.any(|container| container.name == CONTAINER) {
        return Some(None); // asked again, or written by hand
    }
    if spec.host_network == Some(true) {
        return Some(Some("no proxy was injected: the pod uses the host's network".to_owned()));
    }
    if spec.os.as_ref().is_some_and(|os| os.name != "linux") {
        return Some(Some("no proxy was injected: the pod does not run on Linux".to_owned()));
    }
    None
}

/// The workers that the containers name. Where two containers use one name, the later gets its port added.
fn worker_ports(spec: &PodSpec) -> Vec<Worker> {
    let mut workers: Vec<Worker> = Vec::new();
    for port in spec.containers.iter().flat_map(|container| container.ports.iter().flatten()) {
        let Some(name) = port.name.as_deref().filter(|name| name.starts_with(WORKER_PREFIX)) else {
            continue;
        };
        let Ok(number) = u16::try_from(port.container_port) else { continue };
        if port.protocol.as_deref().unwrap_or("TCP") != "TCP" {
            continue;
        }
        let taken = workers.iter().any(|worker| worker.name == name);
        let name = if taken { format!("{name}-{number}") } else { name.to_owned() };
        workers.push(Worker { name, port: number });
    }
    workers
}

/// All containers of a pod share their ports: one that the proxy listens on cannot be another's.
fn clashes(spec: &PodSpec, workers: &[Worker], settings: &Settings) -> Vec<Violation> {
    let own = [
        (settings.proxy_port, overrides::PORT),
        (settings.proxy_admin_port, overrides::ADMIN_PORT),
        (settings.proxy_sibling_port, overrides::SIBLING_PORT),
    ];
    let clash = |path: String, port: u16| {
        let (_, annotation) = own.iter().find(|(own, _)| *own == port)?;
        let reason = format!(
            "must not be {port}: the proxy listens there; choose another port here or with the annotation '{annotation}'"
        );
        Some(Violation { path, reason })
    };
    let mut violations = Vec::new();
    for (i, container) in spec.containers.iter().enumerate() {
        for (j, port) in container.ports.iter().flatten().enumerate() {
            let path = format!("spec.containers[{i}].ports[{j}].containerPort");
            violations.extend(u16::try_from(port.container_port).ok().and_then(|port| clash(path, port)));
        }
    }
    if violations.is_empty() {
        let path = || overrides::path(overrides::WORKERS);
        violations.extend(workers.iter().filter_map(|worker| clash(path(), worker.port)));
    }
    for (i, (port, annotation)) in own.iter().enumerate() {
        if let Some((_, other)) = own[..i].iter().find(|(other, _)| other == port) {
            let reason = format!("must not be {port}: the proxy listens there, see the annotation '{other}'");
            violations.push(Violation { path: overrides::path(annotation), reason });
        }
    }
    violations
}

fn patch(pod: &Pod, spec: &PodSpec, settings: &Settings, workers: &[Worker], trust_bundle: &str) -> Patch {
    let mut operations = Vec::new();
    let labels = [(INJECTED_LABEL.to_owned(), "true".to_owned())].into();
    add_to_map(&mut operations, ["metadata", "labels"], pod.metadata.labels.as_ref(), labels);
    let held = pod.metadata.annotations.as_ref();
    let annotations = annotations(settings, held);
    add_to_map(&mut operations, ["metadata", "annotations"], held, annotations);
    let volumes = sidecar::volumes().into_iter().map(|volume| json!(volume)).collect();
    add_to_list(&mut operations, "volumes", "-", spec.volumes.is_some(), volumes);
    // First of the init containers: the others may then already use the proxy, and it outlives all.
    let container = json!(sidecar::container(settings, workers, trust_bundle));
    add_to_list(&mut operations, "initContainers", "0", spec.init_containers.is_some(), vec![container]);
    Patch(operations)
}

/// What release this is and, unless the pod says something else, where Prometheus finds the metrics.
fn annotations(settings: &Settings, held: Option<&BTreeMap<String, String>>) -> BTreeMap<String, String> {
    let mut annotations =
        BTreeMap::from([(VERSION_ANNOTATION.to_owned(), env!("CARGO_PKG_VERSION").to_owned())]);
    let scraped = held.is_some_and(|held| held.keys().any(|key| key.starts_with("prometheus.io/")));
    if !scraped {
        let port = settings.proxy_admin_port.to_string();
        for (key, value) in [("scrape", "true"), ("port", &port), ("path", "/metrics")] {
            annotations.insert(format!("prometheus.io/{key}"), value.to_owned());
        }
    }
    annotations
}

fn add_to_map(
    operations: &mut Vec<PatchOperation>,
    at: [&str; 2],
    held: Option<&BTreeMap<String, String>>,
    new: BTreeMap<String, String>,
) {
    if held.is_none() {
        operations.push(add(&at, json!(new)));
        return;
    }
    operations.extend(new.into_iter().map(|(key, value)| add(&[at[0], at[1], &key], value.into())));
}

fn add_to_list(
    operations: &mut Vec<PatchOperation>,
    list: &str,
    position: &str,
    exists: bool,
    new: Vec<Value>,
) {
    if exists {
        operations.extend(new.into_iter().map(|value| add(&["spec", list, position], value)));
    } else {
        operations.push(add(&["spec", list], new.into()));
    }
}

fn add(path: &[&str], value: Value) -> PatchOperation {
    PatchOperation::Add(AddOperation { path: PointerBuf::from_tokens(path.iter().copied()), value })
}

#[cfg(test)]
mod tests;
