//! Breakers over real sockets: which one opens when workers fail, what clients then get, and that clients alone open
//! none.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::client::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use outrigger_proxy::breaker::watch::unix_millis;
use outrigger_proxy::breaker::{Action, Command, View};
use system_tests::client::{self, Answer, Connection, get};
use system_tests::proxy::{RunningProxy, start_proxy};
use system_tests::workers::{self, Manner, Worker};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// The strictest breakers there are, at every level.
const STRICT: &str = "
circuitBreaker:
  worker: {consecutiveFailures: 2, minimumNumberOfCalls: 2, failureRateThreshold: 10, consecutiveLocalOriginFailures: 1,
           slowCallRateThreshold: 10, slowCallDurationThreshold: 1s}
  route: {consecutiveFailures: 2, minimumNumberOfCalls: 2, failureRateThreshold: 10, consecutiveLocalOriginFailures: 1,
          slowCallRateThreshold: 10, slowCallDurationThreshold: 1s}
  service: {consecutiveFailures: 2, minimumNumberOfCalls: 2, failureRateThreshold: 10, consecutiveLocalOriginFailures: 1,
            slowCallRateThreshold: 10, slowCallDurationThreshold: 1s}
retry: {numRetries: 0}
";

async fn start(manners: &[(&str, u16)]) -> Vec<Worker> {
    let mut started = Vec::new();
    for (name, status) in manners {
        started.push(workers::start(name, Manner { status: *status, ..Manner::default() }).await);
    }
    started
}

fn addresses(workers: &[Worker]) -> Vec<SocketAddr> {
    workers.iter().map(|worker| worker.address).collect()
}

fn worker_view(proxy: &RunningProxy, place: usize) -> View {
    proxy.control.snapshot().workers[place].breaker.view(Instant::now())
}

fn service_view(proxy: &RunningProxy) -> View {
    proxy.control.snapshot().service.view(Instant::now())
}

fn route_view(proxy: &RunningProxy, place: usize) -> View {
    proxy.control.snapshot().routes[place].gate.view(Instant::now())
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let waited = tokio::time::timeout(Duration::from_secs(10), async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("not within ten seconds: {what}"));
}

/// Every request has ended, and whatever it said has been heard.
async fn settled(proxy: &RunningProxy) {
    until("no request is in flight", || {
        proxy.control.snapshot().workers.iter().all(|worker| worker.in_flight() == 0)
    })
    .await;
}

/// What a worker does that speaks HTTP/1.1 by hand.
#[derive(Clone, Copy)]
enum Raw {
    /// Reads, and never answers.
    Hang,
    /// Sends half of its body, then closes.
    BreakOff,
    /// Sends a body without end.
    Endless,
}

async fn raw_worker(raw: Raw) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else { return };
            tokio::spawn(serve_raw(stream, raw));
        }
    });
    address
}

async fn serve_raw(mut stream: TcpStream, raw: Raw) -> io::Result<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        if stream.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    match raw {
        Raw::Hang => _ = stream.read_to_end(&mut head).await?,
        Raw::BreakOff => {
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\n").await?;
            stream.write_all(b"half of it").await?;
            stream.flush().await?;
            tokio::time::sleep(Duration::from_millis(20)).await; // the head must not come with the end
        }
        Raw::Endless => {
            stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await?;
            loop {
                stream.write_all(b"4000\r\n").await?;
                stream.write_all(&[b'x'; 0x4000]).await?;
                stream.write_all(b"\r\n").await?;
            }
        }
    }
    Ok(())
}

