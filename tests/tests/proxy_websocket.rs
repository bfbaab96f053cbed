//! WebSockets: tungstenite as the client, the example's Node worker as the server, the proxy between them.

use std::net::SocketAddr;

use futures_util::{SinkExt, StreamExt};
use system_tests::certificate::Certificate;
use system_tests::client::{self, connect_tls, get};
use system_tests::proxy::{RunningProxy, start_with};
use system_tests::tools::{self, Started};
use system_tests::workers;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::{WebSocketStream, client_async};

/// How long each message of the echo is: longer than every buffer on the way.
const MESSAGE: usize = 256 << 10;

struct Setup {
    proxy: RunningProxy,
    workers: Vec<(SocketAddr, Started)>,
}

fn setup(flags: &[&str]) -> Setup {
    let workers: Vec<_> = ["a", "b"].map(tools::node_worker).into();
    let addresses: Vec<_> = workers.iter().map(|(address, _)| *address).collect();
    Setup { proxy: start_with(&addresses, "drain: {delay: 0s, timeout: 5s}", flags), workers }
}

/// A WebSocket and the worker it goes to.
async fn connect<S: AsyncRead + AsyncWrite + Unpin>(stream: S) -> (WebSocketStream<S>, String) {
    let request = "ws://localhost/chat".into_client_request().expect("a request");
    let (socket, answer) = client_async(request, stream).await.expect("the handshake succeeds");
    let worker = answer.headers()["x-worker"].to_str().expect("text").to_owned();
    (socket, worker)
}

/// Sends MiBs while it reads MiBs, and asks that what comes back is what went.
async fn echo<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(
    socket: WebSocketStream<S>,
) -> WebSocketStream<S> {
    let (mut write, mut read) = socket.split();
    let file = workers::file();
    let sent = file.clone();
    let writer = tokio::spawn(async move {
        for start in (0..sent.len()).step_by(MESSAGE) {
            write.send(Message::Binary(sent.slice(start..start + MESSAGE))).await.expect("sent");
        }
        write
    });
    for start in (0..file.len()).step_by(MESSAGE) {
        let message = read.next().await.expect("open").expect("a message");
        assert!(
            message.into_data() == file[start..start + MESSAGE],
            "the message at {start} came back changed"
        );
    }
    writer.await.expect("no panic").reunite(read).expect("two halves of one")
}

#[tokio::test(flavor = "multi_thread")]
async fn mebibytes_pass_both_ways_at_once() {
    let setup = setup(&[]);
    let (socket, _) = connect(TcpStream::connect(setup.proxy.data).await.expect("connects")).await;
    let mut socket = echo(socket).await;
    socket.send(Message::text("ünïcode")).await.expect("sent");
    assert_eq!(socket.next().await.expect("open").expect("a message"), Message::text("ünïcode"));
    socket.send(Message::Ping("still there?".into())).await.expect("sent");
    assert_eq!(socket.next().await.expect("open").expect("a message"), Message::Pong("still there?".into()));
    socket.close(None).await.expect("sent");
    assert!(matches!(socket.next().await, Some(Ok(Message::Close(_)))), "the close is answered");
    assert!(socket.next().await.is_none(), "and the connection ends");
}

#[tokio::test(flavor = "multi_thread")]
async fn over_tls_too() {
    let folder = tempfile::tempdir().expect("a folder");
    let certificate = Certificate::write(folder.path());
    let flags = certificate.flags();
    let setup = setup(&flags.each_ref().map(String::as_str));
    let trusted = std::fs::read_to_string(&certificate.certificate).expect("PEM");
    let (socket, _) = connect(connect_tls(setup.proxy.data, &trusted).await.expect("connects")).await;
    echo(socket).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_at_once_are_spread_and_outlive_a_change_of_policy() {
    let setup = setup(&[]);
    let mut sockets = Vec::new();
    let mut workers = Vec::new();
    for _ in 0..16 {
        let (socket, worker) = connect(TcpStream::connect(setup.proxy.data).await.expect("connects")).await;
        sockets.push(socket);
        workers.push(worker);
    }
    assert_eq!(workers.iter().filter(|worker| *worker == "a").count(), 8, "{workers:?}");
    setup.proxy.apply("loadBalancer: {type: LeastRequest}\nworkers: [{name: worker-1, weight: 0}]");
    let (_, worker) = connect(TcpStream::connect(setup.proxy.data).await.expect("connects")).await;
    assert_eq!(worker, "b", "the new policy is for new ones");
    for mut socket in sockets {
        socket.send(Message::text("here")).await.expect("sent");
        assert_eq!(socket.next().await.expect("open").expect("a message"), Message::text("here"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_dies_ends_its_tunnels_and_no_others() {
    let mut setup = setup(&[]);
    let mut open = Vec::new();
    for _ in 0..4 {
        open.push(connect(TcpStream::connect(setup.proxy.data).await.expect("connects")).await);
    }
    let (_, dead) = setup.workers.remove(0);
    drop(dead); // killed
    for (mut socket, worker) in open {
        socket.send(Message::text("here")).await.ok(); // the kernel may take it all the same
        let answer = socket.next().await;
        match worker.as_str() {
            "a" => assert!(!matches!(answer, Some(Ok(_))), "{answer:?}"),
            _ => assert_eq!(answer.expect("open").expect("a message"), Message::text("here")),
        }
    }
    let (_, worker) = connect(TcpStream::connect(setup.proxy.data).await.expect("connects")).await;
    assert_eq!(worker, "b", "a new one goes where there is a worker");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_that_no_worker_could_take_is_refused() {
    let setup = setup(&[]);
    let key = ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
    for (version, key, status) in [("13", None, 400), ("8", Some(key), 426)] {
        let mut upgrade =
            vec![("connection", "upgrade"), ("upgrade", "websocket"), ("sec-websocket-version", version)];
        upgrade.extend(key);
        let answer = client::send(setup.proxy.data, get("/headers", &upgrade)).await.expect("an answer");
        assert_eq!(answer.status, status, "{version}");
    }
}
