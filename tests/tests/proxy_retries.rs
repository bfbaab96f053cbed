//! What is tried again, what never is, and how much of it: retries, budget, kept bodies, hedges, deadlines.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use http::{Request, Response};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Body, Frame};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use system_tests::client::{self, Answer, Connection, get, request};
use system_tests::proxy::{RunningProxy, start_proxy};
use system_tests::workers::{self, Manner, Worker};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A worker that breaks off and one that answers, in this order, and a proxy that asks them in turn.
async fn bad_and_good(manner: Manner, spec: &str) -> (Worker, Worker, RunningProxy) {
    let bad = workers::start("bad", manner).await;
    let good = workers::start("good", Manner { http2: manner.http2, ..Manner::default() }).await;
    let spec = format!("loadBalancer: {{type: RoundRobin}}\n{spec}");
    let proxy = start_proxy(&[bad.address, good.address], &spec);
    (bad, good, proxy)
}

const BREAKS_OFF: Manner = Manner {
    status: 0,
    delay: Duration::ZERO,
    http2: false,
    percent_each: 0,
    breaks_off: true,
    grpc_status: 0,
};

async fn sent(proxy: &RunningProxy, request: Request<Full<Bytes>>) -> Answer {
    client::send(proxy.data, request).await.expect("an answer")
}

/// The value of one of the proxy's own counts.
async fn metric(proxy: &RunningProxy, name: &str) -> u64 {
    let text = client::send(proxy.admin, get("/metrics", &[])).await.expect("an answer").text();
    let line = text.lines().find(|line| line.starts_with(&format!("outrigger_{name} ")));
    line.and_then(|line| line.split(' ').nth(1)).expect("the family is there").parse().expect("a number")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_idempotent_is_sent_once_more_and_nothing_else_is() {
    let (bad, good, proxy) = bad_and_good(BREAKS_OFF, "retry: {budget: {percent: 100}}").await;
    for method in ["GET", "HEAD", "OPTIONS", "PUT", "DELETE"] {
        for _ in 0..4 {
            let answer = sent(&proxy, request(method, "/", &[], "")).await;
            assert_eq!((answer.status.as_u16(), answer.worker()), (200, "good"), "{method}");
        }
    }
    let retries = metric(&proxy, "retries_total").await;
    assert_eq!(retries, bad.count(), "each that broke off was sent once more");
    assert_eq!(good.count(), 20, "and answered by the other");
    assert!(10 <= retries, "{retries}");

    let before = (bad.count(), good.count());
    let mut statuses = Vec::new();
    for method in ["POST", "PATCH", "REPORT", "POST"] {
        statuses.push(sent(&proxy, request(method, "/", &[], "")).await.status.as_u16());
    }
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 200, 502, 502]);
    assert_eq!((bad.count() - before.0, good.count() - before.1), (2, 2), "each was sent once");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_never_left_goes_to_another_worker_whatever_it_is() {
    // With a breaker the choice goes by that, and not by whether the worker accepts connections.
    let breaker = "circuitBreaker: {worker: {consecutiveFailures: 1000}}";
    let spec = format!("retry: {{budget: {{percent: 0, minRetryRate: 0}}}}\n{breaker}");
    let (bad, good, proxy) = bad_and_good(Manner::default(), &spec).await;
    bad.stop().await;
    for _ in 0..10 {
        let answer = sent(&proxy, request("POST", "/echo", &[], "a body")).await;
        assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "a body"));
    }
    assert_eq!(good.count(), 10);
    proxy.apply(&format!(
        "loadBalancer: {{type: RoundRobin}}\nretry: {{retryOn: {{triggers: [Reset]}}}}\n{breaker}"
    ));
    let mut refused = 0;
    for _ in 0..4 {
        refused += usize::from(sent(&proxy, get("/", &[])).await.status == 503);
    }
    assert_eq!(refused, 2, "the policy does not ask for it any more");
}

