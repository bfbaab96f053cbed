//! `loadBalancer.scope: Workload` on a real cluster: two pods of the example, one of which loses its workers, and a
//! stranger at the sibling port.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};
use system_tests::client::{self, get, request};
use system_tests::cluster::{apply, kill_container, kubectl, kubectl_json, pod_page, wait};
use system_tests::demo::{self, DEMO};
use system_tests::load::{Load, Shape};

const MINUTE: Duration = Duration::from_secs(60);
const SHAPE: Shape = Shape { kept: 8, anew: 4, every: Duration::from_millis(40) };
const WORKERS: [&str; 3] = ["a", "b", "c"];

const POLICY: &str = "
apiVersion: outrigger.dev/v1alpha1
kind: ClusterPolicy
metadata: {name: web}
spec:
  subject: {podSelector: {matchLabels: {app: web}}}
  loadBalancer: {scope: Workload}
  healthCheck: {active: {path: /healthz, interval: 1s, timeout: 1s, unhealthyThreshold: 1, healthyThreshold: 1}}
";

/// A Service of one pod alone, ready or not: its proxy, its workers, its sibling port.
const ONE_POD: &str = "
apiVersion: v1
kind: Service
metadata: {name: NAME, namespace: demo}
spec:
  type: NodePort
  publishNotReadyAddresses: true
  selector: {e2e-workload: NAME}
  ports:
  - {name: proxy, port: 8000}
  - {name: worker-a, port: 8081}
  - {name: worker-b, port: 8082}
  - {name: worker-c, port: 8083}
  - {name: sibling, port: 9902}
";

/// One pod and the ports of the node that lead to it.
struct Pod {
    name: String,
    ip: String,
    proxy: SocketAddr,
    workers: Vec<SocketAddr>,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workload_serves_as_one() {
    demo::install();
    let [one, two] = deploy();
    apply(POLICY).unwrap_or_else(|error| panic!("kubectl apply: {error}"));
    for (from, to) in [(&one, &two), (&two, &one)] {
        let usable = "outrigger_siblings{zone=\"same\",usable=\"true\"} 1";
        wait("each proxy reaches the other", MINUTE, || metrics(from)?.contains(usable).then_some(()));
        println!("    {} reaches {}", from.name, to.name);
    }
    a_pod_without_workers_keeps_serving(&one, &two).await;
    no_request_goes_round(&one, &two).await;
    a_stranger_is_refused(&one);
    kubectl(&["delete", "pod", "stranger", "-n", "default", "--wait"]);
    demo::remove();
}

fn deploy() -> [Pod; 2] {
    kubectl(&["apply", "-f", "deploy/workers/deployment.yaml"]);
    kubectl(&["rollout", "status", "deployment/web", "-n", DEMO, "--timeout=180s"]);
    let pods = kubectl_json(&["get", "pods", "-n", DEMO, "-l", "app=web"]);
    let items = pods["items"].as_array().expect("a list");
    let live: Vec<_> = items.iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null()).collect();
    assert_eq!(live.len(), 2);
    [expose(live[0], "one"), expose(live[1], "two")]
}

fn expose(pod: &Value, service: &str) -> Pod {
    let name = pod["metadata"]["name"].as_str().expect("a name").to_owned();
    kubectl(&["label", "pod", "-n", DEMO, &name, &format!("e2e-workload={service}")]);
    apply(&ONE_POD.replace("NAME", service)).unwrap_or_else(|error| panic!("kubectl apply: {error}"));
    let nodes = kubectl_json(&["get", "nodes"]);
    let addresses = nodes["items"][0]["status"]["addresses"].as_array().expect("addresses").clone();
    let node = addresses.iter().find(|address| address["type"] == "InternalIP").expect("an internal address");
    let node = node["address"].as_str().expect("text");
    let service = kubectl_json(&["get", "service", "-n", DEMO, service]);
    let ports = service["spec"]["ports"].as_array().expect("ports").clone();
    let at = |name: &str| -> SocketAddr {
        let port = ports.iter().find(|port| port["name"] == name).expect("a port");
        format!("{node}:{}", port["nodePort"]).parse().expect("an address")
    };
    let pod = Pod {
        ip: pod["status"]["podIP"].as_str().expect("an address").to_owned(),
        proxy: at("proxy"),
        workers: ["worker-a", "worker-b", "worker-c"].map(at).into(),
        name,
    };
    // The node learns of a Service a moment after the API server has it.
    for port in pod.workers.iter().chain([&pod.proxy]) {
        wait("the node's port leads to the pod", MINUTE, || std::net::TcpStream::connect(port).ok());
    }
    pod
}

fn metrics(pod: &Pod) -> Option<String> {
    pod_page(DEMO, &pod.name, "9900/metrics").ok()
}

fn counter(pod: &Pod, name: &str) -> u64 {
    let page = metrics(pod).expect("metrics");
    let found = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
    found.unwrap_or_else(|| panic!("there is no {name}"))
}

