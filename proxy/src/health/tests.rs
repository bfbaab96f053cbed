use std::net::SocketAddr;
use std::sync::atomic::{AtomicU16, AtomicU32};

use bytes::Bytes;
use http::Response;
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use outrigger_policy::merge::Merged;
use outrigger_policy::wire::{KeyRing, Update};
use tokio::net::TcpListener;
use tokio::time::timeout;

use super::*;
use crate::snapshot::Source;

const PATIENCE: Duration = Duration::from_secs(10);

/// A worker that answers every check with the status it is told.
struct Answering {
    address: SocketAddr,
    status: Arc<AtomicU16>,
    connections: Arc<AtomicU32>,
}

impl Answering {
    async fn start(status: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let (status, connections) = (Arc::new(AtomicU16::new(status)), Arc::new(AtomicU32::new(0)));
        let (told, counted) = (status.clone(), connections.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                counted.fetch_add(1, Relaxed);
                let told = told.clone();
                let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
                    let status = if request.uri().path() == "/up" { told.load(Relaxed) } else { 404 };
                    let answer = Response::builder().status(status).body(Full::<Bytes>::default());
                    async move { answer }
                });
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        Self { address, status, connections }
    }
}

fn apply(control: &Control, spec: &str) {
    let spec = serde_yaml::from_str(spec).expect("a spec");
    let update = Update::new(Merged { spec, ..Merged::default() }, KeyRing::default());
    assert_eq!(control.apply(&update, Source::File), Ok(true));
}

const CHECK: &str =
    "{healthCheck: {active: {path: /up, interval: 100ms, timeout: 1s, unhealthyThreshold: 2}}}";

async fn becomes(worker: &Worker, healthy: bool) {
    let becomes = async {
        while worker.healthy() != healthy {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, becomes).await.unwrap_or_else(|_| panic!("it never becomes healthy={healthy}"));
}

#[tokio::test]
async fn a_new_worker_waits_for_its_first_check_and_then_follows_its_answers() {
    let answering = Answering::start(503).await;
    let worker = Worker::new("a", answering.address);
    let control = Control::new(vec![worker.clone()]);
    apply(&control, CHECK);
    let running = tokio::spawn(run(control.clone(), Tasks::new(Default::default())));
    becomes(&worker, false).await;
    answering.status.store(204, Relaxed);
    becomes(&worker, true).await;
    answering.status.store(500, Relaxed);
    becomes(&worker, false).await;
    assert_eq!(answering.connections.load(Relaxed), 2, "one to ask what it speaks, and one that is kept");

    apply(&control, "{}");
    becomes(&worker, true).await;
    running.abort();
}

/// A worker whose gRPC health service answers with this status for the service `web` and does not know any other.
async fn grpc_worker(serving: u8) -> SocketAddr {
    use http_body_util::BodyExt;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = service_fn(move |request: http::Request<hyper::body::Incoming>| async move {
                assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                let asked = request.into_body().collect().await?.to_bytes();
                let known = &asked[..] == b"\0\0\0\0\x05\x0a\x03web";
                let message = if known { vec![0, 0, 0, 0, 2, 8, serving] } else { Vec::new() };
                let code = if known { "0" } else { "5" };
                let mut trailers = http::HeaderMap::new();
                trailers.insert("grpc-status", http::HeaderValue::from_static(code));
                let body = Full::new(Bytes::from(message)).with_trailers(async move { Some(Ok(trailers)) });
                Ok::<_, hyper::Error>(Response::new(body))
            });
            let executor = hyper_util::rt::TokioExecutor::new();
            let builder = hyper::server::conn::http2::Builder::new(executor);
            tokio::spawn(builder.serve_connection(TokioIo::new(stream), service));
        }
    });
    address
}

fn worker(address: SocketAddr) -> Arc<Worker> {
    Worker::new("a", address)
}

fn check(active: &str) -> HealthCheck {
    let spec = serde_yaml::from_str(&format!("healthCheck: {{active: {active}}}")).expect("a spec");
    outrigger_policy::compile(&spec).expect("valid").health_check.expect("there is one")
}

#[tokio::test]
async fn the_grpc_health_protocol_is_spoken() {
    let serving = grpc_worker(1).await;
    let mut prober = Prober::new(worker(serving), WorkerProtocol::Auto);
    for _ in 0..3 {
        prober.check(&check("{type: GRPC, service: web}")).await.expect("it serves");
    }
    let unknown = prober.check(&check("{type: GRPC, service: shop}")).await;
    assert!(matches!(unknown, Err(Failure::Grpc(5))), "{unknown:?}");
    let stopped =
        check_once(&worker(grpc_worker(2).await), WorkerProtocol::Auto, &check("{type: GRPC, service: web}"))
            .await;
    assert!(matches!(stopped, Err(Failure::NotServing(2))), "{stopped:?}");
}

#[tokio::test]
async fn a_connection_is_enough_for_tcp() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    check_once(&worker(address), WorkerProtocol::Auto, &check("{type: TCP}")).await.expect("it accepts");
    drop(listener);
    let closed = check_once(&worker(address), WorkerProtocol::Auto, &check("{type: TCP}")).await;
    assert!(matches!(closed, Err(Failure::Connect(_))), "{closed:?}");
}

