//! Workers of HTTP/2 that say how many requests they take at once, take some back, or leave: no request waits where its client
//! would not, none is lost, and no worker is blamed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use h2::Reason;
use h2::server::{self, SendResponse};
use http::Response;
use system_tests::client::{self, get, request};
use system_tests::proxy::{RunningProxy, start_proxy};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// One failure is enough: whoever is blamed is refused.
const STRICT: &str = "workers: [{name: worker-1, protocol: H2C}]
retry: {numRetries: 0}
circuitBreaker: {worker: {consecutiveFailures: 1, waitDurationInOpenState: 1m}}
timeout: {request: 5s}";

/// What a worker does.
#[derive(Clone, Copy)]
enum Manner {
    /// It answers when it is told to.
    Holds,
    /// It refuses every other stream.
    RefusesHalf,
    /// It leaves after every third stream, the last of which it does nothing for.
    Leaves,
    /// It answers `/big` with a megabyte, and everything else with a kilobyte.
    Big,
}

#[derive(Default)]
struct Seen {
    connections: AtomicUsize,
    streams: AtomicUsize,
    held: AtomicUsize,
    go: Notify,
}

struct Worker {
    address: SocketAddr,
    seen: Arc<Seen>,
    task: JoinHandle<()>,
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Worker {
    /// A worker that takes so many streams at once on a connection.
    async fn start(streams: u32, manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let seen = Arc::<Seen>::default();
        let counts = seen.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, streams, manner, counts.clone()));
            }
        });
        Self { address, seen, task }
    }

    async fn holds(&self, count: usize) {
        let waits = async {
            while self.seen.held.load(SeqCst) != count {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let held = tokio::time::timeout(Duration::from_secs(10), waits).await;
        held.unwrap_or_else(|_| panic!("{} of {count} requests have begun", self.seen.held.load(SeqCst)));
    }
}

async fn serve(stream: TcpStream, streams: u32, manner: Manner, seen: Arc<Seen>) {
    let mut builder = server::Builder::new();
    let handshake = builder.max_concurrent_streams(streams).handshake::<_, Bytes>(stream);
    let Ok(mut connection) = handshake.await else { return }; // a question for the protocol
    seen.connections.fetch_add(1, SeqCst);
    let mut number = 0;
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        number += 1;
        let all = seen.streams.fetch_add(1, SeqCst);
        match manner {
            Manner::Holds => {
                let seen = seen.clone();
                tokio::spawn(async move {
                    let go = seen.go.notified();
                    seen.held.fetch_add(1, SeqCst);
                    go.await;
                    seen.held.fetch_sub(1, SeqCst);
                    answer(respond);
                });
            }
            Manner::RefusesHalf if all.is_multiple_of(2) => respond.send_reset(Reason::REFUSED_STREAM),
            Manner::Leaves if number == 3 => {
                respond.send_reset(Reason::REFUSED_STREAM);
                connection.graceful_shutdown();
            }
            Manner::RefusesHalf | Manner::Leaves => answer(respond),
            Manner::Big => {
                let bytes = if request.uri().path() == "/big" { 1 << 20 } else { 1 << 10 };
                let Ok(mut body) = respond.send_response(Response::new(()), false) else { continue };
                let _ = body.send_data(vec![b'a'; bytes].into(), true); // its client may be gone
            }
        }
    }
}

fn answer(mut respond: SendResponse<Bytes>) {
    let _ = respond.send_response(Response::new(()), true); // its client may be gone
}

async fn statuses(proxy: &RunningProxy, count: usize) -> Vec<u16> {
    let asked = (0..count).map(|_| client::send(proxy.data, get("/", &[])));
    join_all(asked).await.into_iter().map(|answer| answer.expect("an answer").status.as_u16()).collect()
}

/// The value of a series of the proxy.
async fn metric(proxy: &RunningProxy, series: &str) -> u64 {
    let text = client::send(proxy.admin, get("/metrics", &[])).await.expect("an answer").text();
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.expect("the series is there").parse().expect("a number")
}

