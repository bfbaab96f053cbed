//! On a real cluster: a circuit breaker that opens shows wherever an operator looks, within five seconds; an override of
//! the policy holds on every proxy until its time, and ends by itself.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;
use system_tests::cluster::{apply, kubectl, pod_page, wait};
use system_tests::demo::{self, DEMO, events, seen, tell};
use system_tests::load::{Load, Shape};

/// How soon it must show everywhere.
const SOON: Duration = Duration::from_secs(5);
const MINUTE: Duration = Duration::from_secs(60);
const STEADY: Shape = Shape { kept: 8, anew: 8, every: Duration::from_millis(30) };
/// The port of `worker-c` of the example.
const PORT: u16 = 8083;
const POLICY: &str = "circuitBreaker:
  worker: {consecutiveFailures: 5, waitDurationInOpenState: 10s, permittedNumberOfCallsInHalfOpenState: 1}";

#[tokio::test(flavor = "multi_thread")]
async fn breakers_show_and_overrides_hold() {
    demo::install();
    let service = demo::deploy();
    a_breaker_that_opens_shows_in_kubectl_in_an_event_and_in_prometheus(service).await;
    an_override_holds_on_all_proxies_until_its_time(service).await;
    demo::remove();
}

async fn a_breaker_that_opens_shows_in_kubectl_in_an_event_and_in_prometheus(service: SocketAddr) {
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
    // A half-open one has a usable worker already.
    wait("the status names none", MINUTE, || (seen("web")["status"]["openBreakers"] == 0).then_some(()));
    wait("and there is an Event", SOON, || (!events("web", "BreakerClosed").is_empty()).then_some(()));
    let outcome = load.stop().await;
    println!("    {} requests, {} failed", outcome.requests, outcome.failures.len());
}

/// For how long the override is to hold.
const HELD: i64 = 20;

async fn an_override_holds_on_all_proxies_until_its_time(service: SocketAddr) {
    let pods = demo::pods();
    let load = Load::start(service, STEADY);
    let until = Timestamp::from_second(Timestamp::now().as_second() + HELD).expect("a time");
    let spec = format!(
        "priority: 1000\nbreakerOverrides:\n- {{breaker: worker/worker-c, state: Open, until: \"{until}\", reason: a test}}"
    );
    apply(&demo::policy("incident", &spec)).unwrap_or_else(|error| panic!("kubectl apply: {error}"));
    let generation = seen("incident")["metadata"]["generation"].clone();
    for pod in &pods {
        let held = || {
            (shows(pod, "override", "by=\"policy\"") && shows(pod, "state", "state=\"open\"")).then_some(())
        };
        wait(&format!("{pod} holds the breaker open"), SOON, held);
    }
    std::thread::sleep(Duration::from_millis(500)); // what was in flight is answered
    let before: Vec<_> = pods.iter().map(|pod| answered(pod)).collect();
    while Timestamp::now().as_second() < until.as_second() - 3 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for (pod, before) in pods.iter().zip(before) {
        assert_eq!(answered(pod), before, "a request reached worker-c of {pod}");
        assert!(shows(pod, "override", "by=\"policy\""), "it holds still");
    }
    for pod in &pods {
        let over = || {
            (!shows(pod, "override", "by=\"policy\"") && shows(pod, "state", "state=\"closed\""))
                .then_some(())
        };
        wait(&format!("the override is over on {pod}"), Duration::from_secs(3) + SOON, over);
        let late = Timestamp::now().as_millisecond() - until.as_millisecond();
        println!("    over on {pod}, seen {late} ms after its time");
        assert!(0 <= late, "it ended before its time");
    }
    assert_eq!(
        seen("incident")["metadata"]["generation"],
        generation,
        "by itself: nobody changed the policy"
    );
    for pod in &pods {
        let before = answered(pod);
        wait(&format!("worker-c of {pod} gets requests again"), SOON, || {
            (before < answered(pod)).then_some(())
        });
    }
    let outcome = load.stop().await;
    println!("    {} requests, {} failed", outcome.requests, outcome.failures.len());
    assert!(outcome.failures.is_empty(), "{:#?}", outcome.failures);
}

/// Whether a proxy's metric of worker-c's breaker with this label is 1.
fn shows(pod: &str, metric: &str, label: &str) -> bool {
    let page = pod_page(DEMO, pod, "9900/metrics").unwrap_or_default();
    let name = format!("outrigger_breaker_{metric}{{");
    let parts = ["level=\"worker\"", "name=\"worker-c\"", label, "} 1"];
    page.lines().any(|line| line.starts_with(&name) && parts.iter().all(|part| line.contains(part)))
}

/// How many requests worker-c of a pod has answered, as it counts itself.
fn answered(pod: &str) -> u64 {
    let page = pod_page(DEMO, pod, &format!("{PORT}/metrics")).expect("the worker's metrics");
    let counts =
        page.lines().filter_map(|line| line.strip_prefix("worker_requests_total{")?.split(' ').nth(1));
    counts.map(|count| count.parse::<u64>().expect("a count")).sum()
}
