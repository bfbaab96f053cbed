//! What a proxy tells the operator of its workers: the operator's own push server and the proxy's own client, with
//! only the API server played by a table.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use outrigger_operator::controller::observe::PodFacts;
use outrigger_policy::report::Report;
use system_tests::client::{self, get};
use system_tests::operator::{Replica, certificates, pod, policy, token};
use system_tests::proxy::{RunningProxy, start_pushed};
use system_tests::workers::{self, Manner};

/// One replica, and one pod.
struct Operator {
    replica: Replica,
    trust: String,
    pod: Arc<PodFacts>,
}

async fn operator() -> Operator {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default(); // the tests of a file share it
    let (certificates, _) = certificates();
    let replica = Replica::start("replica-1", &certificates).await;
    Operator { replica, trust: certificates.trust_bundle(), pod: pod("web") }
}

impl Operator {
    /// One policy of this spec.
    fn publish(&self, spec: &str) {
        self.replica.publish(&[policy("web", 1, spec)], std::slice::from_ref(&self.pod));
    }

    /// The pod's proxy over these workers.
    fn proxy(&self, workers: &[SocketAddr]) -> RunningProxy {
        start_pushed(workers, (self.replica.address, &self.trust), &token(&self.pod))
    }

    /// The proxy's report, as soon as it says what is asked.
    async fn report(&self, what: &str, says: impl Fn(&Report) -> bool) -> Arc<Report> {
        let mut changes = self.replica.hub.changes();
        let heard = tokio::time::timeout(Duration::from_secs(10), async {
            loop {
                changes.borrow_and_update();
                let report = self.replica.answer(&self.pod).and_then(|answer| answer.report);
                if let Some(report) = report.filter(|report| says(report)) {
                    return report;
                }
                changes.changed().await.expect("the hub lives");
            }
        });
        heard.await.unwrap_or_else(|_| panic!("not within ten seconds: {what}"))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_breaker_is_heard_of_from_opening_to_closing() {
    let operator = operator().await;
    operator.publish(
        "circuitBreaker: {worker: {consecutiveFailures: 3, waitDurationInOpenState: 2s, permittedNumberOfCallsInHalfOpenState: 1}}",
    );
    let good = workers::start("good", Manner::default()).await;
    let bad = workers::start("bad", Manner { status: 500, ..Manner::default() }).await;
    let proxy = operator.proxy(&[good.address, bad.address]);
    let version = |report: &Report| report.version == proxy.control.snapshot().version;
    let first =
        operator.report("both workers are usable", |report| version(report) && report.usable() == 2).await;
    assert!(first.breakers.is_empty());

    for _ in 0..8 {
        client::send(proxy.data, get("/", &[])).await.expect("an answer");
    }
    let open = operator.report("the breaker is open", |report| !report.breakers.is_empty()).await;
    let breaker = &open.breakers[0];
    assert_eq!((breaker.name.as_str(), breaker.state.as_str(), open.usable()), ("worker-2", "open", 1));
    assert!(breaker.cause.contains("3 failures in a row"), "{breaker:?}");
    let wait = breaker.next_probe.expect("it says when") - breaker.since;
    assert!((1..=2000).contains(&wait), "{wait}");

    operator.report("it is half-open", |report| report.breakers.iter().any(|b| b.state == "half-open")).await;
    let at = bad.address;
    bad.stop().await;
    let _mended = workers::start_at(at, "mended", Manner::default()).await;
    for _ in 0..4 {
        client::send(proxy.data, get("/", &[])).await.expect("an answer");
    }
    operator.report("it is closed", |report| report.breakers.is_empty() && report.usable() == 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_dead_workers_of_six_are_heard_of_without_a_breaker_and_a_health_check() {
    let operator = operator().await;
    operator.publish("retry: {numRetries: 1}");
    let mut workers = Vec::new();
    for _ in 0..6 {
        workers.push(workers::start("a", Manner::default()).await);
    }
    let addresses: Vec<_> = workers.iter().map(|worker| worker.address).collect();
    let proxy = operator.proxy(&addresses);
    operator.report("six are usable", |report| report.usable() == 6).await;
    for _ in 0..2 {
        workers.pop().expect("six").stop().await;
    }
    let report = operator.report("two are dead", |report| report.usable() == 4).await;
    let usable: Vec<_> = report.workers.iter().map(|worker| worker.usable).collect();
    assert_eq!(usable, [true, true, true, true, false, false]);
    proxy.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_fails_its_check_is_heard_of() {
    let operator = operator().await;
    operator.publish(
        "healthCheck: {active: {path: /, interval: 100ms, unhealthyThreshold: 1, healthyThreshold: 1}}",
    );
    let good = workers::start("good", Manner::default()).await;
    let bad = workers::start("bad", Manner { status: 503, ..Manner::default() }).await;
    let proxy = operator.proxy(&[good.address, bad.address]);
    let report = operator.report("one is unhealthy", |report| report.usable() == 1).await;
    let healthy: Vec<_> =
        report.workers.iter().map(|worker| (worker.name.as_str(), worker.healthy)).collect();
    assert_eq!(healthy, [("worker-1", true), ("worker-2", false)]);
    proxy.drain().await;
}
