//! What a real Prometheus, its linter and a strict parser make of the metrics of proxy and operator.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use outrigger_operator::admin::Admin;
use outrigger_operator::crd::{Proxies, Workers};
use outrigger_operator::metrics::{Metrics, ReviewResult};
use outrigger_operator::push::session::Reception;
use system_tests::client::{self, Connection, get};
use system_tests::operator::certificates;
use system_tests::prometheus::{Prometheus, lint, parse_open_metrics};
use system_tests::proxy::start_proxy;
use system_tests::workers::{self, Manner, Worker};
use tokio::net::TcpListener;
use tokio::sync::watch;

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Upper bounds of the latency buckets, in seconds.
const BUCKETS: [f64; 14] = outrigger_proxy::metrics::BUCKETS;

/// A policy with something in each family.
const EVERYTHING: &str = "
sessionPersistence: {}
circuitBreaker: {worker: {consecutiveFailures: 5}, service: {failureRateThreshold: 90}, route: {failureRateThreshold: 90}}
routes:
- name: limited
  match: {path: {value: /limited}}
  rateLimit: {rules: [{name: few, limit: {requests: 1, unit: Hour}}]}
";

async fn operator() -> (SocketAddr, Arc<Metrics>) {
    let metrics = Arc::new(Metrics::new());
    metrics.count_ack(Reception::Rejected);
    metrics.count_review(ReviewResult::Cached);
    metrics.set_generations([("web", 3), ("web \"2\"\\", 4)].into_iter());
    metrics.set_proxies("web", &Proxies { matched: 2, ..Default::default() });
    metrics.set_workers("web", &Workers::default(), [("open", 1), ("half-open", 0)]);
    metrics.reconcile_seconds.observe(0.01);
    let admin =
        Admin { ready: watch::channel(true).1, metrics: metrics.clone(), certificates: certificates().0 };
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(outrigger_operator::admin::serve(listener, Arc::new(admin)));
    (address, metrics)
}

