//! The law that no client alone changes a breaker, a score or readiness: clients that do anything, policies of every shape,
//! and workers of every protocol that do nothing wrong.
//!
//! Each seed is a run of its own, with the same policy and the same clients: `LAW_SEED=7 cargo test -p system-tests --test
//! proxy_client_law` runs one again, and with `LAW_ONE_BY_ONE=1` its clients one after the other, so that the one that
//! breaks the law is named.

use std::time::{Duration, Instant};

use fastrand::Rng;
use http::StatusCode;
use system_tests::client::{self, get};
use system_tests::law::{Client, Kind, Server, grpc, plain, websocket};
use system_tests::proxy::{RunningProxy, start_proxy};
use tokio::task::JoinSet;
use tokio::time::sleep;

const SEEDS: u64 = 10;
const CLIENTS: usize = 150;

/// The strictest breakers that there are, but for slowness: this machine may be slow.
const STRICT: &str = "{consecutiveFailures: 1, consecutiveLocalOriginFailures: 1, minimumNumberOfCalls: 1, \
                      failureRateThreshold: 1, slidingWindowSize: 1m, waitDurationInOpenState: 1h}";

/// A policy: every section is there or not.
fn policy(random: &mut Rng) -> String {
    let levels: Vec<_> = ["worker", "route", "service"].into_iter().filter(|_| random.u8(..4) != 0).collect();
    let breakers: String = levels.iter().map(|level| format!("{level}: {STRICT}, ")).collect();
    let mut sections = vec![
        format!("circuitBreaker: {{{breakers}}}"),
        "timeout: {request: 20s, requestHeader: x-deadline, idle: 3s}".to_owned(),
    ];
    let strategies = ["RoundRobin", "LeastRequest", "PeakEwma", "Predictive", "Random"];
    sections.push(format!("loadBalancer: {{type: {}}}", strategies[random.usize(..strategies.len())]));
    let retries = [
        "{numRetries: 0}",
        "{numRetries: 3, bodyBuffer: 10000, retryOn: {triggers: [ConnectFailure, Reset, GatewayError]}}",
        "{bodyBuffer: 10000, retryOn: {triggers: [Reset], grpcCodes: [UNAVAILABLE, DEADLINE_EXCEEDED]}}",
    ];
    if random.bool() {
        sections.push(format!("retry: {}", retries[random.usize(..retries.len())]));
    }
    if random.bool() {
        sections.push("hedge: {delay: 50ms}".to_owned());
    }
    if random.bool() {
        sections.push("sessionPersistence: {cookie: {name: s}}".to_owned());
    }
    if random.bool() {
        sections.push("healthCheck: {active: {type: TCP, interval: 1s}}".to_owned());
    }
    sections.join("\n")
}

fn nothing_is_held_against_anybody(proxy: &RunningProxy, what: &str) {
    let (snapshot, now) = (proxy.control.snapshot(), Instant::now());
    for worker in &snapshot.workers {
        let view = worker.breaker.view(now);
        assert_eq!((view.state, view.tally.failed), ("closed", 0), "{what}: {}: {view:?}", worker.name);
        assert_eq!(worker.failures(), 0, "{what}: {}", worker.name);
        let reasons = worker.health().reasons;
        assert!(!reasons.iter().any(|reason| reason.contains("failed")), "{what}: {reasons:?}");
        // Clients dawdle for seconds; nothing that the workers do takes so long.
        let answers = worker.requests().max(1);
        let mean = worker.totals.latency_micros.load(std::sync::atomic::Ordering::Relaxed) / answers;
        assert!(mean < 500_000, "{what}: {} is slow: {mean} µs", worker.name);
    }
    for gate in snapshot.gates() {
        let view = gate.view(now);
        assert_eq!((view.state, view.tally.failed), ("closed", 0), "{what}: {view:?}");
    }
}

async fn settled(proxy: &RunningProxy) {
    let began = Instant::now();
    while proxy.control.snapshot().workers.iter().any(|worker| worker.in_flight() != 0) {
        assert!(began.elapsed() < Duration::from_secs(30), "requests do not end");
        sleep(Duration::from_millis(10)).await;
    }
}

