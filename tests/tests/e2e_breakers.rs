//! On a real cluster: a circuit breaker that opens shows wherever an operator looks, within five seconds.

use std::time::{Duration, Instant};

use system_tests::cluster::{apply, kubectl, pod_page, wait};
use system_tests::demo::{self, DEMO, events, seen, tell};
use system_tests::load::{Load, Shape};

/// How soon it must show everywhere.
const SOON: Duration = Duration::from_secs(5);
const MINUTE: Duration = Duration::from_secs(60);
const STEADY: Shape = Shape { kept: 8, anew: 0, every: Duration::from_millis(20) };
/// The port of `worker-c` of the example.
const PORT: u16 = 8083;
const POLICY: &str = "circuitBreaker:
  worker: {consecutiveFailures: 5, waitDurationInOpenState: 10s, permittedNumberOfCallsInHalfOpenState: 1}";

#[tokio::test(flavor = "multi_thread")]
async fn a_breaker_that_opens_shows_in_kubectl_in_an_event_and_in_prometheus() {
    demo::install();
    let service = demo::deploy();
    apply(&demo::policy("web", POLICY)).unwrap_or_else(|error| panic!("kubectl apply: {error}"));
    let all_usable = || {
        let status = seen("web")["status"].clone();
        (status["proxies"]["summary"] == "2/2" && status["workers"]["summary"] == "6/6").then_some(())
    };
    wait("the policy is in force and all workers are usable", MINUTE, all_usable);

    let pod = demo::pods().remove(0);
    tell(&pod, PORT, r#"{"failRate": 1, "status": 500}"#);
    let load = Load::start(service, STEADY);
    let began = Instant::now();
    let says_open = |line: &str| {
        let parts = ["outrigger_breaker_state{", "\"worker-c\"", "state=\"open\"", "} 1"];
        parts.iter().all(|part| line.contains(part))
    };
    let in_metrics = || pod_page(DEMO, &pod, "9900/metrics").ok()?.lines().any(says_open).then_some(());
    wait("the proxy's metric says open", SOON, in_metrics);
    println!("    the metric after {:.1} s", began.elapsed().as_secs_f64());
    let in_status = || {
        let status = seen("web")["status"].clone();
        (status["openBreakers"] == 1).then(|| status["breakers"][0].clone())
    };
    let (breaker, _) = wait("the status names it", SOON, in_status);
    println!("    the status after {:.1} s", began.elapsed().as_secs_f64());
    let (notes, _) =
        wait("there is an Event", SOON, || Some(events("web", "BreakerOpened")).filter(|e| !e.is_empty()));
    println!("    the Event after {:.1} s", began.elapsed().as_secs_f64());
    assert!(began.elapsed() < SOON, "all of it took {:?}", began.elapsed());

    assert_eq!(breaker["pod"], format!("{DEMO}/{pod}"));
    assert_eq!((&breaker["breaker"], &breaker["state"]), (&"worker worker-c".into(), &"open".into()));
    let (cause, next) =
        (breaker["cause"].as_str().expect("a cause"), breaker["nextProbe"].as_str().expect("a time"));
    for word in ["worker worker-c", &pod, cause, next] {
        assert!(notes[0].contains(word), "the Event does not say '{word}': {}", notes[0]);
    }
    let described = kubectl(&["describe", "orp", "web"]);
    for word in ["worker worker-c", &pod, "Next Probe:", "BreakerOpened"] {
        assert!(described.contains(word), "`kubectl describe` does not say '{word}': {described}");
    }
    let shown = kubectl(&["get", "orp", "web"]);
    let columns: Vec<_> = shown.lines().nth(1).expect("a line").split_whitespace().collect();
    assert!(shown.contains("BREAKERS") && columns.contains(&"1") && columns.contains(&"5/6"), "{shown}");

    tell(&pod, PORT, "{}");
    wait("it is closed again", MINUTE, all_usable);
    assert_eq!(seen("web")["status"]["openBreakers"], 0);
    wait("and there is an Event", SOON, || (!events("web", "BreakerClosed").is_empty()).then_some(()));
    let outcome = load.stop().await;
    println!("    {} requests, {} failed", outcome.requests, outcome.failures.len());
    demo::remove();
}