async fn page(admin: SocketAddr, accept: &str) -> (String, String) {
    let answer = client::send(admin, get("/metrics", &[("accept", accept)])).await.expect("a page");
    assert_eq!(answer.status, 200);
    (answer.header("content-type").unwrap_or_default().to_owned(), answer.text())
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_both_formats_please_those_who_read_them_strictly() {
    let worker = workers::start("a", Manner::default()).await;
    let failing = workers::start("b", Manner { breaks_off: true, ..Manner::default() }).await;
    let proxy = start_proxy(&[worker.address, failing.address], EVERYTHING);
    for path in ["/", "/a", "/b", "/limited", "/limited", "/c\\"] {
        client::send(proxy.data, get(path, &[])).await.expect("an answer");
    }
    let (operator, _) = operator().await;
    for (of, admin, family) in [
        ("the proxy", proxy.admin, "outrigger_http_requests"),
        ("the operator", operator, "outrigger_operator_acks"),
    ] {
        let (content_type, open) = page(admin, "application/openmetrics-text;version=1.0.0,*/*;q=0.1").await;
        assert_eq!(content_type, OPEN_METRICS, "{of}");
        assert_eq!(parse_open_metrics(&open), "", "{of}: {open}");
        assert!(
            open.contains(&format!("# TYPE {family} counter\n")) && open.ends_with("# EOF\n"),
            "{of}: {open}"
        );
        let (content_type, text) = page(admin, "text/plain").await;
        assert_eq!(content_type, TEXT, "{of}");
        assert_eq!(lint(&text), "", "{of}: {text}");
        assert!(text.contains(&format!("# TYPE {family}_total counter\n")), "{of}: {text}");
        let count = |page: &str| page.lines().filter(|line| !line.starts_with('#')).count();
        assert_eq!(count(&open), count(&text), "{of}: the same samples");
        assert_eq!(page(admin, "*/*").await.0, TEXT, "{of}");
        // The judges do object to what is wrong.
        let (endless, nameless) = (open.replace("le=\"+Inf\"", "le=\"9.9\""), text.replace("# HELP", "# NO"));
        assert!(!parse_open_metrics(&endless).is_empty() && !lint(&nameless).is_empty(), "{of}");
    }
}

/// The time from the sending of a request to its answer's end, in seconds, for each of a mix of fast and slow ones.
async fn load(to: SocketAddr, clients: usize, each: usize) -> Vec<f64> {
    let clients = (0..clients).map(|client| {
        tokio::spawn(async move {
            let mut connection = Connection::open(to).await.expect("a connection");
            let mut took = Vec::new();
            for i in 0..each {
                let millis = match (client + i) % 50 {
                    0 => 400,
                    1..=15 => 70,
                    _ => 15,
                };
                let started = Instant::now();
                let answer = connection.send(get(&format!("/delay/{millis}"), &[])).await.expect("an answer");
                assert_eq!(answer.status, 200);
                took.push(started.elapsed().as_secs_f64());
            }
            took
        })
    });
    let mut took = Vec::new();
    for client in clients.collect::<Vec<_>>() {
        took.extend(client.await.expect("no panic"));
    }
    took.sort_by(f64::total_cmp);
    took
}

fn bucket(seconds: f64) -> usize {
    BUCKETS.iter().position(|bound| seconds <= *bound).unwrap_or(BUCKETS.len())
}

#[tokio::test(flavor = "multi_thread")]
async fn prometheus_computes_the_rates_and_quantiles_that_clients_see() {
    let workers: [Worker; 2] =
        [workers::start("a", Manner::default()).await, workers::start("b", Manner::default()).await];
    let proxy = start_proxy(&workers.each_ref().map(|worker| worker.address), "timeout: {request: 30s}");
    let (operator, metrics) = operator().await;
    let prometheus = Prometheus::start(&[
        ("open", proxy.admin, "OpenMetricsText1.0.0"),
        ("text", proxy.admin, "PrometheusText0.0.4"),
        ("operator", operator, "OpenMetricsText1.0.0"),
    ])
    .await;
    // A rate needs the series before its increase: each has one request, and is seen.
    for _ in 0..2 {
        client::send(proxy.data, get("/", &[])).await.expect("an answer");
    }
    for job in ["open", "text"] {
        let series = "outrigger_worker_response_duration_seconds_count";
        prometheus.until(&format!("count({series}{{job='{job}'}})"), |count| count == 2.0).await;
    }
    let took = load(proxy.data, 8, 100).await;
    metrics.reconcile_seconds.observe(0.01);
    let all = took.len() as f64;
    for job in ["open", "text"] {
        for family in ["http_request_duration", "worker_response_duration"] {
            let of = |suffix: &str| format!("outrigger_{family}_seconds_{suffix}{{job='{job}'}}");
            prometheus.until(&format!("sum({})", of("count")), |count| count == all + 2.0).await;
            let end = format!("sum(outrigger_{family}_seconds_bucket{{job='{job}',le='+Inf'}})");
            assert_eq!(prometheus.query(&end).await, [all + 2.0], "the last bucket has all");
            for quantile in [0.5, 0.99] {
                let seen = took[(all * quantile) as usize];
                let expression =
                    format!("histogram_quantile({quantile}, sum by (le) (rate({}[1m])))", of("bucket"));
                let [computed] = prometheus.query(&expression).await[..] else { panic!("no {expression}") };
                println!("{job} {family} p{}: {computed:.3} s, clients saw {seen:.3} s", quantile * 100.0);
                let apart = bucket(computed).abs_diff(bucket(seen));
                assert!(!computed.is_nan() && apart <= 1, "{expression} is {computed}, clients saw {seen}");
            }
            let mean = format!("sum(rate({}[1m])) / sum(rate({}[1m]))", of("sum"), of("count"));
            let [mean] = prometheus.query(&mean).await[..] else { panic!("no mean") };
            let seen = took.iter().sum::<f64>() / all;
            assert!((mean / seen - 1.0).abs() < 0.2, "the mean is {mean}, clients saw {seen}");
        }
        let rate = format!("sum(rate(outrigger_http_requests_total{{job='{job}',code='200'}}[1m])) > 0");
        assert_eq!(prometheus.query(&rate).await.len(), 1);
    }
    let reconcile =
        "histogram_quantile(0.99, rate(outrigger_operator_reconcile_duration_seconds_bucket[1m]))";
    prometheus.until(reconcile, |seconds| (0.0064..0.0257).contains(&seconds)).await;
}
