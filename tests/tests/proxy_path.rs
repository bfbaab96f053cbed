//! The request path over real sockets: routes, limits, sessions, breakers, strategies, retries, live changes.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use system_tests::client::{self, Connection, get, request};
use system_tests::proxy::{RunningProxy, start_proxy};
use system_tests::workers::{self, Manner, Worker};

async fn three() -> Vec<Worker> {
    let mut started = Vec::new();
    for name in ["a", "b", "c"] {
        started.push(workers::start(name, Manner::default()).await);
    }
    started
}

fn addresses(workers: &[Worker]) -> Vec<SocketAddr> {
    workers.iter().map(|worker| worker.address).collect()
}

async fn shares(proxy: &RunningProxy, requests: usize) -> BTreeMap<String, usize> {
    let mut connection = Connection::open(proxy.data).await.expect("connects");
    let mut shares = BTreeMap::new();
    for _ in 0..requests {
        let answer = connection.send(get("/", &[])).await.expect("an answer");
        assert_eq!(answer.status, 200, "{answer:?}");
        *shares.entry(answer.worker().to_owned()).or_default() += 1;
    }
    shares
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_reach_the_workers_as_often_as_their_weights_say() {
    let workers = three().await;
    let proxy = start_proxy(&addresses(&workers), "workers: [{name: worker-1, weight: 2}]");
    let shares = shares(&proxy, 400).await;
    assert_eq!(shares.values().copied().collect::<Vec<_>>(), [200, 100, 100], "{shares:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_changes_the_treatment_live() {
    let workers = three().await;
    let proxy = start_proxy(&addresses(&workers), "loadBalancer: {type: RoundRobin}");
    let mut connection = Connection::open(proxy.data).await.expect("connects");
    assert!(connection.send(get("/", &[])).await.expect("an answer").cookie().is_none());
    proxy.apply("sessionPersistence: {}\nworkers: [{name: worker-2, weight: 0}]");
    let answer = connection.send(get("/", &[])).await.expect("an answer on the same connection");
    assert!(answer.cookie().is_some_and(|cookie| cookie.starts_with("outrigger-session=")), "{answer:?}");
    assert_eq!(shares(&proxy, 60).await.get("b"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_edited_is_in_force_and_a_broken_one_is_not() {
    let workers = three().await;
    let proxy = start_proxy(&addresses(&workers), "retry: {numRetries: 1}");
    let before = proxy.control.snapshot().version.clone();
    std::fs::write(&proxy.policy_file, "apiVersion: outrigger.dev/v1alpha1\nkind: ClusterPolicy\nmetadata: {name: x}\nspec: {retry: {numRetries: 99}}\n").expect("writable");
    until("the broken file is reported", || proxy.control.refusals().count == 1).await;
    assert_eq!(proxy.control.refusals().last[0].path, "spec.retry.numRetries");
    assert_eq!(proxy.control.snapshot().version, before, "the last good policy stays");
    std::fs::write(&proxy.policy_file, system_tests::proxy::document("retry: {numRetries: 3}"))
        .expect("writable");
    until("the mended file is in force", || proxy.control.snapshot().version != before).await;
    assert!(proxy.control.refusals().last.is_empty());
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let waited = tokio::time::timeout(Duration::from_secs(10), async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("not within ten seconds: {what}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn routes_are_told_apart_by_path_method_and_header() {
    let workers = three().await;
    let spec = "
routes:
- {name: writes, match: {path: {value: /api}, method: POST}, rateLimit: {rules: [{name: w, limit: {requests: 1, unit: Hour}}]}}
- {name: gold, match: {headers: [{name: X-Tier, value: gold}]}, sessionPersistence: {cookie: {name: gold}}}";
    let proxy = start_proxy(&addresses(&workers), spec);
    let send = |request| client::send(proxy.data, request);
    assert_eq!(send(request("POST", "/api/x", &[], "")).await.expect("an answer").status, 200);
    assert_eq!(send(request("POST", "/api", &[], "")).await.expect("an answer").status, 429);
    assert_eq!(send(get("/api", &[])).await.expect("an answer").status, 200);
    assert_eq!(send(request("POST", "/apiary", &[], "")).await.expect("an answer").status, 200);
    let gold = send(get("/", &[("x-tier", "gold")])).await.expect("an answer");
    assert!(gold.cookie().is_some_and(|cookie| cookie.starts_with("gold=")), "{gold:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_refuses_and_says_when_to_come_again() {
    let workers = three().await;
    let spec = "rateLimit: {rules: [{name: user, clientSelector: {type: Header, header: x-user}, limit: {requests: 2, unit: Minute}}]}";
    let proxy = start_proxy(&addresses(&workers), spec);
    let mut answers = Vec::new();
    for _ in 0..3 {
        answers.push(client::send(proxy.data, get("/", &[("x-user", "me")])).await.expect("an answer"));
    }
    assert_eq!(answers[0].header("ratelimit-policy"), Some("\"user\";q=2;w=60"));
    assert!(
        answers[0].header("ratelimit").is_some_and(|value| value.starts_with("\"user\";r=1;t=")),
        "{answers:?}"
    );
    assert_eq!(answers[2].status, 429);
    let after: u64 = answers[2].header("retry-after").expect("Retry-After").parse().expect("seconds");
    assert!((1..=30).contains(&after), "half a minute a token: {after}");
    assert_eq!(answers[2].header("proxy-status"), Some("outrigger; error=http_request_denied"));
    for user in [&[("x-user", "you")][..], &[]] {
        assert_eq!(client::send(proxy.data, get("/", user)).await.expect("an answer").status, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_stays_with_its_worker_and_moves_once_when_it_is_gone() {
    let mut workers = three().await;
    let proxy = start_proxy(&addresses(&workers), "sessionPersistence: {}\nloadBalancer: {type: Random}");
    let first = client::send(proxy.data, get("/", &[])).await.expect("an answer");
    let (cookie, worker) = (first.cookie().expect("a cookie"), first.worker().to_owned());
    for _ in 0..20 {
        let answer = client::send(proxy.data, get("/", &[("cookie", &cookie)])).await.expect("an answer");
        assert_eq!((answer.worker(), answer.cookie()), (worker.as_str(), None));
    }
    let place = ["a", "b", "c"].iter().position(|name| *name == worker).expect("one of the three");
    workers.remove(place).stop().await;
    let moved = client::send(proxy.data, get("/", &[("cookie", &cookie)])).await.expect("an answer");
    assert_eq!(moved.status, 200);
    let (cookie, moved_to) = (moved.cookie().expect("a new cookie"), moved.worker().to_owned());
    assert_ne!(moved_to, worker);
    for _ in 0..20 {
        let answer = client::send(proxy.data, get("/", &[("cookie", &cookie)])).await.expect("an answer");
        assert_eq!((answer.worker(), answer.cookie()), (moved_to.as_str(), None));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_fails_gets_no_more_requests() {
    let good = workers::start("good", Manner::default()).await;
    let bad = workers::start("bad", Manner { status: 500, ..Manner::default() }).await;
    let spec = "circuitBreaker: {worker: {consecutiveFailures: 3, waitDurationInOpenState: 10m}}";
    let proxy = start_proxy(&[good.address, bad.address], spec);
    let mut statuses = Vec::new();
    for _ in 0..40 {
        statuses.push(client::send(proxy.data, get("/", &[])).await.expect("an answer").status.as_u16());
    }
    assert_eq!(statuses.iter().filter(|status| **status == 500).count(), 3, "{statuses:?}");
    assert_eq!(bad.count(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_recovers_gets_its_share_again() {
    let good = workers::start("good", Manner::default()).await;
    let bad = workers::start("bad", Manner { status: 500, ..Manner::default() }).await;
    let spec = "circuitBreaker: {worker: {consecutiveFailures: 3, waitDurationInOpenState: 200ms, recoveryRamp: 0s}}";
    let proxy = start_proxy(&[good.address, bad.address], spec);
    for _ in 0..20 {
        client::send(proxy.data, get("/", &[])).await.expect("an answer");
    }
    let address = bad.address;
    bad.stop().await;
    let mended = workers::start_at(address, "mended", Manner::default()).await;
    let deadline = Instant::now() + Duration::from_secs(20); // the open state is real time here
    while mended.count() < 10 {
        assert!(Instant::now() < deadline, "the worker is back and gets nothing");
        client::send(proxy.data, get("/", &[])).await.expect("an answer");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let shares = shares(&proxy, 40).await;
    assert_eq!(shares.get("mended"), Some(&20), "{shares:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_at_fault_open_no_breaker() {
    let worker = workers::start("a", Manner::default()).await;
    let spec = "circuitBreaker: {worker: {consecutiveFailures: 1, waitDurationInOpenState: 1m}}";
    let proxy = start_proxy(&[worker.address], spec);
    for broken in [
        "POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        "POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nabc",
        "GET / HTTP/1.1\r\nhost: a b\r\n\r\n",
    ] {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut stream = tokio::net::TcpStream::connect(proxy.data).await.expect("connects");
        stream.write_all(broken.as_bytes()).await.expect("writes");
        stream.shutdown().await.expect("shuts down");
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut answer)).await;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{broken:?}: {answer:?}");
    }
    assert_eq!(client::send(proxy.data, get("/", &[])).await.expect("an answer").status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_gone_costs_no_request() {
    let mut workers = three().await;
    let proxy = start_proxy(&addresses(&workers), "loadBalancer: {type: RoundRobin}");
    shares(&proxy, 30).await;
    workers.remove(0).stop().await;
    assert_eq!(shares(&proxy, 60).await.len(), 2, "every request was answered by the other two");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_worker_at_all_is_said_at_once() {
    let worker = workers::start("a", Manner::default()).await;
    let address = worker.address;
    worker.stop().await;
    let spec = "circuitBreaker: {worker: {consecutiveFailures: 1, waitDurationInOpenState: 30s, waitDurationJitter: 0}}";
    let proxy = start_proxy(&[address], spec);
    let first = client::send(proxy.data, get("/", &[])).await.expect("an answer");
    assert_eq!(
        (first.status.as_u16(), first.header("proxy-status")),
        (503, Some("outrigger; error=connection_refused"))
    );
    let second = client::send(proxy.data, get("/", &[])).await.expect("an answer");
    assert_eq!(second.status, 503);
    let after: u64 = second.header("retry-after").expect("Retry-After").parse().expect("seconds");
    assert!((28..=30).contains(&after), "{after}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_too_slow_is_given_up() {
    let worker = workers::start("a", Manner { delay: Duration::from_secs(5), ..Manner::default() }).await;
    let proxy = start_proxy(&[worker.address], "timeout: {request: 100ms}");
    let answer = client::send(proxy.data, get("/", &[])).await.expect("an answer");
    assert_eq!(
        (answer.status.as_u16(), answer.header("proxy-status")),
        (504, Some("outrigger; error=http_response_timeout"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_pass_both_ways() {
    let workers = three().await;
    let proxy = start_proxy(&addresses(&workers), "{}");
    let long = "0123456789abcdef".repeat(64 * 1024);
    let answer = client::send(proxy.data, request("POST", "/echo", &[], &long)).await.expect("an answer");
    assert_eq!(answer.body.len(), long.len());
    assert!(answer.body == long.as_bytes());
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_by_prior_knowledge_is_served_on_the_same_port() {
    let workers = three().await;
    let proxy = start_proxy(&addresses(&workers), "{}");
    let answers = client::send_http2(proxy.data, &["/", "/headers", "/"]).await.expect("answers");
    assert!(answers.iter().all(|answer| answer.status == 200));
    let seen = answers[1].text();
    assert!(seen.contains("host: test\n") && seen.contains("x-forwarded-for: 127.0.0.1\n"), "{seen}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_may_speak_http2() {
    let worker = workers::start("a", Manner { http2: true, ..Manner::default() }).await;
    let proxy = start_proxy(&[worker.address], "workers: [{name: worker-1, protocol: H2C}]");
    assert_eq!(shares(&proxy, 10).await.get("a"), Some(&10));
}

#[tokio::test(flavor = "multi_thread")]
async fn health_and_metrics_are_open_and_the_api_is_not() {
    let workers = three().await;
    let proxy = start_proxy(&addresses(&workers), "retry: {numRetries: 1}");
    shares(&proxy, 9).await;
    for path in ["/livez", "/readyz", "/health", "/ready"] {
        assert_eq!(client::send(proxy.admin, get(path, &[])).await.expect("an answer").status, 200, "{path}");
    }
    let metrics = client::send(proxy.admin, get("/metrics", &[])).await.expect("an answer").text();
    assert!(metrics.contains("outrigger_http_requests_total{route=\"default\",code=\"200\"} "), "{metrics}");
    assert!(metrics.contains("outrigger_policy_generation{policy=\"test\"} 0"), "{metrics}");
    let snapshot = client::send(proxy.admin, local("/api/snapshot")).await.expect("an answer");
    assert_eq!(snapshot.status, 200, "loopback, and started with --admin-open");
    assert!(!snapshot.text().contains("secret"), "keys are never shown");

    let closed =
        system_tests::proxy::start_with(&addresses(&workers), "{}", &["--admin-token-file", "/dev/null"]);
    assert_eq!(client::send(closed.admin, local("/api/snapshot")).await.expect("an answer").status, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_token_of_the_api_may_be_rotated_and_missing() {
    let worker = workers::start("a", Manner::default()).await;
    let file = tempfile::tempdir().expect("a directory").keep().join("token");
    let flag = file.display().to_string();
    let proxy = system_tests::proxy::start_with(&[worker.address], "{}", &["--admin-token-file", &flag]);
    let with = async |token: &str| {
        let bearer = format!("Bearer {token}");
        let asked = client::send(proxy.admin, get("/api/snapshot", &[("authorization", &bearer)])).await;
        asked.expect("an answer").status.as_u16()
    };
    assert_eq!(with("first").await, 403, "there is no file yet");
    assert_eq!(client::send(proxy.admin, get("/livez", &[])).await.expect("an answer").status, 200);
    for (token, before) in [("first", "none"), ("second", "first")] {
        std::fs::write(&file, token).expect("written");
        assert_eq!((with(token).await, with(before).await), (200, 401));
    }
    std::fs::write(&file, "").expect("written");
    assert_eq!((with("second").await, with("x").await), (403, 403), "nor is an empty one a token");
    std::fs::remove_dir_all(file.parent().expect("its directory")).expect("removed");
    assert_eq!(with("second").await, 403);
}

#[tokio::test(flavor = "multi_thread")]
async fn draining_finishes_what_is_in_flight() {
    let worker = workers::start("a", Manner { delay: Duration::from_millis(600), ..Manner::default() }).await;
    let proxy = start_proxy(&[worker.address], "drain: {delay: 200ms, timeout: 10s}");
    let (data, admin) = (proxy.data, proxy.admin);
    let in_flight = tokio::spawn(client::send(data, get("/", &[])));
    until("the request is at the worker", || worker.count() == 1).await;
    let drained = tokio::spawn(proxy.drain());
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(client::send(admin, get("/readyz", &[])).await.expect("an answer").status, 503);
    let late = client::send(data, get("/", &[])).await.expect("new connections are served during the delay");
    assert_eq!((late.status.as_u16(), late.header("connection")), (200, Some("close")));
    assert_eq!(in_flight.await.expect("joins").expect("an answer").status, 200);
    drained.await.expect("ends");
    assert!(Connection::open(data).await.is_err(), "nobody listens any more");
}

/// A request for the name of this machine: the API is open to no other.
fn local(path: &str) -> http::Request<http_body_util::Full<bytes::Bytes>> {
    let mut request = get(path, &[]);
    request.headers_mut().insert("host", http::HeaderValue::from_static("127.0.0.1"));
    request
}
