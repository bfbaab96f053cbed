//! On a real cluster: a pod that is deleted under load costs no request. What is new goes elsewhere, what runs finishes,
//! and what cannot finish is told.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use serde_json::Value;
use system_tests::client::{self, get};
use system_tests::cluster::{apply, kubectl, kubectl_json, wait};
use system_tests::demo::{self, DEMO, seen};
use system_tests::load::{Load, Outcome, Shape};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::{WebSocketStream, client_async};

const MINUTE: Duration = Duration::from_secs(60);
/// Together 2,700 requests a second are offered: a small machine makes 2,000 of them.
const KEPT: Shape = Shape { kept: 48, anew: 0, every: Duration::from_millis(24) };
const HTTP2: [usize; 2] = [4, 4];
const SLOW: &str = "/slow?ms=20000";
/// The drain and the pod have more time than the slow request takes.
const POLICY: &str = "drain: {delay: 5s, timeout: 25s}\nretry: {}";
const GRACE: &str = r#"{"spec": {"template": {"spec": {"terminationGracePeriodSeconds": 45}}}}"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_is_deleted_under_load_costs_no_request() {
    demo::install();
    let service = demo::deploy();
    kubectl(&["patch", "deployment", "web", "-n", DEMO, "-p", GRACE]);
    kubectl(&["rollout", "status", "deployment/web", "-n", DEMO, "--timeout=180s"]);
    wait("the pods before are gone", MINUTE, || (all_pods() == 2).then_some(()));
    apply(&demo::policy("web", POLICY)).unwrap_or_else(|error| panic!("kubectl apply: {error}"));
    wait("the policy is in force and all workers are usable", MINUTE, || {
        let status = seen("web")["status"].clone();
        (status["proxies"]["summary"] == "2/2" && status["workers"]["summary"] == "6/6").then_some(())
    });
    let pod = demo::pods().remove(0);
    let reached = demo::reach(&pod);
    wait("the pod is reached on a port of its own", MINUTE, || {
        std::net::TcpStream::connect_timeout(&reached, Duration::from_secs(1)).ok()
    });

    let loads = [Load::start(service, KEPT), Load::start_http2(service, HTTP2, KEPT.every)];
    tokio::time::sleep(Duration::from_secs(2)).await;
    let socket = websocket(reached).await;
    let slow = tokio::spawn(async move { client::send(reached, get(SLOW, &[])).await });
    tokio::time::sleep(Duration::from_millis(500)).await; // it is on its way
    assert!(!slow.is_finished(), "the slow request runs");
    kubectl(&["delete", "pod", "-n", DEMO, &pod, "--wait=false"]);
    let deleted = Instant::now();
    let told = tokio::spawn(lives_until_it_is_told(socket, deleted));

    let answer = slow.await.expect("no panic").expect("the slow request is answered");
    assert_eq!(answer.status, 200, "{answer:?}");
    let said: Value = serde_json::from_slice(&answer.body).expect("JSON");
    assert_eq!((&said["sleptMs"], &said["host"]), (&20_000.into(), &pod.as_str().into()));
    println!("    the slow request was answered {:.1} s after the deletion", deleted.elapsed().as_secs_f64());
    told.await.expect("the WebSocket was served and told");
    wait("the pod is gone", MINUTE, || (!exists(&pod)).then_some(()));
    println!("    the pod was gone {:.1} s after the deletion", deleted.elapsed().as_secs_f64());
    tokio::time::sleep(Duration::from_secs(2)).await;
    for (what, load) in ["HTTP/1.1", "HTTP/2"].into_iter().zip(loads) {
        nothing_failed(what, &load.stop().await);
    }
    demo::remove();
}

/// A WebSocket to a worker of the pod that is reached so.
async fn websocket(to: SocketAddr) -> WebSocketStream<TcpStream> {
    let stream = TcpStream::connect(to).await.expect("connects");
    let request = "ws://web/chat".into_client_request().expect("a request");
    let (socket, answer) = client_async(request, stream).await.expect("the handshake succeeds");
    assert!(answer.headers().contains_key("x-worker"));
    socket
}

/// Messages come back while the pod ends, until both ends are told that it goes away.
async fn lives_until_it_is_told(mut socket: WebSocketStream<TcpStream>, deleted: Instant) {
    let mut echoed = 0;
    loop {
        match timeout(Duration::from_millis(200), socket.next()).await {
            Err(_) => socket.send(Message::text("still there?")).await.expect("sent"),
            Ok(Some(Ok(Message::Text(text)))) => {
                assert_eq!(text.as_str(), "still there?");
                echoed += 1;
            }
            Ok(Some(Ok(Message::Close(frame)))) => {
                assert_eq!(frame.expect("with a reason").code, CloseCode::Away, "1001");
                break;
            }
            Ok(other) => panic!("neither an echo nor a close: {other:?}"),
        }
    }
    let lived = deleted.elapsed();
    println!(
        "    the WebSocket echoed {echoed} messages and was closed with 1001 after {:.1} s",
        lived.as_secs_f64()
    );
    assert!(Duration::from_secs(5) < lived && 10 < echoed, "it was not served while the pod drained");
}

fn nothing_failed(what: &str, outcome: &Outcome) {
    let failed = outcome.failures.len();
    println!("    {what}: {} requests at {:.0} a second, {failed} failed", outcome.requests, outcome.rate());
    let first: Vec<_> = outcome.failures.iter().take(10).collect();
    assert!(outcome.failures.is_empty(), "{failed} of {} failed: {first:#?}", outcome.requests);
    assert!(100.0 <= outcome.rate(), "the load was too low to show anything");
}

fn all_pods() -> usize {
    let pods = kubectl_json(&["get", "pods", "-n", DEMO, "-l", "app=web"]);
    pods["items"].as_array().map_or(0, Vec::len)
}

fn exists(pod: &str) -> bool {
    let pods = kubectl_json(&["get", "pods", "-n", DEMO]);
    pods["items"].as_array().is_some_and(|all| all.iter().any(|one| one["metadata"]["name"] == pod))
}