#[tokio::test(start_paused = true)]
async fn the_score_of_each_worker_is_kept() {
    let address = SocketAddr::from(([127, 0, 0, 1], 1));
    let (good, bad) = (Worker::new("good", address), Worker::new("bad", address));
    let control = Control::new(vec![good.clone(), bad.clone()]);
    let running = tokio::spawn(keep_score(control));
    tokio::time::sleep(Duration::from_millis(1500)).await;
    for worker in [&good, &bad] {
        worker.totals.answers.fetch_add(100, Relaxed);
    }
    bad.faults.failures.fetch_add(100, Relaxed);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!((good.health().score, bad.health().score), (100, 0));
    assert_eq!(bad.health().reasons, ["100.0 % of 100 requests failed"]);
    running.abort();
}

#[tokio::test(start_paused = true)]
async fn what_a_worker_reports_counts_while_a_strategy_asks_for_it() {
    let worker = Worker::new("a", SocketAddr::from(([127, 0, 0, 1], 1)));
    let control = Control::new(vec![worker.clone()]);
    let running = tokio::spawn(keep_score(control.clone()));
    let reports = |load: &str| {
        let answer = Response::builder().header("endpoint-load-metrics", format!("TEXT cpu={load}"));
        let (mut head, ()) = answer.body(()).expect("an answer").into_parts();
        worker.load.heard(&mut head, Instant::now());
    };
    let second = || tokio::time::sleep(Duration::from_secs(1));
    reports("1.1");
    second().await;
    assert_eq!(worker.health(), score::Health::default(), "nobody asked for it");
    apply(&control, "loadBalancer: {type: BackendUtilization}");
    reports("1.2");
    second().await;
    let health = worker.health();
    assert_eq!(
        (health.score, &health.reasons[..]),
        (70, &["it reports a utilization of 120 %".to_owned()][..])
    );
    apply(&control, "loadBalancer: {type: Random}");
    second().await;
    assert_eq!(worker.health().score, 100, "it counts no more");
    running.abort();
}

#[tokio::test]
async fn a_worker_in_service_stays_in_it_until_it_fails() {
    let closed = TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("bound");
    let (serving, starting) = (Worker::new("a", closed), Worker::new("b", closed));
    serving.totals.answers.store(1, Relaxed);
    let control = Control::new(vec![serving.clone(), starting.clone()]);
    let running = tokio::spawn(run(control.clone(), Tasks::new(Default::default())));
    tokio::task::yield_now().await;
    apply(&control, CHECK);
    becomes(&starting, false).await;
    assert!(serving.healthy(), "one failure is not enough");
    becomes(&serving, false).await;
    running.abort();
}

#[tokio::test]
async fn a_worker_that_is_added_is_checked() {
    let answering = Answering::start(200).await;
    let control = Control::new(Vec::new());
    apply(&control, CHECK);
    let running = tokio::spawn(run(control.clone(), Tasks::new(Default::default())));
    let worker = Worker::new("a", answering.address);
    worker.set_healthy(false);
    control.change_workers(|_| vec![worker.clone()]);
    becomes(&worker, true).await;
    running.abort();
}

#[tokio::test]
async fn one_check_says_why_it_fails() {
    let answering = Answering::start(500).await;
    let control = Control::new(Vec::new());
    apply(&control, CHECK);
    let check = control.snapshot().policy.health_check.clone().expect("configured");
    let once = |address| {
        let (worker, check) = (worker(address), check.clone());
        async move { check_once(&worker, WorkerProtocol::Auto, &check).await }
    };
    assert!(matches!(once(answering.address).await, Err(Failure::Status(500))));
    answering.status.store(200, Relaxed);
    once(answering.address).await.expect("it passes");
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let brief = HealthCheck { timeout: Duration::from_millis(20), ..check.clone() };
    let address = silent.local_addr().expect("bound");
    assert!(matches!(
        check_once(&worker(address), WorkerProtocol::Auto, &brief).await,
        Err(Failure::Timeout)
    ));
    drop(silent);
    assert!(matches!(once(address).await, Err(Failure::Connect(_))));
}

#[test]
fn the_interval_varies_by_its_jitter() {
    let waits = |jitter: &str| {
        let check = check(&format!("{{interval: 1s{jitter}}}"));
        [0.0, 0.5, 1.0].map(|random| next_wait(&check, random).as_millis())
    };
    assert_eq!(waits(""), [900, 1000, 1100]);
    assert_eq!(waits(", intervalJitterPercent: 50"), [500, 1000, 1500]);
    assert_eq!(waits(", intervalJitterPercent: 0"), [1000, 1000, 1000]);
}

#[test]
fn the_first_check_of_what_serves_is_at_a_random_time_within_the_interval() {
    let waits = |serves, jitter: &str| {
        let check = check(&format!("{{interval: 4s{jitter}}}"));
        [0.0, 0.25, 1.0].map(|random| first_wait(&check, serves, random).as_millis())
    };
    assert_eq!(waits(true, ""), [0, 1000, 4000]);
    assert_eq!(waits(false, ""), [0, 0, 0], "it gets no requests before it");
    assert_eq!(waits(true, ", initialJitter: 1s"), [0, 250, 1000]);
    assert_eq!(waits(false, ", initialJitter: 1s"), [0, 250, 1000]);
    assert_eq!(waits(true, ", initialJitter: 0s"), [0, 0, 0]);
}