#[tokio::test(flavor = "multi_thread")]
async fn as_many_calls_run_at_once_as_their_clients_make() {
    for streams in [1, 10] {
        let worker = Worker::start(streams, Manner::Holds).await;
        let proxy = start_proxy(&[worker.address], STRICT);
        let data = proxy.data;
        let calls: Vec<_> = (0..30).map(|_| tokio::spawn(client::send(data, get("/", &[])))).collect();
        worker.holds(30).await;
        let connections = worker.seen.connections.load(SeqCst);
        let least = 30usize.div_ceil(streams as usize);
        assert!((least..=least + 1).contains(&connections), "{connections} for {streams} each");
        worker.seen.go.notify_waiters();
        for call in calls {
            assert_eq!(call.await.expect("no panic").expect("an answer").status.as_u16(), 200);
        }
        let again = statuses(&proxy, 1);
        let (again, ()) = tokio::join!(again, async {
            worker.holds(1).await;
            worker.seen.go.notify_waiters();
        });
        assert_eq!(again, [200]);
        assert_eq!(worker.seen.connections.load(SeqCst), connections, "they are used again");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn beyond_what_a_worker_takes_a_request_is_refused_in_the_end_and_nobody_is_blamed() {
    const THREADS: usize = 2;
    const CONNECTIONS: usize = 64; // of one thread to one worker
    let worker = Worker::start(1, Manner::Holds).await;
    let patient =
        "routes: [{name: patient, match: {path: {type: PathPrefix, value: /held}}, timeout: {request: 1m}}]";
    let proxy = start_proxy(&[worker.address], &format!("{}\n{patient}", STRICT.replace("5s", "1s")));
    let data = proxy.data;
    let calls: Vec<_> =
        (0..3 * THREADS * CONNECTIONS).map(|_| tokio::spawn(client::send(data, get("/held", &[])))).collect();
    worker.holds(THREADS * CONNECTIONS).await;
    let refused = join_all((0..16).map(|_| client::send(data, get("/", &[])))).await;
    for answer in refused {
        let answer = answer.expect("an answer");
        let status = "outrigger; error=connection_limit_reached";
        assert_eq!((answer.status.as_u16(), answer.header("proxy-status")), (503, Some(status)));
    }
    assert_eq!(metric(&proxy, r#"outrigger_rejections_total{reason="worker_full"}"#).await, 16);
    let mut calls = std::pin::pin!(join_all(calls));
    let answers = loop {
        worker.seen.go.notify_waiters();
        if let Ok(answers) = tokio::time::timeout(Duration::from_millis(50), &mut calls).await {
            break answers;
        }
    };
    for answer in answers {
        assert_eq!(answer.expect("no panic").expect("an answer").status.as_u16(), 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_waits_for_a_stream_of_a_worker_that_has_none_left() {
    let worker = Worker::start(1, Manner::Holds).await;
    let proxy = start_proxy(&[worker.address], STRICT);
    let data = proxy.data;
    let calls: Vec<_> = (0..256).map(|_| tokio::spawn(client::send(data, get("/", &[])))).collect();
    let releases = async {
        loop {
            tokio::time::sleep(Duration::from_millis(50)).await;
            worker.seen.go.notify_waiters();
        }
    };
    let answers = async { join_all(calls).await };
    let answers = tokio::select! { answers = answers => answers, () = releases => unreachable!() };
    for answer in answers {
        assert_eq!(answer.expect("no panic").expect("an answer").status.as_u16(), 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_a_worker_refuses_go_over_others() {
    for manner in [Manner::RefusesHalf, Manner::Leaves] {
        let worker = Worker::start(10, manner).await;
        let proxy = start_proxy(&[worker.address], STRICT);
        for _ in 0..20 {
            assert_eq!(statuses(&proxy, 3).await, [200; 3]);
        }
        assert!(20 <= metric(&proxy, "outrigger_stale_connections_total").await);
        assert_eq!(metric(&proxy, "outrigger_retries_total").await, 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_was_not_kept_is_sent_once_and_the_worker_is_not_blamed() {
    let worker = Worker::start(10, Manner::RefusesHalf).await;
    let proxy = start_proxy(&[worker.address], STRICT);
    for expected in [502, 200, 502, 200] {
        let answer = client::send(proxy.data, request("POST", "/", &[], "hello")).await.expect("an answer");
        assert_eq!(answer.status.as_u16(), expected);
    }
    let reason = r#"outrigger_rejections_total{reason="worker_refused"}"#;
    assert_eq!(metric(&proxy, reason).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_accepts_and_says_nothing_is_late() {
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let spec = "workers: [{name: worker-1, protocol: H2C}]\nretry: {numRetries: 0}\ntimeout: {request: 1s}";
    let proxy = start_proxy(&[silent.local_addr().expect("bound")], spec);
    assert_eq!(statuses(&proxy, 20).await, [504; 20]);
    assert_eq!(metric(&proxy, r#"outrigger_rejections_total{reason="worker_timeout"}"#).await, 20);
    assert!(metric(&proxy, "outrigger_worker_connects_total").await <= 2, "one of each thread");
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_do_not_read_stop_no_other() {
    let worker = Worker::start(1000, Manner::Big).await;
    let proxy = start_proxy(&[worker.address], STRICT);
    let mut stalled = Vec::new();
    for _ in 0..100 {
        let mut stream = TcpStream::connect(proxy.data).await.expect("the proxy accepts");
        stream.write_all(b"GET /big HTTP/1.1\r\nhost: test\r\n\r\n").await.expect("it is sent");
        stalled.push(stream);
    }
    while worker.seen.streams.load(SeqCst) < 100 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for _ in 0..20 {
        let answer = client::send(proxy.data, get("/", &[])).await.expect("an answer");
        assert_eq!((answer.status.as_u16(), answer.body.len()), (200, 1 << 10));
    }
    assert!(worker.seen.connections.load(SeqCst) <= 4, "two of each thread at most");
}
