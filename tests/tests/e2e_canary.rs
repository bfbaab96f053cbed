//! On a real cluster: a new version that fails is switched back by itself and it is said why; a good one takes over.

use std::time::Duration;

use system_tests::cluster::{apply, kubectl, wait};
use system_tests::demo::{self, answers, canary_has, canary_in, events, tell};
use system_tests::load::{Load, Shape};

const MINUTE: Duration = Duration::from_secs(60);
const STEADY: Shape = Shape { kept: 16, anew: 0, every: Duration::from_millis(30) };
/// The port of `worker-c` of the example: the new version.
const PORT: u16 = 8083;

fn policy(attempt: u32) -> String {
    let spec = format!(
        "workers: [{{name: worker-c, version: v2}}]
canary:
  version: v2
  attempt: {attempt}
  steps: [{{weight: 20, pause: 10s}}, {{weight: 50, pause: 5s}}]
  analysis: {{interval: 2s, minimumRequests: 100, maxErrorRateMargin: 1, maxLatencyMargin: 1000}}"
    );
    demo::policy("web", &spec)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_version_is_switched_back_and_a_good_one_takes_over() {
    demo::install();
    let service = demo::deploy();
    let pods = demo::pods();
    pods.iter().for_each(|pod| tell(pod, PORT, r#"{"failRate": 0.05, "status": 500}"#));

    let load = Load::start(service, STEADY);
    apply(&policy(1)).unwrap_or_else(|error| panic!("kubectl apply: {error}"));
    let (state, took) = wait("the bad version is switched back", 2 * MINUTE, || canary_in("Failed"));
    println!("    switched back after {:.1} s: {}", took.as_secs_f64(), state["message"]);
    let outcome = load.stop().await;
    println!("    {} requests, {} failed", outcome.requests, outcome.failures.len());
    assert!(outcome.workers.contains("worker-c"), "it was tried");
    assert!(outcome.failures.len() * 50 < outcome.requests, "a share of 20 % failed in 5 %: 1 %");
    let message = state["message"].as_str().expect("a message");
    assert!(message.contains("switched back") && message.contains("error rate"), "{message}");
    let described = kubectl(&["describe", "orp", "web"]);
    assert!(described.contains("its error rate is"), "`kubectl describe` says why: {described}");
    assert_eq!(events("web", "CanaryFailed").len(), 1);
    canary_has(0);
    let after = answers(service, STEADY).await;
    assert!(!after.workers.contains("worker-c") && after.failures.is_empty(), "{after:?}");

    pods.iter().for_each(|pod| tell(pod, PORT, "{}"));
    let load = Load::start(service, STEADY);
    apply(&policy(2)).unwrap_or_else(|error| panic!("kubectl apply: {error}"));
    let (state, took) = wait("the good version takes over", 2 * MINUTE, || canary_in("Succeeded"));
    println!("    took over after {:.1} s: {}", took.as_secs_f64(), state["message"]);
    let outcome = load.stop().await;
    assert!(outcome.failures.is_empty(), "{:#?}", outcome.failures);
    assert_eq!(events("web", "CanarySucceeded").len(), 1);
    canary_has(100);
    let after = answers(service, STEADY).await;
    assert!(after.workers.iter().map(String::as_str).eq(["worker-c"]), "{after:?}");
    demo::remove();
}
