//! The example on the cluster: two pods of three workers behind the operator of the chart.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;

use crate::cluster::{apply, kubectl, kubectl_json, pod_page, run, run_with_input, wait};
use crate::load::{Load, Outcome, Shape};

/// The namespace of the operator.
pub const SYSTEM: &str = "outrigger-system";
/// The namespace of the example.
pub const DEMO: &str = "demo";

/// Installs the chart with the images that were built here, on a cluster that has nothing of it.
pub fn install() {
    let _ = run("kubectl", &["delete", "namespace", DEMO, SYSTEM, "--ignore-not-found", "--wait"]);
    let _ = run("kubectl", &["delete", "orp", "--all"]); // the definition may not be there either
    let chart = ["upgrade", "--install", "outrigger", "charts/outrigger", "--namespace", SYSTEM];
    let images = "image.registry=localhost,proxy.image.registry=localhost,image.tag=dev,proxy.image.tag=dev";
    let how = ["--create-namespace", "--set", images, "--wait", "--timeout", "3m"];
    run("helm", &[&chart[..], &how[..]].concat()).unwrap_or_else(|error| panic!("helm: {error}"));
    wait_for_injection();
}

/// Returns when a new pod of the example gets its proxy. The chart's `failurePolicy: Ignore` lets pods start without
/// one until the API server reaches the webhook, which is a moment after the operator's pods are ready.
fn wait_for_injection() {
    let namespace = format!(
        "{{apiVersion: v1, kind: Namespace, metadata: {{name: {DEMO}, labels: {{outrigger.dev/inject: enabled}}}}}}"
    );
    apply(&namespace).unwrap_or_else(|error| panic!("kubectl apply: {error}"));
    let pod = format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: trial, namespace: {DEMO}}}, spec: {{containers: [{{name: a, \
         image: trial, ports: [{{name: worker-a, containerPort: 8081}}]}}]}}}}"
    );
    let trial = ["create", "--dry-run=server", "-o", "json", "-f", "-"];
    wait("a new pod gets its proxy", Duration::from_secs(60), || {
        let made: Value = serde_json::from_str(&run_with_input("kubectl", &trial, &pod).ok()?).ok()?;
        (!made["spec"]["initContainers"].is_null()).then_some(())
    });
}

/// Removes the example, the chart and the policies.
pub fn remove() {
    kubectl(&["delete", "namespace", DEMO, "--wait"]);
    run("helm", &["uninstall", "outrigger", "--namespace", SYSTEM, "--wait"]).expect("helm uninstalls");
    kubectl(&["delete", "orp", "--all"]);
    kubectl(&["delete", "namespace", SYSTEM, "--wait"]);
}

/// Deploys the example. Returns its Service's address, on a port of the node.
pub fn deploy() -> SocketAddr {
    kubectl(&["apply", "-f", "deploy/workers/deployment.yaml"]);
    let port = r#"{"spec": {"type": "NodePort"}}"#;
    kubectl(&["patch", "service", "web", "-n", DEMO, "-p", port]);
    kubectl(&["rollout", "status", "deployment/web", "-n", DEMO, "--timeout=180s"]);
    assert_eq!(pods().len(), 2);
    on_the_node("web")
}

/// The address of the proxy of one pod, on a port of the node.
pub fn reach(pod: &str) -> SocketAddr {
    kubectl(&["label", "pod", "-n", DEMO, pod, "test-pod=reached", "--overwrite"]);
    let service = format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: reached, namespace: {DEMO}}}, spec: {{type: NodePort, \
         selector: {{test-pod: reached}}, ports: [{{port: 80, targetPort: 8000}}]}}}}"
    );
    apply(&service).unwrap_or_else(|error| panic!("kubectl apply: {error}"));
    on_the_node("reached")
}

/// The address of a Service of type NodePort.
fn on_the_node(service: &str) -> SocketAddr {
    let service = kubectl_json(&["get", "service", service, "-n", DEMO]);
    let port = service["spec"]["ports"][0]["nodePort"].as_u64().expect("a port");
    let nodes = kubectl_json(&["get", "nodes"]);
    let addresses = nodes["items"][0]["status"]["addresses"].as_array().expect("addresses").clone();
    let node = addresses.iter().find(|address| address["type"] == "InternalIP").expect("an internal address");
    format!("{}:{port}", node["address"].as_str().expect("text")).parse().expect("an address")
}

/// The names of the example's pods that are not on their way out.
pub fn pods() -> Vec<String> {
    let pods = kubectl_json(&["get", "pods", "-n", DEMO, "-l", "app=web"]);
    let items = pods["items"].as_array().expect("a list").clone();
    let live = items.into_iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    live.map(|pod| pod["metadata"]["name"].as_str().expect("a name").to_owned()).collect()
}

/// A policy of this name for the example, with these lines as its spec.
pub fn policy(name: &str, spec: &str) -> String {
    let head = format!(
        "apiVersion: outrigger.dev/v1alpha1\nkind: ClusterPolicy\nmetadata: {{name: {name}}}\nspec:\n"
    );
    let spec: String = spec.lines().map(|line| format!("  {line}\n")).collect();
    format!("{head}  subject: {{podSelector: {{matchLabels: {{app: web}}}}}}\n{spec}")
}

/// Tells a worker of the example, by its port, how to behave from now on: see `deploy/workers/server.js`.
pub fn tell(pod: &str, port: u16, manner: &str) {
    let path = format!("/api/v1/namespaces/{DEMO}/pods/{pod}:{port}/proxy/control");
    let told = run_with_input("kubectl", &["create", "--raw", &path, "-f", "-"], manner);
    told.unwrap_or_else(|error| panic!("cannot tell {pod}:{port}: {error}"));
}

/// The policy as it is now.
pub fn seen(name: &str) -> Value {
    kubectl_json(&["get", "clusterpolicies.outrigger.dev", name])
}

/// The words of a policy's Events of this reason, and not of an earlier policy of the same name.
pub fn events(name: &str, reason: &str) -> Vec<String> {
    let policy = seen(name);
    let uid = policy["metadata"]["uid"].as_str().expect("a UID");
    let selector = format!("involvedObject.uid={uid},reason={reason}");
    let events = kubectl_json(&["get", "events", "-n", "default", "--field-selector", &selector]);
    let items = events["items"].as_array().expect("a list").clone();
    items.iter().map(|event| event["message"].as_str().unwrap_or_default().to_owned()).collect()
}

/// What the status of the policy `web` says of its canary, once it is in this phase.
pub fn canary_in(phase: &str) -> Option<Value> {
    let state = seen("web")["status"]["canary"].clone();
    (state["phase"] == phase).then_some(state)
}

/// Returns when every proxy gives the version `v2` this share.
pub fn canary_has(weight: u32) {
    let metric = format!(r#"outrigger_canary_weight{{version="v2"}} {weight}"#);
    let has = |pod: &String| {
        pod_page(DEMO, pod, "9900/metrics").is_ok_and(|page| page.lines().any(|line| line == metric))
    };
    let minute = Duration::from_secs(60);
    wait("the decision is in force", minute, || pods().iter().all(has).then_some(()));
}

/// What two seconds of load get.
pub async fn answers(service: SocketAddr, shape: Shape) -> Outcome {
    let load = Load::start(service, shape);
    tokio::time::sleep(Duration::from_secs(2)).await;
    load.stop().await
}
