//! Draining: one worker by policy and by order, the whole process by SIGTERM. What runs finishes, and what cannot
//! finish is told.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use system_tests::certificate::Certificate;
use system_tests::client::{self, get, request};
use system_tests::load::{Load, Shape};
use system_tests::processes::{self, NodeWorker};
use system_tests::proxy::{document, start_proxy, start_with};
use system_tests::workers::{self, Manner};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;

const HANDSHAKE: &str = "GET /ws HTTP/1.1\r\nhost: test\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
     sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
const GOING_AWAY: [u8; 4] = [0x88, 2, 0x03, 0xe9];

/// A WebSocket through the proxy, after its handshake.
async fn websocket(to: SocketAddr, fields: &str) -> TcpStream {
    let mut stream = TcpStream::connect(to).await.expect("connects");
    stream.write_all(format!("{HANDSHAKE}{fields}\r\n").as_bytes()).await.expect("writes");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.expect("an answer"));
    }
    assert!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
    stream
}

/// Sends a short text, masked with zeros, and reads it back.
async fn echoed(stream: &mut TcpStream, text: &[u8]) -> bool {
    let frame = [&[0x81, 0x80 | text.len() as u8, 0, 0, 0, 0], text].concat();
    stream.write_all(&frame).await.expect("writes");
    let mut back = vec![0; text.len() + 2];
    let read = timeout(Duration::from_secs(5), stream.read_exact(&mut back)).await;
    matches!(read, Ok(Ok(_))) && back[2..] == *text
}

/// What comes until the other end closes.
async fn rest(mut stream: TcpStream) -> Vec<u8> {
    let mut rest = Vec::new();
    let read = timeout(Duration::from_secs(15), stream.read_to_end(&mut rest)).await;
    read.expect("the tunnel is closed").expect("and not cut");
    rest
}

/// Reads a head, if one comes.
async fn has_head(stream: &mut TcpStream) -> bool {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(byte) = stream.read_u8().await else { return false };
        head.push(byte);
    }
    true
}

