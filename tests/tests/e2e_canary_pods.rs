//! On a real cluster: a new version in a second Deployment under the same Service. It fails and is switched back by itself,
//! and no client hears of it any more, although the Service still picks its pod; then it is good, and takes over.

use std::time::Duration;

use serde_json::json;
use system_tests::cluster::{apply, kubectl, kubectl_json, pod_page, wait};
use system_tests::demo::{self, DEMO, answers, canary_has, canary_in, events, tell};
use system_tests::load::{Load, Shape};

const MINUTE: Duration = Duration::from_secs(60);
const STEADY: Shape = Shape { kept: 16, anew: 4, every: Duration::from_millis(30) };
const PORTS: [u16; 3] = [8081, 8082, 8083];

fn policy(attempt: u32) -> String {
    let spec = format!(
        "loadBalancer: {{scope: Workload}}
canary:
  podLabel: version
  version: v2
  attempt: {attempt}
  steps: [{{weight: 20, pause: 10s}}, {{weight: 50, pause: 5s}}]
  analysis: {{interval: 2s, minimumRequests: 100, maxErrorRateMargin: 1, maxLatencyMargin: 1000}}"
    );
    demo::policy("web", &spec)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_deployment_is_switched_back_and_a_good_one_takes_over() {
    demo::install();
    let service = demo::deploy();
    let new = roll_out();
    PORTS.iter().for_each(|port| tell(&new, *port, r#"{"failRate": 0.1, "status": 500}"#));

    let load = Load::start(service, STEADY);
    apply(&policy(1)).unwrap_or_else(|error| panic!("kubectl apply: {error}"));
    let (state, took) = wait("the bad version is switched back", 2 * MINUTE, || canary_in("Failed"));
    println!("    switched back after {:.1} s: {}", took.as_secs_f64(), state["message"]);
    load.stop().await;
    let message = state["message"].as_str().expect("a message");
    assert!(message.contains("switched back") && message.contains("error rate"), "{message}");
    assert_eq!(events("web", "CanaryFailed").len(), 1);
    canary_has(0);
    let (answered, sent) = (counter(&new, "served"), counter(&new, "sent"));
    let after = answers(service, STEADY).await;
    assert!(
        after.failures.is_empty(),
        "its pod sends what it gets to the old version: {:#?}",
        after.failures
    );
    assert_eq!(counter(&new, "served"), answered, "nobody sends it anything");
    assert!(sent < counter(&new, "sent"), "the Service still picks its pod");

    PORTS.iter().for_each(|port| tell(&new, *port, "{}"));
    let load = Load::start(service, STEADY);
    apply(&policy(2)).unwrap_or_else(|error| panic!("kubectl apply: {error}"));
    let (state, took) = wait("the good version takes over", 2 * MINUTE, || canary_in("Succeeded"));
    println!("    took over after {:.1} s: {}", took.as_secs_f64(), state["message"]);
    let outcome = load.stop().await;
    assert!(outcome.failures.is_empty(), "{:#?}", outcome.failures);
    assert_eq!(events("web", "CanarySucceeded").len(), 1);
    canary_has(100);
    let (answered, sent) = (counter(&new, "served"), counter(&new, "sent"));
    let after = answers(service, STEADY).await;
    assert!(after.failures.is_empty(), "{:#?}", after.failures);
    assert!(answered < counter(&new, "served"), "the old pods pass on what they get");
    assert_eq!(counter(&new, "sent"), sent, "and it sends nothing away");
    demo::remove();
}

/// Rolls out a second Deployment of one pod, with the label of the new version. Returns the pod's name.
fn roll_out() -> String {
    let old = kubectl_json(&["get", "deployment", "web", "-n", DEMO]);
    let labels = json!({"app": "web", "version": "v2"});
    let new = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web-next", "namespace": DEMO},
        "spec": {
            "replicas": 1, "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": old["spec"]["template"]["spec"]},
        },
    });
    apply(&new.to_string()).unwrap_or_else(|error| panic!("kubectl apply: {error}"));
    kubectl(&["rollout", "status", "deployment/web-next", "-n", DEMO, "--timeout=180s"]);
    let pods = kubectl_json(&["get", "pods", "-n", DEMO, "-l", "version=v2"]);
    pods["items"][0]["metadata"]["name"].as_str().expect("a name").to_owned()
}

/// How many requests between siblings a pod's proxy served or sent.
fn counter(pod: &str, which: &str) -> u64 {
    let name = format!("outrigger_sibling_requests_{which}_total ");
    let page =
        pod_page(DEMO, pod, "9900/metrics").unwrap_or_else(|error| panic!("metrics of {pod}: {error}"));
    let line = page.lines().find_map(|line| line.strip_prefix(name.as_str())?.parse().ok());
    line.unwrap_or_else(|| panic!("there is no {name} in {page}"))
}