/// Tells all workers of a pod that they are well or not, and waits until their proxy knows.
async fn health(pod: &Pod, healthy: bool) {
    for worker in &pod.workers {
        let body = json!({"healthy": healthy}).to_string();
        let told = client::send(*worker, request("POST", "/control", &[], &body)).await.expect("an answer");
        assert!(told.status.is_success(), "{told:?}");
    }
    wait("the proxy knows how its workers are", MINUTE, || {
        let page = metrics(pod)?;
        let usable = page.lines().filter(|line| line.starts_with("outrigger_worker_usable{"));
        let found: Vec<_> = usable.map(|line| line.ends_with(" 1")).collect();
        (found.len() == 3 && found.iter().all(|usable| *usable == healthy)).then_some(())
    });
}

/// Who answers: the name of the pod.
async fn host(pod: &Pod) -> String {
    let answer = client::send(pod.proxy, get("/", &[])).await.expect("an answer");
    let said: Value =
        serde_json::from_slice(&answer.body).unwrap_or_else(|error| panic!("{error}: {answer:?}"));
    said["host"].as_str().expect("a host").to_owned()
}

async fn a_pod_without_workers_keeps_serving(one: &Pod, two: &Pod) {
    println!("--- a pod whose workers are all down");
    assert_eq!(host(one).await, one.name, "local first");
    let load = Load::start(one.proxy, SHAPE);
    health(one, false).await;
    assert_eq!(host(one).await, two.name, "the sibling serves");
    for worker in WORKERS {
        kill_container(DEMO, &one.name, worker);
    }
    tokio::time::sleep(Duration::from_secs(3)).await; // load while they are down and come back
    let outcome = load.stop().await;
    println!("    {} requests, {} failed", outcome.requests, outcome.failures.len());
    assert!(outcome.failures.is_empty(), "{:#?}", outcome.failures.iter().take(10).collect::<Vec<_>>());
    let (sent, served) = (
        counter(one, "outrigger_sibling_requests_sent_total"),
        counter(two, "outrigger_sibling_requests_served_total"),
    );
    println!("    {sent} sent to the sibling, {served} served by it");
    assert!(0 < sent && sent <= served, "{sent} sent, {served} served");
    wait("the pod serves itself again", MINUTE, || {
        let page = metrics(one)?;
        let mut usable = page.lines().filter(|line| line.starts_with("outrigger_worker_usable{"));
        usable.all(|line| line.ends_with(" 1")).then_some(())
    });
    assert_eq!(host(one).await, one.name);
}

async fn no_request_goes_round(one: &Pod, two: &Pod) {
    println!("--- no pod has workers");
    health(one, false).await;
    health(two, false).await;
    let before = [one, two].map(|pod| counter(pod, "outrigger_sibling_requests_served_total"));
    for _ in 0..10 {
        let answer = client::send(one.proxy, get("/", &[])).await.expect("an answer");
        assert_eq!(answer.status, 503, "{answer:?}");
    }
    let after = [one, two].map(|pod| counter(pod, "outrigger_sibling_requests_served_total"));
    println!("    10 requests: {} steps to the sibling, {} back", after[1] - before[1], after[0] - before[0]);
    assert_eq!(after[0], before[0], "nothing came back");
    assert!(after[1] - before[1] <= 10, "{after:?} after {before:?}");
    health(one, true).await;
    health(two, true).await;
    assert_eq!(host(one).await, one.name);
}

/// A pod without a certificate: what it hears from the sibling port.
fn a_stranger_is_refused(one: &Pod) {
    println!("--- a stranger at the sibling port");
    kubectl(&[
        "run",
        "stranger",
        "-n",
        "default",
        "--image=localhost/outrigger-worker:dev",
        "--image-pull-policy=IfNotPresent",
        "--restart=Never",
        "--labels=outrigger.dev/inject=disabled",
    ]);
    kubectl(&["wait", "pod/stranger", "-n", "default", "--for=condition=Ready", "--timeout=60s"]);
    let script = "
        const tls = require('node:tls');
        const socket = tls.connect({host: process.argv[1], port: 9902, rejectUnauthorized: false});
        let heard = '';
        socket.on('secureConnect', () => socket.write('GET / HTTP/1.1\\r\\nhost: x\\r\\n\\r\\n'));
        socket.on('data', (data) => { heard += data; });
        socket.on('error', (error) => { console.log('refused: ' + error.message); process.exit(); });
        socket.on('close', () => { console.log('closed: ' + heard); process.exit(); });
        setTimeout(() => { console.log('silence: ' + heard); process.exit(); }, 5000);
    ";
    let served = counter(one, "outrigger_sibling_requests_served_total");
    let heard = kubectl(&["exec", "-n", "default", "stranger", "--", "node", "-e", script, &one.ip]);
    println!("    it heard: {}", heard.trim());
    assert!(heard.contains("refused: ") && heard.contains("certificate"), "{heard}");
    assert_eq!(counter(one, "outrigger_sibling_requests_served_total"), served);
    assert!(0 < counter(one, "outrigger_sibling_connections_refused_total"));
}
