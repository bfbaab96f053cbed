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
    let running = tokio::spawn(run(control.clone()));
    becomes(&worker, false).await;
    answering.status.store(204, Relaxed);
    becomes(&worker, true).await;
    answering.status.store(500, Relaxed);
    becomes(&worker, false).await;
    assert_eq!(answering.connections.load(Relaxed), 1, "the connection is kept");

    apply(&control, "{}");
    becomes(&worker, true).await;
    running.abort();
}

#[tokio::test]
async fn a_worker_in_service_stays_in_it_until_it_fails() {
    let closed = TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("bound");
    let (serving, starting) = (Worker::new("a", closed), Worker::new("b", closed));
    serving.totals.requests.store(1, Relaxed);
    let control = Control::new(vec![serving.clone(), starting.clone()]);
    let running = tokio::spawn(run(control.clone()));
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
    let running = tokio::spawn(run(control.clone()));
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
    let once = |address| check_once(address, WorkerProtocol::Auto, &check);
    assert!(matches!(once(answering.address).await, Err(Failure::Status(500))));
    answering.status.store(200, Relaxed);
    once(answering.address).await.expect("it passes");
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let brief = HealthCheck { timeout: Duration::from_millis(20), ..check.clone() };
    let address = silent.local_addr().expect("bound");
    assert!(matches!(check_once(address, WorkerProtocol::Auto, &brief).await, Err(Failure::Timeout)));
    drop(silent);
    assert!(matches!(once(address).await, Err(Failure::Connect(_))));
}

#[test]
fn the_interval_varies_by_a_tenth() {
    let second = Duration::from_secs(1);
    assert_eq!(spread(second, 0.0), Duration::from_millis(950));
    assert_eq!(spread(second, 1.0), Duration::from_millis(1050));
}