async fn run(seed: u64, kinds: &'static [Kind]) {
    let mut random = Rng::with_seed(seed);
    let mut servers = Vec::new();
    for kind in kinds {
        servers.push(Server::start(*kind).await);
    }
    let addresses: Vec<_> = servers.iter().map(|server| server.address).collect();
    let spec = policy(&mut random);
    let proxy = start_proxy(&addresses, &spec);
    let mut clients = JoinSet::new();
    let one_by_one = std::env::var_os("LAW_ONE_BY_ONE").is_some();
    for _ in 0..CLIENTS {
        let client = Client::any(&mut random);
        if one_by_one {
            client.clone().run(proxy.data).await;
            settled(&proxy).await;
            nothing_is_held_against_anybody(&proxy, &format!("{client:?}"));
        } else {
            clients.spawn(client.run(proxy.data));
            sleep(Duration::from_millis(5)).await;
        }
    }
    while clients.join_next().await.is_some() {}
    settled(&proxy).await;
    let what = format!("seed {seed}, {kinds:?}, {spec}");
    nothing_is_held_against_anybody(&proxy, &what);
    let ready = client::send(proxy.admin, get("/readyz", &[])).await.expect("an answer");
    assert_eq!(ready.status, StatusCode::OK, "{what}");
    for _ in 0..4 {
        assert_eq!(plain(proxy.data).await.expect("an answer"), StatusCode::OK, "{what}");
        let status = grpc(proxy.data).await.expect("an answer");
        let unimplemented = kinds.iter().all(|kind| *kind == Kind::Http1);
        assert_eq!(status, if unimplemented { "12" } else { "0" }, "{what}");
        let upgraded = websocket(proxy.data, "/ws").await.expect("an answer").status().as_u16();
        let unspoken = kinds.iter().all(|kind| *kind == Kind::H2c);
        assert_eq!(upgraded, if unspoken { 502 } else { 101 }, "{what}");
    }
}

const FLEETS: [&[Kind]; 5] = [
    &[Kind::Http1],
    &[Kind::H2c],
    &[Kind::Both, Kind::Both],
    &[Kind::Http1, Kind::Http1, Kind::Http1],
    &[Kind::Http1, Kind::H2c, Kind::Both],
];

#[tokio::test(flavor = "multi_thread")]
async fn no_client_alone_changes_a_breaker_a_score_or_readiness() {
    if let Ok(seed) = std::env::var("LAW_SEED") {
        let seed: u64 = seed.parse().expect("LAW_SEED is a number");
        return run(seed, FLEETS[seed as usize % FLEETS.len()]).await;
    }
    for first in (0..SEEDS).step_by(FLEETS.len()) {
        let runs = FLEETS.iter().zip(first..).map(|(fleet, seed)| tokio::spawn(run(seed, fleet)));
        for run in runs.collect::<Vec<_>>() {
            run.await.expect("nothing is held against anybody");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_finds_the_worker_that_speaks_what_it_needs_and_that_is_no_retry() {
    for others in [Kind::Http1, Kind::H2c] {
        let mut servers = Vec::new();
        for kind in [others, others, others, Kind::Both] {
            servers.push(Server::start(kind).await);
        }
        let addresses: Vec<_> = servers.iter().map(|server| server.address).collect();
        let proxy = start_proxy(&addresses, "retry: {numRetries: 0}\nloadBalancer: {type: RoundRobin}");
        for _ in 0..4 {
            assert_eq!(grpc(proxy.data).await.expect("an answer"), "0", "{others:?}");
            let upgraded = websocket(proxy.data, "/ws").await.expect("an answer").status();
            assert_eq!(upgraded, StatusCode::SWITCHING_PROTOCOLS, "{others:?}");
            assert_eq!(plain(proxy.data).await.expect("an answer"), StatusCode::OK, "{others:?}");
        }
        nothing_is_held_against_anybody(&proxy, "a mixed fleet");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_comes_back_as_another_program_is_asked_again() {
    let server = Server::start(Kind::Http1).await;
    let address = server.address;
    let proxy = start_proxy(&[address], "{}");
    assert_eq!(plain(proxy.data).await.expect("an answer"), StatusCode::OK);
    assert_eq!(grpc(proxy.data).await.expect("an answer"), "12");
    server.stop().await;
    assert_eq!(plain(proxy.data).await.expect("an answer"), StatusCode::SERVICE_UNAVAILABLE);
    let server = Server::start_at(address, Kind::H2c).await;
    assert_eq!(grpc(proxy.data).await.expect("an answer"), "0");
    assert_eq!(plain(proxy.data).await.expect("an answer"), StatusCode::OK);
    // It is replaced while nobody looks: whoever comes first may be the one that finds out.
    server.stop().await;
    let _server = Server::start_at(address, Kind::Http1).await;
    plain(proxy.data).await.expect("an answer");
    assert_eq!(plain(proxy.data).await.expect("an answer"), StatusCode::OK);
}