/// A worker that takes one WebSocket, says nothing and hands out what it was sent after the handshake.
async fn silent_worker() -> (SocketAddr, JoinHandle<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let received = tokio::spawn(async move {
        let mut stream = loop {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            if has_head(&mut stream).await {
                break stream; // on the others the proxy finds out whether it accepts any
            }
        };
        let answer = "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n";
        stream.write_all(answer.as_bytes()).await.expect("writes");
        let (mut received, mut buffer) = (Vec::new(), [0; 1024]);
        // As a WebSocket does, it closes when it is told to.
        while !received.windows(2).any(|bytes| bytes == [0x88, 0x82]) || received.len() < 8 {
            match stream.read(&mut buffer).await {
                Ok(read @ 1..) => received.extend(&buffer[..read]),
                _ => break,
            }
        }
        received
    });
    (address, received)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_worker_keeps_its_sessions_and_gets_nothing_new() {
    let (a, b) = (workers::start("a", Manner::default()).await, workers::start("b", Manner::default()).await);
    let spec = |more: &str| format!("sessionPersistence: {{}}\nloadBalancer: {{type: RoundRobin}}\n{more}");
    let proxy = start_proxy(&[a.address, b.address], &spec(""));
    let mut cookie = None;
    for _ in 0..4 {
        let answer = client::send(proxy.data, get("/", &[])).await.expect("an answer");
        if answer.worker() == "a" {
            cookie = answer.cookie();
        }
    }
    let cookie = cookie.expect("a session with the first worker");
    proxy.apply(&spec("workers: [{name: worker-1, drain: true}]"));
    let worker = proxy.control.snapshot().workers[0].clone();
    eventually("it is drained", || !worker.usable(std::time::Instant::now())).await;
    for _ in 0..10 {
        let new = client::send(proxy.data, get("/", &[])).await.expect("an answer");
        assert_eq!((new.status, new.worker()), (StatusCode::OK, "b"));
        let pinned = client::send(proxy.data, get("/", &[("cookie", &cookie)])).await.expect("an answer");
        assert_eq!((pinned.worker(), pinned.cookie()), ("a", None));
    }
    proxy.apply(&spec("workers: [{name: worker-1, drain: true}]\ndrain: {workerTimeout: 0s}"));
    eventually("its time is over", || !worker.serves_its_sessions(std::time::Instant::now())).await;
    let moved = client::send(proxy.data, get("/", &[("cookie", &cookie)])).await.expect("an answer");
    assert_eq!((moved.worker(), moved.cookie().is_some()), ("b", true));
    proxy.apply(&spec("workers: []"));
    eventually("it serves again", || worker.usable(std::time::Instant::now())).await;
}

async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let waited = timeout(Duration::from_secs(10), async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("not within ten seconds: {what}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn at_its_deadline_both_ends_of_a_tunnel_are_told_and_what_still_runs_is_cut() {
    let (address, received) = silent_worker().await;
    let proxy = start_proxy(
        &[address],
        "workers: [{name: worker-1, protocol: HTTP1}]\ndrain: {workerTimeout: 300ms}", // it takes one connection
    );
    let mut stream = websocket(proxy.data, "").await;
    stream.write_all(&[0x81, 0x81, 0, 0, 0, 0, b'x']).await.expect("writes");
    let order = r#"{"reason": "test", "expiresIn": "1m"}"#;
    let json = [("content-type", "application/json")];
    let mut drain = request("POST", "/api/workers/worker-1/drain", &json, order);
    drain.headers_mut().insert("host", http::HeaderValue::from_static("127.0.0.1"));
    let ordered = client::send(proxy.admin, drain).await.expect("an answer");
    assert_eq!(ordered.status, 200, "{}", ordered.text());
    assert_eq!(rest(stream).await, GOING_AWAY);
    let received = received.await.expect("the worker ends");
    let (frame, close) = received.split_at(7);
    assert_eq!(frame, [0x81, 0x81, 0, 0, 0, 0, b'x'], "what was sent before arrived");
    assert_eq!(close[..2], [0x88, 0x82], "a masked close frame");
    let status = [close[6] ^ close[2], close[7] ^ close[3]];
    assert_eq!(u16::from_be_bytes(status), 1001);

    let slow = workers::start("slow", Manner { delay: Duration::from_secs(60), ..Manner::default() }).await;
    let spec = "drain: {workerTimeout: 100ms}\nretry: {numRetries: 0}\ncircuitBreaker: {worker: {}}";
    let proxy = start_proxy(&[slow.address], spec);
    let runs = tokio::spawn(client::send(proxy.data, get("/", &[])));
    eventually("it runs", || slow.count() == 1).await;
    proxy.apply(&format!("{spec}\nworkers: [{{name: worker-1, drain: true}}]"));
    let cut = timeout(Duration::from_secs(10), runs).await.expect("it is cut").expect("joins");
    assert_eq!(cut.expect("an answer").status, 502);
}

/// The policy of the process that is stopped: a second until no new connections are taken, four for what runs.
const STOPPING: &str = "drain: {delay: 1s, timeout: 4s}";

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_under_load_costs_no_request() {
    let workers = [NodeWorker::start("a"), NodeWorker::start("b")];
    let dir = tempfile::TempDir::new().expect("a temporary directory");
    let policy = dir.path().join("policy.yaml");
    std::fs::write(&policy, document(STOPPING)).expect("writable");
    let (mut proxy, data) = processes::proxy_binary(&[&workers[0], &workers[1]], &policy);

    let load = Load::start(data, Shape { kept: 30, anew: 4, every: Duration::from_millis(25) });
    let mut tunnel = websocket(data, "").await;
    assert!(echoed(&mut tunnel, b"before").await);
    tokio::time::sleep(Duration::from_millis(500)).await;
    let long_http1 = tokio::spawn(client::send(data, get("/slow?ms=3000", &[])));
    let long_http2 = tokio::spawn(slow_http2(data));
    tokio::time::sleep(Duration::from_millis(200)).await;

    proxy.signal("TERM");
    tokio::time::sleep(Duration::from_millis(700)).await; // of the second in which everything is still served
    let outcome = load.stop().await;
    assert!(
        outcome.failures.is_empty(),
        "{} of {}: {:?}",
        outcome.failures.len(),
        outcome.requests,
        outcome.failures
    );
    assert!(100 < outcome.requests, "{} requests", outcome.requests);
    assert!(echoed(&mut tunnel, b"meanwhile").await, "the tunnel goes on");
    let answer = long_http1.await.expect("joins").expect("an answer");
    assert_eq!((answer.status, answer.header("connection")), (StatusCode::OK, Some("close")));
    assert!(long_http2.await.expect("joins"), "answered, and the connection was told to close");
    assert!(echoed(&mut tunnel, b"still").await, "until the deadline");
    assert_eq!(rest(tunnel).await[..4], GOING_AWAY);
    let status = proxy.ended_within(Duration::from_secs(5)).expect("it ends by its deadline");
    assert!(status.success(), "{status}");
}

/// A long request over HTTP/2 that began before the proxy was stopped.
async fn slow_http2(data: SocketAddr) -> bool {
    let stream = TcpStream::connect(data).await.expect("connects");
    let (mut sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.expect("HTTP/2");
    let connection = tokio::spawn(connection);
    let slow = Request::get("http://test/slow?ms=3000").body(Full::new(Bytes::new())).expect("valid");
    let (head, body) = sender.send_request(slow).await.expect("an answer").into_parts();
    let whole = body.collect().await.is_ok();
    // After GOAWAY and its last stream the connection ends by itself, while the sender is still held.
    let closed = timeout(Duration::from_secs(5), connection).await;
    head.status == StatusCode::OK && whole && matches!(closed, Ok(Ok(Ok(()))))
}

/// Starts the binary with the default drain: five seconds until no new connections are taken, 20 for what runs.
fn with_defaults(worker: &NodeWorker) -> (processes::Running, SocketAddr, tempfile::TempDir) {
    let folder = tempfile::tempdir().expect("a folder");
    let policy = folder.path().join("policy.yaml");
    std::fs::write(&policy, document("")).expect("writable");
    let (proxy, data) = processes::proxy_binary(&[worker], &policy);
    (proxy, data, folder)
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_does_not_wait_where_nobody_is_connected_and_a_second_one_waits_for_nothing() {
    let worker = NodeWorker::start("a");
    let soon = Duration::from_secs(2);
    let (mut proxy, data, _folder) = with_defaults(&worker);
    let answer = client::send(data, get("/", &[])).await.expect("an answer");
    assert_eq!(answer.status, StatusCode::OK);
    proxy.signal("INT");
    assert!(proxy.ended_within(soon).expect("it ends at once").success());

    // To a pod's proxy others lead still.
    let (mut proxy, data, _folder) = with_defaults(&worker);
    proxy.signal("TERM");
    tokio::time::sleep(soon).await;
    let answer = client::send(data, get("/", &[])).await.expect("an answer");
    assert_eq!(answer.status, StatusCode::OK);
    assert!(proxy.ended_within(Duration::from_secs(8)).expect("it ends after its delay").success());

    let (mut proxy, data, _folder) = with_defaults(&worker);
    let runs = tokio::spawn(client::send(data, get("/slow?ms=60000", &[])));
    tokio::time::sleep(Duration::from_millis(300)).await; // it is at the worker
    proxy.signal("INT");
    assert!(proxy.ended_within(Duration::from_secs(1)).is_none(), "somebody is connected");
    proxy.signal("INT");
    assert!(proxy.ended_within(soon).expect("it is cut").success());
    assert!(runs.await.expect("joins").is_err(), "there was no answer");
}

#[tokio::test(flavor = "multi_thread")]
async fn signals_that_ask_for_nothing_end_nothing() {
    let worker = NodeWorker::start("a");
    let (mut proxy, data, _folder) = with_defaults(&worker);
    for name in ["HUP", "USR1", "USR2", "HUP"] {
        proxy.signal(name);
        assert!(proxy.ended_within(Duration::from_millis(200)).is_none(), "{name}");
        let answer = client::send(data, get("/", &[])).await.expect("an answer");
        assert_eq!(answer.status, StatusCode::OK, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_have_asked_for_nothing_do_not_hold_up_the_end() {
    let folder = tempfile::tempdir().expect("a folder");
    let flags = Certificate::write(folder.path()).flags();
    let worker = workers::start("a", Manner::default()).await;
    for flags in [&[][..], &flags.each_ref().map(String::as_str)] {
        let proxy = start_with(&[worker.address], "drain: {delay: 0s, timeout: 20s}", flags);
        let mut silent = Vec::new();
        for bytes in [&b""[..], b"G", b"GET / HTTP/1.1\r\n", b"PRI * HTTP/2.0\r\n", b"\x16\x03"] {
            let mut stream = TcpStream::connect(proxy.data).await.expect("connects");
            stream.write_all(bytes).await.expect("taken");
            silent.push(stream);
        }
        tokio::time::sleep(Duration::from_millis(100)).await; // they are accepted
        timeout(Duration::from_secs(3), proxy.drain()).await.expect("nobody is waited for");
    }
}