#[tokio::test(flavor = "multi_thread")]
async fn statuses_are_tried_again_as_the_policy_says_and_the_last_answer_counts() {
    let busy = Manner { status: 503, ..Manner::default() };
    let (bad, good, proxy) = bad_and_good(busy, "retry: {retryOn: {triggers: [GatewayError]}}").await;
    for _ in 0..10 {
        assert_eq!(sent(&proxy, get("/", &[])).await.status, 200);
    }
    assert!(5 <= bad.count(), "{}", bad.count());
    let mut statuses = Vec::new();
    for _ in 0..2 {
        statuses.push(sent(&proxy, request("POST", "/", &[], "")).await.status.as_u16());
    }
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 503], "a POST was sent, and is not sent again");
    good.stop().await;
    let answer = sent(&proxy, get("/", &[])).await;
    assert_eq!(
        (answer.status.as_u16(), answer.worker()),
        (503, "bad"),
        "what the worker said, not the proxy"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn retries_keep_to_their_budget_when_every_worker_fails() {
    let broken = Manner { status: 500, ..Manner::default() };
    let one = workers::start("one", broken).await;
    let two = workers::start("two", broken).await;
    let spec = "retry: {numRetries: 3, retryOn: {triggers: [5xx]}, budget: {percent: 20, minRetryRate: 0}, perRetry: {backOff: {baseInterval: 1ms}}}";
    let proxy = start_proxy(&[one.address, two.address], spec);
    let mut connection = Connection::open(proxy.data).await.expect("connects");
    for _ in 0..500 {
        assert_eq!(connection.send(get("/", &[])).await.expect("an answer").status, 500);
    }
    let upstream = one.count() + two.count();
    assert!((590..=600).contains(&upstream), "{upstream} for 500 requests");
    assert!(300 < metric(&proxy, "retries_over_budget_total").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_is_sent_once_more_if_it_was_kept() {
    let (bad, _good, proxy) = bad_and_good(BREAKS_OFF, "retry: {bodyBuffer: 100000}").await;
    let body = "0123456789".repeat(9_000);
    for _ in 0..4 {
        let answer = sent(&proxy, request("PUT", "/echo", &[], &body)).await;
        assert_eq!((answer.status.as_u16(), answer.body == body), (200, true));
    }
    assert!(2 <= bad.count(), "{}", bad.count());
    let longer = "0123456789".repeat(11_000);
    let mut statuses = Vec::new();
    for _ in 0..2 {
        statuses.push(sent(&proxy, request("PUT", "/echo", &[], &longer)).await.status.as_u16());
    }
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 502], "a longer one is not kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_hangs_is_given_up_for_another() {
    let hangs = Manner { delay: Duration::from_secs(60), ..Manner::default() };
    let spec = "retry: {perRetry: {timeout: 100ms}}\ncircuitBreaker: {worker: {consecutiveFailures: 2, waitDurationInOpenState: 1m}}";
    let (bad, _good, proxy) = bad_and_good(hangs, spec).await;
    for _ in 0..20 {
        assert_eq!(sent(&proxy, get("/", &[])).await.worker(), "good");
    }
    assert_eq!(bad.count(), 2, "and what it cost was held against it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_answer_is_hedged_and_the_loser_is_held_against_nobody() {
    let slow = Manner { delay: Duration::from_secs(20), ..Manner::default() };
    let spec = "hedge: {delay: 50ms, budget: {percent: 100}}\ncircuitBreaker: {worker: {consecutiveFailures: 1, waitDurationInOpenState: 1m}}";
    let (bad, _good, proxy) = bad_and_good(slow, spec).await;
    for _ in 0..10 {
        let started = Instant::now();
        assert_eq!(sent(&proxy, get("/", &[])).await.worker(), "good");
        assert!(started.elapsed() < Duration::from_secs(10));
    }
    let hedges = [metric(&proxy, "hedges_total").await, metric(&proxy, "hedges_won_total").await];
    assert_eq!(hedges, [bad.count(); 2]);
    assert!(5 <= hedges[0], "the slow one is still asked in turn: {hedges:?}");
    let post = tokio::time::timeout(Duration::from_millis(400), async {
        sent(&proxy, request("POST", "/", &[], "")).await;
        sent(&proxy, request("POST", "/", &[], "")).await;
    });
    assert!(post.await.is_err(), "a POST is not hedged: one of the two waits for the slow one");
}

#[tokio::test(flavor = "multi_thread")]
async fn hedges_wait_for_what_is_late_among_recent_answers_and_keep_to_their_budget() {
    let (_bad, _good, proxy) = bad_and_good(
        Manner::default(),
        "hedge: {afterPercentile: 95, budget: {percent: 5, minRetryRate: 0}}",
    )
    .await;
    let mut connection = Connection::open(proxy.data).await.expect("connects");
    for _ in 0..400 {
        assert_eq!(connection.send(get("/", &[])).await.expect("an answer").status, 200);
    }
    let hedges = metric(&proxy, "hedges_total").await;
    assert!(hedges <= 20, "{hedges} of 400");
}

#[tokio::test(flavor = "multi_thread")]
async fn deadlines_shrink_on_the_way_and_are_the_clients_own() {
    let worker = workers::start("a", Manner { delay: Duration::from_millis(300), ..Manner::default() }).await;
    let spec = "timeout: {request: 5s, requestHeader: X-Request-Timeout}\ncircuitBreaker: {worker: {consecutiveFailures: 1, waitDurationInOpenState: 1m}}";
    let proxy = start_proxy(&[worker.address], spec);
    let told = |answer: &Answer| {
        let text = answer.text();
        let line = text.lines().find_map(|line| line.strip_prefix("x-request-timeout: "));
        line.expect("the worker is told").to_owned()
    };
    let millis = |text: &str| text.trim_end_matches("ms").parse::<u64>().expect("milliseconds");
    let answer = sent(&proxy, get("/headers", &[("x-request-timeout", "2000")])).await;
    assert!((1..=2000).contains(&millis(&told(&answer))), "{}", told(&answer));
    let answer = sent(&proxy, get("/headers", &[("x-request-timeout", "2s")])).await;
    assert!(told(&answer).ends_with("ms") && millis(&told(&answer)) <= 2000, "{}", told(&answer));
    for longer in [&[("x-request-timeout", "90000")][..], &[], &[("x-request-timeout", "soon")]] {
        let answer = sent(&proxy, get("/headers", longer)).await;
        assert!((4000..=5000).contains(&millis(&told(&answer))), "{}", told(&answer));
    }
    for _ in 0..3 {
        let answer = sent(&proxy, get("/", &[("x-request-timeout", "50")])).await;
        assert_eq!(answer.status, 504);
        assert_eq!(answer.header("proxy-status"), Some("outrigger; error=http_response_timeout"));
    }
    assert_eq!(sent(&proxy, get("/", &[])).await.status, 200, "clients that do not wait open no breaker");
}

/// A call of one message, after which the client has said all.
async fn call(proxy: &RunningProxy, headers: &[(&str, &str)]) -> Response<Bytes> {
    call_with(proxy, headers, Full::new(MESSAGE)).await
}

/// A call of one message, after which the client might say more.
async fn open_call(proxy: &RunningProxy, headers: &[(&str, &str)]) -> Response<Bytes> {
    let message = std::future::ready(Ok::<_, Infallible>(Frame::data(MESSAGE)));
    let frames = stream::once(message).chain(stream::pending());
    call_with(proxy, headers, StreamBody::new(Box::pin(frames))).await
}

const MESSAGE: Bytes = Bytes::from_static(b"\0\0\0\0\x01x");

async fn call_with<B>(proxy: &RunningProxy, headers: &[(&str, &str)], body: B) -> Response<Bytes>
where
    B: Body<Data = Bytes, Error = Infallible> + Unpin + Send + 'static,
{
    let stream = TcpStream::connect(proxy.data).await.expect("connects");
    let (mut sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.expect("HTTP/2");
    tokio::spawn(connection);
    let mut call = Request::post("http://test/echo").header("content-type", "application/grpc");
    for (name, value) in headers {
        call = call.header(*name, *value);
    }
    let call = call.body(body).expect("valid");
    let (head, body) = sender.send_request(call).await.expect("an answer").into_parts();
    Response::from_parts(head, body.collect().await.expect("a whole body").to_bytes())
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_are_repeated_for_the_codes_that_the_policy_names() {
    let unavailable = Manner { http2: true, grpc_status: 14, ..Manner::default() };
    let spec = "retry: {bodyBuffer: 1000, retryOn: {grpcCodes: [UNAVAILABLE]}}";
    let (bad, _good, proxy) = bad_and_good(unavailable, spec).await;
    for _ in 0..4 {
        let answer = call(&proxy, &[]).await;
        assert_eq!((answer.headers()["x-worker"].to_str().ok(), answer.body().len()), (Some("good"), 6));
    }
    assert!(2 <= bad.count(), "{}", bad.count());
    proxy.apply("loadBalancer: {type: RoundRobin}");
    let mut codes = Vec::new();
    for _ in 0..2 {
        codes.push(call(&proxy, &[]).await.headers().get("grpc-status").is_some());
    }
    codes.sort_unstable();
    assert_eq!(codes, [false, true], "the code goes to the client");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_is_over_its_time_ends_with_deadline_exceeded() {
    let slow = Manner { http2: true, delay: Duration::from_secs(5), ..Manner::default() };
    let worker = workers::start("slow", slow).await;
    let spec = "circuitBreaker: {worker: {consecutiveFailures: 1, waitDurationInOpenState: 1m}}";
    let proxy = start_proxy(&[worker.address], spec);
    let limit: &[_] = &[("grpc-timeout", "50m")];
    for answer in [call(&proxy, limit).await, call(&proxy, limit).await, open_call(&proxy, limit).await] {
        assert_eq!(
            (answer.status().as_u16(), &answer.headers()["grpc-status"]),
            (200, &http::HeaderValue::from(4))
        );
    }
    assert_eq!(worker.count(), 3, "the breaker is closed");
}

/// A worker that closes each connection without a word when it stood idle for 30 ms, as a server with a short
/// keep-alive does.
async fn impatient() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = [0; 4096];
                let idle = Duration::from_millis(30);
                while let Ok(Ok(1..)) = tokio::time::timeout(idle, stream.read(&mut head)).await {
                    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
                    if stream.write_all(answer).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_the_worker_closed_meanwhile_costs_no_client_an_error() {
    let proxy = start_proxy(&[impatient().await], "{}");
    let clients = (0..8).map(|i| {
        let data = proxy.data;
        tokio::spawn(async move {
            let mut connection = Connection::open(data).await.expect("connects");
            for round in 0..40 {
                // Around the time at which the worker closes.
                tokio::time::sleep(Duration::from_micros(28_000 + (i * 7 + round * 13) % 4000)).await;
                let answer = connection.send(get("/", &[])).await.expect("an answer");
                assert_eq!(answer.status, 200, "{answer:?}");
            }
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.expect("no client saw an error");
    }
}

/// A worker that answers one request on each connection, reads a second one, and closes without a word, or with a reset. It
/// counts what it reads.
async fn closes_after_one(resets: bool) -> (SocketAddr, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let heard = Arc::new(AtomicU64::new(0));
    let counter = heard.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let counter = counter.clone();
            tokio::spawn(async move {
                let mut request = [0; 4096];
                for answer in [&b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"[..], b""] {
                    let Ok(1..) = stream.read(&mut request).await else { return };
                    counter.fetch_add(1, Relaxed);
                    let _ = stream.write_all(answer).await; // the proxy may be gone
                }
                if resets {
                    let _ = stream.set_zero_linger();
                }
            });
        }
    });
    (address, heard)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_ends_before_a_byte_comes_back_costs_no_idempotent_request_and_no_worker() {
    for resets in [false, true] {
        let (address, heard) = closes_after_one(resets).await;
        let strict = "retry: {numRetries: 0}\nworkers: [{name: worker-1, protocol: HTTP1}]\n\
            circuitBreaker: {worker: {consecutiveFailures: 1, waitDurationInOpenState: 1m}}";
        let proxy = start_proxy(&[address], strict);
        let mut connection = Connection::open(proxy.data).await.expect("connects");
        for method in ["GET", "HEAD", "OPTIONS", "PUT", "DELETE"].repeat(4) {
            let answer = connection.send(request(method, "/", &[], "")).await.expect("an answer");
            assert_eq!(answer.status, 200, "{method}: {answer:?}");
        }
        let stale = metric(&proxy, "stale_connections_total").await;
        assert!(8 <= stale, "{stale}"); // an answer to HEAD that has a length costs its connection
        assert_eq!(heard.load(Relaxed), 20 + stale, "each of them was sent once more");
        assert_eq!(
            metric(&proxy, "retries_total").await,
            0,
            "the policy wants none, and its budget is untouched"
        );
        assert_eq!(proxy.control.snapshot().workers[0].failures(), 0);

        proxy.apply(&strict.replace("numRetries: 0", "bodyBuffer: 1000"));
        for _ in 0..4 {
            let answer = connection.send(request("PUT", "/", &[], "a body")).await.expect("an answer");
            assert_eq!(answer.status, 200, "its body was kept: {answer:?}");
        }
        proxy.apply(strict);
        assert_eq!(connection.send(get("/", &[])).await.expect("an answer").status, 200);
        let before = heard.load(Relaxed);
        let answer = connection.send(request("POST", "/", &[], "")).await.expect("an answer");
        assert_eq!((answer.status.as_u16(), heard.load(Relaxed) - before), (502, 1), "it is not repeated");
    }
}