/// What the admin port answers to somebody on this machine.
async fn text(proxy: &RunningProxy, path: &str) -> String {
    let mut stream = TcpStream::connect(proxy.admin).await.expect("connects");
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn the_breaker_of_a_worker_that_fails_opens_and_no_other() {
    let workers = start(&[("a", 200), ("b", 503), ("c", 200)]).await;
    let spec = "circuitBreaker: {worker: {consecutiveFailures: 3}, route: {minimumNumberOfCalls: 100}, service: {minimumNumberOfCalls: 100}}";
    let proxy = start_proxy(&addresses(&workers), spec);
    let mut connection = Connection::open(proxy.data).await.expect("connects");
    let mut failed = 0;
    for _ in 0..30 {
        failed += usize::from(connection.send(get("/", &[])).await.expect("an answer").status == 503);
    }
    assert_eq!((failed, workers[1].count()), (3, 3), "three in a row, and no request more");
    let view = worker_view(&proxy, 1);
    assert_eq!((view.state, view.cause.as_deref()), ("open", Some("3 failures in a row")));
    assert_eq!(view.errors[0].outcome.to_string(), "status 503");
    assert!(
        [worker_view(&proxy, 0), worker_view(&proxy, 2), service_view(&proxy)]
            .iter()
            .all(|v| v.state == "closed")
    );

    let metrics = text(&proxy, "/metrics").await;
    for line in [
        r#"outrigger_breaker_state{level="worker",name="worker-2",state="open"} 1"#,
        r#"outrigger_breaker_transitions_total{level="worker",name="worker-2",transition="opened"} 1"#,
        r#"outrigger_breaker_calls_total{level="worker",name="worker-2",kind="failed"} 3"#,
        r#"outrigger_breaker_state{level="service",name="service",state="closed"} 1"#,
        r#"outrigger_breaker_calls_total{level="route",name="default",kind="failed"} 3"#,
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
    let listed = text(&proxy, "/api/breakers").await;
    assert!(listed.contains(r#""cause":"3 failures in a row""#), "{listed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn when_all_workers_fail_alike_the_service_opens_and_answers_at_once() {
    let workers = start(&[("a", 500), ("b", 500), ("c", 500)]).await;
    let spec = "circuitBreaker: {worker: {consecutiveFailures: 3}, service: {minimumNumberOfCalls: 12}}";
    let proxy = start_proxy(&addresses(&workers), spec);
    let mut connection = Connection::open(proxy.data).await.expect("connects");
    let mut answers = Vec::new();
    for _ in 0..100 {
        answers.push(connection.send(get("/", &[])).await.expect("an answer"));
    }
    let upstream: u64 = workers.iter().map(Worker::count).sum();
    assert_eq!(upstream, 12, "as many as the service's breaker needed to see");
    assert_eq!(service_view(&proxy).state, "open");
    for place in 0..3 {
        let view = worker_view(&proxy, place);
        assert_eq!(view.state, "closed", "the workers' breakers are for workers worse than others: {view:?}");
    }
    assert!(worker_view(&proxy, 0).held.is_some_and(|held| held.contains("alike")));
    let refused: Vec<&Answer> = answers.iter().filter(|answer| answer.status == 503).collect();
    assert_eq!(refused.len(), 88);
    for answer in refused {
        let after: u64 = answer.header("retry-after").expect("Retry-After").parse().expect("seconds");
        assert!((1..=6).contains(&after), "{after}");
        let status = answer.header("proxy-status").expect("Proxy-Status");
        assert!(status.contains("destination_unavailable") && status.contains("service"), "{status}");
    }
    assert!(
        text(&proxy, "/metrics").await.contains(r#"outrigger_rejections_total{reason="service_open"} 88"#)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn half_open_lets_few_through_and_the_service_recovers() {
    let worker = workers::start("a", Manner { status: 500, ..Manner::default() }).await;
    let address = worker.address;
    let spec = "circuitBreaker: {service: {consecutiveFailures: 3, waitDurationInOpenState: 300ms, permittedNumberOfCallsInHalfOpenState: 2}}";
    let proxy = start_proxy(&[address], spec);
    for _ in 0..3 {
        client::send(proxy.data, get("/", &[])).await.expect("an answer");
    }
    assert_eq!(service_view(&proxy).state, "open");
    worker.stop().await;
    let well =
        workers::start_at(address, "a", Manner { delay: Duration::from_millis(100), ..Manner::default() })
            .await;
    until("it is half-open", || proxy.control.snapshot().service_half_open()).await;
    assert_eq!(service_view(&proxy).state, "half-open");
    let at_once: Vec<_> = (0..20).map(|_| tokio::spawn(client::send(proxy.data, get("/", &[])))).collect();
    let mut statuses = Vec::new();
    for one in at_once {
        statuses.push(one.await.expect("no panic").expect("an answer").status.as_u16());
    }
    let passed = statuses.iter().filter(|status| **status == 200).count();
    assert_eq!(passed as u64, well.count(), "{statuses:?}");
    assert!((2..20).contains(&passed), "two probes, and those that came after them: {statuses:?}");
    assert_eq!(service_view(&proxy).state, "closed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_that_fails_takes_no_other_down() {
    let failing = start(&[("a", 500)]).await;
    let spec = "
circuitBreaker: {route: {consecutiveFailures: 4}}
routes: [{name: api, match: {path: {value: /api}}}]";
    let proxy = start_proxy(&addresses(&failing), spec);
    let mut statuses = Vec::new();
    for path in ["/api"; 6].into_iter().chain(["/"; 3]) {
        statuses.push(client::send(proxy.data, get(path, &[])).await.expect("an answer").status.as_u16());
    }
    assert_eq!(statuses, [500, 500, 500, 500, 503, 503, 500, 500, 500]);
    assert_eq!((route_view(&proxy, 0).state, route_view(&proxy, 1).state), ("open", "closed"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_breaks_off_its_bodies_is_taken_out() {
    let (well, broken) = (workers::start("a", Manner::default()).await, raw_worker(Raw::BreakOff).await);
    let proxy = start_proxy(&[well.address, broken], "circuitBreaker: {worker: {consecutiveFailures: 3}}");
    let mut cut = 0;
    for _ in 0..20 {
        cut += usize::from(client::send(proxy.data, get("/", &[])).await.is_err());
    }
    assert_eq!(cut, 3, "whoever got one of the three saw its answer cut");
    let view = worker_view(&proxy, 1);
    assert_eq!((view.state, view.calls, view.failures), ("open", 3, 3), "each counts once");
    assert_eq!(view.errors[0].outcome.to_string(), "connection reset");
    assert_eq!(worker_view(&proxy, 0).state, "closed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_hangs_is_taken_out_by_its_connections() {
    let (well, hung) = (workers::start("a", Manner::default()).await, raw_worker(Raw::Hang).await);
    let spec = "
timeout: {request: 100ms}
circuitBreaker: {worker: {consecutiveFailures: 0, consecutiveLocalOriginFailures: 2}}";
    let proxy = start_proxy(&[well.address, hung], spec);
    let mut timeouts = 0;
    for _ in 0..12 {
        let answer = client::send(proxy.data, get("/", &[])).await.expect("an answer");
        timeouts += usize::from(answer.status == 504);
    }
    assert_eq!(timeouts, 2);
    assert_eq!(worker_view(&proxy, 1).cause.as_deref(), Some("2 failed connections in a row"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_threshold_that_changes_while_it_is_open_keeps_the_timer() {
    let failing = start(&[("a", 500)]).await;
    let proxy = start_proxy(
        &addresses(&failing),
        "circuitBreaker: {worker: {consecutiveFailures: 2, waitDurationInOpenState: 1h}}",
    );
    for _ in 0..2 {
        client::send(proxy.data, get("/", &[])).await.expect("an answer");
    }
    let before = worker_view(&proxy, 0).open_remaining.expect("open");
    proxy.apply("circuitBreaker: {worker: {consecutiveFailures: 9, waitDurationInOpenState: 1s}, route: {}}");
    let after = worker_view(&proxy, 0).open_remaining.expect("still open");
    assert!(Duration::from_secs(3500) < after && after <= before, "{before:?} {after:?}");
    let answer = client::send(proxy.data, get("/", &[])).await.expect("an answer");
    assert_eq!((answer.status.as_u16(), failing[0].count()), (503, 2));
    assert!(answer.header("retry-after").is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_override_of_the_policy_holds_until_its_time_and_not_longer() {
    let workers = start(&[("a", 200), ("b", 200)]).await;
    let proxy = start_proxy(&addresses(&workers), "{}");
    let then = unix_millis() + 2500;
    let time = std::process::Command::new("date")
        .args(["-u", "-d", &format!("@{}", then / 1000), "+%FT%T"])
        .output();
    let time = String::from_utf8(time.expect("date runs").stdout).expect("text");
    let time = format!("{}.{:03}Z", time.trim(), then % 1000);
    proxy.apply(&format!(
        "breakerOverrides: [{{breaker: worker/worker-1, state: Open, until: '{time}', reason: a leak}}]"
    ));
    until("the override holds", || worker_view(&proxy, 0).state == "open").await;
    let mut connection = Connection::open(proxy.data).await.expect("connects");
    let before = workers[0].count();
    for _ in 0..10 {
        assert_eq!(connection.send(get("/", &[])).await.expect("an answer").worker(), "b");
    }
    assert_eq!(workers[0].count(), before);
    until("the override is over by itself", || worker_view(&proxy, 0).state == "closed").await;
    assert!(then <= unix_millis(), "not before its time");
    for _ in 0..4 {
        connection.send(get("/", &[])).await.expect("an answer");
    }
    assert!(before < workers[0].count(), "it takes its part again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_recovered_gets_its_share_back_little_by_little() {
    let workers = start(&[("a", 200), ("b", 200)]).await;
    let proxy = start_proxy(&addresses(&workers), "circuitBreaker: {worker: {recoveryRamp: 1h}}");
    let worker = proxy.control.snapshot().workers[0].clone();
    let hold = |action| Command { action, reason: "a test".to_owned(), until_unix_millis: i64::MAX };
    worker.breaker.command(hold(Action::HalfOpen), Instant::now(), 0).expect("there is a breaker");
    let mut connection = Connection::open(proxy.data).await.expect("connects");
    while worker_view(&proxy, 0).state != "closed" {
        connection.send(get("/", &[])).await.expect("an answer");
    }
    let before = workers[0].count();
    for _ in 0..1000 {
        assert_eq!(connection.send(get("/", &[])).await.expect("an answer").status, 200);
    }
    let share = workers[0].count() - before;
    assert!((20..=150).contains(&share), "a tenth at most: {share} of 1000");
}

// === poisoning ===

fn nothing_is_held_against_anybody(proxy: &RunningProxy, what: &str) {
    for view in [worker_view(proxy, 0), service_view(proxy), route_view(proxy, 0)] {
        assert_eq!((view.state, view.tally.failed, view.tally.slow), ("closed", 0, 0), "{what}: {view:?}");
    }
}

/// Sends this over a connection of its own, waits a while for an answer, and goes away.
async fn abuse(proxy: &RunningProxy, bytes: &str, wait: Duration) {
    let mut stream = TcpStream::connect(proxy.data).await.expect("connects");
    stream.write_all(bytes.as_bytes()).await.expect("sent");
    let mut answer = [0; 16 << 10];
    let _ = tokio::time::timeout(wait, stream.read(&mut answer)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_http1_open_no_breaker_whatever_they_do() {
    let worker = workers::start("a", Manner { delay: Duration::from_millis(30), ..Manner::default() }).await;
    let proxy = start_proxy(&[worker.address], &format!("{STRICT}timeout: {{request: 500ms, idle: 2s}}"));
    let post = "POST /echo HTTP/1.1\r\nhost: test\r\n";
    let moment = Duration::from_millis(10);
    for (what, bytes, wait) in [
        ("gone before the answer", String::from("GET / HTTP/1.1\r\nhost: test\r\n\r\n"), moment),
        ("gone in the body", format!("{post}content-length: 100\r\n\r\nhalf"), moment),
        ("gone in a chunk", format!("{post}transfer-encoding: chunked\r\n\r\n40\r\nhalf"), moment),
        ("broken chunks", format!("{post}transfer-encoding: chunked\r\n\r\n4\r\nbody\r\nzz\r\n"), 9 * moment),
        ("a body that never ends", format!("{post}content-length: 100\r\n\r\nhalf"), 70 * moment),
    ] {
        for _ in 0..5 {
            abuse(&proxy, &bytes, wait).await;
        }
        settled(&proxy).await;
        nothing_is_held_against_anybody(&proxy, what);
    }
    assert_eq!(client::send(proxy.data, get("/", &[])).await.expect("an answer").status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_takes_its_time_makes_no_worker_slow() {
    let worker = workers::start("a", Manner::default()).await;
    let proxy = start_proxy(&[worker.address], STRICT);
    let mut stream = TcpStream::connect(proxy.data).await.expect("connects");
    stream
        .write_all(b"POST /echo HTTP/1.1\r\nhost: test\r\ncontent-length: 8\r\n\r\nhalf")
        .await
        .expect("sent");
    tokio::time::sleep(Duration::from_millis(1300)).await; // longer than a slow call is
    stream.write_all(b"half").await.expect("sent");
    let mut answer = vec![0; 4096];
    let read = stream.read(&mut answer).await.expect("an answer");
    assert!(answer[..read].starts_with(b"HTTP/1.1 200"), "{:?}", String::from_utf8_lossy(&answer[..read]));
    settled(&proxy).await;
    nothing_is_held_against_anybody(&proxy, "a slow client");
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_leave_in_the_middle_of_an_answer_open_no_breaker() {
    let proxy = start_proxy(&[raw_worker(Raw::Endless).await], STRICT);
    for _ in 0..5 {
        abuse(&proxy, "GET / HTTP/1.1\r\nhost: test\r\n\r\n", Duration::from_secs(5)).await;
    }
    let (mut sender, connection) = open_http2(proxy.data).await;
    for _ in 0..5 {
        let request = Request::get("http://test/").body(empty()).expect("a request");
        let mut answer = sender.send_request(request).await.expect("an answer");
        assert!(answer.body_mut().frame().await.is_some_and(|frame| frame.is_ok()));
    }
    drop((sender, connection));
    settled(&proxy).await;
    nothing_is_held_against_anybody(&proxy, "gone in the answer");
}

type Body = BoxBody<Bytes, io::Error>;

fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed()
}

/// A body that sends a little, waits, and then breaks off, or goes on for ever without a byte.
fn half_a_body(then: Option<Duration>) -> Body {
    let frames = stream::unfold(0, move |sent| async move {
        match (sent, then) {
            (0, _) => Some((Ok(Frame::data(Bytes::from_static(b"half"))), 1)),
            (_, Some(wait)) => {
                tokio::time::sleep(wait).await;
                Some((Err(io::Error::other("the client breaks off")), 2))
            }
            (_, None) => std::future::pending().await,
        }
    });
    // A stream of this type is not `Sync`, and a boxed body must be; a client polls it from one task.
    StreamBody::new(sync_wrapper(frames)).boxed()
}

/// A stream that only its owner polls.
fn sync_wrapper<S>(stream: S) -> SyncStream<S> {
    SyncStream(std::sync::Mutex::new(Box::pin(stream)))
}

struct SyncStream<S>(std::sync::Mutex<std::pin::Pin<Box<S>>>);

impl<S: stream::Stream> stream::Stream for SyncStream<S> {
    type Item = S::Item;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<S::Item>> {
        self.0.get_mut().expect("no panic").as_mut().poll_next(cx)
    }
}

async fn open_http2(to: SocketAddr) -> (http2::SendRequest<Body>, tokio::task::JoinHandle<()>) {
    let stream = TcpStream::connect(to).await.expect("connects");
    let (sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.expect("HTTP/2");
    let task = tokio::spawn(async move { _ = connection.await });
    (sender, task)
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_http2_open_no_breaker_whatever_they_do() {
    let worker = workers::start("a", Manner { delay: Duration::from_millis(30), ..Manner::default() }).await;
    let proxy = start_proxy(&[worker.address], &format!("{STRICT}timeout: {{request: 500ms, idle: 2s}}"));
    let (mut sender, connection) = open_http2(proxy.data).await;
    let moment = Duration::from_millis(10);
    for (what, wait, give_up) in [
        ("a body that breaks off at once", Some(Duration::ZERO), None),
        ("a body that breaks off later", Some(5 * moment), None),
        ("a body that never ends", None, None),
        ("gone in the body", None, Some(moment)),
    ] {
        for _ in 0..5 {
            let request = Request::post("http://test/echo").body(half_a_body(wait)).expect("a request");
            let answer = async { sender.send_request(request).await?.into_body().collect().await };
            let _ = tokio::time::timeout(give_up.unwrap_or(Duration::from_secs(5)), answer).await;
        }
        settled(&proxy).await;
        nothing_is_held_against_anybody(&proxy, what);
    }
    for _ in 0..5 {
        let request = Request::get("http://test/").body(empty()).expect("a request");
        let _ = tokio::time::timeout(moment, sender.send_request(request)).await; // its stream is reset
    }
    connection.abort(); // with whatever is still open on it
    settled(&proxy).await;
    nothing_is_held_against_anybody(&proxy, "gone before the answer");
    assert_eq!(client::send(proxy.data, get("/", &[])).await.expect("an answer").status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_a_client_can_bring_about_at_will_open_no_breaker() {
    for status in [400, 413, 429, 501, 505] {
        let workers = start(&[("a", status)]).await;
        let proxy = start_proxy(&addresses(&workers), STRICT);
        for _ in 0..5 {
            assert_eq!(client::send(proxy.data, get("/", &[])).await.expect("an answer").status, status);
        }
        nothing_is_held_against_anybody(&proxy, &status.to_string());
    }
}

// === gRPC ===

/// A worker that answers every gRPC call with a message and, in the trailers, this status.
async fn grpc_worker(status: Arc<AtomicU64>, message: bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else { return };
            let status = status.clone();
            let service = service_fn(move |_| {
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", status.load(Relaxed).into());
                let data = message.then(|| Ok(Frame::data(Bytes::from_static(b"\0\0\0\0\0"))));
                let frames = data.into_iter().chain([Ok::<_, Infallible>(Frame::trailers(trailers))]);
                let answer = Response::builder().header("content-type", "application/grpc");
                let answer = answer.body(StreamBody::new(stream::iter(frames.collect::<Vec<_>>())));
                async move { answer }
            });
            let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(serving.serve_connection(TokioIo::new(stream), service));
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grpc_status_in_the_trailers_counts_and_a_deadline_does_not() {
    let status = Arc::new(AtomicU64::new(4)); // DEADLINE_EXCEEDED: the client set it
    let proxy = start_proxy(&[grpc_worker(status.clone(), true).await], STRICT);
    let (mut sender, _connection) = open_http2(proxy.data).await;
    let mut call = async || {
        let request = Request::post("http://test/s/m").header("content-type", "application/grpc");
        let request = request.header("te", "trailers").body(empty()).expect("a request");
        let answer = sender.send_request(request).await.expect("an answer");
        let in_head = answer.headers().get("grpc-status").cloned();
        let trailers = answer.into_body().collect().await.expect("a whole answer").trailers().cloned();
        in_head.or_else(|| trailers?.get("grpc-status").cloned()).expect("a status")
    };
    for _ in 0..5 {
        assert_eq!(call().await, "4");
    }
    settled(&proxy).await;
    nothing_is_held_against_anybody(&proxy, "a deadline of the client's");
    status.store(13, Relaxed);
    let mut seen = Vec::new();
    while worker_view(&proxy, 0).state == "closed" && service_view(&proxy).state == "closed" && seen.len() < 9
    {
        seen.push(call().await);
        settled(&proxy).await;
    }
    assert!(seen.iter().all(|status| status == "13") && seen.len() <= 2, "{seen:?}");
    assert_eq!(call().await, "14", "UNAVAILABLE, in the form of gRPC");
}
