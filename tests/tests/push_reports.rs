//! What a proxy tells the operator of its workers: the operator's own push server and the proxy's own client, with
//! only the API server played by a table.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use k8s_openapi::api::authentication::v1::TokenReviewStatus;
use outrigger_operator::certs::Certificates;
use outrigger_operator::controller::observe::{Observed, Phase, PodFacts, PolicyFacts, World};
use outrigger_operator::controller::resolve::resolve;
use outrigger_operator::metrics::Metrics;
use outrigger_operator::push::Hub;
use outrigger_operator::push::identity::{Identity, Review};
use outrigger_operator::push::server::{self, Server};
use outrigger_operator::session_keys::Master;
use outrigger_policy::report::Report;
use outrigger_policy::wire::AUDIENCE;
use serde_json::json;
use system_tests::client::{self, get};
use system_tests::proxy::start_pushed;
use system_tests::workers::{self, Manner};
use tokio::net::TcpListener;
use tokio::sync::watch;

/// Every token is that of the one pod.
struct Table;

impl Review for Table {
    fn review(&self, _token: &str) -> BoxFuture<'_, Result<TokenReviewStatus, kube::Error>> {
        Box::pin(async {
            let status = json!({
                "authenticated": true, "audiences": [AUDIENCE],
                "user": {"username": "system:serviceaccount:shop:web", "extra": {
                    "authentication.kubernetes.io/pod-name": ["web-1"],
                    "authentication.kubernetes.io/pod-uid": ["uid-1"],
                }},
            });
            Ok(serde_json::from_value(status).expect("a status"))
        })
    }
}

struct Operator {
    hub: Arc<Hub>,
    observed: Observed,
    address: SocketAddr,
    trust: String,
    _stop: watch::Sender<bool>,
}

async fn operator() -> Operator {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default(); // the tests of a file share it
    let metrics = Arc::new(Metrics::new());
    let (hub, observed) = (Hub::new(metrics.clone()), Observed::empty());
    let certificates = Certificates::in_memory(&["localhost".to_owned()]).expect("certificates");
    let trust = certificates.trust_bundle();
    let server = Server {
        hub: hub.clone(),
        identity: Identity::new(Table, observed.clone(), metrics),
        certificates,
        replica: "replica-1".to_owned(),
        operator: ("outrigger".to_owned(), "outrigger-operator".to_owned()),
        connections: 8,
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let (stop, stopping) = watch::channel(false);
    tokio::spawn(server::serve(listener, Arc::new(server), stopping));
    Operator { hub, observed, address, trust, _stop: stop }
}

impl Operator {
    /// One pod, one policy of this spec.
    fn publish(&self, spec: &str) {
        let pod = PodFacts {
            name: "web-1".to_owned(),
            namespace: "shop".to_owned(),
            uid: "uid-1".into(),
            labels: [].into(),
            phase: Phase::Running,
            terminating: false,
            service_account: "web".to_owned(),
            place: None,
            drain: None,
        };
        let policy = PolicyFacts {
            name: "web".to_owned(),
            uid: "policy".to_owned(),
            generation: 1,
            created: 0,
            spec: Ok(serde_yaml::from_str(spec).expect("a spec")),
            status: None,
        };
        let world = World { policies: vec![Arc::new(policy)], pods: vec![Arc::new(pod)], ..World::default() };
        self.observed.replace(world.clone());
        self.hub.publish(self.hub.begin(), &resolve(&world, &Master::default()));
    }

    /// The proxy's report, as soon as it says what is asked.
    async fn report(&self, what: &str, says: impl Fn(&Report) -> bool) -> Arc<Report> {
        let mut changes = self.hub.changes();
        let heard = tokio::time::timeout(Duration::from_secs(10), async {
            loop {
                changes.borrow_and_update();
                let report = self.hub.answers().remove("uid-1").and_then(|answer| answer.report);
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
    let proxy = start_pushed(&[good.address, bad.address], operator.address, &operator.trust);
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
async fn a_worker_that_fails_its_check_is_heard_of() {
    let operator = operator().await;
    operator.publish(
        "healthCheck: {active: {path: /, interval: 100ms, unhealthyThreshold: 1, healthyThreshold: 1}}",
    );
    let good = workers::start("good", Manner::default()).await;
    let bad = workers::start("bad", Manner { status: 503, ..Manner::default() }).await;
    let proxy = start_pushed(&[good.address, bad.address], operator.address, &operator.trust);
    let report = operator.report("one is unhealthy", |report| report.usable() == 1).await;
    let healthy: Vec<_> =
        report.workers.iter().map(|worker| (worker.name.as_str(), worker.healthy)).collect();
    assert_eq!(healthy, [("worker-1", true), ("worker-2", false)]);
    proxy.drain().await;
}
